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
use crate::limits::{
    BLOCK_BYTES, GRAIN_BYTES, MAX_FRAME_BYTES, MAX_GRAIN_BYTES, MAX_HALF_BYTES, MAX_KNOWN_MARKS, MAX_NAME_BYTES,
    MAX_VOLUMES,
};
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
/// The source went on without its destination.
const FLAG_ALONE: u16 = 4;
/// The volumes may have been written to without a word here.
const FLAG_UNWATCHED: u16 = 8;

/// One volume as both sides know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The NBD export's name.
    pub name: String,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Smallest unit that can be written, in bytes.
    pub block_bytes: u32,
}

/// Where a destination puts the fills that are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Phase {
    /// Onto the images.
    #[default]
    Direct = 0,
    /// Behind the staging log's end: the images stay as they were before the resync.
    Staging = 1,
    /// Behind the staging log's end, while its beginning goes to the images.
    Draining = 2,
}

impl Phase {
    /// The phase of this number.
    pub(super) fn of(number: u8) -> Result<Phase, BlockError> {
        let all = [Phase::Direct, Phase::Staging, Phase::Draining];
        all.into_iter().find(|phase| *phase as u8 == number).ok_or(BlockError::Field("phase"))
    }
}

/// A destination's staging log: complete fills, frame behind frame, that are not on the images yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Staging {
    /// Where fills go.
    pub phase: Phase,
    /// Up to here the log is on the images, in bytes from the file's start.
    pub head: u64,
    /// The log's end, in bytes from the file's start.
    pub tail: u64,
    /// The boundary before the frame at `head`.
    pub before: Mark,
    /// What the images hold by themselves while the phase is [`Phase::Staging`].
    pub base: Mark,
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
    /// The identity of the first source of these volumes: it stays the same over all promotes, of which each makes a source
    /// of its own.
    pub lineage: Id,
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
    /// Whether this source has answered writes without its destination, and the two aren't in step again.
    pub alone: bool,
    /// Whether somebody may have written to the volumes past this source: no boundary of its history says what they hold,
    /// until a destination has a whole copy.
    pub unwatched: bool,
    /// Since when the destination may lack answered writes, in seconds since 1970; 0: it lacks none.
    pub lacking_since_unix_s: u64,
    /// Bytes of the volumes that one bit of the source's dirty bitmap stands for.
    pub grain_bytes: u32,
    /// Boundaries of this source's history that its journal no longer reaches back to, but that the destination may be at:
    /// the dirty bitmap covers all that came behind the first of them. Oldest first, at most [`MAX_KNOWN_MARKS`]. At a promoted
    /// destination: the last boundary that it held.
    pub known: Vec<Mark>,
    /// A destination's staging log.
    pub staging: Staging,
    /// The volumes, in their order.
    pub volumes: Vec<Volume>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawVolume {
    name: [u8; MAX_NAME_BYTES],
    size_bytes: U64,
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
    known_count: U16,
    phase: u8,
    reserved: [u8; 3],
    grain_bytes: U32,
    lacking_since_unix_s: U64,
    staging_head: U64,
    staging_tail: U64,
    staging_before: RawMark,
    staging_base: RawMark,
    known: [RawMark; MAX_KNOWN_MARKS],
    volumes: [RawVolume; MAX_VOLUMES],
    lineage: Id,
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
    /// The first version: of a source's journal, or of a destination's state of it, that holds nothing yet.
    pub fn first(
        role: Role,
        source: Id,
        name: &str,
        half_bytes: u64,
        epoch: Epoch,
        volumes: Vec<Volume>,
    ) -> Superblock {
        Superblock {
            role,
            generation: 1,
            source,
            lineage: source,
            name: name.to_owned(),
            half_bytes,
            epoch,
            fenced_by: Epoch(0),
            incarnation: 0,
            clean: Mark::default(),
            whole: false,
            promoted: false,
            alone: false,
            unwatched: false,
            lacking_since_unix_s: 0,
            grain_bytes: GRAIN_BYTES,
            known: Vec::new(),
            staging: Staging::default(),
            volumes,
        }
    }

    /// Bytes of each volume.
    pub fn sizes(&self) -> Vec<u64> {
        self.volumes.iter().map(|volume| volume.size_bytes).collect()
    }

    /// Encodes it under its role's magic. Names are at most [`MAX_NAME_BYTES`] long, volumes at most [`MAX_VOLUMES`].
    pub fn encode(&self) -> Box<Block> {
        self.encode_as(self.role.magic())
    }

    /// Encodes it under another magic: a hello carries a superblock.
    pub fn encode_as(&self, magic: [u8; 8]) -> Box<Block> {
        let empty =
            RawVolume { name: [0; MAX_NAME_BYTES], size_bytes: 0.into(), block_bytes: 0.into(), reserved: [0; 4] };
        let mut volumes = [empty; MAX_VOLUMES];
        for (raw, volume) in volumes.iter_mut().zip(&self.volumes) {
            *raw = RawVolume {
                name: pack(&volume.name),
                size_bytes: volume.size_bytes.into(),
                block_bytes: volume.block_bytes.into(),
                reserved: [0; 4],
            };
        }
        let mut known = [RawMark::default(); MAX_KNOWN_MARKS];
        for (raw, mark) in known.iter_mut().zip(&self.known) {
            *raw = (*mark).into();
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
            known_count: (self.known.len().min(MAX_KNOWN_MARKS) as u16).into(),
            phase: self.staging.phase as u8,
            reserved: [0; 3],
            grain_bytes: self.grain_bytes.into(),
            lacking_since_unix_s: self.lacking_since_unix_s.into(),
            staging_head: self.staging.head.into(),
            staging_tail: self.staging.tail.into(),
            staging_before: self.staging.before.into(),
            staging_base: self.staging.base.into(),
            known,
            volumes,
            lineage: self.lineage,
        };
        let mut block = Box::new([0; BLOCK_BYTES]);
        block[..USED].copy_from_slice(raw.as_bytes());
        let flag = |set: bool, flag: u16| if set { flag } else { 0 };
        let flags = flag(self.whole, FLAG_WHOLE)
            | flag(self.promoted, FLAG_PROMOTED)
            | flag(self.alone, FLAG_ALONE)
            | flag(self.unwatched, FLAG_UNWATCHED);
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
        let known = raw.known.get(..raw.known_count.get().into()).ok_or(BlockError::Field("known boundaries"))?;
        let known: Vec<Mark> = known.iter().map(|mark| (*mark).into()).collect();
        block::countable(known.iter().flat_map(|mark| mark.numbers()))?;
        let grain_bytes = raw.grain_bytes.get();
        if !grain_bytes.is_power_of_two() || !(BLOCK_BYTES as u32..=MAX_GRAIN_BYTES).contains(&grain_bytes) {
            return Err(BlockError::Field("grain of the dirty bitmap"));
        }
        let staging = Staging {
            phase: Phase::of(raw.phase)?,
            head: raw.staging_head.get(),
            tail: raw.staging_tail.get(),
            before: raw.staging_before.into(),
            base: raw.staging_base.into(),
        };
        block::countable([staging.head, staging.tail].into_iter().chain(staging.before.numbers()))?;
        block::countable(staging.base.numbers())?;
        let aligned = [staging.head, staging.tail].iter().all(|at| at.is_multiple_of(BLOCK_BYTES as u64));
        if !aligned || staging.head > staging.tail {
            return Err(BlockError::Field("staging log"));
        }
        let volumes = raw.volumes[..count].iter().map(|volume| {
            // It becomes the block size of an export, by which requests are checked.
            if !volume.block_bytes.get().is_power_of_two() || volume.block_bytes.get() as usize > BLOCK_BYTES {
                return Err(BlockError::Field("block size of a volume"));
            }
            Ok(Volume {
                name: unpack(&volume.name)?,
                size_bytes: volume.size_bytes.get(),
                block_bytes: volume.block_bytes.get(),
            })
        });
        Ok(Superblock {
            role,
            generation: raw.generation.get(),
            source: raw.source,
            lineage: raw.lineage,
            name: unpack(&raw.name)?,
            half_bytes,
            epoch: Epoch(raw.epoch.get()),
            fenced_by: Epoch(raw.fenced_by.get()),
            incarnation: raw.incarnation.get(),
            clean,
            whole: flags & FLAG_WHOLE != 0,
            promoted: flags & FLAG_PROMOTED != 0,
            alone: flags & FLAG_ALONE != 0,
            unwatched: flags & FLAG_UNWATCHED != 0,
            lacking_since_unix_s: raw.lacking_since_unix_s.get(),
            grain_bytes,
            known,
            staging,
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
