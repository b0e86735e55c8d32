//! What the destination is told of how this source stands, and how long that binds it.
//!
//! A destination judges by the last word that it heard what a promote may lack. So a word must hold also where it was the
//! last to arrive, and what came after it was lost:
//!
//! - *Bound* says that nothing is answered without the destination before the timeout has run, counted from when it was
//!   said. Going alone takes the timeout from when the connection ceased to be of use, which is later; if the timeout was
//!   made shorter since, the word's still counts ([`Word::until`]).
//! - By another policy than `continue` it says that for good. Where the policy becomes `continue`, this source doesn't go
//!   alone before a pong shows that the destination knows, or the two meet again, or an operator says so once more while
//!   there is no connection.
//! - It outlives this run: it is said only when the superblock says durably what makes a start wait for the destination.
//! - *Ended* is said when nothing is answered any more.
//!
//! At each meeting the destination forgets what it was told; it does so before this source hears the welcome.

use super::{Link, Source};
use crate::canary::{Bug, sings};
use crate::core::policy::OnDisconnect;
use crate::format::ids::Seq;
use crate::format::ping::{Ping, Standing};
use std::time::Duration;

/// How far this source has bound itself.
#[derive(Debug, Default)]
pub(super) struct Word {
    /// Pings sent, and pongs heard, over this connection.
    pings: u64,
    pongs: u64,
    /// The stamp of the last pong.
    echo: u64,
    /// Whether a start after a crash at this moment would wait for the destination, and nothing is answered alone.
    bound: bool,
    /// It doesn't go alone by itself before.
    until: Duration,
    /// The destination may believe that it doesn't go alone at all, until so many pongs are heard.
    forever: Option<u64>,
    /// What was said last over this connection.
    told: Option<Standing>,
    /// The last record that was found at the start.
    found: Seq,
    ending: Ending,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Ending {
    #[default]
    Not,
    /// That is to be said.
    Due,
    /// It was the ping of this number.
    Said(u64),
}

impl Word {
    /// A start found records up to this one.
    pub fn find(&mut self, found: Seq) {
        self.found = found;
    }

    /// The two have met.
    pub fn begin(&mut self) {
        (self.pings, self.pongs, self.echo) = (0, 0, 0);
        (self.forever, self.told) = (None, None);
    }

    /// An operator's order to a source that has no connection.
    pub fn release(&mut self) {
        self.forever = None;
        self.until = Duration::ZERO;
    }

    /// The destination answered the oldest ping that it hadn't.
    pub fn handle_pong(&mut self, stamp: u64) {
        self.pongs += 1;
        self.echo = stamp;
        if self.forever.is_some_and(|pongs| self.pongs >= pongs) {
            self.forever = None;
        }
    }

    /// When it may go alone by itself at the earliest; never, where that isn't for time to decide.
    pub fn until(&self) -> Option<Duration> {
        (self.forever.is_none() || sings(Bug::ForgetWord)).then_some(self.until)
    }

    /// Whether it may go alone by itself.
    pub fn allows(&self, now: Duration) -> bool {
        self.until().is_some_and(|until| now >= until)
    }

    /// Whether it is, or will be, said that this source ends.
    pub fn is_ending(&self) -> bool {
        self.ending != Ending::Not
    }

    /// Whether the last word was said.
    pub fn has_ended(&self) -> bool {
        matches!(self.ending, Ending::Said(_))
    }
}

impl Source {
    /// This source ends: no record comes any more, and nobody hears an answer. False: there is nobody to be told, or
    /// nothing good to be said.
    pub fn handle_end(&mut self) -> bool {
        let told = !matches!(self.link, Link::Down) && !self.fenced() && self.clock.word.bound;
        if told && self.clock.word.ending == Ending::Not {
            self.clock.word.ending = Ending::Due;
            self.clock.ping = true;
        }
        told
    }

    /// Whether the destination knows that this source ends, or there is no way to tell it any more.
    pub fn has_ended(&self) -> bool {
        match self.clock.word.ending {
            _ if matches!(self.link, Link::Down) => true,
            Ending::Said(ping) => self.clock.word.pongs >= ping,
            Ending::Not | Ending::Due => false,
        }
    }

    /// Whether it doesn't go alone since the destination may believe that it never does.
    pub(super) fn waits_for_its_word(&self) -> bool {
        self.shape.policy.on_disconnect == OnDisconnect::Continue
            && !self.link.is_up()
            && !self.clock.alone
            && self.clock.word.forever.is_some()
    }

    /// Once a turn: what a start would do after a crash at this moment. Where the superblock has said it once, what is
    /// written over it later says it as well, as long as this source believes it.
    pub(super) fn bind(&mut self) {
        let superblock = &self.superblock;
        let waits =
            !self.clock.alone && self.is_together() && (superblock.whole || superblock.lacking_since_unix_s != 0);
        let written = !self.superblock_dirty && !self.superblock_writing && self.stale_copies == 0;
        self.clock.word.bound = self.shape.mirrored && waits && (self.clock.word.bound || written);
        // Whoever judges by the last word should have heard this one.
        self.clock.ping |= self.clock.word.told.is_some_and(|told| told != self.standing());
    }

    fn standing(&self) -> Standing {
        let waits = self.shape.policy.on_disconnect != OnDisconnect::Continue;
        match self.clock.word.ending {
            Ending::Due if self.clock.word.bound => Standing::Ended,
            Ending::Said(_) => Standing::Ended,
            _ if self.clock.alone => Standing::Alone,
            _ if self.clock.word.bound && (waits || self.is_steady_since()) => Standing::Bound,
            _ => Standing::Loose,
        }
    }

    /// The next ping.
    pub(super) fn next_word(&mut self) -> Ping {
        let policy = self.shape.policy;
        let waits = policy.on_disconnect != OnDisconnect::Continue;
        let (now, standing) = (self.clock.now, self.standing());
        let word = &mut self.clock.word;
        word.pings += 1;
        word.told = Some(standing);
        if word.ending == Ending::Due {
            word.ending = Ending::Said(word.pings);
        }
        if standing == Standing::Bound && waits {
            word.forever = Some(u64::MAX);
        } else if word.forever == Some(u64::MAX) {
            word.forever = Some(word.pings);
        }
        if standing == Standing::Bound {
            word.until = word.until.max(now + policy.timeout);
        }
        let found = word.found;
        let echo = word.echo;
        Ping {
            // What was found at the start may have been answered by a run before, alone even.
            answered: self.committed.max(found),
            standing,
            on_disconnect: policy.on_disconnect,
            timeout_ms: u32::try_from(policy.timeout.as_millis()).unwrap_or(u32::MAX),
            echo,
        }
    }
}
