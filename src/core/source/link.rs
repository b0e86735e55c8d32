//! What the destination is sent and what it reports.
//!
//! Within an epoch the source is the authority. On connecting, the destination names the last frames it holds; the
//! newest that this source knows is the common one. The destination drops what comes after it (it was never
//! answered), and everything after it that the halves hold is sent, the sync signals in between.

use super::super::half::State;
use super::super::recovery::welcome::{self as meeting, Action, Applied, Fence, Held, Here, There};
use super::{Effect, FrameId, Source};
use crate::format::block::Block;
use crate::format::ids::{Epoch, Fill, Mark, Seq};
use crate::format::wire::{Report, Signal, Welcome};
use std::cmp::Ordering;

/// The connection to the destination.
#[derive(Debug)]
pub enum Link {
    /// There is none.
    Down,
    /// Frames are being sent.
    Up {
        /// The signal to be sent before anything else.
        first: Option<Signal>,
        /// A sync signal that follows it, for a fill that is clean here already.
        again: Option<Signal>,
        /// The last record that the destination had when the connection was made.
        resumed: Seq,
        /// The fill that is being sent.
        fill: Fill,
        /// Its next frame.
        index: usize,
    },
}

impl Link {
    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        matches!(self, Link::Up { .. })
    }
}

/// What to send next.
#[derive(Debug)]
pub enum Send {
    /// This block.
    Block(Box<Block>),
    /// This frame.
    Frame(FrameId),
}

impl Source {
    /// A destination answered our hello.
    pub fn handle_welcome(&mut self, welcome: &Welcome, effects: &mut Vec<Effect>) {
        let common = welcome.boundaries.iter().rev().find(|mark| self.knows(**mark)).copied();
        let newest = welcome.boundaries.last().copied().unwrap_or(welcome.applied);
        let found = meeting::Found {
            verdict: welcome.verdict.into(),
            epochs: match welcome.epoch.cmp(&self.superblock.epoch) {
                Ordering::Less => meeting::Epochs::Older,
                Ordering::Equal => meeting::Epochs::Same,
                Ordering::Greater => meeting::Epochs::Newer,
            },
            fence: if self.fenced() { Fence::Fenced } else { Fence::Free },
            held: match common {
                _ if welcome.fresh => Held::Nothing,
                Some(_) => Held::Common,
                None if newest.seq > self.last.seq => Held::Ahead,
                None if newest.seq < self.superblock.clean.seq => Held::Older,
                None => Held::Forked,
            },
            applied: self.compare_applied(welcome.applied),
            there: if welcome.whole { There::Whole } else { There::Partial },
            here: if self.superblock.whole { Here::Whole } else { Here::Partial },
        };
        let (epoch, ours) = (welcome.epoch, self.superblock.epoch);
        let (clean, last) = (self.superblock.clean, self.last);
        let close = match found.decide().action {
            Action::StayFenced => return self.handle_fenced(epoch, effects),
            Action::StartOver => return self.start_over(effects),
            Action::Resume => return self.resume(common.unwrap_or(clean), found.applied, welcome, effects),
            Action::ResumeCopy => return self.resume(common.unwrap_or(clean), found.applied, welcome, effects),
            Action::ResumeCopyAgain => {
                self.forget_copy();
                return self.resume(common.unwrap_or(clean), found.applied, welcome, effects);
            }
            Action::GiveUp => welcome.reason.clone(),
            Action::CloseOlder => format!(
                "the destination lives in epoch {epoch}, this source in {ours}: it is out of date. If this source's volumes \
                 are right, remove the destination's folder of this source, and everything is copied again"
            ),
            Action::CloseFenced => {
                format!("this source was fenced: another side was promoted in epoch {}", self.superblock.fenced_by)
            }
            Action::PartedOlder => format!(
                "the destination holds {newest}, which this source's journal no longer reaches back to (it has {clean} to \
                 {last}): the two have parted. If this source's volumes are right, remove the destination's folder of this \
                 source, and everything is copied again"
            ),
            Action::PartedAhead => format!(
                "the destination holds {newest}, but this source's journal ends at {last}: the two have parted, and the \
                 destination may hold answered writes that are lost here. Promote it; or, if this source's volumes are \
                 right all the same, remove the destination's folder of this source, and everything is copied again"
            ),
            Action::PartedForked => format!(
                "the destination holds {newest}, which isn't in this source's journal (it has {clean} to {last}): the two \
                 have parted. If this source's volumes are right, remove the destination's folder of this source, and \
                 everything is copied again"
            ),
            Action::PartedApplied => format!(
                "the destination applied {}, which this source never called complete (it has {clean} to {last}): the two \
                 have parted. If this source's volumes are right, remove the destination's folder of this source, and \
                 everything is copied again",
                welcome.applied
            ),
        };
        effects.push(Effect::ClosePeer(close));
    }

    /// What a destination applied, against what it was told to.
    fn compare_applied(&self, applied: Mark) -> Applied {
        let same = |ours: Mark| (ours.seq, ours.digest) == (applied.seq, applied.digest);
        let clean = self.superblock.clean;
        let half = &self.halves[applied.fill.half()];
        match applied.fill.cmp(&clean.fill) {
            Ordering::Less => Applied::Behind,
            Ordering::Equal if same(clean) => Applied::Fits,
            Ordering::Greater if half.fill == applied.fill && half.state >= State::Sealed && same(half.last) => {
                Applied::Fits
            }
            _ => Applied::Other,
        }
    }

    /// The destination holds nothing.
    fn start_over(&mut self, effects: &mut Vec<Effect>) {
        self.forget_copy();
        self.halves.iter_mut().for_each(|half| half.applied = false);
        let clean = self.superblock.clean;
        self.start_link(Signal::Restart { at: clean }, None, clean, effects);
        self.start_copy(effects);
        self.commit(effects);
    }

    /// The destination goes on from a common boundary.
    fn resume(&mut self, common: Mark, applied: Applied, welcome: &Welcome, effects: &mut Vec<Effect>) {
        let clean = self.superblock.clean;
        self.handle_applied(welcome.applied, effects);
        // This source went on without it for a while, or it has lost a state: it holds that fill, but no signal follows
        // for what is clean here.
        let again = (applied == Applied::Behind).then_some(Signal::Sync { last: clean, whole: welcome.whole });
        self.start_link(Signal::Resume { common }, again, common, effects);
        self.superblock.whole = welcome.whole;
        if !self.superblock.whole && self.copier.is_none() && self.whole_from.is_none() {
            self.start_copy(effects);
        }
        self.commit(effects);
    }

    /// Whatever was copied so far doesn't count any more, and no fill makes the image whole before all is copied.
    fn forget_copy(&mut self) {
        self.superblock.whole = false;
        self.superblock_dirty = true;
        self.copier = None;
        self.whole_from = None;
        for half in &mut self.halves {
            half.whole = false;
            half.copied.fill(0);
        }
    }

    /// Whether a boundary is one of ours.
    fn knows(&self, mark: Mark) -> bool {
        let same = |ours: Mark| ours.seq == mark.seq && ours.digest == mark.digest;
        let live = self.halves.iter().filter(|half| half.state != State::Clean);
        same(self.superblock.clean)
            || live
                .flat_map(|half| half.frames.binary_search_by_key(&mark.seq, |f| f.mark.seq).map(|i| &half.frames[i]))
                .any(|frame| same(frame.mark))
    }

    fn start_link(&mut self, first: Signal, again: Option<Signal>, common: Mark, effects: &mut Vec<Effect>) {
        // From the oldest fill that isn't clean: its sync signal may have been lost with the last connection.
        let fill = self.superblock.clean.fill.next();
        self.link = Link::Up { first: Some(first), again, resumed: common.seq, fill, index: 0 };
        self.acked = common.seq;
        self.commit(effects);
    }

    /// The connection is gone. Writes wait from now on.
    pub fn handle_link_down(&mut self) {
        self.link = Link::Down;
    }

    /// What to send next, in order.
    pub fn next_to_send(&mut self) -> Option<Send> {
        let Link::Up { first, again, resumed, fill, index } = &mut self.link else { return None };
        // That a copy starts over must be durable here before the destination acts on it: a source that forgot it in a
        // crash would call an image whole that never was copied.
        let durable = !self.superblock_dirty && !self.superblock_writing;
        match first {
            Some(Signal::Restart { .. }) if !durable => return None,
            _ => {}
        }
        if let Some(signal) = first.take().or_else(|| again.take()) {
            return Some(Send::Block(signal.encode()));
        }
        loop {
            let half = &self.halves[fill.half()];
            if half.fill != *fill || half.state == State::Clean {
                // Clean already while the connection was down, or not opened yet.
                if *fill < self.open {
                    (*fill, *index) = (fill.next(), 0);
                    continue;
                }
                return None;
            }
            if let Some(frame) = half.frames.get(*index) {
                let id = FrameId { fill: *fill, index: *index };
                *index += 1;
                if frame.mark.seq > *resumed {
                    return Some(Send::Frame(id));
                }
                continue;
            }
            // The destination may apply only what can't vanish from our own journal any more, and it must have stored
            // all of it: over this connection, where it had to be sent again.
            if half.state < State::Flushing || self.acked < half.last.seq {
                return None;
            }
            (*fill, *index) = (fill.next(), 0);
            if !half.applied {
                return Some(Send::Block(Signal::Sync { last: half.last, whole: half.whole }.encode()));
            }
        }
    }

    /// The destination reports.
    pub fn handle_report(&mut self, report: Report, effects: &mut Vec<Effect>) {
        match report {
            Report::Stored(seq) if seq > self.last.seq => {
                effects.push(Effect::ClosePeer(format!(
                    "the destination acknowledges record {seq}, which was never sent"
                )));
            }
            Report::Stored(seq) => {
                self.acked = self.acked.max(seq);
                self.commit(effects);
            }
            Report::Applied(mark) => self.handle_applied(mark, effects),
            Report::Fenced(epoch) => self.handle_fenced(epoch, effects),
            Report::Settled(_) | Report::Pong | Report::Sums { .. } => {}
        }
    }

    fn handle_applied(&mut self, mark: Mark, effects: &mut Vec<Effect>) {
        // A fill that is clean here was applied before; a report that was late says nothing new.
        if mark.fill <= self.superblock.clean.fill {
            return;
        }
        // Only the very end of a fill that is complete here may count: the report acknowledges all before it, too.
        let ours = self.halves.iter().find(|half| half.state != State::Clean && half.fill == mark.fill);
        if ours.is_none_or(|half| half.state < State::Sealed || half.last != mark) {
            return effects.push(Effect::ClosePeer(format!(
                "the destination applied {mark}, but this source has {}: the two have parted",
                ours.map_or(self.last, |half| half.last)
            )));
        }
        for half in self.halves.iter_mut().filter(|half| half.state >= State::Sealed && half.fill <= mark.fill) {
            half.applied = true;
        }
        self.acked = self.acked.max(mark.seq);
        self.verified = self.verified.max(mark.seq);
    }

    fn handle_fenced(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) {
        // Each promote raises the epoch: one of an earlier epoch, or of none, takes nothing from this source.
        if epoch <= self.superblock.epoch {
            return effects.push(Effect::ClosePeer(format!(
                "the destination says that this source is fenced by epoch {epoch}, but it lives in epoch {}",
                self.superblock.epoch
            )));
        }
        if !self.fenced() {
            self.superblock.fenced_by = epoch;
            self.superblock_dirty = true;
            self.write_superblock(effects);
        }
        self.link = Link::Down;
        effects.push(Effect::Fenced(epoch));
    }
}
