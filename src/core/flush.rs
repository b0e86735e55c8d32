//! A flush of a half to its volumes, or an apply of a fill to the images: the same thing on either side.
//!
//! Order matters: every write is completed, then every device that was written is synced, and only then may anybody
//! be told that the fill is on the devices.

use super::Place;
use super::index::{Index, Run};
use crate::canary::{Bug, sings};

/// One device write, zeroing or discard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushOp {
    /// The volume.
    pub volume: u16,
    /// What to do on it.
    pub run: Run,
}

/// What is left to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Writes remain to be pulled or to complete.
    Writing,
    /// All writes are complete; these volumes (a bit each) must be synced now.
    Sync(u32),
    /// Syncs are under way.
    Syncing,
    /// All is on stable storage.
    Done,
}

/// The volumes of a [`Step::Sync`].
pub fn volumes(bits: u32) -> impl Iterator<Item = u16> {
    (0..32).filter(move |volume| bits & (1 << volume) != 0)
}

/// Progress of one flush or apply.
#[derive(Debug, Default)]
pub struct Flusher {
    volume: u16,
    offset: u64,
    outstanding: u32,
    touched: u32,
    syncing: u32,
    sync_started: bool,
    written_bytes: u64,
}

impl Flusher {
    /// The next operation; the pieces of a write are put into `pieces`. Ascending within each volume.
    pub fn next(&mut self, index: &Index, pieces: &mut Vec<(Place, u64)>) -> Option<FlushOp> {
        let run = self.peek(index, pieces)?;
        self.offset = run.offset + run.length;
        self.outstanding += 1;
        self.touched |= 1 << self.volume;
        self.written_bytes += run.length;
        Some(FlushOp { volume: self.volume, run })
    }

    fn peek(&mut self, index: &Index, pieces: &mut Vec<(Place, u64)>) -> Option<Run> {
        while usize::from(self.volume) < index.volumes() {
            if let Some(run) = index.next_run(self.volume, self.offset, pieces) {
                return Some(run);
            }
            self.volume += 1;
            self.offset = 0;
        }
        None
    }

    /// One operation is complete.
    pub fn handle_written(&mut self) {
        self.outstanding -= 1;
    }

    /// One volume is synced.
    pub fn handle_synced(&mut self, volume: u16) {
        self.syncing &= !(1 << volume);
    }

    /// What to do now. [`Step::Sync`] is returned once.
    pub fn step(&mut self, index: &Index) -> Step {
        if self.outstanding > 0 || self.peek(index, &mut Vec::new()).is_some() {
            Step::Writing
        } else if !self.sync_started && self.touched != 0 && !sings(Bug::SkipVolumeSync) {
            self.sync_started = true;
            self.syncing = self.touched;
            Step::Sync(self.touched)
        } else if self.syncing != 0 {
            Step::Syncing
        } else {
            Step::Done
        }
    }

    /// Operations that are under way.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Bytes handed out so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}
