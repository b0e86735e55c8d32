//! Contents of the volumes go through the stream: a first sync, a resync by changed blocks, a verify.
//!
//! What is copied stays dirty until the fill in which it went is applied at the destination: a crash of either side in
//! between costs a comparison. The end of a resync is a record of its own, and the sync signal of the fill that holds it
//! says that the destination's copy is whole.

use super::super::Place;
use super::super::copy::{Copier, Purpose, Window};
use super::super::grains::Grains;
use super::super::half::{Entry, State, Ticket};
use super::frames::release;
use super::{Effect, Headers, Resync, Source};
use crate::format::frame::{Kind, RECORD_COPY, Record, padded};
use crate::format::ids::Mark;
use crate::limits::{BLOCK_BYTES, MAX_COPY_WINDOWS, MAX_FRAMES_IN_FLIGHT, MAX_KNOWN_MARKS, MAX_RECORDS_PER_FRAME};
use std::time::Duration;

/// A window whose bytes are in memory.
#[derive(Debug)]
pub(super) struct Ready {
    number: usize,
    entries: Vec<Entry>,
    differing: Vec<(u64, u64)>,
}

impl Source {
    /// Starts a resync of what is dirty, or of what is left of it. `all`: what the destination lacks isn't known.
    pub(super) fn start_copy(&mut self, all: bool, effects: &mut Vec<Effect>) {
        self.drop_windows(effects);
        self.equal.clear();
        let todo = self.dirty.grains().clone();
        effects.push(Effect::Resync(Resync::Began { bytes: todo.bytes(), all }));
        self.begin(Purpose::Resync, todo);
        self.whole_from = None;
    }

    fn begin(&mut self, purpose: Purpose, todo: Grains) {
        self.copies += 1;
        self.copier = Some(Copier::new(self.copies, purpose, todo, self.superblock.volumes.len()));
    }

    /// Compares everything that there is with the destination. An error says why not.
    pub fn handle_verify(&mut self, repair: bool) -> Result<(), &'static str> {
        if !self.shape.mirrored {
            return Err("there is no destination to compare with");
        }
        if !self.link.is_up() {
            return Err("there is no connection to the destination: wait until there is");
        }
        match self.copier.as_ref().map(Copier::purpose) {
            Some(Purpose::Verify { .. }) => return Err("a verify is under way already"),
            Some(Purpose::Resync) => return Err("a resync is under way, which compares as well: wait for its end"),
            None => {}
        }
        self.begin(Purpose::Verify { repair }, Grains::all(&self.superblock.sizes(), self.superblock.grain_bytes));
        Ok(())
    }

    /// No window of this copier counts any more; a verify has no result, for this reason.
    pub(super) fn drop_copy(&mut self, reason: &'static str, effects: &mut Vec<Effect>) {
        self.drop_windows(effects);
        if let Some(Purpose::Verify { .. }) = self.copier.take().map(|copier| copier.purpose()) {
            effects.push(Effect::Verified(Err(reason)));
        }
    }

    fn drop_windows(&mut self, effects: &mut Vec<Effect>) {
        for ready in self.copied_windows.drain(..) {
            release(&ready.entries, effects);
        }
    }

    /// The next window to be read, where one may be read now.
    pub fn next_copy(&mut self) -> Option<(usize, Window)> {
        if !self.link.is_up() || self.fenced() {
            return None;
        }
        let (now, last, committed) = (self.clock.now, self.last.seq, self.committed);
        let stored = committed.min(self.acked);
        // A part of the journal is left to clients: they must not wait until a half is clean.
        let (half, other) = (&self.halves[self.open.half()], &self.halves[1 - self.open.half()]);
        let room = other.state == State::Clean || half.end < self.superblock.half_bytes / 2;
        let copier = self.copier.as_mut()?;
        let before = copier.under_way();
        copier.handle_stored(stored);
        if before > 0 && copier.under_way() == 0 {
            self.pace.handle_idle(now);
        }
        let under_way = copier.under_way();
        let fresh = room && under_way < MAX_COPY_WINDOWS && self.pace.may_start(now, under_way);
        let active = self.pace.active(now);
        // While clients write, one window at a time.
        let next = copier.next(last, committed, active, fresh && (!active || under_way == 0));
        if next.is_some() && under_way == 0 {
            self.pace.handle_started(now);
        }
        next
    }

    /// A window can't be read, or a verify can't be answered: for this reason.
    pub fn handle_uncopied(&mut self, reason: &'static str, effects: &mut Vec<Effect>) {
        match self.copier.as_ref().map(Copier::purpose) {
            Some(Purpose::Verify { .. }) => self.drop_copy(reason, effects),
            // It stays dirty, and is tried again over another connection. Clients go on meanwhile.
            Some(Purpose::Resync) => effects.push(Effect::ClosePeer(format!("the resync can't go on: {reason}"))),
            None => {}
        }
    }

    /// A window was read, and compared where it was asked for: these records hold what differs, in these ranges.
    pub fn handle_copied(
        &mut self,
        number: usize,
        entries: Vec<Entry>,
        differing: Vec<(u64, u64)>,
        effects: &mut Vec<Effect>,
    ) {
        if self.copier.as_mut().is_some_and(|copier| copier.handle_read(number)) {
            self.copied_windows.push(Ready { number, entries, differing });
        } else {
            release(&entries, effects);
        }
    }

    pub(super) fn make_copy_frames(&mut self, now: Duration, headers: &mut impl Headers, effects: &mut Vec<Effect>) {
        while self.unwritten < MAX_FRAMES_IN_FLIGHT
            && let Some(Ready { number, entries, differing }) = self.copied_windows.pop()
        {
            let last = self.last.seq;
            if !self.copier.as_mut().is_some_and(|copier| copier.still_true(number, last)) {
                release(&entries, effects);
                continue;
            }
            let mut sent = None;
            let mut rest = entries.as_slice();
            while !rest.is_empty() {
                let (some, more) = rest.split_at(rest.len().min(MAX_RECORDS_PER_FRAME));
                let payload: usize = some.iter().map(|entry| padded(entry.record.payload_bytes())).sum();
                if !self.make_room(BLOCK_BYTES + payload, effects) {
                    // Should a client's record come between, all of it is read anew.
                    let entries = rest.to_vec();
                    self.copied_windows.push(Ready { number, entries, differing });
                    return;
                }
                self.make_frame(now, some, headers, effects);
                sent = Some(self.last.seq);
                rest = more;
            }
            let Some(copier) = &mut self.copier else { continue };
            let resync = copier.purpose() == Purpose::Resync;
            let done = copier.handle_done(number, &differing, sent);
            if let Some((volume, offset, length)) = done.filter(|_| resync) {
                let range = (volume, offset, offset + length);
                let ranges = match sent {
                    Some(_) => &mut self.halves[self.open.half()].copied,
                    None => &mut self.equal,
                };
                match ranges.last_mut() {
                    Some((last, _, end)) if *last == volume && *end == offset => *end += length,
                    _ => ranges.push(range),
                }
            }
        }
        self.end_copy(now, headers, effects);
    }

    /// Everything is copied: one more record says so.
    fn end_copy(&mut self, now: Duration, headers: &mut impl Headers, effects: &mut Vec<Effect>) {
        let stored = self.committed.min(self.acked);
        let done = self.copier.as_ref().is_some_and(|c| c.purpose() == Purpose::Resync && c.done(stored));
        if !done
            || !self.link.is_up()
            || self.unwritten >= MAX_FRAMES_IN_FLIGHT
            || !self.make_room(BLOCK_BYTES, effects)
        {
            return;
        }
        let record = Record { volume: 0, kind: Kind::Flush, flags: RECORD_COPY, offset: 0, length: 0, checksum: 0 };
        self.make_frame(now, &[Entry { record, place: Place(0), ticket: Ticket::NONE }], headers, effects);
        if let Some(copier) = self.copier.take() {
            effects.push(Effect::Resync(Resync::Sent(copier.tally().clone())));
        }
        if !self.superblock.whole {
            // From the apply on there is something to promote. A source that crashes before it hears of that must wait for
            // its destination at its next start: so it is noted, durably, before the signal goes.
            self.note_lack();
        }
        // No reason to wait for the fill to fill up.
        self.whole_from = Some(self.last.fill);
        self.switch_wanted = true;
    }

    /// A verify that has seen everything is over.
    pub(super) fn finish_copy(&mut self, effects: &mut Vec<Effect>) {
        let stored = self.committed.min(self.acked);
        let over = |copier: &Copier| copier.purpose() != Purpose::Resync && copier.done(stored);
        if self.copier.as_ref().is_some_and(over)
            && let Some(copier) = self.copier.take()
        {
            effects.push(Effect::Verified(Ok(copier.tally().clone())));
        }
    }

    /// Remembers the boundaries that the destination may be at though the journal soon doesn't reach back to them: those
    /// that were sent, and that no crash can take from this source any more.
    pub(super) fn remember(&mut self) {
        let clean = self.superblock.clean;
        let until = self.sent.min(self.stable.max(self.synced));
        // Behind what it was told to be stable on both sides a destination doesn't go back.
        let vouched = [self.stable_both, self.acked];
        let after = self.superblock.known.last().map(|mark| mark.seq);
        let is_new = |mark: &Mark| mark.seq <= until && after.is_none_or(|after| mark.seq > after);
        let mut halves: Vec<_> = self.halves.iter().filter(|half| half.state != State::Clean).collect();
        halves.sort_by_key(|half| half.fill);
        let mut marks: Vec<Mark> = Vec::new();
        for half in halves {
            // The half before may not be given free yet; what it changed isn't marked where the destination had it.
            let behind = |mark: &Mark| mark.seq > clean.seq && is_new(mark);
            let frames: Vec<Mark> = half.frames.iter().map(|frame| frame.mark).filter(behind).collect();
            // The newest ones, then ever fewer of the older ones; the end of a complete fill is among the first. And those
            // that followed the last acknowledgement: the destination holds that one, and mostly few behind it. Should it
            // have to go back beyond what it was told to be stable on both sides, it wouldn't.
            let acked = frames.partition_point(|mark| mark.seq < self.acked);
            let mut some: Vec<usize> = (acked..frames.len().min(acked + MAX_KNOWN_MARKS / 5)).collect();
            let (mut back, mut step) = (1, 1);
            for count in 0..MAX_KNOWN_MARKS / 4 {
                some.extend(frames.len().checked_sub(back));
                if count >= MAX_KNOWN_MARKS / 8 {
                    step *= 2;
                }
                back += step;
            }
            some.extend(vouched.iter().filter_map(|seq| frames.binary_search_by_key(seq, |mark| mark.seq).ok()));
            some.sort_unstable();
            some.dedup();
            marks.extend(some.into_iter().map(|index| frames[index]));
        }
        if is_new(&clean) {
            marks.insert(0, clean);
        }
        let known = &mut self.superblock.known;
        known.extend(marks);
        while known.len() > MAX_KNOWN_MARKS {
            // Whoever is at one that is forgotten is compared as a whole.
            let spare = |mark: &Mark| !vouched.contains(&mark.seq);
            let at = (MAX_KNOWN_MARKS / 4..known.len()).find(|at| spare(&known[*at])).unwrap_or(1);
            known.remove(at);
        }
    }
}
