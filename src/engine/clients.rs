//! NBD clients of an engine: what arrives is parsed, what is answered is sent. What a request does is the engine's.
//!
//! An engine implements [`Serve`] and gets the rest. A client that sends faster than its requests can be taken, or that
//! doesn't read its replies, is left alone until there is room: its socket fills up, and nobody else waits for it.

use super::client::{CLIENT_BYTES, Client, Payload, Stage};
use super::command::Counters;
use super::memory::{Memory, Pool};
use super::request::{Kind, Requests};
use super::ring::Ring;
use crate::core::Place;
use crate::core::half::Ticket;
use crate::format::nbd::{Command, ExportShape, Negotiated, REQUEST_BYTES, RawRequest, check};
use crate::limits::CHUNK_BYTES;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Whether to go on parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More may be parsed.
    On,
    /// More bytes must arrive.
    NeedBytes,
    /// Memory or room in the queue must become free.
    Gated,
}

/// The clients of one engine, what they wait for, and the memory of their replies.
#[derive(Debug)]
pub struct Clients {
    table: Vec<Option<Client>>,
    memory: Place,
    limit: usize,
    /// Clients that wait for memory or for room in the queue.
    gated: VecDeque<u32>,
    /// What they asked for.
    pub requests: Requests,
    reads: Pool,
    reads_bytes: usize,
    /// Requests whose parts are all done.
    finished: Vec<Ticket>,
    pieces: Vec<(Place, u64)>,
}

impl Clients {
    /// Bytes of the mapping for so many clients, with so many bytes for replies to reads.
    pub const fn bytes(limit: usize, reads_bytes: usize) -> usize {
        limit * CLIENT_BYTES + reads_bytes
    }

    /// No clients yet; `place` is where their part of the mapping begins.
    pub fn new(place: Place, limit: usize, reads_bytes: usize) -> Clients {
        Clients {
            table: Vec::new(),
            memory: Place(place.0 + reads_bytes as u64),
            limit,
            gated: VecDeque::new(),
            requests: Requests::default(),
            reads: Pool::new(place, reads_bytes / CHUNK_BYTES),
            reads_bytes,
            finished: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Connections. One that was ended doesn't count, though its place is taken while something is under way for it.
    pub fn count(&self) -> usize {
        self.table.iter().flatten().filter(|client| !client.dead).count()
    }

    /// Whether one waits for memory or room.
    pub fn any_gated(&self) -> bool {
        !self.gated.is_empty()
    }

    /// Whether something is being received for this client.
    pub fn receiving(&self, index: u32) -> bool {
        self.table[index as usize].as_ref().is_some_and(|client| client.receiving.is_some())
    }

    /// Ends all connections at once, for an engine that ends; whatever waits on them completes.
    pub fn shut_down(&self) {
        self.table.iter().flatten().for_each(|client| shut_down(&client.socket));
    }

    /// Takes a read with memory for its whole reply: two half-served ones could wait for each other. `None` while there is
    /// none.
    pub fn take_read(
        &mut self,
        index: u32,
        client: &mut Client,
        cookie: u64,
        offset: u64,
        length: u32,
    ) -> Option<Ticket> {
        // A client that doesn't read its replies must not take the memory from the others.
        let crowded = client.read_bytes > 0 && client.read_bytes + length as usize > self.reads_bytes / 4;
        if crowded || self.reads.free_chunks() < (length as usize).div_ceil(CHUNK_BYTES) + 1 {
            return None;
        }
        client.requests += 1;
        client.read_bytes += length as usize;
        let ticket = self.requests.add(index, cookie, Kind::Read, offset, length);
        let mut left = length as usize;
        while left > 0 {
            let Some((place, bytes)) = self.reads.take(left) else { break };
            self.requests.get(ticket).pieces.push((place, bytes as u64));
            left -= bytes;
        }
        Some(ticket)
    }

    /// All parts of a request are done; its reply is queued at the end of the turn.
    pub fn answer(&mut self, ticket: Ticket) {
        self.finished.push(ticket);
    }

    /// Gives back a request's memory and its slot.
    fn forget_request(&mut self, ticket: Ticket) {
        let request = self.requests.get(ticket);
        let (index, length, kind) = (request.client, request.length, request.kind);
        for (place, bytes) in request.pieces.drain(..) {
            self.reads.release(place, bytes);
        }
        if kind == Kind::Read
            && let Some(client) = self.table[index as usize].as_mut()
        {
            client.read_bytes = client.read_bytes.saturating_sub(length as usize);
        }
        self.requests.remove(ticket);
    }

    /// Marks a client as dead; what is under way for it completes unanswered. Returns a write of which payload is missing.
    fn die(&mut self, client: &mut Client) -> Option<Payload> {
        if client.dead {
            return None;
        }
        client.dead = true;
        client.gated = false;
        shut_down(&client.socket);
        for ticket in client.forget_replies() {
            self.forget_request(ticket);
        }
        match std::mem::replace(&mut client.stage, Stage::Header) {
            Stage::Payload(payload) => Some(payload),
            Stage::Header | Stage::Drain { .. } => None,
        }
    }
}

/// What is needed to serve clients.
pub struct Parts<'a, T> {
    /// The clients.
    pub clients: &'a mut Clients,
    /// The ring.
    pub ring: &'a mut Ring<T>,
    /// The mapping.
    pub memory: &'a Memory,
    /// What was answered is counted here.
    pub counters: &'a mut Counters,
}

/// An engine that serves NBD clients.
pub trait Serve {
    /// What names its operations.
    type Token: Copy;

    /// Names a client's receive.
    fn receiving(index: u32) -> Self::Token;

    /// Names a client's send.
    fn sending(index: u32) -> Self::Token;

    /// What is needed to serve clients.
    fn parts(&mut self) -> Parts<'_, Self::Token>;

    /// Acts on a request's header; false while there is no memory for it.
    fn take_command(&mut self, index: u32, client: &mut Client, cookie: u64, command: Command) -> bool;

    /// Takes payload that has arrived, while a write's is expected.
    fn take_payload(&mut self, client: &mut Client) -> Progress;

    /// A write's payload never arrived whole: its records so far stay, nobody waits for the rest. A piece of it may still be
    /// received into.
    fn cut_off(&mut self, index: u32, payload: Payload);

    /// Serves one more client.
    fn add_client(&mut self, socket: OwnedFd, negotiated: Negotiated, shape: ExportShape) {
        let Parts { clients, .. } = self.parts();
        let index = match clients.table.iter().position(Option::is_none) {
            Some(index) => index,
            None if clients.table.len() < clients.limit => {
                clients.table.push(None);
                clients.table.len() - 1
            }
            None => {
                tracing::warn!("a client was turned away: {} are connected already", clients.limit);
                return shut_down(&socket);
            }
        };
        let buffer = Place(clients.memory.0 + (index * CLIENT_BYTES) as u64);
        clients.table[index] = Some(Client::new(socket, negotiated, shape, buffer));
        self.receive_more(index as u32);
    }

    /// Receives more: into the piece that is being filled first, then into the buffer.
    fn receive_more(&mut self, index: u32) {
        let Parts { clients, ring, memory, .. } = self.parts();
        let Some(client) = clients.table[index as usize].as_mut() else { return };
        if client.receiving.is_some() || client.dead || client.leaving || client.gated {
            return;
        }
        let piece = match &client.stage {
            Stage::Payload(Payload { piece, .. }) => *piece,
            _ => None,
        };
        let room = client.room(memory);
        let fd = client.socket.as_raw_fd();
        client.receiving = Some(piece);
        match piece {
            Some(piece) => {
                let rest = (Place(piece.place.0 + piece.filled as u64), (piece.bytes - piece.filled) as u64);
                ring.receive(Self::receiving(index), fd, &[rest, room]);
            }
            None => ring.receive(Self::receiving(index), fd, &[room]),
        }
    }

    /// A receive is complete.
    fn client_received(&mut self, index: u32, outcome: io::Result<usize>) {
        let Some(client) = self.parts().clients.table[index as usize].as_mut() else { return };
        let into = client.receiving.take().flatten();
        if client.dead {
            return;
        }
        match outcome {
            // A reset is how many clients leave.
            Ok(0) | Err(_) => {
                if !client.leaving {
                    tracing::debug!("client {index} left");
                }
                return self.kill_client(index);
            }
            Ok(mut bytes) => {
                if into.is_some()
                    && let Stage::Payload(Payload { piece: Some(piece), .. }) = &mut client.stage
                {
                    let taken = bytes.min(piece.bytes - piece.filled);
                    piece.filled += taken;
                    bytes -= taken;
                }
                client.end += bytes;
            }
        }
        self.parse(index);
    }

    /// Parses what has arrived as far as it goes.
    fn parse(&mut self, index: u32) {
        let Some(mut client) = self.parts().clients.table[index as usize].take() else { return };
        let progress = loop {
            if client.dead || client.leaving {
                break Progress::NeedBytes;
            }
            match self.parse_one(index, &mut client) {
                Progress::On => {}
                stop => break stop,
            }
        };
        client.gated = matches!(progress, Progress::Gated);
        let gated = client.gated;
        self.parts().clients.table[index as usize] = Some(client);
        if gated {
            self.parts().clients.gated.push_back(index);
        } else {
            self.receive_more(index);
        }
    }

    /// Parses one thing.
    fn parse_one(&mut self, index: u32, client: &mut Client) -> Progress {
        match &mut client.stage {
            Stage::Header => self.parse_header(index, client),
            Stage::Drain { left, .. } => {
                let taken = (*left).min((client.end - client.start) as u64);
                *left -= taken;
                client.start += taken as usize;
                if let Stage::Drain { left: 0, cookie, error } = client.stage {
                    client.reply(cookie, Some(error), false);
                    client.stage = Stage::Header;
                    return Progress::On;
                }
                Progress::NeedBytes
            }
            Stage::Payload(_) => self.take_payload(client),
        }
    }

    /// Parses a request's header.
    fn parse_header(&mut self, index: u32, client: &mut Client) -> Progress {
        let Some(header) = client.unparsed(self.parts().memory).first_chunk::<REQUEST_BYTES>() else {
            return Progress::NeedBytes;
        };
        let Some(raw) = RawRequest::parse(header) else {
            tracing::warn!("client {index} sent something that isn't an NBD request; its connection is closed");
            self.let_die(index, client);
            return Progress::NeedBytes;
        };
        if !self.parts().clients.requests.has_room() || client.is_clogged() {
            return Progress::Gated;
        }
        let command = match check(&raw, &client.shape, &client.negotiated) {
            Ok(command) => command,
            Err(error) => {
                client.start += REQUEST_BYTES;
                if raw.carries_payload() {
                    client.stage = Stage::Drain { left: raw.length.into(), cookie: raw.cookie, error };
                } else {
                    client.reply(raw.cookie, Some(error), client.negotiated.structured && raw.wants_data());
                }
                return Progress::On;
            }
        };
        if !self.take_command(index, client, raw.cookie, command) {
            return Progress::Gated;
        }
        client.start += REQUEST_BYTES;
        Progress::On
    }

    /// Lets clients go on that waited for memory or room.
    fn open_gates(&mut self) {
        for _ in 0..self.parts().clients.gated.len() {
            let Some(index) = self.parts().clients.gated.pop_front() else { return };
            if self.parts().clients.table[index as usize].as_ref().is_some_and(|client| client.gated) {
                self.parse(index);
            }
        }
    }

    /// One part of a request is done.
    fn part_answered(&mut self, ticket: Ticket) {
        let Parts { clients, .. } = self.parts();
        if clients.requests.part_done(ticket) {
            clients.answer(ticket);
        }
    }

    /// Queues the replies of finished requests, with all clients in their places. True where a request gave back what
    /// it held at once.
    fn queue_replies(&mut self) -> bool {
        let Parts { clients, counters, .. } = self.parts();
        let mut freed = false;
        let mut finished = std::mem::take(&mut clients.finished);
        for ticket in finished.drain(..) {
            let request = clients.requests.get(ticket);
            let (cookie, offset, length) = (request.cookie, request.offset, request.length);
            let Some(client) = clients.table[request.client as usize].as_mut() else { continue };
            client.requests -= 1;
            match (request.kind, request.error) {
                _ if client.dead => {}
                (Kind::Read, None) => {
                    counters.answered_reads += 1;
                    counters.read_bytes += u64::from(length);
                    client.reply_data(cookie, ticket, offset, length);
                    continue;
                }
                (Kind::Change, None) => {
                    counters.answered_writes += 1;
                    client.reply(cookie, None, false);
                }
                (kind, Some(error)) => {
                    let structured = client.negotiated.structured && kind == Kind::Read;
                    client.reply(cookie, Some(error), structured);
                }
            }
            clients.forget_request(ticket);
            freed = true;
        }
        clients.finished = finished;
        freed
    }

    /// Sends all clients' waiting replies, and lets go of those that are done.
    fn pump_clients(&mut self) {
        for index in 0..self.parts().clients.table.len() {
            self.pump_client(index as u32);
        }
    }

    /// Sends waiting replies, and lets go of a client that is done.
    fn pump_client(&mut self, index: u32) {
        let Parts { clients, ring, memory, .. } = self.parts();
        let Some(client) = clients.table[index as usize].as_mut() else { return };
        if !client.sending && !client.dead && client.has_replies() {
            let (pieces, requests) = (&mut clients.pieces, &mut clients.requests);
            client.gather(memory, pieces, |ticket, out| out.extend_from_slice(&requests.get(ticket).pieces));
            client.sending = true;
            ring.send(Self::sending(index), client.socket.as_raw_fd(), pieces);
        }
        if client.leaving && !client.dead && client.requests == 0 && !client.sending && !client.has_replies() {
            self.kill_client(index);
        }
        let Parts { clients, .. } = self.parts();
        let over =
            |client: &Client| client.dead && !client.sending && client.receiving.is_none() && client.requests == 0;
        if clients.table[index as usize].as_ref().is_some_and(over) {
            clients.table[index as usize] = None;
        }
    }

    /// A send is complete.
    fn client_sent(&mut self, index: u32, outcome: io::Result<usize>) {
        let Parts { clients, .. } = self.parts();
        let Some(client) = clients.table[index as usize].as_mut() else { return };
        client.sending = false;
        for ticket in std::mem::take(&mut client.sent) {
            clients.forget_request(ticket);
        }
        if outcome.is_err() {
            self.kill_client(index);
        }
    }

    /// Ends a connection; what is under way for it completes unanswered.
    fn kill_client(&mut self, index: u32) {
        if let Some(mut client) = self.parts().clients.table[index as usize].take() {
            self.let_die(index, &mut client);
            self.parts().clients.table[index as usize] = Some(client);
        }
    }

    /// Ends all connections.
    fn kill_clients(&mut self) {
        for index in 0..self.parts().clients.table.len() {
            self.kill_client(index as u32);
        }
    }

    /// Ends the connection of a client that isn't in its place.
    fn let_die(&mut self, index: u32, client: &mut Client) {
        if let Some(payload) = self.parts().clients.die(client) {
            self.cut_off(index, payload);
        }
    }
}

/// Ends a connection in both directions; whatever waits on it completes.
pub fn shut_down(socket: &impl AsRawFd) {
    // ENOTCONN: the other side was faster.
    let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
}
