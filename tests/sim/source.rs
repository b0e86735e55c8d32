//! Drives a source's core as the engine does, on disks that fail: start, completions, effects, clients' reads.

mod copies;
mod reads;

use crate::arena::Arena;
use crate::content::{BLOCK, SECTOR, Shelf, Vault, Word, crc};
use crate::context::Context;
use crate::disk::{Crash, Disk, Ended, Faults, Io};
use crate::link::{Link, Message};
use crate::model::Model;
use crate::rare::Rare;
use copies::Copying;
use nbd_mirror::core::copy::Purpose;
use nbd_mirror::core::dirty::{self, Dirty};
use nbd_mirror::core::half::{Entry, State, Ticket};
use nbd_mirror::core::index::Action;
use nbd_mirror::core::policy::{Mode, OnDisconnect, Policy};
use nbd_mirror::core::recovery::{self, Halves as _, Recovered};
use nbd_mirror::core::source::{Effect, FrameId, Headers, Resync, Send, Shape, Source};
use nbd_mirror::core::{Durability, Place};
use nbd_mirror::format::block::Block;
use nbd_mirror::format::frame::{Header, Kind, Record};
use nbd_mirror::format::superblock::{Role, Superblock};
use nbd_mirror::format::wire::{Report, Signal, Verdict};
use nbd_mirror::limits::{
    BLOCK_BYTES, MAX_FRAMES_IN_FLIGHT, MAX_WAITING_BYTES, MAX_WAITING_RECORDS, RECEIVE_MEMORY_BYTES,
};
use reads::ClientRead;
use std::time::Duration;

/// Places of disks in a machine's list: two halves, both superblock copies, the dirty bitmap or the staging log, then the
/// volumes or images.
pub const SUPERBLOCKS: usize = 2;
pub const MAP: usize = 3;
pub const LOG: usize = 3;
pub const NVRAM: usize = 4;
pub const VOLUMES: usize = 5;
/// Bytes of a destination's shared log.
pub const NVRAM_BYTES: usize = 3 << 20;
/// Messages that may wait to be delivered.
const SEND_WINDOW: usize = 12;
/// Device writes of a flush or an apply under way, on time and late.
pub const DEPTH: (u32, u32) = (2, 8);

/// Names an operation under way.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    /// A block of a journal is made void at a start.
    Void,
    Start(u8),
    Frame(FrameId),
    JournalSync,
    Superblock,
    Map,
    Flush,
    VolumeSync(u16),
    Copy(usize),
    Read(usize),
}

pub struct SourceNode {
    pub io: Io<Op>,
    /// `None` while it is down or starting.
    pub core: Option<Source>,
    pub shape: Shape,
    pub syncs_done: Vec<u64>,
    arena: Arena,
    effects: Vec<Effect>,
    pieces: Vec<(Place, u64)>,
    copying: Vec<Copying>,
    /// Windows that were read: number and offset.
    windows: Vec<(usize, u64)>,
    /// When this run began, by the world's time.
    began: Duration,
    /// When it last stood in step with its destination, or was started.
    together_at: Duration,
    /// Whether its destination has been away for the policy's timeout since.
    left_behind: bool,
    was_alone: bool,
    /// An operator said so while there was no connection. No destination can know of that.
    pub ordered: bool,
    /// Whether it may answer alone at once: it was alone when it ended, or the operator said so.
    released: bool,
    /// It ended in step with a destination that it knew to be whole, and hasn't met it since: it must not answer alone.
    bound: bool,
    /// What it was when it ended.
    in_step: bool,
    /// What it was then is on the disk, too.
    told_disk: bool,
    /// The destination that was met last refused it, or held nothing.
    refused: bool,
    met_fresh: bool,
    /// A verify met blocks that the destination didn't know.
    verify_unknown: bool,
    pub verified: u64,
    reads: Vec<Option<ClientRead>>,
    starting: Option<(Superblock, Recovered)>,
    /// What the promoted destination held, whose place it takes.
    pub heir_of: Option<Estate>,
    /// Blocks that are being made void.
    voids: u32,
}

/// The journal files of a promoted destination, which nobody writes to any more, and its state.
#[derive(Debug, Clone)]
pub struct Estate {
    pub state: Superblock,
    pub halves: [Vec<Word>; 2],
}

/// The superblock that counts, and whether a copy of it was torn.
pub fn newest(role: Role, words: &[Word], vault: &Vault) -> Option<(Superblock, bool)> {
    let copies = [0, 1].map(|copy| *vault.block(&words[copy * BLOCK..]).unwrap_or(&[0; BLOCK_BYTES]));
    let torn = copies.iter().any(|copy| Superblock::decode(role, copy).is_err());
    Superblock::newest(role, [&copies[0], &copies[1]]).ok().map(|superblock| (superblock, torn))
}

impl Estate {
    /// What of it wasn't on the images when it was promoted.
    pub fn recovered(&self, vault: &Vault) -> Recovered {
        let (state, at) = (&self.state, self.state.known[0]);
        if state.clean == at {
            return Recovered { end: at, ..Recovered::default() };
        }
        let shelf = Shelf { halves: [&self.halves[0], &self.halves[1]], vault };
        let recovered = recovery::recover(&shelf, state.source, state.clean, state.whole);
        let recovered = recovered.unwrap_or_else(|damage| panic!("the promoted journal files: {damage}"));
        assert_eq!(recovered.end, at, "the journal files don't end where they were promoted");
        recovered
    }
}

/// Makes the disks of a machine: blank halves, both copies of its superblock, a dirty bitmap in which nothing is readable
/// or an empty staging log, and volumes.
pub fn disks(superblock: &Superblock, volumes: Vec<Vec<Word>>, vault: &mut Vault) -> Vec<Disk> {
    let block = vault.keep(&superblock.encode(), BLOCK_BYTES);
    let half = || vec![0; superblock.half_bytes as usize / SECTOR];
    let mut disks: Vec<Disk> = [half(), half(), [block, block].concat()].into_iter().map(Disk::new).collect();
    disks.push(match superblock.role {
        Role::Source => {
            let bytes = dirty::stored_bytes(&sizes(superblock), superblock.grain_bytes) as usize;
            Disk::new(vec![0; bytes / SECTOR])
        }
        Role::Destination => Disk::file(),
    });
    let nvram = if superblock.role == Role::Destination { NVRAM_BYTES / SECTOR } else { 0 };
    disks.push(Disk::new(vec![0; nvram]));
    disks.extend(volumes.into_iter().map(Disk::new));
    disks
}

fn sizes(superblock: &Superblock) -> Vec<u64> {
    superblock.volumes.iter().map(|volume| volume.size_bytes).collect()
}

/// The dirty bitmap as it is stored, and how many of its sectors can't be read.
pub fn load_map(superblock: &Superblock, words: &[Word], vault: &Vault) -> (Dirty, u32) {
    let blocks = vault.sectors(words);
    Dirty::load(superblock.source, &sizes(superblock), superblock.grain_bytes, |block| &blocks[block as usize])
}

struct HeaderMemory<'a> {
    arena: &'a mut Arena,
    vault: &'a mut Vault,
}

impl Headers for HeaderMemory<'_> {
    fn store(&mut self, block: &Block) -> Place {
        // Where a header's count of records is and how it goes on: docs/format.md.
        let count = usize::from(u16::from_le_bytes([block[92], block[93]]));
        self.arena.store(&self.vault.keep(block, 128 + 32 * count))
    }
}

impl SourceNode {
    pub fn new(shape: Shape, disks: Vec<Disk>) -> SourceNode {
        SourceNode {
            io: Io::new(disks),
            core: None,
            shape,
            syncs_done: Vec::new(),
            arena: Arena::default(),
            effects: Vec::new(),
            pieces: Vec::new(),
            copying: Vec::new(),
            windows: Vec::new(),
            began: Duration::ZERO,
            together_at: Duration::ZERO,
            left_behind: false,
            was_alone: false,
            released: false,
            ordered: false,
            bound: false,
            in_step: false,
            told_disk: true,
            refused: false,
            met_fresh: false,
            verify_unknown: false,
            verified: 0,
            reads: Vec::new(),
            starting: None,
            heir_of: None,
            voids: 0,
        }
    }

    pub fn down(&self) -> bool {
        self.core.is_none() && self.starting.is_none()
    }

    /// Begins a start, as the engine does: what can be read is made stable, then read, then the superblock is raised.
    pub fn start(&mut self, after: Crash, model: &mut Model, cx: &mut Context) {
        (0..=MAP).for_each(|disk| self.io.sync_now(disk));
        let found = newest(Role::Source, self.io.disks[SUPERBLOCKS].words(), &cx.vault);
        let (mut superblock, torn) = found.expect("the source has no superblock any more");
        let shelf = Shelf { halves: [self.io.disks[0].words(), self.io.disks[1].words()], vault: &cx.vault };
        let recovered = recovery::recover_source(&shelf, superblock.source, superblock.clean);
        let recovered = recovered.unwrap_or_else(|damage| panic!("the source's journal: {damage}"));
        cx.met.count_if(torn, Rare::SourceTornSuperblock);
        cx.met.count(match (recovered.first.is_empty(), recovered.second.is_empty()) {
            (true, _) => Rare::SourceFoundNothing,
            (false, true) => Rare::SourceFoundOneFill,
            (false, false) => Rare::SourceFoundTwoFills,
        });
        cx.met.count_if(torn_tail(&shelf, &superblock, &recovered), Rare::SourceTornTail);
        model.check(recovered.end.digest, after == Crash::Power);
        cx.met.count_if(!model.complete(recovered.end.digest), Rare::SourceLostUnpromised);
        cx.met.count_if(superblock.fenced_by.0 > 0, Rare::FencedStartedAgain);
        superblock.incarnation += 1;
        self.starting = Some((superblock, recovered));
        self.write_copy(Op::Start(0), cx);
    }

    /// The superblock of this run, into one copy and then into the other.
    fn write_copy(&mut self, op: Op, cx: &mut Context) {
        let Some((superblock, _)) = &mut self.starting else { return };
        superblock.generation += 1;
        let words = cx.vault.keep(&superblock.encode(), BLOCK_BYTES).to_vec();
        self.io.write(op, SUPERBLOCKS, superblock.copy_offset() as usize / SECTOR, words, true);
    }

    fn void_loose_ends(&mut self, model: &mut Model, cx: &mut Context) {
        let Some((superblock, recovered)) = &self.starting else { return };
        self.voids = 0;
        for (half, position) in recovered.loose_ends(superblock.half_bytes) {
            self.io.write(Op::Void, half, position as usize / SECTOR, vec![0; BLOCK], true);
            self.voids += 1;
        }
        if self.voids == 0 {
            self.started(model, cx);
        }
    }

    fn started(&mut self, model: &mut Model, cx: &mut Context) {
        let Some((superblock, recovered)) = self.starting.take() else { return };
        // Only now can anybody have seen what it found.
        model.restart(recovered.end.digest);
        self.arena = Arena::default();
        let (arena, disks, vault) = (&mut self.arena, &self.io.disks, &cx.vault);
        let half_bytes = superblock.half_bytes;
        let (dirty, _) = load_map(&superblock, disks[MAP].words(), vault);
        let all: u64 = sizes(&superblock).iter().sum();
        cx.met.count_if((1..all).contains(&dirty.grains().bytes()), Rare::StartedDirty);
        // A source that ended in step with a whole copy, and knew it, knows nothing of what came after: that copy may have
        // been promoted. What it knew is what the disk says.
        let knew = superblock.whole || superblock.lacking_since_unix_s != 0;
        // Where the word that it is in step again was on its way to the disk, either may be.
        let in_step = self.in_step && (self.told_disk || !superblock.alone);
        self.bound = self.shape.mirrored && in_step && knew;
        (self.released, self.refused) = (superblock.alone, false);
        (self.together_at, self.left_behind) = (cx.now, false);
        let shape = Shape { started_unix_s: 1_000_000 + cx.now.as_secs(), ..self.shape.clone() };
        // The core's time begins with each run.
        self.began = cx.now;
        let begun = superblock.clean;
        let mut load = |halves: [&[Word]; 2], id: FrameId, position: u64| {
            let shelf = Shelf { halves, vault };
            let block = shelf.block(id.fill.half(), position).expect("a header that was found");
            let header = Header::parse(block).expect("a header that was found");
            let at = position as usize / SECTOR;
            assert!(position + header.frame_bytes() <= half_bytes);
            let words = &halves[id.fill.half()][at..at + header.frame_bytes() as usize / SECTOR];
            let place = arena.store(words);
            let records = recovery::records(&header, block, Place(place.0 + BLOCK_BYTES as u64)).into_iter();
            (place, records.map(|(record, place)| Entry { record, place, ticket: Ticket::NONE }).collect())
        };
        let own = [disks[0].words(), disks[1].words()];
        let mut core = Source::recover(shape, superblock, dirty, recovered, |id, position| load(own, id, position));
        if let Some(estate) = self.heir_of.as_ref().filter(|estate| estate.state.known[0] == begun) {
            let (recovered, halves) = (estate.recovered(vault), [&estate.halves[0][..], &estate.halves[1][..]]);
            core.inherit(&recovered, |id, position| load(halves, id, position));
            cx.met.count_if(core.inherited() > 0, Rare::Inherited);
        }
        cx.met.count_if(core.held_back(), Rare::StartedHeldBack);
        self.core = Some(core);
    }

    /// Everything in memory is gone, and what is under way arrives or not.
    pub fn crash(&mut self, how: Crash, cx: &mut Context) {
        cx.met.count_if(self.starting.is_some(), Rare::SourceCrashedInRecovery);
        if let Some(core) = &self.core {
            cx.met.count_if(core.flushes_under_way() > 0, Rare::SourceCrashedInFlush);
            cx.met.count_if(core.flushes_under_way() > 0 && core.inherited() > 0, Rare::HeirCrashedInFlush);
            let copying = core.copier().is_some_and(|copier| copier.purpose() == Purpose::Resync);
            cx.met.count_if(copying, Rare::SourceCrashedInCopy);
            cx.met.count_if(copying && core.superblock().lacking_since_unix_s != 0, Rare::SourceCrashedInResync);
            self.in_step = core.mode() != Mode::Alone && !core.superblock().alone;
            self.told_disk = !self.io.any(|op| matches!(op, Op::Superblock));
        }
        cx.met.count_if(self.io.any(|op| matches!(op, Op::Map)), Rare::SourceCrashedInMapWrite);
        self.io.crash(how, &mut cx.rng);
        self.core = None;
        self.starting = None;
        self.effects.clear();
        self.copying.clear();
        self.windows.clear();
        self.reads.clear();
    }

    /// A disk goes on with something. `Err`: it failed, and the engine stops.
    pub fn step(&mut self, faults: Faults, model: &mut Model, cx: &mut Context) -> Result<bool, ()> {
        let Some((op, ended)) = self.io.step(faults, &mut cx.rng) else { return Ok(false) };
        if ended == Ended::Failed && !matches!(op, Op::Read(_)) {
            cx.met.count(Rare::SourceDiskFailed);
            return Err(());
        }
        match op {
            Op::Start(0) => self.write_copy(Op::Start(1), cx),
            Op::Start(_) => self.void_loose_ends(model, cx),
            Op::Void => {
                self.voids -= 1;
                if self.voids == 0 {
                    self.started(model, cx);
                }
            }
            _ => return self.complete(op, ended, model, cx),
        }
        Ok(true)
    }

    fn complete(&mut self, op: Op, ended: Ended, model: &mut Model, cx: &mut Context) -> Result<bool, ()> {
        let core = self.core.as_mut().expect("an operation of a source that is up");
        match op {
            Op::Void | Op::Start(_) => {}
            Op::Frame(id) => core.handle_frame_written(id),
            Op::JournalSync => core.handle_journal_synced(),
            Op::Map => core.handle_map_written(),
            Op::Superblock => core.handle_superblock_written(&mut self.effects),
            Op::Flush => core.handle_flush_written(),
            Op::VolumeSync(volume) => core.handle_volume_synced(volume),
            Op::Copy(number) => {
                let copying = self.copying.iter_mut().find(|copying| copying.number == number && !copying.read);
                copying.expect("a window that is being read").read = true;
                self.copy_part_done(number, cx);
            }
            Op::Read(number) => {
                if let Some(read) = self.reads[number].take().filter(|_| ended == Ended::Well) {
                    self.check_read(read, model, cx);
                }
            }
        }
        Ok(true)
    }

    /// Whether a destination's welcome can be heard now.
    pub fn ready_to_meet(&self) -> bool {
        self.core.as_ref().is_some_and(Source::ready_to_meet)
    }

    pub fn deliver(&mut self, message: Message, cx: &mut Context) {
        let Some(core) = &mut self.core else { return };
        match message {
            Message::Welcome(welcome) => {
                cx.met.count_if(welcome.verdict == Verdict::Fenced, Rare::FencedByHello);
                (self.refused, self.met_fresh) = (welcome.verdict == Verdict::Refused, welcome.fresh);
                if welcome.verdict == Verdict::Welcome && !core.fenced() {
                    // It isn't promoted.
                    self.bound = false;
                }
                core.handle_welcome(&welcome, &mut self.effects);
                self.ordered = false;
            }
            Message::Report(report) => {
                cx.met.count_if(matches!(report, Report::Fenced(_)), Rare::FencedByReport);
                core.handle_report(report, &mut self.effects);
            }
            Message::Sums(id, sums) => {
                let count = sums.len();
                self.answered(id, sums, cx);
                let core = self.core.as_mut().expect("looked at above");
                core.handle_report(Report::Sums { id, count }, &mut self.effects);
            }
            Message::Closed => self.link_down(cx),
            other => panic!("the source can't be sent {other:?}"),
        }
    }

    /// The connection is gone: nobody answers any more.
    fn link_down(&mut self, cx: &mut Context) {
        let Some(core) = &mut self.core else { return };
        let resync = core.copier().is_some_and(|copier| copier.purpose() == Purpose::Resync);
        cx.met.count_if(resync, Rare::LinkLostInResync);
        core.handle_link_down(&mut self.effects);
        let mut waiting = Vec::new();
        for copying in self.copying.iter_mut().filter(|copying| !copying.dropped) {
            copying.dropped = true;
            waiting.push(copying.number);
        }
        waiting.into_iter().for_each(|number| self.copy_part_done(number, cx));
    }

    /// Another policy holds from now on.
    pub fn set_policy(&mut self, policy: Policy, cx: &mut Context) {
        let Some(core) = &mut self.core else { return };
        cx.met.count_if(core.held_back() && policy.on_disconnect == OnDisconnect::Continue, Rare::HeldBackReleased);
        self.ordered |= core.mode() != Mode::Together && policy.on_disconnect == OnDisconnect::Continue;
        core.handle_policy(policy);
        if policy.on_disconnect == OnDisconnect::Continue {
            (self.bound, self.released) = (false, true);
        }
    }

    /// Compares everything with the destination, if that can be.
    pub fn verify(&mut self, repair: bool) -> bool {
        let begun = self.core.as_mut().is_some_and(|core| core.handle_verify(repair).is_ok());
        if begun {
            self.verify_unknown = false;
        }
        begun
    }

    /// The turn of the engine's loop.
    pub fn turn(&mut self, link: &mut Link, model: &mut Model, cx: &mut Context) {
        if self.core.is_none() {
            return;
        }
        loop {
            let core = self.core.as_mut().expect("looked at above");
            let mut headers = HeaderMemory { arena: &mut self.arena, vault: &mut cx.vault };
            let before = core.superblock().clean;
            core.handle_turn(cx.now - self.began, &mut headers, &mut self.effects);
            let linked = core.mode() == Mode::Together && core.is_steady();
            let retired = core.mode() == Mode::Alone && core.superblock().clean != before;
            cx.met.count_if(retired, Rare::RetiredAlone);
            if linked {
                // In step: from now on only another timeout lets it go alone.
                (self.together_at, self.released, self.left_behind) = (cx.now, false, false);
            } else if cx.now >= self.together_at + core.policy().timeout {
                self.left_behind = true;
            }
            self.pump_link(link, cx);
            let mut effects = std::mem::take(&mut self.effects);
            let mut settled = effects.is_empty();
            for effect in effects.drain(..) {
                self.act(effect, link, model, cx);
            }
            effects.append(&mut self.effects);
            self.effects = effects;
            settled &= !self.pump_copies(cx);
            if settled && self.effects.is_empty() {
                break;
            }
        }
        self.pump_flush(cx);
        self.check_limits(cx);
    }

    fn pump_link(&mut self, link: &mut Link, cx: &mut Context) {
        while link.to_destination.len() < SEND_WINDOW
            && let Some(send) = self.core.as_mut().and_then(Source::next_to_send)
        {
            link.send_to_destination(match send {
                Send::Block(block) => {
                    let signal = Signal::decode(&block).expect("our own signal");
                    let alone = self.core.as_ref().is_some_and(|core| core.mode() == Mode::Alone);
                    cx.met.count_if(alone && matches!(signal, Signal::Resume { .. }), Rare::ShortCut);
                    cx.met.count_if(matches!(signal, Signal::Settle { .. }), Rare::Settled);
                    cx.met.count_if(matches!(signal, Signal::Restart { .. }) && !self.met_fresh, Rare::BeganAnew);
                    Message::Signal(signal)
                }
                Send::Frame(id) => {
                    let mut words = self.frame_words(id);
                    if cx.wire_rot > 0 && cx.rng.chance(cx.wire_rot) {
                        let at = cx.rng.below(words.len());
                        crate::content::rot(&mut words[at]);
                        cx.rotten_frames += 1;
                    }
                    Message::Frame(words)
                }
            });
        }
    }

    fn frame_words(&mut self, id: FrameId) -> Vec<Word> {
        let core = self.core.as_ref().expect("a source that is up");
        self.pieces.clear();
        core.frame_pieces(id, &mut self.pieces).expect("a frame that isn't clean");
        let mut words = self.io.words();
        self.pieces.iter().for_each(|(place, bytes)| self.arena.read(*place, *bytes, &mut words));
        words
    }

    fn act(&mut self, effect: Effect, link: &mut Link, model: &mut Model, cx: &mut Context) {
        let always = self.shape.durability == Durability::Always;
        match effect {
            Effect::WriteFrame(id) => {
                let words = self.frame_words(id);
                let core = self.core.as_ref().expect("a source that is up");
                let half = &core.halves()[id.fill.half()];
                let frame = &half.frames[id.index];
                let tickets = half.entries[frame.entries.clone()].iter().map(|entry| entry.ticket);
                model.frame(frame.mark.digest, tickets);
                self.io.write(Op::Frame(id), id.fill.half(), frame.position as usize / SECTOR, words, always);
            }
            Effect::SyncJournal => self.io.sync(Op::JournalSync, &[0, 1]),
            Effect::Answer(ticket) => {
                let alone = self.answers_alone();
                cx.met.count_if(alone && model.fenced(), Rare::AnsweredAloneAfterPromote);
                model.answer(ticket, always, alone);
            }
            Effect::Fail(ticket) => {
                cx.met.count(Rare::WriteFailed);
                let policy = self.core.as_ref().map(|core| core.policy().on_disconnect);
                assert_eq!(policy, Some(OnDisconnect::Fail), "a write fails though the policy isn't so");
                model.fail(ticket);
            }
            Effect::WriteMap(bytes, offset) => {
                let (sectors, _) = bytes.as_chunks::<SECTOR>();
                let words = sectors.iter().map(|sector| cx.vault.keep_sector(sector)).collect();
                self.io.write(Op::Map, MAP, offset as usize / SECTOR, words, true);
            }
            Effect::Mode(mode) => {
                cx.met.count_if(mode == Mode::Alone, Rare::WentAlone);
                cx.met.count_if(mode == Mode::Together && self.was_alone, Rare::TogetherAgain);
                self.was_alone = mode == Mode::Alone || (self.was_alone && mode != Mode::Together);
            }
            Effect::Resync(Resync::Began { all: true, .. }) => {
                cx.met.count(if self.met_fresh { Rare::StartedOver } else { Rare::ComparedWhole });
            }
            Effect::Resync(_) => {}
            Effect::Verified(Ok(tally)) => {
                let equal = tally.differing_bytes == 0;
                assert!(equal || self.verify_unknown, "a verify finds {} bytes that differ", tally.differing_bytes);
                cx.met.count_if(equal, Rare::VerifiedEqual);
                self.verified += 1;
            }
            Effect::Verified(Err(_)) => cx.met.count(Rare::VerifyCutOff),
            Effect::WriteSuperblock(block, offset) => {
                let words = cx.vault.keep(&block, BLOCK_BYTES).to_vec();
                self.io.write(Op::Superblock, SUPERBLOCKS, offset as usize / SECTOR, words, true);
            }
            Effect::SyncVolume(volume) => {
                self.io.sync(Op::VolumeSync(volume), &[VOLUMES + usize::from(volume)]);
            }
            Effect::Release(place, bytes) => self.arena.release(place, bytes),
            Effect::ClosePeer(reason) => {
                let silent = reason.starts_with("the destination has been silent");
                // A report can cross the source's decision to begin anew, behind a signal for a fill that was applied already:
                // that costs a connection, and nothing else.
                let crossed = reason.contains("the order has yet to begin anew");
                assert!(silent || crossed || self.refused, "both sides are right, but the source hangs up: {reason}");
                cx.met.count_if(silent, Rare::SilentPeer);
                self.link_down(cx);
                link.closed_by_source();
            }
            Effect::Fenced(_) => {
                self.link_down(cx);
                link.closed_by_source();
            }
            Effect::SyncDone(token) => self.syncs_done.push(token),
            Effect::Switched(_) => {}
        }
    }

    /// Whether what is answered now is the source's promise alone. It must be allowed to: by its policy, and because the
    /// destination has been away for the timeout, or was when the source ended, or the operator said so; never where it
    /// ended in step and knows nothing of what came after.
    fn answers_alone(&self) -> bool {
        let core = self.core.as_ref().expect("a source that is up");
        if core.mode() != Mode::Alone {
            return false;
        }
        assert!(!self.bound, "a source that ended in step answers alone, and its destination may have been promoted");
        let policy = core.policy();
        assert_eq!(policy.on_disconnect, OnDisconnect::Continue, "it answers alone though its policy isn't so");
        let waited = self.left_behind;
        assert!(self.released || waited, "it answers alone before the timeout");
        true
    }

    fn pump_flush(&mut self, cx: &mut Context) {
        let Some(core) = &mut self.core else { return };
        let late = core.flush_is_late();
        cx.met.count_if(late, Rare::FlushLate);
        let depth = if late { DEPTH.1 } else { DEPTH.0 };
        while core.flushes_under_way() < depth
            && let Some(op) = core.next_flush(&mut self.pieces)
        {
            let mut words = self.io.words();
            match op.run.action {
                Action::Write => self.pieces.iter().for_each(|(at, bytes)| self.arena.read(*at, *bytes, &mut words)),
                Action::Zero { .. } => words.resize(op.run.length as usize / SECTOR, 0),
            }
            let disk = VOLUMES + usize::from(op.volume);
            self.io.write(Op::Flush, disk, op.run.offset as usize / SECTOR, words, false);
        }
    }

    /// A client's record arrives, its payload in memory.
    pub fn record(&mut self, mut record: Record, word: Word, model: &mut Model) {
        let ticket = model.ask(&record, word);
        let mut place = Place(0);
        if record.kind == Kind::Write {
            let words: Vec<Word> = (0..record.length as u64 / SECTOR as u64).map(|index| word + index).collect();
            record.checksum = crc(&words);
            place = self.arena.store(&words);
        }
        let core = self.core.as_mut().expect("a source that is up");
        core.handle_record(Entry { record, place, ticket });
    }

    fn check_limits(&self, cx: &mut Context) {
        let Some(core) = &self.core else { return };
        let halves = if self.heir_of.is_some() { 4 } else { 2 };
        let full = halves * core.superblock().half_bytes as usize + RECEIVE_MEMORY_BYTES;
        assert!(self.arena.used() <= full, "{} bytes of memory in use", self.arena.used());
        // One client's turn may go beyond; see `Connection`.
        assert!(core.waiting() <= MAX_WAITING_RECORDS + crate::client::MAX_BURST, "{} records wait", core.waiting());
        let unwritten = core.last().0 - core.written().0;
        assert!(unwritten as usize <= MAX_FRAMES_IN_FLIGHT * 124, "{unwritten} records unwritten");
        const _: () = assert!(MAX_WAITING_BYTES < RECEIVE_MEMORY_BYTES);
        let answered_alone = core.mode() == Mode::Alone;
        assert!(!answered_alone || self.shape.mirrored, "an unmirrored source has nobody to be without");
        cx.met.count_if(!core.accepting(), Rare::Backpressure);
        let no_half = core.waiting() > 0 && core.halves().iter().all(|half| half.state > State::Open);
        cx.met.count_if(no_half, Rare::NoHalfClean);
    }

    /// Allocated memory, in bytes.
    pub fn memory(&self) -> usize {
        self.arena.used()
    }

    /// When it wants to be woken, by the world's time.
    pub fn deadline(&self) -> Option<Duration> {
        Some(self.began + self.core.as_ref()?.next_deadline()?)
    }

    /// Clients must have been closed.
    pub fn fenced(&self) -> bool {
        self.core.as_ref().is_some_and(Source::fenced)
    }
}

/// Whether a header block stands right behind the chain's end, without a whole frame.
pub fn torn_tail(shelf: &Shelf, superblock: &Superblock, recovered: &Recovered) -> bool {
    let last = recovered.second.last().or(recovered.first.last());
    let (fill, position) = match last {
        Some(found) => (found.header.fill, found.header.position + found.header.frame_bytes()),
        None => (superblock.clean.fill.next(), 0),
    };
    let header = shelf.block(fill.half(), position).and_then(|block| Header::parse(block).ok());
    header.is_some_and(|header| header.fill == fill && header.previous == recovered.end.digest)
}
