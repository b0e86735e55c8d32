//! What a source asks of the contents: each question's range is put together in a place of its own, and hashed.
//!
//! What is in memory is copied at once; the image's part is read beside it. When all is there it is hashed, one range a
//! turn: frames and pings that come meanwhile don't wait for all of them.

use super::super::sums;
use super::receive::sums_place;
use super::{Engine, Token};
use crate::core::Place;
use crate::core::destination::Ask;
use crate::core::index::Found;
use crate::format::wire::Sum;
use std::io;

/// A question whose range is being read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Summing {
    ask: Ask,
    /// Reads under way.
    reads: u32,
    /// Whether one of them failed.
    failed: bool,
}

impl Engine {
    pub(super) fn pump_sums(&mut self) {
        let half_bytes = self.core.superblock().half_bytes;
        let mut segments = std::mem::take(&mut self.segments);
        while let Some(number) = self.sums.iter().position(Option::is_none)
            && let Some(ask) = self.core.next_ask(&mut segments)
        {
            let mut reads = 0;
            let disk = &self.images[usize::from(ask.volume)].disk;
            for segment in &segments {
                let place = Place(sums_place(half_bytes, number).0 + segment.offset - ask.offset);
                match segment.found {
                    // SAFETY: the place belongs to this question alone, and in a half nothing is written over what is stored.
                    Found::Memory(from) => unsafe { self.memory.copy(from, place, segment.length as usize) },
                    // SAFETY: as above.
                    Found::Zeros => unsafe { self.memory.bytes_mut(place, segment.length as usize) }.fill(0),
                    Found::Device => {
                        reads += 1;
                        self.ring.read(
                            Token::SumRead(number),
                            disk.target(),
                            segment.offset,
                            &[(place, segment.length)],
                        );
                    }
                }
            }
            self.sums[number] = Some(Summing { ask, reads, failed: false });
        }
        self.segments = segments;
        let mut ready =
            (0..self.sums.len()).filter(|number| self.sums[*number].is_some_and(|summing| summing.reads == 0));
        let (first, more) = (ready.next(), ready.next().is_some());
        if let Some(number) = first {
            self.end_summing(number);
        }
        // A full counter wakes as well.
        if more && self.wake.write(1).is_err() {
            tracing::debug!("the engine's wake-up is pending already");
        }
    }

    /// Contents that can't be read aren't known: the source sends them again.
    pub(super) fn sum_read(&mut self, number: usize, outcome: io::Result<usize>) {
        let Some(summing) = &mut self.sums[number] else { return };
        summing.reads -= 1;
        if let Err(error) = outcome {
            let image = &self.images[usize::from(summing.ask.volume)];
            tracing::error!("image {} can't be read: {error}", image.disk.path().display());
            summing.failed = true;
        }
    }

    fn end_summing(&mut self, number: usize) {
        let Some(Summing { ask, failed, .. }) = self.sums[number].take() else { return };
        if !self.core.handle_summed() {
            return;
        }
        let place = sums_place(self.core.superblock().half_bytes, number);
        // SAFETY: the place belongs to this question alone, and its reads are complete.
        let bytes = unsafe { self.memory.bytes(place, ask.length as usize) };
        let unknown = Sum::default();
        let sums = (0..ask.count())
            .map(|block| if failed || !ask.knows(block) { unknown } else { sums::of(&bytes[ask.block(block)]) });
        let sums: Vec<Sum> = sums.collect();
        self.report_sums(ask.id, &sums);
    }
}
