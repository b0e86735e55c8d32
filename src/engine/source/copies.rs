//! The first sync reads its windows and hands them to the core as records.

use super::{Engine, EngineError, Token, failed};
use crate::core::Place;
use crate::core::copy::Window;
use crate::core::half::{Entry, Ticket};
use crate::core::index::Found;
use crate::engine::disk::Extent;
use crate::format::checksum::crc32c;
use crate::format::frame::{Kind, RECORD_COPY, Record, padded};
use crate::limits::{CHUNK_BYTES, COPY_WINDOW_BYTES};
use std::io;

/// Chunks that one window takes at the most.
const WINDOW_CHUNKS: usize = COPY_WINDOW_BYTES as usize / CHUNK_BYTES + 2;

/// A window that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    number: usize,
    window: Window,
    pieces: Vec<(Place, u64)>,
    outstanding: u32,
}

impl Engine {
    /// Starts reads of windows; true where one was at hand without a read and waits for the core's turn.
    pub(super) fn pump_copies(&mut self) -> bool {
        let mut handed = false;
        while self.pool.free_chunks() > super::clients::RESERVED_CHUNKS + WINDOW_CHUNKS
            && let Some((number, window)) = self.core.next_copy()
        {
            if self.is_hole(&window) {
                let zeros = self.zero_record(&window, window.offset, window.length);
                self.core.handle_copied(number, vec![zeros], &mut self.effects);
                handed = true;
                continue;
            }
            self.copies.push(Reading { number, window, pieces: Vec::new(), outstanding: 1 });
            let mut at = window.offset;
            let end = window.offset + window.length;
            while at < end {
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
            Found::Device => disk.extent(segment.offset, segment.length) == Extent::Hole(segment.length),
        });
        self.segments = segments;
        zero
    }

    pub(super) fn copy_read(&mut self, number: usize, outcome: io::Result<usize>) -> Result<(), EngineError> {
        outcome.map_err(|cause| {
            let window = self.copies.iter().find(|reading| reading.number == number).map(|reading| &reading.window);
            let volume = window.map_or(0, |window| usize::from(window.volume));
            failed("reading the volume for its first copy", &self.volumes[volume], cause)
        })?;
        self.copy_part_done(number);
        Ok(())
    }

    /// True when that was the window's last part.
    fn copy_part_done(&mut self, number: usize) -> bool {
        let Some(at) = self.copies.iter().position(|reading| reading.number == number) else { return false };
        self.copies[at].outstanding -= 1;
        if self.copies[at].outstanding > 0 {
            return false;
        }
        let Reading { window, pieces, .. } = self.copies.swap_remove(at);
        let mut entries = Vec::with_capacity(pieces.len());
        let mut offset = window.offset;
        for (place, bytes) in pieces {
            // SAFETY: this piece's reads are complete, and nobody else uses its memory.
            let contents = unsafe { self.memory.bytes(place, bytes as usize) };
            if contents.iter().all(|byte| *byte == 0) {
                self.pool.release(place, padded(bytes as usize) as u64);
                entries.push(self.zero_record(&window, offset, bytes));
            } else {
                let record = Record {
                    volume: window.volume,
                    kind: Kind::Write,
                    flags: RECORD_COPY,
                    offset,
                    length: bytes as u32,
                    checksum: crc32c(contents),
                };
                entries.push(Entry { record, place, ticket: Ticket::NONE });
            }
            offset += bytes;
        }
        self.core.handle_copied(number, entries, &mut self.effects);
        true
    }

    /// The image may hold anything where the volume has a hole: zeros are said, not skipped in silence.
    fn zero_record(&self, window: &Window, offset: u64, bytes: u64) -> Entry {
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
}
