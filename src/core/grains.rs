//! Sets of grains: which parts of the volumes, in units of one size, have some property.

use crate::limits::COPY_WINDOW_BYTES;
use std::ops::Range;

/// Some grains of some volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grains {
    grain: u64,
    sizes: Vec<u64>,
    /// A bit for each grain, volume by volume; bits beyond a volume's end are never set.
    words: Vec<Vec<u64>>,
    count: u64,
}

impl Grains {
    /// None, of volumes of these sizes.
    pub fn none(sizes: &[u64], grain_bytes: u32) -> Grains {
        let grain = u64::from(grain_bytes);
        let words = sizes.iter().map(|size| vec![0; size.div_ceil(grain).div_ceil(64) as usize]).collect();
        Grains { grain, sizes: sizes.to_vec(), words, count: 0 }
    }

    /// All of them.
    pub fn all(sizes: &[u64], grain_bytes: u32) -> Grains {
        let mut grains = Grains::none(sizes, grain_bytes);
        for (volume, size) in sizes.iter().enumerate() {
            grains.insert(volume as u16, 0..*size);
        }
        grains
    }

    /// Bytes of each volume.
    pub fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// Bytes of a grain.
    pub fn grain_bytes(&self) -> u64 {
        self.grain
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The bytes that they stand for: the last grain of a volume may be shorter than the others.
    pub fn bytes(&self) -> u64 {
        self.count * self.grain - (0..self.sizes.len()).map(|volume| self.missing(volume)).sum::<u64>()
    }

    /// The bytes that those of one volume stand for.
    pub fn bytes_of(&self, volume: usize) -> u64 {
        let count: u64 = self.words[volume].iter().map(|word| u64::from(word.count_ones())).sum();
        count * self.grain - self.missing(volume)
    }

    /// How much shorter than the others a volume's last grain is, where it is one of them.
    fn missing(&self, volume: usize) -> u64 {
        let size = self.sizes[volume];
        let Some(last) = size.checked_sub(1).map(|last| last / self.grain) else { return 0 };
        let set = self.words[volume].get((last / 64) as usize).is_some_and(|word| word & (1 << (last % 64)) != 0);
        if set { (last + 1) * self.grain - size } else { 0 }
    }

    /// The bits of a volume.
    pub fn words(&self, volume: usize) -> &[u64] {
        &self.words[volume]
    }

    /// Adds each grain that a range touches; `true` where that changed anything.
    pub fn insert(&mut self, volume: u16, range: Range<u64>) -> bool {
        let Some(size) = self.sizes.get(usize::from(volume)) else { return false };
        let (start, end) = (range.start / self.grain, range.end.min(*size).div_ceil(self.grain));
        self.change(volume, start..end, |word, mask| *word |= mask)
    }

    /// Removes each grain that lies wholly within a range, as far as the volume goes; `true` where that changed anything.
    pub fn remove(&mut self, volume: u16, range: Range<u64>) -> bool {
        let Some(size) = self.sizes.get(usize::from(volume)) else { return false };
        let start = range.start.div_ceil(self.grain);
        let end = if range.end >= *size { size.div_ceil(self.grain) } else { range.end / self.grain };
        self.change(volume, start..end, |word, mask| *word &= !mask)
    }

    fn change(&mut self, volume: u16, grains: Range<u64>, change: impl Fn(&mut u64, u64)) -> bool {
        let words = &mut self.words[usize::from(volume)];
        let mut changed = false;
        let mut at = grains.start;
        while at < grains.end {
            let (index, bit) = ((at / 64) as usize, at % 64);
            let bits = (64 - bit).min(grains.end - at);
            let mask = if bits == 64 { u64::MAX } else { ((1 << bits) - 1) << bit };
            let before = words[index];
            change(&mut words[index], mask);
            changed |= words[index] != before;
            self.count = self.count - u64::from(before.count_ones()) + u64::from(words[index].count_ones());
            at += bits;
        }
        changed
    }

    /// Whether a range touches one of them.
    pub fn touched(&self, volume: u16, range: Range<u64>) -> bool {
        range.start < range.end
            && self.next(volume, range.start / self.grain * self.grain).is_some_and(|found| found.start < range.end)
    }

    /// The first run of them at or behind a byte, at most a window long, and not beyond a boundary between windows.
    pub fn next(&self, volume: u16, from: u64) -> Option<Range<u64>> {
        let words = self.words.get(usize::from(volume))?;
        let mut at = from.div_ceil(self.grain);
        let mut index = (at / 64) as usize;
        let mut word = words.get(index)? & (u64::MAX << (at % 64));
        while word == 0 {
            index += 1;
            word = *words.get(index)?;
        }
        at = index as u64 * 64 + u64::from(word.trailing_zeros());
        let start = at * self.grain;
        let limit = (start / COPY_WINDOW_BYTES + 1) * COPY_WINDOW_BYTES;
        let set = |grain: u64| words.get((grain / 64) as usize).is_some_and(|word| word & (1 << (grain % 64)) != 0);
        let mut end = at + 1;
        while end * self.grain < limit && set(end) {
            end += 1;
        }
        Some(start..(end * self.grain).min(self.sizes[usize::from(volume)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GRAIN: u32 = 64 << 10;

    proptest! {
        /// Like a plain set of numbers.
        #[test]
        fn equals_a_plain_set(ops in proptest::collection::vec((any::<bool>(), 0u64..9_000_000, 1u64..3_000_000), 1..40)) {
            let size = 9_100_000;
            let mut grains = Grains::none(&[4096, size], GRAIN);
            let mut model = std::collections::BTreeSet::new();
            let grain = u64::from(GRAIN);
            for (insert, start, length) in ops {
                let end = (start + length).min(size);
                for n in 0..size.div_ceil(grain) {
                    let (from, to) = (n * grain, ((n + 1) * grain).min(size));
                    if insert && start < to && from < end {
                        model.insert(n);
                    } else if !insert && start <= from && to <= end {
                        model.remove(&n);
                    }
                }
                let _ = if insert { grains.insert(1, start..end) } else { grains.remove(1, start..end) };
            }
            let bytes: u64 = model.iter().map(|n| ((n + 1) * grain).min(size) - n * grain).sum();
            prop_assert_eq!((grains.bytes(), grains.bytes_of(1), grains.bytes_of(0)), (bytes, bytes, 0));
            let (mut found, mut at) = (std::collections::BTreeSet::new(), 0);
            while let Some(run) = grains.next(1, at) {
                prop_assert!(run.end - run.start <= COPY_WINDOW_BYTES && run.end <= size);
                prop_assert!(grains.touched(1, run.clone()));
                found.extend(run.start / grain..run.end.div_ceil(grain));
                at = run.end;
            }
            prop_assert_eq!(found, model);
            prop_assert_eq!(grains.next(0, 0), None);
        }
    }

    #[test]
    fn all_reaches_to_the_end_of_each_volume() {
        let grains = Grains::all(&[100 << 10, 1 << 20], GRAIN);
        assert_eq!(grains.next(0, 0), Some(0..100 << 10));
        assert_eq!(grains.next(1, 0), Some(0..1 << 20));
        assert_eq!((grains.next(0, 100 << 10), grains.next(1, 1 << 20), grains.next(2, 0)), (None, None, None));
    }
}
