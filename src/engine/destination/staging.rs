//! The staging log's file: fills are appended from memory, and segments are read back on their way to the images.

use super::super::run;
use super::super::source::{EngineError, failed};
use super::receive::{drain_place, half_place, restart_place, zeros_place};
use super::{APPLY_DEPTH, Engine, Token};
use crate::core::Place;
use crate::core::destination::Written;
use crate::core::recovery::staged::Bytes;
use crate::format::block::Block;
use crate::limits::BLOCK_BYTES;
use std::io;
use std::ops::Range;

/// Writes to the log under way.
const APPEND_DEPTH: u32 = 4;

/// A full file system isn't a failure: the core knows what becomes of it.
fn written<T>(outcome: io::Result<T>) -> io::Result<Written> {
    match outcome {
        Ok(_) => Ok(Written::All),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => Ok(Written::NoRoom),
        Err(error) => Err(error),
    }
}

impl Engine {
    pub(super) fn handle_staging(&mut self, token: Token, outcome: io::Result<usize>) -> Result<(), EngineError> {
        let log = |what: &'static str| |cause: io::Error| failed(what, &self.staging, cause);
        match token {
            Token::Append => {
                let written = written(outcome).map_err(log("the staging log's write"))?;
                self.core.handle_appended(written);
            }
            Token::StagingSync => {
                let written = written(outcome).map_err(log("the staging log's sync"))?;
                self.core.handle_staging_synced(written);
            }
            Token::StageRestart => {
                let written = written(outcome).map_err(log("the staging log's write"))?;
                self.core.handle_restart_staged(written, &mut self.effects);
            }
            Token::FreeStaging => {
                match outcome.map_err(|error| error.raw_os_error()) {
                    // Its room comes back when the log is empty, at the next start at the latest.
                    Err(Some(libc::EOPNOTSUPP)) => tracing::debug!("the staging log's file system punches no holes"),
                    Err(error) => tracing::warn!("room of the staging log can't be given back (error {error:?})"),
                    Ok(_) => {}
                }
                self.core.handle_staging_freed();
            }
            Token::Segment(start, bytes) => {
                outcome.map_err(log("reading the staging log"))?;
                let place = drain_place(self.core.superblock().half_bytes);
                // SAFETY: the read into these bytes is complete, and the next begins when all of this segment is written.
                let bytes = unsafe { self.memory.bytes(place, bytes as usize) };
                let outcome = self.core.handle_segment(&Bytes { start, bytes }, place);
                outcome.map_err(|damage| {
                    let cause = io::Error::new(io::ErrorKind::InvalidData, damage);
                    failed("the staging log", &self.staging, cause)
                })?;
            }
            Token::Drain(volume) => {
                let image = &self.images[usize::from(volume)];
                let bytes =
                    outcome.map_err(|cause| failed("the staging log's way to the image", &image.disk, cause))?;
                self.counters.flushed_bytes += bytes as u64;
                self.core.handle_drained();
            }
            Token::DrainZero(zeroing) => {
                if self.zeroed(zeroing, outcome, Token::DrainZero)? {
                    self.core.handle_drained();
                }
            }
            Token::DrainSync(volume) => {
                let image = &self.images[usize::from(volume)];
                outcome.map_err(|cause| failed("the image's sync", &image.disk, cause))?;
                self.core.handle_drain_synced(volume);
            }
            token => unreachable!("{token:?} is no operation of the staging log"),
        }
        Ok(())
    }

    pub(super) fn stage_restart(&mut self, block: &Block, at: u64) {
        let place = restart_place(self.core.superblock().half_bytes);
        // SAFETY: this block of the mapping is only used for a restart, of which one is under way at most.
        unsafe { self.memory.bytes_mut(place, BLOCK_BYTES) }.copy_from_slice(block);
        self.ring.write(Token::StageRestart, self.staging.target(), at, &[(place, BLOCK_BYTES as u64)], true);
    }

    pub(super) fn free_staging(&mut self, range: Range<u64>) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let length = range.end - range.start;
        self.ring.allocate(Token::FreeStaging, self.staging.target(), mode, range.start, length);
    }

    pub(super) fn pump_append(&mut self) {
        let half_bytes = self.core.superblock().half_bytes;
        while self.core.appends_under_way() < APPEND_DEPTH
            && let Some(op) = self.core.next_append()
        {
            let place = Place(half_place(half_bytes, op.half).0 + op.start);
            self.ring.write(Token::Append, self.staging.target(), op.at, &[(place, op.end - op.start)], false);
        }
    }

    pub(super) fn pump_drain(&mut self) {
        let half_bytes = self.core.superblock().half_bytes;
        if let Some(range) = self.core.next_segment() {
            let bytes = range.end - range.start;
            let place = drain_place(half_bytes);
            self.ring.read(Token::Segment(range.start, bytes), self.staging.target(), range.start, &[(place, bytes)]);
        }
        let depth = if self.core.drain_is_late() { APPLY_DEPTH.1 } else { APPLY_DEPTH.0 };
        let mut pieces = std::mem::take(&mut self.pieces);
        while self.core.drains_under_way() < depth
            && let Some(op) = self.core.next_drain(&mut pieces)
        {
            let disk = &self.images[usize::from(op.volume)].disk;
            let zeros = zeros_place(half_bytes);
            run::start(op, &mut self.ring, disk, &pieces, zeros, Token::Drain(op.volume), Token::DrainZero);
        }
        self.pieces = pieces;
    }
}
