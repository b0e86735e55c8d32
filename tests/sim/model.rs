//! What clients did and were told, and what each frame of each branch of the order holds: the simple truth that
//! everything is compared with.
//!
//! A digest names a history: frames are kept by the digest after them, with the frame before. So whatever a side holds,
//! what must be in it is known exactly, also where a crash made the source go on from an earlier frame, and where the
//! order began anew at a destination behind a frame that it doesn't hold.
//!
//! Who answered decides who promised. Every answer is the source's promise: after a crash it must hold the record, as far
//! as its durability says so. Only what was answered while it waited for its destination is the destination's promise,
//! too; what a source answers alone is none, until something behind it is answered by both.

use crate::content::{ByDigest, SECTOR, Word};
use nbd_mirror::core::half::Ticket;
use nbd_mirror::format::frame::{Kind, RECORD_FUA, Record};
use nbd_mirror::format::ids::Digest;
use std::ops::Range;

/// The contents of all volumes, a word a sector.
pub type Volumes = Vec<Vec<Word>>;

/// A part of a client's request: one record.
#[derive(Debug, Clone)]
struct Part {
    volume: usize,
    sectors: Range<usize>,
    /// The first sector's word; the others count up. 0: zeros.
    word: Word,
    /// Whether its answer promises stable storage for all before it.
    forced: bool,
    answered: bool,
    /// It got an error: it may or may not come to be.
    failed: bool,
}

#[derive(Debug)]
struct Frame {
    digest: Digest,
    before: Option<u32>,
    parts: Range<u32>,
    /// Frames up to and with this one.
    height: usize,
}

/// Frames that a destination promised.
#[derive(Debug, Clone, Copy, Default)]
struct Promised {
    answered: usize,
    durable: usize,
}

#[derive(Debug)]
pub struct Model {
    /// The volumes before the first request.
    base: Volumes,
    /// The volumes as reads must see them.
    pub now: Volumes,
    parts: Vec<Part>,
    frames: Vec<Frame>,
    by_digest: ByDigest<u32>,
    /// The frames of the source's own branch.
    chain: Vec<u32>,
    /// Where the first frame follows.
    origin: Digest,
    /// Frames up to which everything was answered, and up to which the answers promised stable storage.
    answered: usize,
    durable: usize,
    /// The same of what was answered by both sides.
    together: Promised,
    /// What a destination must hold that serves its old images, for a resync isn't complete.
    floor: usize,
    /// Failed parts that may or may not be seen yet, in order.
    loose: Vec<u32>,
    /// A state that was computed before: its height and its volumes.
    known: (usize, Volumes),
    /// Every answered part in the order of the answers, for reads that take a while.
    history: Vec<u32>,
    /// Another side was promoted: nothing beyond these frames may be answered.
    fence: Option<usize>,
}

fn apply(volumes: &mut Volumes, part: &Part) {
    let sectors = &mut volumes[part.volume][part.sectors.clone()];
    match part.word {
        0 => sectors.fill(0),
        word => sectors.iter_mut().zip(word..).for_each(|(sector, word)| *sector = word),
    }
}

impl Model {
    pub fn new(base: Volumes, origin: Digest) -> Model {
        Model {
            now: base.clone(),
            known: (0, base.clone()),
            base,
            parts: Vec::new(),
            frames: Vec::new(),
            by_digest: ByDigest::default(),
            chain: Vec::new(),
            origin,
            answered: 0,
            durable: 0,
            together: Promised::default(),
            floor: 0,
            loose: Vec::new(),
            history: Vec::new(),
            fence: None,
        }
    }

    /// A record is handed in; it gets its ticket.
    pub fn ask(&mut self, record: &Record, word: Word) -> Ticket {
        let start = record.offset as usize / SECTOR;
        self.parts.push(Part {
            volume: usize::from(record.volume),
            sectors: start..start + record.length as usize / SECTOR,
            word,
            forced: record.kind == Kind::Flush || record.flags & RECORD_FUA != 0,
            answered: false,
            failed: false,
        });
        Ticket(self.parts.len() as u32 - 1)
    }

    /// The source makes a frame behind its last one.
    pub fn frame(&mut self, digest: Digest, tickets: impl Iterator<Item = Ticket>) {
        let mut parts = 0..0;
        for Ticket(ticket) in tickets.filter(|ticket| *ticket != Ticket::NONE) {
            parts = if parts.is_empty() { ticket..ticket + 1 } else { parts.start..ticket + 1 };
        }
        let number = self.frames.len() as u32;
        assert!(self.by_digest.insert(digest.0, number).is_none(), "two frames with one digest");
        self.frames.push(Frame { digest, before: self.chain.last().copied(), parts, height: self.chain.len() + 1 });
        self.chain.push(number);
    }

    /// A record is answered. `always`: the answer promises stable storage. `alone`: the destination promises nothing.
    pub fn answer(&mut self, ticket: Ticket, always: bool, alone: bool) {
        let part = &mut self.parts[ticket.0 as usize];
        assert!(!part.answered && !part.failed, "request {} is answered twice", ticket.0);
        part.answered = true;
        let forced = part.forced;
        // Answers come in the order of the frames.
        let holds = |height: &usize| self.frames[self.chain[*height] as usize].parts.contains(&ticket.0);
        let from = self.answered.saturating_sub(1);
        let height = (from..self.chain.len()).find(holds).expect("an answer to what is in no frame of this run") + 1;
        // So what failed before it has come to be.
        self.see_failed(ticket.0);
        apply(&mut self.now, &self.parts[ticket.0 as usize]);
        self.history.push(ticket.0);
        self.answered = height;
        let durable = always || forced;
        if durable {
            self.durable = height;
        }
        if !alone {
            self.together.answered = height;
            if durable {
                self.together.durable = height;
            }
            assert!(
                self.fence.is_none_or(|fence| height <= fence),
                "request {} is answered by a fenced source, and the promoted image doesn't hold it",
                ticket.0
            );
        }
    }

    /// A record gets an error. It may come to be all the same, if it is in a frame.
    pub fn fail(&mut self, ticket: Ticket) {
        let part = &mut self.parts[ticket.0 as usize];
        assert!(!part.answered && !part.failed, "request {} is answered twice", ticket.0);
        part.failed = true;
        let from = self.answered.saturating_sub(1);
        if self.chain[from..].iter().any(|number| self.frames[*number as usize].parts.contains(&ticket.0)) {
            self.loose.push(ticket.0);
        }
    }

    /// What failed is seen by reads at last, up to that part: all before something that was answered.
    fn see_failed(&mut self, until: u32) {
        while let Some(ticket) = self.loose.first().copied().filter(|ticket| *ticket < until) {
            self.loose.remove(0);
            apply(&mut self.now, &self.parts[ticket as usize]);
            self.history.push(ticket);
        }
    }

    /// All that is in a frame is stored on both sides.
    pub fn all_seen(&mut self) {
        self.see_failed(u32::MAX);
    }

    /// How many frames of the source's branch a boundary has behind it, and the frames beyond that it has of its own.
    fn fork(&self, end: Digest) -> (usize, Vec<u32>) {
        let mut beyond = Vec::new();
        if end == self.origin {
            return (0, beyond);
        }
        let mut number = *self.by_digest.get(&end.0).expect("a boundary that no source ever made");
        loop {
            let frame = &self.frames[number as usize];
            if self.chain.get(frame.height - 1) == Some(&number) {
                beyond.reverse();
                return (frame.height, beyond);
            }
            beyond.push(number);
            match frame.before {
                Some(before) => number = before,
                None => {
                    beyond.reverse();
                    return (0, beyond);
                }
            }
        }
    }

    /// What the volumes hold at a boundary.
    pub fn state(&mut self, end: Digest) -> Volumes {
        let (height, beyond) = self.fork(end);
        if self.known.0 > height {
            self.known = (0, self.base.clone());
        }
        let parts = |number: &u32| self.frames[*number as usize].parts.clone();
        let (known, volumes) = &mut self.known;
        for part in self.chain[*known..height].iter().flat_map(parts) {
            apply(volumes, &self.parts[part as usize]);
        }
        *known = height;
        let mut volumes = volumes.clone();
        for part in beyond.iter().flat_map(parts) {
            apply(&mut volumes, &self.parts[part as usize]);
        }
        volumes
    }

    /// Whether a boundary has everything behind it that was answered.
    pub fn complete(&self, end: Digest) -> bool {
        self.fork(end).0 >= self.answered
    }

    /// Whether a boundary has everything behind it that a destination promised.
    pub fn complete_there(&self, end: Digest) -> bool {
        self.fork(end).0 >= self.together.answered
    }

    /// Demands that the source holds everything promised. `power`: what isn't stable may have been lost.
    pub fn check(&self, end: Digest, power: bool) {
        let (height, _) = self.fork(end);
        let promised = if power { self.durable } else { self.answered };
        assert!(height >= promised, "the source holds {height} frames, but what is in frame {promised} was answered");
    }

    /// Demands the same of a destination that would serve what it holds up to a boundary.
    pub fn check_there(&self, end: Digest, power: bool) {
        let (height, _) = self.fork(end);
        let promised = if power { self.together.durable } else { self.together.answered };
        assert!(
            height >= promised,
            "the promoted destination holds {height} frames, but what is in frame {promised} was answered by both"
        );
    }

    /// Demands the same of one that would serve its images as they were before a resync.
    pub fn check_base(&self, end: Digest) {
        let (height, floor) = (self.fork(end).0, self.floor);
        assert!(
            height >= floor,
            "the image of before the resync holds {height} frames, but what is in frame {floor} was answered by both before it"
        );
    }

    /// The destination's images take what comes: should a resync begin now, they must hold this. `lost`: a power cut may
    /// have taken what was promised without stable storage.
    pub fn lay_floor(&mut self, lost: bool) {
        self.floor = if lost { self.together.durable } else { self.together.answered };
    }

    /// The source has started again and holds this: reads see all of it, and answers that promised less are void.
    pub fn restart(&mut self, end: Digest) {
        let (height, beyond) = self.fork(end);
        assert!(beyond.is_empty(), "the source holds frames that it never had");
        self.now = self.state(end);
        self.loose.clear();
        self.chain.truncate(height);
        self.answered = self.answered.min(height);
        self.durable = self.durable.min(height);
        self.together.answered = self.together.answered.min(height);
        self.together.durable = self.together.durable.min(height);
        self.floor = self.floor.min(height);
    }

    /// From now on nothing may be answered by both that this boundary doesn't hold; with one exception. `lost`: the
    /// destination may have acknowledged more, and the word may still be on its way. So where a power cut took what it had
    /// acknowledged without a promise that it survives one, and where it serves its images as they were before a resync.
    pub fn fence(&mut self, end: Digest, lost: bool) {
        let acknowledged = if lost { self.chain.len() } else { 0 };
        self.fence = Some(self.fork(end).0.max(acknowledged));
    }

    /// Whether another side was promoted.
    pub fn fenced(&self) -> bool {
        self.fence.is_some()
    }

    /// The moment at which a read begins.
    pub fn moment(&self) -> usize {
        self.history.len()
    }

    /// Whether a sector may be seen as this by a read that began at a moment, when it was `then`.
    pub fn allows(&self, word: Word, then: Word, moment: usize, volume: usize, sector: usize) -> bool {
        let later = self.history[moment..].iter().chain(&self.loose).map(|part| &self.parts[*part as usize]);
        let mut covering = later.filter(|part| part.volume == volume && part.sectors.contains(&sector));
        let at = |part: &Part| if part.word == 0 { 0 } else { part.word + (sector - part.sectors.start) as u64 };
        word == then || covering.any(|part| at(part) == word)
    }

    /// The end of the source's branch.
    pub fn end(&self) -> Digest {
        self.chain.last().map_or(self.origin, |number| self.frames[*number as usize].digest)
    }
}
