//! Drives a source's core as the engine does, on disks that fail: start, completions, effects, clients' reads.

use crate::arena::Arena;
use crate::content::{BLOCK, SECTOR, Shelf, Vault, Word, crc};
use crate::context::Context;
use crate::disk::{Crash, Disk, Ended, Faults, Io};
use crate::link::{Link, Message};
use crate::model::Model;
use crate::rare::Rare;
use nbd_mirror::core::copy::Window;
use nbd_mirror::core::half::{Entry, State, Ticket};
use nbd_mirror::core::index::{Action, Found, Segment};
use nbd_mirror::core::recovery::{self, Halves as _, Recovered};
use nbd_mirror::core::source::{Effect, FrameId, Headers, Send, Shape, Source};
use nbd_mirror::core::{Durability, Place};
use nbd_mirror::format::block::Block;
use nbd_mirror::format::frame::{Header, Kind, RECORD_COPY, Record};
use nbd_mirror::format::superblock::{Role, Superblock};
use nbd_mirror::format::wire::{Signal, Verdict};
use nbd_mirror::limits::{
    BLOCK_BYTES, CHUNK_BYTES, MAX_FRAMES_IN_FLIGHT, MAX_WAITING_BYTES, MAX_WAITING_RECORDS, RECEIVE_MEMORY_BYTES,
};

/// Places of disks in a machine's list: two halves, both superblock copies, then the volumes or images.
pub const SUPERBLOCKS: usize = 2;
pub const VOLUMES: usize = 3;
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
    Flush,
    VolumeSync(u16),
    Copy(usize),
    Read(usize),
}

/// A range that is being read: what came from memory, and what the device has still to give.
#[derive(Debug)]
struct Reading {
    volume: u16,
    start: usize,
    words: Vec<Word>,
    segments: Vec<Segment>,
}

/// A client's read, with what the model said when it began.
#[derive(Debug)]
struct ClientRead {
    reading: Reading,
    then: Vec<Word>,
    moment: usize,
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
    copying: Vec<(usize, Window, Reading)>,
    /// Windows of the first sync that were read: number and offset.
    windows: Vec<(usize, u64)>,
    reads: Vec<Option<ClientRead>>,
    starting: Option<(Superblock, Recovered)>,
    /// Blocks that are being made void.
    voids: u32,
}

/// The superblock that counts, and whether a copy of it was torn.
pub fn newest(role: Role, words: &[Word], vault: &Vault) -> Option<(Superblock, bool)> {
    let copies = [0, 1].map(|copy| *vault.block(&words[copy * BLOCK..]).unwrap_or(&[0; BLOCK_BYTES]));
    let torn = copies.iter().any(|copy| Superblock::decode(role, copy).is_err());
    Superblock::newest(role, [&copies[0], &copies[1]]).ok().map(|superblock| (superblock, torn))
}

/// Makes the disks of a machine: blank halves, both copies of its superblock, and volumes.
pub fn disks(superblock: &Superblock, volumes: Vec<Vec<Word>>, vault: &mut Vault) -> Vec<Disk> {
    let block = vault.keep(&superblock.encode(), BLOCK_BYTES);
    let half = || vec![0; superblock.half_bytes as usize / SECTOR];
    [half(), half(), [block, block].concat()].into_iter().chain(volumes).map(Disk::new).collect()
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
            reads: Vec::new(),
            starting: None,
            voids: 0,
        }
    }

    pub fn down(&self) -> bool {
        self.core.is_none() && self.starting.is_none()
    }

    /// Begins a start, as the engine does: what can be read is made stable, then read, then the superblock is raised.
    pub fn start(&mut self, after: Crash, model: &mut Model, cx: &mut Context) {
        (0..=SUPERBLOCKS).for_each(|disk| self.io.sync_now(disk));
        let found = newest(Role::Source, self.io.disks[SUPERBLOCKS].words(), &cx.vault);
        let (mut superblock, torn) = found.expect("the source has no superblock any more");
        let shelf = Shelf { halves: [self.io.disks[0].words(), self.io.disks[1].words()], vault: &cx.vault };
        let recovered = recovery::recover(&shelf, superblock.source, superblock.clean, true);
        let recovered = recovered.unwrap_or_else(|damage| panic!("the source's journal: {damage}"));
        cx.met.count_if(torn, Rare::SourceTornSuperblock);
        cx.met.count(match (recovered.first.is_empty(), recovered.second.is_empty()) {
            (true, _) => Rare::SourceFoundNothing,
            (false, true) => Rare::SourceFoundOneFill,
            (false, false) => Rare::SourceFoundTwoFills,
        });
        cx.met.count_if(torn_tail(&shelf, &superblock, &recovered), Rare::SourceTornTail);
        model.check(recovered.end.digest, after == Crash::Power, "the source");
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

    fn void_loose_ends(&mut self, model: &mut Model, cx: &Context) {
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

    fn started(&mut self, model: &mut Model, cx: &Context) {
        let Some((superblock, recovered)) = self.starting.take() else { return };
        // Only now can anybody have seen what it found.
        model.restart(recovered.end.digest);
        self.arena = Arena::default();
        let (arena, disks, vault) = (&mut self.arena, &self.io.disks, &cx.vault);
        let half_bytes = superblock.half_bytes;
        self.core = Some(Source::recover(self.shape.clone(), superblock, recovered, |id, position| {
            let shelf = Shelf { halves: [disks[0].words(), disks[1].words()], vault };
            let block = shelf.block(id.fill.half(), position).expect("a header that was found");
            let header = Header::parse(block).expect("a header that was found");
            let at = position as usize / SECTOR;
            assert!(position + header.frame_bytes() <= half_bytes);
            let words = &disks[id.fill.half()].words()[at..at + header.frame_bytes() as usize / SECTOR];
            let place = arena.store(words);
            let records = recovery::records(&header, block, Place(place.0 + BLOCK_BYTES as u64)).into_iter();
            (place, records.map(|(record, place)| Entry { record, place, ticket: Ticket::NONE }).collect())
        }));
    }

    /// Everything in memory is gone, and what is under way arrives or not.
    pub fn crash(&mut self, how: Crash, cx: &mut Context) {
        cx.met.count_if(self.starting.is_some(), Rare::SourceCrashedInRecovery);
        if let Some(core) = &self.core {
            cx.met.count_if(core.flushes_under_way() > 0, Rare::SourceCrashedInFlush);
            cx.met.count_if(core.copied().is_some(), Rare::SourceCrashedInCopy);
        }
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
            Op::Frame(id) => core.handle_frame_written(id, &mut self.effects),
            Op::JournalSync => core.handle_journal_synced(&mut self.effects),
            Op::Superblock => core.handle_superblock_written(&mut self.effects),
            Op::Flush => core.handle_flush_written(),
            Op::VolumeSync(volume) => core.handle_volume_synced(volume),
            Op::Copy(number) => self.copied(number, cx),
            Op::Read(number) => {
                if let Some(read) = self.reads[number].take().filter(|_| ended == Ended::Well) {
                    self.check_read(read, model, cx);
                }
            }
        }
        Ok(true)
    }

    pub fn deliver(&mut self, message: Message, cx: &mut Context) {
        let Some(core) = &mut self.core else { return };
        match message {
            Message::Welcome(welcome) => {
                cx.met.count_if(welcome.verdict == Verdict::Fenced, Rare::FencedByHello);
                core.handle_welcome(&welcome, &mut self.effects);
            }
            Message::Report(report) => {
                let fenced = matches!(report, nbd_mirror::format::wire::Report::Fenced(_));
                cx.met.count_if(fenced, Rare::FencedByReport);
                core.handle_report(report, &mut self.effects);
            }
            Message::Closed => core.handle_link_down(),
            other => panic!("the source can't be sent {other:?}"),
        }
    }

    /// The turn of the engine's loop.
    pub fn turn(&mut self, link: &mut Link, model: &mut Model, cx: &mut Context) {
        if self.core.is_none() {
            return;
        }
        loop {
            let core = self.core.as_mut().expect("looked at above");
            let mut headers = HeaderMemory { arena: &mut self.arena, vault: &mut cx.vault };
            core.handle_turn(cx.now, &mut headers, &mut self.effects);
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
                Send::Block(block) => Message::Signal(Signal::decode(&block).expect("our own signal")),
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
            Effect::Answer(ticket) => model.answer(ticket, always),
            Effect::WriteSuperblock(block, offset) => {
                let words = cx.vault.keep(&block, BLOCK_BYTES).to_vec();
                self.io.write(Op::Superblock, SUPERBLOCKS, offset as usize / SECTOR, words, true);
            }
            Effect::SyncVolume(volume) => {
                self.io.sync(Op::VolumeSync(volume), &[VOLUMES + usize::from(volume)]);
            }
            Effect::Release(place, bytes) => self.arena.release(place, bytes),
            Effect::ClosePeer(reason) => panic!("both sides are right, but the source hangs up: {reason}"),
            Effect::Fenced(_) => link.closed_by_source(),
            Effect::SyncDone(token) => self.syncs_done.push(token),
            Effect::Switched(_) => {}
        }
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

    fn pump_copies(&mut self, cx: &mut Context) -> bool {
        let mut started = false;
        while let Some((number, window)) = self.core.as_mut().and_then(Source::next_copy) {
            let reading = self.begin_read(window.volume, window.offset, window.length);
            self.copying.push((number, window, reading));
            let window = (number, window.offset);
            cx.met.count_if(self.windows.contains(&window), Rare::WindowReadAgain);
            self.windows.push(window);
            self.io.read(Op::Copy(number));
            started = true;
        }
        started
    }

    fn copied(&mut self, number: usize, cx: &mut Context) {
        let at = self.copying.iter().position(|(copy, ..)| *copy == number).expect("a window that is being read");
        let (_, window, mut reading) = self.copying.swap_remove(at);
        self.end_read(&mut reading);
        let mut entries = Vec::new();
        for (index, piece) in reading.words.chunks(CHUNK_BYTES / SECTOR).enumerate() {
            let zero = piece.iter().all(|word| *word == 0);
            let record = Record {
                volume: window.volume,
                kind: if zero { Kind::Trim } else { Kind::Write },
                flags: RECORD_COPY,
                offset: window.offset + (index * CHUNK_BYTES) as u64,
                length: (piece.len() * SECTOR) as u32,
                checksum: if zero { 0 } else { crc(piece) },
            };
            let place = if zero { Place(0) } else { self.arena.store(piece) };
            entries.push(Entry { record, place, ticket: Ticket::NONE });
        }
        let before = self.effects.len();
        let core = self.core.as_mut().expect("a source that is up");
        core.handle_copied(number, entries, &mut self.effects);
        cx.met.count_if(self.effects.len() > before, Rare::WindowOfAnEarlierCopy);
    }

    /// What is in memory is taken at once, what is on the device is read later.
    fn begin_read(&self, volume: u16, offset: u64, length: u64) -> Reading {
        let core = self.core.as_ref().expect("a source that is up");
        let mut segments = Vec::new();
        core.read(volume, offset..offset + length, &mut segments);
        let mut words = Vec::with_capacity(length as usize / SECTOR);
        for segment in &segments {
            match segment.found {
                Found::Memory(place) => self.arena.read(place, segment.length, &mut words),
                Found::Zeros | Found::Device => words.resize(words.len() + segment.length as usize / SECTOR, 0),
            }
        }
        Reading { volume, start: offset as usize / SECTOR, words, segments }
    }

    fn end_read(&self, reading: &mut Reading) {
        let device = self.io.disks[VOLUMES + usize::from(reading.volume)].words();
        for segment in reading.segments.iter().filter(|segment| segment.found == Found::Device) {
            let (from, count) = (segment.offset as usize / SECTOR, segment.length as usize / SECTOR);
            let at = from - reading.start;
            reading.words[at..at + count].copy_from_slice(&device[from..from + count]);
        }
    }

    /// A client reads; what it gets is checked when the device has answered.
    pub fn read(&mut self, volume: u16, offset: u64, length: u64, model: &Model, cx: &mut Context) {
        let reading = self.begin_read(volume, offset, length);
        let then = model.now[usize::from(volume)][reading.start..reading.start + reading.words.len()].to_vec();
        let device = reading.segments.iter().any(|segment| segment.found == Found::Device);
        let read = ClientRead { reading, then, moment: model.moment() };
        if !device {
            return self.check_read(read, model, cx);
        }
        let flushing = self.core.as_ref().is_some_and(|core| core.flushes_under_way() > 0);
        cx.met.count_if(flushing, Rare::ReadDuringFlush);
        let free = self.reads.iter().position(Option::is_none).unwrap_or_else(|| {
            self.reads.push(None);
            self.reads.len() - 1
        });
        self.reads[free] = Some(read);
        self.io.read(Op::Read(free));
    }

    fn check_read(&self, mut read: ClientRead, model: &Model, cx: &Context) {
        self.end_read(&mut read.reading);
        let Reading { volume, start, words, .. } = &read.reading;
        for (index, (word, then)) in words.iter().zip(&read.then).enumerate() {
            let right = word == then || model.allows(*word, *then, read.moment, usize::from(*volume), start + index);
            assert!(right, "a read of sector {} of volume {volume} isn't what was answered last", start + index);
        }
        cx.reads.set(cx.reads.get() + 1);
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
        let full = 2 * core.superblock().half_bytes as usize + RECEIVE_MEMORY_BYTES;
        assert!(self.arena.used() <= full, "{} bytes of memory in use", self.arena.used());
        // One client's turn may go beyond; see `Connection`.
        assert!(core.waiting() <= MAX_WAITING_RECORDS + crate::client::MAX_BURST, "{} records wait", core.waiting());
        let unwritten = core.last().0 - core.written().0;
        assert!(unwritten as usize <= MAX_FRAMES_IN_FLIGHT * 124, "{unwritten} records unwritten");
        const _: () = assert!(MAX_WAITING_BYTES < RECEIVE_MEMORY_BYTES);
        cx.met.count_if(!core.accepting(), Rare::Backpressure);
        let no_half = core.waiting() > 0 && core.halves().iter().all(|half| half.state > State::Open);
        cx.met.count_if(no_half, Rare::NoHalfClean);
    }

    /// Allocated memory, in bytes.
    pub fn memory(&self) -> usize {
        self.arena.used()
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
