//! Resync and verify: contents of the volumes go through the ordered stream, window by window, while clients write.
//!
//! A window's record must never carry bytes older than a client's record before it. So a window is read only when
//! every record that was sequenced before is committed (and thus seen by the read), and it is read again if a
//! record that overlaps it is sequenced between the read and its own. A window that is hit again and again holds
//! such records back for the moment of one read.
//!
//! Before a window is sent the destination is asked for its checksums, so that only what differs travels. The question
//! goes behind all frames that the read has seen, and a window that is hit meanwhile is asked for again: so both sides'
//! answers are of the same moment. Where nothing has been equal for a while, most windows go unasked.

use super::grains::Grains;
use crate::canary::{Bug, sings};
use crate::format::ids::Seq;
use crate::limits::MAX_COPY_WINDOWS;
use std::collections::VecDeque;

/// How often a window may be spoiled before it holds writes back.
const PATIENCE: u32 = 3;
/// Windows in a row of which nothing was equal, after which so many are sent unasked.
const VAIN: (u32, u32) = (8, 56);
/// Ranges that differ of which a verify remembers where they are.
const MAX_RANGES: usize = 1000;
/// Window while clients write, in bytes: it goes before theirs.
const SMALL_WINDOW_BYTES: u64 = 256 << 10;

/// What windows are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The destination is to hold what is here.
    Resync,
    /// It is to be seen whether it does.
    Verify {
        /// What differs is sent.
        repair: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Until every record up to this one is committed.
    Waiting(Seq),
    /// Being read and asked for.
    Reading { spoiled: bool },
    /// Read and compared, waiting for room in the journal.
    Ready { spoiled: bool },
    /// Sequenced; until this record is stored on both sides.
    Sent(Seq),
}

/// A part of a volume that is being looked at.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The volume.
    pub volume: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes, at most [`crate::limits::COPY_WINDOW_BYTES`].
    pub length: u64,
    /// Whether the destination is asked for its checksums.
    pub asked: bool,
    phase: Phase,
    spoils: u32,
}

impl Window {
    fn overlaps(&self, volume: u16, start: u64, end: u64) -> bool {
        self.volume == volume && start < self.offset + self.length && self.offset < end
    }
}

/// A question to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The window's number.
    pub number: usize,
    /// The volume.
    pub volume: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// It goes behind the frame with this record.
    pub after: Seq,
}

/// How far it has come, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes to be looked at in all.
    pub total_bytes: u64,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes that differed.
    pub differing_bytes: u64,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// The first ranges that differed, as volume, offset and length in bytes.
    pub ranges: Vec<(u16, u64, u64)>,
}

/// Where a resync or a verify stands.
#[derive(Debug)]
pub struct Copier {
    /// Tells its windows from those of one before it, whose reads may still be under way.
    generation: usize,
    purpose: Purpose,
    todo: Grains,
    volumes: u16,
    /// Where the next window is looked for.
    next: (u16, u64),
    windows: [Option<Window>; MAX_COPY_WINDOWS],
    questions: VecDeque<Question>,
    tally: Tally,
    vain: u32,
    unasked: u32,
}

impl Copier {
    /// Looks at these grains of so many volumes.
    pub fn new(generation: usize, purpose: Purpose, todo: Grains, volumes: usize) -> Copier {
        let tally = Tally { total_bytes: todo.bytes(), ..Tally::default() };
        Copier {
            generation,
            purpose,
            todo,
            volumes: volumes as u16,
            next: (0, 0),
            windows: [None; MAX_COPY_WINDOWS],
            questions: VecDeque::new(),
            tally,
            vain: 0,
            unasked: 0,
        }
    }

    /// What it is for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// How far it has come.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether everything is sequenced, and stored on both sides up to `stored`.
    pub fn done(&self, stored: Seq) -> bool {
        let stored = |window: &Window| matches!(window.phase, Phase::Sent(seq) if seq <= stored);
        self.todo.is_empty() && self.windows.iter().flatten().all(stored)
    }

    /// Windows that aren't stored on both sides.
    pub fn under_way(&self) -> usize {
        self.windows.iter().flatten().count()
    }

    /// This copy's window of that number.
    fn window(&mut self, number: usize) -> Option<&mut Window> {
        let slot = number.checked_sub(self.generation * MAX_COPY_WINDOWS)?;
        self.windows.get_mut(slot)?.as_mut()
    }

    /// Lets go of windows that are stored on both sides.
    pub fn handle_stored(&mut self, stored: Seq) {
        for window in &mut self.windows {
            if window.is_some_and(|window| matches!(window.phase, Phase::Sent(seq) if seq <= stored)) {
                *window = None;
            }
        }
    }

    /// The next window to read and its number, if one may be read now. `small`: clients write. `fresh`: whether another
    /// window may be begun at all.
    pub fn next(&mut self, last: Seq, committed: Seq, small: bool, fresh: bool) -> Option<(usize, Window)> {
        for slot in 0..self.windows.len() {
            if self.windows[slot].is_none() && fresh {
                self.windows[slot] = self.open_window(last, small);
            }
            let Some(window) = &mut self.windows[slot] else { continue };
            let Phase::Waiting(after) = window.phase else { continue };
            if after > committed {
                continue;
            }
            window.phase = Phase::Reading { spoiled: false };
            let number = self.generation * MAX_COPY_WINDOWS + slot;
            let window = *window;
            if window.asked {
                let Window { volume, offset, length, .. } = window;
                self.questions.push_back(Question { number, volume, offset, length, after });
            }
            return Some((number, window));
        }
        None
    }

    fn open_window(&mut self, last: Seq, small: bool) -> Option<Window> {
        let range = loop {
            let (volume, at) = self.next;
            match self.todo.next(volume, at) {
                Some(range) => break range,
                None if volume + 1 < self.volumes => self.next = (volume + 1, 0),
                // Grains of an earlier place may have come back.
                None if self.todo.is_empty() => return None,
                None => self.next = (0, 0),
            }
        };
        let volume = self.next.0;
        let limit = if small { SMALL_WINDOW_BYTES.max(self.todo.grain_bytes()) } else { u64::MAX };
        let (offset, length) = (range.start, (range.end - range.start).min(limit));
        self.todo.remove(volume, offset..offset + length);
        self.next = (volume, offset + length);
        let asked = self.purpose != Purpose::Resync || self.unasked == 0;
        self.unasked = self.unasked.saturating_sub(1);
        Some(Window { volume, offset, length, asked, phase: Phase::Waiting(last), spoils: 0 })
    }

    /// The next question, if it may be asked behind the frame with this record.
    pub fn next_question(&mut self, sent: Seq) -> Option<Question> {
        let due = self.questions.front().is_some_and(|question| question.after <= sent);
        if due { self.questions.pop_front() } else { None }
    }

    /// A record that changes this range gets its sequence number now.
    pub fn handle_sequenced(&mut self, volume: u16, start: u64, end: u64, seq: Seq) {
        for window in self.windows.iter_mut().flatten() {
            if window.overlaps(volume, start, end) && !sings(Bug::CopyStale) {
                match &mut window.phase {
                    Phase::Waiting(until) => *until = seq,
                    Phase::Reading { spoiled } | Phase::Ready { spoiled } => *spoiled = true,
                    Phase::Sent(_) => {}
                }
            }
        }
    }

    /// Whether a record with this range must not be sequenced yet.
    pub fn holds(&self, volume: u16, start: u64, end: u64) -> bool {
        self.windows.iter().flatten().any(|window| {
            window.spoils >= PATIENCE && !matches!(window.phase, Phase::Sent(_)) && window.overlaps(volume, start, end)
        })
    }

    /// A window's bytes are in memory, and compared where they were asked for. False: it belongs to another copy, and
    /// nobody wants them.
    pub fn handle_read(&mut self, number: usize) -> bool {
        match self.window(number) {
            Some(Window { phase, .. }) => {
                if let Phase::Reading { spoiled } = *phase {
                    *phase = Phase::Ready { spoiled };
                }
                true
            }
            None => false,
        }
    }

    /// Asked right before the window is sequenced: whether its bytes are still the newest. If not it starts over.
    pub fn still_true(&mut self, number: usize, last: Seq) -> bool {
        match self.window(number) {
            Some(window) if window.phase == (Phase::Ready { spoiled: false }) => true,
            Some(window) => {
                window.phase = Phase::Waiting(last);
                window.spoils += 1;
                false
            }
            None => false,
        }
    }

    /// The window is done: these ranges differed, and its last record, if it needed any, has this sequence number.
    /// Gives its range.
    pub fn handle_done(
        &mut self,
        number: usize,
        differing: &[(u64, u64)],
        sent: Option<Seq>,
    ) -> Option<(u16, u64, u64)> {
        let window = self.window(number)?;
        let (volume, offset, length, asked) = (window.volume, window.offset, window.length, window.asked);
        match sent {
            Some(seq) => window.phase = Phase::Sent(seq),
            None => self.windows[number - self.generation * MAX_COPY_WINDOWS] = None,
        }
        let bytes: u64 = differing.iter().map(|(_, length)| length).sum();
        self.tally.done_bytes += length;
        self.tally.differing_bytes += bytes;
        if sent.is_some() {
            self.tally.sent_bytes += bytes;
        }
        let room = MAX_RANGES.saturating_sub(self.tally.ranges.len());
        if self.purpose != Purpose::Resync {
            self.tally.ranges.extend(differing.iter().take(room).map(|(offset, length)| (volume, *offset, *length)));
        }
        if asked {
            self.vain = if bytes == length { self.vain + 1 } else { 0 };
            if self.vain >= VAIN.0 {
                (self.vain, self.unasked) = (VAIN.0 - 1, VAIN.1);
            }
        }
        Some((volume, offset, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{COPY_WINDOW_BYTES, GRAIN_BYTES};

    const SIZES: [u64; 1] = [COPY_WINDOW_BYTES + 4096];

    fn copier() -> Copier {
        Copier::new(3, Purpose::Resync, Grains::all(&SIZES, GRAIN_BYTES), 1)
    }

    fn next(copier: &mut Copier, last: u64, committed: u64) -> Option<(usize, Window)> {
        copier.next(Seq(last), Seq(committed), false, true)
    }

    #[test]
    fn a_window_waits_for_what_was_sequenced_before_it() {
        let mut copier = copier();
        assert!(next(&mut copier, 5, 4).is_none());
        copier.handle_sequenced(0, 0, 512, Seq(6));
        let (number, window) = next(&mut copier, 6, 5).unwrap();
        assert_eq!((window.offset, window.length), (COPY_WINDOW_BYTES, 4096), "the first window is hit by record 6");
        assert!(copier.next_question(Seq(4)).is_none(), "not before the frames that the read has seen");
        assert_eq!(copier.next_question(Seq(5)).unwrap().number, number);
        assert!(copier.handle_read(number) && copier.still_true(number, Seq(6)));
        assert_eq!(next(&mut copier, 6, 6).unwrap().1.offset, 0);
    }

    #[test]
    fn a_window_hit_while_it_is_read_starts_over_and_at_last_holds_writes_back() {
        let mut copier = copier();
        for round in 0..PATIENCE {
            assert!(!copier.holds(0, 0, 512), "round {round}");
            let (number, _) = next(&mut copier, 1, 1).unwrap();
            assert!(copier.next_question(Seq(1)).is_some(), "it is asked for anew");
            copier.handle_sequenced(0, 4096, 8192, Seq(1));
            assert!(copier.handle_read(number) && !copier.still_true(number, Seq(1)));
        }
        assert!(copier.holds(0, 0, 512) && !copier.holds(0, COPY_WINDOW_BYTES, COPY_WINDOW_BYTES + 512));
        let (number, _) = next(&mut copier, 1, 1).unwrap();
        assert!(copier.handle_read(number) && copier.still_true(number, Seq(1)));
        assert_eq!(
            copier.handle_done(number, &[(0, COPY_WINDOW_BYTES)], Some(Seq(9))),
            Some((0, 0, COPY_WINDOW_BYTES))
        );
        assert!(!copier.holds(0, 0, 512));
        let (number, _) = next(&mut copier, 1, 1).unwrap();
        assert!(copier.handle_read(number) && copier.still_true(number, Seq(9)));
        copier.handle_done(number, &[(COPY_WINDOW_BYTES, 4096)], Some(Seq(10)));
        assert!(!copier.done(Seq(9)) && copier.done(Seq(10)));
        copier.handle_stored(Seq(9));
        assert_eq!((copier.under_way(), copier.tally().sent_bytes), (1, SIZES[0]));
    }

    #[test]
    fn a_window_that_is_equal_is_done_without_a_record() {
        let mut copier = copier();
        let (number, _) = next(&mut copier, 1, 1).unwrap();
        assert!(copier.handle_read(number) && copier.still_true(number, Seq(1)));
        copier.handle_done(number, &[], None);
        assert_eq!((copier.under_way(), copier.tally().done_bytes), (0, COPY_WINDOW_BYTES));
    }

    #[test]
    fn a_read_of_an_earlier_copy_is_not_wanted() {
        let mut copier = copier();
        assert!(!copier.handle_read(0) && !copier.handle_read(99));
    }

    #[test]
    fn what_is_never_equal_is_seldom_asked_for() {
        let sizes = [COPY_WINDOW_BYTES * 1000];
        let run = |purpose| {
            let mut copier = Copier::new(1, purpose, Grains::all(&sizes, GRAIN_BYTES), 1);
            let mut asked = 0;
            while let Some((number, window)) = next(&mut copier, 1, 1) {
                asked += usize::from(window.asked);
                assert!(copier.handle_read(number) && copier.still_true(number, Seq(1)));
                copier.handle_done(number, &[(window.offset, window.length)], Some(Seq(1)));
                copier.handle_stored(Seq(1));
            }
            assert!(copier.done(Seq(1)));
            asked
        };
        assert!(run(Purpose::Resync) < 50);
        assert_eq!(run(Purpose::Verify { repair: false }), 1000);
    }
}
