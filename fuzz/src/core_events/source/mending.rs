//! How each play ends: a destination that holds nothing connects and does what it should, and everything that waits must
//! be answered.

use super::peer::Sent;
use super::window::Sums;
use super::{Driver, MAX_AGE, MAX_ROUNDS};
use nbd_mirror::core::half::State;
use nbd_mirror::core::policy::Mode;
use nbd_mirror::format::ids::Mark;
use nbd_mirror::format::wire::{Report, Signal, Verdict, Welcome};
use std::time::Duration;

/// So long may a destination be silent in the end.
const TIMEOUT: Duration = Duration::from_secs(600);

impl Driver {
    /// Everything that is under way happens; nothing comes from outside.
    pub fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            self.turn();
            self.send(usize::MAX);
            self.flush(usize::MAX);
            self.copy(usize::MAX);
            if self.ops.is_empty() && self.effects.is_empty() {
                return;
            }
            (0..self.ops.len()).for_each(|_| self.complete(0));
        }
        panic!("operations never end: {:?}", self.ops);
    }

    /// Heals what happened.
    pub fn heal(&mut self) {
        self.disconnect();
        self.settle();
        if self.fenced {
            assert!(self.copies.iter().all(|copy| copy.fenced_by.0 != 0), "a start wouldn't know that it is fenced");
            return;
        }
        self.core.handle_timeout(TIMEOUT);
        self.connect(Welcome { fresh: true, ..Welcome::refuse(Verdict::Welcome, super::EPOCH, "") });
        let token = self.syncs.len() as u64;
        self.syncs.push(token);
        self.core.handle_sync(token);
        self.rounds(|driver| {
            let half_clean = driver.core.halves().iter().all(|half| half.state == State::Clean);
            let together = driver.core.mode() == Mode::Together && driver.core.copier().is_none();
            half_clean && driver.core.waiting() == 0 && (together || !driver.mirrored)
        });
        assert_eq!(self.peer, self.mirrored, "the connection didn't hold");
        assert!(self.tickets.is_empty(), "{} requests are never answered", self.tickets.len());
        assert!(self.syncs.iter().all(|token| *token == u64::MAX), "a sync is never done");
        assert_eq!(self.memory.pieces(), 0, "memory is never given back");
        let superblock = self.core.superblock();
        assert!(superblock.clean == *self.marks.last().unwrap_or(&Mark::default()));
        if self.mirrored {
            assert!(superblock.whole && !superblock.alone && superblock.lacking_since_unix_s == 0);
            assert!(self.core.dirty_bytes() == 0 && superblock.known.is_empty());
            self.verify(true);
            self.rounds(|driver| driver.verifying == 0);
            let tally = self.verified.as_ref().expect("nothing went wrong");
            assert_eq!((tally.done_bytes, tally.differing_bytes), (tally.total_bytes, 0));
        }
    }

    /// Rounds with a destination without faults, until nothing is under way any more and that holds.
    fn rounds(&mut self, done: impl Fn(&Driver) -> bool) {
        for _ in 0..MAX_ROUNDS {
            self.now += MAX_AGE;
            self.turn();
            self.check();
            while let Some(sent) = self.next_sent() {
                match sent {
                    Sent::Frame(mark) => self.report(Report::Stored(mark.seq)),
                    Sent::Signal(Signal::Sync { last, .. }) => self.report(Report::Applied(last)),
                    Sent::Signal(Signal::Ping(_)) => self.report(Report::Pong { stamp: 0 }),
                    // What it was sent it has: nothing differs any more.
                    Sent::Signal(Signal::Ask { .. }) => {
                        let equal = if self.verifying > 0 { 0xff } else { 0xf0 };
                        self.answer(0, Sums { equal, unknown: false });
                    }
                    Sent::Signal(Signal::Restart { .. }) => {}
                    Sent::Signal(signal) => panic!("{signal:?} to a destination that holds nothing"),
                }
            }
            self.flush(usize::MAX);
            self.copy(usize::MAX);
            (0..self.ops.len()).for_each(|_| self.complete(0));
            if self.ops.is_empty() && self.effects.is_empty() && done(self) {
                return;
            }
        }
        panic!("it never ends: {:?}", self.core.mode());
    }
}
