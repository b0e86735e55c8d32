//! The source's core. What holds whatever the destination says: a record is answered only when its frame, and all
//! before it, are in the journal and (mirrored) acknowledged; memory is given back once and not while in use; nothing
//! reaches a volume that isn't committed; a half is called clean only when it is flushed and applied. In the end a
//! destination that holds nothing connects, and everything that waits must be answered.

use super::super::pick::{MarkPick, Number};
use super::super::structured::{Encode, List};
use super::memory::Memory;
use arbitrary::{Arbitrary, Unstructured};
use nbd_mirror::core::copy::Window;
use nbd_mirror::core::half::{Entry, State, Ticket};
use nbd_mirror::core::recovery::Recovered;
use nbd_mirror::core::source::{Effect, FrameId, Send, Shape, Source};
use nbd_mirror::core::{Durability, Place};
use nbd_mirror::format::frame::{FLAG_SYNC, Header, Kind, RECORD_COPY, RECORD_FUA, RECORD_NO_HOLE, Record};
use nbd_mirror::format::ids::{Digest, Epoch, Fill, Id, Mark, Seq};
use nbd_mirror::format::superblock::{Role, Superblock, Volume};
use nbd_mirror::format::wire::{Report, Signal, Verdict, Welcome};
use nbd_mirror::limits::*;
use std::collections::HashMap;
use std::time::Duration;

structured! {
    /// A source, and what happens to it.
    struct SourcePlay {
        flush: bool,
        mirrored: bool,
        whole: bool,
        volumes: u8,
        blocks: u16,
        clean: u8,
        events: List<SourceEvent>,
    }

    /// One event.
    enum SourceEvent {
        Record { kind: u8, flags: u8, volume: u8, block: u16, length: u32 },
        Burst { count: u8, kind: u8, block: u16, length: u32 },
        Turn { millis: u16 },
        Complete { which: u8 },
        CompleteAll,
        Send { count: u8 },
        Flush { count: u8 },
        Copy { count: u8 },
        Read { volume: u8, block: u16, blocks: u16 },
        Sync,
        Disconnect,
        Welcome {
            verdict: u8, epoch: Number, whole: bool, fresh: bool, applied: MarkPick, boundaries: List<MarkPick>,
        },
        Stored { seq: Number },
        Applied { mark: MarkPick },
        Fenced { epoch: Number },
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

#[derive(Debug, Clone)]
enum Op {
    Frame(usize),
    /// With how many frames of the chain, from the first, it makes stable.
    JournalSync(Vec<usize>),
    Superblock,
    Flush,
    VolumeSync(u16),
    Copy(usize, Window),
}

/// A frame as the model knows it.
#[derive(Debug)]
struct Made {
    id: FrameId,
    mark: Mark,
    written: bool,
    stable: bool,
    sync: bool,
}

struct Driver {
    core: Source,
    durability: Durability,
    mirrored: bool,
    volume_bytes: u64,
    memory: Memory,
    ops: Vec<Op>,
    effects: Vec<Effect>,
    /// Effects whose answers were looked at.
    seen: usize,
    frames: Vec<Made>,
    /// The frame of each record that has one, by its ticket; None while it waits.
    tickets: HashMap<u32, Option<usize>>,
    next_ticket: u32,
    marks: Vec<Mark>,
    /// The ends of fills.
    ends: Vec<Mark>,
    peer: bool,
    /// The last record that the destination has said it holds, of those that exist.
    acked: Seq,
    /// The last fill that it has said it applied, by its true end.
    applied: Fill,
    sent: Option<Seq>,
    syncs: Vec<u64>,
    fenced: bool,
    generation: u64,
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

impl Driver {
    fn new(play: &SourcePlay) -> Driver {
        let volume_bytes = (1 + u64::from(play.blocks % 1024)) * BLOCK;
        let clean = match play.clean {
            0 => Mark::default(),
            n => Mark { fill: Fill(n.into()), seq: Seq(u64::from(n) * 10), digest: Digest(n.into()) },
        };
        let volume = |number: u8| Volume {
            name: format!("vol{number}"),
            size_bytes: volume_bytes,
            block_bytes: 512,
            copied_bytes: if play.whole { volume_bytes } else { 0 },
        };
        let superblock = Superblock {
            role: Role::Source,
            generation: 2,
            source: Id([7; 16]),
            name: "alpha".into(),
            half_bytes: MIN_HALF_BYTES,
            epoch: EPOCH,
            fenced_by: Epoch(0),
            incarnation: 1,
            clean,
            whole: play.whole,
            promoted: false,
            volumes: (0..1 + play.volumes % 3).map(volume).collect(),
        };
        let durability = if play.flush { Durability::Flush } else { Durability::Always };
        let shape = Shape { durability, mirrored: play.mirrored, max_age: MAX_AGE };
        let recovered = Recovered { end: clean, ..Recovered::default() };
        let core = Source::recover(shape, superblock, recovered, |_, _| unreachable!("no frame was recovered"));
        Driver {
            core,
            durability,
            mirrored: play.mirrored,
            volume_bytes,
            memory: Memory::default(),
            ops: Vec::new(),
            effects: Vec::new(),
            seen: 0,
            frames: Vec::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
            marks: vec![clean],
            ends: vec![clean],
            peer: false,
            acked: clean.seq,
            applied: clean.fill,
            sent: None,
            syncs: Vec::new(),
            fenced: false,
            generation: 2,
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
            SourceEvent::Complete { which } => self.complete((*which).into()),
            SourceEvent::CompleteAll => (0..self.ops.len()).for_each(|_| self.complete(0)),
            SourceEvent::Send { count } => self.send((*count).into()),
            SourceEvent::Flush { count } => self.flush((*count).into()),
            SourceEvent::Copy { count } => self.copy((*count).into()),
            SourceEvent::Read { volume, block, blocks } => self.read(*volume, *block, *blocks),
            SourceEvent::Sync => {
                let token = self.syncs.len() as u64;
                self.syncs.push(token);
                self.core.handle_sync(token);
            }
            SourceEvent::Disconnect => self.disconnect(),
            SourceEvent::Welcome { verdict, epoch, whole, fresh, applied, boundaries } => {
                let welcome = Welcome {
                    verdict: [Verdict::Welcome, Verdict::Welcome, Verdict::Refused, Verdict::Fenced]
                        [usize::from(*verdict % 4)],
                    epoch: Epoch(epoch.near(EPOCH.0)),
                    whole: *whole,
                    fresh: *fresh,
                    applied: applied.of(&self.ends),
                    boundaries: boundaries.0.iter().take(MAX_BOUNDARIES).map(|mark| mark.of(&self.marks)).collect(),
                    reason: String::new(),
                };
                if let Ok(welcome) = Welcome::decode(&welcome.encode()) {
                    self.welcome(welcome);
                }
            }
            SourceEvent::Stored { seq } => self.receive(Report::Stored(Seq(seq.near(self.core.last().0)))),
            SourceEvent::Applied { mark } => self.receive(Report::Applied(mark.of(&self.ends))),
            SourceEvent::Fenced { epoch } => self.receive(Report::Fenced(Epoch(epoch.near(EPOCH.0)))),
            SourceEvent::StoredAll => self.report(Report::Stored(self.sent.unwrap_or(self.acked))),
            SourceEvent::Settle => self.settle(),
        }
        self.look();
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

    /// Answers must be right in the moment they are given; what else is asked for waits for the turn, as in the engine.
    fn look(&mut self) {
        while self.seen < self.effects.len() {
            if let Effect::Answer(ticket) = self.effects[self.seen] {
                self.answered(ticket);
            }
            self.seen += 1;
        }
    }

    fn answered(&mut self, ticket: Ticket) {
        let frame = self.tickets.remove(&ticket.0).expect("one answer for each request").expect("it has a frame");
        let Made { mark, sync, .. } = self.frames[frame];
        assert!(self.frames[..=frame].iter().all(|before| before.written), "answered before it was written");
        assert!(!self.mirrored || mark.seq <= self.acked, "answered, but the destination never said it has {mark}");
        assert!(!sync || self.frames[..=frame].iter().all(|before| before.stable), "answered before it was synced");
    }

    /// Lets the core act until nothing follows any more.
    fn turn(&mut self) {
        for _ in 0..MAX_TURNS {
            self.core.handle_turn(self.now, &mut self.memory, &mut self.effects);
            let made = self.take_frames();
            self.look();
            let effects = std::mem::take(&mut self.effects);
            self.seen = 0;
            if effects.is_empty() && !made {
                return;
            }
            effects.into_iter().for_each(|effect| self.act(effect));
            self.look();
        }
        panic!("the core is never done");
    }

    /// Notes the frames that were made in this turn; before any answer is looked at.
    fn take_frames(&mut self) -> bool {
        let ids: Vec<FrameId> = self.effects[self.seen..]
            .iter()
            .filter_map(|effect| if let Effect::WriteFrame(id) = effect { Some(*id) } else { None })
            .collect();
        ids.iter().for_each(|id| self.frame(*id));
        !ids.is_empty()
    }

    fn frame(&mut self, id: FrameId) {
        let mut pieces = Vec::new();
        let frame = self.core.frame_pieces(id, &mut pieces).expect("the frame that is to be written").clone();
        let last = *self.marks.last().expect("the clean mark at least");
        let block = self.memory.header(frame.header);
        let header = Header::parse(block).expect("a header of ours");
        assert_eq!((header.fill, header.position, header.first), (id.fill, frame.position, last.seq.next()));
        assert_eq!((header.previous, header.last()), (last.digest, frame.mark.seq));
        assert!(header.committed <= self.core.committed());
        assert!(frame.position + frame.bytes <= MIN_HALF_BYTES && header.frame_bytes() == frame.bytes);
        assert_eq!(pieces.iter().map(|(_, bytes)| bytes).sum::<u64>(), frame.bytes);
        pieces.iter().for_each(|(place, bytes)| self.memory.assert_taken(*place, *bytes));
        let entries = &self.core.halves()[id.fill.half()].entries[frame.entries.clone()];
        assert_eq!(entries.len(), usize::from(header.count));
        for entry in entries.iter().filter(|entry| entry.ticket != Ticket::NONE) {
            let before = self.tickets.insert(entry.ticket.0, Some(self.frames.len()));
            assert_eq!(before, Some(None), "a record is in one frame");
        }
        self.frames.push(Made {
            id,
            mark: frame.mark,
            written: false,
            stable: false,
            sync: header.flags & FLAG_SYNC != 0,
        });
        self.marks.push(frame.mark);
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::WriteFrame(id) => {
                let frame = self.frames.iter().rposition(|made| made.id == id).expect("it was noted");
                self.ops.push(Op::Frame(frame));
                let under_way = self.ops.iter().filter(|op| matches!(op, Op::Frame(_))).count();
                assert!(under_way <= MAX_FRAMES_IN_FLIGHT);
            }
            Effect::SyncJournal => {
                assert!(
                    !self.ops.iter().any(|op| matches!(op, Op::JournalSync(_))) && self.durability == Durability::Flush
                );
                self.ops.push(Op::JournalSync((0..self.frames.len()).filter(|n| self.frames[*n].written).collect()));
            }
            Effect::Answer(_) => {}
            Effect::WriteSuperblock(block, offset) => {
                assert!(!self.ops.iter().any(|op| matches!(op, Op::Superblock)), "two superblocks under way");
                let superblock = Superblock::decode(Role::Source, &block).expect("a superblock of ours");
                assert_eq!((superblock.generation, superblock.copy_offset()), (self.generation + 1, offset));
                assert!(self.ends.contains(&superblock.clean), "no fill ends at {}", superblock.clean);
                assert!(!self.mirrored || superblock.clean.fill <= self.applied, "clean before it is applied");
                self.generation += 1;
                self.ops.push(Op::Superblock);
            }
            Effect::SyncVolume(volume) => self.ops.push(Op::VolumeSync(volume)),
            Effect::Release(place, bytes) => self.memory.release(place, bytes),
            Effect::ClosePeer(reason) => {
                assert!(!reason.is_empty() || !self.peer || self.mirrored);
                self.disconnect();
            }
            Effect::Fenced(epoch) => {
                assert!(epoch > EPOCH && self.core.fenced());
                self.fenced = true;
                self.disconnect();
            }
            Effect::SyncDone(token) => {
                let at = self.syncs.iter().position(|waiting| *waiting == token).expect("done once");
                self.syncs[at] = u64::MAX;
            }
            Effect::Switched(mark) => self.ends.push(mark),
        }
    }

    fn complete(&mut self, which: usize) {
        if self.ops.is_empty() {
            return;
        }
        let op = self.ops.remove(which % self.ops.len());
        match op {
            Op::Frame(frame) => {
                let made = &mut self.frames[frame];
                made.written = true;
                made.stable = self.durability == Durability::Always;
                self.core.handle_frame_written(made.id, &mut self.effects);
            }
            Op::JournalSync(frames) => {
                frames.into_iter().for_each(|frame| self.frames[frame].stable = true);
                self.core.handle_journal_synced(&mut self.effects);
            }
            Op::Superblock => self.core.handle_superblock_written(&mut self.effects),
            Op::Flush => self.core.handle_flush_written(),
            Op::VolumeSync(volume) => self.core.handle_volume_synced(volume),
            Op::Copy(number, window) => {
                let entries = self.copied(&window);
                self.core.handle_copied(number, entries, &mut self.effects);
            }
        }
        self.look();
    }

    /// The records that hold a window: every other piece is zeros.
    fn copied(&mut self, window: &Window) -> Vec<Entry> {
        let starts = (window.offset..window.offset + window.length).step_by(CHUNK_BYTES);
        let entry = |(index, offset): (usize, u64)| {
            let length = (window.offset + window.length - offset).min(CHUNK_BYTES as u64);
            let kind = if index % 2 == 0 { Kind::Write } else { Kind::Trim };
            let place = if kind == Kind::Write { self.memory.take(length as usize) } else { Place(0) };
            let (volume, length) = (window.volume, length as u32);
            let record = Record { volume, kind, flags: RECORD_COPY, offset, length, checksum: 0 };
            Entry { record, place, ticket: Ticket::NONE }
        };
        starts.enumerate().map(entry).collect()
    }

    fn send(&mut self, count: usize) {
        for _ in 0..count.max(1) {
            if !self.peer {
                return;
            }
            match self.core.next_to_send() {
                None => return,
                Some(Send::Frame(id)) => {
                    let mark = self.core.frame_pieces(id, &mut Vec::new()).expect("the frame to be sent").mark;
                    let last = self.sent.expect("the source resumes first");
                    assert!(mark.seq > last && self.marks.contains(&mark), "out of order: {mark} after {last}");
                    let before = self.marks.iter().rposition(|before| before.seq < mark.seq).expect("one before it");
                    assert_eq!(self.marks[before].seq, last, "a frame is left out");
                    self.sent = Some(mark.seq);
                }
                Some(Send::Block(block)) => match Signal::decode(&block).expect("a signal of ours") {
                    Signal::Resume { common, .. } => {
                        assert!(self.sent.is_none() && self.is_ours(common));
                        self.sent = Some(common.seq);
                    }
                    Signal::Sync { last, .. } => {
                        assert!(self.ends.contains(&last) && self.sent.is_some_and(|sent| sent >= last.seq));
                        assert!(last.seq <= self.core.committed() && last.seq <= self.acked);
                        if self.durability == Durability::Flush {
                            let frames = self.frames.iter().filter(|frame| frame.mark.seq <= last.seq);
                            assert!(frames.into_iter().all(|frame| frame.stable), "signalled before it is stable");
                        }
                    }
                },
            }
        }
    }

    fn flush(&mut self, count: usize) {
        let mut pieces = Vec::new();
        for _ in 0..count.max(1) {
            let Some(op) = self.core.next_flush(&mut pieces) else { return };
            assert!(op.run.length > 0 && op.run.offset + op.run.length <= self.volume_bytes);
            pieces.iter().for_each(|(place, bytes)| self.memory.assert_taken(*place, *bytes));
            let flushing = self.core.halves().iter().find(|half| half.state == State::Flushing).expect("a half");
            assert!(flushing.last.seq <= self.core.committed());
            self.ops.push(Op::Flush);
        }
        let _ = self.core.flush_is_late();
    }

    fn copy(&mut self, count: usize) {
        for _ in 0..count.max(1) {
            let Some((number, window)) = self.core.next_copy() else { return };
            assert!(window.length > 0 && window.offset + window.length <= self.volume_bytes);
            self.ops.push(Op::Copy(number, window));
        }
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

    fn disconnect(&mut self) {
        self.peer = false;
        self.sent = None;
        self.core.handle_link_down();
    }

    fn welcome(&mut self, welcome: Welcome) {
        if self.fenced || !self.mirrored {
            return;
        }
        self.disconnect();
        self.peer = true;
        if welcome.verdict == Verdict::Welcome && welcome.epoch <= EPOCH {
            let known = welcome.boundaries.iter().filter(|mark| self.is_ours(**mark));
            if welcome.fresh {
                let clean = self.core.superblock().clean;
                (self.acked, self.applied) = (clean.seq, clean.fill);
            } else if let Some(common) = known.map(|mark| mark.seq).max() {
                self.acked = common;
                self.note_applied(welcome.applied);
            }
        }
        self.core.handle_welcome(&welcome, &mut self.effects);
    }

    fn is_ours(&self, mark: Mark) -> bool {
        self.marks.iter().any(|ours| (ours.seq, ours.digest) == (mark.seq, mark.digest))
    }

    fn note_applied(&mut self, mark: Mark) {
        if self.ends.contains(&mark) {
            self.applied = self.applied.max(mark.fill);
            self.acked = self.acked.max(mark.seq);
        }
    }

    /// A report as it comes over the wire; one that can't be read ends the connection.
    fn receive(&mut self, report: Report) {
        match Report::decode(&report.encode()) {
            Ok(report) => self.report(report),
            Err(_) => self.disconnect(),
        }
    }

    fn report(&mut self, report: Report) {
        if !self.peer {
            return;
        }
        match report {
            Report::Stored(seq) if seq <= self.core.last() => self.acked = self.acked.max(seq),
            Report::Applied(mark) => self.note_applied(mark),
            _ => {}
        }
        self.core.handle_report(report, &mut self.effects);
    }

    fn check(&self) {
        assert!(self.core.waiting() <= MAX_WAITING_RECORDS);
        assert!(self.core.committed() <= self.core.last());
        for half in self.core.halves() {
            assert!(half.end <= MIN_HALF_BYTES);
            assert!(half.entries.len() <= 2 * (MIN_HALF_BYTES / BLOCK) as usize);
        }
        let _ = (self.core.next_deadline(), self.core.written(), self.core.copied(), self.core.verified());
    }

    /// Everything that is under way happens; nothing comes from outside.
    fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            self.turn();
            self.send(usize::MAX);
            self.flush(usize::MAX);
            self.copy(usize::MAX);
            if self.ops.is_empty() {
                return;
            }
            (0..self.ops.len()).for_each(|_| self.complete(0));
        }
        panic!("operations never end");
    }

    /// A destination that holds nothing connects, and does what it should.
    fn heal(&mut self) {
        self.settle();
        if self.fenced {
            return;
        }
        let nothing = Mark::default();
        self.welcome(Welcome { fresh: true, ..Welcome::refuse(Verdict::Welcome, EPOCH, "") });
        assert_eq!(self.peer, self.mirrored);
        self.core.handle_sync(self.syncs.len() as u64);
        self.syncs.push(self.syncs.len() as u64);
        for _ in 0..MAX_ROUNDS {
            self.now += MAX_AGE;
            self.turn();
            self.check();
            while self.peer
                && let Some(send) = self.core.next_to_send()
            {
                match send {
                    Send::Frame(id) => {
                        let mark = self.core.frame_pieces(id, &mut Vec::new()).expect("the frame to be sent").mark;
                        self.report(Report::Stored(mark.seq));
                    }
                    Send::Block(block) => match Signal::decode(&block).expect("a signal of ours") {
                        Signal::Sync { last, .. } => self.report(Report::Applied(last)),
                        Signal::Resume { from_scratch, .. } => assert!(from_scratch),
                    },
                }
                self.look();
            }
            self.flush(usize::MAX);
            self.copy(usize::MAX);
            (0..self.ops.len()).for_each(|_| self.complete(0));
            let clean = self.core.halves().iter().all(|half| half.state == State::Clean);
            if self.ops.is_empty()
                && self.effects.is_empty()
                && clean
                && self.core.waiting() == 0
                && self.core.copied().is_none()
            {
                break;
            }
        }
        assert!(self.tickets.is_empty(), "{} requests are never answered", self.tickets.len());
        assert!(self.syncs.iter().all(|token| *token == u64::MAX), "a sync is never done");
        assert_eq!(self.core.superblock().whole, self.mirrored);
        assert_eq!(self.memory.pieces(), 0, "memory is never given back");
        assert!(self.core.superblock().clean == *self.marks.last().unwrap_or(&nothing));
    }
}
