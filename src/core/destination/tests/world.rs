//! A destination with disks of its own, that can lose power at any moment, and what its source has written so far.
//!
//! Blocks of the volume hold one byte each, many times. What completes is stable; what was under way in a power cut has
//! arrived or not, by turns.

use super::super::super::flush::FlushOp;
use super::super::super::index::Action;
use super::super::super::recovery::staged::{Bytes, Scan};
use super::super::super::recovery::{self, Halves as _, Rescanned};
use super::super::*;
use crate::format::block::Block;
use crate::format::checksum::{self, crc32c};
use crate::format::frame::{FLAG_STABLE, Header, Kind};
use crate::format::ids::{Digest, Epoch, Fill, Id};
use crate::format::superblock::{Role, Volume};
use crate::format::wire::Signal;
use crate::limits::{BLOCK_BYTES, DRAIN_BYTES};
use std::collections::VecDeque;
use std::time::Duration;

pub const BLOCK: u64 = BLOCK_BYTES as u64;
/// The smallest half that a state may name.
pub const HALF: u64 = 257 * BLOCK;
/// Blocks of the only volume.
pub const BLOCKS: usize = 256;
/// The log may take the bytes of four halves.
pub const PLAN: StagingPlan = StagingPlan { limit_bytes: 4 * HALF, best_effort: false };
const SOURCE: Id = Id([1; 16]);

/// A volume's contents, a byte for each block.
pub type Contents = Vec<u8>;

pub fn superblock(role: Role) -> Superblock {
    let volume = Volume { name: "vol0".into(), size_bytes: BLOCKS as u64 * BLOCK, block_bytes: 512 };
    Superblock::first(role, SOURCE, "alpha", HALF, Epoch(1), vec![volume])
}

/// An operation under way, with what it writes.
#[derive(Debug, Clone)]
enum Op {
    Store(StoreOp, Vec<u8>),
    FileSync,
    State(Box<Block>, u64),
    Erase(usize, u64),
    Image { at: usize, contents: Vec<u8>, drain: bool },
    ImageSync(u16),
    Append(Vec<u8>, u64),
    StagingSync,
    StageRestart(Box<Block>, u64),
    Free(Range<u64>),
    Segment(Range<u64>),
    DrainSync(u16),
}

/// What survives.
#[derive(Debug, Clone)]
pub struct Disks {
    pub files: [Vec<u8>; 2],
    pub log: Vec<u8>,
    pub image: Contents,
    state: [Box<Block>; 2],
}

impl Disks {
    fn put(to: &mut Vec<u8>, at: usize, bytes: &[u8]) {
        if to.len() < at + bytes.len() {
            to.resize(at + bytes.len(), 0);
        }
        to[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn write(&mut self, op: &Op) {
        match op {
            Op::Store(op, bytes) => Disks::put(&mut self.files[op.half], op.start as usize, bytes),
            Op::State(block, at) => self.state[(at / BLOCK) as usize] = block.clone(),
            Op::Erase(half, at) => Disks::put(&mut self.files[*half], *at as usize, &[0; BLOCK_BYTES]),
            Op::Image { at, contents, .. } => Disks::put(&mut self.image, *at, contents),
            Op::Append(bytes, at) => Disks::put(&mut self.log, *at as usize, bytes),
            Op::StageRestart(block, at) => Disks::put(&mut self.log, *at as usize, &block[..]),
            Op::Free(range) => {
                let end = self.log.len().min(range.end as usize);
                self.log[range.start as usize..end].fill(0);
            }
            Op::FileSync | Op::ImageSync(_) | Op::StagingSync | Op::Segment(_) | Op::DrainSync(_) => {}
        }
    }

    pub fn state(&self) -> Superblock {
        Superblock::newest(Role::Destination, [&self.state[0], &self.state[1]]).unwrap()
    }

    /// What a promote serves: the image, with what is only in the journal files on top.
    fn served(&self) -> Contents {
        let (state, mut contents) = (self.state(), self.image.clone());
        if state.clean == state.known[0] {
            return contents;
        }
        let halves = [&self.files[0][..], &self.files[1]];
        let found = recovery::recover(&halves, SOURCE, state.clean, state.whole).unwrap();
        assert_eq!(found.end, state.known[0], "the journal files end elsewhere");
        for frame in found.first.iter().chain(&found.second) {
            let (half, position) = (frame.header.fill.half(), frame.header.position);
            let block = halves.block(half, position).unwrap();
            for (record, place) in recovery::records(&frame.header, block, Place(position + BLOCK)) {
                assert_eq!((record.kind, record.length), (Kind::Write, BLOCK_BYTES as u32));
                contents[(record.offset / BLOCK) as usize] = halves[half][place.0 as usize];
            }
        }
        contents
    }
}

pub struct World {
    pub core: Destination,
    pub effects: Vec<Effect>,
    pub reports: Vec<Report>,
    pub cut_off: Option<String>,
    /// The source handed over.
    pub taken_over: bool,
    pub promoted: Option<Mark>,
    pub disks: Disks,
    /// Appends and restarts find no room.
    pub full: bool,
    memory: [Vec<u8>; 2],
    drain: Vec<u8>,
    ops: VecDeque<Op>,
    /// Operations that don't complete, however long one waits.
    pub hold: Hold,
    /// Operations that may still complete before power fails.
    pub left: usize,
    /// The source's last frame, where its next goes, and what the volume holds.
    pub last: Mark,
    pub position: u64,
    pub volume: Contents,
    /// What time it is.
    pub now: Duration,
}

/// What is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    Nothing,
    States,
    Erases,
    Frees,
}

/// The power failed.
#[derive(Debug)]
pub struct Cut;

impl World {
    /// Holds nothing yet.
    pub fn new(plan: StagingPlan) -> World {
        let mut first = superblock(Role::Destination);
        first.generation = 2;
        let files = [(); 2].map(|()| vec![0; HALF as usize]);
        let state = [first.encode(), Superblock { generation: 1, ..first }.encode()];
        let disks = Disks { files, log: Vec::new(), image: vec![0; BLOCKS], state };
        World::start(disks, plan).unwrap()
    }

    /// What a start makes of the disks.
    pub fn start(disks: Disks, plan: StagingPlan) -> Result<World, String> {
        let mut state = disks.state();
        let halves = [&disks.files[0][..], &disks.files[1]];
        let found =
            recovery::recover(&halves, SOURCE, state.clean, state.whole).map_err(|damage| damage.to_string())?;
        let mut files = disks.files.clone();
        for (half, position) in found.loose_ends(HALF) {
            files[half][position as usize..][..BLOCK_BYTES].fill(0);
        }
        let mut scan = Scan::new(&state);
        while let Some(range) = scan.wants() {
            let bytes = &disks.log[range.start as usize..range.end as usize];
            scan.take(&Bytes { start: range.start, bytes }).map_err(|damage| damage.to_string())?;
        }
        let touched = scan.finish().map_err(|damage| damage.to_string())?;
        let last = found.end;
        let position = found.second.last().or(found.first.last());
        let position = position.map_or(0, |found| found.header.position + found.header.frame_bytes());
        state.generation += 1;
        let core = Destination::recover(state, plan, touched, found, |found| {
            let (half, position) = (found.header.fill.half(), found.header.position);
            let payload = Place(half as u64 * HALF + position + BLOCK);
            recovery::records(&found.header, halves.block(half, position).unwrap(), payload)
        });
        Ok(World {
            core,
            effects: Vec::new(),
            reports: Vec::new(),
            cut_off: None,
            taken_over: false,
            promoted: None,
            memory: files.clone(),
            drain: vec![0; DRAIN_BYTES as usize],
            ops: VecDeque::new(),
            hold: Hold::Nothing,
            left: usize::MAX,
            disks: Disks { files, ..disks },
            full: false,
            last,
            position,
            volume: vec![0; BLOCKS],
            now: Duration::ZERO,
        })
    }

    /// Power fails now: every second operation under way arrives, beginning with the first or with the second.
    pub fn cut(mut self, first: bool) -> Disks {
        for (number, op) in self.ops.iter().enumerate() {
            if (number % 2 == 0) == first {
                self.disks.write(op);
            }
        }
        self.disks
    }

    pub fn connect(&mut self) -> Welcome {
        let welcome = self.core.welcome(&superblock(Role::Source)).unwrap();
        if welcome.verdict == Verdict::Welcome {
            self.core.handle_connected(self.now);
        }
        welcome
    }

    pub fn signal(&mut self, signal: Signal) -> Result<(), String> {
        let memory = self.memory.clone();
        let mut rescan = |before: Mark, until: Mark| -> Vec<Rescanned> {
            let half = Place(until.fill.half() as u64 * HALF);
            recovery::rescan(&[&memory[0][..], &memory[1]], SOURCE, before, until, half)
        };
        self.core.handle_signal(self.now, signal, &mut rescan, &mut self.effects)
    }

    /// The source writes a byte to a block, and the frame arrives.
    pub fn write(&mut self, fill: u64, block: usize, byte: u8) -> Mark {
        if Fill(fill) != self.last.fill {
            self.position = 0;
        }
        self.volume[block] = byte;
        let payload = [byte; BLOCK_BYTES];
        let record = Record {
            volume: 0,
            kind: Kind::Write,
            flags: 0,
            offset: block as u64 * BLOCK,
            length: BLOCK_BYTES as u32,
            checksum: crc32c(&payload),
        };
        let header = Header {
            flags: FLAG_STABLE,
            source: SOURCE,
            epoch: Epoch(1),
            incarnation: 1,
            fill: Fill(fill),
            position: self.position,
            first: self.last.seq.next(),
            committed: Seq(0),
            stable_here: Seq(0),
            previous: self.last.digest,
            payload_bytes: BLOCK_BYTES as u32,
            count: 1,
        };
        let mut bytes = [0; BLOCK_BYTES];
        header.encode([record].iter(), &mut bytes);
        self.core.admit(&header).unwrap();
        let half = header.fill.half();
        let at = self.position as usize;
        self.memory[half][at..at + BLOCK_BYTES].copy_from_slice(&bytes);
        self.memory[half][at + BLOCK_BYTES..at + 2 * BLOCK_BYTES].copy_from_slice(&payload);
        let digest = checksum::digest(&bytes);
        let place = Place(half as u64 * HALF + self.position + BLOCK);
        self.core.handle_frame(&header, digest, vec![(record, place)]).unwrap();
        self.position += 2 * BLOCK;
        self.last = Mark { fill: Fill(fill), seq: header.first, digest };
        self.last
    }

    /// The byte at a place in memory.
    pub fn byte(&self, place: Place) -> u8 {
        match (place.0 / HALF) as usize {
            half @ (0 | 1) => self.memory[half][(place.0 % HALF) as usize],
            _ => self.drain[(place.0 - 2 * HALF) as usize],
        }
    }

    fn image_op(&self, op: FlushOp, pieces: &[(Place, u64)], drain: bool) -> Op {
        assert_eq!(op.run.action, Action::Write);
        let bytes = pieces.iter().flat_map(|(place, length)| (0..length / BLOCK).map(|n| Place(place.0 + n * BLOCK)));
        let contents = bytes.map(|place| self.byte(place)).collect();
        Op::Image { at: (op.run.offset / BLOCK) as usize, contents, drain }
    }

    /// A turn of the engine's loop.
    fn turn(&mut self) {
        loop {
            self.core.handle_turn(&mut self.effects);
            if self.effects.is_empty() {
                break;
            }
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Report(report) => self.reports.push(report),
                    Effect::SyncFile(_) => self.ops.push_back(Op::FileSync),
                    Effect::WriteState(block, at) => self.ops.push_back(Op::State(block, at)),
                    Effect::Erase(half, at) => self.ops.push_back(Op::Erase(half, at)),
                    Effect::SyncImage(volume) => self.ops.push_back(Op::ImageSync(volume)),
                    Effect::SyncStaging => self.ops.push_back(Op::StagingSync),
                    Effect::StageRestart(block, at) => self.ops.push_back(Op::StageRestart(block, at)),
                    Effect::FreeStaging(range) => self.ops.push_back(Op::Free(range)),
                    Effect::SyncDrained(volume) => self.ops.push_back(Op::DrainSync(volume)),
                    Effect::SyncMoved(_) | Effect::FreeSlot(_) => unreachable!("there is no shared log"),
                    Effect::TakeOver => self.taken_over = true,
                    Effect::Disconnect(reason) => {
                        self.cut_off = Some(reason);
                        self.core.handle_disconnected();
                    }
                    Effect::Promoted(mark) => self.promoted = Some(mark),
                    Effect::Applied(_) => {}
                }
            }
        }
        while let Some(op) = self.core.next_store() {
            let bytes = self.memory[op.half][op.start as usize..op.end as usize].to_vec();
            self.ops.push_back(Op::Store(op, bytes));
        }
        let mut pieces = Vec::new();
        while let Some(op) = self.core.next_apply(&mut pieces) {
            assert_eq!(self.disks.state().staging.phase, Phase::Direct, "an image is touched beside a log");
            self.ops.push_back(self.image_op(op, &pieces, false));
        }
        while let Some(op) = self.core.next_append() {
            let bytes = self.memory[op.half][op.start as usize..op.end as usize].to_vec();
            self.ops.push_back(Op::Append(bytes, op.at));
        }
        self.ops.extend(self.core.next_segment().map(Op::Segment));
        while let Some(op) = self.core.next_drain(&mut pieces) {
            assert_eq!(self.disks.state().staging.phase, Phase::Draining, "the old image is touched too early");
            self.ops.push_back(self.image_op(op, &pieces, true));
        }
    }

    /// One operation completes, after a turn; false: there is none.
    pub fn step(&mut self) -> Result<bool, Cut> {
        self.turn();
        let held = |op: &Op| match self.hold {
            Hold::Nothing => false,
            Hold::States => matches!(op, Op::State(..)),
            Hold::Erases => matches!(op, Op::Erase(..)),
            Hold::Frees => matches!(op, Op::Free(_)),
        };
        let Some(next) = self.ops.iter().position(|op| !held(op)) else { return Ok(false) };
        if self.left == 0 {
            return Err(Cut);
        }
        self.left -= 1;
        let Some(op) = self.ops.remove(next) else { return Ok(false) };
        let written = if self.full { Written::NoRoom } else { Written::All };
        let log = matches!(op, Op::Append(..) | Op::StageRestart(..) | Op::StagingSync);
        if !(self.full && log) {
            self.disks.write(&op);
        }
        match op {
            Op::Store(op, _) => self.core.handle_stored(op, &mut self.effects),
            Op::FileSync => self.core.handle_file_synced(&mut self.effects),
            Op::State(..) => self.core.handle_state_written(&mut self.effects),
            Op::Erase(..) => self.core.handle_erased(),
            Op::Image { drain: false, .. } => self.core.handle_applied(),
            Op::Image { drain: true, .. } => self.core.handle_drained(),
            Op::ImageSync(volume) => self.core.handle_image_synced(volume),
            Op::Append(..) => self.core.handle_appended(written),
            Op::StagingSync => self.core.handle_staging_synced(written),
            Op::StageRestart(..) => self.core.handle_restart_staged(written, &mut self.effects),
            Op::Free(_) => self.core.handle_staging_freed(),
            Op::Segment(range) => {
                let bytes = self.disks.log[range.start as usize..range.end as usize].to_vec();
                self.drain[..bytes.len()].copy_from_slice(&bytes);
                let piece = Bytes { start: range.start, bytes: &bytes };
                self.core.handle_segment(&piece, Place(2 * HALF)).unwrap();
            }
            Op::DrainSync(volume) => self.core.handle_drain_synced(volume),
        }
        Ok(true)
    }

    /// Everything that can happen by itself happens.
    pub fn run(&mut self) -> Result<(), Cut> {
        while self.step()? {}
        Ok(())
    }

    /// As [`World::run`], until something is the case.
    pub fn until(&mut self, so: impl Fn(&World) -> bool) {
        while !so(self) {
            assert!(self.step().unwrap(), "it never comes so");
        }
    }

    /// A frame arrives and is stored.
    pub fn stored(&mut self, fill: u64, block: usize, byte: u8) -> Result<Mark, Cut> {
        let mark = self.write(fill, block, byte);
        self.run()?;
        Ok(mark)
    }

    /// The sync signal of the source's last fill.
    pub fn sync(&mut self, whole: bool) {
        self.signal(Signal::Sync { last: self.last, whole }).unwrap();
    }

    pub fn reported(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// What a failover would find: everything is handed to another start, and promoted.
    pub fn failover(disks: Disks) -> (Mark, Contents) {
        let mut world = World::start(disks, StagingPlan { limit_bytes: 0, best_effort: false }).unwrap();
        let contents = world.promote();
        (world.promoted.unwrap(), contents)
    }

    /// What is served then.
    pub fn promote(&mut self) -> Contents {
        self.core.handle_disconnected();
        self.core.handle_promote(&mut self.effects);
        self.run().unwrap();
        let (promoted, state) = (self.promoted.unwrap(), self.disks.state());
        assert!(state.promoted && state.known == [promoted] && state.staging == Staging::default());
        self.disks.served()
    }

    pub fn phase(&self) -> Phase {
        self.core.superblock().staging.phase
    }
}

/// In step: a whole copy with bytes in the first blocks.
pub fn in_step(plan: StagingPlan) -> World {
    let mut world = World::new(plan);
    world.connect();
    world.signal(Signal::Restart { at: Mark::default() }).unwrap();
    for block in 0..4 {
        world.stored(1, block, 10 + block as u8).unwrap();
    }
    world.sync(true);
    world.run().unwrap();
    assert!(world.core.promotable() && world.phase() == Phase::Direct);
    assert_eq!(world.disks.image, world.volume);
    world
}

/// A boundary of the source that isn't held here.
pub fn far(fill: u64, seq: u64) -> Mark {
    Mark { fill: Fill(fill), seq: Seq(seq), digest: Digest(seq * 7) }
}
