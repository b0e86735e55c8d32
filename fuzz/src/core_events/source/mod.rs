//! The source's core. What holds whatever the destination says: a record is answered, or failed, once; and only when its
//! frame, and all before it, are in the journal and (mirrored, unless the source is alone) acknowledged; memory is given
//! back once and not while in use; nothing reaches a volume that isn't committed; a half is called clean only when it is
//! flushed and applied, or what it changed is durably marked as dirty; the order begins anew only when that is durable.
//!
//! - `operation`: what the core wants done.
//! - `peer`: what the destination is sent, and says.
//! - `window`: what a resync or a verify reads and asks for.
//! - `map`: the dirty bitmap as it is stored.
//! - `mending`: the end of each play.

mod map;
mod mending;
mod operation;
mod peer;
mod window;

use super::super::pick::{MarkPick, Number};
use super::super::structured::{Encode, List};
use super::memory::Memory;
use arbitrary::{Arbitrary, Unstructured};
use map::Map;
use nbd_mirror::core::copy::Tally;
use nbd_mirror::core::half::{Entry, Ticket};
use nbd_mirror::core::policy::{Mode, OnDisconnect, Policy};
use nbd_mirror::core::recovery::Recovered;
use nbd_mirror::core::source::{Effect, Shape, Source};
use nbd_mirror::core::{Durability, Place};
use nbd_mirror::format::frame::{Kind, RECORD_FUA, RECORD_NO_HOLE, Record};
use nbd_mirror::format::ids::{Digest, Epoch, Fill, Id, Mark, Seq};
use nbd_mirror::format::superblock::{Role, Superblock, Volume};
use nbd_mirror::format::wire::{Report, Verdict, Welcome};
use nbd_mirror::limits::*;
use operation::{Made, Op};
use std::collections::HashMap;
use std::time::Duration;
use window::{Reading, Sums};

structured! {
    /// A source, and what happens to it.
    struct SourcePlay {
        flush: bool,
        mirrored: bool,
        whole: bool,
        /// It was alone when it ended.
        alone: bool,
        policy: u8,
        timeout: u8,
        volumes: u8,
        blocks: u16,
        clean: u8,
        /// Grains that are dirty from the beginning; the highest number: all.
        dirty: u8,
        /// Boundaries before the clean one that it remembers.
        known: u8,
        events: List<SourceEvent>,
    }

    /// One event.
    enum SourceEvent {
        Record { kind: u8, flags: u8, volume: u8, block: u16, length: u32 },
        Burst { count: u8, kind: u8, block: u16, length: u32 },
        Turn { millis: u16 },
        /// Nothing happens until the core wants a turn.
        Deadline,
        Complete { which: u8 },
        CompleteAll,
        Send { count: u8 },
        Flush { count: u8 },
        Copy { count: u8 },
        /// A question is answered.
        Sums { which: u8, equal: u8, unknown: bool },
        /// A window can't be read.
        Unreadable { which: u8 },
        Read { volume: u8, block: u16, blocks: u16 },
        Sync,
        Verify { repair: bool },
        Policy { kind: u8 },
        Timeout { seconds: u8 },
        MemoryLow,
        Disconnect,
        Welcome {
            verdict: u8, epoch: Number, whole: bool, fresh: bool, applied: MarkPick, boundaries: List<MarkPick>,
        },
        /// A destination that is at a boundary of the source's history, with a fill applied that ends before it.
        WelcomeAt { back: u8, lag: u8, whole: bool },
        /// A destination at a boundary that the source remembers.
        WelcomeKnown { back: u8, lag: u8, whole: bool },
        Stored { seq: Number },
        Applied { mark: MarkPick },
        Fenced { epoch: Number },
        Settled { mark: MarkPick },
        /// It settled where it was asked to.
        SettledThere,
        Pong,
        /// All that was sent is stored.
        StoredAll,
        Settle,
    }
}

const BLOCK: u64 = BLOCK_BYTES as u64;
const MAX_AGE: Duration = Duration::from_secs(5);
const EPOCH: Epoch = Epoch(3);
/// Events of one play; more say nothing new.
const MAX_EVENTS: usize = 600;
/// Turns after which a core that nothing happens to must be still.
const MAX_TURNS: usize = 200;
/// Rounds in which a source and a destination without faults must be done.
const MAX_ROUNDS: usize = 4000;

struct Driver {
    core: Source,
    durability: Durability,
    mirrored: bool,
    volume_bytes: u64,
    memory: Memory,
    ops: Vec<Op>,
    effects: Vec<Effect>,
    frames: Vec<Made>,
    /// The frame of each record that has one, by its ticket; None while it waits.
    tickets: HashMap<u32, Option<usize>>,
    next_ticket: u32,
    marks: Vec<Mark>,
    /// The ends of fills.
    ends: Vec<Mark>,
    peer: bool,
    /// A connection that waits until the core can take it.
    next_peer: Option<Welcome>,
    /// The last record that the destination holds, by its own words, of those that exist.
    acked: Seq,
    /// The last record that it ever said it holds.
    acked_ever: Seq,
    /// The last fill that it has said it applied, by its true end.
    applied: Fill,
    /// The last fill that it has done with, by its own words over this connection.
    room: Fill,
    sent: Option<Seq>,
    /// The order will begin anew over this connection.
    beginning: bool,
    /// It said over this connection that it applied what it was never sent: what it is sent then may have gaps.
    lied: bool,
    /// The boundary at which it was asked to settle.
    settling: Option<Mark>,
    readings: Vec<Reading>,
    /// Verifies whose end wasn't said.
    verifying: usize,
    verified: Option<Tally>,
    syncs: Vec<u64>,
    fenced: bool,
    generation: u64,
    /// The clean mark of the superblock that was written last.
    clean: Mark,
    /// Both copies of the superblock, as they are stored.
    copies: [Superblock; 2],
    map: Map,
    /// Whether answers of this turn are given alone.
    alone: bool,
    /// It was alone from the beginning, or an operator said that it may be.
    may_be_alone: bool,
    /// It knows nothing of its destination since its start.
    held_back: bool,
    /// When it was connected, and the destination had everything, last.
    in_step_at: Duration,
    now: Duration,
}

/// Runs it.
pub fn run(play: &SourcePlay) {
    let mut driver = Driver::new(play);
    driver.turn();
    for event in play.events.0.iter().take(MAX_EVENTS) {
        driver.event(event);
        driver.check();
    }
    driver.heal();
}

fn on_disconnect(kind: u8) -> OnDisconnect {
    [OnDisconnect::Continue, OnDisconnect::Stall, OnDisconnect::Fail][usize::from(kind % 3)]
}

fn timeout(seconds: u8) -> Duration {
    Duration::from_secs(1 + u64::from(seconds % 64))
}

impl Driver {
    fn new(play: &SourcePlay) -> Driver {
        let volume_bytes = (1 + u64::from(play.blocks % 1024)) * BLOCK;
        let end = |n: u8| match n {
            0 => Mark::default(),
            n => Mark { fill: Fill(n.into()), seq: Seq(u64::from(n) * 10), digest: Digest(n.into()) },
        };
        let clean = end(play.clean);
        let volume = |number: u8| Volume { name: format!("vol{number}"), size_bytes: volume_bytes, block_bytes: 512 };
        let volumes = (0..1 + play.volumes % 3).map(volume).collect();
        let first = Superblock::first(Role::Source, Id([7; 16]), "alpha", MIN_HALF_BYTES, EPOCH, volumes);
        let known: Vec<Mark> =
            (play.clean.saturating_sub(play.known % MAX_KNOWN_MARKS as u8)..play.clean).map(end).collect();
        let superblock = Superblock {
            generation: 2,
            incarnation: 1,
            clean,
            whole: play.whole,
            alone: play.alone,
            lacking_since_unix_s: u64::from(play.alone && play.whole),
            known: known.clone(),
            ..first
        };
        let map = Map::new(&superblock, play.dirty);
        let durability = if play.flush { Durability::Flush } else { Durability::Always };
        let policy = Policy { on_disconnect: on_disconnect(play.policy), timeout: timeout(play.timeout) };
        let shape = Shape { durability, mirrored: play.mirrored, policy, max_age: MAX_AGE, started_unix_s: 1_000_000 };
        let recovered = Recovered { end: clean, ..Recovered::default() };
        let (copies, dirty) = ([superblock.clone(), superblock.clone()], map.load(&superblock));
        let core = Source::recover(shape, superblock, dirty, recovered, |_, _| unreachable!("no frame was recovered"));
        let marks: Vec<Mark> = known.into_iter().chain([clean]).collect();
        Driver {
            alone: false,
            may_be_alone: play.alone,
            held_back: core.held_back(),
            core,
            durability,
            mirrored: play.mirrored,
            volume_bytes,
            memory: Memory::default(),
            ops: Vec::new(),
            effects: Vec::new(),
            frames: Vec::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
            ends: marks.clone(),
            marks,
            peer: false,
            next_peer: None,
            acked: clean.seq,
            acked_ever: clean.seq,
            applied: clean.fill,
            room: clean.fill,
            sent: None,
            beginning: false,
            lied: false,
            settling: None,
            readings: Vec::new(),
            verifying: 0,
            verified: None,
            syncs: Vec::new(),
            fenced: false,
            generation: 2,
            clean,
            copies,
            map,
            in_step_at: Duration::ZERO,
            now: Duration::ZERO,
        }
    }

    fn event(&mut self, event: &SourceEvent) {
        match event {
            SourceEvent::Record { kind, flags, volume, block, length } => {
                self.record(*kind, *flags, *volume, *block, *length);
            }
            SourceEvent::Burst { count, kind, block, length } => {
                (0..*count).for_each(|n| self.record(*kind, 0, 0, block.wrapping_add(n.into()), *length));
            }
            SourceEvent::Turn { millis } => {
                self.now += Duration::from_millis((*millis).into());
                self.turn();
            }
            SourceEvent::Deadline => {
                self.now = self.core.next_deadline().map_or(self.now, |deadline| deadline.max(self.now));
                self.turn();
            }
            SourceEvent::Complete { which } => self.complete((*which).into()),
            SourceEvent::CompleteAll => (0..self.ops.len()).for_each(|_| self.complete(0)),
            SourceEvent::Send { count } => self.send((*count).into()),
            SourceEvent::Flush { count } => self.flush((*count).into()),
            SourceEvent::Copy { count } => self.copy((*count).into()),
            SourceEvent::Sums { which, equal, unknown } => {
                self.answer((*which).into(), Sums { equal: *equal, unknown: *unknown });
            }
            SourceEvent::Unreadable { which } => self.fail_read((*which).into()),
            SourceEvent::Read { volume, block, blocks } => self.read(*volume, *block, *blocks),
            SourceEvent::Sync => {
                let token = self.syncs.len() as u64;
                self.syncs.push(token);
                self.core.handle_sync(token);
            }
            SourceEvent::Verify { repair } => self.verify(*repair),
            SourceEvent::Policy { kind } => {
                let on_disconnect = on_disconnect(*kind);
                self.core.handle_policy(Policy { on_disconnect, ..self.core.policy() });
                self.held_back &= on_disconnect != OnDisconnect::Continue;
                self.may_be_alone = self.core.mode() == Mode::Alone;
            }
            SourceEvent::Timeout { seconds } => self.core.handle_timeout(timeout(*seconds)),
            SourceEvent::MemoryLow => self.core.handle_memory_low(),
            SourceEvent::Disconnect => self.disconnect(),
            SourceEvent::Welcome { verdict, epoch, whole, fresh, applied, boundaries } => {
                let verdict =
                    [Verdict::Welcome, Verdict::Welcome, Verdict::Refused, Verdict::Fenced][usize::from(*verdict % 4)];
                let boundaries = boundaries.0.iter().take(MAX_BOUNDARIES).map(|mark| mark.of(&self.marks)).collect();
                let (whole, fresh, applied) = (*whole, *fresh, applied.of(&self.ends));
                let refused = Welcome::refuse(verdict, Epoch(epoch.near(EPOCH.0)), "");
                let welcome = Welcome { whole, fresh, applied, boundaries, ..refused };
                if let Ok(welcome) = Welcome::decode(&welcome.encode()) {
                    self.connect(welcome);
                    self.turn();
                }
            }
            SourceEvent::WelcomeAt { back, lag, whole } => {
                let at = MarkPick::Known { back: *back }.of(&self.marks);
                self.connect_at(at, *lag, *whole);
            }
            SourceEvent::WelcomeKnown { back, lag, whole } => {
                let known = &self.core.superblock().known;
                if !known.is_empty() {
                    let at = MarkPick::Known { back: *back }.of(known);
                    self.connect_at(at, *lag, *whole);
                }
            }
            SourceEvent::Stored { seq } => self.receive(Report::Stored(Seq(seq.near(self.core.last().0)))),
            SourceEvent::Applied { mark } => self.receive(Report::Applied(mark.of(&self.ends))),
            SourceEvent::Fenced { epoch } => self.receive(Report::Fenced(Epoch(epoch.near(EPOCH.0)))),
            SourceEvent::Settled { mark } => self.receive(Report::Settled(mark.of(&self.marks))),
            SourceEvent::SettledThere => {
                if let Some(common) = self.settling {
                    self.receive(Report::Settled(common));
                }
            }
            SourceEvent::Pong => self.receive(Report::Pong { stamp: 0 }),
            SourceEvent::StoredAll => self.report(Report::Stored(self.sent.unwrap_or(self.acked))),
            SourceEvent::Settle => self.settle(),
        }
    }

    fn connect_at(&mut self, at: Mark, lag: u8, whole: bool) {
        let ends = self.ends.iter().rev().filter(|end| end.seq <= at.seq);
        let applied = ends.copied().nth((lag % 4).into()).unwrap_or_default();
        self.connect(Welcome {
            whole,
            applied,
            boundaries: vec![applied, at],
            ..Welcome::refuse(Verdict::Welcome, EPOCH, "")
        });
        self.turn();
    }

    fn verify(&mut self, repair: bool) {
        if self.core.handle_verify(repair).is_ok() {
            assert!(self.peer);
            self.verifying += 1;
        }
    }

    fn record(&mut self, kind: u8, flags: u8, volume: u8, block: u16, length: u32) {
        if !self.core.accepting() || self.fenced {
            return;
        }
        let kind = [Kind::Write, Kind::Write, Kind::Trim, Kind::WriteZeroes, Kind::Flush][usize::from(kind % 5)];
        if kind == Kind::Flush && self.core.flush_is_free() {
            return;
        }
        let blocks = self.volume_bytes / BLOCK;
        let offset = u64::from(block) % blocks * BLOCK;
        let most = if kind == Kind::Write { CHUNK_BYTES as u64 } else { u64::from(u32::MAX) };
        let (offset, length) = match kind {
            Kind::Flush => (0, 0),
            _ => (offset, u64::from(length).clamp(1, most.min(self.volume_bytes - offset))),
        };
        let record = Record {
            volume: (usize::from(volume) % self.core.superblock().volumes.len()) as u16,
            kind,
            flags: flags & if kind == Kind::Flush { 0 } else { RECORD_FUA | RECORD_NO_HOLE },
            offset,
            length: length as u32,
            checksum: 0,
        };
        let place = if kind == Kind::Write { self.memory.take(length as usize) } else { Place(0) };
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.tickets.insert(ticket.0, None);
        self.core.handle_record(Entry { record, place, ticket });
    }

    /// Lets the core act until nothing follows any more.
    fn turn(&mut self) {
        self.admit();
        for _ in 0..MAX_TURNS {
            let answers = |effect: &Effect| matches!(effect, Effect::Answer(_) | Effect::Fail(_));
            assert!(!self.effects.iter().any(answers), "answered outside of a turn");
            if self.core.mode() == Mode::Together && self.core.acked() >= self.core.last() {
                self.in_step_at = self.now;
            }
            self.core.handle_turn(self.now, &mut self.memory, &mut self.effects);
            self.alone = self.core.mode() == Mode::Alone;
            let effects = std::mem::take(&mut self.effects);
            for effect in &effects {
                if let Effect::WriteFrame(id) = effect {
                    self.frame(*id);
                }
            }
            if effects.is_empty() {
                let deadline = self.core.next_deadline();
                assert!(deadline.is_none_or(|deadline| deadline > self.now), "it would turn for ever");
                return;
            }
            effects.into_iter().for_each(|effect| self.act(effect));
        }
        panic!("the core is never done");
    }

    fn read(&mut self, volume: u8, block: u16, blocks: u16) {
        let volume = (usize::from(volume) % self.core.superblock().volumes.len()) as u16;
        let start = u64::from(block) * BLOCK % self.volume_bytes;
        let end = (start + (1 + u64::from(blocks)) * BLOCK).min(self.volume_bytes);
        let mut segments = Vec::new();
        self.core.read(volume, start..end, &mut segments);
        let mut at = start;
        for segment in segments {
            assert!(segment.offset == at && segment.length > 0);
            if let nbd_mirror::core::index::Found::Memory(place) = segment.found {
                self.memory.assert_taken(place, segment.length);
            }
            at += segment.length;
        }
        assert_eq!(at, end);
    }

    fn check(&self) {
        assert!(self.core.waiting() <= MAX_WAITING_RECORDS);
        assert!(self.core.committed() <= self.core.last());
        for half in self.core.halves() {
            assert!(half.end <= MIN_HALF_BYTES);
            assert!(half.entries.len() <= 2 * (MIN_HALF_BYTES / BLOCK) as usize);
        }
        let _ = (self.core.next_deadline(), self.core.written(), self.core.verified(), self.core.heard_at());
        assert!(self.core.dirty_bytes() <= self.core.superblock().volumes.iter().map(|volume| volume.size_bytes).sum());
    }
}
