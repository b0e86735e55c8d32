//! What is known, before a promote, of what its images would lack.

use super::Engine;
use crate::core::policy::OnDisconnect;
use crate::core::recovery::warrant::{Missing, Word};
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since this machine was started, in which sleep counts as well.
pub(super) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// When the source was heard last, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeardAt {
    pub wall: SystemTime,
    pub clock: Duration,
}

impl HeardAt {
    pub fn now() -> HeardAt {
        HeardAt { wall: SystemTime::now(), clock: now() }
    }
}

/// What a promote at this moment would serve and lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warrant {
    /// The last record held here.
    pub held_record: u64,
    /// The last record that would be served.
    pub served_record: u64,
    /// The last record that the source said it had answered.
    pub answered_record: u64,
    /// What the source said last of how it stands.
    pub word: Word,
    /// Its policy, where it counts.
    pub on_disconnect: Option<OnDisconnect>,
    /// Its timeout, where it counts.
    pub timeout_ms: Option<u32>,
    /// Whether it is connected, and was heard within its timeout.
    pub alive: bool,
    /// Its address, while there is a connection.
    pub peer: Option<String>,
    /// When it was heard last, in seconds since 1970.
    pub heard_unix_s: Option<u64>,
    /// How long ago that was, in milliseconds.
    pub heard_ms_ago: Option<u64>,
    /// Which answered writes may be missing.
    pub missing: Missing,
    /// Since when, in seconds since 1970, where that is known.
    pub missing_since_unix_s: Option<u64>,
    /// For how long nothing is missing yet, in milliseconds, where time decides.
    pub holds_ms: Option<u64>,
    /// Why it is missing, or isn't.
    pub because: &'static str,
    /// Why a promote is refused without force.
    pub refusal: Option<String>,
}

impl Engine {
    pub(super) fn warrant(&self) -> Warrant {
        let now = now();
        let row = self.core.warrant(now).decide();
        let heard = self.core.heard();
        let word = heard.word();
        let ago = self.heard_at.map(|at| now.saturating_sub(at.clock));
        let timeout_ms = word.map(|ping| ping.timeout_ms);
        let within = |ago: Duration| timeout_ms.is_none_or(|timeout| ago < Duration::from_millis(timeout.into()));
        let peer = self.peer_address().filter(|_| self.core.connected());
        let alive = peer.is_some() && ago.is_none_or(within);
        let held_record = self.core.stored().seq.0;
        let unix_s = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let known = |since: u64| (since != 0).then_some(since);
        let heard_unix_s = self.heard_at.map(|at| unix_s(at.wall));
        let lease = heard.lease();
        let mut warrant = Warrant {
            held_record,
            served_record: self.core.base().map_or(held_record, |mark| mark.seq.0),
            answered_record: heard.answered().0,
            word: self.core.warrant(now).word,
            on_disconnect: word.map(|ping| ping.on_disconnect),
            timeout_ms,
            alive,
            peer,
            heard_unix_s,
            heard_ms_ago: ago.map(|ago| ago.as_millis() as u64),
            missing: row.action,
            missing_since_unix_s: match row.action {
                Missing::Nothing | Missing::SinceStart => None,
                Missing::SinceLacking | Missing::NoCopy => known(self.lacking_since_unix_s),
                Missing::SinceHeard => heard_unix_s,
                Missing::SinceTimeout => lease.map(|over| unix_s(SystemTime::now() - now.saturating_sub(over))),
            },
            holds_ms: lease
                .filter(|_| row.action == Missing::Nothing)
                .map(|over| over.saturating_sub(now).as_millis() as u64),
            because: row.why,
            refusal: None,
        };
        warrant.refusal = self.refusal(&warrant);
        warrant
    }

    /// Why a promote is refused without force.
    fn refusal(&self, warrant: &Warrant) -> Option<String> {
        let old = || self.old_image().map(|old| format!(". What is served then is {old}")).unwrap_or_default();
        if let Some(address) = warrant.peer.as_ref().filter(|_| warrant.alive) {
            return Some(format!(
                "the source is connected ({address}) and may be answering writes: stop it first, or give --force to take over \
                 from it{}",
                old()
            ));
        }
        match warrant.missing {
            Missing::Nothing => None,
            Missing::NoCopy => Some(self.no_whole_copy()),
            _ => Some(format!(
                "how many answered writes are missing here is {}{}: {}. Start the source again so that the two meet; or, if it is \
                 lost, give --force to serve what is here{}",
                crate::core::recovery::table::Fact::words(warrant.missing),
                warrant.missing_since_unix_s.map(|since| format!(" ({since} s after 1970)")).unwrap_or_default(),
                warrant.because,
                old()
            )),
        }
    }
}
