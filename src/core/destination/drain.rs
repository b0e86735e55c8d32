//! A whole resync goes from the staging log to the images, segment by segment.
//!
//! A segment is read into memory, checked frame by frame, and written like a fill; the images are synced, and then the
//! state moves the log's head behind it. A crash anywhere in between is repaired by doing the segment again. Images and
//! log together are a whole copy all the while, so a promote has only to finish.
//!
//! Where a staging log took no more and the plan says best effort, a resync that isn't whole is drained the same way.

use super::super::Place;
use super::super::flush::{self, FlushOp, Flusher, Step};
use super::super::index::Index;
use super::super::recovery::staged::{Entry, Piece, StagingDamage, Walk};
use super::{Destination, Effect, State};
use crate::canary::{Bug, sings};
use crate::format::ids::Mark;
use crate::format::superblock::{Phase, Staging};
use std::ops::Range;

/// A part of the log on its way to the images.
#[derive(Debug)]
pub(super) enum Segment {
    /// It is being read.
    Reading,
    /// It is being written.
    Writing(Writing),
}

/// A segment's frames, and how far they have come.
#[derive(Debug)]
pub(super) struct Writing {
    index: Index,
    flusher: Flusher,
    /// Where its last frame ends in the log.
    end: u64,
    /// The boundary after that.
    mark: Mark,
}

impl Destination {
    /// Whether the log may go to the images: it must be durable that they aren't what is promotable any more.
    fn may_drain(&self) -> bool {
        let draining = |staging: &Staging| staging.phase == Phase::Draining;
        draining(&self.superblock.staging) && (draining(&self.durable.staging) || sings(Bug::DrainEarly))
    }

    /// The part of the log to be read into memory next; [`Destination::handle_segment`] takes it.
    pub fn next_segment(&mut self) -> Option<Range<u64>> {
        let late = sings(Bug::DrainLate) && self.halves.iter().any(|half| half.state == State::Sealed);
        let waits = !self.may_drain() || self.log.segment.is_some() || (self.promoting && self.state_writing) || late;
        // What the durable state doesn't count yet stays for later.
        let mut staging = self.superblock.staging;
        staging.tail = self.durable.staging.tail;
        let wanted = Walk::new(self.superblock.source, &staging).wants().filter(|_| !waits)?;
        self.log.segment = Some(Segment::Reading);
        Some(wanted)
    }

    /// The segment is in memory, from `place` on. An error: the log is damaged, and nothing of the segment is written.
    pub fn handle_segment(&mut self, piece: &impl Piece, place: Place) -> Result<(), StagingDamage> {
        let mut walk = Walk::new(self.superblock.source, &self.superblock.staging);
        let (from, mut index) = (walk.at(), Index::new(self.superblock.volumes.len()));
        while let Some(entry) = walk.next(piece)? {
            if let Entry::Frame(records) = entry {
                for (record, Place(at)) in records {
                    index.insert(&record, Place((place.0 + at).wrapping_sub(piece.range().start)));
                }
            }
        }
        if walk.at() == from {
            return Err(StagingDamage { at: from, reason: "the log ends here".into() });
        }
        let (end, mark) = (walk.at(), walk.mark());
        self.log.segment = Some(Segment::Writing(Writing { index, flusher: Flusher::default(), end, mark }));
        Ok(())
    }

    pub(super) fn drain_on(&mut self, effects: &mut Vec<Effect>) {
        if !self.may_drain() {
            return;
        }
        match &mut self.log.segment {
            Some(Segment::Reading) => {}
            Some(Segment::Writing(writing)) => match writing.flusher.step(&writing.index) {
                Step::Sync(volumes) => {
                    effects.extend(flush::volumes(volumes).map(Effect::SyncDrained));
                }
                Step::Done => {
                    let staging = &mut self.superblock.staging;
                    (staging.head, staging.before) = (writing.end, writing.mark);
                    self.log.segment = None;
                    self.write_state(effects);
                }
                Step::Writing | Step::Syncing => {}
            },
            None => {
                let empty = |staging: &Staging| staging.head == staging.tail;
                let (next, durable) = (&self.superblock.staging, &self.durable.staging);
                if empty(next) && empty(durable) && self.log.at_rest() && self.restarting.is_none() {
                    // Fills go to the images again, once this is durable.
                    self.superblock.staging = Staging::default();
                    self.write_state(effects);
                }
            }
        }
    }

    /// The next device write of a drain; pieces of data are put into `pieces`.
    pub fn next_drain(&mut self, pieces: &mut Vec<(Place, u64)>) -> Option<FlushOp> {
        match &mut self.log.segment {
            Some(Segment::Writing(writing)) if !(self.promoting && self.state_writing) => {
                self.live.begin_anew();
                writing.flusher.next(&writing.index, pieces)
            }
            _ => None,
        }
    }

    /// Device writes of a drain that aren't complete.
    pub fn drains_under_way(&self) -> u32 {
        match &self.log.segment {
            Some(Segment::Writing(writing)) => writing.flusher.outstanding(),
            _ => 0,
        }
    }

    /// One device write of a drain is complete.
    pub fn handle_drained(&mut self) {
        if let Some(Segment::Writing(writing)) = &mut self.log.segment {
            writing.flusher.handle_written();
        }
    }

    /// An image's device is synced, for the drain.
    pub fn handle_drain_synced(&mut self, volume: u16) {
        if let Some(Segment::Writing(writing)) = &mut self.log.segment {
            writing.flusher.handle_synced(volume);
        }
    }

    /// Whether somebody waits for a drain: a promote, a source that settles, or a fill that finds no room.
    pub fn drain_is_late(&self) -> bool {
        self.hurried() || self.halves.iter().any(|half| half.state == State::Sealed)
    }
}
