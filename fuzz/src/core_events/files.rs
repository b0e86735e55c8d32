//! A destination's halves: in memory as they were received, and in their files as they were written.

use nbd_mirror::core::Place;
use nbd_mirror::core::destination::StoreOp;
use nbd_mirror::core::recovery::{self, Rescanned};
use nbd_mirror::format::block::Block;
use nbd_mirror::format::frame::{Header, Record};
use nbd_mirror::format::ids::{Id, Mark};
use nbd_mirror::limits::BLOCK_BYTES;
use std::ops::Range;

/// Both halves, twice.
pub struct Files {
    memory: [Vec<u8>; 2],
    files: [Vec<u8>; 2],
}

impl Files {
    /// Halves of that size, in bytes.
    pub fn new(half_bytes: u64) -> Files {
        let half = || vec![0; half_bytes as usize];
        Files { memory: [half(), half()], files: [half(), half()] }
    }

    /// A frame is received to its place; all payloads of these sources are zeros.
    pub fn receive(&mut self, header: &Header, block: &Block) {
        let at = header.position as usize;
        let frame = &mut self.memory[header.fill.half()][at..at + header.frame_bytes() as usize];
        frame[..BLOCK_BYTES].copy_from_slice(block);
        frame[BLOCK_BYTES..].fill(0);
    }

    /// What a half holds in memory.
    pub fn memory(&self, half: usize, range: Range<u64>) -> &[u8] {
        &self.memory[half][range.start as usize..range.end as usize]
    }

    /// A write to a file; the memory is as it was when the write was asked for.
    pub fn store(&mut self, op: StoreOp) {
        let range = op.start as usize..op.end as usize;
        self.files[op.half][range.clone()].copy_from_slice(&self.memory[op.half][range]);
    }

    /// A block of zeros is written to a file.
    pub fn erase(&mut self, half: usize, position: u64) {
        self.files[half][position as usize..][..BLOCK_BYTES].fill(0);
    }

    /// What a restart would read.
    pub fn files(&self) -> [&[u8]; 2] {
        [&self.files[0], &self.files[1]]
    }

    /// The frames of a fill in memory, from the boundary before it up to a mark.
    pub fn rescan(&self, source: Id, before: Mark, until: Mark) -> Vec<Rescanned> {
        let halves = [&self.memory[0][..], &self.memory[1]];
        recovery::rescan(&halves, source, before, until, half_at(until.fill.half()))
    }
}

/// Where a half begins in memory.
fn half_at(half: usize) -> Place {
    Place((half as u64) << 40)
}

/// A frame's records with their payloads' places.
pub fn records(header: &Header, block: &Block) -> Vec<(Record, Place)> {
    let half = half_at(header.fill.half());
    recovery::records(header, block, Place(half.0 + header.position + BLOCK_BYTES as u64))
}
