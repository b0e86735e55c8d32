//! Drives a destination's core as the engine does, on disks that fail.

mod live;
mod nvram;

use crate::content::{BLOCK, LogPiece, SECTOR, Shelf, Vault, Word, sum};
use crate::context::Context;
use crate::disk::{Crash, Disk, Ended, Faults, Io};
use crate::link::{Link, Message};
use crate::rare::Rare;
use crate::source::{DEPTH, LOG, NVRAM, SUPERBLOCKS, VOLUMES, newest, torn_tail};
use live::LiveRead;
use nbd_mirror::core::Place;
use nbd_mirror::core::destination::MoveOp;
use nbd_mirror::core::destination::{Ask, Destination, Effect, StagingPlan, State, StoreOp, Written};
use nbd_mirror::core::flush::FlushOp;
use nbd_mirror::core::grains::Grains;
use nbd_mirror::core::index::{Action, Found, Segment};
use nbd_mirror::core::recovery::staged::{Scan, StagingDamage};
use nbd_mirror::core::recovery::{self, Damage, Halves as _, Recovered};
use nbd_mirror::format::checksum;
use nbd_mirror::format::frame::{self, Header};
use nbd_mirror::format::ids::{Id, Mark};
use nbd_mirror::format::nvram::SlotHead;
use nbd_mirror::format::superblock::{Phase, Role, Superblock};
use nbd_mirror::format::wire::{Report, Signal, Sum, Verdict};
use nbd_mirror::limits::BLOCK_BYTES;
pub use nvram::Nvram;
use std::collections::HashSet;

/// Names an operation under way.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    Start(u8),
    /// What the shared log holds goes to the journal files, at a start.
    Lay,
    Laid,
    /// A part of a slot is made void, at a start.
    VoidSlot(usize),
    VoidedSlots(usize),
    /// A block of a journal file is made void at a start.
    Void,
    Store(StoreOp),
    Move(MoveOp),
    MovedSync,
    FreeSlot(u32),
    FileSync,
    State,
    Apply,
    ImageSync(u16),
    Erase,
    Append,
    StagingSync,
    StageRestart,
    Free,
    /// A segment of the log is read: where it starts, and its bytes.
    Segment(u64, u64),
    Drain,
    DrainSync(u16),
    Sum(usize),
    /// A client's read of an image.
    Live(usize),
}

/// A question whose range is being read.
#[derive(Debug)]
struct Summing {
    ask: Ask,
    words: Vec<Word>,
    /// What the image has still to give.
    segments: Vec<Segment>,
}

/// Appends under way.
const APPEND_DEPTH: u32 = 4;

pub struct DestinationNode {
    pub io: Io<Op>,
    /// `None` while it is down or starting.
    pub core: Option<Destination>,
    starting: Option<Destination>,
    /// Blocks that are still to be made void.
    loose_ends: Vec<(usize, u64)>,
    pub promoted: Option<Mark>,
    pub plan: StagingPlan,
    pub nvram: Nvram,
    /// A promote has begun in this run, and whether it serves the images as they were before a resync.
    promoting: bool,
    pub serves_base: bool,
    /// Its source has handed over.
    pub takes_over: bool,
    /// It was asked to settle, over this connection, and the order didn't begin anew yet.
    settling: bool,
    /// The log's part that is on its way to the images.
    drain: Vec<Word>,
    sums: Vec<Option<Summing>>,
    answers: Vec<(u64, Vec<Sum>)>,
    live: Vec<Option<LiveRead>>,
    live_answers: Vec<live::Answer>,
    /// The newest boundary that was shown to a reader, and all that ever could be.
    shown: Mark,
    signalled: HashSet<u64>,
    /// A promote began, perhaps in an earlier run: it calls all complete that is stored.
    sealed_to_promote: bool,
    /// A frame's place in memory is its place in its half.
    memory: [Vec<Word>; 2],
    effects: Vec<Effect>,
    pieces: Vec<(Place, u64)>,
}

/// Where a half begins in memory.
fn half_at(half: usize) -> Place {
    Place((half as u64) << 40)
}

impl DestinationNode {
    pub fn new(disks: Vec<Disk>, plan: StagingPlan, nvram: Nvram) -> DestinationNode {
        DestinationNode {
            io: Io::new(disks),
            core: None,
            starting: None,
            loose_ends: Vec::new(),
            promoted: None,
            plan,
            nvram,
            promoting: false,
            serves_base: false,
            takes_over: false,
            settling: false,
            drain: Vec::new(),
            sums: Vec::new(),
            answers: Vec::new(),
            live: Vec::new(),
            live_answers: Vec::new(),
            shown: Mark::default(),
            signalled: HashSet::new(),
            sealed_to_promote: false,
            memory: [Vec::new(), Vec::new()],
            effects: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// What if it were another machine with these disks?
    pub fn ghost(&self) -> DestinationNode {
        DestinationNode { io: self.io.clone(), ..DestinationNode::new(Vec::new(), self.plan, self.nvram.clone()) }
    }

    pub fn down(&self) -> bool {
        self.core.is_none() && self.starting.is_none()
    }

    /// Begins a start as the engine does: what can be read is made stable, then read.
    pub fn start(&mut self, cx: &mut Context) -> Result<(), Damage> {
        (0..=NVRAM).for_each(|disk| self.io.sync_now(disk));
        let found = newest(Role::Destination, self.io.disks[SUPERBLOCKS].words(), &cx.vault);
        let (mut superblock, torn) = found.expect("the destination has no state any more");
        cx.met.count_if(torn, Rare::DestinationTornState);
        for half in 0..2 {
            self.memory[half].clear();
            self.memory[half].extend_from_slice(self.io.disks[half].words());
        }
        let laid = self.nvram.laid(&self.io.disks, &superblock, &cx.vault);
        for (half, at, words) in &laid {
            self.memory[*half][*at..*at + words.len()].copy_from_slice(words);
        }
        cx.met.count_if(!laid.is_empty(), Rare::FoundInNvram);
        let shelf = Shelf { halves: [&self.memory[0], &self.memory[1]], vault: &cx.vault };
        let recovered = if superblock.promoted {
            // The images are served, and whoever serves them looks into the journal files; nobody writes to them any more.
            Recovered { end: superblock.clean, ..Recovered::default() }
        } else {
            recovery::recover(&shelf, superblock.source, superblock.clean, superblock.whole)?
        };
        cx.met.count(match (recovered.first.is_empty(), recovered.second.is_empty()) {
            (true, _) => Rare::DestinationFoundNothing,
            (false, true) => Rare::DestinationFoundOneFill,
            (false, false) => Rare::DestinationFoundTwoFills,
        });
        cx.met.count_if(torn_tail(&shelf, &superblock, &recovered), Rare::DestinationTornTail);
        // The crash came after the promote's last write: the images are served as they are.
        self.promoted = superblock.promoted.then(|| superblock.known[0]);
        self.loose_ends = recovered.loose_ends(superblock.half_bytes).filter(|_| !superblock.promoted).collect();
        if superblock.staging.phase == Phase::Direct {
            // What it holds was brought to the images, or never counted.
            self.io.disks[LOG].truncate();
        }
        let touched = scan(&superblock, self.io.disks[LOG].words(), &cx.vault);
        let touched = touched.unwrap_or_else(|damage| panic!("the staging log is {damage}"));
        superblock.generation += 2;
        let slot_bytes = self.nvram.slot_bytes();
        let core = Destination::recover(superblock, self.plan, touched, recovered, |found| {
            let (half, position) = (found.header.fill.half(), found.header.position);
            let block = shelf.block(half, position).expect("a header that was found");
            recovery::records(&found.header, block, Place(half_at(half).0 + position + BLOCK_BYTES as u64))
        });
        self.starting = Some(match slot_bytes {
            Some(slot_bytes) => core.with_nvram(slot_bytes),
            None => core,
        });
        if !self.nvram.begin(laid, &mut self.io) {
            self.write_copy(Op::Start(0), 1, cx);
        }
        Ok(())
    }

    /// Everything in memory is gone, and what is under way arrives or not.
    pub fn crash(&mut self, how: Crash, cx: &mut Context) {
        let applying = self.core.as_ref().is_some_and(|core| core.applies_under_way() > 0);
        cx.met.count_if(applying, Rare::DestinationCrashedInApply);
        cx.met.count_if(self.starting.is_some(), Rare::DestinationCrashedInRecovery);
        let laying = self.io.any(|op| matches!(op, Op::Lay | Op::Laid | Op::VoidSlot(_) | Op::VoidedSlots(_)));
        cx.met.count_if(laying, Rare::CrashedInEmptying);
        if let Some(core) = &self.core {
            let staging = core.superblock().staging.phase == Phase::Staging;
            cx.met.count_if(staging, Rare::DestinationCrashedInStaging);
            cx.met.count_if(self.settling, Rare::DestinationCrashedInSettling);
            let appends = core.appends_under_way() > 0 || self.io.any(|op| matches!(op, Op::StagingSync));
            cx.met.count_if(appends, Rare::DestinationCrashedInAppend);
            cx.met.count_if(core.drains_under_way() > 0, Rare::DestinationCrashedInDrain);
            cx.met.count_if(self.io.any(|op| matches!(op, Op::Move(_))), Rare::CrashedInMove);
            let freeing = self.io.any(|op| matches!(op, Op::FreeSlot(_)));
            cx.met.count_if(freeing, Rare::CrashedInFree);
        }
        (self.settling, self.promoting, self.takes_over) = (false, false, false);
        self.sums.clear();
        self.answers.clear();
        self.live.clear();
        self.io.crash(how, &mut cx.rng);
        (self.core, self.starting) = (None, None);
        self.promoted = None;
        self.effects.clear();
    }

    /// Whether a fill is on its way into the staging log.
    pub fn appends(&self) -> bool {
        self.core.as_ref().is_some_and(|core| core.appends_under_way() > 0)
    }

    /// Whether its state is being written, so that what is in memory isn't durable yet.
    pub fn writes_state(&self) -> bool {
        self.io.any(|op| matches!(op, Op::State))
    }

    /// A disk goes on with something. `Err`: it failed, and the engine stops.
    pub fn step(&mut self, faults: Faults, cx: &mut Context) -> Result<bool, ()> {
        let Some((op, ended)) = self.io.step(faults, &mut cx.rng) else { return Ok(false) };
        if ended == Ended::Failed {
            cx.met.count(Rare::DestinationDiskFailed);
            return Err(());
        }
        match op {
            Op::Lay | Op::Laid | Op::VoidSlot(_) | Op::VoidedSlots(_) => {
                if self.nvram.go_on(op, &mut self.io) {
                    self.write_copy(Op::Start(0), 1, cx);
                }
                return Ok(true);
            }
            Op::Start(0) => {
                self.write_copy(Op::Start(1), 0, cx);
                return Ok(true);
            }
            Op::Start(_) => {
                for (half, position) in &self.loose_ends {
                    self.io.write(Op::Void, *half, *position as usize / SECTOR, vec![0; BLOCK], true);
                }
            }
            Op::Void => drop(self.loose_ends.pop()),
            _ => return self.complete(op, faults, cx),
        }
        if self.loose_ends.is_empty() {
            self.core = self.starting.take();
        }
        Ok(true)
    }

    /// At a start: the state goes to both copies, as it will be in memory; `back` versions ago for the first of them.
    fn write_copy(&mut self, op: Op, back: u64, cx: &mut Context) {
        let Some(core) = &self.starting else { return };
        let superblock = Superblock { generation: core.superblock().generation - back, ..core.superblock().clone() };
        let words = cx.vault.keep(&superblock.encode(), BLOCK_BYTES).to_vec();
        self.io.write(op, SUPERBLOCKS, superblock.copy_offset() as usize / SECTOR, words, true);
    }

    fn complete(&mut self, op: Op, faults: Faults, cx: &mut Context) -> Result<bool, ()> {
        let core = self.core.as_mut().expect("an operation of a destination that is up");
        let log = matches!(op, Op::Append | Op::StagingSync | Op::StageRestart);
        let full = log && faults.full > 0 && cx.rng.chance(faults.full);
        cx.met.count_if(full, Rare::StagingNoRoom);
        let written = if full { Written::NoRoom } else { Written::All };
        match op {
            Op::Start(_) | Op::Void | Op::Lay | Op::Laid | Op::VoidSlot(_) | Op::VoidedSlots(_) => {}
            Op::Store(op) => core.handle_stored(op, &mut self.effects),
            Op::Move(op) => core.handle_moved(op),
            Op::MovedSync => core.handle_moved_synced(&mut self.effects),
            Op::FreeSlot(slot) => {
                core.handle_slot_freed(slot);
                self.nvram.give(slot);
            }
            Op::FileSync => core.handle_file_synced(&mut self.effects),
            Op::State => core.handle_state_written(&mut self.effects),
            Op::Apply => core.handle_applied(),
            Op::ImageSync(volume) => core.handle_image_synced(volume),
            Op::Erase => core.handle_erased(),
            Op::Append => core.handle_appended(written),
            Op::StagingSync => core.handle_staging_synced(written),
            Op::StageRestart => core.handle_restart_staged(written, &mut self.effects),
            Op::Free => core.handle_staging_freed(),
            Op::Segment(start, bytes) => {
                let at = start as usize / SECTOR;
                self.drain.clear();
                self.drain.extend_from_slice(&self.io.disks[LOG].words()[at..at + bytes as usize / SECTOR]);
                let piece = LogPiece { start, words: &self.drain, vault: &cx.vault };
                let outcome = core.handle_segment(&piece, half_at(2));
                outcome.unwrap_or_else(|damage| panic!("the staging log is {damage}"));
            }
            Op::Drain => core.handle_drained(),
            Op::DrainSync(volume) => core.handle_drain_synced(volume),
            Op::Sum(number) => self.summed(number, cx),
            Op::Live(number) => self.end_live(number, cx),
        }
        Ok(true)
    }

    /// A question's range is read: what was in memory then, and the image's part as it is now.
    fn summed(&mut self, number: usize, _: &Context) {
        let Summing { ask, mut words, segments } = self.sums[number].take().expect("a question that is being read");
        let image = self.io.disks[VOLUMES + usize::from(ask.volume)].words();
        for segment in segments.iter().filter(|segment| segment.found == Found::Device) {
            let (from, count) = (segment.offset as usize / SECTOR, segment.length as usize / SECTOR);
            let at = from - ask.offset as usize / SECTOR;
            words[at..at + count].copy_from_slice(&image[from..from + count]);
        }
        let core = self.core.as_mut().expect("it is up");
        if !core.handle_summed() {
            return;
        }
        let sectors = |block: std::ops::Range<usize>| block.start / SECTOR..block.end / SECTOR;
        let of = |block: usize| if ask.knows(block) { sum(&words[sectors(ask.block(block))]) } else { Sum::default() };
        self.answers.push((ask.id, (0..ask.count()).map(of).collect()));
    }

    /// The next message arrives, if it can be taken now.
    pub fn deliver(&mut self, link: &mut Link, cx: &mut Context) {
        let (Some(core), Some(message)) = (&mut self.core, link.to_destination.pop_front()) else { return };
        match message {
            Message::Closed => {
                if core.connected() {
                    core.handle_disconnected();
                }
                self.settling = false;
                // A connection that ends before its hello was heard; or else the next one's hello is under way.
                if !link.to_destination.iter().any(|message| matches!(message, Message::Hello(_))) {
                    link.closed_by_destination();
                }
            }
            Message::Hello(hello) => match core.welcome(&hello) {
                Err(_) => {
                    cx.met.count(Rare::NotNow);
                    link.to_destination.push_front(Message::Hello(hello));
                }
                Ok(welcome) => {
                    let verdict = welcome.verdict;
                    link.taken = true;
                    link.send_to_source(Message::Welcome(Box::new(welcome)));
                    match verdict {
                        Verdict::Welcome => core.handle_connected(cx.now),
                        Verdict::Fenced => link.closed_by_destination(),
                        Verdict::Refused => {
                            let full = core.staging_trouble().is_some();
                            assert!(full, "both sides are right, but the source is refused");
                            link.closed_by_destination();
                        }
                    }
                }
            },
            Message::Signal(signal) => {
                if cx.trace {
                    eprintln!("{:>25} {signal:?}", "signal");
                }
                if !self.signal(signal, cx) {
                    self.core.as_mut().expect("it is up").handle_disconnected();
                    link.closed_by_destination();
                }
            }
            Message::Frame(words) => {
                let outcome = self.frame(&words, words.len(), &cx.vault);
                if let Err(reason) = outcome {
                    let core = self.core.as_ref().expect("it is up");
                    // Where the log takes no more, it may be known before the connection is closed.
                    let refused = cx.rotten_frames > 0 || core.staging_trouble().is_some();
                    assert!(refused, "a frame is refused: {reason}; stored {}", core.stored());
                    cx.met.count(Rare::DamageOnTheWay);
                    self.core.as_mut().expect("it is up").handle_disconnected();
                    link.closed_by_destination();
                }
            }
            Message::Torn(words, arrived) => {
                cx.met.count(Rare::FrameTornOnTheWay);
                // What is wrong with it doesn't matter: the end of the connection comes next.
                let _ = self.frame(&words, arrived, &cx.vault);
            }
            other => panic!("the destination can't be sent {other:?}"),
        }
    }

    /// False: the staging log takes no more, and the connection is to be closed.
    fn signal(&mut self, signal: Signal, cx: &mut Context) -> bool {
        let core = self.core.as_mut().expect("it is up");
        let (memory, source) = (&self.memory, core.superblock().source);
        let shelf = Shelf { halves: [&memory[0], &memory[1]], vault: &cx.vault };
        let mut dropped_from = None;
        let mut rescan = |before: Mark, until: Mark| {
            dropped_from = Some(until);
            recovery::rescan(&shelf, source, before, until, half_at(until.fill.half()))
        };
        let applied = core.superblock().clean.fill;
        let ahead = matches!(signal, Signal::Resume { common, .. } if common != core.stored());
        let outcome = core.handle_signal(cx.now, signal, &mut rescan, &mut self.effects);
        if let Err(reason) = outcome {
            // A source may hand over while the end of a resync is still on its way to the images here.
            let early = matches!(signal, Signal::TakeOver { .. }) && core.superblock().staging.phase != Phase::Direct;
            let expected = early || core.staging_trouble().is_some();
            assert!(expected, "the destination hangs up at {signal:?}: {reason}");
            return false;
        }
        match signal {
            Signal::Resume { .. } | Signal::Settle { .. } => {
                if let Signal::Settle { common } = signal {
                    self.signalled.insert(common.digest.0);
                }
                self.settling = matches!(signal, Signal::Settle { .. });
                cx.met.count_if(ahead, Rare::DestinationAhead);
                cx.met.count_if(dropped_from.is_some(), Rare::DestinationDroppedPartOfFill);
            }
            Signal::Restart { .. } => self.settling = false,
            Signal::Sync { last, .. } => {
                // One before it is complete as well.
                let sealed = core.halves().iter().filter(|half| half.state == State::Sealed);
                self.signalled.extend(sealed.map(|half| half.last.digest.0));
                cx.met.count_if(last.fill <= applied, Rare::SignalAgain);
            }
            Signal::Ping(_) | Signal::Ask { .. } | Signal::TakeOver { .. } => {}
        }
        true
    }

    /// A frame of which so many sectors arrive.
    fn frame(&mut self, words: &[Word], arrived: usize, vault: &Vault) -> Result<(), String> {
        let core = self.core.as_mut().expect("it is up");
        if arrived * SECTOR < BLOCK_BYTES {
            return Ok(());
        }
        let block = vault.block(words).ok_or("a damaged frame header")?;
        let header = Header::parse(block).map_err(|error| error.to_string())?;
        core.admit(&header)?;
        let half = header.fill.half();
        let at = header.position as usize / SECTOR;
        self.memory[half][at..at + arrived].copy_from_slice(&words[..arrived]);
        if arrived < words.len() {
            return Ok(());
        }
        let payload = &words[BLOCK_BYTES / SECTOR..];
        frame::verify_payload(&header, block, |at| crate::content::crc(&payload[at.start / SECTOR..at.end / SECTOR]))
            .map_err(|error| error.to_string())?;
        let place = Place(half_at(half).0 + header.position + BLOCK_BYTES as u64);
        core.handle_frame(&header, checksum::digest(block), recovery::records(&header, block, place))
    }

    /// Takes over: the connection ends with the word that the source is fenced.
    pub fn promote(&mut self, link: &mut Link) {
        let Some(core) = &mut self.core else { return };
        self.settling = false;
        if core.connected() {
            core.handle_disconnected();
            link.send_to_source(Message::Report(Report::Fenced(core.superblock().epoch.next())));
            link.closed_by_destination();
        }
        if !std::mem::replace(&mut self.promoting, true) {
            self.serves_base = core.superblock().staging.phase == Phase::Staging;
        }
        self.sealed_to_promote = true;
        core.handle_promote(&mut self.effects);
    }

    /// The turn of the engine's loop.
    pub fn turn(&mut self, link: &mut Link, cx: &mut Context) {
        for (id, sums) in self.answers.drain(..) {
            link.send_to_source(Message::Sums(id, sums));
        }
        let Some(core) = &mut self.core else { return };
        let before = core.superblock().staging.phase;
        loop {
            core.handle_turn(&mut self.effects);
            if self.effects.is_empty() {
                break;
            }
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Report(report) => link.send_to_source(Message::Report(report)),
                    Effect::SyncFile(half) => self.io.sync(Op::FileSync, &[half]),
                    Effect::SyncMoved(half) => self.io.sync(Op::MovedSync, &[half]),
                    Effect::FreeSlot(slot) => self.nvram.free(slot, &mut self.io),
                    Effect::WriteState(block, offset) => {
                        let words = cx.vault.keep(&block, BLOCK_BYTES).to_vec();
                        self.io.write(Op::State, SUPERBLOCKS, offset as usize / SECTOR, words, true);
                    }
                    Effect::Erase(half, position) => {
                        let words = vec![0; BLOCK_BYTES / SECTOR];
                        self.io.write(Op::Erase, half, position as usize / SECTOR, words, true);
                    }
                    Effect::SyncImage(volume) => {
                        self.io.sync(Op::ImageSync(volume), &[VOLUMES + usize::from(volume)]);
                    }
                    Effect::SyncStaging => self.io.sync(Op::StagingSync, &[LOG]),
                    Effect::StageRestart(block, at) => {
                        cx.met.count(Rare::RestartStaged);
                        let words = cx.vault.keep(&block, BLOCK_BYTES).to_vec();
                        self.io.write(Op::StageRestart, LOG, at as usize / SECTOR, words, true);
                    }
                    Effect::FreeStaging(range) => {
                        let end = self.io.disks[LOG].words().len();
                        let (from, to) = (range.start as usize / SECTOR, (range.end as usize / SECTOR).min(end));
                        self.io.write(Op::Free, LOG, from.min(to), vec![0; to.saturating_sub(from)], false);
                    }
                    Effect::SyncDrained(volume) => {
                        self.io.sync(Op::DrainSync(volume), &[VOLUMES + usize::from(volume)]);
                    }
                    Effect::TakeOver => {
                        cx.met.count(Rare::TookOver);
                        self.takes_over = true;
                    }
                    Effect::Disconnect(reason) => {
                        let full = core.staging_trouble().is_some() && !self.plan.best_effort;
                        assert!(full, "the destination hangs up: {reason}");
                        cx.met.count(Rare::StagingFullStopped);
                        core.handle_disconnected();
                        self.settling = false;
                        link.closed_by_destination();
                    }
                    Effect::Promoted(mark) => self.promoted = Some(mark),
                    Effect::Applied(_) => {}
                }
            }
        }
        let phase = core.superblock().staging.phase;
        let given_up = before == Phase::Staging && phase == Phase::Draining && !core.superblock().whole;
        cx.met.count_if(given_up, Rare::StagingFullGivenUp);
        self.pump_stores(cx);
        self.pump_images(cx);
        self.pump_log(cx);
        self.pump_sums();
    }

    /// What goes into the shared log, into the journal files, and from one to the other.
    fn pump_stores(&mut self, cx: &mut Context) {
        let Some(core) = &mut self.core else { return };
        loop {
            // Others may have taken all there are.
            if core.wants_slot()
                && !cx.rng.chance(100)
                && let Some(slot) = self.nvram.take()
            {
                core.handle_slot(slot);
            }
            let Some(op) = core.next_store() else { break };
            let mut words = self.io.words();
            let (mut disk, mut at) = (op.half, op.start as usize / SECTOR);
            if let Some(place) = op.log {
                cx.met.count(Rare::StoredInNvram);
                (disk, at) = (NVRAM, self.nvram.offset(place.slot) + place.at as usize / SECTOR);
                if let Some((fill, before)) = place.begins {
                    let head = SlotHead {
                        log: Id::default(),
                        source: core.superblock().source,
                        fill,
                        start: op.start,
                        before,
                    };
                    words.extend_from_slice(&cx.vault.keep(&head.encode(), BLOCK_BYTES));
                    at -= BLOCK;
                }
            } else {
                cx.met.count_if(self.nvram.used, Rare::PastNvram);
            }
            words.extend_from_slice(&self.memory[op.half][op.start as usize / SECTOR..op.end as usize / SECTOR]);
            if cx.trace {
                eprintln!("{:>25} {op:?}", "store");
            }
            self.io.write(Op::Store(op), disk, at, words, op.stable);
        }
        while let Some(op) = core.next_move() {
            if cx.trace {
                eprintln!("{:>25} {op:?}", "move");
            }
            let mut words = self.io.words();
            words.extend_from_slice(&self.memory[op.half][op.start as usize / SECTOR..op.end as usize / SECTOR]);
            self.io.write(Op::Move(op), op.half, op.start as usize / SECTOR, words, false);
        }
    }

    /// What goes to the images from the halves.
    fn pump_images(&mut self, cx: &mut Context) {
        let Some(core) = &mut self.core else { return };
        let late = core.halves().iter().any(|half| half.state == State::Sealed) && core.apply_is_late();
        cx.met.count_if(late, Rare::ApplyLate);
        let depth = if late { DEPTH.1 } else { DEPTH.0 };
        let mut pieces = std::mem::take(&mut self.pieces);
        while let Some(core) = &mut self.core
            && core.applies_under_way() < depth
            && let Some(op) = core.next_apply(&mut pieces)
        {
            self.write_image(Op::Apply, op, &pieces);
        }
        self.pieces = pieces;
    }

    /// What goes into the staging log, and from there to the images.
    fn pump_log(&mut self, cx: &mut Context) {
        let Some(core) = &mut self.core else { return };
        let draining = core.superblock().staging.phase == Phase::Draining;
        while core.appends_under_way() < APPEND_DEPTH
            && let Some(op) = core.next_append()
        {
            cx.met.count_if(draining, Rare::AppendedWhileDraining);
            let mut words = self.io.words();
            words.extend_from_slice(&self.memory[op.half][op.start as usize / SECTOR..op.end as usize / SECTOR]);
            self.io.write(Op::Append, LOG, op.at as usize / SECTOR, words, false);
        }
        if let Some(range) = core.next_segment() {
            cx.met.count_if(range.start > 0, Rare::DrainedInSegments);
            self.io.read(Op::Segment(range.start, range.end - range.start));
        }
        let depth = if core.drain_is_late() { DEPTH.1 } else { DEPTH.0 };
        let mut pieces = std::mem::take(&mut self.pieces);
        while let Some(core) = &mut self.core
            && core.drains_under_way() < depth
            && let Some(op) = core.next_drain(&mut pieces)
        {
            self.write_image(Op::Drain, op, &pieces);
        }
        self.pieces = pieces;
    }

    fn write_image(&mut self, name: Op, op: FlushOp, pieces: &[(Place, u64)]) {
        let mut words = self.io.words();
        match op.run.action {
            Action::Write => pieces.iter().for_each(|(place, bytes)| self.read_memory(*place, *bytes, &mut words)),
            Action::Zero { .. } => words.resize(op.run.length as usize / SECTOR, 0),
        }
        let disk = VOLUMES + usize::from(op.volume);
        self.io.write(name, disk, op.run.offset as usize / SECTOR, words, false);
    }

    fn read_memory(&self, place: Place, bytes: u64, words: &mut Vec<Word>) {
        let at = (place.0 & 0xff_ffff_ffff) as usize / SECTOR;
        let memory = self.memory.get((place.0 >> 40) as usize).unwrap_or(&self.drain);
        words.extend_from_slice(&memory[at..at + bytes as usize / SECTOR]);
    }

    /// Questions: what is in memory is taken at once, what is on the images is read later.
    fn pump_sums(&mut self) {
        let mut segments = Vec::new();
        while let Some(ask) = self.core.as_mut().and_then(|core| core.next_ask(&mut segments)) {
            let mut words = Vec::with_capacity(ask.length as usize / SECTOR);
            for segment in &segments {
                match segment.found {
                    Found::Memory(place) => self.read_memory(place, segment.length, &mut words),
                    Found::Zeros | Found::Device => words.resize(words.len() + segment.length as usize / SECTOR, 0),
                }
            }
            let free = self.sums.iter().position(Option::is_none).unwrap_or_else(|| {
                self.sums.push(None);
                self.sums.len() - 1
            });
            self.sums[free] = Some(Summing { ask, words, segments: segments.clone() });
            self.io.read(Op::Sum(free));
        }
    }
}

/// Reads a staging log as a start does: what it touches, if it is all there.
pub fn scan(superblock: &Superblock, log: &[Word], vault: &Vault) -> Result<Grains, StagingDamage> {
    let mut scan = Scan::new(superblock);
    while let Some(range) = scan.wants() {
        let words = log.get(range.start as usize / SECTOR..range.end as usize / SECTOR);
        let words = words.ok_or(StagingDamage { at: range.start, reason: "shorter than the state says".into() })?;
        scan.take(&LogPiece { start: range.start, words, vault })?;
    }
    scan.finish()
}
