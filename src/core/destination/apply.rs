//! Sealed fills go to the images, in order.
//!
//! A crash anywhere in an apply is repaired by doing it again: the fill stays in its journal file until the state
//! that calls it applied is durable, and a later fill is never applied before.

use super::super::Place;
use super::super::flush::{self, FlushOp, Step};
use super::{Destination, Effect, State};
use crate::canary::{Bug, sings};
use crate::format::superblock::Phase;

impl Destination {
    /// Call once after each batch of events.
    pub fn handle_turn(&mut self, effects: &mut Vec<Effect>) {
        self.seal_to_promote();
        self.seal_to_settle();
        self.sync_if_due(effects);
        self.move_on(effects);
        self.restart_on(effects);
        self.append_on(effects);
        self.drain_on(effects);
        self.apply_on(effects);
        self.settle_on(effects);
        self.promote_on(effects);
    }

    /// Whether fills go to the images: also by the durable state, for while that one names a log, a start looks into it.
    fn direct(&self) -> bool {
        if sings(Bug::DrainLate) && self.superblock.staging.phase == Phase::Draining {
            return true;
        }
        self.superblock.staging.phase == Phase::Direct && self.durable.staging.phase == Phase::Direct
    }

    fn apply_on(&mut self, effects: &mut Vec<Effect>) {
        let fill = self.superblock.clean.fill.next();
        let direct = self.direct() && !self.hands_over();
        let half = &mut self.halves[fill.half()];
        // Also one with nothing to write isn't done with as long as the log names it: slots of a clean fill are nobody's.
        if direct && half.fill == fill && half.state == State::Sealed && half.logged == 0 && !half.retiring {
            match half.flusher.step(&half.index) {
                Step::Sync(volumes) => {
                    effects.extend(flush::volumes(volumes).map(Effect::SyncImage));
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
    }

    /// The next device write of an apply; pieces of data are put into `pieces`.
    pub fn next_apply(&mut self, pieces: &mut Vec<(Place, u64)>) -> Option<FlushOp> {
        let fill = self.superblock.clean.fill.next();
        let direct = self.direct() && !self.hands_over();
        let half = &mut self.halves[fill.half()];
        // Only what is complete and stable in the journal file may touch an image: else a power cut could leave a
        // mixture there that nothing can repair.
        let stable = half.settled() || sings(Bug::ApplyVolatile);
        let ready = half.state == State::Sealed && half.stored == half.received && stable;
        if !direct || half.fill != fill || !ready || half.retiring {
            return None;
        }
        let op = half.flusher.next(&half.index, pieces)?;
        self.live.apply(fill);
        Some(op)
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

    /// Whether an apply is behind its pace: it should end before the other half is full.
    pub fn apply_is_late(&self) -> bool {
        let fill = self.superblock.clean.fill.next();
        let (applying, other) = (&self.halves[fill.half()], &self.halves[fill.next().half()]);
        let total = applying.index.payload_bytes().max(1) as f64;
        let filled = other.received as f64 / self.superblock.half_bytes as f64;
        self.hurried() || (applying.flusher.written_bytes() as f64 / total) < filled / 0.75
    }

    /// Whether somebody waits for all to be on the images.
    pub(super) fn hurried(&self) -> bool {
        self.promoting || self.settling.is_some()
    }
}
