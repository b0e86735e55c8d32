//! A planned switchover: the source stops taking writes, has all of them answered, and then hands over.
//!
//! Until the word has gone it can still go back. Once it has, only the destination knows whether it was promoted: the source
//! answers no write any more before it has met it again, and is fenced, or goes on as if nothing had been.

use super::super::policy::Mode;
use super::Source;
use std::time::Duration;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandOver {
    /// No write is taken; what was taken is being answered, until then at the latest.
    Draining(Duration),
    /// The word may be sent.
    Due,
    /// The word was sent.
    Sent,
}

impl Source {
    /// Begins to hand over. An error says why that can't be.
    pub fn handle_hand_over(&mut self) -> Result<(), &'static str> {
        if !self.shape.mirrored {
            return Err("there is no destination to hand over to");
        }
        if self.hand_over.is_some() {
            return Err("it is handing over already");
        }
        if self.mode() != Mode::Together || !self.is_together() || !self.is_steady() {
            return Err("the two aren't in step: wait until status says mirroring");
        }
        if !self.superblock.whole || self.copier.is_some() {
            return Err("the destination has no whole copy yet, or a copy is under way: wait for its end");
        }
        self.hand_over = Some(HandOver::Draining(self.clock.now + self.shape.policy.timeout));
        Ok(())
    }

    /// Whether it is handing over: no write is taken then.
    pub fn hands_over(&self) -> bool {
        self.hand_over.is_some()
    }

    /// Takes it further; gives up where it takes too long, or the connection is lost before the word has gone.
    pub(super) fn turn_hand_over(&mut self) {
        match self.hand_over {
            Some(HandOver::Draining(until)) => {
                let answered = self.queue.is_empty() && self.flights.is_empty() && self.acked >= self.last.seq;
                if self.mode() != Mode::Together || self.clock.now >= until {
                    self.hand_over = None;
                } else if answered && self.sends_newest() {
                    self.hand_over = Some(HandOver::Due);
                }
            }
            Some(HandOver::Due) if !self.link.is_up() => self.hand_over = None,
            _ => {}
        }
    }

    /// There is a welcome in this very epoch: the destination wasn't promoted.
    pub(super) fn hand_over_refused(&mut self) {
        self.hand_over = None;
    }

    /// When it is given up.
    pub(super) fn hand_over_deadline(&self) -> Option<Duration> {
        match self.hand_over {
            Some(HandOver::Draining(until)) => Some(until),
            _ => None,
        }
    }
}
