//! What a source asks of the contents: checksums of a range, so that what is equal needn't travel.
//!
//! An answer is of the state behind all frames that came before the question. So it waits until they are stored; then
//! the range is looked up in both halves, newest first, and the rest is the image's. What comes later may change the range
//! while it is read: the source, which sends it, knows that.
//!
//! What only the staging log has isn't looked up there: such a block's sum says that it isn't known, and it travels.

use super::super::index::{Found, Index, Segment, resolve};
use super::Destination;
use crate::format::ids::Seq;
use crate::limits::{MAX_COPY_WINDOWS, MAX_SUMS, SUM_GRAIN_BYTES};
use std::collections::VecDeque;
use std::ops::Range;

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Its name.
    pub id: u64,
    /// The volume.
    pub volume: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// A bit for each block whose contents only the staging log has.
    unknown: [u64; MAX_SUMS / 64],
}

impl Ask {
    /// How many checksums are asked for.
    pub fn count(&self) -> usize {
        u64::from(self.length).div_ceil(SUM_GRAIN_BYTES) as usize
    }

    /// The bytes of one checksum's block, counted from the range's start.
    pub fn block(&self, number: usize) -> Range<usize> {
        let start = number * SUM_GRAIN_BYTES as usize;
        start..(start + SUM_GRAIN_BYTES as usize).min(self.length as usize)
    }

    /// Whether what was looked up is that block's newest contents.
    pub fn knows(&self, number: usize) -> bool {
        self.unknown[number / 64] & (1 << (number % 64)) == 0
    }
}

/// Questions that aren't answered.
#[derive(Debug, Default)]
pub(super) struct Asks {
    /// Each with the record up to which all must be stored first.
    waiting: VecDeque<(Seq, Ask)>,
    /// Being read, also for a connection that is gone: the next one is welcomed when they are over.
    pub(super) under_way: u32,
}

impl Asks {
    /// Nobody is there to be answered.
    pub(super) fn forget(&mut self) {
        self.waiting.clear();
    }
}

impl Destination {
    pub(super) fn ask(&mut self, id: u64, volume: u16, offset: u64, length: u32) -> Result<(), String> {
        let size = self.superblock.volumes.get(usize::from(volume)).map(|volume| volume.size_bytes);
        if size.is_none_or(|size| offset + u64::from(length) > size) {
            return Err(format!("a question beyond its volume (volume {volume}, {length} bytes from byte {offset})"));
        }
        if self.asks.waiting.len() + self.asks.under_way as usize >= MAX_COPY_WINDOWS {
            return Err(format!("more than {MAX_COPY_WINDOWS} questions at a time"));
        }
        self.asks
            .waiting
            .push_back((self.received.seq, Ask { id, volume, offset, length, unknown: [0; MAX_SUMS / 64] }));
        Ok(())
    }

    /// The next question that can be answered now. `segments` becomes where the range's bytes are: what is in memory must
    /// be copied at once, for it may be gone when the image's part is read. [`Destination::handle_summed`] ends it.
    pub fn next_ask(&mut self, segments: &mut Vec<Segment>) -> Option<Ask> {
        segments.clear();
        let (_, mut ask) = *self.asks.waiting.front().filter(|(after, _)| *after <= self.stored.seq)?;
        self.asks.waiting.pop_front();
        self.asks.under_way += 1;
        let [a, b] = &self.halves;
        let newest_first: [&Index; 2] = if a.fill > b.fill { [&a.index, &b.index] } else { [&b.index, &a.index] };
        resolve(&newest_first, ask.volume, ask.offset..ask.offset + u64::from(ask.length), segments);
        for segment in segments.iter().filter(|segment| segment.found == Found::Device) {
            let from = segment.offset - ask.offset;
            for number in (from / SUM_GRAIN_BYTES) as usize..(from + segment.length).div_ceil(SUM_GRAIN_BYTES) as usize
            {
                let block = ask.block(number);
                let range = ask.offset + block.start as u64..ask.offset + block.end as u64;
                if self.log.touched.touched(ask.volume, range) {
                    ask.unknown[number / 64] |= 1 << (number % 64);
                }
            }
        }
        Some(ask)
    }

    /// A question's checksums are computed. Whether anybody is there to be told.
    pub fn handle_summed(&mut self) -> bool {
        self.asks.under_way -= 1;
        self.connected && self.resumed
    }
}
