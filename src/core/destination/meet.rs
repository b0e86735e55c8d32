//! Where a connected source goes on.
//!
//! - Resume: behind a common frame; what is held beyond it is dropped.
//! - Settle, then restart: its journal no longer reaches back to a common frame. What is held up to the last frame that it
//!   knows of is brought to the images (or to the staging log) first, so that the journal files are empty; then the order
//!   begins anew behind a frame that isn't held here, and a resync follows.
//! - Restart as the first word: nothing is held here yet, and a first sync follows.

use super::super::recovery::Rescanned;
use super::{Destination, Effect, Half, State};
use crate::canary::{Bug, sings};
use crate::format::ids::Mark;
use crate::format::superblock::{Phase, Staging};
use crate::format::wire::Report;
use crate::limits::BLOCK_BYTES;

/// A source asked to settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settling {
    /// Up to here.
    common: Mark,
    /// Whether it was told that this is done.
    reported: bool,
}

impl Destination {
    pub(super) fn resume(
        &mut self,
        common: Mark,
        rescan: &mut dyn FnMut(Mark, Mark) -> Vec<Rescanned>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), String> {
        if self.resumed || self.settling.is_some() {
            return Err("the source resumes twice".into());
        }
        self.drop_after(common, rescan, effects)?;
        self.resumed = true;
        Ok(())
    }

    /// Frames may come only after the restart that follows; so all that is sealed from now on is what is kept.
    pub(super) fn settle(
        &mut self,
        common: Mark,
        rescan: &mut dyn FnMut(Mark, Mark) -> Vec<Rescanned>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), String> {
        if self.resumed || self.settling.is_some() {
            return Err("the source asks to settle after it said where it goes on".into());
        }
        self.drop_after(common, rescan, effects)?;
        self.settling = Some(Settling { common, reported: false });
        Ok(())
    }

    /// What is kept of a fill is complete, as far as it will ever come: no frame of it follows any more. Not before what was
    /// dropped is erased: were the fill called clean and the erasing lost in a crash, then a dropped fill would follow it.
    pub(super) fn seal_to_settle(&mut self) {
        if self.settling.is_some() && self.erasing == 0 && self.writing.is_empty() {
            for half in self.halves.iter_mut().filter(|half| half.state == State::Open) {
                half.state = State::Sealed;
            }
        }
    }

    /// Says that all is settled once the journal files are empty, durably. A whole copy that is still being drained must be
    /// on the images first: they are what stays promotable while the resync is staged.
    pub(super) fn settle_on(&mut self, effects: &mut Vec<Effect>) {
        let Some(Settling { common, reported: false }) = self.settling else { return };
        let durable = !self.state_writing && !self.state_dirty && self.erasing == 0;
        let clean = self.halves.iter().all(|half| half.state == State::Clean) && self.superblock.clean == common;
        let drained = self.superblock.staging.phase != Phase::Draining || !self.superblock.whole;
        if durable && clean && drained {
            self.settling = Some(Settling { common, reported: true });
            effects.push(Effect::Report(Report::Settled(common)));
        }
    }

    /// The order begins anew behind `at`. Until a sync signal says so again, what is held is no whole copy.
    pub(super) fn restart(&mut self, at: Mark, effects: &mut Vec<Effect>) -> Result<(), String> {
        let allowed = match self.settling {
            Some(settling) => settling.reported,
            None => self.fresh(),
        };
        if self.resumed || !allowed {
            return Err(format!("the source wants to start over at {at}, but {} is stored here", self.stored));
        }
        // Frames in the journal files bear numbers that it would use again: by those a start could take what follows for
        // damaged. A few fills don't matter, as their files are filled anew before that counts.
        if at.seq < self.stored.seq || at.fill.0 + 2 < self.stored.fill.0 {
            return Err(format!(
                "the source wants to start over at {at}, before {}, which is stored here: it has lost what this side holds. \
                 Promote this side; or, if the source's volumes are right all the same, stop the destination and remove \
                 its folder of this source: everything is copied again",
                self.stored
            ));
        }
        self.settling = None;
        self.begin_from(at);
        // Frames may come at once, but nothing is stored before it is durable from where they begin: recovery must know.
        (self.resumed, self.starting_over, self.restarting) = (true, true, Some(at));
        self.restart_on(effects);
        Ok(())
    }

    /// Nothing is held but what is clean up to this mark.
    pub(super) fn begin_from(&mut self, mark: Mark) {
        (self.received, self.stored, self.acked) = (mark, mark, mark.seq);
        (self.synced, self.verified, self.vouched) = (mark.seq, mark.seq, mark.seq);
        self.boundaries.clear();
        self.boundaries.push_back((mark, 0));
        self.live.begin_anew();
    }

    /// Takes a restart further. Into a log that has begun it goes as a block of its own, so that whoever reads the log finds
    /// the way from the frame before it to the one behind it. The block is stable before the state counts on it: a crash
    /// between the two leaves it behind the tail, where nobody looks, and the source settles and restarts again.
    pub(super) fn restart_on(&mut self, effects: &mut Vec<Effect>) {
        let Some(at) = self.restarting.filter(|_| !self.log.restart_staging) else { return };
        let staging = &self.superblock.staging;
        if staging.head == staging.tail {
            self.restarted(at, 0, effects);
        } else if self.may_append() && self.room_for(BLOCK_BYTES as u64, effects) {
            self.stage_restart(at, effects);
        }
    }

    /// The restart takes its place: in the state, and so many bytes of the log.
    pub(super) fn restarted(&mut self, at: Mark, bytes: u64, effects: &mut Vec<Effect>) {
        let superblock = &mut self.superblock;
        let base = std::mem::replace(&mut superblock.clean, at);
        let staging = &mut superblock.staging;
        let mut still_whole = false;
        match staging.phase {
            Phase::Direct if superblock.whole && sings(Bug::SkipStaging) => still_whole = true,
            // The image is whole, and stays promotable as it is.
            Phase::Direct if superblock.whole => {
                *staging = Staging { phase: Phase::Staging, head: 0, tail: 0, before: at, base };
            }
            // It never was, or isn't any more: there is nothing to keep.
            Phase::Direct => {}
            // The resync before this one wasn't whole either: the image that is promotable is still the same.
            Phase::Staging | Phase::Draining => {
                if bytes == 0 {
                    staging.before = at;
                }
                staging.tail += bytes;
            }
        }
        superblock.whole = still_whole;
        self.restarting = None;
        self.write_state(effects);
    }

    /// Drops what the source doesn't have: it was never answered. The dropped frames still follow the ones before them
    /// in the journal file; so that no recovery ever takes them for the continuation, the first one's header is erased
    /// before anything else is stored. The rest follow that frame only, which never comes again: the source resumes at the
    /// last boundary that both have, and not before it.
    fn drop_after(
        &mut self,
        common: Mark,
        rescan: &mut dyn FnMut(Mark, Mark) -> Vec<Rescanned>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), String> {
        let Some(kept) = self.boundaries.iter().rposition(|(mark, _)| *mark == common) else {
            return Err(format!("the source resumes at {common}, which isn't stored here"));
        };
        if common == self.stored {
            return Ok(());
        }
        let beyond = |half: &Half| half.state != State::Clean && half.last.seq > common.seq;
        if self.halves.iter().any(|half| beyond(half) && half.state == State::Sealed) {
            return Err(format!("the source resumes at {common}, before the end of a fill that it called complete"));
        }
        if self.vouched > common.seq {
            return Err(format!(
                "the source resumes at {common}, but it had called all records up to {} stable on both sides: it has lost \
                 answered writes that are stored here. Promote this side; or, if the source's volumes are right all the same, \
                 stop the destination and remove its folder of this source: everything is copied again",
                self.vouched
            ));
        }
        // What is kept of a fill is looked up before anything is forgotten.
        let mut refill = Vec::new();
        if self.halves.iter().any(|half| beyond(half) && half.fill == common.fill) {
            let other = &self.halves[1 - common.fill.half()];
            // Both fills may be open after a start: the other one is the later one then, and is dropped.
            let first = other.state == State::Clean || other.fill > common.fill;
            let before = if first { self.superblock.clean } else { other.last };
            refill = rescan(before, common);
            if refill.last().is_none_or(|(found, _)| found.mark != common) {
                return Err(format!("the frames up to {common} can't be found again in this fill's half"));
            }
        }
        let volumes = self.superblock.volumes.len();
        for index in 0..2 {
            let half = &self.halves[index];
            if !beyond(half) {
                continue;
            }
            let in_this = half.fill == common.fill;
            if in_this {
                self.live.open(common.fill);
            }
            if !sings(Bug::KeepDropped) {
                self.erasing += 1;
                effects.push(Effect::Erase(index, if in_this { self.boundaries[kept].1 } else { 0 }));
            }
            self.halves[index] = Half::clean(volumes);
        }
        self.boundaries.truncate(kept + 1);
        (self.stored, self.received, self.acked) = (common, common, common.seq);
        self.synced = self.synced.min(common.seq);
        self.unsynced.clear();
        let boundaries = std::mem::take(&mut self.boundaries);
        self.adopt(refill);
        self.boundaries = boundaries;
        Ok(())
    }
}
