//! Drives the source's core as the engine does, on disks of memory.

use crate::disk::{Crash, Disk, Io, Rng};
use crate::history::History;
use crate::link::{Link, Message};
use nbd_mirror::core::copy::Window;
use nbd_mirror::core::half::{Entry, Ticket};
use nbd_mirror::core::index::{Action, Found, Segment};
use nbd_mirror::core::recovery;
use nbd_mirror::core::source::{Effect, FrameId, Headers, Send, Shape, Source};
use nbd_mirror::core::{Durability, Place};
use nbd_mirror::format::block::Block;
use nbd_mirror::format::checksum::crc32c;
use nbd_mirror::format::frame::{Header, Kind, RECORD_COPY, Record, padded};
use nbd_mirror::format::superblock::Superblock;
use nbd_mirror::limits::{BLOCK_BYTES, CHUNK_BYTES};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Places of disks in a machine's list; volumes or images follow.
pub const SUPERBLOCKS: usize = 2;
pub const VOLUMES: usize = 3;
/// Messages that may wait to be delivered.
const SEND_WINDOW: usize = 12;
/// Device writes of a flush or an apply under way.
pub const DEPTH: u32 = 4;

pub fn block_at(half: &[u8], position: u64) -> Option<&Block> {
    half.get(position as usize..)?.first_chunk()
}

/// Names an operation under way.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    Frame(FrameId),
    JournalSync,
    Superblock,
    Flush,
    VolumeSync(u16),
    Copy(usize),
}

/// Memory that knows what is allocated.
#[derive(Debug, Default)]
pub struct Arena {
    next: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Arena {
    fn store(&mut self, bytes: &[u8]) -> Place {
        let place = Place(self.next);
        let mut block = bytes.to_vec();
        block.resize(padded(bytes.len()), 0);
        self.next += block.len() as u64;
        self.blocks.insert(place.0, block);
        place
    }

    /// Bytes that may reach over neighbouring allocations. All of them must be allocated.
    fn read(&self, place: Place, length: usize) -> Vec<u8> {
        let (mut at, mut bytes) = (place.0, Vec::with_capacity(length));
        while bytes.len() < length {
            let (start, block) = self.blocks.range(..=at).next_back().expect("memory was released while in use");
            let from = (at - start) as usize;
            assert!(from < block.len(), "memory was released while in use");
            let taken = (block.len() - from).min(length - bytes.len());
            bytes.extend_from_slice(&block[from..from + taken]);
            at += taken as u64;
        }
        bytes
    }

    fn release(&mut self, place: Place, length: u64) {
        let block = self.blocks.remove(&place.0).expect("released twice");
        assert_eq!(block.len() as u64, length);
    }
}

impl Headers for Arena {
    fn store(&mut self, block: &Block) -> Place {
        Arena::store(self, block)
    }
}

/// Superblocks by their checksum: halves of this world are smaller than a real superblock may say.
pub type Superblocks = HashMap<u32, Superblock>;

/// The newest whole superblock on a disk of two blocks.
pub fn newest(disk: &Disk, known: &Superblocks) -> Superblock {
    let copies = disk.bytes().as_chunks::<BLOCK_BYTES>().0.iter().filter_map(|block| {
        let preamble = nbd_mirror::format::block::open(block, block[..8].try_into().ok()?).ok()?;
        known.get(&preamble.checksum.get())
    });
    copies.max_by_key(|superblock| superblock.generation).expect("a whole superblock").clone()
}

pub fn remember(known: &mut Superblocks, superblock: &Superblock) -> Box<Block> {
    let block = superblock.encode();
    let checksum = u32::from_le_bytes(block[12..16].try_into().unwrap());
    known.insert(checksum, superblock.clone());
    block
}

pub struct SourceNode {
    pub core: Source,
    pub io: Io<Op>,
    memory: Arena,
    effects: Vec<Effect>,
    copying: HashMap<usize, (Window, Vec<Segment>, Vec<u8>)>,
    durability: Durability,
    pub syncs_done: Vec<u64>,
}

impl SourceNode {
    /// Starts as the engine does; damage fails the run.
    pub fn start(
        shape: Shape,
        disks: Vec<Disk>,
        known: &mut Superblocks,
        history: &mut History,
        after: Crash,
    ) -> SourceNode {
        let mut io = Io::new(disks);
        let mut superblock = newest(&io.disks[SUPERBLOCKS], known);
        let halves = [io.disks[0].bytes().to_vec(), io.disks[1].bytes().to_vec()];
        let recovered = recovery::recover(&[&halves[0][..], &halves[1]], superblock.source, superblock.clean, true);
        let recovered = recovered.unwrap_or_else(|damage| panic!("the source's journal: {damage}"));
        superblock.incarnation += 1;
        superblock.generation += 1;
        // The journal is one file, so this sync covers what was recovered too.
        io.sync_now(SUPERBLOCKS);
        io.write_now(SUPERBLOCKS, superblock.copy_offset(), &remember(known, &superblock)[..]);
        (0..2).for_each(|half| io.sync_now(half));
        history.check_promises(recovered.end.digest, after == Crash::Power, "the source");
        history.go_on_from(recovered.end.digest);
        let mut memory = Arena::default();
        let durability = shape.durability;
        let core = Source::recover(shape, superblock, recovered, |id, position| {
            let half = &halves[id.fill.half()];
            let block = block_at(half, position).unwrap();
            let header = Header::parse(block).unwrap();
            let mut at = position as usize + BLOCK_BYTES;
            let place = memory.store(block);
            let entry = |record: Record| {
                let bytes = padded(record.payload_bytes());
                let place = if bytes > 0 { memory.store(&half[at..at + bytes]) } else { Place(0) };
                at += bytes;
                Entry { record, place, ticket: Ticket::NONE }
            };
            (place, header.records(block).map(entry).collect())
        });
        SourceNode {
            core,
            io,
            memory,
            effects: Vec::new(),
            copying: HashMap::new(),
            durability,
            syncs_done: Vec::new(),
        }
    }

    pub fn crash(self, how: Crash, rng: &mut Rng) -> Vec<Disk> {
        self.io.crash(how, rng)
    }

    /// A client's request arrives whole.
    pub fn request(&mut self, mut record: Record, bytes: &[u8], history: &mut History) {
        record.checksum = if record.kind == Kind::Write { crc32c(bytes) } else { 0 };
        let place = if record.kind == Kind::Write { self.memory.store(bytes) } else { Place(0) };
        let ticket = history.add_request(record);
        self.core.handle_record(Entry { record, place, ticket });
    }

    /// What a client reads.
    pub fn read(&self, volume: u16, offset: u64, length: u64) -> Vec<u8> {
        let (mut segments, mut bytes) = (Vec::new(), Vec::new());
        self.core.read(volume, offset..offset + length, &mut segments);
        for segment in segments {
            assert_eq!(segment.offset, offset + bytes.len() as u64);
            match segment.found {
                Found::Memory(place) => bytes.extend(self.memory.read(place, segment.length as usize)),
                Found::Zeros => bytes.resize(bytes.len() + segment.length as usize, 0),
                Found::Device => {
                    let disk = self.io.disks[VOLUMES + usize::from(volume)].bytes();
                    bytes.extend(&disk[segment.offset as usize..(segment.offset + segment.length) as usize]);
                }
            }
        }
        bytes
    }

    /// One operation completes.
    pub fn complete(&mut self, rng: &mut Rng) -> bool {
        let Some(op) = self.io.complete(rng) else { return false };
        match op {
            Op::Frame(id) => self.core.handle_frame_written(id, &mut self.effects),
            Op::JournalSync => self.core.handle_journal_synced(&mut self.effects),
            Op::Superblock => self.core.handle_superblock_written(&mut self.effects),
            Op::Flush => self.core.handle_flush_written(),
            Op::VolumeSync(volume) => self.core.handle_volume_synced(volume),
            Op::Copy(number) => self.copied(number),
        }
        true
    }

    /// Messages arrive; false: the connection has ended.
    pub fn deliver(&mut self, message: Message) {
        match message {
            Message::Welcome(welcome) => self.core.handle_welcome(&welcome, &mut self.effects),
            Message::Report(report) => self.core.handle_report(report, &mut self.effects),
            Message::Closed => self.core.handle_link_down(),
            other => panic!("the source can't be sent {other:?}"),
        }
    }

    /// The turn of the engine's loop.
    pub fn turn(&mut self, now: Duration, link: &mut Link, known: &mut Superblocks, history: &mut History) {
        loop {
            self.core.handle_turn(now, &mut self.memory, &mut self.effects);
            self.pump_link(link);
            let effects = std::mem::take(&mut self.effects);
            let mut settled = effects.is_empty();
            effects.into_iter().for_each(|effect| self.act(effect, link, known, history));
            settled &= !self.pump_copies();
            if settled && self.effects.is_empty() {
                break;
            }
        }
        let mut pieces = Vec::new();
        while self.core.flushes_under_way() < DEPTH
            && let Some(op) = self.core.next_flush(&mut pieces)
        {
            let bytes = match op.run.action {
                Action::Write => pieces.iter().flat_map(|(place, n)| self.memory.read(*place, *n as usize)).collect(),
                Action::Zero { .. } => vec![0; op.run.length as usize],
            };
            self.io.write(Op::Flush, VOLUMES + usize::from(op.volume), op.run.offset, bytes, false);
        }
    }

    fn frame_bytes(&self, id: FrameId) -> Vec<u8> {
        let mut pieces = Vec::new();
        self.core.frame_pieces(id, &mut pieces).expect("a frame that isn't clean");
        pieces.iter().flat_map(|(place, bytes)| self.memory.read(*place, *bytes as usize)).collect()
    }

    fn pump_link(&mut self, link: &mut Link) {
        while link.to_destination.len() < SEND_WINDOW
            && let Some(send) = self.core.next_to_send()
        {
            link.send_to_destination(match send {
                Send::Block(block) => Message::Signal(block),
                Send::Frame(id) => Message::Frame(self.frame_bytes(id)),
            });
        }
    }

    fn act(&mut self, effect: Effect, link: &mut Link, known: &mut Superblocks, history: &mut History) {
        match effect {
            Effect::WriteFrame(id) => {
                let half = &self.core.halves()[id.fill.half()];
                let frame = &half.frames[id.index];
                let bytes = self.frame_bytes(id);
                let header = Header::parse(block_at(&bytes, 0).unwrap()).unwrap();
                let tickets = half.entries[frame.entries.clone()].iter().map(|entry| entry.ticket);
                history.add_frame(header.previous, frame.mark.digest, tickets);
                assert!(frame.position + bytes.len() as u64 <= self.core.superblock().half_bytes);
                let stable = self.durability == Durability::Always;
                self.io.write(Op::Frame(id), id.fill.half(), frame.position, bytes, stable);
            }
            Effect::SyncJournal => self.io.sync(Op::JournalSync, [0, 1].into_iter()),
            Effect::Answer(ticket) => history.answer(ticket),
            Effect::WriteSuperblock(block, offset) => {
                // The effect was made from the superblock as it is now, or as it was before later changes to it.
                let decoded = crate::source::decode(&block, self.core.superblock());
                assert_eq!(*remember(known, &decoded), *block);
                self.io.write(Op::Superblock, SUPERBLOCKS, offset, block.to_vec(), true);
            }
            Effect::SyncVolume(volume) => {
                self.io.sync(Op::VolumeSync(volume), std::iter::once(VOLUMES + usize::from(volume)));
            }
            Effect::Release(place, bytes) => self.memory.release(place, bytes),
            Effect::ClosePeer(reason) => panic!("both sides are right, but the source hangs up: {reason}"),
            Effect::Fenced(_) => link.cut_by_source(),
            Effect::SyncDone(token) => self.syncs_done.push(token),
            Effect::Switched(_) => {}
        }
    }

    fn pump_copies(&mut self) -> bool {
        let mut started = false;
        while let Some((number, window)) = self.core.next_copy() {
            let mut segments = Vec::new();
            self.core.read(window.volume, window.offset..window.offset + window.length, &mut segments);
            // What is in memory is copied at once, what is on the device is read later.
            let bytes = self.read(window.volume, window.offset, window.length);
            self.copying.insert(number, (window, segments, bytes));
            self.io.read(Op::Copy(number));
            started = true;
        }
        started
    }

    fn copied(&mut self, number: usize) {
        let (window, segments, mut bytes) = self.copying.remove(&number).unwrap();
        let device = self.io.disks[VOLUMES + usize::from(window.volume)].bytes();
        for segment in segments.iter().filter(|segment| segment.found == Found::Device) {
            let at = (segment.offset - window.offset) as usize;
            let length = segment.length as usize;
            bytes[at..at + length].copy_from_slice(&device[segment.offset as usize..][..length]);
        }
        let mut entries = Vec::new();
        for (index, piece) in bytes.chunks(CHUNK_BYTES).enumerate() {
            let zero = piece.iter().all(|byte| *byte == 0);
            let record = Record {
                volume: window.volume,
                kind: if zero { Kind::Trim } else { Kind::Write },
                flags: RECORD_COPY,
                offset: window.offset + (index * CHUNK_BYTES) as u64,
                length: piece.len() as u32,
                checksum: if zero { 0 } else { crc32c(piece) },
            };
            let place = if zero { Place(0) } else { self.memory.store(piece) };
            entries.push(Entry { record, place, ticket: Ticket::NONE });
        }
        self.core.handle_copied(number, entries, &mut self.effects);
    }

    /// Allocations that are alive.
    pub fn allocations(&self) -> usize {
        self.memory.blocks.len()
    }
}

/// Decodes a superblock of this world: the size of a half is put right afterwards.
pub fn decode(block: &Block, like: &Superblock) -> Superblock {
    let mut patched = *block;
    let large = nbd_mirror::limits::MIN_HALF_BYTES;
    // docs/format.md: the size of a half is at byte 104.
    patched[104..112].copy_from_slice(&large.to_le_bytes());
    nbd_mirror::format::block::seal(&mut patched, like.role.magic(), u16::from_le_bytes([block[10], block[11]]));
    let decoded = Superblock::decode(like.role, &patched).expect("a superblock of ours");
    Superblock { half_bytes: like.half_bytes, ..decoded }
}
