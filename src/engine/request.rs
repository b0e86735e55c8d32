//! What clients asked for and hasn't been answered yet.

use crate::core::Place;
use crate::core::half::Ticket;
use crate::format::nbd::Errno;
use crate::limits::MAX_REQUESTS;

/// What kind of answer a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its bytes.
    Read,
    /// Just whether it worked.
    Change,
}

/// A request under way.
#[derive(Debug)]
pub struct Request {
    /// The client's index.
    pub client: u32,
    /// The client's name for it.
    pub cookie: u64,
    /// What kind of answer it gets.
    pub kind: Kind,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// Records or device reads that aren't complete, plus one while more may be added.
    pub outstanding: u32,
    /// The first thing that went wrong.
    pub error: Option<Errno>,
    /// Memory for a reply.
    pub pieces: Vec<(Place, u64)>,
}

/// All requests of one engine, named by tickets.
#[derive(Debug, Default)]
pub struct Requests {
    slots: Vec<Request>,
    free: Vec<u32>,
}

impl Requests {
    /// Whether another one may be taken.
    pub fn has_room(&self) -> bool {
        self.slots.len() - self.free.len() < MAX_REQUESTS
    }

    /// Takes a request; it counts one outstanding part until [`Requests::part_done`] is called for it.
    pub fn add(&mut self, client: u32, cookie: u64, kind: Kind, offset: u64, length: u32) -> Ticket {
        let index = self.free.pop().unwrap_or_else(|| {
            let (client, cookie) = (0, 0);
            let pieces = Vec::new();
            self.slots.push(Request {
                client,
                cookie,
                kind,
                offset: 0,
                length: 0,
                outstanding: 0,
                error: None,
                pieces,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        (slot.client, slot.cookie, slot.kind, slot.offset, slot.length) = (client, cookie, kind, offset, length);
        (slot.outstanding, slot.error) = (1, None);
        slot.pieces.clear();
        Ticket(index)
    }

    /// The request of a ticket that was given and not removed.
    pub fn get(&mut self, ticket: Ticket) -> &mut Request {
        &mut self.slots[ticket.0 as usize]
    }

    /// One part is complete; true when it was the last.
    pub fn part_done(&mut self, ticket: Ticket) -> bool {
        let slot = self.get(ticket);
        slot.outstanding -= 1;
        slot.outstanding == 0
    }

    /// The request was answered, or nobody waits for it any more.
    pub fn remove(&mut self, ticket: Ticket) {
        self.free.push(ticket.0);
    }

    /// Requests that are under way.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
