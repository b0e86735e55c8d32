//! The superblock: who a journal belongs to and from which record on its halves count.
//!
//! It is kept twice, in blocks 0 and 1 of a journal (at the source) or of the state file (at the destination), and
//! each new version goes over the older copy: whatever a crash tears, the other copy is whole.
//!
//! Before the first version there is no other copy. So the making begins with a *claim* in block 0, which only its first
//! 512 bytes matter of, for no disk tears those; then the first version goes to block 1, and at last over the claim.
//! While the claim is there, nothing else counts, and nothing has been stored yet.

use super::block::{self, Block, BlockError};
use super::ids::{Epoch, Id, Mark, RawMark};
use crate::canary::{Bug, sings};
use crate::limits::{BLOCK_BYTES, MAX_FRAME_BYTES, MAX_HALF_BYTES, MAX_NAME_BYTES, MAX_VOLUMES};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Whose superblock it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A source's journal.
    Source,
    /// A destination's state of one source.
    Destination,
}

impl Role {
    /// The block's magic.
    pub fn magic(self) -> [u8; 8] {
        match self {
            Role::Source => *b"NBDMSRCE",
            Role::Destination => *b"NBDMDEST",
        }
    }
}

/// The image is (or, at the source: is known to be) a whole copy at each applied fill.
const FLAG_WHOLE: u16 = 1;
/// The destination was promoted and serves the images itself.
const FLAG_PROMOTED: u16 = 2;

/// One volume as both sides know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The NBD export's name.
    pub name: String,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Smallest unit that can be written, in bytes.
    pub block_bytes: u32,
    /// How far the first sync has come, in bytes from the start; equal to the size when it is complete.
    pub copied_bytes: u64,
}

/// The durable facts of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Whose it is.
    pub role: Role,
    /// Raised with each version; the valid copy with the higher one counts.
    pub generation: u64,
    /// The source's identity, made with its journal.
    pub source: Id,
    /// The source's name.
    pub name: String,
    /// Bytes of one half.
    pub half_bytes: u64,
    /// The epoch this side lives in.
    pub epoch: Epoch,
    /// The epoch that fenced this source; 0 while it isn't.
    pub fenced_by: Epoch,
    /// The source's run, raised at each start.
    pub incarnation: u64,
    /// Up to here both halves are done with: flushed and applied at the source, applied at the destination.
    pub clean: Mark,
    /// Whether the image is a whole copy.
    pub whole: bool,
    /// Whether this destination was promoted.
    pub promoted: bool,
    /// The volumes, in their order.
    pub volumes: Vec<Volume>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawVolume {
    name: [u8; MAX_NAME_BYTES],
    size_bytes: U64,
    copied_bytes: U64,
    block_bytes: U32,
    reserved: [u8; 4],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    preamble: [u8; 16],
    generation: U64,
    source: Id,
    name: [u8; MAX_NAME_BYTES],
    half_bytes: U64,
    epoch: U64,
    fenced_by: U64,
    incarnation: U64,
    clean: RawMark,
    volume_count: U16,
    reserved: [u8; 6],
    volumes: [RawVolume; MAX_VOLUMES],
}

const USED: usize = size_of::<RawSuperblock>();
const _: () = assert!(USED <= BLOCK_BYTES);

fn pack(name: &str) -> [u8; MAX_NAME_BYTES] {
    let mut packed = [0; MAX_NAME_BYTES];
    packed[..name.len()].copy_from_slice(name.as_bytes());
    packed
}

fn unpack(packed: &[u8; MAX_NAME_BYTES]) -> Result<String, BlockError> {
    let end = packed.iter().position(|byte| *byte == 0).unwrap_or(MAX_NAME_BYTES);
    let name = std::str::from_utf8(&packed[..end]).map_err(|_| BlockError::Field("name"))?;
    if name.is_empty() { Err(BlockError::Field("name")) } else { Ok(name.to_owned()) }
}

impl Superblock {
    /// Encodes it under its role's magic. Names are at most [`MAX_NAME_BYTES`] long, volumes at most [`MAX_VOLUMES`].
    pub fn encode(&self) -> Box<Block> {
        self.encode_as(self.role.magic())
    }

    /// Encodes it under another magic: a hello carries a superblock.
    pub fn encode_as(&self, magic: [u8; 8]) -> Box<Block> {
        let empty = RawVolume {
            name: [0; MAX_NAME_BYTES],
            size_bytes: 0.into(),
            copied_bytes: 0.into(),
            block_bytes: 0.into(),
            reserved: [0; 4],
        };
        let mut volumes = [empty; MAX_VOLUMES];
        for (raw, volume) in volumes.iter_mut().zip(&self.volumes) {
            *raw = RawVolume {
                name: pack(&volume.name),
                size_bytes: volume.size_bytes.into(),
                copied_bytes: volume.copied_bytes.into(),
                block_bytes: volume.block_bytes.into(),
                reserved: [0; 4],
            };
        }
        let raw = RawSuperblock {
            preamble: [0; 16],
            generation: self.generation.into(),
            source: self.source,
            name: pack(&self.name),
            half_bytes: self.half_bytes.into(),
            epoch: self.epoch.0.into(),
            fenced_by: self.fenced_by.0.into(),
            incarnation: self.incarnation.into(),
            clean: self.clean.into(),
            volume_count: (self.volumes.len() as u16).into(),
            reserved: [0; 6],
            volumes,
        };
        let mut block = Box::new([0; BLOCK_BYTES]);
        block[..USED].copy_from_slice(raw.as_bytes());
        let flags = if self.whole { FLAG_WHOLE } else { 0 } | if self.promoted { FLAG_PROMOTED } else { 0 };
        block::seal(&mut block, magic, flags);
        block
    }

    /// Checks and decodes a block of that role.
    pub fn decode(role: Role, block: &Block) -> Result<Superblock, BlockError> {
        Superblock::decode_as(role, role.magic(), block)
    }

    /// Checks and decodes a block under another magic.
    pub fn decode_as(role: Role, magic: [u8; 8], block: &Block) -> Result<Superblock, BlockError> {
        let flags = block::open(block, magic)?.flags.get();
        let raw = RawSuperblock::ref_from_bytes(&block[..USED]).map_err(|_| BlockError::Field("length"))?;
        let count = usize::from(raw.volume_count.get());
        if count == 0 || count > MAX_VOLUMES {
            return Err(BlockError::Field("volume count"));
        }
        let half_bytes = raw.half_bytes.get();
        if !(MAX_FRAME_BYTES as u64..=MAX_HALF_BYTES).contains(&half_bytes)
            || !half_bytes.is_multiple_of(BLOCK_BYTES as u64)
        {
            return Err(BlockError::Field("size of a half"));
        }
        let clean: Mark = raw.clean.into();
        block::countable([&raw.generation, &raw.epoch, &raw.fenced_by, &raw.incarnation].map(|number| number.get()))?;
        block::countable(clean.numbers())?;
        let volumes = raw.volumes[..count].iter().map(|volume| {
            // It becomes the block size of an export, by which requests are checked.
            if !volume.block_bytes.get().is_power_of_two() || volume.block_bytes.get() as usize > BLOCK_BYTES {
                return Err(BlockError::Field("block size of a volume"));
            }
            Ok(Volume {
                name: unpack(&volume.name)?,
                size_bytes: volume.size_bytes.get(),
                block_bytes: volume.block_bytes.get(),
                copied_bytes: volume.copied_bytes.get(),
            })
        });
        Ok(Superblock {
            role,
            generation: raw.generation.get(),
            source: raw.source,
            name: unpack(&raw.name)?,
            half_bytes,
            epoch: Epoch(raw.epoch.get()),
            fenced_by: Epoch(raw.fenced_by.get()),
            incarnation: raw.incarnation.get(),
            clean,
            whole: flags & FLAG_WHOLE != 0,
            promoted: flags & FLAG_PROMOTED != 0,
            volumes: volumes.collect::<Result<_, BlockError>>()?,
        })
    }

    /// Where the copy of this generation goes: the two take turns. In bytes.
    pub fn copy_offset(&self) -> u64 {
        if sings(Bug::OneSuperblock) { 0 } else { (self.generation % 2) * BLOCK_BYTES as u64 }
    }

    /// The newer valid copy of the two; the first copy's error where neither is valid.
    pub fn newest(role: Role, copies: [&Block; 2]) -> Result<Superblock, BlockError> {
        match copies.map(|copy| Superblock::decode(role, copy)) {
            [Ok(a), Ok(b)] => Ok(if a.generation > b.generation { a } else { b }),
            [Ok(one), Err(_)] | [Err(_), Ok(one)] => Ok(one),
            [Err(error), Err(_)] => Err(error),
        }
    }
}

/// Magic of a claim.
const CLAIM: [u8; 8] = *b"NBDMCLAM";
/// Where a claim has its source's name: where a superblock has it.
const CLAIM_NAME_AT: std::ops::Range<usize> = 40..40 + MAX_NAME_BYTES;
/// What a disk writes whole or not at all, in bytes.
const SECTOR_BYTES: usize = 512;

/// The block that says: a journal, or a state, of this source is being made here, and whatever else is here is void.
pub fn encode_claim(name: &str) -> Box<Block> {
    let mut block = Box::new([0; BLOCK_BYTES]);
    block[CLAIM_NAME_AT].copy_from_slice(&pack(name));
    block::seal(&mut block, CLAIM, 0);
    block
}

/// Whose claim block 0 holds, if it holds one. Only the first sector is looked at: the others may be torn.
pub fn claimed_by(block: &Block) -> Option<String> {
    let mut sector = [0; BLOCK_BYTES];
    sector[..SECTOR_BYTES].copy_from_slice(&block[..SECTOR_BYTES]);
    block::open(&sector, CLAIM).ok()?;
    let name = sector[CLAIM_NAME_AT].first_chunk()?;
    unpack(name).ok()
}

#[cfg(test)]
mod tests;
