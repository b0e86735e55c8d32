//! The destination: what it is sent, and what it says.

use super::Driver;
use nbd_mirror::core::Durability;
use nbd_mirror::core::source::{Effect, Send};
use nbd_mirror::format::ids::{Fill, Mark, Seq};
use nbd_mirror::format::ping::Standing;
use nbd_mirror::format::wire::{Report, Signal, Welcome};

/// What was sent.
pub enum Sent {
    Frame(Mark),
    Signal(Signal),
}

impl Driver {
    /// The next thing that is sent, if there is a connection.
    pub fn next_sent(&mut self) -> Option<Sent> {
        if !self.peer {
            return None;
        }
        match self.core.next_to_send()? {
            Send::Frame(id) => {
                let mark = self.core.frame_pieces(id, &mut Vec::new()).expect("the frame to be sent").mark;
                let last = self.sent.expect("the source resumes first");
                assert!(mark.seq > last && self.marks.contains(&mark), "out of order: {mark} after {last}");
                let before = self.marks.iter().rposition(|before| before.seq < mark.seq).expect("one before it");
                assert!(self.marks[before].seq == last || self.lied, "a frame is left out between {last} and {mark}");
                assert!(mark.fill.0 <= self.room.0 + 2, "the destination has no room for it");
                self.sent = Some(mark.seq);
                Some(Sent::Frame(mark))
            }
            Send::Block(block) => {
                let signal = Signal::decode(&block).expect("a signal of ours");
                self.signalled(signal);
                Some(Sent::Signal(signal))
            }
        }
    }

    fn signalled(&mut self, signal: Signal) {
        match signal {
            Signal::Resume { common } => {
                assert!(self.sent.is_none() && self.settling.is_none() && self.is_ours(common));
                self.sent = Some(common.seq);
            }
            Signal::Sync { last, whole } => {
                assert!(self.ends.contains(&last) && self.sent.is_some_and(|sent| sent >= last.seq));
                assert!(last.seq <= self.core.committed() && last.seq <= self.acked);
                assert!(!whole || self.core.copier().is_none_or(|copier| copier.tally().total_bytes > 0));
                if self.durability == Durability::Flush {
                    let frames = self.frames.iter().filter(|frame| frame.mark.seq <= last.seq);
                    assert!(frames.into_iter().all(|frame| frame.stable), "signalled before it is stable");
                }
            }
            Signal::TakeOver { at } => {
                assert!(
                    at.seq == self.core.committed() && at.seq == self.core.last(),
                    "handed over before all is answered"
                );
            }
            Signal::Settle { common } => {
                assert!(self.sent.is_none() && self.settling.is_none());
                self.settling = Some(common);
            }
            Signal::Restart { at } => {
                assert!(self.sent.is_none());
                let clean = self.core.superblock().clean;
                let told = |copy: &nbd_mirror::format::superblock::Superblock| copy.clean == at && !copy.whole;
                assert!(at == clean && self.copies.iter().all(told), "begun anew before that is durable");
                let stored = self.map.load(self.core.superblock());
                assert_eq!(stored.grains().bytes(), self.core.dirty_bytes(), "begun anew before the bitmap is durable");
                self.beginning = false;
                (self.sent, self.acked, self.applied, self.room) = (Some(at.seq), at.seq, at.fill, at.fill);
            }
            Signal::Ping(ping) => {
                assert!(ping.answered >= self.core.committed());
                let alone = self.core.mode() == nbd_mirror::core::policy::Mode::Alone;
                assert_eq!(ping.standing == Standing::Alone, alone);
                assert_eq!(ping.on_disconnect, self.core.policy().on_disconnect);
            }
            Signal::Ask { id, volume, offset, length } => {
                assert!(self.sent.is_some(), "the source resumes first");
                self.asked(id, volume, offset, length);
            }
        }
    }

    /// Sends so much.
    pub fn send(&mut self, count: usize) {
        for _ in 0..count.max(1) {
            if self.next_sent().is_none() {
                return;
            }
        }
    }

    /// The connection is gone.
    pub fn disconnect(&mut self) {
        self.peer = false;
        (self.sent, self.settling, self.beginning, self.lied) = (None, None, false, false);
        self.core.handle_link_down(&mut self.effects);
        self.drop_questions();
    }

    /// A connection waits until the core can take it.
    pub fn connect(&mut self, welcome: Welcome) {
        if self.mirrored {
            self.next_peer = Some(welcome);
        }
    }

    /// Takes the connection that waits.
    pub fn admit(&mut self) {
        if self.next_peer.is_some() && self.peer {
            self.disconnect();
        }
        if !self.core.ready_to_meet() {
            return;
        }
        let Some(welcome) = self.next_peer.take() else { return };
        let (clean, before) = (self.core.superblock().clean, self.effects.len());
        let reaches = |mark: &&Mark| self.is_ours(**mark) && mark.seq >= clean.seq;
        let common = welcome.boundaries.iter().rev().find(reaches).map(|mark| mark.seq);
        self.peer = true;
        self.core.handle_welcome(&welcome, &mut self.effects);
        let closes = |effect: &Effect| matches!(effect, Effect::ClosePeer(_) | Effect::Fenced(_));
        if self.effects[before..].iter().any(closes) {
            // What it says of itself may count until it is closed.
            self.ack(common.unwrap_or_default());
            self.note_applied(welcome.applied);
            return;
        }
        self.held_back = false;
        self.room = if welcome.fresh { clean.fill } else { welcome.applied.fill };
        match common {
            _ if welcome.fresh => {
                self.beginning = true;
                (self.acked, self.applied) = (clean.seq, clean.fill);
            }
            Some(common) => {
                (self.acked, self.applied) = (Seq(0), welcome.applied.fill);
                self.ack(common);
                self.note_applied(welcome.applied);
            }
            None => {
                // It goes back to where it says that it is.
                self.beginning = true;
                let newest = welcome.boundaries.last().copied().unwrap_or(welcome.applied);
                (self.acked, self.applied) = (self.acked.min(newest.seq), Fill(0));
            }
        }
    }

    fn ack(&mut self, seq: Seq) {
        self.acked = self.acked.max(seq);
        self.acked_ever = self.acked_ever.max(seq);
    }

    fn is_ours(&self, mark: Mark) -> bool {
        self.marks.iter().any(|ours| (ours.seq, ours.digest) == (mark.seq, mark.digest))
    }

    fn note_applied(&mut self, mark: Mark) {
        if self.ends.contains(&mark) {
            self.applied = self.applied.max(mark.fill);
            self.ack(mark.seq);
        }
    }

    /// A report as it comes over the wire; one that can't be read ends the connection.
    pub fn receive(&mut self, report: Report) {
        match Report::decode(&report.encode()) {
            Ok(report) => self.report(report),
            Err(_) => self.disconnect(),
        }
    }

    /// A report.
    pub fn report(&mut self, report: Report) {
        if !self.peer {
            return;
        }
        match report {
            // What it says before it is told where to begin counts for nothing.
            Report::Stored(_) | Report::Applied(_) if self.beginning => {}
            Report::Stored(seq) if seq <= self.core.last() => self.ack(seq),
            Report::Applied(mark) => {
                self.room = self.room.max(mark.fill);
                self.lied |= self.sent.is_none_or(|sent| mark.seq > sent);
                self.note_applied(mark);
            }
            Report::Settled(mark) if self.settling == Some(mark) => {
                let clean = self.core.superblock().clean;
                (self.settling, self.acked, self.applied) = (None, clean.seq, clean.fill);
            }
            _ => {}
        }
        self.core.handle_report(report, &mut self.effects);
    }
}
