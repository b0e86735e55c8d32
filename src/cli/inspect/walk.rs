//! Frame after frame of a file, with what is wrong and where. Bounded memory, whatever the file holds.
//!
//! A kept file must be whole. A half of a journal ends where it ends: whether a frame that isn't whole was torn by a crash or
//! damaged later is told as recovery tells it, by the word of the headers behind.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::format::block::Block;
use crate::format::checksum::{crc32c, digest};
use crate::format::frame::{Header, MAGIC, Record, padded};
use crate::format::ids::{Fill, Id, Mark, Seq};
use crate::limits::{BLOCK_BYTES, MAX_FRAME_BYTES, MAX_FRAME_PAYLOAD_BYTES};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What a part of a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// A kept file's contents of volumes.
    Contents,
    /// A kept file's frames of the journal.
    Journal,
    /// A half: of a source, or of a destination.
    Half { fill: Fill, of_source: bool },
}

/// Frames that follow one another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    pub part: Part,
    pub source: Id,
    /// In bytes of the file.
    pub start: u64,
    pub end: u64,
}

/// What is met on the way.
#[derive(Debug)]
pub(super) enum Item<'a> {
    Frame { at: u64, header: &'a Header },
    Record { seq: Seq, record: &'a Record, payload: &'a [u8], whole: bool },
    Damage { at: u64, why: String },
    Note { at: u64, why: String },
}

pub(super) type Visit<'a> = dyn FnMut(Part, Item<'_>) -> anyhow::Result<()> + 'a;

impl Section {
    /// Whether a header stands where one of this section may.
    fn fits(&self, header: &Header, at: u64) -> Result<(), String> {
        if header.source != self.source {
            return Err(format!("a frame of another source ({})", header.source));
        }
        match self.part {
            Part::Half { fill, .. } if header.fill != fill || header.position != at - self.start => {
                Err(format!("a frame of fill {} for byte {}", header.fill, header.position))
            }
            _ => Ok(()),
        }
    }

    fn header(&self, block: &Block, at: u64, after: Option<Mark>) -> Result<Header, String> {
        let header = Header::parse(block).map_err(|error| error.to_string())?;
        self.fits(&header, at)?;
        match after {
            Some(after) if header.previous != after.digest || header.first != after.seq.next() => {
                Err(format!("a frame that follows record {}, not record {}", header.first.0 - 1, after.seq))
            }
            _ => Ok(header),
        }
    }

    fn word(&self, header: &Header) -> Seq {
        match self.part {
            Part::Half { of_source: true, .. } => header.committed.max(header.stable_here),
            _ => header.committed,
        }
    }

    /// Looks for headers from a byte on: where the first one behind a record is, and whether any says that more than that
    /// record was once stable.
    fn scan(&self, file: &File, from: u64, behind: Seq, buffer: &mut [u8]) -> io::Result<(Option<u64>, bool)> {
        let (mut first, mut proven, mut at) = (None, false, from);
        while at < self.end {
            let bytes = read(file, at, self.end - at, buffer)?;
            for (index, block) in bytes.as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
                let place = at + index as u64 * BLOCK;
                if block[..8] != MAGIC {
                    continue;
                }
                if let Ok(header) = Header::parse(block)
                    && self.fits(&header, place).is_ok()
                    && header.first > behind
                {
                    first = first.or(Some(place));
                    proven |= self.word(&header) > behind;
                }
            }
            if bytes.len() < BLOCK_BYTES || (first.is_some() && (proven || !matches!(self.part, Part::Half { .. }))) {
                break;
            }
            at += (bytes.len() / BLOCK_BYTES) as u64 * BLOCK;
        }
        Ok((first, proven))
    }

    /// Visits all of it, given the boundary before it where that is known. Returns the boundary behind it.
    pub(super) fn walk(&self, file: &File, mut after: Option<Mark>, visit: &mut Visit) -> anyhow::Result<Option<Mark>> {
        let mut buffer = vec![0; MAX_FRAME_BYTES];
        let (mut at, mut last) = (self.start, after.map_or(Seq(0), |mark| mark.seq));
        let strict = !matches!(self.part, Part::Half { .. });
        while at < self.end {
            let bytes = read(file, at, (self.end - at).min(MAX_FRAME_BYTES as u64), &mut buffer)?;
            let found = match bytes.split_first_chunk::<BLOCK_BYTES>() {
                None => Err("the file ends here".to_owned()),
                Some((block, behind)) => self.header(block, at, after).map(|header| (header, block, behind)),
            };
            let wrong = match found {
                Ok((header, block, behind)) if behind.len() >= header.payload_bytes as usize => {
                    let checked = check(&header, block, behind);
                    let bad: Vec<usize> = (0..checked.len()).filter(|index| !checked[*index].2).collect();
                    let next = at + header.frame_bytes();
                    let torn = !bad.is_empty() && !strict && {
                        let mut other = vec![0; MAX_FRAME_PAYLOAD_BYTES];
                        !self.scan(file, next, last, &mut other)?.1
                    };
                    if torn {
                        let why = "a frame that isn't whole: a crash has torn it, or it is damaged; a start drops it";
                        visit(self.part, Item::Note { at, why: why.into() })?;
                        return Ok(after);
                    }
                    visit(self.part, Item::Frame { at, header: &header })?;
                    for (index, (record, payload, whole)) in checked.iter().enumerate() {
                        let seq = Seq(header.first.0 + index as u64);
                        visit(self.part, Item::Record { seq, record, payload, whole: *whole })?;
                        if !whole {
                            let place = at + BLOCK + (payload.as_ptr() as usize - behind.as_ptr() as usize) as u64;
                            let why = format!("the payload of record {seq} isn't what was written");
                            visit(self.part, Item::Damage { at: place, why })?;
                        }
                    }
                    after = Some(Mark { fill: header.fill, seq: header.last(), digest: digest(block) });
                    (at, last) = (next, header.last());
                    continue;
                }
                Ok(_) => "the frame exceeds what is here".to_owned(),
                Err(why) => why,
            };
            let (next, proven) = self.scan(file, at + BLOCK, last, &mut buffer)?;
            if strict || proven {
                let lost = match next {
                    Some(next) => format!("{wrong}; the next frame that can be read is at byte {next}"),
                    None => format!("{wrong}; nothing behind it can be read"),
                };
                visit(self.part, Item::Damage { at, why: lost })?;
            } else {
                if next.is_some() {
                    let why = "frames behind a break, which a crash has left; a start drops them";
                    visit(self.part, Item::Note { at, why: why.into() })?;
                }
                return Ok(after);
            }
            let Some(next) = next else { return Ok(after) };
            (at, after) = (next, None);
        }
        Ok(after)
    }
}

/// A frame's records with their payloads, and whether these are what was written.
fn check<'a>(header: &Header, block: &Block, behind: &'a [u8]) -> Vec<(Record, &'a [u8], bool)> {
    let mut at = 0;
    let one = |record: Record| {
        let payload = &behind[at..at + record.payload_bytes()];
        at += padded(record.payload_bytes());
        let computed = if payload.is_empty() { 0 } else { crc32c(payload) };
        (record, payload, computed == record.checksum)
    };
    header.records(block).map(one).collect()
}

/// As much as there is, up to `bytes` and the buffer's length.
pub(super) fn read<'a>(file: &File, at: u64, bytes: u64, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let wanted = usize::try_from(bytes).unwrap_or(usize::MAX).min(buffer.len());
    let mut done = 0;
    while done < wanted {
        match file.read_at(&mut buffer[done..wanted], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(&buffer[..done])
}
