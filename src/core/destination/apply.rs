//! Sealed fills go to the images, in order; a promote applies all that is stored.
//!
//! A crash anywhere in an apply is repaired by doing it again: the fill stays in its journal file until the state
//! that calls it applied is durable, and a later fill is never applied before.

use super::super::Place;
use super::super::flush::{FlushOp, Step};
use super::{Destination, Effect, Half, State};
use crate::canary::{Bug, sings};
use crate::format::wire::Report;

impl Destination {
    /// Call once after each batch of events.
    pub fn handle_turn(&mut self, effects: &mut Vec<Effect>) {
        self.seal_for_promote();
        self.sync_if_due(effects);
        let fill = self.superblock.clean.fill.next();
        let half = &mut self.halves[fill.half()];
        if half.fill == fill && half.state == State::Sealed && !half.retiring {
            match half.flusher.step(&half.index) {
                Step::Sync(volumes) => {
                    effects.extend((0..32).filter(|volume| volumes & (1 << volume) != 0).map(Effect::SyncImage));
                }
                Step::Done => {
                    half.retiring = true;
                    self.superblock.clean = half.last;
                    self.superblock.whole |= half.whole;
                    self.write_state(effects);
                }
                Step::Writing | Step::Syncing => {}
            }
        }
        self.promote_on(effects);
    }

    /// The next device write of an apply; pieces of data are put into `pieces`.
    pub fn next_apply(&mut self, pieces: &mut Vec<(Place, u64)>) -> Option<FlushOp> {
        let fill = self.superblock.clean.fill.next();
        let promoting = self.promoting;
        let half = &mut self.halves[fill.half()];
        // Only what is complete and stable in the journal file may touch an image: else a power cut could leave a
        // mixture there that nothing can repair.
        let stable = !half.volatile || sings(Bug::ApplyVolatile);
        let ready = half.state == State::Sealed && half.stored == half.received && stable;
        if half.fill != fill || !ready || half.retiring || (promoting && self.state_writing) {
            return None;
        }
        half.flusher.next(&half.index, pieces)
    }

    /// Device writes of an apply that aren't complete.
    pub fn applies_under_way(&self) -> u32 {
        self.halves[self.superblock.clean.fill.next().half()].flusher.outstanding()
    }

    /// One device write of an apply is complete.
    pub fn handle_applied(&mut self) {
        self.halves[self.superblock.clean.fill.next().half()].flusher.handle_written();
    }

    /// An image's device is synced.
    pub fn handle_image_synced(&mut self, volume: u16) {
        self.halves[self.superblock.clean.fill.next().half()].flusher.handle_synced(volume);
    }

    pub(super) fn write_state(&mut self, effects: &mut Vec<Effect>) {
        self.state_dirty = true;
        if !self.state_writing {
            self.state_dirty = false;
            self.stale_copies = 2;
            self.write_copy(effects);
        }
    }

    /// Both copies get each version, one after the other, before anybody builds on it. So a crash can tear only one, and
    /// one that can't be read any more takes nothing away: neither that a fill was applied nor that a source is fenced.
    fn write_copy(&mut self, effects: &mut Vec<Effect>) {
        self.state_writing = true;
        self.stale_copies -= 1;
        self.superblock.generation += 1;
        effects.push(Effect::WriteState(self.superblock.encode(), self.superblock.copy_offset()));
    }

    /// A copy of the state is durable.
    pub fn handle_state_written(&mut self, effects: &mut Vec<Effect>) {
        self.state_writing = false;
        if self.state_dirty {
            return self.write_state(effects);
        }
        if self.stale_copies > 0 {
            return self.write_copy(effects);
        }
        self.starting_over = false;
        self.promotable = self.superblock.whole;
        let volumes = self.superblock.volumes.len();
        let applied = self.superblock.clean;
        while self.boundaries.front().is_some_and(|(mark, _)| mark.seq < applied.seq) {
            self.boundaries.pop_front();
        }
        for half in self.halves.iter_mut().filter(|half| half.retiring) {
            *half = Half { fill: half.fill, last: half.last, ..Half::clean(volumes) };
            effects.push(Effect::Applied(applied));
            if self.connected && self.resumed {
                effects.push(Effect::Report(Report::Applied(applied)));
            }
        }
        if self.superblock.promoted {
            effects.push(Effect::Promoted(self.superblock.clean));
        }
    }

    /// Promote: raises the epoch, which fences the source for good, then applies all that is stored.
    /// The connection must be closed already. [`Effect::Promoted`] tells the end.
    pub fn handle_promote(&mut self, effects: &mut Vec<Effect>) {
        if self.promoting || self.superblock.promoted {
            return;
        }
        self.promoting = true;
        if !sings(Bug::ForgetEpoch) {
            self.superblock.epoch = self.superblock.epoch.next();
        }
        self.write_state(effects);
    }

    /// Whether an apply is behind its pace: it should end before the other half is full.
    pub fn apply_is_late(&self) -> bool {
        let fill = self.superblock.clean.fill.next();
        let (applying, other) = (&self.halves[fill.half()], &self.halves[fill.next().half()]);
        let total = applying.index.payload_bytes().max(1) as f64;
        let filled = other.received as f64 / self.superblock.half_bytes as f64;
        self.promoting || (applying.flusher.written_bytes() as f64 / total) < filled / 0.75
    }

    /// Whether a promote's epoch is durable, and nothing is being stored any more.
    fn may_promote(&self) -> bool {
        self.promoting && !self.superblock.promoted && self.writing.is_empty() && !self.state_writing
    }

    /// Before the fills are looked at: one with nothing to write is done at once, and no event follows it.
    fn seal_for_promote(&mut self) {
        if self.may_promote() {
            for half in self.halves.iter_mut().filter(|half| half.state == State::Open) {
                half.state = State::Sealed;
            }
        }
    }

    fn promote_on(&mut self, effects: &mut Vec<Effect>) {
        if self.may_promote() && self.halves.iter().all(|half| half.state == State::Clean) {
            self.superblock.promoted = true;
            self.write_state(effects);
        }
    }
}
