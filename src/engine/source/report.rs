//! What people are told: changes of mode in the log, the progress of resync and verify, and the status.

use super::Engine;
use crate::core::copy::{Purpose, Tally};
use crate::core::half::{Half, State};
use crate::core::policy::{Mode, OnDisconnect};
use crate::core::source::{Resync, Source};
use crate::engine::command::{HalfStatus, LinkState, PeerStatus, Progress, SourceStatus, Verified};
use crate::format::wire::Welcome;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;

/// The rate is over so long.
const RATE_OVER: Duration = Duration::from_secs(10);

/// What was told, and what is to be told.
#[derive(Debug, Default)]
pub(super) struct Report {
    mode: Option<(Mode, u64)>,
    /// Whether the two were ever in step in this run.
    been_together: bool,
    began: Option<(Instant, u64)>,
    /// How many bytes were done when, over the last seconds.
    samples: VecDeque<(Instant, u64)>,
    verify: Option<(bool, oneshot::Sender<Result<Verified, String>>)>,
    verified: Option<Verified>,
    peer: Option<Welcome>,
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as u64
}

/// Ranges by their place, neighbours as one: windows are compared in any order.
fn in_order(mut ranges: Vec<(u16, u64, u64)>) -> Vec<(u16, u64, u64)> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let neighbours = (before.0, before.1 + before.2) == (next.0, next.1);
        if neighbours {
            before.2 += next.2;
        }
        neighbours
    });
    ranges
}

impl Report {
    /// The source stands otherwise from now on.
    pub fn mode(&mut self, mode: Mode, core: &Source, link: &LinkState, started: Instant) {
        let before = self.mode.replace((mode, unix_ms())).map(|(mode, _)| mode);
        let why = match link {
            LinkState::Down(reason) => reason.as_str(),
            LinkState::Up => "it is connected, but not in step",
            LinkState::Fenced(_) => return,
        };
        let policy = core.policy();
        match (before, mode) {
            (None, Mode::Waiting) => tracing::info!("waiting for the destination"),
            (_, Mode::Waiting) => {
                let then = match policy.on_disconnect {
                    OnDisconnect::Continue if core.held_back() => {
                        "writes wait until it is back, for it may have been promoted".into()
                    }
                    OnDisconnect::Continue => format!("going on without it after {:?}", policy.timeout),
                    OnDisconnect::Stall => "writes wait until it is back".into(),
                    OnDisconnect::Fail => format!("writes fail after {:?}", policy.timeout),
                };
                tracing::warn!("not mirroring: {why}; {then}");
            }
            (_, Mode::Alone) => tracing::warn!(
                "DEGRADED: going on without the destination ({why}). What is written from now on is only here until a resync \
                 is complete"
            ),
            (_, Mode::Failing) => tracing::error!("writes fail: the destination is away ({why})"),
            (_, Mode::Together) if !std::mem::replace(&mut self.been_together, true) && before != Some(Mode::Alone) => {
                tracing::info!(
                    "writes are stored on both sides, {:.1} s after the start",
                    started.elapsed().as_secs_f64()
                );
            }
            (before, Mode::Together) => {
                let word = match before {
                    Some(Mode::Alone) => "the source was alone",
                    Some(Mode::Failing) => "writes failed",
                    Some(Mode::Waiting | Mode::Together) | None => "writes waited",
                };
                tracing::info!("writes are stored on both sides again ({word} before)");
            }
        }
    }

    /// A resync goes on.
    pub fn resync(&mut self, resync: &Resync, started: Instant) {
        match resync {
            Resync::Began { bytes, all: true } => {
                self.begin();
                tracing::info!("resync: comparing and copying everything, {bytes} bytes");
            }
            Resync::Began { bytes, all: false } => {
                self.begin();
                tracing::info!("resync: comparing and copying what changed, at most {bytes} bytes");
            }
            Resync::Sent(tally) => {
                let took = self.began.take().map_or(started.elapsed(), |(at, _)| at.elapsed());
                tracing::info!(
                    "resync: {} of {} bytes differed and were sent, in {:.1} s",
                    tally.sent_bytes,
                    tally.done_bytes,
                    took.as_secs_f64()
                );
            }
            Resync::Whole => {
                // In step since now, and not since the connection was made.
                if let Some((Mode::Together, since)) = &mut self.mode {
                    *since = unix_ms();
                }
                tracing::info!("the destination has a whole copy");
            }
        }
    }

    fn begin(&mut self) {
        self.began = Some((Instant::now(), unix_ms() / 1000));
        self.samples.clear();
    }

    /// A verify goes on; who asked for it waits.
    pub fn begin_verify(&mut self, repair: bool, done: oneshot::Sender<Result<Verified, String>>) {
        self.begin();
        tracing::info!("verify: comparing volumes and images{}", if repair { ", repairing what differs" } else { "" });
        self.verify = Some((repair, done));
    }

    /// Whether somebody waits for a verify.
    pub fn verifies(&self) -> bool {
        self.verify.is_some()
    }

    /// It is over.
    pub fn verified(&mut self, outcome: Result<Tally, &'static str>) {
        let Some((repair, done)) = self.verify.take() else { return };
        self.began = None;
        let answer = match outcome {
            Ok(tally) => {
                let verified = Verified {
                    compared_bytes: tally.done_bytes,
                    differing_bytes: tally.differing_bytes,
                    repaired_bytes: if repair { tally.differing_bytes } else { 0 },
                    ranges: in_order(tally.ranges),
                    ended_unix_s: unix_ms() / 1000,
                };
                let (differ, all) = (verified.differing_bytes, verified.compared_bytes);
                match differ {
                    0 => tracing::info!("verify: all {all} bytes are equal on both sides"),
                    _ if repair => tracing::warn!("verify: {differ} of {all} bytes differed, and were sent again"),
                    _ => tracing::error!("verify: {differ} of {all} bytes differ; verify --repair sends them again"),
                }
                self.verified = Some(verified.clone());
                Ok(verified)
            }
            Err(reason) => Err(format!("the verify has no result: {reason}")),
        };
        // Nobody may be waiting any more.
        let _ = done.send(answer);
    }

    /// A destination was met.
    pub fn met(&mut self, welcome: &Welcome) {
        self.peer = Some(welcome.clone());
    }

    /// How far a resync or verify has come.
    fn progress(&mut self, tally: &Tally) -> Progress {
        let now = Instant::now();
        self.samples.push_back((now, tally.done_bytes));
        while self.samples.len() > 2 && now - self.samples[0].0 > RATE_OVER {
            self.samples.pop_front();
        }
        let (at, bytes) = match self.samples.front() {
            Some((at, bytes)) if now > *at => (*at, *bytes),
            _ => (self.began.map_or(now, |(at, _)| at), 0),
        };
        let seconds = (now - at).as_secs_f64();
        let rate = if seconds > 0.0 { tally.done_bytes.saturating_sub(bytes) as f64 / seconds } else { 0.0 };
        Progress {
            total_bytes: tally.total_bytes,
            done_bytes: tally.done_bytes,
            sent_bytes: tally.sent_bytes,
            bytes_per_s: rate as u64,
            began_unix_s: self.began.map_or(0, |(_, at)| at),
        }
    }
}

impl Engine {
    pub(super) fn status(&mut self) -> SourceStatus {
        let half = |half: &Half| HalfStatus {
            fill: half.fill.0,
            state: half.state.word(),
            bytes: if half.state == State::Clean { 0 } else { half.end },
            capacity_bytes: self.half_bytes,
            records: half.entries.len() as u64,
        };
        let halves: Vec<HalfStatus> = self.core.halves().iter().map(half).collect();
        let core = &self.core;
        let report = &mut self.report;
        let progress = core.copier().map(|copier| (copier.purpose(), report.progress(copier.tally())));
        let heard_ms_ago = self.started.elapsed().saturating_sub(core.heard_at()).as_millis() as u64;
        let link = self.link.borrow().clone();
        let peer = report.peer.as_ref().filter(|_| link == LinkState::Up).map(|welcome| PeerStatus {
            phase: welcome.phase,
            promotable: welcome.promotable,
            base_record: if welcome.base.seq.0 > 0 { welcome.base.seq.0 } else { welcome.applied.seq.0 },
            heard_ms_ago,
        });
        let superblock = core.superblock();
        // Up to a whole copy the bitmap says what is missing; the journal has the rest.
        let unsent: u64 = core
            .halves()
            .iter()
            .filter(|half| half.state != State::Clean)
            .flat_map(|half| &half.frames)
            .filter(|frame| frame.mark.seq > core.acked())
            .map(|frame| frame.bytes)
            .sum();
        SourceStatus {
            superblock: superblock.clone(),
            link,
            last_record: core.last().0,
            stored_here: core.written().0,
            stored_there: core.acked().0,
            verified_record: core.verified().0,
            journal: self.journal.how_stored(),
            open_fill: core.open_fill().0,
            halves,
            clients: self.clients.count(),
            requests: self.clients.requests.count(),
            inherited: core.inherited(),
            before_inherited: core.before_inherited().map(|seq| seq.0),
            waiting: core.waiting(),
            mode: core.mode(),
            mode_since_unix_ms: report.mode.map_or(0, |(_, at)| at),
            policy: core.policy(),
            held_back: core.held_back(),
            whole: superblock.whole,
            lacking_since_unix_s: Some(superblock.lacking_since_unix_s).filter(|at| *at > 0),
            lacking_bytes: core.dirty_bytes() + unsent,
            peer,
            resync: progress.filter(|(purpose, _)| *purpose == Purpose::Resync).map(|(_, progress)| progress),
            verify: progress.filter(|(purpose, _)| *purpose != Purpose::Resync).map(|(_, progress)| progress),
            verified: report.verified.clone(),
            counters: self.counters,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::in_order;

    #[test]
    fn ranges_are_listed_by_their_place() {
        let found = vec![(0, 8192, 4096), (1, 0, 512), (0, 0, 4096), (0, 4096, 4096), (0, 65_536, 4096)];
        assert_eq!(in_order(found), [(0, 0, 12_288), (0, 65_536, 4096), (1, 0, 512)]);
    }
}
