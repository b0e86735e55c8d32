//! Halves switch, are flushed, and become clean again.
//!
//! A half may be filled anew only when its fill is on the volumes, applied at the destination, and the superblock
//! that says so is durable: recovery starts at the superblock's mark, so what it calls clean may be overwritten and
//! what it doesn't must be there. Alone, the dirty bitmap takes the place of the destination: what the fill changed is
//! marked there, durably, before the superblock calls it clean.

use super::super::flush::{self, FlushOp, Step};
use super::super::half::State;
use super::super::{Durability, Place};
use super::{Effect, Resync, Source};
use crate::canary::{Bug, sings};
use crate::format::ids::Fill;
use std::time::Duration;

impl Source {
    /// Whether the half after the open one is free.
    pub(super) fn can_switch(&self) -> bool {
        self.halves[1 - self.open.half()].state == State::Clean
    }

    pub(super) fn switch_if_due(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let half = &self.halves[self.open.half()];
        let aged = half.opened_at.is_some_and(|opened| now >= opened + self.shape.max_age) && self.may_age();
        if half.state == State::Open && (self.switch_wanted || aged) && self.can_switch() {
            self.seal_fill(effects);
        }
        if self.halves[self.open.half()].state != State::Open {
            self.switch_wanted = self.switch_wanted && !self.queue.is_empty();
        }
    }

    /// Closes the open fill; the next one starts with the next frame.
    pub(super) fn seal_fill(&mut self, effects: &mut Vec<Effect>) {
        let whole = self.superblock.whole || self.whole_from.is_some_and(|fill| self.open >= fill);
        let half = &mut self.halves[self.open.half()];
        half.state = State::Sealed;
        half.whole = whole;
        half.copied.append(&mut self.equal);
        self.switch_wanted = false;
        effects.push(Effect::Switched(half.last));
        self.open = self.open.next();
    }

    /// Moves each half on as far as it can go, the older fill first.
    pub(super) fn advance_halves(&mut self, effects: &mut Vec<Effect>) {
        for fill in [Fill(self.open.0.wrapping_sub(2)), Fill(self.open.0 - 1)] {
            let next = self.superblock.clean.fill.next() == fill
                && (self.inherited.is_empty() || sings(Bug::FlushBeforeInherited));
            let (durable, committed) = (next, self.committed);
            let stable =
                self.shape.durability == Durability::Always || self.synced >= self.halves[fill.half()].last.seq;
            let half = &mut self.halves[fill.half()];
            if half.fill != fill {
                continue;
            }
            if half.state == State::Sealed && committed >= half.last.seq && stable {
                half.state = State::Flushing;
            }
            // Pulled to the end and complete: the devices' caches are next.
            if half.state == State::Flushing && durable {
                match half.flusher.step(&half.index) {
                    Step::Sync(volumes) => effects.extend(flush::volumes(volumes).map(Effect::SyncVolume)),
                    Step::Done => {
                        half.state = State::Flushed;
                        half.index = super::super::index::Index::new(self.superblock.volumes.len());
                    }
                    Step::Writing | Step::Syncing => {}
                }
            }
            let applied = half.applied || !self.shape.mirrored || sings(Bug::ReuseHalfEarly);
            if half.state == State::Flushed && durable && self.retiring.is_none() && !half.retiring {
                if applied && self.shape.mirrored {
                    self.retire_applied(fill);
                } else if applied || self.is_left_alone() {
                    self.retire_alone(fill);
                }
            }
        }
        self.store_map(effects);
        self.write_superblock(effects);
    }

    /// The destination has this fill: what it brought isn't dirty any more.
    fn retire_applied(&mut self, fill: Fill) {
        self.retiring = Some(fill);
        for (volume, start, end) in std::mem::take(&mut self.halves[fill.half()].copied) {
            self.dirty.unmark(volume, start..end);
        }
    }

    /// Nobody knows whether the destination has this fill: what it changed is dirty.
    fn retire_alone(&mut self, fill: Fill) {
        self.retiring = Some(fill);
        if sings(Bug::ForgetDirty) {
            return;
        }
        let half = &self.halves[fill.half()];
        for record in half.entries.iter().map(|entry| &entry.record).filter(|record| record.length > 0) {
            self.dirty.mark(record.volume, record.offset..record.end());
        }
    }

    /// Stores the dirty bitmap, one write after the other, and only then lets the superblock call a half clean.
    fn store_map(&mut self, effects: &mut Vec<Effect>) {
        if self.map_writing {
            return;
        }
        let retiring = self.retiring.is_some() && !sings(Bug::CleanBeforeMap);
        let wanted = retiring || self.map_first || self.link.waits_for_map();
        let mut bytes = Vec::new();
        if wanted && let Some(at) = self.dirty.next_write(&mut bytes) {
            self.map_writing = true;
            return effects.push(Effect::WriteMap(bytes, at));
        }
        self.map_first = false;
        let Some(fill) = self.retiring.take() else { return };
        let half = &self.halves[fill.half()];
        let (last, whole, applied) = (half.last, half.whole, half.applied && self.shape.mirrored);
        // The next fill in this half says so in its headers: should this superblock be lost, they show it. And what is
        // remembered must reach up to its end.
        self.stable = self.stable.max(last.seq);
        if applied {
            // It got here over the stream, so it is nowhere else any more.
            self.superblock.known.clear();
            if whole && !self.dirty.grains().is_empty() {
                // The destination holds all that was here; what was marked too much is of no use any more.
                self.dirty.clear();
            }
            if whole && !self.superblock.whole {
                self.superblock.whole = true;
                self.superblock.unwatched = false;
                self.whole_from = None;
                effects.push(Effect::Resync(Resync::Whole));
            }
            self.stable_both = self.stable_both.max(last.seq);
        } else {
            // Should this be the fill that makes the destination's copy whole, no signal for it follows any more; so what is
            // still marked is compared anew.
            self.whole_from = None;
            self.remember();
        }
        self.halves[fill.half()].retiring = true;
        self.superblock.clean = last;
        self.settle_lack();
        self.superblock_dirty = true;
    }

    /// The blocks of the dirty bitmap are durable.
    pub fn handle_map_written(&mut self) {
        self.map_writing = false;
    }

    /// Everything is dirty: what the destination lacks isn't known. That it isn't whole may not be durable before that is:
    /// after a crash in between, nothing would be left to copy.
    pub(super) fn mark_all(&mut self) {
        self.dirty.fill();
        self.map_first = !self.dirty.is_stored();
    }

    pub(super) fn write_superblock(&mut self, effects: &mut Vec<Effect>) {
        if self.superblock_dirty && !self.superblock_writing && !self.map_first {
            self.superblock_dirty = false;
            self.stale_copies = 2;
            self.write_copy(effects);
        }
    }

    /// Both copies get each version, one after the other, before anybody builds on it. So a crash can tear only one, and
    /// one that can't be read any more takes nothing away.
    fn write_copy(&mut self, effects: &mut Vec<Effect>) {
        self.superblock_writing = true;
        self.stale_copies -= 1;
        self.superblock.generation += 1;
        effects.push(Effect::WriteSuperblock(self.superblock.encode(), self.superblock.copy_offset()));
    }

    /// A copy of the superblock is durable; when both are, what it calls clean may be overwritten.
    pub fn handle_superblock_written(&mut self, effects: &mut Vec<Effect>) {
        self.superblock_writing = false;
        if self.map_first {
            self.superblock_dirty = true;
            return;
        }
        if self.superblock_dirty {
            return self.write_superblock(effects);
        }
        if self.stale_copies > 0 {
            return self.write_copy(effects);
        }
        let clean = self.superblock.clean.fill;
        for half in self.halves.iter_mut().filter(|half| half.retiring && half.fill <= clean) {
            half.release(effects);
            half.retire(self.superblock.volumes.len());
        }
    }

    /// A `sync` is complete when no half up to its fill is anything but clean.
    pub(super) fn finish_syncs(&mut self, effects: &mut Vec<Effect>) {
        let halves = &self.halves;
        let inherited = !self.inherited.is_empty();
        let pending =
            |fill: Fill| inherited || halves.iter().any(|half| half.state != State::Clean && half.fill <= fill);
        // What was waiting when the command came may have got errors instead.
        let idle = halves[self.open.half()].state == State::Clean && self.queue.is_empty();
        self.syncs.retain(|(fill, token)| {
            let keep = (*fill >= self.open && !idle) || pending(*fill);
            if !keep {
                effects.push(Effect::SyncDone(*token));
            }
            keep
        });
    }

    /// The next device write of a flush; pieces of data are put into `pieces`.
    pub fn next_flush(&mut self, pieces: &mut Vec<(Place, u64)>) -> Option<FlushOp> {
        let fill = self.superblock.clean.fill.next();
        let own = self.inherited.is_empty();
        let half = self.flushing_mut();
        if (own && half.fill != fill) || half.state != State::Flushing {
            return None;
        }
        half.flusher.next(&half.index, pieces)
    }

    /// Device writes of a flush that aren't complete.
    pub fn flushes_under_way(&self) -> u32 {
        self.flushing().flusher.outstanding()
    }

    /// One device write of a flush is complete.
    pub fn handle_flush_written(&mut self) {
        self.flushing_mut().flusher.handle_written();
    }

    /// A volume's device is synced.
    pub fn handle_volume_synced(&mut self, volume: u16) {
        self.flushing_mut().flusher.handle_synced(volume);
    }

    /// Whether a flush is behind its pace: it should end before the open half is full. Where neither is under way: false.
    pub fn flush_is_late(&self) -> bool {
        let fill = self.superblock.clean.fill.next();
        if !self.inherited.is_empty() {
            // Memory is what its own fills need first: half of it is in these.
            return self.halves[fill.half()].end > self.superblock.half_bytes / 8;
        }
        let (flushing, other) = (&self.halves[fill.half()], &self.halves[fill.next().half()]);
        if flushing.fill != fill || flushing.state != State::Flushing {
            return false;
        }
        if other.state > State::Open {
            return true;
        }
        let total = flushing.index.payload_bytes().max(1) as f64;
        let filled = other.end as f64 / self.superblock.half_bytes as f64;
        // The syncs and the destination's apply need the last quarter.
        (flushing.flusher.written_bytes() as f64 / total) < filled / 0.75
    }
}
