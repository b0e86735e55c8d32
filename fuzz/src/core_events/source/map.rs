//! The dirty bitmap as it is stored.

use nbd_mirror::core::dirty::{Dirty, MAX_WRITE_BYTES, stored_bytes};
use nbd_mirror::format::block::Block;
use nbd_mirror::format::superblock::Superblock;
use nbd_mirror::limits::BLOCK_BYTES;

/// The blocks on the disk.
pub struct Map {
    blocks: Vec<Block>,
}

fn sizes(superblock: &Superblock) -> Vec<u64> {
    superblock.volumes.iter().map(|volume| volume.size_bytes).collect()
}

impl Map {
    /// A bitmap in which the first so many grains of the first volume are dirty.
    pub fn new(superblock: &Superblock, grains: u8) -> Map {
        let (sizes, grain) = (sizes(superblock), superblock.grain_bytes);
        let blocks = stored_bytes(&sizes, grain) as usize / BLOCK_BYTES;
        let mut map = Map { blocks: vec![[0; BLOCK_BYTES]; blocks] };
        let mut dirty = Dirty::clean(superblock.source, &sizes, grain);
        dirty.fill();
        dirty.clear();
        if grains == u8::MAX {
            dirty.fill();
        } else if grains > 0 {
            dirty.mark(0, 0..(u64::from(grains) * u64::from(grain)).min(sizes[0]));
        }
        let mut bytes = Vec::new();
        while let Some(at) = dirty.next_write(&mut bytes) {
            map.write(&bytes, at);
        }
        map
    }

    /// A write is complete.
    pub fn write(&mut self, bytes: &[u8], at: u64) {
        assert!(!bytes.is_empty() && bytes.len() <= MAX_WRITE_BYTES && at.is_multiple_of(BLOCK_BYTES as u64));
        let first = at as usize / BLOCK_BYTES;
        for (number, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            self.blocks[first + number].copy_from_slice(block);
        }
    }

    /// What a start would find.
    pub fn load(&self, superblock: &Superblock) -> Dirty {
        let block = |number: u32| &self.blocks[number as usize];
        let (dirty, unreadable) = Dirty::load(superblock.source, &sizes(superblock), superblock.grain_bytes, block);
        assert_eq!(unreadable, 0, "a sector was written that can't be read");
        dirty
    }
}
