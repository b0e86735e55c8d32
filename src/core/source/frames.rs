//! Records become frames, and frames become committed.
//!
//! Group commit comes from load alone: an idle source frames a record at once; while frames are under way, arriving
//! records gather. A frame is committed when it and every frame before it are stored on both sides (while the source is
//! alone: on this one). Only then are its records answered, and only then do reads see them, so that no client acts on
//! bytes that a crash could undo.

use super::super::half::{Entry, Frame, State, Ticket};
use super::super::{Durability, Place};
use super::{Effect, FrameId, Headers, Source};
use crate::canary::{Bug, sings};
use crate::format::frame::{FLAG_STABLE, FLAG_SYNC, Header, Kind, RECORD_COPY, RECORD_FUA, Record, padded};
use crate::format::ids::{Mark, Seq};
use crate::limits::{BLOCK_BYTES, MAX_FRAME_PAYLOAD_BYTES, MAX_FRAMES_IN_FLIGHT, MAX_RECORDS_PER_FRAME};
use std::time::Duration;

/// Payload that makes another frame worth its header and its system calls while others are under way, in bytes.
const GATHER_BYTES: usize = 32 << 10;
/// Frames under way at which records gather even so.
const BUSY: usize = 4;

/// A frame that isn't committed.
#[derive(Debug)]
pub(super) struct Flight {
    pub id: FrameId,
    pub first: Seq,
    pub last: Seq,
    pub written: bool,
    pub sync: bool,
    /// Whether it is on stable storage where it is stored and acknowledged, as is all before it.
    pub stable: bool,
    /// Whether reads see it already (it was recovered).
    pub indexed: bool,
    /// Whether it holds nothing but a resync's records.
    pub copy: bool,
    /// When it was made.
    pub made_at: Duration,
    /// Whether a window of a resync was under way then.
    pub disturbed: bool,
}

impl Source {
    pub(super) fn make_frames(&mut self, now: Duration, headers: &mut impl Headers, effects: &mut Vec<Effect>) {
        self.make_copy_frames(now, headers, effects);
        while !self.queue.is_empty() && self.frame_is_due() {
            let (count, bytes) = self.next_frame();
            if count == 0 || !self.make_room(BLOCK_BYTES + bytes, effects) {
                return;
            }
            let entries: Vec<Entry> = self.queue.drain(..count).collect();
            self.queued_bytes -= entries.iter().map(|entry| entry.record.payload_bytes()).sum::<usize>();
            self.queued_flushes -= entries.iter().filter(|entry| entry.record.kind == Kind::Flush).count();
            self.make_frame(now, &entries, headers, effects);
        }
    }

    fn frame_is_due(&self) -> bool {
        // What a resync has under way makes no client wait.
        let clients = |flight: &&Flight| !flight.copy && (self.can_be_stored() || !flight.written);
        let under_way = self.flights.iter().filter(clients).take(BUSY).count();
        if self.unwritten >= MAX_FRAMES_IN_FLIGHT {
            return false;
        }
        // A flush gains nothing by waiting: whatever it covers is in the frames before it or in this one.
        under_way == 0 || ((self.queued_bytes >= GATHER_BYTES || self.queued_flushes > 0) && under_way < BUSY)
    }

    /// How many records the next frame takes, and its payload's bytes.
    fn next_frame(&self) -> (usize, usize) {
        let mut bytes = 0;
        let mut count = 0;
        for entry in self.queue.iter().take(MAX_RECORDS_PER_FRAME) {
            let record = &entry.record;
            let more = padded(record.payload_bytes());
            // Alone, no client waits for the destination.
            let copier = self.copier.as_ref().filter(|_| !self.clock.alone);
            let held = copier.is_some_and(|c| c.holds(record.volume, record.offset, record.end()));
            if held || bytes + more > MAX_FRAME_PAYLOAD_BYTES {
                break;
            }
            bytes += more;
            count += 1;
        }
        (count, bytes)
    }

    /// Opens the half that a frame of this size goes to, switching where it doesn't fit; false: wait.
    pub(super) fn make_room(&mut self, bytes: usize, effects: &mut Vec<Effect>) -> bool {
        let half = &self.halves[self.open.half()];
        if half.state == State::Open
            && (half.end + bytes as u64 > self.superblock.half_bytes
                || half.entries.len() + MAX_RECORDS_PER_FRAME > self.max_records())
        {
            self.seal_fill(effects);
        }
        let half = &mut self.halves[self.open.half()];
        if half.state == State::Clean {
            half.open(self.open, self.last);
        }
        half.state == State::Open
    }

    /// Bounds the memory for records without payload.
    fn max_records(&self) -> usize {
        (self.superblock.half_bytes as usize / BLOCK_BYTES) * 2
    }

    pub(super) fn make_frame(
        &mut self,
        now: Duration,
        entries: &[Entry],
        headers: &mut impl Headers,
        effects: &mut Vec<Effect>,
    ) {
        let forced = |record: &Record| record.kind == Kind::Flush || record.flags & RECORD_FUA != 0;
        let sync = self.shape.durability == Durability::Flush && entries.iter().any(|entry| forced(&entry.record));
        let half = &mut self.halves[self.open.half()];
        let first = self.last.seq.next();
        let header = Header {
            flags: match (self.shape.durability, sync) {
                (Durability::Always, _) => FLAG_STABLE,
                (Durability::Flush, true) => FLAG_SYNC,
                (Durability::Flush, false) => 0,
            },
            source: self.superblock.source,
            epoch: self.superblock.epoch,
            incarnation: self.superblock.incarnation,
            fill: self.open,
            position: half.end,
            first,
            committed: self.stable_both,
            stable_here: self.stable,
            previous: self.last.digest,
            payload_bytes: 0,
            count: 0,
        };
        let digest = header.encode(entries.iter().map(|entry| &entry.record), &mut self.scratch);
        let last = Seq(self.last.seq.0 + entries.len() as u64);
        self.last = Mark { fill: self.open, seq: last, digest };
        let payload: usize = entries.iter().map(|entry| padded(entry.record.payload_bytes())).sum();
        let start = half.entries.len();
        half.entries.extend_from_slice(entries);
        let bytes = (BLOCK_BYTES + payload) as u64;
        let frame = Frame {
            position: half.end,
            header: headers.store(&self.scratch),
            entries: start..half.entries.len(),
            first,
            mark: self.last,
            bytes,
            sync,
        };
        let copy = entries.iter().all(|entry| entry.record.flags & RECORD_COPY != 0);
        let id = FrameId { fill: self.open, index: half.frames.len() };
        half.end += bytes;
        half.last = self.last;
        half.frames.push(frame);
        half.opened_at.get_or_insert(now);
        if let Some(copier) = &mut self.copier {
            for (index, entry) in entries.iter().enumerate().filter(|(_, e)| e.record.flags & RECORD_COPY == 0) {
                let seq = Seq(first.0 + index as u64);
                copier.handle_sequenced(entry.record.volume, entry.record.offset, entry.record.end(), seq);
            }
        }
        let stable = sync || self.shape.durability == Durability::Always;
        let disturbed = self.copier.as_ref().is_some_and(|copier| copier.under_way() > 0);
        self.flights.push_back(Flight {
            id,
            first,
            last,
            written: false,
            sync,
            stable,
            indexed: false,
            copy,
            made_at: now,
            disturbed,
        });
        self.unwritten += 1;
        effects.push(Effect::WriteFrame(id));
    }

    /// The frame is in the journal (with `durability = always`: on stable storage).
    pub fn handle_frame_written(&mut self, id: FrameId) {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.id == id) {
            flight.written = true;
            self.unwritten -= 1;
        }
    }

    /// What was in the journal when the sync was asked for is on stable storage.
    pub fn handle_journal_synced(&mut self) {
        if let Some(seq) = self.syncing.take() {
            self.synced = seq;
        }
    }

    /// Asks for a journal sync where something waits for one.
    pub(super) fn sync_if_due(&mut self, effects: &mut Vec<Effect>) {
        if self.syncing.is_some() || self.shape.durability == Durability::Always {
            return;
        }
        let written = self.written();
        let of_frames =
            self.flights.iter().take_while(|flight| flight.written).filter(|flight| flight.sync).map(|f| f.last).last();
        // A fill must be stable before its first byte goes to a volume: else a power cut could leave on the volume
        // what neither journal knows.
        let sealed = self.halves.iter().filter(|half| half.state == State::Sealed).map(|half| half.last.seq);
        let due = of_frames.into_iter().chain(sealed).filter(|seq| *seq <= written).max();
        if due.is_some_and(|seq| seq > self.synced) {
            self.syncing = Some(written);
            effects.push(Effect::SyncJournal);
        }
    }

    /// Commits what both sides have, or what this one has while it is alone, in order.
    pub(super) fn commit(&mut self, effects: &mut Vec<Effect>) {
        let elsewhere = self.shape.mirrored && !self.clock.alone;
        // As long as a start would take this source for alone, nothing may be answered as by both: the destination could
        // be promoted, and that start knew nothing of it.
        if elsewhere && !self.is_together() {
            return;
        }
        while let Some(flight) = self.flights.front() {
            let here = flight.written && (!flight.sync || self.synced >= flight.last);
            let acked = self.acked >= flight.last;
            if !here || (elsewhere && !acked && !sings(Bug::AnswerBeforePeer)) {
                break;
            }
            let (id, indexed, last) = (flight.id, flight.indexed, flight.last);
            if flight.stable {
                self.stable = self.stable.max(last);
                if acked {
                    self.stable_both = self.stable_both.max(last);
                }
            }
            if !flight.copy && !indexed {
                let now = self.clock.now;
                self.pace.handle_answer(now, now.saturating_sub(flight.made_at), flight.disturbed);
            }
            self.flights.pop_front();
            self.committed = last;
            let half = &mut self.halves[id.fill.half()];
            for entry in &half.entries[half.frames[id.index].entries.clone()] {
                if !indexed && entry.record.flags & RECORD_COPY == 0 {
                    half.index.insert(&entry.record, entry.place);
                }
                if entry.ticket != Ticket::NONE {
                    effects.push(Effect::Answer(entry.ticket));
                }
            }
        }
    }

    /// Takes over frames that were found in the journal. They were sealed by the run that made them.
    pub(super) fn adopt(
        &mut self,
        found: Vec<super::super::recovery::Found>,
        places: &mut impl FnMut(FrameId, u64) -> (Place, Vec<Entry>),
    ) {
        let Some(fill) = found.first().map(|frame| frame.header.fill) else { return };
        let half = &mut self.halves[fill.half()];
        half.open(fill, self.last);
        half.state = State::Sealed;
        for (index, frame) in found.iter().enumerate() {
            let id = FrameId { fill, index };
            let (header, entries) = places(id, frame.header.position);
            let start = half.entries.len();
            // Recovered records may have been answered: reads must see them at once.
            for entry in entries.iter().filter(|entry| entry.record.flags & RECORD_COPY == 0) {
                half.index.insert(&entry.record, entry.place);
            }
            half.entries.extend(entries);
            let (first, bytes) = (frame.header.first, frame.header.frame_bytes());
            let entries = start..half.entries.len();
            half.frames.push(Frame {
                position: frame.header.position,
                header,
                entries,
                first,
                mark: frame.mark,
                bytes,
                sync: false,
            });
            half.end = frame.header.position + bytes;
            let last = frame.mark.seq;
            // The destination gets it as it is: with another durability's word.
            let stable = frame.header.flags & FLAG_STABLE != 0;
            if !stable {
                self.volatile_until = last;
            }
            self.stable_both = self.stable_both.max(frame.header.committed);
            self.flights.push_back(Flight {
                id,
                first,
                last,
                written: true,
                sync: false,
                stable,
                indexed: true,
                copy: false,
                made_at: Duration::ZERO,
                disturbed: false,
            });
        }
        half.last = found.last().map_or(half.last, |frame| frame.mark);
        half.whole = self.superblock.whole;
        self.last = half.last;
        self.open = fill.next();
    }

    /// The frame's bytes in memory, in order, neighbours joined.
    pub fn frame_pieces(&self, id: FrameId, pieces: &mut Vec<(Place, u64)>) -> Option<&Frame> {
        let half = &self.halves[id.fill.half()];
        let frame = half.frames.get(id.index).filter(|_| half.fill == id.fill)?;
        let mut add = |place: Place, bytes: u64| match pieces.last_mut() {
            Some((last, length)) if last.0 + *length == place.0 => *length += bytes,
            _ => pieces.push((place, bytes)),
        };
        add(frame.header, BLOCK_BYTES as u64);
        for entry in half.entries[frame.entries.clone()].iter().filter(|entry| entry.record.payload_bytes() > 0) {
            add(entry.place, padded(entry.record.payload_bytes()) as u64);
        }
        Some(frame)
    }
}

/// Gives back the memory of records that will not be framed.
pub(super) fn release(entries: &[Entry], effects: &mut Vec<Effect>) {
    for entry in entries.iter().filter(|entry| entry.record.payload_bytes() > 0) {
        effects.push(Effect::Release(entry.place, padded(entry.record.payload_bytes()) as u64));
    }
}
