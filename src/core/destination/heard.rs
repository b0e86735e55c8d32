//! What the source said of itself, and what a promote may lack by it.

use super::super::policy::OnDisconnect;
use super::super::recovery::warrant::{Found, Held, Image, Lease, Policy, Word};
use super::Destination;
use crate::canary::{Bug, sings};
use crate::format::ids::Seq;
use crate::format::ping::{Ping, Standing};
use crate::format::superblock::Phase;
use std::time::Duration;

/// The moment as a pong tells it.
pub(super) fn stamp(now: Duration) -> u64 {
    now.as_millis() as u64
}

/// What a source said of itself in this run of the destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    last: Option<Ping>,
    /// Whether that was over the connection that there is, or was last.
    counts: bool,
    /// It was said no earlier.
    said_at: Duration,
}

impl Heard {
    /// There is a new connection: what was said over another one binds a source no longer that hears of it.
    pub(super) fn meet(&mut self, now: Duration) {
        (self.counts, self.said_at) = (false, now);
    }

    /// The source pings. It may have done so long ago: only a pong that it echoes, or the welcome, shows since when.
    pub(super) fn take(&mut self, now: Duration, ping: Ping) {
        if sings(Bug::LeaseFromReceipt) {
            self.said_at = now;
        }
        let echo = Duration::from_millis(ping.echo);
        if echo <= now {
            self.said_at = self.said_at.max(echo);
        }
        (self.last, self.counts) = (Some(ping), true);
    }

    /// The last record that it had answered.
    pub fn answered(&self) -> Seq {
        self.last.map_or(Seq(0), |ping| ping.answered)
    }

    /// Whether it answered writes alone.
    pub fn alone(&self) -> bool {
        self.last.is_some_and(|ping| ping.standing == Standing::Alone)
    }

    /// What it said last over the connection that there is, or was last.
    pub fn word(&self) -> Option<Ping> {
        self.last.filter(|_| self.counts)
    }

    /// When a source that said that it is bound, with the policy `continue`, may begin to answer writes alone: at the
    /// earliest, whatever time words take. Two clocks run unequally; an hundredth is more than they do.
    pub fn lease(&self) -> Option<Duration> {
        let ping = self.word().filter(|ping| ping.standing == Standing::Bound)?;
        let timeout = Duration::from_millis(ping.timeout_ms.into());
        (ping.on_disconnect == OnDisconnect::Continue).then(|| self.said_at + timeout - timeout / 100)
    }
}

impl Destination {
    /// What is known of how a promote's image would compare to what the source answered.
    pub fn warrant(&self, now: Duration) -> Found {
        let word = self.heard.word();
        Found {
            image: match self.superblock().staging.phase {
                _ if !self.promotable() => Image::Partial,
                Phase::Staging => Image::Base,
                Phase::Direct | Phase::Draining => Image::Newest,
            },
            word: match word.map(|ping| ping.standing) {
                None => Word::Never,
                Some(Standing::Loose) => Word::Loose,
                Some(Standing::Alone) => Word::Alone,
                Some(Standing::Bound) => Word::Bound,
                Some(Standing::Ended) => Word::Ended,
            },
            held: if self.stored.seq >= self.heard.answered() { Held::All } else { Held::Less },
            policy: match word.map(|ping| ping.on_disconnect) {
                Some(OnDisconnect::Stall | OnDisconnect::Fail) => Policy::Waits,
                Some(OnDisconnect::Continue) | None => Policy::GoesOn,
            },
            lease: if self.heard.lease().is_some_and(|until| now < until) { Lease::Runs } else { Lease::Over },
        }
    }
}
