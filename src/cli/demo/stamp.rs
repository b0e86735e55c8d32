//! Stamped blocks: each says where it belongs and in which version, and proves it by a checksum.

use crc_fast::{CrcAlgorithm, checksum};

/// Size of a stamped block, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// First bytes of every stamped block.
const MAGIC: u64 = u64::from_le_bytes(*b"nbdmdemo");
/// Where the checksum stands: the last word, over all bytes before it.
const CHECKSUM_AT: usize = BLOCK_BYTES - WORD_BYTES;
const WORD_BYTES: usize = 8;

/// What a stamped block says of itself. All of it varies the block's filling, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Number of this run of the demo: blocks of an earlier run don't count.
    pub run: u64,
    /// Index of the volume.
    pub volume: u64,
    /// Number of the block in its volume, in [`BLOCK_BYTES`].
    pub block: u64,
    /// 1 for the first write of this block, 2 for the next, and so on.
    pub version: u64,
}

/// What a block of an image turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// All zeros: never written.
    Empty,
    /// A whole block whose checksum is right.
    Stamped(Stamp),
    /// Anything else: torn, damaged or foreign.
    Damaged,
}

impl Stamp {
    /// Writes the block that bears this stamp.
    pub fn fill(&self, block: &mut [u8; BLOCK_BYTES]) {
        let Self { run, volume, block: number, version } = *self;
        let stamp = [MAGIC, run, volume, number, version];
        let mut random = Random::new(run ^ volume << 56 ^ number << 24 ^ version);
        let (words, _) = block.as_chunks_mut::<WORD_BYTES>();
        for (i, word) in words.iter_mut().enumerate() {
            let value = stamp.get(i).copied().unwrap_or_else(|| random.next());
            *word = value.to_le_bytes();
        }
        let sum = checksum(CrcAlgorithm::Crc64Nvme, &block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Reads the stamp of a block and checks the whole block against it.
pub fn inspect(block: &[u8; BLOCK_BYTES]) -> Found {
    let (words, _) = block.as_chunks::<WORD_BYTES>();
    let word = |i: usize| u64::from_le_bytes(words[i]);
    if word(0) != MAGIC {
        let empty = block.iter().all(|&byte| byte == 0);
        return if empty { Found::Empty } else { Found::Damaged };
    }
    let sum = checksum(CrcAlgorithm::Crc64Nvme, &block[..CHECKSUM_AT]);
    if word(CHECKSUM_AT / WORD_BYTES) != sum {
        return Found::Damaged;
    }
    Found::Stamped(Stamp { run: word(1), volume: word(2), block: word(3), version: word(4) })
}

/// A small generator of numbers that look random (SplitMix64): good enough for positions and filling.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts the sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number of the sequence.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_says_what_it_is_and_any_changed_byte_is_noticed() {
        let stamp = Stamp { run: 7, volume: 1, block: 4711, version: 3 };
        let mut block = [0; BLOCK_BYTES];
        assert_eq!(inspect(&block), Found::Empty);
        stamp.fill(&mut block);
        assert_eq!(inspect(&block), Found::Stamped(stamp));
        for at in 0..BLOCK_BYTES {
            block[at] ^= 0x10;
            assert_eq!(inspect(&block), Found::Damaged, "byte {at}");
            block[at] ^= 0x10;
        }
    }
}
