//! Images of a journal's halves: a chain of frames as a source writes it, and then what a disk makes of them.

use super::super::pick::Number;
use super::super::structured::{Encode, List};
use arbitrary::{Arbitrary, Unstructured};
use nbd_mirror::format::block::{self, Block};
use nbd_mirror::format::checksum::crc32c;
use nbd_mirror::format::frame::{self, Header, Kind, Record, padded};
use nbd_mirror::format::ids::{Digest, Epoch, Fill, Id, Mark, Seq};
use nbd_mirror::limits::BLOCK_BYTES;

/// What a disk writes or loses as a whole, in bytes.
const SECTOR_BYTES: usize = 512;
/// Bytes of one volume of these journals.
pub const VOLUME_BYTES: u64 = 1 << 20;
/// The source whose journal it is.
pub const SOURCE: Id = Id([7; 16]);

structured! {
    /// A journal.
    struct Image {
        half_blocks: u8,
        /// The fill and the record before the first frame.
        fill: u8,
        seq: Number,
        steps: List<Step>,
        /// How many of the last fills count as clean, and whether the headers' word counts.
        behind: u8,
        vouched: bool,
        mutations: List<Mutation>,
    }

    /// What a source does.
    enum Step {
        Frame { flags: u8, uncommitted: u8, records: List<Written> },
        NextFill,
        Restart,
        /// A crash that took the last frames before they were stored anywhere; the next ones go over them.
        Torn { frames: u8 },
    }

    /// A record.
    struct Written { kind: u8, volume: u8, flags: u8, offset_blocks: u8, length: u16, byte: u8 }

    /// What becomes of the image.
    enum Mutation {
        Flip { half: bool, at: u32, bit: u8 },
        Zero { half: bool, sector: u16, count: u8 },
        /// A sector that holds what another one does.
        Misplaced { half: bool, from: u16, to: u16, whole_block: bool },
        Swap,
        Short { half: bool, bytes: u16 },
        /// A header that says something else under a right checksum.
        Forge { half: bool, block: u8, at: Field, value: Number },
        Noise { half: bool, at: u32, bytes: List<u8> },
    }

    /// A field of a header or of its first record.
    enum Field {
        Flags, Source, Epoch, Incarnation, Fill, Position, First, Committed, Previous, PayloadBytes, Count,
        Offset, Length, Checksum, Volume, Kind, RecordFlags,
    }
}

/// A journal that was made.
#[derive(Debug)]
pub struct Journal {
    /// Both halves.
    pub halves: [Vec<u8>; 2],
    /// Bytes of one half.
    pub half_bytes: u64,
    /// The boundary up to which all is clean.
    pub clean: Mark,
    /// The boundaries after it that the source made and didn't lose.
    pub chain: Vec<Mark>,
    /// Every boundary that ever was.
    pub made: Vec<Mark>,
    /// Whether any header was forged.
    pub forged: bool,
    /// Whether the image is as the source left it.
    pub untouched: bool,
}

struct Maker {
    halves: [Vec<u8>; 2],
    /// Where each frame of the chain starts, and the boundary before and after it.
    frames: Vec<(u64, Mark, Mark)>,
    made: Vec<Mark>,
    fill: Fill,
    position: u64,
    end: Mark,
    incarnation: u64,
    /// The highest record that any header called committed.
    claimed: Seq,
}

impl Image {
    /// Makes it.
    pub fn make(&self) -> Journal {
        let half_bytes = BLOCK_BYTES * (4 + usize::from(self.half_blocks % 61));
        let start = Mark { fill: Fill(self.fill.into()), seq: Seq(self.seq.near(0) >> 3), digest: Digest(9) };
        let mut maker = Maker {
            halves: [vec![0; half_bytes], vec![0; half_bytes]],
            frames: Vec::new(),
            made: Vec::new(),
            fill: start.fill.next(),
            position: 0,
            end: start,
            incarnation: 1,
            claimed: start.seq,
        };
        self.steps.0.iter().take(256).for_each(|step| maker.step(step));

        let behind = u64::from(self.behind % 3);
        let last_fill = maker.frames.last().map_or(start.fill, |(_, _, after)| after.fill);
        // A fill is begun, be it lost again, only when the one before it in its half is clean.
        let over = maker.made.last().map_or(0, |mark| mark.fill.0.saturating_sub(2));
        let clean_fill = Fill(last_fill.0.saturating_sub(behind).max(start.fill.0).max(over));
        let ends = maker.frames.iter().map(|(_, _, after)| *after);
        let clean = ends.clone().rfind(|mark| mark.fill <= clean_fill).unwrap_or(start);
        let chain = ends.filter(|mark| mark.fill > clean_fill).collect();
        let mut journal = Journal {
            halves: maker.halves,
            half_bytes: half_bytes as u64,
            clean,
            chain,
            made: maker.made,
            forged: self.mutations.0.iter().any(|mutation| matches!(mutation, Mutation::Forge { .. })),
            untouched: self.mutations.0.is_empty(),
        };
        self.mutations.0.iter().for_each(|mutation| mutation.apply(&mut journal.halves));
        journal
    }
}

impl Maker {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Frame { flags, uncommitted, records } => self.frame(*flags, *uncommitted, &records.0),
            Step::NextFill if self.position > 0 => (self.fill, self.position) = (self.fill.next(), 0),
            Step::NextFill => {}
            Step::Restart => self.incarnation += 1,
            Step::Torn { frames } => {
                let made = self.frames.len();
                for _ in 0..*frames {
                    let Some((position, before, after)) = self.frames.last().copied() else { break };
                    if after.fill != self.fill || before.seq < self.claimed {
                        break;
                    }
                    (self.position, self.end) = (position, before);
                    self.frames.pop();
                }
                if self.frames.len() == made {
                    return;
                }
                // Only the first of them is torn: whole ones may be left behind it.
                let rest = &mut self.halves[self.fill.half()][self.position as usize..];
                rest.iter_mut().take(BLOCK_BYTES).skip(BLOCK_BYTES - SECTOR_BYTES).for_each(|byte| *byte = 0xee);
                self.incarnation += 1;
            }
        }
    }

    fn frame(&mut self, flags: u8, uncommitted: u8, written: &[Written]) {
        let mut records = Vec::new();
        let mut payload = Vec::new();
        for written in written.iter().take(8) {
            let record = written.record(&mut payload);
            records.push(record);
        }
        if records.is_empty() {
            records.push(
                Written { kind: 3, volume: 0, flags: 0, offset_blocks: 0, length: 0, byte: 0 }.record(&mut payload),
            );
        }
        let bytes = BLOCK_BYTES + payload.len();
        if bytes > self.halves[0].len() {
            return;
        }
        if self.position as usize + bytes > self.halves[0].len() {
            (self.fill, self.position) = (self.fill.next(), 0);
        }
        let committed = Seq(self.end.seq.0.saturating_sub(uncommitted.into()).max(self.claimed.0));
        let header = Header {
            flags: (flags % 4).into(),
            source: SOURCE,
            epoch: Epoch(1),
            incarnation: self.incarnation,
            fill: self.fill,
            position: self.position,
            first: self.end.seq.next(),
            committed,
            stable_here: committed,
            previous: self.end.digest,
            payload_bytes: 0,
            count: 0,
        };
        let mut block = [0; BLOCK_BYTES];
        let digest = header.encode(records.iter(), &mut block);
        let half = &mut self.halves[self.fill.half()][self.position as usize..];
        half[..BLOCK_BYTES].copy_from_slice(&block);
        half[BLOCK_BYTES..bytes].copy_from_slice(&payload);
        let after = Mark { fill: self.fill, seq: Seq(self.end.seq.0 + records.len() as u64), digest };
        self.frames.push((self.position, self.end, after));
        self.made.push(after);
        self.position += bytes as u64;
        (self.end, self.claimed) = (after, committed);
    }
}

impl Written {
    /// The record; its payload is appended.
    fn record(&self, payload: &mut Vec<u8>) -> Record {
        let kind = [Kind::Write, Kind::Trim, Kind::WriteZeroes, Kind::Flush][usize::from(self.kind % 4)];
        let length = match kind {
            Kind::Flush => 0,
            _ => u32::from(self.length % 20_000).max(1),
        };
        let bytes = vec![self.byte; if kind == Kind::Write { length as usize } else { 0 }];
        payload.extend(&bytes);
        payload.resize(padded(payload.len()), 0);
        Record {
            volume: (self.volume % 2).into(),
            kind,
            flags: self.flags % 8,
            offset: u64::from(self.offset_blocks % 251) * BLOCK_BYTES as u64,
            length,
            checksum: if bytes.is_empty() { 0 } else { crc32c(&bytes) },
        }
    }
}

impl Mutation {
    fn apply(&self, halves: &mut [Vec<u8>; 2]) {
        match self {
            Mutation::Flip { half, at, bit } => {
                if let Some(byte) = wrapped(&mut halves[usize::from(*half)], *at as usize) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Mutation::Zero { half, sector, count } => {
                let half = &mut halves[usize::from(*half)];
                let start = usize::from(*sector) * SECTOR_BYTES % half.len().max(1);
                let end = (start + usize::from(*count) * SECTOR_BYTES).min(half.len());
                half[start..end].fill(0);
            }
            Mutation::Misplaced { half, from, to, whole_block } => {
                let unit = if *whole_block { BLOCK_BYTES } else { SECTOR_BYTES };
                let half = &mut halves[usize::from(*half)];
                let units = half.len() / unit;
                if units > 0 {
                    let from = usize::from(*from) % units * unit;
                    half.copy_within(from..from + unit, usize::from(*to) % units * unit);
                }
            }
            Mutation::Swap => halves.swap(0, 1),
            Mutation::Short { half, bytes } => {
                let half = &mut halves[usize::from(*half)];
                half.truncate(half.len().saturating_sub((*bytes).into()));
            }
            Mutation::Forge { half, block, at, value } => {
                let half = &mut halves[usize::from(*half)];
                let blocks = half.as_chunks_mut::<BLOCK_BYTES>().0;
                let count = blocks.len().max(1);
                // The next header from there on.
                let found =
                    blocks.iter_mut().skip(usize::from(*block) % count).find(|block| block[..8] == frame::MAGIC);
                if let Some(block) = found {
                    at.forge(block, value);
                }
            }
            Mutation::Noise { half, at, bytes } => {
                for (index, noise) in bytes.0.iter().enumerate() {
                    if let Some(byte) = wrapped(&mut halves[usize::from(*half)], *at as usize + index) {
                        *byte = *noise;
                    }
                }
            }
        }
    }
}

fn wrapped(bytes: &mut [u8], at: usize) -> Option<&mut u8> {
    let length = bytes.len().max(1);
    bytes.get_mut(at % length)
}

impl Field {
    /// Where it stands in a header block; docs/format.md has the table.
    fn range(&self) -> std::ops::Range<usize> {
        match self {
            Field::Flags => 10..12,
            Field::Source => 16..24,
            Field::Epoch => 32..40,
            Field::Incarnation => 40..48,
            Field::Fill => 48..56,
            Field::Position => 56..64,
            Field::First => 64..72,
            Field::Committed => 72..80,
            Field::Previous => 80..88,
            Field::PayloadBytes => 88..92,
            Field::Count => 92..94,
            Field::Offset => 128..136,
            Field::Length => 136..140,
            Field::Checksum => 140..144,
            Field::Volume => 144..146,
            Field::Kind => 146..147,
            Field::RecordFlags => 147..148,
        }
    }

    fn forge(&self, block: &mut Block, value: &Number) {
        let range = self.range();
        let mut number = [0; 8];
        number[..range.len()].copy_from_slice(&block[range.clone()]);
        let forged = value.near(u64::from_le_bytes(number)).to_le_bytes();
        block[range.clone()].copy_from_slice(&forged[..range.len()]);
        let flags = u16::from_le_bytes([block[10], block[11]]);
        block::seal(block, frame::MAGIC, flags);
    }
}
