//! One half of the source's journal: the frames of one fill, and how far the fill has come.

use super::Place;
use super::flush::Flusher;
use super::index::Index;
use crate::format::frame::Record;
use crate::format::ids::{Fill, Mark, Seq};
use std::ops::Range;
use std::time::Duration;

/// Names the client request that a record belongs to; the engine gives it and gets it back with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(pub u32);

impl Ticket {
    /// Nobody waits for an answer.
    pub const NONE: Ticket = Ticket(u32::MAX);
}

/// A record with what belongs to it in memory.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its description.
    pub record: Record,
    /// Its payload's place; meaningless where it has none.
    pub place: Place,
    /// Who waits for it.
    pub ticket: Ticket,
}

/// A sealed frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Where it starts within its half, in bytes.
    pub position: u64,
    /// Its header block in memory.
    pub header: Place,
    /// Its records within [`Half::entries`].
    pub entries: Range<usize>,
    /// First record.
    pub first: Seq,
    /// The boundary after it.
    pub mark: Mark,
    /// Bytes with header and padding.
    pub bytes: u64,
    /// Whether it must be on stable storage before it is acknowledged although the durability is `flush`.
    pub sync: bool,
}

/// How far a fill has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing in here matters: the next fill may go over it.
    Clean,
    /// Being filled.
    Open,
    /// Complete, but not yet stored on both sides.
    Sealed,
    /// Being written to the volumes.
    Flushing,
    /// On the volumes, and waiting for the destination's apply or for the superblock.
    Flushed,
}

impl State {
    /// The word in status.
    pub fn word(self) -> &'static str {
        match self {
            State::Clean => "clean",
            State::Open => "open",
            State::Sealed => "sealed",
            State::Flushing => "flushing",
            State::Flushed => "flushed",
        }
    }
}

/// One half.
#[derive(Debug)]
pub struct Half {
    /// The fill it holds, or held last.
    pub fill: Fill,
    /// How far it has come.
    pub state: State,
    /// Its frames, in order.
    pub frames: Vec<Frame>,
    /// All their records, in order.
    pub entries: Vec<Entry>,
    /// Its committed records.
    pub index: Index,
    /// Bytes used.
    pub end: u64,
    /// When its first record came.
    pub opened_at: Option<Duration>,
    /// The boundary after its last frame.
    pub last: Mark,
    /// Progress of its flush.
    pub flusher: Flusher,
    /// Whether the destination has confirmed the apply.
    pub applied: bool,
    /// Whether the superblock that calls it clean is being written.
    pub retiring: bool,
    /// Ranges that the destination has as they are here once this fill is applied, as volume, start and end in bytes.
    pub copied: Vec<(u16, u64, u64)>,
    /// Whether the image is a whole copy once it is applied.
    pub whole: bool,
}

impl Half {
    /// A half with nothing in it.
    pub fn clean(fill: Fill, volumes: usize) -> Half {
        Half {
            fill,
            state: State::Clean,
            frames: Vec::new(),
            entries: Vec::new(),
            index: Index::new(volumes),
            end: 0,
            opened_at: None,
            last: Mark::default(),
            flusher: Flusher::default(),
            applied: false,
            retiring: false,
            copied: Vec::new(),
            whole: false,
        }
    }

    /// Starts another fill after the boundary `after`.
    pub fn open(&mut self, fill: Fill, after: Mark) {
        self.fill = fill;
        self.state = State::Open;
        self.last = Mark { fill, ..after };
    }

    /// Forgets the fill; frames and entries keep their memory for the next.
    pub fn retire(&mut self, volumes: usize) {
        let frames = std::mem::take(&mut self.frames);
        let entries = std::mem::take(&mut self.entries);
        *self = Half { frames, entries, ..Half::clean(self.fill, volumes) };
        self.frames.clear();
        self.entries.clear();
    }
}
