//! What the core wants done, and what follows when it is.

use super::{Driver, EPOCH};
use nbd_mirror::core::Durability;
use nbd_mirror::core::half::{State, Ticket};
use nbd_mirror::core::policy::{Mode, OnDisconnect};
use nbd_mirror::core::source::{Effect, FrameId, Resync};
use nbd_mirror::format::frame::{FLAG_SYNC, Header};
use nbd_mirror::format::ids::{Mark, Seq};
use nbd_mirror::format::superblock::{Role, Superblock};
use nbd_mirror::limits::*;

/// An operation under way.
#[derive(Debug, Clone)]
pub enum Op {
    Frame(usize),
    /// With the frames that it makes stable.
    JournalSync(Vec<usize>),
    /// What it says.
    Superblock(Box<Superblock>),
    Map(Vec<u8>, u64),
    Flush,
    VolumeSync(u16),
    Copy(usize),
}

/// A frame as the model knows it.
#[derive(Debug)]
pub struct Made {
    id: FrameId,
    pub mark: Mark,
    written: bool,
    pub stable: bool,
    sync: bool,
}

impl Driver {
    /// A request is answered, or failed: once.
    pub fn answered(&mut self, ticket: Ticket) {
        assert!(!self.fenced, "a fenced source answers");
        let frame = self.tickets.remove(&ticket.0).expect("one answer for each request").expect("it has a frame");
        let Made { mark, sync, .. } = self.frames[frame];
        assert!(self.frames[..=frame].iter().all(|before| before.written), "answered before it was written");
        assert!(
            !self.mirrored || self.alone || mark.seq <= self.acked,
            "answered, but the destination never said it has {mark}"
        );
        assert!(!sync || self.frames[..=frame].iter().all(|before| before.stable), "answered before it was synced");
    }

    /// Notes a frame that was made in this turn.
    pub fn frame(&mut self, id: FrameId) {
        assert!(!self.fenced, "a fenced source makes a frame");
        let mut pieces = Vec::new();
        let frame = self.core.frame_pieces(id, &mut pieces).expect("the frame that is to be written").clone();
        let last = *self.marks.last().expect("the clean mark at least");
        let block = self.memory.header(frame.header);
        let header = Header::parse(block).expect("a header of ours");
        assert_eq!((header.fill, header.position, header.first), (id.fill, frame.position, last.seq.next()));
        assert_eq!((header.previous, header.last()), (last.digest, frame.mark.seq));
        assert!(header.committed <= self.core.committed());
        assert!(header.committed <= self.acked_ever, "it says that both have what only one has");
        assert!(frame.position + frame.bytes <= MIN_HALF_BYTES && header.frame_bytes() == frame.bytes);
        assert_eq!(pieces.iter().map(|(_, bytes)| bytes).sum::<u64>(), frame.bytes);
        pieces.iter().for_each(|(place, bytes)| self.memory.assert_taken(*place, *bytes));
        let free = |copy: &Superblock| copy.clean.fill.0 + 2 >= id.fill.0;
        assert!(self.copies.iter().all(free), "it goes over what isn't durably clean");
        let entries = &self.core.halves()[id.fill.half()].entries[frame.entries.clone()];
        assert_eq!(entries.len(), usize::from(header.count));
        for entry in entries.iter().filter(|entry| entry.ticket != Ticket::NONE) {
            let before = self.tickets.insert(entry.ticket.0, Some(self.frames.len()));
            assert_eq!(before, Some(None), "a record is in one frame");
        }
        let sync = header.flags & FLAG_SYNC != 0;
        self.frames.push(Made { id, mark: frame.mark, written: false, stable: false, sync });
        self.marks.push(frame.mark);
    }

    /// Does what the core wants.
    pub fn act(&mut self, effect: Effect) {
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
            Effect::Answer(ticket) => self.answered(ticket),
            Effect::Fail(ticket) => {
                assert!(self.core.failing() && self.core.policy().on_disconnect == OnDisconnect::Fail);
                assert!(self.tickets.remove(&ticket.0).is_some(), "one answer for each request");
            }
            Effect::WriteSuperblock(block, offset) => self.write_superblock(&block, offset),
            Effect::WriteMap(bytes, at) => {
                assert!(!self.ops.iter().any(|op| matches!(op, Op::Map(..))), "two writes of the bitmap under way");
                self.ops.push(Op::Map(bytes, at));
            }
            Effect::SyncVolume(volume) => {
                assert!(!self.ops.iter().any(|op| matches!(op, Op::Flush)), "synced before all is written");
                self.ops.push(Op::VolumeSync(volume));
            }
            Effect::Release(place, bytes) => self.memory.release(place, bytes),
            Effect::ClosePeer(_) => self.disconnect(),
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
            Effect::Mode(mode) => self.mode(mode),
            Effect::Resync(resync) => {
                assert!(self.mirrored);
                let all = self.core.superblock().volumes.iter().map(|volume| volume.size_bytes).sum();
                assert!(!matches!(resync, Resync::Began { bytes, .. } if bytes > all));
            }
            Effect::Verified(outcome) => {
                self.verifying = self.verifying.checked_sub(1).expect("one end for each verify");
                self.verified = outcome.ok();
            }
        }
    }

    fn write_superblock(&mut self, block: &nbd_mirror::format::block::Block, offset: u64) {
        assert!(!self.ops.iter().any(|op| matches!(op, Op::Superblock(_))), "two superblocks under way");
        let superblock = Superblock::decode(Role::Source, block).expect("a superblock of ours");
        assert_eq!((superblock.generation, superblock.copy_offset()), (self.generation + 1, offset));
        let clean = superblock.clean;
        assert!(self.ends.contains(&clean), "no fill ends at {clean}");
        let known: Vec<Seq> = superblock.known.iter().map(|mark| mark.seq).collect();
        assert!(known.is_sorted() && known.len() <= MAX_KNOWN_MARKS, "{known:?}");
        assert!(superblock.known.iter().all(|mark| self.marks.contains(mark)), "a boundary that never was");
        if clean != self.clean {
            assert_eq!(clean.fill, self.clean.fill.next(), "a fill is left out");
            let half = &self.core.halves()[clean.fill.half()];
            assert!((half.fill, half.last, half.state) == (clean.fill, clean, State::Flushed));
            if !self.mirrored || clean.fill > self.applied {
                // Nobody else has it: what it changed must be marked, where a start finds it.
                let map = self.map.load(&superblock);
                let grain = u64::from(superblock.grain_bytes);
                for record in half.entries.iter().map(|entry| entry.record).filter(|record| record.length > 0) {
                    let marked = |at: u64| map.grains().touched(record.volume, at..at + 1);
                    assert!(
                        (record.offset..record.end()).step_by(grain as usize).all(marked),
                        "clean before it is marked"
                    );
                    assert!(marked(record.end() - 1), "clean before it is marked");
                }
            }
            self.clean = clean;
        }
        self.generation += 1;
        self.ops.push(Op::Superblock(Box::new(superblock)));
    }

    fn mode(&mut self, mode: Mode) {
        let away = self.now >= self.in_step_at + self.core.policy().timeout;
        let on_disconnect = self.core.policy().on_disconnect;
        match mode {
            Mode::Alone => {
                assert!(on_disconnect == OnDisconnect::Continue && !self.held_back);
                assert!(self.may_be_alone || away, "it goes alone too early");
            }
            Mode::Failing => assert!(on_disconnect == OnDisconnect::Fail && away),
            Mode::Together => self.may_be_alone = false,
            Mode::Waiting => {}
        }
        assert!(self.mirrored);
    }

    /// One of the operations is complete.
    pub fn complete(&mut self, which: usize) {
        if self.ops.is_empty() {
            return;
        }
        let op = self.ops.remove(which % self.ops.len());
        match op {
            Op::Frame(frame) => {
                let made = &mut self.frames[frame];
                made.written = true;
                made.stable = self.durability == Durability::Always;
                self.core.handle_frame_written(made.id);
            }
            Op::JournalSync(frames) => {
                frames.into_iter().for_each(|frame| self.frames[frame].stable = true);
                self.core.handle_journal_synced();
            }
            Op::Superblock(superblock) => {
                let copy = usize::from(superblock.copy_offset() > 0);
                self.copies[copy] = *superblock;
                self.core.handle_superblock_written(&mut self.effects);
            }
            Op::Map(bytes, at) => {
                self.map.write(&bytes, at);
                self.core.handle_map_written();
            }
            Op::Flush => self.core.handle_flush_written(),
            Op::VolumeSync(volume) => self.core.handle_volume_synced(volume),
            Op::Copy(number) => self.was_read(number),
        }
    }

    /// Pulls device writes.
    pub fn flush(&mut self, count: usize) {
        let mut pieces = Vec::new();
        for _ in 0..count.max(1) {
            let Some(op) = self.core.next_flush(&mut pieces) else { break };
            assert!(op.run.length > 0 && op.run.offset + op.run.length <= self.volume_bytes);
            pieces.iter().for_each(|(place, bytes)| self.memory.assert_taken(*place, *bytes));
            let flushing = self.core.halves().iter().find(|half| half.state == State::Flushing).expect("a half");
            assert!(flushing.last.seq <= self.core.committed());
            self.ops.push(Op::Flush);
        }
        let _ = (self.core.flush_is_late(), self.core.flushes_under_way());
    }
}
