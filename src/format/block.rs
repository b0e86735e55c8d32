//! What every header block begins with: magic, version and a checksum over its 4096 bytes.

use super::checksum::crc32c;
use crate::limits::BLOCK_BYTES;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The bytes of one header block.
pub type Block = [u8; BLOCK_BYTES];

/// The version of all formats; a peer or a journal with another one is refused.
pub const VERSION: u16 = 3;

/// The first 16 bytes of every header block.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Preamble {
    /// What kind of block it is.
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U16,
    /// Meaning depends on the kind.
    pub flags: U16,
    /// CRC-32C of the block with these four bytes zero.
    pub checksum: U32,
}

const CHECKSUM_AT: std::ops::Range<usize> = 12..16;

/// Why a block isn't what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The magic is another one: something else is stored or sent here.
    #[error("not one of nbd-mirror's blocks (magic {0:02x?})")]
    Magic([u8; 8]),
    /// Another version of the format.
    #[error("format version {0}, this program speaks version {VERSION}")]
    Version(u16),
    /// The checksum doesn't match the bytes.
    #[error("checksum mismatch: stored {stored:08x}, computed {computed:08x}")]
    Checksum {
        /// The one in the block.
        stored: u32,
        /// The one of the bytes.
        computed: u32,
    },
    /// The checksum is right, but a field can't be.
    #[error("impossible field: {0}")]
    Field(&'static str),
}

/// Fills, records, epochs and runs are counted up from 1, and none gets here in the lifetime of any disk.
pub const MAX_NUMBER: u64 = 1 << 62;

/// Refuses numbers that nobody ever counted up to, so that whoever goes on from one that was read can't run over.
pub fn countable(numbers: impl IntoIterator<Item = u64>) -> Result<(), BlockError> {
    if numbers.into_iter().all(|number| number < MAX_NUMBER) { Ok(()) } else { Err(BlockError::Field("number")) }
}

/// Writes the preamble into a block whose other fields are complete.
pub fn seal(block: &mut Block, magic: [u8; 8], flags: u16) {
    let preamble = Preamble { magic, version: VERSION.into(), flags: flags.into(), checksum: 0.into() };
    block[..16].copy_from_slice(preamble.as_bytes());
    let checksum = crc32c(block);
    block[CHECKSUM_AT].copy_from_slice(&checksum.to_le_bytes());
}

/// Checks a block's preamble and returns it.
pub fn open(block: &Block, magic: [u8; 8]) -> Result<Preamble, BlockError> {
    let preamble = Preamble::read_from_bytes(&block[..16]).map_err(|_| BlockError::Field("length"))?;
    if preamble.magic != magic {
        return Err(BlockError::Magic(preamble.magic));
    }
    if preamble.version.get() != VERSION {
        return Err(BlockError::Version(preamble.version.get()));
    }
    let mut copy = *block;
    copy[CHECKSUM_AT].fill(0);
    let (stored, computed) = (preamble.checksum.get(), crc32c(&copy));
    if stored != computed {
        return Err(BlockError::Checksum { stored, computed });
    }
    Ok(preamble)
}
