//! The status of a source: what is so, since when, and what a failover at this moment would lose.
//!
//! docs/status.md lists every field; a test keeps it complete.

use super::super::config::{AdminConfig, HostPort, OnDisconnect, SourceConfig};
use super::{halves, journal, moment, resident};
use crate::core::policy::{Mode, Policy};
use crate::engine::command::{LinkState, PeerStatus, Progress, SourceStatus, Verified};
use crate::format::nbd::identity::VolumeId;
use crate::format::superblock::Phase;
use serde_json::{Value, json};

/// Describes a source. `link` is why its connection can't be made, as far as that is known; else it is empty.
pub(in crate::control) fn describe(config: &SourceConfig, link: &str, status: &SourceStatus) -> Value {
    let superblock = &status.superblock;
    let (state, reason) = standing(config.destination.is_some(), &config.admin, link, status);
    let since_unix_ms = since_unix_ms(state, status);
    let loses = Loses::of(state, status);
    let counters = &status.counters;
    let volumes = superblock.volumes.iter().zip(&config.volumes).map(|(volume, config)| {
        let id = VolumeId::of(superblock.lineage, &volume.name).to_string();
        json!({ "name": volume.name, "id": id, "device": config.device, "size_bytes": volume.size_bytes })
    });
    json!({
        "role": "source", "resident": resident(), "name": superblock.name, "state": state.word(), "reason": reason,
        "since": moment(since_unix_ms / 1000), "since_unix_ms": since_unix_ms,
        "durability": config.durability.as_str(), "policy": policy(&status.policy), "epoch": superblock.epoch.0,
        "destination": config.destination.as_ref().map(|destination| destination.address.to_string()),
        "connected": connected(status), "peer": status.peer.as_ref().map(peer),
        "failover_loses": loses.map(Loses::to_json), "whole": status.whole,
        "lacking_records": lacking_records(loses, status), "lacking_bytes": status.lacking_bytes,
        "last_record": status.last_record, "stored_here": status.stored_here, "stored_there": status.stored_there,
        "verified_record": status.verified_record,
        "resync": status.resync.as_ref().map(progress), "verify": status.verify.as_ref().map(progress),
        "last_verify": status.verified.as_ref().map(|last| verified(config, last)),
        "journal": journal(&status.journal), "open_fill": status.open_fill, "halves": halves(&status.halves),
        "clients": status.clients, "requests": status.requests, "writes_waiting": status.waiting,
        "volumes": volumes.collect::<Vec<_>>(),
        "answered_writes": counters.answered_writes, "answered_reads": counters.answered_reads,
        "written_bytes": counters.written_bytes, "read_bytes": counters.read_bytes,
        "flushed_bytes": counters.flushed_bytes, "journal_bytes": counters.journal_bytes,
        "journal_writes": counters.journal_writes,
    })
}

/// The policy that holds, as in status and as the answer to a change.
pub(in crate::control) fn policy(policy: &Policy) -> Value {
    let timeout_ms = u64::try_from(policy.timeout.as_millis()).unwrap_or(u64::MAX);
    json!({ "on_disconnect": OnDisconnect::from(policy.on_disconnect).as_str(), "timeout_ms": timeout_ms })
}

/// What a verify has found, with the volumes by their names.
pub(in crate::control) fn verified(config: &SourceConfig, verified: &Verified) -> Value {
    let range = |&(volume, offset, length): &(u16, u64, u64)| {
        let name = config.volumes.get(usize::from(volume)).map(|volume| &volume.name);
        json!({ "volume": name, "offset": offset, "length": length })
    };
    json!({
        "compared_bytes": verified.compared_bytes, "differing_bytes": verified.differing_bytes,
        "repaired_bytes": verified.repaired_bytes, "ranges": verified.ranges.iter().map(range).collect::<Vec<_>>(),
        "ended": moment(verified.ended_unix_s), "ended_unix_s": verified.ended_unix_s,
    })
}

/// The one word for how a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fenced,
    Local,
    Degraded,
    Resyncing,
    Stalled,
    Failing,
    Mirroring,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Fenced => "fenced",
            Self::Local => "local",
            Self::Degraded => "degraded",
            Self::Resyncing => "resyncing",
            Self::Stalled => "stalled",
            Self::Failing => "failing",
            Self::Mirroring => "mirroring",
        }
    }
}

/// How promoted images are mirrored, as far as it differs from a source with a configuration of its own.
pub(in crate::control) fn promoted(
    peer: Option<&HostPort>,
    admin: &AdminConfig,
    link: &str,
    status: &SourceStatus,
) -> Value {
    let (state, reason) = standing(peer.is_some(), admin, link, status);
    json!({
        "state": state.word(), "reason": reason, "peer": peer.map(ToString::to_string), "connected": connected(status),
        "whole": status.whole, "lacking_bytes": status.lacking_bytes, "last_record": status.last_record,
        "stored_there": status.stored_there, "resync": status.resync.as_ref().map(progress),
        "policy": policy(&status.policy), "journal": journal(&status.journal),
    })
}

/// The state, and why it is that one.
fn standing(mirrored: bool, admin: &AdminConfig, link: &str, status: &SourceStatus) -> (State, Option<String>) {
    let why = match &status.link {
        LinkState::Fenced(epoch) => {
            return (State::Fenced, Some(format!("another side was promoted in epoch {epoch}")));
        }
        _ if !mirrored => return (State::Local, Some("no destination is configured".into())),
        LinkState::Down(why) if link.is_empty() => why.as_str(),
        LinkState::Down(_) => link,
        LinkState::Up => "it is connected, and both sides look for the last record that they have in common",
    };
    let unless_together = match status.mode {
        Mode::Together => "",
        Mode::Waiting => "; writes wait meanwhile",
        Mode::Failing => "; writes get an error meanwhile",
        Mode::Alone => "; writes are answered without the destination meanwhile",
    };
    let (state, reason) = match (status.mode, connected(status)) {
        (_, true) if !status.whole => {
            let promotable = status.peer.is_some_and(|peer| peer.promotable);
            let kind = match (status.lacking_since_unix_s, promotable) {
                (None, false) => "first sync; until its end there is nothing to promote",
                (_, true) => "resync by changed blocks; until its end a promote gives the state from before it",
                (Some(_), false) => "resync by changed blocks; until its end there is nothing to promote",
            };
            (State::Resyncing, format!("{kind}{unless_together}"))
        }
        (Mode::Alone, true) => {
            let reason = "the destination catches up, and the link has to prove that it holds";
            (State::Resyncing, format!("{reason}{unless_together}"))
        }
        (Mode::Alone, false) => (State::Degraded, why.into()),
        (Mode::Failing, _) => (State::Failing, why.into()),
        (Mode::Together, true) => return (State::Mirroring, None),
        (Mode::Waiting, _) if status.held_back => (State::Stalled, held_back(admin, why)),
        // A connection that is just being lost is no time to say that all is well.
        (Mode::Waiting, _) | (Mode::Together, false) => (State::Stalled, why.into()),
    };
    (state, Some(reason))
}

/// Why a source that could go on alone doesn't, and what releases it.
fn held_back(admin: &AdminConfig, why: &str) -> String {
    format!(
        "this source was in step when it last ran; its destination may have been promoted since. Waiting for it ({why}). \
         If it was not promoted: nbd-mirror set --admin {} on_disconnect=continue",
        admin.socket.display()
    )
}

fn connected(status: &SourceStatus) -> bool {
    status.link == LinkState::Up
}

/// Since when it is so, in milliseconds since 1970. A resync may begin long after the connection was made.
fn since_unix_ms(state: State, status: &SourceStatus) -> u64 {
    let resync = status.resync.filter(|_| state == State::Resyncing);
    status.mode_since_unix_ms.max(resync.map_or(0, |resync| resync.began_unix_s.saturating_mul(1000)))
}

/// What a failover at this moment would lose of what was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loses {
    Nothing,
    /// What was written since this second; said as early as it can be.
    WritesSince(u64),
    Everything,
}

impl Loses {
    /// `None` where there is nowhere to fail over to, or where that has happened already.
    fn of(state: State, status: &SourceStatus) -> Option<Loses> {
        if matches!(state, State::Fenced | State::Local) {
            return None;
        }
        let unpromotable = status.peer.is_some_and(|peer| !peer.promotable);
        Some(match (status.whole, status.lacking_since_unix_s) {
            // It never was whole, or it is made whole in place.
            (false, None) => Loses::Everything,
            (false, Some(_)) if unpromotable => Loses::Everything,
            (_, Some(since)) => Loses::WritesSince(since),
            // Alone, and nothing is known to be missing yet: the next write may be.
            (true, None) if status.mode == Mode::Alone => Loses::WritesSince(status.mode_since_unix_ms / 1000),
            (true, None) => Loses::Nothing,
        })
    }

    fn to_json(self) -> Value {
        let (what, since) = match self {
            Loses::Nothing => ("nothing", None),
            Loses::WritesSince(since) => ("writes since", Some(since)),
            Loses::Everything => ("everything", None),
        };
        json!({ "what": what, "since": since.and_then(moment), "since_unix_s": since })
    }
}

/// Records that were made since the state that a promote would give, as far as that state is known.
fn lacking_records(loses: Option<Loses>, status: &SourceStatus) -> Option<u64> {
    let held = match loses? {
        Loses::Nothing => return Some(0),
        Loses::Everything => 0,
        Loses::WritesSince(_) if status.whole => status.stored_there,
        // During a resync a promote gives what was there before it.
        Loses::WritesSince(_) => status.peer.filter(|peer| peer.promotable && peer.base_record > 0)?.base_record,
    };
    Some(status.last_record.saturating_sub(held))
}

fn peer(peer: &PeerStatus) -> Value {
    json!({
        "phase": phase(peer.phase), "promotable": peer.promotable, "base_record": peer.base_record,
        "heard_ms_ago": peer.heard_ms_ago,
    })
}

/// Where a destination puts complete fills, in one word.
pub(in crate::control) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Direct => "direct",
        Phase::Staging => "staging",
        Phase::Draining => "draining",
    }
}

fn progress(progress: &Progress) -> Value {
    let left = progress.total_bytes.saturating_sub(progress.done_bytes);
    let seconds_left = (progress.bytes_per_s > 0).then(|| left.div_ceil(progress.bytes_per_s));
    json!({
        "total_bytes": progress.total_bytes, "done_bytes": progress.done_bytes, "sent_bytes": progress.sent_bytes,
        "bytes_per_s": progress.bytes_per_s, "seconds_left": seconds_left, "began_unix_s": progress.began_unix_s,
    })
}
