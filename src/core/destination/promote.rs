//! Promote: the epoch is raised, which fences the source for good, and then it is decided what is served.
//!
//! - Fills go to the images: all that is stored is served, as soon as it is stable in the journal files. What isn't applied
//!   yet is looked up there, and brought to the images behind (`source/inherited.rs`).
//! - A resync is being staged: the images are served as they were before it; what is staged and stored is no whole copy
//!   and is dropped.
//! - A whole resync is being drained: all of it goes to the images first.

use super::nvram::Nvram;
use super::{Destination, Effect, Half, State};
use crate::canary::{Bug, sings};
use crate::format::superblock::{Phase, Staging};

impl Destination {
    /// Promote: raises the epoch, which fences the source for good, then settles what is served.
    /// The connection must be closed already. [`Effect::Promoted`] tells the end.
    pub fn handle_promote(&mut self, effects: &mut Vec<Effect>) {
        if self.promoting || self.superblock.promoted {
            return;
        }
        self.promoting = true;
        if !self.log.restart_staging && self.restarting.take().is_some() {
            // It found no room in the log; nothing was stored behind it.
            self.begin_from(self.superblock.clean);
        }
        if !sings(Bug::ForgetEpoch) {
            self.superblock.epoch = self.superblock.epoch.next();
        }
        self.write_state(effects);
    }

    /// Whether a promote's epoch is durable, and nothing is being stored any more.
    fn may_promote(&self) -> bool {
        self.promoting
            && !self.superblock.promoted
            && self.writing.is_empty()
            && !self.state_writing
            && !self.log.restart_staging
            && self.erasing == 0
            && self.nvram.as_ref().is_none_or(Nvram::is_empty)
            // Whoever serves the images writes to them.
            && !(self.hands_over() && self.applies_under_way() > 0)
    }

    /// Whether fills are left to whoever serves the images, instead of being applied here.
    pub(super) fn hands_over(&self) -> bool {
        self.promoting && self.superblock.staging.phase == Phase::Direct
    }

    /// Before the fills are looked at: one with nothing to write is done at once, and no event follows it.
    pub(super) fn seal_to_promote(&mut self) {
        if self.may_promote() && self.superblock.staging.phase != Phase::Staging {
            for half in self.halves.iter_mut().filter(|half| half.state == State::Open) {
                half.state = State::Sealed;
            }
        }
    }

    pub(super) fn promote_on(&mut self, effects: &mut Vec<Effect>) {
        if !self.may_promote() {
            return;
        }
        match self.superblock.staging.phase {
            Phase::Direct if self.halves.iter().all(|half| half.state == State::Clean || half.ready()) => {}
            Phase::Direct | Phase::Draining => return,
            Phase::Staging => {
                // One write of the state: before it a resync is staged, after it there never was one.
                let base = self.superblock.staging.base;
                (self.superblock.clean, self.superblock.whole) = (base, true);
                self.superblock.staging = Staging::default();
                let volumes = self.superblock.volumes.len();
                self.halves = [Half::clean(volumes), Half::clean(volumes)];
                self.begin_from(base);
                self.log.forget_append();
            }
        }
        // From here on the journal files are never written again: a start finds the very frames up to this mark.
        self.superblock.known = vec![self.stored];
        self.superblock.promoted = true;
        self.write_state(effects);
    }
}
