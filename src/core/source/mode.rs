//! How long the destination may be away or silent, and what becomes of writes then.
//!
//! A source leaves its destination behind only after the policy's timeout, and waits for it again only when it has caught
//! up and the connection has held for a while: longer each time that the two were parted lately. So a link that flaps
//! makes clients wait now and then, but less and less often.
//!
//! That it goes alone is in the superblock. A source that was in step when it ended knows nothing of what came after: the
//! destination may have been promoted. So after a start it waits for the destination, or for the operator's word, before
//! it answers a write alone.

use super::super::policy::{Mode, OnDisconnect, Policy};
use super::frames::release;
use super::handover::HandOver;
use super::word::Word;
use super::{Effect, Link, Shape, Source};
use crate::canary::{Bug, sings};
use crate::core::half::Ticket;
use crate::format::superblock::Superblock;
use std::time::Duration;

/// How long a connection must have held before writes wait for it again, by how often it was lost lately.
const HOLD: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(16), Duration::from_secs(64)];
/// After so long in step, what was before is forgotten.
const FORGIVEN: Duration = Duration::from_secs(600);
/// Pings within the policy's timeout.
const PINGS: u32 = 4;
/// Records that may be on their way to a destination that has caught up.
const CAUGHT_UP: u64 = 4096;

/// When what happened, and what holds since.
#[derive(Debug)]
pub(super) struct Clock {
    /// The time of the last turn.
    pub now: Duration,
    started_unix_s: u64,
    /// Whether writes are answered without the destination.
    pub alone: bool,
    /// Whether the superblock that says that it isn't alone any more is being written.
    returning: bool,
    /// Whether writes get an error.
    pub failing: bool,
    /// Whether it may not go alone, since the destination may have been promoted.
    held_back: bool,
    /// Since when there is no connection that has proved to be of use.
    away_since: Option<Duration>,
    /// Whether the destination has stored something over this connection, if there was anything to be stored.
    pub proved: bool,
    /// Since when there is one.
    up_since: Option<Duration>,
    /// Something was heard since the last turn.
    pub heard: bool,
    heard_at: Duration,
    ping_at: Duration,
    /// Whether a ping is due.
    pub ping: bool,
    pub word: Word,
    /// How often it went alone lately.
    partings: usize,
    together_since: Duration,
    told: Option<Mode>,
}

impl Clock {
    pub fn new(shape: &Shape, superblock: &Superblock) -> Clock {
        Clock {
            now: Duration::ZERO,
            started_unix_s: shape.started_unix_s,
            alone: false,
            returning: false,
            failing: false,
            held_back: !sings(Bug::AloneAfterStart)
                && !superblock.alone
                && (superblock.whole || superblock.lacking_since_unix_s != 0),
            away_since: None,
            proved: false,
            up_since: None,
            heard: false,
            heard_at: Duration::ZERO,
            ping_at: Duration::ZERO,
            ping: false,
            word: Word::default(),
            partings: 0,
            together_since: Duration::ZERO,
            told: None,
        }
    }

    fn unix_s(&self, at: Duration) -> u64 {
        self.started_unix_s + at.as_secs()
    }
}

impl Source {
    /// How it stands.
    pub fn mode(&self) -> Mode {
        match (self.link.is_up(), self.clock.alone) {
            (_, true) => Mode::Alone,
            (_, false) if self.clock.failing => Mode::Failing,
            (true, false) => Mode::Together,
            (false, false) => Mode::Waiting,
        }
    }

    /// The policy that holds.
    pub fn policy(&self) -> Policy {
        self.shape.policy
    }

    /// Whether it may not go alone for not knowing whether its destination was promoted.
    pub fn held_back(&self) -> bool {
        self.clock.held_back || self.waits_for_its_word()
    }

    /// Whether there is a connection that is of use: the destination has stored something over it, if there was anything.
    pub fn is_steady(&self) -> bool {
        self.link.is_up() && self.clock.proved
    }

    /// Whether the time after which it may go alone hasn't begun to run.
    pub(super) fn is_steady_since(&self) -> bool {
        self.is_steady() && self.clock.away_since.is_none()
    }

    /// Whether halves are called clean without the destination. Not at once after a start, nor when a connection is lost
    /// for a moment: as long as the journal reaches back to what the destination has, nothing is to be compared.
    pub(super) fn is_left_alone(&self) -> bool {
        let (clock, timeout) = (&self.clock, self.shape.policy.timeout);
        clock.alone && !self.link.is_up() && clock.away_since.is_some_and(|since| clock.now >= since + timeout)
    }

    /// Whether it is durable that this source isn't alone.
    pub(super) fn is_together(&self) -> bool {
        !self.superblock.alone && !self.clock.returning
    }

    /// Whether new writes are to be refused with an error.
    pub fn failing(&self) -> bool {
        self.clock.failing
    }

    /// When the destination was heard last.
    pub fn heard_at(&self) -> Duration {
        self.clock.heard_at
    }

    /// The destination may be away for another time from now on.
    pub fn handle_timeout(&mut self, timeout: Duration) {
        self.shape.policy.timeout = timeout;
        self.clock.ping = true;
    }

    /// Another policy holds from now on. To go on alone releases a source that waits, whatever for.
    pub fn handle_policy(&mut self, policy: Policy) {
        self.shape.policy = policy;
        self.clock.ping = true;
        match policy.on_disconnect {
            OnDisconnect::Continue => {
                self.clock.held_back = false;
                self.clock.failing = false;
                // The operator's word that the destination wasn't promoted.
                self.hand_over = self.hand_over.filter(|_| self.link.is_up());
                if !self.link.is_up() {
                    // The operator has waited long enough.
                    self.clock.word.release();
                    self.go_alone();
                }
            }
            OnDisconnect::Stall | OnDisconnect::Fail => {
                self.clock.failing = false;
                // What was answered alone stays so, and the superblock says it until the two are in step again.
                self.clock.alone = false;
            }
        }
    }

    /// A source that was alone when it ended goes on so.
    pub(super) fn start_mode(&mut self) {
        if !self.shape.mirrored {
            // Whoever configures a destination later has to know that it lacks what is written now.
            self.superblock.alone = true;
        }
        self.clock.alone =
            self.superblock.alone && self.shape.mirrored && self.shape.policy.on_disconnect == OnDisconnect::Continue;
    }

    /// What happened since the last turn happened now.
    pub(super) fn tick(&mut self, now: Duration) {
        let clock = &mut self.clock;
        clock.now = now;
        if std::mem::take(&mut clock.heard) {
            clock.heard_at = now;
        }
        if self.link.is_up() {
            // One that takes the connection and fails at once, again and again, is as good as away.
            clock.proved |= self.acked >= self.last.seq;
            if clock.proved {
                clock.away_since = None;
            } else {
                clock.away_since.get_or_insert(now);
            }
            clock.up_since.get_or_insert(now);
        } else {
            clock.up_since = None;
            clock.away_since.get_or_insert(now);
        }
        self.bind();
    }

    /// There is a connection from now on.
    pub(super) fn clock_met(&mut self) {
        if std::mem::take(&mut self.clock.held_back) {
            // However long it was waited for: now it is there, and has the whole timeout to prove itself.
            self.clock.away_since = None;
        }
        self.clock.heard = true;
        // What the destination was told over another connection counts for nothing any more.
        self.clock.word.begin();
        self.clock.ping = true;
        self.clock.ping_at = self.clock.now + self.shape.policy.timeout / PINGS;
        self.clock.up_since = None;
        self.clock.proved = false;
    }

    pub(super) fn turn_mode(&mut self, effects: &mut Vec<Effect>) {
        if !self.shape.mirrored {
            return;
        }
        let (now, timeout) = (self.clock.now, self.shape.policy.timeout);
        if !matches!(self.link, Link::Down) {
            if now >= self.clock.heard_at + timeout {
                let silent = (now - self.clock.heard_at).as_secs_f64();
                let reason = format!("the destination has been silent for {silent:.1} s");
                // Until the connection is closed there is nothing more to say of it.
                self.clock.heard_at = now;
                return effects.push(Effect::ClosePeer(reason));
            }
            if now >= self.clock.ping_at {
                self.clock.ping = true;
                self.clock.ping_at = now + timeout / PINGS;
            }
        }
        if self.link.is_up() {
            self.clock.failing &= !self.clock.proved;
            self.return_if_due(effects);
            self.settle_lack();
        } else if self.clock.returning {
            self.clock.returning = false;
            self.superblock.alone = true;
            self.superblock_dirty = true;
        }
        let away = self.clock.away_since.is_some_and(|since| now >= since + timeout);
        if away && !(self.clock.alone && self.link.is_up()) {
            match self.shape.policy.on_disconnect {
                OnDisconnect::Continue if !self.clock.held_back && self.clock.word.allows(now) => self.go_alone(),
                OnDisconnect::Fail => self.clock.failing = !self.clock.alone,
                OnDisconnect::Continue | OnDisconnect::Stall => {}
            }
        }
        if self.clock.failing {
            self.fail_waiting(effects);
        }
        let mode = self.mode();
        if self.clock.told != Some(mode) {
            self.clock.told = Some(mode);
            if mode == Mode::Together {
                self.clock.together_since = now;
            }
            effects.push(Effect::Mode(mode));
        }
    }

    fn go_alone(&mut self) {
        if self.clock.alone || self.clock.word.is_ending() || self.hand_over == Some(HandOver::Sent) {
            return;
        }
        let clock = &mut self.clock;
        let since = clock.away_since.unwrap_or(clock.now);
        if since > clock.together_since + FORGIVEN {
            clock.partings = 0;
        }
        clock.partings += 1;
        (clock.alone, clock.returning) = (true, false);
        if !self.superblock.alone {
            // No answer waits for it: a source that forgot in a crash that it went alone waits for its destination, which
            // loses nothing.
            self.superblock.alone = true;
            if self.superblock.lacking_since_unix_s == 0 && self.superblock.whole {
                self.superblock.lacking_since_unix_s = clock.unix_s(since);
            }
            self.superblock_dirty = true;
        }
    }

    /// How long the connection must have held.
    fn hold(&self) -> Duration {
        HOLD[self.clock.partings.saturating_sub(1).min(HOLD.len() - 1)]
    }

    /// Waits for the destination again once it has caught up and the connection has held for a while.
    fn return_if_due(&mut self, effects: &mut Vec<Effect>) {
        if self.is_together() {
            return;
        }
        if self.clock.returning {
            // It must be durable first: a source that took itself for alone after a crash would go on without a
            // destination that was promoted meanwhile.
            if !self.superblock_dirty && !self.superblock_writing && self.stale_copies == 0 {
                (self.clock.alone, self.clock.returning) = (false, false);
            }
            return;
        }
        let caught_up = self.sends_newest() && self.last.seq.0 - self.acked.0.min(self.last.seq.0) <= CAUGHT_UP;
        let held = self.clock.up_since.is_some_and(|since| self.clock.now >= since + self.hold());
        // One that stores nothing is as good as away: it would be left behind again at once. By another policy writes wait
        // already.
        if !self.clock.alone || (caught_up && held && self.clock.proved) {
            self.clock.returning = true;
            self.superblock.alone = false;
            self.superblock_dirty = true;
            self.write_superblock(effects);
        }
    }

    /// The destination lacks nothing any more that was answered, once it has a whole copy, has caught up and is waited for.
    pub(super) fn settle_lack(&mut self) {
        let has_all = self.link.is_up() && self.superblock.whole && self.acked >= self.committed;
        if has_all && self.is_together() && self.superblock.lacking_since_unix_s != 0 {
            self.superblock.lacking_since_unix_s = 0;
            self.superblock_dirty = true;
        }
    }

    /// The destination's copy stops being whole: from now on it lacks what was answered since.
    pub(super) fn note_lack(&mut self) {
        if self.superblock.lacking_since_unix_s == 0 {
            self.superblock.lacking_since_unix_s = self.clock.unix_s(self.clock.now).max(1);
            self.superblock_dirty = true;
        }
    }

    /// Answers everything that waits with an error. What has a place in the order already keeps it.
    fn fail_waiting(&mut self, effects: &mut Vec<Effect>) {
        for entry in self.queue.drain(..) {
            if entry.ticket != Ticket::NONE {
                effects.push(Effect::Fail(entry.ticket));
            }
            release(&[entry], effects);
        }
        (self.queued_bytes, self.queued_flushes) = (0, 0);
        for flight in &self.flights {
            let half = &mut self.halves[flight.id.fill.half()];
            let entries = half.frames[flight.id.index].entries.clone();
            for entry in half.entries[entries].iter_mut().filter(|entry| entry.ticket != Ticket::NONE) {
                effects.push(Effect::Fail(std::mem::replace(&mut entry.ticket, Ticket::NONE)));
            }
        }
    }

    pub(super) fn mode_deadline(&self) -> Option<Duration> {
        if !self.shape.mirrored {
            return None;
        }
        let (clock, policy) = (&self.clock, self.shape.policy);
        let linked = !matches!(self.link, Link::Down);
        let silent = linked.then_some(clock.heard_at + policy.timeout);
        let ping = linked.then_some(clock.ping_at);
        let away = match (clock.away_since, policy.on_disconnect) {
            (Some(since), OnDisconnect::Continue) if !clock.alone && !clock.held_back => {
                clock.word.until().map(|until| until.max(since + policy.timeout))
            }
            (Some(since), OnDisconnect::Fail) if !clock.alone && !clock.failing => Some(since + policy.timeout),
            (Some(since), _) if clock.alone => Some(since + policy.timeout),
            _ => None,
        };
        let hold = clock.up_since.filter(|_| clock.alone && !clock.returning).map(|since| since + self.hold());
        // What is over already waits for something else than time.
        [silent, ping, away, hold].into_iter().flatten().filter(|at| *at > clock.now).min()
    }
}
