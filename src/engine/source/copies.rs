//! Windows of a resync or a verify are read, compared with the destination's checksums, and handed to the core as records.

use super::{Engine, Token};
use crate::core::Place;
use crate::core::copy::{Purpose, Window};
use crate::core::half::{Entry, Ticket};
use crate::core::index::Found;
use crate::engine::sums;
use crate::format::checksum::crc32c;
use crate::format::frame::{Kind, RECORD_COPY, Record, padded};
use crate::format::wire::Sum;
use crate::limits::{CHUNK_BYTES, COPY_WINDOW_BYTES, SUM_GRAIN_BYTES};
use std::io;

/// Chunks that one window takes at the most.
const WINDOW_CHUNKS: usize = COPY_WINDOW_BYTES as usize / CHUNK_BYTES + 2;

/// A window that is being read, and asked for.
#[derive(Debug)]
pub(super) struct Reading {
    number: usize,
    window: Window,
    /// Nothing was read: it is all zeros.
    hole: bool,
    pieces: Vec<(Place, u64)>,
    outstanding: u32,
    sums: Option<Vec<Sum>>,
    /// The connection over which it was asked for is gone.
    dropped: bool,
    /// A part of it can't be read.
    failed: bool,
}

/// What is done with a part of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Equal,
    Zero,
    Data,
}

impl Engine {
    /// Starts reads of windows; true where one was at hand without a read and waits for the core's turn.
    pub(super) fn pump_copies(&mut self) -> bool {
        let mut handed = false;
        while self.pool.free_chunks() > super::clients::RESERVED_CHUNKS + WINDOW_CHUNKS
            && let Some((number, window)) = self.core.next_copy()
        {
            let hole = self.is_hole(&window);
            self.copies.push(Reading {
                number,
                window,
                hole,
                pieces: Vec::new(),
                // One for the reads being started, one for the answer.
                outstanding: 1 + u32::from(window.asked),
                sums: None,
                dropped: false,
                failed: false,
            });
            let mut at = window.offset;
            let end = window.offset + window.length;
            while at < end && !hole {
                let wanted = ((end - at) as usize).min(CHUNK_BYTES);
                let (place, bytes) = self.pool.take(wanted).expect("free chunks were counted");
                if let Some(reading) = self.copies.last_mut() {
                    reading.pieces.push((place, bytes as u64));
                }
                self.read_into(Token::Copy(number), window.volume, at, place, bytes as u64, |engine| {
                    if let Some(reading) = engine.copies.last_mut() {
                        reading.outstanding += 1;
                    }
                });
                at += bytes as u64;
            }
            handed |= self.copy_part_done(number);
        }
        handed
    }

    /// Whether a window reads as zeros without reading it.
    fn is_hole(&mut self, window: &Window) -> bool {
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        self.core.read(window.volume, window.offset..window.offset + window.length, &mut segments);
        let disk = &self.volumes[usize::from(window.volume)];
        let zero = segments.iter().all(|segment| match segment.found {
            Found::Memory(_) => false,
            Found::Zeros => true,
            Found::Device => disk.is_hole(segment.offset, segment.length),
        });
        self.segments = segments;
        zero
    }

    pub(super) fn copy_read(&mut self, number: usize, outcome: io::Result<usize>) {
        if let Err(error) = outcome
            && let Some(reading) = self.copies.iter_mut().find(|reading| reading.number == number)
            && !std::mem::replace(&mut reading.failed, true)
        {
            let path = self.volumes[usize::from(reading.window.volume)].path().display();
            let at = reading.window.offset;
            tracing::error!("the volume ({path}) can't be read near byte {at} for a resync or a verify: {error}");
        }
        self.copy_part_done(number);
    }

    /// The destination's checksums of a window arrived. An error closes the connection.
    pub(super) fn copy_answered(&mut self, id: u64, sums: Vec<Sum>) -> Result<(), String> {
        let asked = |reading: &&mut Reading| reading.number as u64 == id && !reading.dropped && reading.window.asked;
        let Some(reading) = self.copies.iter_mut().find(asked).filter(|reading| reading.sums.is_none()) else {
            return Err(format!("the destination answers question {id}, which wasn't asked"));
        };
        let expected = reading.window.length.div_ceil(SUM_GRAIN_BYTES) as usize;
        if sums.len() != expected {
            return Err(format!("the destination sent {} checksums where {expected} were asked for", sums.len()));
        }
        reading.sums = Some(sums);
        let number = reading.number;
        self.copy_part_done(number);
        Ok(())
    }

    /// The connection is gone: nobody answers any more.
    pub(super) fn drop_questions(&mut self) {
        let waiting: Vec<usize> = self
            .copies
            .iter_mut()
            .filter(|reading| !reading.dropped)
            .map(|reading| {
                reading.dropped = true;
                if reading.window.asked && reading.sums.is_none() { reading.number } else { usize::MAX }
            })
            .filter(|number| *number != usize::MAX)
            .collect();
        for number in waiting {
            self.copy_part_done(number);
        }
    }

    /// True when that was the window's last part.
    fn copy_part_done(&mut self, number: usize) -> bool {
        let Some(at) = self.copies.iter().position(|reading| reading.number == number) else { return false };
        self.copies[at].outstanding -= 1;
        if self.copies[at].outstanding > 0 {
            return false;
        }
        let reading = self.copies.swap_remove(at);
        let purpose = self.core.copier().map(|copier| copier.purpose());
        let verifies = matches!(purpose, Some(Purpose::Verify { .. }));
        let unknown = reading.sums.as_ref().is_some_and(|sums| sums.contains(&Sum::default()));
        let trouble = match () {
            () if reading.failed => Some("a volume can't be read; the log says where"),
            () if verifies && unknown => Some(
                "the destination doesn't know what its images hold: it still brings a resync onto them, or can't read \
                 them. Its status and its log say which",
            ),
            () => None,
        };
        if reading.dropped || trouble.is_some() {
            reading.pieces.iter().for_each(|(place, bytes)| self.give_back(*place, *bytes));
            if let Some(trouble) = trouble.filter(|_| !reading.dropped) {
                self.core.handle_uncopied(trouble, &mut self.effects);
            }
            return true;
        }
        let send = purpose.is_some_and(|purpose| purpose != Purpose::Verify { repair: false });
        let (mut entries, mut differing) = (Vec::new(), Vec::new());
        if reading.hole {
            self.compare_hole(&reading, send, &mut entries, &mut differing);
        } else {
            self.compare(&reading, send, &mut entries, &mut differing);
        }
        self.core.handle_copied(number, entries, differing, &mut self.effects);
        true
    }

    /// A window of zeros.
    fn compare_hole(&self, reading: &Reading, send: bool, entries: &mut Vec<Entry>, differing: &mut Vec<(u64, u64)>) {
        let window = &reading.window;
        let mut run: Option<(u64, u64)> = None;
        let mut at = window.offset;
        let end = window.offset + window.length;
        while at < end {
            let bytes = SUM_GRAIN_BYTES.min(end - at);
            let index = ((at - window.offset) / SUM_GRAIN_BYTES) as usize;
            let equal = reading.sums.as_ref().is_some_and(|theirs| theirs[index] == sums::of_zeros(bytes as usize));
            match &mut run {
                Some((_, length)) if !equal => *length += bytes,
                None if !equal => run = Some((at, bytes)),
                _ => differing.extend(run.take()),
            }
            at += bytes;
        }
        differing.extend(run);
        if send {
            entries.extend(differing.iter().map(|(offset, length)| zero_record(window, *offset, *length)));
        }
    }

    /// A window that was read: what differs becomes records, of the very memory it was read into.
    fn compare(&mut self, reading: &Reading, send: bool, entries: &mut Vec<Entry>, differing: &mut Vec<(u64, u64)>) {
        let window = &reading.window;
        let mut offset = window.offset;
        for (place, bytes) in &reading.pieces {
            let mut runs: Vec<(Part, u64, u64)> = Vec::new();
            let mut at = 0;
            while at < *bytes {
                let length = SUM_GRAIN_BYTES.min(bytes - at);
                // SAFETY: this piece's reads are complete, and nobody else uses its memory.
                let contents = unsafe { self.memory.bytes(Place(place.0 + at), length as usize) };
                let index = ((offset + at - window.offset) / SUM_GRAIN_BYTES) as usize;
                let part = match &reading.sums {
                    Some(theirs) if theirs[index] == sums::of(contents) => Part::Equal,
                    _ if contents.iter().all(|byte| *byte == 0) => Part::Zero,
                    _ => Part::Data,
                };
                match runs.last_mut() {
                    Some((last, _, bytes)) if *last == part => *bytes += length,
                    _ => runs.push((part, at, length)),
                }
                at += length;
            }
            // A few blocks would keep the memory of all until their half is clean: they move closer together.
            let data: u64 = runs.iter().filter(|(part, ..)| *part == Part::Data).map(|(.., length)| length).sum();
            let sparse = data <= bytes / 2;
            let mut users = 0;
            for (part, at, length) in runs {
                if part == Part::Equal {
                    continue;
                }
                match differing.last_mut() {
                    Some((start, bytes)) if *start + *bytes == offset + at => *bytes += length,
                    _ => differing.push((offset + at, length)),
                }
                if !send {
                    continue;
                }
                if part == Part::Zero {
                    entries.push(zero_record(window, offset + at, length));
                    continue;
                }
                let (mut done, mut from) = (0, Place(place.0 + at));
                while done < length {
                    let moved = if sparse { self.pool.take((length - done) as usize) } else { None };
                    let (to, taken) = moved.unwrap_or((from, (length - done) as usize));
                    if to != from {
                        // SAFETY: this piece's reads are complete, and the target was just taken.
                        unsafe { self.memory.copy(from, to, taken) };
                    } else {
                        users += 1;
                    }
                    entries.push(self.data_record(window, offset + at + done, to, taken));
                    done += taken as u64;
                    from.0 += taken as u64;
                }
            }
            // The piece counts as one user of its chunk; each record gives one back.
            match users {
                0 => self.give_back(*place, *bytes),
                more => (1..more).for_each(|_| self.pool.share(*place)),
            }
            offset += bytes;
        }
    }

    /// A record of bytes in memory that are this copy's alone.
    fn data_record(&self, window: &Window, offset: u64, place: Place, bytes: usize) -> Entry {
        // SAFETY: nobody else uses these bytes, nor what is left of their last block.
        let contents = unsafe {
            self.memory.bytes_mut(Place(place.0 + bytes as u64), padded(bytes) - bytes).fill(0);
            self.memory.bytes(place, bytes)
        };
        let record = Record {
            volume: window.volume,
            kind: Kind::Write,
            flags: RECORD_COPY,
            offset,
            length: bytes as u32,
            checksum: crc32c(contents),
        };
        Entry { record, place, ticket: Ticket::NONE }
    }

    fn give_back(&mut self, place: Place, bytes: u64) {
        self.pool.release(place, padded(bytes as usize) as u64);
    }
}

/// The image may hold anything where the volume has zeros: they are said, not skipped in silence.
fn zero_record(window: &Window, offset: u64, bytes: u64) -> Entry {
    let record = Record {
        volume: window.volume,
        kind: Kind::Trim,
        flags: RECORD_COPY,
        offset,
        length: bytes as u32,
        checksum: 0,
    };
    Entry { record, place: Place(0), ticket: Ticket::NONE }
}
