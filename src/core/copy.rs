//! The first sync: the volumes' contents as records in the ordered stream, window by window, while clients write.
//!
//! A window's record must never carry bytes older than a client's record before it. So a window is read only when
//! every record that was sequenced before is committed (and thus seen by the read), and it is read again if a
//! record that overlaps it is sequenced between the read and its own. A window that is hit again and again holds
//! such records back for the moment of one read.

use crate::canary::{Bug, sings};
use crate::format::ids::Seq;
use crate::limits::{COPY_WINDOW_BYTES, MAX_COPY_WINDOWS};

/// How often a window may be spoiled before it holds writes back.
const PATIENCE: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Until every record up to this one is committed.
    Waiting(Seq),
    /// Being read.
    Reading { spoiled: bool },
    /// Read, waiting for room in the journal.
    Ready { spoiled: bool },
    /// Sequenced; until this record is committed.
    Sent(Seq),
}

/// A part of a volume that is being copied.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The volume.
    pub volume: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes, at most [`COPY_WINDOW_BYTES`].
    pub length: u64,
    phase: Phase,
    spoils: u32,
}

/// Where the first sync stands.
#[derive(Debug)]
pub struct Copier {
    /// Tells this copy's windows from those of one before it, whose reads may still be under way.
    generation: usize,
    sizes: Vec<u64>,
    next: Vec<u64>,
    windows: [Option<Window>; MAX_COPY_WINDOWS],
}

impl Copier {
    /// A copy of volumes of these sizes that continues at these offsets.
    pub fn new(generation: usize, sizes: Vec<u64>, copied: Vec<u64>) -> Copier {
        Copier { generation, sizes, next: copied, windows: [None; MAX_COPY_WINDOWS] }
    }

    /// Whether everything is sequenced and committed.
    pub fn done(&self, committed: Seq) -> bool {
        let committed = |window: &Window| matches!(window.phase, Phase::Sent(seq) if seq <= committed);
        self.next.iter().zip(&self.sizes).all(|(next, size)| next >= size)
            && self.windows.iter().flatten().all(committed)
    }

    /// This copy's window of that number.
    fn window(&mut self, number: usize) -> Option<&mut Window> {
        let slot = number.checked_sub(self.generation * MAX_COPY_WINDOWS)?;
        self.windows.get_mut(slot)?.as_mut()
    }

    /// Up to where a volume's contents are sequenced, in bytes.
    pub fn copied(&self) -> impl Iterator<Item = u64> {
        self.next.iter().enumerate().map(|(volume, next)| {
            let pending = self.windows.iter().flatten().filter(|w| usize::from(w.volume) == volume);
            pending.filter(|w| !matches!(w.phase, Phase::Sent(_))).map(|w| w.offset).min().unwrap_or(*next)
        })
    }

    /// The next window to read and its number, if one may be read now.
    pub fn next(&mut self, last: Seq, committed: Seq) -> Option<(usize, Window)> {
        for slot in 0..self.windows.len() {
            match &mut self.windows[slot] {
                Some(Window { phase: Phase::Sent(seq), .. }) if *seq <= committed => self.windows[slot] = None,
                _ => {}
            }
            if self.windows[slot].is_none() {
                self.windows[slot] = self.open_window(last);
            }
            if let Some(window) = &mut self.windows[slot]
                && matches!(window.phase, Phase::Waiting(seq) if seq <= committed)
            {
                window.phase = Phase::Reading { spoiled: false };
                return Some((self.generation * MAX_COPY_WINDOWS + slot, *window));
            }
        }
        None
    }

    fn open_window(&mut self, last: Seq) -> Option<Window> {
        let volume = (0..self.sizes.len()).find(|v| self.next[*v] < self.sizes[*v])?;
        let offset = self.next[volume];
        let length = COPY_WINDOW_BYTES.min(self.sizes[volume] - offset);
        self.next[volume] += length;
        Some(Window { volume: volume as u16, offset, length, phase: Phase::Waiting(last), spoils: 0 })
    }

    /// A record that changes this range gets its sequence number now.
    pub fn handle_sequenced(&mut self, volume: u16, start: u64, end: u64, seq: Seq) {
        for window in self.windows.iter_mut().flatten() {
            let hit = window.volume == volume && start < window.offset + window.length && window.offset < end;
            if hit && !sings(Bug::CopyStale) {
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
            window.spoils >= PATIENCE
                && !matches!(window.phase, Phase::Sent(_))
                && window.volume == volume
                && start < window.offset + window.length
                && window.offset < end
        })
    }

    /// A window's bytes are in memory. False: it belongs to another copy, and nobody wants them.
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

    /// The window's last record has this sequence number.
    pub fn handle_sent(&mut self, number: usize, seq: Seq) {
        if let Some(window) = self.window(number) {
            window.phase = Phase::Sent(seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copier() -> Copier {
        Copier::new(3, vec![COPY_WINDOW_BYTES + 4096], vec![0])
    }

    #[test]
    fn a_window_waits_for_what_was_sequenced_before_it() {
        let mut copier = copier();
        assert!(copier.next(Seq(5), Seq(4)).is_none());
        copier.handle_sequenced(0, 0, 512, Seq(6));
        let (number, window) = copier.next(Seq(6), Seq(5)).unwrap();
        assert_eq!((window.offset, window.length), (COPY_WINDOW_BYTES, 4096), "the first window is hit by record 6");
        assert!(copier.handle_read(number) && copier.still_true(number, Seq(6)));
        assert_eq!(copier.next(Seq(6), Seq(6)).unwrap().1.offset, 0);
    }

    #[test]
    fn a_window_hit_while_it_is_read_starts_over_and_at_last_holds_writes_back() {
        let mut copier = copier();
        for round in 0..PATIENCE {
            assert!(!copier.holds(0, 0, 512), "round {round}");
            let (number, _) = copier.next(Seq(1), Seq(1)).unwrap();
            copier.handle_sequenced(0, 4096, 8192, Seq(1));
            assert!(copier.handle_read(number) && !copier.still_true(number, Seq(1)));
        }
        assert!(copier.holds(0, 0, 512) && !copier.holds(0, COPY_WINDOW_BYTES, COPY_WINDOW_BYTES + 512));
        let (number, _) = copier.next(Seq(1), Seq(1)).unwrap();
        assert!(copier.handle_read(number) && copier.still_true(number, Seq(1)));
        copier.handle_sent(number, Seq(9));
        assert!(!copier.holds(0, 0, 512));
        assert_eq!(copier.copied().collect::<Vec<_>>(), [COPY_WINDOW_BYTES]);
        let (number, _) = copier.next(Seq(1), Seq(1)).unwrap();
        assert!(copier.handle_read(number) && copier.still_true(number, Seq(9)));
        copier.handle_sent(number, Seq(10));
        assert!(!copier.done(Seq(9)) && copier.done(Seq(10)));
    }

    #[test]
    fn a_read_of_an_earlier_copy_is_not_wanted() {
        let mut copier = copier();
        assert!(!copier.handle_read(0) && !copier.handle_read(99));
    }
}
