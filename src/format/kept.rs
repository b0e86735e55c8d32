//! The kept file: what a fenced source discarded when it came back as the destination of the promoted side.
//!
//! A block that names it, the source's superblock as it was, then ordinary frames: the contents of its dirty grains, and
//! the very frames of its journal that only it had. It is never read by a daemon.

use super::block::{self, Block, BlockError};
use super::ids::{Epoch, Id, Mark, RawMark, Seq};
use super::superblock::{Role, Superblock};
use crate::limits::BLOCK_BYTES;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Magic of the first block.
pub const MAGIC: [u8; 8] = *b"NBDMKEPT";
/// Magic of the superblock's copy: such a file is no journal, and must not be taken for one.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"NBDMKSUP";
/// Where the frames begin, in bytes.
pub const FRAMES_OFFSET: u64 = 2 * BLOCK_BYTES as u64;

/// The whole difference to the mark is in the file.
const FLAG_EXACT: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawKept {
    preamble: [u8; 16],
    source: Id,
    discarded_by: U64,
    mark: RawMark,
    kept_unix_s: U64,
    contents_bytes: U64,
    journal_bytes: U64,
    common: U64,
}

const USED: usize = size_of::<RawKept>();
const _: () = assert!(USED <= BLOCK_BYTES);

/// What a kept file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The source's superblock as it was when it discarded.
    pub superblock: Superblock,
    /// The epoch for which it was discarded.
    pub discarded_by: Epoch,
    /// Where the other side was promoted.
    pub mark: Mark,
    /// Whether that mark is one of this source's history. If it isn't, more may be in here than only this source had.
    pub exact: bool,
    /// The last record that both sides were known to have; 0 where that isn't known.
    pub common: Seq,
    /// When the file was made, in seconds since 1970.
    pub kept_unix_s: u64,
    /// Bytes of the frames that hold contents of volumes; the journal's come behind them.
    pub contents_bytes: u64,
    /// Bytes of the journal's frames, up to the file's end.
    pub journal_bytes: u64,
}

impl Kept {
    /// Bytes of the whole file. Never overflows for one that was decoded.
    pub fn file_bytes(&self) -> u64 {
        FRAMES_OFFSET + self.contents_bytes + self.journal_bytes
    }

    /// The file's first two blocks.
    pub fn encode(&self) -> [Box<Block>; 2] {
        let raw = RawKept {
            preamble: [0; 16],
            source: self.superblock.source,
            discarded_by: self.discarded_by.0.into(),
            mark: self.mark.into(),
            kept_unix_s: self.kept_unix_s.into(),
            contents_bytes: self.contents_bytes.into(),
            journal_bytes: self.journal_bytes.into(),
            common: self.common.0.into(),
        };
        let mut block = Box::new([0; BLOCK_BYTES]);
        block[..USED].copy_from_slice(raw.as_bytes());
        block::seal(&mut block, MAGIC, if self.exact { FLAG_EXACT } else { 0 });
        [block, self.superblock.encode_as(SUPERBLOCK_MAGIC)]
    }

    /// Checks and decodes the file's first two blocks.
    pub fn decode(blocks: [&Block; 2]) -> Result<Kept, BlockError> {
        let flags = block::open(blocks[0], MAGIC)?.flags.get();
        let raw = RawKept::ref_from_bytes(&blocks[0][..USED]).map_err(|_| BlockError::Field("length"))?;
        let superblock = Superblock::decode_as(Role::Source, SUPERBLOCK_MAGIC, blocks[1])?;
        if superblock.source != raw.source {
            return Err(BlockError::Field("source"));
        }
        let mark: Mark = raw.mark.into();
        let (contents_bytes, journal_bytes) = (raw.contents_bytes.get(), raw.journal_bytes.get());
        let numbers = [raw.discarded_by.get(), raw.common.get(), contents_bytes, journal_bytes];
        block::countable(numbers.into_iter().chain(mark.numbers()))?;
        if ![contents_bytes, journal_bytes].iter().all(|bytes| bytes.is_multiple_of(BLOCK_BYTES as u64)) {
            return Err(BlockError::Field("length of the frames"));
        }
        Ok(Kept {
            superblock,
            discarded_by: Epoch(raw.discarded_by.get()),
            mark,
            exact: flags & FLAG_EXACT != 0,
            common: Seq(raw.common.get()),
            kept_unix_s: raw.kept_unix_s.get(),
            contents_bytes,
            journal_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{Digest, Fill};
    use crate::format::superblock::Volume;

    #[test]
    fn round_trip_and_each_flipped_bit_is_noticed() {
        let volumes = vec![Volume { name: "vol0".into(), size_bytes: 1 << 20, block_bytes: 512 }];
        let kept = Kept {
            superblock: Superblock::first(Role::Source, Id([7; 16]), "alpha", 8 << 20, Epoch(3), volumes),
            discarded_by: Epoch(4),
            mark: Mark { fill: Fill(5), seq: Seq(6), digest: Digest(7) },
            exact: true,
            common: Seq(6),
            kept_unix_s: 1_700_000_000,
            contents_bytes: 8192,
            journal_bytes: 4096,
        };
        let mut blocks = kept.encode();
        assert_eq!(Kept::decode([&blocks[0], &blocks[1]]), Ok(kept.clone()));
        assert_eq!(kept.file_bytes(), 5 * 4096);
        assert!(Superblock::decode(Role::Source, &blocks[1]).is_err(), "it isn't taken for a journal's");
        for (block, bit) in (0..2).flat_map(|block| (0..BLOCK_BYTES * 8).map(move |bit| (block, bit))) {
            blocks[block][bit / 8] ^= 1 << (bit % 8);
            assert!(Kept::decode([&blocks[0], &blocks[1]]).is_err(), "bit {bit} of block {block}");
            blocks[block][bit / 8] ^= 1 << (bit % 8);
        }
        let long = Kept { journal_bytes: 1 << 62, ..kept.clone() }.encode();
        assert_eq!(Kept::decode([&long[0], &long[1]]), Err(BlockError::Field("number")));
        let odd = Kept { contents_bytes: 4097, ..kept }.encode();
        assert_eq!(Kept::decode([&odd[0], &odd[1]]), Err(BlockError::Field("length of the frames")));
    }
}
