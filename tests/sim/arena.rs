//! A source's memory: what is stored in it, and which blocks of it are in use.

use crate::content::{BLOCK, SECTOR, Word};
use nbd_mirror::core::Place;
use nbd_mirror::limits::BLOCK_BYTES;

/// Places are never given twice, so whoever uses what was released is found out.
#[derive(Debug, Default)]
pub struct Arena {
    words: Vec<Word>,
    in_use: Vec<bool>,
    count: usize,
}

impl Arena {
    pub fn store(&mut self, words: &[Word]) -> Place {
        let first = self.in_use.len();
        self.words.extend_from_slice(words);
        self.words.resize(self.words.len().next_multiple_of(BLOCK), 0);
        self.in_use.resize(self.words.len() / BLOCK, true);
        self.count += self.in_use.len() - first;
        Place((first * BLOCK_BYTES) as u64)
    }

    /// Bytes that may reach over neighbouring allocations. All of them must be in use.
    pub fn read(&self, place: Place, bytes: u64, out: &mut Vec<Word>) {
        let (start, end) = (place.0 as usize / SECTOR, (place.0 + bytes) as usize / SECTOR);
        let whole = self.in_use[start / BLOCK..end.div_ceil(BLOCK)].iter().all(|used| *used);
        assert!(whole, "memory was released while in use");
        out.extend_from_slice(&self.words[start..end]);
    }

    pub fn release(&mut self, place: Place, bytes: u64) {
        let first = place.0 as usize / BLOCK_BYTES;
        let blocks = bytes as usize / BLOCK_BYTES;
        for used in &mut self.in_use[first..first + blocks] {
            assert!(std::mem::take(used), "memory is released twice");
        }
        self.count -= blocks;
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.count * BLOCK_BYTES
    }
}
