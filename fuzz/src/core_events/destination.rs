//! The destination's core. What holds whatever a source says: a record is acknowledged only when it and all before it
//! are in the journal files, and stable where a frame asks for that; nothing reaches an image that isn't complete and
//! stable in its file; a fill is called applied only when the images, or the staging log, are synced; while a resync is
//! staged no image is touched; a welcome names only what is stored; and a start finds all that was acknowledged. In the end
//! a promote serves all that is stored, or the images from before a resync.

use super::super::pick::{MarkPick, Number};
use super::super::structured::{Encode, List};
use super::files::{Files, records};
use arbitrary::{Arbitrary, Unstructured};
use nbd_mirror::core::Place;
use nbd_mirror::core::destination::{AppendOp, Destination, Effect, StagingPlan, State, StoreOp, Written};
use nbd_mirror::core::recovery::staged::{Bytes, Scan};
use nbd_mirror::core::recovery::{self, Recovered};
use nbd_mirror::format::block::Block;
use nbd_mirror::format::checksum::{crc32c, digest};
use nbd_mirror::format::frame::{FLAG_STABLE, FLAG_SYNC, Header, Kind, Record, verify_payload};
use nbd_mirror::format::ids::{Digest, Epoch, Fill, Id, Mark, Seq};
use nbd_mirror::format::ping::{OnDisconnect, Ping, Standing};
use nbd_mirror::format::superblock::{Phase, Role, Superblock, Volume};
use nbd_mirror::format::wire::{Report, Signal, Verdict, Welcome};
use nbd_mirror::limits::{BLOCK_BYTES, MAX_BOUNDARIES};
use std::ops::Range;
use std::time::Duration;

structured! {
    /// A destination, and what happens to it.
    struct DestinationPlay {
        volumes: u8,
        blocks: u16,
        half_blocks: u8,
        clean: u8,
        whole: bool,
        /// Blocks that the staging log may hold.
        staging_blocks: u8,
        best_effort: bool,
        events: List<DestinationEvent>,
    }

    /// One event.
    enum DestinationEvent {
        Connect { hello: Connect },
        /// Resumes where the destination is.
        ResumeHere,
        Resume { common: MarkPick },
        /// Asks to settle where the destination is.
        SettleHere,
        SettleAt { common: MarkPick },
        Restart { at: MarkPick },
        /// Begins anew some fills later.
        RestartBehind { fills: u8 },
        Ping { answered: Number, alone: bool },
        Ask { id: u8, volume: u8, block: u8, length: Number },
        Answer,
        /// Signals the end of what is stored.
        SyncHere { whole: bool },
        Sync { last: MarkPick, whole: bool },
        Frame { next_fill: bool, flags: u8, records: List<SentRecord>, edits: List<FrameEdit> },
        Store { count: u8 },
        Complete { which: u8 },
        CompleteAll,
        Turn,
        Apply { count: u8 },
        Disconnect,
        Promote,
        Settle,
    }

    /// Who introduces itself.
    enum Connect {
        Itself,
        Epoch { epoch: Number },
        Other,
        HalfBytes { bytes: Number },
        Volumes { count: u8 },
        VolumeBytes { bytes: Number },
    }

    /// A record.
    struct SentRecord { kind: u8, volume: u8, flags: u8, block: u16, length: u16 }

    /// A part of a header that isn't what it should be.
    struct FrameEdit { field: FrameField, value: Number }

    /// Which part; the last three are the first record's.
    enum FrameField { Source, Epoch, Incarnation, Fill, Position, First, Committed, Previous, Volume, Offset, Length }
}

const BLOCK: u64 = BLOCK_BYTES as u64;
const SOURCE: Id = Id([7; 16]);
const EPOCH: Epoch = Epoch(3);
/// Events of one play; more say nothing new.
const MAX_EVENTS: usize = 600;
/// Turns and rounds after which a core that nothing happens to must be still.
const MAX_ROUNDS: usize = 1000;

#[derive(Debug)]
enum Op {
    Store(StoreOp),
    /// With the frames that it makes stable.
    FileSync(Vec<Mark>),
    /// What it says.
    State(Box<Superblock>),
    Erase(usize, u64),
    Apply,
    ImageSync(u16),
    Append(AppendOp),
    StagingSync,
    StageRestart(Box<Block>, u64),
    Free,
    Segment(Range<u64>),
    Drain,
    DrainSync(u16),
}

/// A frame that the destination took.
#[derive(Debug, Clone)]
struct Held {
    mark: Mark,
    start: u64,
    end: u64,
    flags: u16,
    handed: bool,
    written: bool,
    stable: bool,
}

struct Driver {
    core: Destination,
    files: Files,
    half_bytes: u64,
    ops: Vec<Op>,
    effects: Vec<Effect>,
    /// Boundary before the first of `frames`.
    base: Mark,
    frames: Vec<Held>,
    resumed: bool,
    /// What was reported as stored last over this connection.
    reported: Seq,
    /// The highest record that counts as acknowledged: reported, or named by a welcome that was resumed from.
    acked: Seq,
    /// The end of the last fill that the durable state calls applied.
    durable: Mark,
    /// The durable state.
    state: Superblock,
    plan: StagingPlan,
    log: Vec<u8>,
    /// Whether the log was written to since it was synced last.
    log_unsynced: bool,
    /// The source was told that all is settled.
    settled: bool,
    /// Questions under way.
    asked: usize,
    /// Volumes written to since they were synced last.
    unsynced: u32,
    promoted: Option<Mark>,
}

/// Runs it.
pub fn run(play: &DestinationPlay) {
    let mut driver = Driver::new(play);
    driver.turn();
    for event in play.events.0.iter().take(MAX_EVENTS) {
        if driver.promoted.is_some() {
            break;
        }
        driver.event(event);
        driver.check();
    }
    driver.heal();
}

impl Driver {
    fn new(play: &DestinationPlay) -> Driver {
        let half_bytes = (4 + u64::from(play.half_blocks)) * BLOCK;
        let clean = match play.clean {
            0 => Mark::default(),
            n => Mark { fill: Fill(n.into()), seq: Seq(u64::from(n) * 10), digest: Digest(n.into()) },
        };
        let volume = |number: u8| Volume {
            name: format!("vol{number}"),
            size_bytes: (1 + u64::from(play.blocks)) * BLOCK,
            block_bytes: 512,
        };
        let volumes = (0..1 + play.volumes % 3).map(volume).collect();
        let first = Superblock::first(Role::Destination, SOURCE, "alpha", half_bytes, EPOCH, volumes);
        let superblock = Superblock { generation: 2, clean, whole: play.whole, ..first };
        let recovered = Recovered { end: clean, ..Recovered::default() };
        let limit_bytes = u64::from(play.staging_blocks) * BLOCK;
        let plan = StagingPlan { limit_bytes, best_effort: play.best_effort };
        let touched = Scan::new(&superblock).finish().expect("there is no log");
        Driver {
            state: superblock.clone(),
            plan,
            log: Vec::new(),
            log_unsynced: false,
            settled: false,
            asked: 0,
            core: Destination::recover(superblock, plan, touched, recovered, |_| {
                unreachable!("no frame was recovered")
            }),
            files: Files::new(half_bytes),
            half_bytes,
            ops: Vec::new(),
            effects: Vec::new(),
            base: clean,
            frames: Vec::new(),
            resumed: false,
            reported: clean.seq,
            acked: clean.seq,
            durable: clean,
            unsynced: 0,
            promoted: None,
        }
    }

    fn event(&mut self, event: &DestinationEvent) {
        match event {
            DestinationEvent::Connect { hello } => self.connect(hello),
            DestinationEvent::ResumeHere => self.signal(Signal::Resume { common: self.core.stored() }),
            DestinationEvent::Resume { common } => self.signal(Signal::Resume { common: common.of(&self.marks()) }),
            DestinationEvent::SettleHere => self.signal(Signal::Settle { common: self.core.stored() }),
            DestinationEvent::SettleAt { common } => self.signal(Signal::Settle { common: common.of(&self.marks()) }),
            DestinationEvent::Restart { at } => self.signal(Signal::Restart { at: at.of(&self.marks()) }),
            DestinationEvent::RestartBehind { fills } => {
                let Mark { fill, seq, digest } = self.core.stored();
                let more = u64::from(*fills);
                let digest = Digest(digest.0 ^ more);
                let at = Mark { fill: Fill(fill.0.wrapping_add(more)), seq: Seq(seq.0.wrapping_add(9 * more)), digest };
                self.signal(Signal::Restart { at });
            }
            DestinationEvent::Ping { answered, alone } => {
                let standing = if *alone { Standing::Alone } else { Standing::Bound };
                let (answered, on_disconnect) = (Seq(answered.near(self.core.stored().seq.0)), OnDisconnect::Continue);
                self.signal(Signal::Ping(Ping {
                    answered,
                    standing,
                    on_disconnect,
                    timeout_ms: 1000,
                    echo: answered.0,
                }));
                self.core.warrant(Duration::from_secs(1)).decide();
            }
            DestinationEvent::Ask { id, volume, block, length } => {
                let (offset, length) = (u64::from(*block) * BLOCK, length.near(BLOCK) as u32);
                self.signal(Signal::Ask { id: (*id).into(), volume: (*volume).into(), offset, length });
            }
            DestinationEvent::Answer => self.answer(),
            DestinationEvent::SyncHere { whole } => {
                self.signal(Signal::Sync { last: self.core.stored(), whole: *whole });
            }
            DestinationEvent::Sync { last, whole } => {
                self.signal(Signal::Sync { last: last.of(&self.marks()), whole: *whole });
            }
            DestinationEvent::Frame { next_fill, flags, records, edits } => {
                if self.core.connected() && self.frame(*next_fill, *flags, &records.0, &edits.0).is_err() {
                    self.disconnect();
                }
            }
            DestinationEvent::Store { count } => self.store((*count).into()),
            DestinationEvent::Complete { which } => self.complete((*which).into()),
            DestinationEvent::CompleteAll => (0..self.ops.len()).for_each(|_| self.complete(0)),
            DestinationEvent::Turn => self.turn(),
            DestinationEvent::Apply { count } => self.apply((*count).into()),
            DestinationEvent::Disconnect => self.disconnect(),
            DestinationEvent::Promote => self.promote(),
            DestinationEvent::Settle => self.settle(),
        }
    }

    /// All boundaries, the newest last.
    fn marks(&self) -> Vec<Mark> {
        std::iter::once(self.base).chain(self.frames.iter().map(|frame| frame.mark)).collect()
    }

    fn received(&self) -> Mark {
        self.frames.last().map_or(self.base, |frame| frame.mark)
    }

    fn connect(&mut self, hello: &Connect) {
        let mut source = Superblock { role: Role::Source, ..self.core.superblock().clone() };
        source.epoch = EPOCH;
        match hello {
            Connect::Itself => {}
            Connect::Epoch { epoch } => source.epoch = Epoch(epoch.near(EPOCH.0)),
            Connect::Other => source.source = Id([8; 16]),
            Connect::HalfBytes { bytes } => source.half_bytes = bytes.near(self.half_bytes),
            Connect::Volumes { count } => source.volumes.truncate((*count).into()),
            Connect::VolumeBytes { bytes } => source.volumes[0].size_bytes = bytes.near(source.volumes[0].size_bytes),
        }
        if self.core.connected() {
            if source.source != SOURCE {
                return;
            }
            self.disconnect();
        }
        let Ok(welcome) = self.core.welcome(&source) else { return };
        assert_eq!(Welcome::decode(&welcome.encode()).map(|again| again.boundaries).as_ref(), Ok(&welcome.boundaries));
        if welcome.verdict != Verdict::Welcome {
            assert!(!welcome.reason.is_empty() && welcome.boundaries.is_empty());
            return;
        }
        assert!(source.epoch == EPOCH && !welcome.boundaries.is_empty() && welcome.boundaries.len() <= MAX_BOUNDARIES);
        assert!(welcome.boundaries.is_sorted_by_key(|mark| mark.seq));
        let marks = self.marks();
        assert!(welcome.boundaries.iter().all(|mark| marks.contains(mark)), "a boundary that never was");
        assert_eq!(welcome.boundaries.last(), Some(&self.core.stored()));
        // Counted as acknowledged by the source, so nothing of it may be lost any more.
        let mut frames = self.frames.iter().filter(|frame| frame.mark.seq > self.durable.seq);
        assert!(frames.all(|frame| frame.written && frame.stable), "named before it is stable");
        self.core.handle_connected(Duration::ZERO);
        (self.resumed, self.settled) = (false, false);
        assert_eq!(self.asked, 0, "an answer for another connection is under way");
    }

    fn answer(&mut self) {
        let mut segments = Vec::new();
        if let Some(ask) = self.core.next_ask(&mut segments) {
            assert!(self.resumed, "nobody is there to be answered");
            assert_eq!(segments.iter().map(|segment| segment.length).sum::<u64>(), u64::from(ask.length));
            (0..ask.count()).for_each(|number| {
                assert!(!ask.block(number).is_empty() && (ask.knows(number) || !self.log.is_empty()))
            });
            self.asked += 1;
        } else if self.asked > 0 {
            self.asked -= 1;
            assert_eq!(self.core.handle_summed(), self.resumed);
        }
    }

    fn signal(&mut self, signal: Signal) {
        if !self.core.connected() {
            return;
        }
        let Ok(signal) = Signal::decode(&signal.encode()) else { return self.disconnect() };
        let files = &self.files;
        let mut rescan = |before, until| files.rescan(SOURCE, before, until);
        if self.core.handle_signal(Duration::ZERO, signal, &mut rescan, &mut self.effects).is_err() {
            if matches!(signal, Signal::Resume { .. } | Signal::Settle { .. }) && !self.resumed {
                // Frames may have been dropped before it failed.
                self.forget_after(self.core.stored());
            }
            self.look();
            return self.disconnect();
        }
        match signal {
            Signal::Resume { common } | Signal::Settle { common } => {
                self.forget_after(common);
                assert_eq!((self.core.stored(), self.received()), (common, common));
                self.resumed = matches!(signal, Signal::Resume { .. });
                (self.reported, self.acked) = (common.seq, common.seq);
            }
            Signal::TakeOver { at } => assert_eq!(at, self.core.stored()),
            Signal::Restart { at } => {
                assert!(self.frames.is_empty() || self.settled, "everything is thrown away");
                assert!(self.received().seq <= self.durable.seq, "what isn't clean is thrown away");
                self.frames.clear();
                self.base = at;
                if self.core.staging_trouble().is_some() {
                    // It found no room; the connection is closed next.
                    self.base = self.core.stored();
                }
                assert_eq!(self.core.stored(), self.base);
                (self.resumed, self.settled, self.reported, self.acked) = (true, false, at.seq, self.durable.seq);
            }
            Signal::Sync { .. } | Signal::Ping(_) | Signal::Ask { .. } => {}
        }
        self.look();
    }

    fn forget_after(&mut self, mark: Mark) {
        let sealed = self.core.halves().iter().filter(|half| half.state == State::Sealed);
        assert!(sealed.into_iter().all(|half| half.last.seq <= mark.seq), "dropped out of a complete fill");
        self.frames.retain(|frame| frame.mark.seq <= mark.seq);
    }

    /// A frame arrives as in the engine: the header is checked, then the payload. An error closes the connection.
    fn frame(&mut self, next_fill: bool, flags: u8, sent: &[SentRecord], edits: &[FrameEdit]) -> Result<(), String> {
        let after = self.received();
        let half = &self.core.halves()[after.fill.half()];
        let goes_on = half.fill == after.fill && half.state == State::Open && !next_fill;
        let mut all: Vec<Record> = sent.iter().take(8).map(|record| record.record(self.core.superblock())).collect();
        if all.is_empty() {
            all.push(Record { volume: 0, kind: Kind::Flush, flags: 0, offset: 0, length: 0, checksum: 0 });
        }
        let mut header = Header {
            flags: [0, FLAG_STABLE, FLAG_SYNC, FLAG_STABLE | FLAG_SYNC][usize::from(flags % 4)],
            source: SOURCE,
            epoch: EPOCH,
            incarnation: 1,
            fill: if goes_on { after.fill } else { Fill(after.fill.0.wrapping_add(1)) },
            position: if goes_on { half.received } else { 0 },
            first: Seq(after.seq.0.wrapping_add(1)),
            committed: Seq(0),
            stable_here: Seq(0),
            previous: after.digest,
            payload_bytes: 0,
            count: 0,
        };
        edits.iter().for_each(|edit| edit.apply(&mut header, &mut all[0]));
        let mut block = [0; BLOCK_BYTES];
        header.encode(all.iter(), &mut block);
        let header = Header::parse(&block).map_err(|error| error.to_string())?;
        self.core.admit(&header)?;
        assert!(self.resumed && header.position + header.frame_bytes() <= self.half_bytes);
        assert_eq!((header.source, header.epoch, header.previous), (SOURCE, EPOCH, after.digest));
        assert_eq!((header.first.0, header.position), (after.seq.0 + 1, if goes_on { half.received } else { 0 }));
        self.files.receive(&header, &block);
        verify_payload(&header, &block, |at| crc32c(&vec![0; at.len()])).map_err(|error| error.to_string())?;
        let chained = digest(&block);
        self.core.handle_frame(&header, chained, records(&header, &block))?;
        for record in header.records(&block) {
            assert!(record.end() <= self.core.superblock().volumes[usize::from(record.volume)].size_bytes);
        }
        self.frames.push(Held {
            mark: Mark { fill: header.fill, seq: header.last(), digest: chained },
            start: header.position,
            end: header.position + header.frame_bytes(),
            flags: header.flags,
            handed: false,
            written: false,
            stable: false,
        });
        Ok(())
    }

    /// What is asked for is looked at in the moment it is asked for.
    fn look(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Report(report) => self.reported(report),
                // Whether it is promoted is another event's to decide.
                Effect::TakeOver => {}
                Effect::SyncMoved(_) | Effect::FreeSlot(_) => unreachable!("there is no shared log"),
                Effect::SyncFile(half) => {
                    let frames = self.frames.iter().filter(|frame| frame.written && frame.mark.fill.half() == half);
                    self.ops.push(Op::FileSync(frames.map(|frame| frame.mark).collect()));
                }
                Effect::WriteState(..) => {
                    assert!(!self.ops.iter().any(|op| matches!(op, Op::State(_))), "two states under way");
                    let superblock = self.core.superblock();
                    let (now, before) = (superblock.staging, self.state.staging);
                    if superblock.clean != self.durable && before.phase == Phase::Direct {
                        assert!(!self.ops.iter().any(|op| matches!(op, Op::Apply | Op::ImageSync(_))));
                        assert_eq!(self.unsynced, 0, "applied before the images are synced");
                    }
                    if now.phase == before.phase && now.tail != before.tail {
                        assert!(!self.log_unsynced, "staged before the log is synced");
                    }
                    if now.phase == before.phase && now.head != before.head {
                        assert_eq!(self.unsynced, 0, "drained before the images are synced");
                    }
                    assert!(!superblock.promoted || superblock.known == [self.core.stored()]);
                    self.ops.push(Op::State(Box::new(superblock.clone())));
                }
                Effect::Erase(half, position) => {
                    let kept = |frame: &&Held| frame.mark.fill.half() == half && frame.start == position;
                    let applied = |frame: &&Held| frame.mark.seq <= self.durable.seq;
                    assert!(position + BLOCK <= self.half_bytes);
                    assert!(!self.frames.iter().filter(kept).any(|frame| !applied(&frame)) || !self.resumed);
                    self.ops.push(Op::Erase(half, position));
                }
                Effect::SyncImage(volume) => {
                    assert!(!self.ops.iter().any(|op| matches!(op, Op::Apply)), "synced before all is written");
                    self.ops.push(Op::ImageSync(volume));
                }
                Effect::SyncStaging => self.ops.push(Op::StagingSync),
                Effect::StageRestart(block, at) => self.ops.push(Op::StageRestart(block, at)),
                Effect::FreeStaging(range) => {
                    assert!(range.start < range.end);
                    self.ops.push(Op::Free);
                }
                Effect::SyncDrained(volume) => {
                    assert!(!self.ops.iter().any(|op| matches!(op, Op::Drain)), "synced before all is written");
                    self.ops.push(Op::DrainSync(volume));
                }
                Effect::Disconnect(reason) => {
                    assert!(!reason.is_empty() && !self.plan.best_effort && self.core.promotable());
                    self.disconnect();
                    if self.core.stored().seq < self.base.seq {
                        // It was a restart that found no room.
                        assert!(self.frames.is_empty());
                        self.base = self.core.stored();
                    }
                }
                Effect::Promoted(mark) => {
                    assert!(self.state.promoted && self.state.known == [mark] && mark == self.core.stored());
                    // Whoever serves the images writes to them from now on.
                    assert!(!self.ops.iter().any(|op| matches!(op, Op::Store(_) | Op::Apply | Op::Drain)));
                    self.promoted = Some(mark);
                }
                Effect::Applied(mark) => assert_eq!(mark, self.durable),
            }
        }
    }

    fn reported(&mut self, report: Report) {
        let words = matches!(report, Report::Pong { .. } | Report::Settled(_));
        assert!(self.core.connected() && (self.resumed || words), "{report:?} to nobody");
        match report {
            Report::Pong { .. } => {}
            Report::Settled(mark) => {
                assert_eq!((mark, mark, self.settled), (self.durable, self.core.stored(), false));
                self.settled = true;
            }
            Report::Sums { .. } => panic!("only the engine says so"),
            Report::Stored(seq) => {
                assert!(seq > self.reported, "record {seq} is reported again");
                (self.reported, self.acked) = (seq, seq);
                let frames = || self.frames.iter().filter(|frame| frame.mark.seq <= seq);
                assert!(seq <= self.received().seq && frames().all(|frame| frame.written));
                let synced = frames().rfind(|frame| frame.flags & FLAG_SYNC != 0).map_or(0, |frame| frame.mark.seq.0);
                let must = |frame: &Held| frame.flags & FLAG_STABLE != 0 || frame.mark.seq.0 <= synced;
                assert!(frames().all(|frame| frame.stable || !must(frame)), "acknowledged before it is stable");
            }
            Report::Applied(mark) => assert_eq!(mark, self.durable, "reported before the state is durable"),
            Report::Fenced(_) => panic!("only the engine says so"),
        }
    }

    fn turn(&mut self) {
        for _ in 0..MAX_ROUNDS {
            self.core.handle_turn(&mut self.effects);
            if self.effects.is_empty() {
                return;
            }
            self.look();
        }
        panic!("the core is never done");
    }

    fn store(&mut self, count: usize) {
        for _ in 0..count.max(1) {
            let Some(op) = self.core.next_store() else { return };
            assert!(!self.ops.iter().any(|op| matches!(op, Op::Erase(..))), "stored before the old is erased");
            let first = self.frames.iter().position(|frame| !frame.handed).expect("a frame to be stored");
            let fill = self.frames[first].mark.fill;
            assert!(op.half == fill.half() && op.start == self.frames[first].start && op.start < op.end);
            let frames = self.frames[first..].iter_mut().take_while(|frame| frame.mark.fill == fill);
            for frame in frames.filter(|frame| frame.end <= op.end) {
                frame.handed = true;
                assert!(op.stable || frame.flags & FLAG_STABLE == 0);
            }
            assert!(self.frames.iter().any(|frame| frame.mark.fill == fill && frame.handed && frame.end == op.end));
            self.ops.push(Op::Store(op));
        }
    }

    fn apply(&mut self, count: usize) {
        let mut pieces = Vec::new();
        for _ in 0..count.max(1) {
            let Some(op) = self.core.next_apply(&mut pieces) else { break };
            let superblock = self.core.superblock();
            let volume = &superblock.volumes[usize::from(op.volume)];
            assert!(op.run.length > 0 && op.run.offset + op.run.length <= volume.size_bytes);
            let fill = superblock.clean.fill.next();
            let mut frames = self.frames.iter().filter(|frame| frame.mark.fill == fill);
            assert!(frames.all(|frame| frame.written && frame.stable), "applied before it is stable in its file");
            assert_eq!(self.state.staging.phase, Phase::Direct, "applied beside a log");
            self.unsynced |= 1 << op.volume;
            self.ops.push(Op::Apply);
        }
        while let Some(op) = self.core.next_append() {
            let fill = self.core.superblock().clean.fill.next();
            let mut frames = self.frames.iter().filter(|frame| frame.mark.fill == fill);
            assert!(op.half == fill.half() && frames.all(|frame| frame.written && frame.stable));
            self.ops.push(Op::Append(op));
        }
        self.ops.extend(self.core.next_segment().map(Op::Segment));
        while let Some(op) = self.core.next_drain(&mut pieces) {
            assert_eq!(self.state.staging.phase, Phase::Draining, "drained before it is durable that it is");
            self.unsynced |= 1 << op.volume;
            self.ops.push(Op::Drain);
        }
        let _ = self.core.drain_is_late();
        let _ = self.core.apply_is_late();
    }

    fn complete(&mut self, which: usize) {
        if self.ops.is_empty() {
            return;
        }
        let op = self.ops.remove(which % self.ops.len());
        match op {
            Op::Store(op) => {
                self.files.store(op);
                let handed = self.frames.iter_mut().filter(|frame| frame.handed && !frame.written);
                for frame in handed.filter(|frame| frame.mark.fill.half() == op.half) {
                    if frame.start >= op.start && frame.end <= op.end {
                        frame.written = true;
                        frame.stable = op.stable;
                    }
                }
                self.core.handle_stored(op, &mut self.effects);
            }
            Op::FileSync(marks) => {
                self.frames
                    .iter_mut()
                    .filter(|frame| marks.contains(&frame.mark))
                    .for_each(|frame| frame.stable = true);
                self.core.handle_file_synced(&mut self.effects);
            }
            Op::State(state) => {
                assert!(
                    self.plan.best_effort || promotable(&state) || !promotable(&self.state),
                    "nothing is promotable"
                );
                (self.durable, self.state) = (state.clean, *state);
                self.core.handle_state_written(&mut self.effects);
            }
            Op::Append(op) => {
                let bytes = self.files.memory(op.half, op.start..op.end).to_vec();
                self.write_log(op.at, &bytes);
                self.log_unsynced = true;
                self.core.handle_appended(Written::All);
            }
            Op::StagingSync => {
                self.log_unsynced = false;
                self.core.handle_staging_synced(Written::All);
            }
            Op::StageRestart(block, at) => {
                self.write_log(at, &block[..]);
                self.core.handle_restart_staged(Written::All, &mut self.effects);
            }
            Op::Free => self.core.handle_staging_freed(),
            Op::Segment(range) => {
                let bytes = &self.log[range.start as usize..range.end as usize];
                let piece = Bytes { start: range.start, bytes };
                self.core.handle_segment(&piece, Place(1 << 50)).expect("the log is whole");
            }
            Op::Drain => self.core.handle_drained(),
            Op::DrainSync(volume) => {
                self.unsynced &= !(1 << volume);
                self.core.handle_drain_synced(volume);
            }
            Op::Erase(half, position) => {
                self.files.erase(half, position);
                self.core.handle_erased();
            }
            Op::Apply => self.core.handle_applied(),
            Op::ImageSync(volume) => {
                self.unsynced &= !(1 << volume);
                self.core.handle_image_synced(volume);
            }
        }
        self.look();
    }

    fn disconnect(&mut self) {
        if self.core.connected() {
            self.core.handle_disconnected();
            (self.resumed, self.settled) = (false, false);
            self.frames.retain(|frame| frame.handed);
        }
    }

    fn promote(&mut self) {
        self.disconnect();
        if let Some(base) = self.core.base() {
            // What came behind it is no whole copy.
            self.acked = base.seq;
        }
        self.core.handle_promote(&mut self.effects);
        self.look();
    }

    fn check(&self) {
        for half in self.core.halves() {
            assert!(half.stored <= half.handed && half.handed <= half.received && half.received <= self.half_bytes);
            let _ = half.word();
        }
        assert!(self.core.stored().seq <= self.received().seq);
        let _ = (self.core.fresh(), self.core.verified(), self.core.heard());
        // What the core calls promotable is so by the durable state.
        assert!(!self.core.promotable() || promotable(&self.state));
    }

    fn write_log(&mut self, at: u64, bytes: &[u8]) {
        let end = at as usize + bytes.len();
        if self.log.len() < end {
            self.log.resize(end, 0);
        }
        self.log[at as usize..end].copy_from_slice(bytes);
    }

    /// Everything that is under way happens; nothing comes from outside.
    fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            self.turn();
            self.store(usize::MAX);
            self.apply(usize::MAX);
            self.answer();
            if self.ops.is_empty() && self.asked == 0 {
                return;
            }
            (0..self.ops.len()).for_each(|_| self.complete(0));
        }
        panic!("operations never end");
    }

    /// The connection goes, a restart would find all that counts, and a promote serves it.
    fn heal(&mut self) {
        if self.promoted.is_none() {
            self.disconnect();
            self.settle();
        }
        if self.promoted.is_none() {
            let found = recovery::recover(&self.files.files(), SOURCE, self.durable, false).expect("nothing vouches");
            assert_eq!(found.end, self.core.stored(), "a start finds something else");
            assert!(found.end.seq >= self.acked);
            let mut scan = Scan::new(&self.state);
            while let Some(range) = scan.wants() {
                let bytes = &self.log[range.start as usize..range.end as usize];
                scan.take(&Bytes { start: range.start, bytes }).expect("the log is whole");
            }
            scan.finish().expect("the log ends where the state says");
            self.promote();
            self.settle();
        }
        let stored = self.core.stored();
        assert_eq!((self.promoted, &self.state.known), (Some(stored), &vec![stored]));
        if self.durable != stored {
            // Whoever serves the images finds what isn't on them.
            let found = recovery::recover(&self.files.files(), SOURCE, self.durable, self.state.whole);
            assert_eq!(found.expect("nothing is damaged").end, stored, "the journal files end elsewhere");
        }
        assert!(self.core.superblock().epoch > EPOCH && stored.seq >= self.acked);
    }
}

/// Whether a state says that a promote would give a consistent image.
fn promotable(state: &Superblock) -> bool {
    state.whole || state.staging.phase == Phase::Staging
}

impl SentRecord {
    fn record(&self, superblock: &Superblock) -> Record {
        let kind = [Kind::Write, Kind::Trim, Kind::WriteZeroes, Kind::Flush][usize::from(self.kind % 4)];
        let volume = (usize::from(self.volume) % superblock.volumes.len()) as u16;
        let size_bytes = superblock.volumes[usize::from(volume)].size_bytes;
        let offset = u64::from(self.block) * BLOCK % size_bytes;
        let length = u64::from(self.length).clamp(1, size_bytes - offset) as u32;
        let (offset, length) = if kind == Kind::Flush { (0, 0) } else { (offset, length) };
        let checksum = if kind == Kind::Write { crc32c(&vec![0; length as usize]) } else { 0 };
        Record { volume, kind, flags: self.flags % 8, offset, length, checksum }
    }
}

impl FrameEdit {
    fn apply(&self, header: &mut Header, record: &mut Record) {
        let value = |from: u64| self.value.near(from);
        match self.field {
            FrameField::Source => header.source = Id([value(7) as u8; 16]),
            FrameField::Epoch => header.epoch = Epoch(value(header.epoch.0)),
            FrameField::Incarnation => header.incarnation = value(header.incarnation),
            FrameField::Fill => header.fill = Fill(value(header.fill.0)),
            FrameField::Position => header.position = value(header.position),
            FrameField::First => header.first = Seq(value(header.first.0)),
            FrameField::Committed => header.committed = Seq(value(header.committed.0)),
            FrameField::Previous => header.previous = Digest(value(header.previous.0)),
            FrameField::Volume => record.volume = value(record.volume.into()) as u16,
            FrameField::Offset => record.offset = value(record.offset),
            FrameField::Length => record.length = value(record.length.into()) as u32,
        }
    }
}
