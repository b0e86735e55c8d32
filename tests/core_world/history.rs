//! What the client did, what it was told, and what each frame of each branch of the order holds.
//!
//! A digest names a history: frames are kept by the digest after them, with the digest before. So whatever a side
//! holds, what must be in it is known exactly, also where a crash made the source go on from an earlier frame.

use nbd_mirror::core::half::Ticket;
use nbd_mirror::format::frame::{Kind, RECORD_FUA, Record};
use nbd_mirror::format::ids::Digest;
use std::collections::{BTreeSet, HashMap};

/// A client's request.
#[derive(Debug, Clone, Copy)]
struct Request {
    record: Record,
    answered: bool,
}

#[derive(Debug)]
pub struct History {
    requests: Vec<Request>,
    frames: HashMap<u64, (Digest, Vec<u32>)>,
    /// The volumes before the first request.
    base: Vec<Vec<u8>>,
    /// The volumes as reads must see them.
    pub model: Vec<Vec<u8>>,
    /// Answers promise stable storage by themselves.
    always: bool,
    /// With `flush`: every answered request up to this one must survive.
    flushed: Option<u32>,
}

/// The payload of a request: each eight bytes say whose they are.
pub fn payload(request: u32, offset: u64, length: usize) -> Vec<u8> {
    let word = |n: usize| ((u64::from(request) + 1) << 32 | ((offset + 8 * n as u64) & 0xffff_ffff)).to_le_bytes();
    (0..length / 8).flat_map(word).collect()
}

fn apply(volumes: &mut [Vec<u8>], request: u32, record: &Record) {
    let range = record.offset as usize..record.end() as usize;
    let volume = &mut volumes[usize::from(record.volume)];
    match record.kind {
        Kind::Write => {
            volume[range.clone()].copy_from_slice(&payload(request, record.offset, range.len()));
        }
        Kind::Trim | Kind::WriteZeroes => volume[range].fill(0),
        Kind::Flush => {}
    }
}

impl History {
    pub fn new(base: Vec<Vec<u8>>, always: bool) -> History {
        History { requests: Vec::new(), frames: HashMap::new(), model: base.clone(), base, always, flushed: None }
    }

    pub fn next_request(&self) -> u32 {
        self.requests.len() as u32
    }

    pub fn add_request(&mut self, record: Record) -> Ticket {
        self.requests.push(Request { record, answered: false });
        Ticket(self.requests.len() as u32 - 1)
    }

    pub fn add_frame(&mut self, before: Digest, after: Digest, tickets: impl Iterator<Item = Ticket>) {
        let requests = tickets.filter(|ticket| *ticket != Ticket::NONE).map(|ticket| ticket.0).collect();
        assert!(self.frames.insert(after.0, (before, requests)).is_none(), "two frames with one digest");
    }

    pub fn answer(&mut self, ticket: Ticket) {
        let request = &mut self.requests[ticket.0 as usize];
        assert!(!request.answered, "request {} answered twice", ticket.0);
        request.answered = true;
        let record = request.record;
        apply(&mut self.model, ticket.0, &record);
        if record.kind == Kind::Flush || record.flags & RECORD_FUA != 0 {
            self.flushed = self.flushed.max(Some(ticket.0));
        }
    }

    /// The requests up to a boundary, in order.
    fn order(&self, end: Digest) -> Vec<u32> {
        let (mut frames, mut at) = (Vec::new(), end);
        while at != Digest(0) {
            let (before, requests) = &self.frames[&at.0];
            frames.push(requests);
            at = *before;
        }
        frames.into_iter().rev().flatten().copied().collect()
    }

    /// What the volumes hold at a boundary.
    pub fn state(&self, end: Digest) -> Vec<Vec<u8>> {
        let mut volumes = self.base.clone();
        for request in self.order(end) {
            apply(&mut volumes, request, &self.requests[request as usize].record);
        }
        volumes
    }

    /// Demands that everything promised is held at a boundary. `power`: unsynced data may have been lost.
    pub fn check_promises(&self, end: Digest, power: bool, whose: &str) {
        let held: BTreeSet<u32> = self.order(end).into_iter().collect();
        for (number, request) in self.requests.iter().enumerate().filter(|(_, request)| request.answered) {
            let number = number as u32;
            let promised = self.always || !power || self.flushed.is_some_and(|flushed| number <= flushed);
            assert!(
                !promised || held.contains(&number),
                "{whose} lost answered request {number} ({:?})",
                request.record
            );
        }
    }

    /// The source goes on from here: reads see all of it, and answered requests that were allowed to be lost are.
    pub fn go_on_from(&mut self, end: Digest) {
        self.model = self.state(end);
        let held: BTreeSet<u32> = self.order(end).into_iter().collect();
        for (number, request) in self.requests.iter_mut().enumerate() {
            request.answered &= held.contains(&(number as u32));
        }
    }
}
