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
        let unanswered = |reading: &&Reading| !reading.dropped && reading.window.asked && reading.sums.is_none();
        let waiting: Vec<usize> = self.copies.iter().filter(unanswered).map(|reading| reading.number).collect();
        self.copies.iter_mut().for_each(|reading| reading.dropped = true);
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
        let (entries, differing) = self.compare(&reading, send);
        self.core.handle_copied(number, entries, differing, &mut self.effects);
        true
    }

    /// What differs of a window, and the records that are to be sent for it: of the very memory it was read into.
    fn compare(&mut self, reading: &Reading, send: bool) -> (Vec<Entry>, Vec<(u64, u64)>) {
        let (mut entries, mut differing) = (Vec::new(), Vec::new());
        let window = &reading.window;
        let mut offset = window.offset;
        // A hole wasn't read: it is one piece without memory.
        let pieces = reading.pieces.iter().map(|(place, bytes)| (Some(*place), *bytes));
        let hole = reading.hole.then_some((None, window.length));
        for (place, bytes) in hole.into_iter().chain(pieces) {
            let parts = self.parts(reading, offset, place, bytes);
            let differ = parts.iter().filter(|(part, ..)| *part != Part::Equal);
            for (_, at, length) in differ.clone() {
                match differing.last_mut() {
                    Some((start, bytes)) if *start + *bytes == offset + at => *bytes += length,
                    _ => differing.push((offset + at, *length)),
                }
            }
            let zeros = differ.filter(|(part, ..)| send && *part == Part::Zero);
            entries.extend(zeros.map(|(_, at, length)| zero_record(window, offset + at, *length)));
            if let Some(place) = place {
                let data = parts.iter().filter(|(part, ..)| send && *part == Part::Data);
                let data: Vec<(u64, u64)> = data.map(|(_, at, length)| (*at, *length)).collect();
                self.data_records(window, offset, place, bytes, &data, &mut entries);
            }
            offset += bytes;
        }
        (entries, differing)
    }

    /// Divides a piece of a window into parts of one kind: where each starts in it, and its bytes.
    fn parts(&self, reading: &Reading, offset: u64, place: Option<Place>, bytes: u64) -> Vec<(Part, u64, u64)> {
        let mut parts: Vec<(Part, u64, u64)> = Vec::new();
        let mut at = 0;
        while at < bytes {
            let length = SUM_GRAIN_BYTES.min(bytes - at);
            // SAFETY: this piece's reads are complete, and nobody else uses its memory.
            let contents = place.map(|place| unsafe { self.memory.bytes(Place(place.0 + at), length as usize) });
            let index = ((offset + at - reading.window.offset) / SUM_GRAIN_BYTES) as usize;
            let equal = reading.sums.as_ref().is_some_and(|theirs| {
                theirs[index] == contents.map_or_else(|| sums::of_zeros(length as usize), sums::of)
            });
            let part = match contents {
                _ if equal => Part::Equal,
                Some(contents) if contents.iter().any(|byte| *byte != 0) => Part::Data,
                _ => Part::Zero,
            };
            match parts.last_mut() {
                Some((last, _, bytes)) if *last == part => *bytes += length,
                _ => parts.push((part, at, length)),
            }
            at += length;
        }
        parts
    }

    /// Records of these parts of a piece of memory; whatever of it they don't need is given back.
    fn data_records(
        &mut self,
        window: &Window,
        offset: u64,
        place: Place,
        bytes: u64,
        parts: &[(u64, u64)],
        entries: &mut Vec<Entry>,
    ) {
        // A few blocks would keep the memory of all until their half is clean: they move closer together.
        let sparse = parts.iter().map(|(_, length)| length).sum::<u64>() <= bytes / 2;
        let mut users = 0;
        for (at, length) in parts {
            let (mut done, mut from) = (0, Place(place.0 + at));
            while done < *length {
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
            0 => self.give_back(place, bytes),
            more => (1..more).for_each(|_| self.pool.share(place)),
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
