//! What the staging log has touched: where it may differ from the image, in grains of 64 KiB.
//!
//! A bound from above, kept in memory only: a start reads the log and so finds it again.

use crate::format::frame::{Kind, Record};
use crate::limits::GRAIN_BYTES;
use std::ops::Range;

const GRAIN: u64 = GRAIN_BYTES as u64;

/// A bit for each grain of each volume. It grows as far as it is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    volumes: Vec<Vec<u64>>,
}

impl Touched {
    /// Notes a record.
    pub fn add(&mut self, record: &Record) {
        if record.kind != Kind::Flush {
            self.add_range(record.volume, record.offset..record.end());
        }
    }

    /// Notes a range.
    pub fn add_range(&mut self, volume: u16, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let volume = usize::from(volume);
        if self.volumes.len() <= volume {
            self.volumes.resize(volume + 1, Vec::new());
        }
        let words = &mut self.volumes[volume];
        let (first, last) = (range.start / GRAIN, (range.end - 1) / GRAIN);
        if words.len() as u64 <= last / 64 {
            words.resize((last / 64 + 1) as usize, 0);
        }
        for (number, word) in words.iter_mut().enumerate().take((last / 64 + 1) as usize).skip((first / 64) as usize) {
            let base = number as u64 * 64;
            let (from, to) = (first.max(base) - base, last.min(base + 63) - base);
            *word |= (u64::MAX << from) & (u64::MAX >> (63 - to));
        }
    }

    /// Whether anything of the range was touched.
    pub fn hits(&self, volume: u16, range: Range<u64>) -> bool {
        let Some(words) = self.volumes.get(usize::from(volume)).filter(|_| !range.is_empty()) else { return false };
        let bit = |grain: u64| words.get((grain / 64) as usize).is_some_and(|word| word & (1 << (grain % 64)) != 0);
        (range.start / GRAIN..=(range.end - 1) / GRAIN).any(bit)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.volumes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grains_that_a_range_meets_are_set_and_no_others() {
        for (first, last) in [(0, 0), (0, 63), (63, 64), (5, 200), (64, 127), (130, 130)] {
            let mut touched = Touched::default();
            touched.add_range(1, first * GRAIN + 17..last * GRAIN + 1);
            for grain in 0..300 {
                let hit = touched.hits(1, grain * GRAIN..grain * GRAIN + 1);
                assert_eq!(hit, (first..=last).contains(&grain), "{grain} of {first}..={last}");
                assert!(!touched.hits(0, grain * GRAIN..grain * GRAIN + 1));
            }
            assert!(touched.hits(1, 0..300 * GRAIN) && !touched.hits(1, 0..0));
            touched.clear();
            assert_eq!(touched, Touched::default());
        }
    }
}
