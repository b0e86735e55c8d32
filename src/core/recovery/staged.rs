//! A destination's staging log, read: frames of complete fills, one behind the other, and a restart signal wherever the
//! order began anew.
//!
//! The log is never torn: it counts only up to the tail that the state names, and the state is written when all before
//! the tail is stable. So whatever doesn't fit here is damage; it is named with its place, and nothing of it is applied.

use super::super::Place;
use super::super::grains::Grains;
use super::follows;
use crate::format::block::Block;
use crate::format::checksum;
use crate::format::frame::{self, Header, Record};
use crate::format::ids::{Id, Mark};
use crate::format::superblock::{Staging, Superblock};
use crate::format::wire::{SIGNAL, Signal};
use crate::limits::{BLOCK_BYTES, DRAIN_BYTES};
use std::ops::Range;

/// A part of a staging log as it can be read. Positions are bytes from the log file's start. Only checksums are asked of
/// payload, so whoever keeps it needs no bytes for it.
pub trait Piece {
    /// What it has of the log.
    fn range(&self) -> Range<u64>;
    /// The block at a position; `None` where the piece ends before the block does.
    fn block(&self, at: u64) -> Option<&Block>;
    /// The CRC-32C of bytes within it.
    fn checksum(&self, range: Range<u64>) -> u32;
}

/// A piece of which all bytes are in memory.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a> {
    /// Where it starts in the log.
    pub start: u64,
    /// What is there.
    pub bytes: &'a [u8],
}

impl Piece for Bytes<'_> {
    fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len() as u64
    }

    fn block(&self, at: u64) -> Option<&Block> {
        self.bytes.get(usize::try_from(at.checked_sub(self.start)?).ok()?..)?.first_chunk()
    }

    fn checksum(&self, range: Range<u64>) -> u32 {
        checksum::crc32c(&self.bytes[(range.start - self.start) as usize..(range.end - self.start) as usize])
    }
}

/// The log isn't what was written there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("damaged at byte {at}: {reason}")]
pub struct StagingDamage {
    /// Where, in bytes from the file's start.
    pub at: u64,
    /// What is wrong there.
    pub reason: String,
}

/// What stands at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A frame: its records, with their payloads' places counted from the log's start.
    Frame(Vec<(Record, Place)>),
    /// The order began anew.
    Restart,
}

/// Follows the log from one entry to the next.
#[derive(Debug, Clone)]
pub struct Walk {
    source: Id,
    /// The next entry's place.
    at: u64,
    /// Where the log ends.
    tail: u64,
    /// The boundary before the next entry.
    mark: Mark,
    /// Where the next frame stands in its fill, unless it begins one; `None`: it isn't known, as the log is entered here.
    position: Option<u64>,
}

impl Walk {
    /// Enters the log at its head.
    pub fn new(source: Id, staging: &Staging) -> Walk {
        Walk { source, at: staging.head, tail: staging.tail, mark: staging.before, position: None }
    }

    /// Where the next entry is.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The boundary before the next entry.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// What must be read to go on; `None` at the log's end.
    pub fn wants(&self) -> Option<Range<u64>> {
        (self.at < self.tail).then(|| self.at..self.tail.min(self.at + DRAIN_BYTES))
    }

    /// The next entry; `None` where the piece doesn't have the rest of it, or the log ends.
    pub fn next(&mut self, piece: &impl Piece) -> Result<Option<Entry>, StagingDamage> {
        let at = self.at;
        let damage = |reason: String| StagingDamage { at, reason };
        if at >= self.tail {
            return Ok(None);
        }
        let Some(block) = piece.block(at) else { return Ok(None) };
        if block[..8] == SIGNAL {
            let signal = Signal::decode(block).map_err(|error| damage(error.to_string()))?;
            let Signal::Restart { at: mark } = signal else { return Err(damage(format!("{signal:?} stands there"))) };
            self.at += BLOCK_BYTES as u64;
            (self.mark, self.position) = (mark, Some(0));
            return Ok(Some(Entry::Restart));
        }
        let header = Header::parse(block).map_err(|error| damage(error.to_string()))?;
        let (fill, position) = match header.position {
            0 => (self.mark.fill.next(), 0),
            position => (self.mark.fill, self.position.unwrap_or(position)),
        };
        follows(&header, self.source, fill, position, self.mark).map_err(damage)?;
        let end = at + header.frame_bytes();
        if end > self.tail {
            return Err(damage(format!("a frame of {} bytes exceeds the log's end", header.frame_bytes())));
        }
        if end > piece.range().end {
            return Ok(None);
        }
        let payload = at + BLOCK_BYTES as u64;
        let checksum = |at: Range<usize>| piece.checksum(payload + at.start as u64..payload + at.end as u64);
        frame::verify_payload(&header, block, checksum).map_err(|error| damage(error.to_string()))?;
        self.at = end;
        self.position = Some(position + header.frame_bytes());
        self.mark = Mark { fill, seq: header.last(), digest: checksum::digest(block) };
        Ok(Some(Entry::Frame(super::records(&header, block, Place(payload)))))
    }
}

/// Reads a whole log at a start, piece by piece: whether it is all there, and what it touches.
#[derive(Debug)]
pub struct Scan {
    walk: Walk,
    clean: Mark,
    touched: Grains,
}

impl Scan {
    /// Begins at the log's head. Where the state knows of no log there is nothing to be read.
    pub fn new(superblock: &Superblock) -> Scan {
        let walk = Walk::new(superblock.source, &superblock.staging);
        let touched = Grains::none(&superblock.sizes(), superblock.grain_bytes);
        Scan { walk, clean: superblock.clean, touched }
    }

    /// What must be read next; `None` when all was.
    pub fn wants(&self) -> Option<Range<u64>> {
        self.walk.wants()
    }

    /// Takes what was wanted.
    pub fn take(&mut self, piece: &impl Piece) -> Result<(), StagingDamage> {
        let from = self.walk.at();
        while let Some(entry) = self.walk.next(piece)? {
            if let Entry::Frame(records) = entry {
                for (record, _) in records {
                    self.touched.insert(record.volume, record.offset..record.end());
                }
            }
        }
        // The longest frame fits into a piece.
        if self.walk.at() == from {
            return Err(StagingDamage { at: from, reason: "the log ends here".into() });
        }
        Ok(())
    }

    /// What the log touches, if it ends where the state says that fills ended.
    pub fn finish(self) -> Result<Grains, StagingDamage> {
        if self.walk.mark() != self.clean && self.walk.tail > 0 {
            let reason = format!("it ends at {}, the state says at {}", self.walk.mark(), self.clean);
            return Err(StagingDamage { at: self.walk.at(), reason });
        }
        Ok(self.touched)
    }
}
