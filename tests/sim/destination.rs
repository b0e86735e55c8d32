//! Drives a destination's core as the engine does, on disks that fail.

use crate::content::{BLOCK, SECTOR, Shelf, Vault, Word};
use crate::context::Context;
use crate::disk::{Crash, Disk, Ended, Faults, Io};
use crate::link::{Link, Message};
use crate::rare::Rare;
use crate::source::{DEPTH, SUPERBLOCKS, VOLUMES, newest, torn_tail};
use nbd_mirror::core::Place;
use nbd_mirror::core::destination::{Destination, Effect, State, StoreOp};
use nbd_mirror::core::index::Action;
use nbd_mirror::core::recovery::{self, Damage, Halves as _};
use nbd_mirror::format::checksum;
use nbd_mirror::format::frame::{self, Header};
use nbd_mirror::format::ids::Mark;
use nbd_mirror::format::superblock::{Role, Superblock};
use nbd_mirror::format::wire::{Report, Signal, Verdict};
use nbd_mirror::limits::BLOCK_BYTES;

/// Names an operation under way.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    Start(u8),
    /// A block of a journal file is made void at a start.
    Void,
    Store(StoreOp),
    FileSync,
    State,
    Apply,
    ImageSync(u16),
    Erase,
}

pub struct DestinationNode {
    pub io: Io<Op>,
    /// `None` while it is down or starting.
    pub core: Option<Destination>,
    starting: Option<Destination>,
    /// Blocks that are still to be made void.
    loose_ends: Vec<(usize, u64)>,
    pub promoted: Option<Mark>,
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
    pub fn new(disks: Vec<Disk>) -> DestinationNode {
        DestinationNode {
            io: Io::new(disks),
            core: None,
            starting: None,
            loose_ends: Vec::new(),
            promoted: None,
            memory: [Vec::new(), Vec::new()],
            effects: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// What if it were another machine with these disks?
    pub fn ghost(&self) -> DestinationNode {
        DestinationNode { io: self.io.clone(), ..DestinationNode::new(Vec::new()) }
    }

    pub fn down(&self) -> bool {
        self.core.is_none() && self.starting.is_none()
    }

    /// Begins a start as the engine does: what can be read is made stable, then read.
    pub fn start(&mut self, cx: &mut Context) -> Result<(), Damage> {
        (0..=SUPERBLOCKS).for_each(|disk| self.io.sync_now(disk));
        let found = newest(Role::Destination, self.io.disks[SUPERBLOCKS].words(), &cx.vault);
        let (mut superblock, torn) = found.expect("the destination has no state any more");
        cx.met.count_if(torn, Rare::DestinationTornState);
        for half in 0..2 {
            self.memory[half].clear();
            self.memory[half].extend_from_slice(self.io.disks[half].words());
        }
        let shelf = Shelf { halves: [&self.memory[0], &self.memory[1]], vault: &cx.vault };
        let recovered = recovery::recover(&shelf, superblock.source, superblock.clean, superblock.whole)?;
        cx.met.count(match (recovered.first.is_empty(), recovered.second.is_empty()) {
            (true, _) => Rare::DestinationFoundNothing,
            (false, true) => Rare::DestinationFoundOneFill,
            (false, false) => Rare::DestinationFoundTwoFills,
        });
        cx.met.count_if(torn_tail(&shelf, &superblock, &recovered), Rare::DestinationTornTail);
        // The crash came after the promote's last write: the images are served as they are.
        self.promoted = superblock.promoted.then_some(superblock.clean);
        self.loose_ends = recovered.loose_ends(superblock.half_bytes).collect();
        superblock.generation += 2;
        self.starting = Some(Destination::recover(superblock, recovered, |found| {
            let (half, position) = (found.header.fill.half(), found.header.position);
            let block = shelf.block(half, position).expect("a header that was found");
            recovery::records(&found.header, block, Place(half_at(half).0 + position + BLOCK_BYTES as u64))
        }));
        self.write_copy(Op::Start(0), 1, cx);
        Ok(())
    }

    /// Everything in memory is gone, and what is under way arrives or not.
    pub fn crash(&mut self, how: Crash, cx: &mut Context) {
        let applying = self.core.as_ref().is_some_and(|core| core.applies_under_way() > 0);
        cx.met.count_if(applying, Rare::DestinationCrashedInApply);
        cx.met.count_if(self.starting.is_some(), Rare::DestinationCrashedInRecovery);
        self.io.crash(how, &mut cx.rng);
        (self.core, self.starting) = (None, None);
        self.promoted = None;
        self.effects.clear();
    }

    /// A disk goes on with something. `Err`: it failed, and the engine stops.
    pub fn step(&mut self, faults: Faults, cx: &mut Context) -> Result<bool, ()> {
        let Some((op, ended)) = self.io.step(faults, &mut cx.rng) else { return Ok(false) };
        if ended == Ended::Failed {
            cx.met.count(Rare::DestinationDiskFailed);
            return Err(());
        }
        match op {
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
            _ => return self.complete(op),
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

    fn complete(&mut self, op: Op) -> Result<bool, ()> {
        let core = self.core.as_mut().expect("an operation of a destination that is up");
        match op {
            Op::Start(_) | Op::Void => {}
            Op::Store(op) => core.handle_stored(op, &mut self.effects),
            Op::FileSync => core.handle_file_synced(&mut self.effects),
            Op::State => core.handle_state_written(&mut self.effects),
            Op::Apply => core.handle_applied(),
            Op::ImageSync(volume) => core.handle_image_synced(volume),
            Op::Erase => core.handle_erased(),
        }
        Ok(true)
    }

    /// The next message arrives, if it can be taken now.
    pub fn deliver(&mut self, link: &mut Link, cx: &mut Context) {
        let (Some(core), Some(message)) = (&mut self.core, link.to_destination.pop_front()) else { return };
        match message {
            Message::Closed => {
                if core.connected() {
                    core.handle_disconnected();
                }
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
                        Verdict::Welcome => core.handle_connected(),
                        Verdict::Fenced => link.closed_by_destination(),
                        Verdict::Refused => panic!("both sides are right, but the source is refused"),
                    }
                }
            },
            Message::Signal(signal) => self.signal(signal, cx),
            Message::Frame(words) => {
                let outcome = self.frame(&words, words.len(), &cx.vault);
                if let Err(reason) = outcome {
                    assert!(cx.rotten_frames > 0, "a frame is refused: {reason}");
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

    fn signal(&mut self, signal: Signal, cx: &mut Context) {
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
        let outcome = core.handle_signal(signal, &mut rescan, &mut self.effects);
        outcome.unwrap_or_else(|reason| panic!("the destination hangs up at {signal:?}: {reason}"));
        match signal {
            Signal::Resume { from_scratch: true, .. } => cx.met.count(Rare::StartedOver),
            Signal::Resume { .. } => {
                cx.met.count_if(ahead, Rare::DestinationAhead);
                cx.met.count_if(dropped_from.is_some(), Rare::DestinationDroppedPartOfFill);
            }
            Signal::Sync { last, .. } => cx.met.count_if(last.fill <= applied, Rare::SignalAgain),
        }
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
        if core.connected() {
            core.handle_disconnected();
            link.send_to_source(Message::Report(Report::Fenced(core.superblock().epoch.next())));
            link.closed_by_destination();
        }
        core.handle_promote(&mut self.effects);
    }

    /// The turn of the engine's loop.
    pub fn turn(&mut self, link: &mut Link, cx: &mut Context) {
        let Some(core) = &mut self.core else { return };
        loop {
            core.handle_turn(&mut self.effects);
            if self.effects.is_empty() {
                break;
            }
            for effect in self.effects.drain(..) {
                match effect {
                    Effect::Report(report) => link.send_to_source(Message::Report(report)),
                    Effect::SyncFile(half) => self.io.sync(Op::FileSync, &[half]),
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
                    Effect::Promoted(mark) => self.promoted = Some(mark),
                    Effect::Applied(_) => {}
                }
            }
        }
        while let Some(op) = core.next_store() {
            let mut words = self.io.words();
            words.extend_from_slice(&self.memory[op.half][op.start as usize / SECTOR..op.end as usize / SECTOR]);
            self.io.write(Op::Store(op), op.half, op.start as usize / SECTOR, words, op.stable);
        }
        let late = core.halves().iter().any(|half| half.state == State::Sealed) && core.apply_is_late();
        cx.met.count_if(late, Rare::ApplyLate);
        let depth = if late { DEPTH.1 } else { DEPTH.0 };
        while core.applies_under_way() < depth
            && let Some(op) = core.next_apply(&mut self.pieces)
        {
            let mut words = self.io.words();
            match op.run.action {
                Action::Write => {
                    for (place, bytes) in &self.pieces {
                        let at = (place.0 & 0xff_ffff_ffff) as usize / SECTOR;
                        let half = &self.memory[(place.0 >> 40) as usize];
                        words.extend_from_slice(&half[at..at + *bytes as usize / SECTOR]);
                    }
                }
                Action::Zero { .. } => words.resize(op.run.length as usize / SECTOR, 0),
            }
            let disk = VOLUMES + usize::from(op.volume);
            self.io.write(Op::Apply, disk, op.run.offset as usize / SECTOR, words, false);
        }
    }
}
