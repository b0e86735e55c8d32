//! What clients did and were told, and what each frame of each branch of the order holds: the simple truth that
//! everything is compared with.
//!
//! A digest names a history: frames are kept by the digest after them, with the frame before. So whatever a side holds,
//! what must be in it is known exactly, also where a crash made the source go on from an earlier frame.

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
}

#[derive(Debug)]
struct Frame {
    digest: Digest,
    before: Option<u32>,
    parts: Range<u32>,
    /// Frames up to and with this one.
    height: usize,
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

    /// A record is answered. `always`: the answer promises stable storage.
    pub fn answer(&mut self, ticket: Ticket, always: bool) {
        let part = &mut self.parts[ticket.0 as usize];
        assert!(!part.answered, "request {} is answered twice", ticket.0);
        part.answered = true;
        apply(&mut self.now, part);
        self.history.push(ticket.0);
        // Answers come in the order of the frames.
        let holds = |height: &usize| self.frames[self.chain[*height] as usize].parts.contains(&ticket.0);
        let from = self.answered.saturating_sub(1);
        let height = (from..self.chain.len()).find(holds).expect("an answer to what is in no frame of this run") + 1;
        self.answered = height;
        if always || part.forced {
            self.durable = height;
        }
        assert!(
            self.fence.is_none_or(|fence| height <= fence),
            "request {} is answered by a fenced source, and the promoted image doesn't hold it",
            ticket.0
        );
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

    /// Demands that everything promised is held at a boundary. `power`: what isn't stable may have been lost.
    pub fn check(&self, end: Digest, power: bool, whose: &str) {
        let (height, _) = self.fork(end);
        let promised = if power { self.durable } else { self.answered };
        assert!(height >= promised, "{whose} holds {height} frames, but what is in frame {promised} was answered");
    }

    /// The source has started again and holds this: reads see all of it, and answers that promised less are void.
    pub fn restart(&mut self, end: Digest) {
        let (height, beyond) = self.fork(end);
        assert!(beyond.is_empty(), "the source holds frames that it never had");
        self.now = self.state(end);
        self.chain.truncate(height);
        self.answered = self.answered.min(height);
        self.durable = self.durable.min(height);
    }

    /// From now on nothing may be answered that this boundary doesn't hold; with one exception. `lost`: a power cut took
    /// what the destination had acknowledged without a promise that it survives one; that may be answered still.
    pub fn fence(&mut self, end: Digest, lost: bool) {
        let acknowledged = if lost { self.chain.len() } else { 0 };
        self.fence = Some(self.fork(end).0.max(acknowledged));
    }

    /// The moment at which a read begins.
    pub fn moment(&self) -> usize {
        self.history.len()
    }

    /// Whether a sector may be seen as this by a read that began at a moment, when it was `then`.
    pub fn allows(&self, word: Word, then: Word, moment: usize, volume: usize, sector: usize) -> bool {
        let later = self.history[moment..].iter().map(|part| &self.parts[*part as usize]);
        let mut covering = later.filter(|part| part.volume == volume && part.sectors.contains(&sector));
        let at = |part: &Part| if part.word == 0 { 0 } else { part.word + (sector - part.sectors.start) as u64 };
        word == then || covering.any(|part| at(part) == word)
    }

    /// The end of the source's branch.
    pub fn end(&self) -> Digest {
        self.chain.last().map_or(self.origin, |number| self.frames[*number as usize].digest)
    }
}
