//! Randomness that a seed decides wholly, so that a run that failed can be had again.

use std::time::Duration;

/// A generator (splitmix64).
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    /// Numbers that follow from these parts alone.
    pub fn new(parts: &[u64]) -> Chance {
        let mut chance = Chance(0);
        for part in parts {
            chance.0 = chance.next() ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        chance
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A time of less than `limit_ms` milliseconds, short ones as likely as long ones by their order of magnitude.
    pub fn moment(&mut self, limit_ms: u64) -> Duration {
        let limit_us = (limit_ms * 1000) >> self.below(6);
        Duration::from_micros(self.below(limit_us.max(1)))
    }
}
