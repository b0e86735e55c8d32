//! What the destination is sent and what it reports.

use super::super::half::State;
use super::handover::HandOver;
use super::{Effect, FrameId, Source};
use crate::format::block::Block;
use crate::format::ids::{Epoch, Fill, Mark, Seq};
use crate::format::wire::{Report, Signal};

/// Why a verify has no result where the connection is gone.
pub(super) const LOST: &str = "the connection to the destination was lost";

/// The connection to the destination.
#[derive(Debug)]
pub enum Link {
    /// There is none.
    Down,
    /// The destination drops what it holds beyond a common boundary and applies the rest; then the order begins anew.
    Settling {
        /// The boundary.
        common: Mark,
        /// Whether it was told.
        told: bool,
    },
    /// Frames are being sent.
    Up {
        /// What must be sent before anything else.
        first: Option<First>,
        /// A sync signal that follows it, for a fill that is clean here already.
        again: Option<Signal>,
        /// The last record that the destination had when the connection was made.
        resumed: Seq,
        /// The fill that is being sent.
        fill: Fill,
        /// Its next frame.
        index: usize,
        /// The last record that was sent, or that the destination had.
        sent: Seq,
        /// The last fill that the destination has done with.
        applied: Fill,
    },
}

/// The first word over a connection.
#[derive(Debug)]
pub enum First {
    /// This signal.
    Signal(Signal),
    /// The order begins anew at the clean mark as it is when that is sent.
    Restart,
}

impl Link {
    /// Whether there is a connection over which frames go.
    pub fn is_up(&self) -> bool {
        matches!(self, Link::Up { .. })
    }

    /// Whether the order will begin anew, and the destination wasn't told yet.
    fn begins_anew(&self) -> bool {
        matches!(self, Link::Settling { .. }) || self.waits_for_map()
    }

    /// Whether nothing can be sent before the dirty bitmap is stored.
    pub(super) fn waits_for_map(&self) -> bool {
        matches!(self, Link::Up { first: Some(First::Restart), .. })
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
    /// Frames go over the connection from now on, those behind record `resumed`.
    pub(super) fn link_up(&mut self, first: First, again: Option<Signal>, resumed: Seq, applied: Fill) {
        // From the oldest fill that isn't clean: its sync signal may have been lost with the last connection.
        let fill = self.superblock.clean.fill.next();
        self.link = Link::Up { first: Some(first), again, resumed, fill, index: 0, sent: resumed, applied };
    }

    /// The connection is gone.
    pub fn handle_link_down(&mut self, effects: &mut Vec<Effect>) {
        self.link = Link::Down;
        self.clock.ping = false;
        self.drop_copy(LOST, effects);
    }

    /// What to send next, in order.
    pub fn next_to_send(&mut self) -> Option<Send> {
        if self.clock.word.has_ended() {
            return None;
        }
        if self.clock.ping && !matches!(self.link, Link::Down) {
            self.clock.ping = false;
            return Some(Send::Block(Signal::Ping(self.next_word()).encode()));
        }
        // That the order begins anew, and what is dirty, must be durable here before the destination acts on it: a source
        // that forgot it in a crash would call an image whole that never was copied. And no half may become clean then.
        let written = !self.superblock_dirty && !self.superblock_writing && self.stale_copies == 0;
        let durable = written && self.dirty.is_stored() && self.ready_to_meet();
        let clean = self.superblock.clean;
        let (first, again, resumed, fill, index, sent, applied) = match &mut self.link {
            Link::Down => return None,
            Link::Settling { told: true, .. } => return None,
            Link::Settling { common, told } => {
                *told = true;
                return Some(Send::Block(Signal::Settle { common: *common }.encode()));
            }
            Link::Up { first, again, resumed, fill, index, sent, applied } => {
                (first, again, resumed, fill, index, sent, applied)
            }
        };
        match first.take() {
            Some(First::Restart) if !durable => {
                *first = Some(First::Restart);
                return None;
            }
            Some(First::Restart) => {
                (*resumed, *sent, *fill, *index) = (clean.seq, clean.seq, clean.fill.next(), 0);
                (self.acked, *applied) = (clean.seq, clean.fill);
                self.sent = self.sent.max(clean.seq);
                return Some(Send::Block(Signal::Restart { at: clean }.encode()));
            }
            Some(First::Signal(signal)) => return Some(Send::Block(signal.encode())),
            None => {}
        }
        if let Some(signal) = again.take() {
            return Some(Send::Block(signal.encode()));
        }
        if self.hand_over == Some(HandOver::Due) {
            self.hand_over = Some(HandOver::Sent);
            return Some(Send::Block(Signal::TakeOver { at: self.last }.encode()));
        }
        if let Some(question) = self.copier.as_mut().and_then(|copier| copier.next_question(*sent)) {
            let (id, length) = (question.number as u64, question.length as u32);
            let ask = Signal::Ask { id, volume: question.volume, offset: question.offset, length };
            return Some(Send::Block(ask.encode()));
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
                // A half that is clean here may not be there: this source went on alone for a while.
                if fill.0 > applied.0 + 2 {
                    return None;
                }
                let id = FrameId { fill: *fill, index: *index };
                *index += 1;
                if frame.mark.seq > *resumed {
                    *sent = frame.mark.seq;
                    self.sent = self.sent.max(*sent);
                    return Some(Send::Frame(id));
                }
                continue;
            }
            // The destination may apply only what can't vanish from our own journal any more, and it must have stored
            // all of it: over this connection, where it had to be sent again.
            if half.state < State::Flushing || self.acked < half.last.seq {
                return None;
            }
            if half.whole && !self.superblock.whole && !written {
                return None;
            }
            (*fill, *index) = (fill.next(), 0);
            if !half.applied {
                return Some(Send::Block(Signal::Sync { last: half.last, whole: half.whole }.encode()));
            }
        }
    }

    /// Whether what is sent next is in the fill that is open.
    pub(super) fn sends_newest(&self) -> bool {
        match &self.link {
            Link::Up { first: None, fill, .. } => *fill >= self.open || self.last.seq == self.acked,
            _ => false,
        }
    }

    /// The destination reports.
    pub fn handle_report(&mut self, report: Report, effects: &mut Vec<Effect>) {
        self.clock.heard = true;
        match report {
            // Neither goes before the word that tells it where the order begins: it may be about what is there no more.
            Report::Stored(_) | Report::Applied(_) if self.link.begins_anew() => effects.push(Effect::ClosePeer(
                "the destination says what it holds though the order has yet to begin anew".into(),
            )),
            Report::Stored(seq) if seq > self.last.seq => {
                effects.push(Effect::ClosePeer(format!(
                    "the destination acknowledges record {seq}, which was never sent"
                )));
            }
            Report::Stored(seq) => {
                self.clock.proved |= seq > self.acked;
                self.acked = self.acked.max(seq);
            }
            Report::Applied(mark) => self.handle_applied(mark, effects),
            Report::Fenced(epoch) => self.handle_fenced(epoch, effects),
            Report::Settled(mark) => match self.link {
                Link::Settling { common, told: true } if common == mark => self.begin_anew(effects),
                _ => effects
                    .push(Effect::ClosePeer(format!("the destination settled at {mark}, which it wasn't asked for"))),
            },
            Report::Pong { stamp } => self.clock.word.handle_pong(stamp),
            Report::Sums { .. } => {}
        }
    }

    pub(super) fn handle_applied(&mut self, mark: Mark, effects: &mut Vec<Effect>) {
        if let Link::Up { applied, .. } = &mut self.link {
            *applied = (*applied).max(mark.fill);
        }
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

    pub(super) fn handle_fenced(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) {
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
            // It waits for no bitmap: nothing is copied from here any more.
            self.map_first = false;
            self.write_superblock(effects);
        }
        self.link = Link::Down;
        effects.push(Effect::Fenced(epoch));
    }
}
