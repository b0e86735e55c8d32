//! What a slot of the shared log holds, at a start: frames that are to be laid over the journal files.

use super::{Found, Halves, chain_from};
use crate::format::block::Block;
use crate::format::checksum;
use crate::format::ids::Mark;
use crate::format::nvram::SlotHead;
use crate::limits::BLOCK_BYTES;
use std::ops::Range;

/// A slot's frames, seen at the positions that they have in their half.
#[derive(Debug, Clone, Copy)]
pub struct SlotBytes<'a> {
    /// Where the first frame belongs in its half, in bytes.
    pub start: u64,
    /// Bytes of a half.
    pub half_bytes: u64,
    /// All that is behind the slot's first block.
    pub bytes: &'a [u8],
}

impl Halves for SlotBytes<'_> {
    fn half_bytes(&self) -> u64 {
        self.half_bytes.min(self.start + self.bytes.len() as u64)
    }

    fn block(&self, _: usize, position: u64) -> Option<&Block> {
        self.bytes.get(usize::try_from(position.checked_sub(self.start)?).ok()?..)?.first_chunk()
    }

    fn checksum(&self, _: usize, range: Range<u64>) -> u32 {
        checksum::crc32c(&self.bytes[(range.start - self.start) as usize..(range.end - self.start) as usize])
    }
}

/// The frames of a slot that count, given up to where its source's fills are applied. They lie one behind the other.
pub fn frames(slot: &impl Halves, head: &SlotHead, clean: Mark) -> Vec<Found> {
    let (mut end, mut found) = (head.before, Vec::new());
    if head.fill > clean.fill {
        chain_from(slot, head.source, head.fill, head.start, &mut end, &mut found);
    }
    found
}

/// What is made void of a slot that its source is done with: who it belongs to, and the first frame's header. What is behind
/// follows no frame that can come there.
pub const FREED: Range<u64> = 0..2 * BLOCK_BYTES as u64;

/// What is made void of a slot that a crash left, part by part, each durable before the next. All of it: behind a frame that
/// never arrived there may be later ones, which would follow that frame, should it be sent again.
pub fn void(slot_bytes: u64) -> [Range<u64>; 2] {
    [FREED.end..slot_bytes, FREED]
}
