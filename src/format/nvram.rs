//! The destination's shared log on non-volatile memory: what the log says of itself, and what each of its slots does.
//!
//! The head is the log's first block. Slots begin at [`SLOTS_OFFSET`], each with a block that says whose frames follow it,
//! then the very frames that the source sent. A slot whose first block is zero is free.

use super::block::{self, Block, BlockError};
use super::ids::{Fill, Id, Mark, RawMark};
use crate::limits::BLOCK_BYTES;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Magic of the log's first block.
pub const LOG_MAGIC: [u8; 8] = *b"NBDMNVLG";
/// Magic of a slot's first block.
pub const SLOT_MAGIC: [u8; 8] = *b"NBDMNVSL";
/// Where the first slot begins, in bytes.
pub const SLOTS_OFFSET: u64 = 64 << 10;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLog {
    preamble: [u8; 16],
    id: Id,
    slot_bytes: U64,
    slots: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSlot {
    preamble: [u8; 16],
    log: Id,
    source: Id,
    fill: U64,
    start: U64,
    before: RawMark,
}

const LOG_USED: usize = size_of::<RawLog>();
const SLOT_USED: usize = size_of::<RawSlot>();

/// What a log says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHead {
    /// The log's identity: its destination remembers it.
    pub id: Id,
    /// Bytes of a slot, its first block included.
    pub slot_bytes: u64,
    /// How many slots there are.
    pub slots: u32,
}

impl LogHead {
    /// Where a slot begins, in bytes.
    pub fn slot_offset(&self, slot: u32) -> u64 {
        SLOTS_OFFSET + u64::from(slot) * self.slot_bytes
    }

    /// Bytes of the whole log.
    pub fn log_bytes(&self) -> u64 {
        self.slot_offset(self.slots)
    }

    /// The log's first block.
    pub fn encode(&self) -> Box<Block> {
        let raw =
            RawLog { preamble: [0; 16], id: self.id, slot_bytes: self.slot_bytes.into(), slots: self.slots.into() };
        let mut block = Box::new([0; BLOCK_BYTES]);
        block[..LOG_USED].copy_from_slice(raw.as_bytes());
        block::seal(&mut block, LOG_MAGIC, 0);
        block
    }

    /// Checks and decodes a log's first block.
    pub fn decode(block: &Block) -> Result<LogHead, BlockError> {
        block::open(block, LOG_MAGIC)?;
        let raw = RawLog::ref_from_bytes(&block[..LOG_USED]).map_err(|_| BlockError::Field("length"))?;
        let (slot_bytes, slots) = (raw.slot_bytes.get(), raw.slots.get());
        let blocks = slot_bytes.is_multiple_of(BLOCK_BYTES as u64) && slot_bytes >= 2 * BLOCK_BYTES as u64;
        if !blocks || slots == 0 || slot_bytes.checked_mul(slots.into()).is_none_or(|bytes| bytes >= 1 << 62) {
            return Err(BlockError::Field("slots"));
        }
        Ok(LogHead { id: raw.id, slot_bytes, slots })
    }
}

/// Whose frames a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotHead {
    /// The log that it is in.
    pub log: Id,
    /// The source whose frames they are.
    pub source: Id,
    /// Their fill.
    pub fill: Fill,
    /// Where the first one belongs in its half, in bytes.
    pub start: u64,
    /// The boundary before it.
    pub before: Mark,
}

impl SlotHead {
    /// The slot's first block.
    pub fn encode(&self) -> Box<Block> {
        let raw = RawSlot {
            preamble: [0; 16],
            log: self.log,
            source: self.source,
            fill: self.fill.0.into(),
            start: self.start.into(),
            before: self.before.into(),
        };
        let mut block = Box::new([0; BLOCK_BYTES]);
        block[..SLOT_USED].copy_from_slice(raw.as_bytes());
        block::seal(&mut block, SLOT_MAGIC, 0);
        block
    }

    /// Checks and decodes a slot's first block.
    pub fn decode(block: &Block) -> Result<SlotHead, BlockError> {
        block::open(block, SLOT_MAGIC)?;
        let raw = RawSlot::ref_from_bytes(&block[..SLOT_USED]).map_err(|_| BlockError::Field("length"))?;
        let before: Mark = raw.before.into();
        block::countable([raw.fill.get(), raw.start.get()].into_iter().chain(before.numbers()))?;
        if !raw.start.get().is_multiple_of(BLOCK_BYTES as u64) {
            return Err(BlockError::Field("start"));
        }
        Ok(SlotHead { log: raw.log, source: raw.source, fill: Fill(raw.fill.get()), start: raw.start.get(), before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{Digest, Seq};

    const LOG: LogHead = LogHead { id: Id([3; 16]), slot_bytes: 4 << 20, slots: 8 };
    const SLOT: SlotHead = SlotHead {
        log: Id([3; 16]),
        source: Id([7; 16]),
        fill: Fill(5),
        start: 8192,
        before: Mark { fill: Fill(5), seq: Seq(6), digest: Digest(7) },
    };

    #[test]
    fn round_trips_and_each_flipped_bit_is_noticed() {
        let (log, slot) = (LOG.encode(), SLOT.encode());
        assert_eq!((LogHead::decode(&log), SlotHead::decode(&slot)), (Ok(LOG), Ok(SLOT)));
        for bit in 0..BLOCK_BYTES * 8 {
            let flipped = |block: &Block| {
                let mut block = *block;
                block[bit / 8] ^= 1 << (bit % 8);
                block
            };
            assert!(
                LogHead::decode(&flipped(&log)).is_err() && SlotHead::decode(&flipped(&slot)).is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn impossible_fields_are_refused() {
        for log in
            [LogHead { slots: 0, ..LOG }, LogHead { slot_bytes: 4097, ..LOG }, LogHead { slot_bytes: 1 << 60, ..LOG }]
        {
            assert_eq!(LogHead::decode(&log.encode()), Err(BlockError::Field("slots")));
        }
        assert_eq!(SlotHead::decode(&SlotHead { start: 5, ..SLOT }.encode()), Err(BlockError::Field("start")));
        assert_eq!(
            SlotHead::decode(&SlotHead { fill: Fill(u64::MAX), ..SLOT }.encode()),
            Err(BlockError::Field("number"))
        );
        assert_eq!((LOG.slot_offset(1), LOG.log_bytes()), ((4 << 20) + SLOTS_OFFSET, (32 << 20) + SLOTS_OFFSET));
    }
}
