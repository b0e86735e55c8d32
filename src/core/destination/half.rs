//! One half at a destination: a fill in its journal file, and how far it has come.

use super::super::flush::Flusher;
use super::super::index::Index;
use crate::format::ids::{Fill, Mark};

/// How far a fill has come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Applied or staged, or never used: the next fill may go over it.
    Clean,
    /// Frames arrive.
    Open,
    /// Complete: the sync signal came, or its source asked to settle.
    Sealed,
}

/// One half: a fill in its journal file.
#[derive(Debug)]
pub struct Half {
    /// The fill it holds, or held last.
    pub fill: Fill,
    /// How far it has come.
    pub state: State,
    /// Bytes of frames received and verified.
    pub received: u64,
    /// Bytes handed to the journal file, or to the shared log.
    pub handed: u64,
    /// Bytes in the journal file, or in the shared log.
    pub stored: u64,
    /// Its stored records.
    pub index: Index,
    /// Records stored.
    pub records: u64,
    /// Boundary after its last stored frame.
    pub last: Mark,
    /// Whether what is held is a whole copy as of its last frame.
    pub(super) whole: bool,
    /// Whether it was written without being made stable since.
    pub(super) volatile: bool,
    /// Slots of the shared log that hold frames of it.
    pub(super) logged: u32,
    pub(super) flusher: Flusher,
    /// Whether the superblock that calls it applied, or staged, is being written.
    pub(super) retiring: bool,
}

impl Half {
    pub(super) fn clean(volumes: usize) -> Half {
        Half {
            fill: Fill(0),
            state: State::Clean,
            received: 0,
            handed: 0,
            stored: 0,
            index: Index::new(volumes),
            records: 0,
            last: Mark::default(),
            whole: false,
            volatile: false,
            logged: 0,
            flusher: Flusher::default(),
            retiring: false,
        }
    }

    /// Whether it is complete, and all of it stable in its journal file.
    pub(super) fn ready(&self) -> bool {
        self.state == State::Sealed && self.stored == self.received && self.settled()
    }

    /// Whether all that is stored of it is stable in its journal file.
    pub(super) fn settled(&self) -> bool {
        !self.volatile && self.logged == 0
    }

    /// The word in status.
    pub fn word(&self) -> &'static str {
        match self.state {
            State::Clean => "clean",
            State::Open => "open",
            State::Sealed if self.flusher.written_bytes() > 0 => "flushing",
            State::Sealed => "sealed",
        }
    }
}
