//! What is on disks, on the wire and in memory: a word for each sector instead of its 512 bytes.
//!
//! The core never sees payload, so a sector of a client's data is just a number that no other sector has, and 0 is a
//! sector of zeros. Header blocks and superblocks are real: their bytes are kept in the [`Vault`], and their eight
//! sectors are numbers that lead there. A block that is torn or rotten isn't found in it, as its checksum would fail.

use crate::rng::Rng;
use nbd_mirror::core::recovery::Halves;
use nbd_mirror::core::recovery::staged::Piece;
use nbd_mirror::format::block::Block;
use nbd_mirror::format::checksum;
use nbd_mirror::format::wire::Sum;
use nbd_mirror::limits::BLOCK_BYTES;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

/// A sector's content.
pub type Word = u64;

/// Bytes of a sector: what a disk writes or loses as a whole.
pub const SECTOR: usize = 512;
/// Sectors of a block.
pub const BLOCK: usize = BLOCK_BYTES / SECTOR;

const HEADER: Word = 1 << 63;
const ROTTEN: Word = 1 << 62;

/// A bit of this sector has flipped.
pub fn rot(word: &mut Word) {
    *word ^= ROTTEN;
}

/// A sector of which a part is old and a part is new.
pub fn torn(rng: &mut Rng) -> Word {
    rng.next() | ROTTEN
}

/// Stands for the CRC-32C of these sectors.
pub fn crc(words: &[Word]) -> u32 {
    let sum = words
        .iter()
        .fold(0x1234_5678_9abc_def1u64, |sum, word| (sum ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
    (sum ^ (sum >> 32)) as u32
}

/// Stands for the checksum by which both sides compare a block of contents; never the one that says nothing.
pub fn sum(words: &[Word]) -> Sum {
    let fold = |seed: u64| {
        let step = |sum: u64, word: &Word| (sum ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        words.iter().fold(seed, step).max(1)
    };
    let mut sum = Sum::default();
    sum[..8].copy_from_slice(&fold(0x1234_5678_9abc_def1).to_le_bytes());
    sum[8..].copy_from_slice(&fold(0x0fed_cba9_8765_4321).to_le_bytes());
    sum
}

/// Keys are parts of digests already.
#[derive(Debug, Default, Clone)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only whole words are hashed");
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// A map from digests.
pub type ByDigest<T> = HashMap<u64, T, BuildHasherDefault<AsIs>>;

/// The bytes of all blocks that were ever written, and of all sectors of dirty bitmaps.
#[derive(Debug, Default)]
pub struct Vault {
    blocks: ByDigest<(Box<Block>, usize)>,
    sectors: ByDigest<Box<[u8; SECTOR]>>,
}

fn part(digest: u64, index: usize) -> Word {
    HEADER | (digest.wrapping_add(index as u64) & !(HEADER | ROTTEN))
}

impl Vault {
    /// Keeps a block of which only the first `used` bytes aren't zero.
    pub fn keep(&mut self, block: &Block, used: usize) -> [Word; BLOCK] {
        let digest = checksum::digest(block).0;
        let sectors = used.div_ceil(SECTOR);
        self.blocks.entry(part(digest, 0)).or_insert_with(|| (Box::new(*block), sectors));
        std::array::from_fn(|index| if index < sectors { part(digest, index) } else { 0 })
    }

    /// Keeps a sector that stands for itself.
    pub fn keep_sector(&mut self, bytes: &[u8; SECTOR]) -> Word {
        if bytes.iter().all(|byte| *byte == 0) {
            return 0;
        }
        let mut block = [0; BLOCK_BYTES];
        block[..SECTOR].copy_from_slice(bytes);
        let word = part(checksum::digest(&block).0, 0);
        self.sectors.entry(word).or_insert_with(|| Box::new(*bytes));
        word
    }

    /// The blocks that these sectors make up, each with its bytes, or zeros where they can't be read.
    pub fn sectors(&self, words: &[Word]) -> Vec<Block> {
        let block = |words: &[Word]| {
            let mut block = [0; BLOCK_BYTES];
            for (bytes, word) in block.chunks_exact_mut(SECTOR).zip(words) {
                if let Some(sector) = self.sectors.get(word) {
                    bytes.copy_from_slice(&sector[..]);
                }
            }
            block
        };
        words.chunks(BLOCK).map(block).collect()
    }

    /// The block that starts with these sectors, if it is whole.
    pub fn block(&self, words: &[Word]) -> Option<&Block> {
        let (block, sectors) = self.blocks.get(words.first()?)?;
        let same = |index: usize| words.get(index) == Some(&if index < *sectors { part(words[0], index) } else { 0 });
        (1..BLOCK).all(same).then_some(block)
    }
}

/// Both halves as they can be read.
pub struct Shelf<'a> {
    pub halves: [&'a [Word]; 2],
    pub vault: &'a Vault,
}

impl Halves for Shelf<'_> {
    fn half_bytes(&self) -> u64 {
        (self.halves[0].len() * SECTOR) as u64
    }

    fn block(&self, half: usize, position: u64) -> Option<&Block> {
        self.vault.block(self.halves[half].get(position as usize / SECTOR..)?)
    }

    fn checksum(&self, half: usize, range: Range<u64>) -> u32 {
        crc(&self.halves[half][range.start as usize / SECTOR..range.end as usize / SECTOR])
    }
}

/// A slot of the shared log as it can be read.
pub struct Slot<'a> {
    /// Where its first frame belongs in its half, in bytes.
    pub start: u64,
    pub half_bytes: u64,
    /// All that is behind the slot's first block.
    pub words: &'a [Word],
    pub vault: &'a Vault,
}

impl Halves for Slot<'_> {
    fn half_bytes(&self) -> u64 {
        self.half_bytes.min(self.start + (self.words.len() * SECTOR) as u64)
    }

    fn block(&self, _: usize, position: u64) -> Option<&Block> {
        self.vault.block(self.words.get((position - self.start) as usize / SECTOR..)?)
    }

    fn checksum(&self, _: usize, range: Range<u64>) -> u32 {
        let at = |position: u64| (position - self.start) as usize / SECTOR;
        crc(&self.words[at(range.start)..at(range.end)])
    }
}

/// A part of a staging log as it can be read.
pub struct LogPiece<'a> {
    /// Where it starts in the log, in bytes.
    pub start: u64,
    pub words: &'a [Word],
    pub vault: &'a Vault,
}

impl Piece for LogPiece<'_> {
    fn range(&self) -> Range<u64> {
        self.start..self.start + (self.words.len() * SECTOR) as u64
    }

    fn block(&self, at: u64) -> Option<&Block> {
        const UNREADABLE: &Block = &[0; BLOCK_BYTES];
        let words = self.words.get((at.checked_sub(self.start)? as usize) / SECTOR..)?.get(..BLOCK)?;
        Some(self.vault.block(words).unwrap_or(UNREADABLE))
    }

    fn checksum(&self, range: Range<u64>) -> u32 {
        let at = |position: u64| (position - self.start) as usize / SECTOR;
        crc(&self.words[at(range.start)..at(range.end)])
    }
}
