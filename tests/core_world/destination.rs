//! Drives the destination's core as the engine does, on disks of memory.

use crate::disk::{Crash, Disk, Io, Rng};
use crate::link::{Link, Message};
use crate::source::block_at;
use crate::source::{DEPTH, SUPERBLOCKS, Superblocks, VOLUMES, decode, newest, remember};
use nbd_mirror::core::Place;
use nbd_mirror::core::destination::{Destination, Effect, StoreOp};
use nbd_mirror::core::index::Action;
use nbd_mirror::core::recovery;
use nbd_mirror::format::block::Block;
use nbd_mirror::format::checksum;
use nbd_mirror::format::frame::{self, Header, Record, padded};
use nbd_mirror::format::ids::Mark;
use nbd_mirror::format::wire::{Signal, Verdict};
use nbd_mirror::limits::BLOCK_BYTES;

/// Names an operation under way.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    Store(StoreOp),
    FileSync,
    State,
    Apply,
    ImageSync(u16),
    Erase,
}

pub struct DestinationNode {
    pub core: Destination,
    pub io: Io<Op>,
    /// A frame's place in memory is its place in its half.
    memory: [Vec<u8>; 2],
    effects: Vec<Effect>,
    pub promoted: Option<Mark>,
}

fn records(header: &Header, block: &Block) -> Vec<(Record, Place)> {
    let half_at = (header.fill.half() as u64) << 32;
    let mut at = half_at + header.position + BLOCK_BYTES as u64;
    let with_place = |record: Record| {
        let place = Place(at);
        at += padded(record.payload_bytes()) as u64;
        (record, place)
    };
    header.records(block).map(with_place).collect()
}

impl DestinationNode {
    /// Starts as the engine does; damage fails the run.
    pub fn start(disks: Vec<Disk>, known: &mut Superblocks) -> DestinationNode {
        let mut io = Io::new(disks);
        let mut superblock = newest(&io.disks[SUPERBLOCKS], known);
        // What a killed run had under way may be seen, but isn't stable before this.
        superblock.generation += 1;
        (0..=SUPERBLOCKS).for_each(|disk| io.sync_now(disk));
        io.write_now(SUPERBLOCKS, superblock.copy_offset(), &remember(known, &superblock)[..]);
        let memory = [io.disks[0].bytes().to_vec(), io.disks[1].bytes().to_vec()];
        let recovered =
            recovery::recover(&[&memory[0][..], &memory[1]], superblock.source, superblock.clean, superblock.whole);
        let recovered = recovered.unwrap_or_else(|damage| panic!("the destination's journal files: {damage}"));
        // The crash came after the promote's last write: the images are served as they are.
        let promoted = superblock.promoted.then_some(superblock.clean);
        let core = Destination::recover(superblock, recovered, |found| {
            let half = &memory[found.header.fill.half()];
            records(&found.header, block_at(half, found.header.position).unwrap())
        });
        DestinationNode { core, io, memory, effects: Vec::new(), promoted }
    }

    pub fn crash(self, how: Crash, rng: &mut Rng) -> Vec<Disk> {
        self.io.crash(how, rng)
    }

    /// One operation completes.
    pub fn complete(&mut self, rng: &mut Rng) -> bool {
        let Some(op) = self.io.complete(rng) else { return false };
        match op {
            Op::Store(op) => self.core.handle_stored(op, &mut self.effects),
            Op::FileSync => self.core.handle_file_synced(&mut self.effects),
            Op::State => self.core.handle_state_written(&mut self.effects),
            Op::Apply => self.core.handle_applied(),
            Op::ImageSync(volume) => self.core.handle_image_synced(volume),
            Op::Erase => self.core.handle_erased(),
        }
        true
    }

    /// The next message arrives, if it can be taken now.
    pub fn deliver(&mut self, link: &mut Link) {
        let Some(message) = link.to_destination.pop_front() else { return };
        match message {
            Message::Closed if self.core.connected() => self.core.handle_disconnected(),
            Message::Closed => {}
            Message::Hello(hello) => match self.core.welcome(&hello) {
                Err(_) => link.to_destination.push_front(Message::Hello(hello)),
                Ok(welcome) => {
                    let verdict = welcome.verdict;
                    link.taken = true;
                    link.send_to_source(Message::Welcome(Box::new(welcome)));
                    match verdict {
                        Verdict::Welcome => self.core.handle_connected(),
                        Verdict::Fenced => link.cut_by_destination(),
                        Verdict::Refused => panic!("both sides are right, but the source is refused"),
                    }
                }
            },
            Message::Signal(block) => {
                let signal = Signal::decode(&block).unwrap();
                let (memory, source) = (&self.memory, self.core.superblock().source);
                let mut rescan = |before: Mark, until: Mark| {
                    let half_at = Place((until.fill.half() as u64) << 32);
                    recovery::rescan(&[&memory[0][..], &memory[1]], source, before, until, half_at)
                };
                let outcome = self.core.handle_signal(signal, &mut rescan, &mut self.effects);
                outcome.unwrap_or_else(|reason| panic!("the destination hangs up at {signal:?}: {reason}"));
            }
            Message::Frame(bytes) => self.frame(&bytes).unwrap_or_else(|reason| panic!("a frame is refused: {reason}")),
            other => panic!("the destination can't be sent {other:?}"),
        }
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<(), String> {
        let (block, payload) = bytes.split_first_chunk::<BLOCK_BYTES>().unwrap();
        let header = Header::parse(block).map_err(|error| error.to_string())?;
        self.core.admit(&header)?;
        self.memory[header.fill.half()][header.position as usize..][..bytes.len()].copy_from_slice(bytes);
        frame::verify_payload(&header, block, |at| checksum::crc32c(&payload[at]))
            .map_err(|error| error.to_string())?;
        self.core.handle_frame(&header, checksum::digest(block), records(&header, block))
    }

    /// Takes over: the connection ends with the word that the source is fenced.
    pub fn promote(&mut self, link: &mut Link) {
        if self.core.connected() {
            self.core.handle_disconnected();
            let epoch = self.core.superblock().epoch.next();
            link.send_to_source(Message::Report(nbd_mirror::format::wire::Report::Fenced(epoch)));
        }
        link.cut_by_destination();
        self.core.handle_promote(&mut self.effects);
    }

    /// The turn of the engine's loop.
    pub fn turn(&mut self, link: &mut Link, known: &mut Superblocks) {
        loop {
            self.core.handle_turn(&mut self.effects);
            let effects = std::mem::take(&mut self.effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                match effect {
                    Effect::Report(report) => link.send_to_source(Message::Report(report)),
                    Effect::SyncFile(half) => self.io.sync(Op::FileSync, [half].into_iter()),
                    Effect::WriteState(block, offset) => {
                        let decoded = decode(&block, self.core.superblock());
                        assert_eq!(*remember(known, &decoded), *block);
                        self.io.write(Op::State, SUPERBLOCKS, offset, block.to_vec(), true);
                    }
                    Effect::Erase(half, position) => {
                        self.io.write(Op::Erase, half, position, vec![0; BLOCK_BYTES], true);
                    }
                    Effect::SyncImage(volume) => {
                        self.io.sync(Op::ImageSync(volume), std::iter::once(VOLUMES + usize::from(volume)));
                    }
                    Effect::Promoted(mark) => self.promoted = Some(mark),
                    Effect::Applied(_) => {}
                }
            }
        }
        while let Some(op) = self.core.next_store() {
            let bytes = self.memory[op.half][op.start as usize..op.end as usize].to_vec();
            self.io.write(Op::Store(op), op.half, op.start, bytes, op.stable);
        }
        let mut pieces = Vec::new();
        while self.core.applies_under_way() < DEPTH
            && let Some(op) = self.core.next_apply(&mut pieces)
        {
            let piece = |(place, bytes): &(Place, u64)| {
                let at = (place.0 & 0xffff_ffff) as usize;
                self.memory[(place.0 >> 32) as usize][at..at + *bytes as usize].to_vec()
            };
            let bytes = match op.run.action {
                Action::Write => pieces.iter().flat_map(piece).collect(),
                Action::Zero { .. } => vec![0; op.run.length as usize],
            };
            self.io.write(Op::Apply, VOLUMES + usize::from(op.volume), op.run.offset, bytes, false);
        }
    }
}
