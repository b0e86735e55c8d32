//! What can go wrong with an operation on a file.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    /// A write, of bytes or of zeros (fallocate).
    Write,
    /// A sync; a forced write (RWF_DSYNC) is a write and a sync.
    Sync,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// It fails, and has no effect.
    Error(Errno),
    /// Only its first block is moved. Needs [`super::FaultyDisk::mount_direct`]. Only for plain system calls: what
    /// io_uring moves from or to a regular file in part, the kernel itself carries on; and over FUSE's direct path it
    /// does so at the place where the operation began.
    Short,
    /// It takes this long.
    Slow(Duration),
    /// The power goes in the middle of it: it, and all that comes later, is answered only after the daemon was killed.
    PowerFails,
}

/// A rule for operations on one file; the first rule that matches decides.
#[derive(Clone, Debug)]
pub struct Fault {
    on: Operation,
    file: String,
    range: Range<u64>,
    skip: u64,
    left: u64,
    effect: Effect,
    hits: Arc<AtomicU64>,
}

impl Fault {
    /// For every operation of this kind on files whose path ends so.
    pub fn new(on: Operation, file: &str, effect: Effect) -> Fault {
        let (range, hits) = (0..u64::MAX, Arc::default());
        Fault { on, file: file.to_owned(), range, skip: 0, left: u64::MAX, effect, hits }
    }

    /// Only for operations that touch these bytes. Syncs touch all.
    pub fn within(self, range: Range<u64>) -> Fault {
        Fault { range, ..self }
    }

    /// Only after this many more that would match.
    pub fn after(self, skip: u64) -> Fault {
        Fault { skip, ..self }
    }

    /// Only once.
    pub fn once(self) -> Fault {
        Fault { left: 1, ..self }
    }

    /// How the paths of its files end.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The error it makes. Panics where it makes none.
    pub fn error(&self) -> Errno {
        match self.effect {
            Effect::Error(error) => error,
            other => panic!("{other:?} is no error"),
        }
    }

    /// How many operations it met so far.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::SeqCst)
    }

    /// What it does to this operation, if it is one of its.
    pub fn meet(&mut self, on: Operation, file: &str, touched: Range<u64>) -> Option<Effect> {
        let touches = touched.start < self.range.end && self.range.start < touched.end;
        if self.on != on || !file.ends_with(&self.file) || !(on == Operation::Sync || touches) || self.left == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.left -= 1;
        self.hits.fetch_add(1, Ordering::SeqCst);
        Some(self.effect)
    }
}
