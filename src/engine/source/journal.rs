//! Frames and superblocks go to the journal.

use super::{Engine, Token, journal_offset, map_offset};
use crate::core::Durability;
use crate::core::source::FrameId;
use crate::format::block::Block;
use crate::limits::BLOCK_BYTES;

impl Engine {
    pub(super) fn write_frame(&mut self, id: FrameId) {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        if let Some(frame) = self.core.frame_pieces(id, &mut pieces) {
            let offset = journal_offset(self.half_bytes, id.fill.half(), frame.position);
            let stable = self.durability == Durability::Always;
            self.ring.write(Token::Frame(id), self.journal.target(), offset, &pieces, stable);
        }
        self.pieces = pieces;
    }

    /// Blocks of the dirty bitmap, of which one write is under way at most.
    pub(super) fn write_map(&mut self, bytes: &[u8], offset: u64) {
        let place = self.map_memory;
        // SAFETY: this part of the mapping is only used for the dirty bitmap, and no write of it is under way.
        unsafe { self.memory.bytes_mut(place, bytes.len()) }.copy_from_slice(bytes);
        let at = map_offset(self.half_bytes) + offset;
        self.ring.write(Token::Map, self.journal.target(), at, &[(place, bytes.len() as u64)], true);
    }

    /// The core has one superblock under way at most, so one place in memory is enough.
    pub(super) fn write_superblock(&mut self, block: &Block, offset: u64) {
        let place = self.superblock_memory;
        // SAFETY: this block of the mapping is only used for superblocks, and none is under way.
        unsafe { self.memory.bytes_mut(place, BLOCK_BYTES) }.copy_from_slice(block);
        self.ring.write(Token::Superblock, self.journal.target(), offset, &[(place, BLOCK_BYTES as u64)], true);
    }
}
