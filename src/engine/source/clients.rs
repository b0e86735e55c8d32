//! NBD clients: requests are parsed from what arrived, payloads go straight to where the journal takes them from.

use super::{Engine, Token, shut_down};
use crate::core::Place;
use crate::core::half::{Entry, Ticket};
use crate::engine::client::{CLIENT_BYTES, Client, Payload, Piece, Stage};
use crate::engine::request::Kind as RequestKind;
use crate::format::checksum::crc32c;
use crate::format::frame::{Kind, RECORD_FUA, RECORD_NO_HOLE, Record, padded};
use crate::format::nbd::{Command, Errno, ExportShape, Negotiated, REQUEST_BYTES, RawRequest, check};
use crate::limits::{CHUNK_BYTES, MAX_CLIENTS, READ_MEMORY_BYTES};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Chunks that clients leave for header blocks and for copies: with at most 16 MiB of records queued, a header each.
pub(super) const RESERVED_CHUNKS: usize = 64;
/// Chunks beyond those, at which memory counts as scarce.
pub(super) const LOW_CHUNKS: usize = 64;

/// Whether to go on parsing.
enum Progress {
    /// More may be parsed.
    On,
    /// More bytes must arrive.
    NeedBytes,
    /// Memory or room in the queue must become free.
    Gated,
}

impl Engine {
    pub(super) fn add_client(&mut self, socket: OwnedFd, negotiated: Negotiated) {
        if self.core.fenced() || self.stopping.is_some() {
            return shut_down(&socket);
        }
        let Some(disk) = self.volumes.get(negotiated.export) else { return };
        let shape = ExportShape { size_bytes: disk.size_bytes, block_bytes: disk.block_bytes, read_only: false };
        let index = match self.clients.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.clients.len() < MAX_CLIENTS => {
                self.clients.push(None);
                self.clients.len() - 1
            }
            None => {
                tracing::warn!("a client was turned away: {MAX_CLIENTS} are connected already");
                return shut_down(&socket);
            }
        };
        let buffer = Place(self.client_memory.0 + (index * CLIENT_BYTES) as u64);
        self.clients[index] = Some(Client::new(socket, negotiated, shape, buffer));
        self.receive(index as u32);
    }

    /// Receives more: into the piece that is being filled first, then into the buffer.
    fn receive(&mut self, index: u32) {
        let Some(client) = self.clients[index as usize].as_mut() else { return };
        if client.receiving.is_some() || client.dead || client.leaving || client.gated {
            return;
        }
        let piece = match &client.stage {
            Stage::Payload(Payload { piece, .. }) => *piece,
            _ => None,
        };
        let room = client.room(&self.memory);
        let fd = client.socket.as_raw_fd();
        client.receiving = Some(piece);
        match piece {
            Some(piece) => {
                let rest = (Place(piece.place.0 + piece.filled as u64), (piece.bytes - piece.filled) as u64);
                self.ring.receive(Token::ClientReceive(index), fd, &[rest, room]);
            }
            None => self.ring.receive(Token::ClientReceive(index), fd, &[room]),
        }
    }

    pub(super) fn client_received(&mut self, index: u32, outcome: io::Result<usize>) {
        let Some(client) = self.clients[index as usize].as_mut() else { return };
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
        let Some(mut client) = self.clients[index as usize].take() else { return };
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
        self.clients[index as usize] = Some(client);
        if gated {
            self.gated.push_back(index);
        } else {
            self.receive(index);
        }
    }

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
            Stage::Payload(_) => self.parse_payload(client),
        }
    }

    fn parse_header(&mut self, index: u32, client: &mut Client) -> Progress {
        let Some(header) = client.unparsed(&self.memory).first_chunk::<REQUEST_BYTES>() else {
            return Progress::NeedBytes;
        };
        let Some(raw) = RawRequest::parse(header) else {
            tracing::warn!("client {index} sent something that isn't an NBD request; its connection is closed");
            self.die(index, client);
            return Progress::NeedBytes;
        };
        if !self.requests.has_room() || client.is_clogged() {
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

    /// Acts on a request's header; false while there is no memory for it.
    fn take_command(&mut self, index: u32, client: &mut Client, cookie: u64, command: Command) -> bool {
        let volume = client.negotiated.export as u16;
        let changes = !matches!(
            command,
            Command::Read { .. } | Command::BlockStatus { .. } | Command::Cache { .. } | Command::Disconnect
        );
        if changes && self.core.failing() {
            self.refuse(client, cookie, &command);
            return true;
        }
        // While the destination is away writes wait, reads go on. Also a request without payload takes memory for a header.
        if changes && (!self.core.accepting() || self.pool.free_chunks() <= RESERVED_CHUNKS / 2) {
            return false;
        }
        match command {
            Command::Read { offset, length } => {
                // A client that doesn't read its replies must not take the memory from the others.
                let crowded = client.read_bytes > 0 && client.read_bytes + length as usize > READ_MEMORY_BYTES / 4;
                if crowded || !self.start_read(index, volume, cookie, offset, length) {
                    return false;
                }
                client.requests += 1;
                client.read_bytes += length as usize;
            }
            Command::Write { offset, length, fua } => {
                client.requests += 1;
                let ticket = self.requests.add(index, cookie, RequestKind::Change, offset, length);
                client.stage = Stage::Payload(Payload { ticket, offset, left: length, fua, piece: None });
            }
            Command::Trim { offset, length, fua } => {
                self.change(index, client, cookie, Kind::Trim, if fua { RECORD_FUA } else { 0 }, offset, length);
            }
            Command::WriteZeroes { offset, length, fua, no_hole } => {
                let flags = if fua { RECORD_FUA } else { 0 } | if no_hole { RECORD_NO_HOLE } else { 0 };
                self.change(index, client, cookie, Kind::WriteZeroes, flags, offset, length);
            }
            Command::Flush if self.core.flush_is_free() => client.reply(cookie, None, false),
            Command::Flush => self.change(index, client, cookie, Kind::Flush, 0, 0, 0),
            Command::Cache { .. } => client.reply(cookie, None, false),
            Command::BlockStatus { offset, length, req_one } => {
                let reply = self.block_status(volume, cookie, offset, length, req_one);
                client.reply_long(reply);
            }
            Command::Disconnect => client.leaving = true,
        }
        true
    }

    /// The destination has been away for too long, and the policy is that writes fail then.
    fn refuse(&mut self, client: &mut Client, cookie: u64, command: &Command) {
        match command {
            // What was answered before is stable already.
            Command::Flush if self.core.flush_is_free() => client.reply(cookie, None, false),
            Command::Write { length, .. } => {
                client.stage = Stage::Drain { left: (*length).into(), cookie, error: Errno::Io };
            }
            _ => client.reply(cookie, Some(Errno::Io), false),
        }
    }

    /// A request without payload becomes one record.
    #[expect(clippy::too_many_arguments, reason = "a record's fields")]
    fn change(
        &mut self,
        index: u32,
        client: &mut Client,
        cookie: u64,
        kind: Kind,
        flags: u8,
        offset: u64,
        length: u32,
    ) {
        client.requests += 1;
        let ticket = self.requests.add(index, cookie, RequestKind::Change, offset, length);
        let volume = client.negotiated.export as u16;
        let record = Record { volume, kind, flags, offset, length, checksum: 0 };
        self.core.handle_record(Entry { record, place: Place(0), ticket });
    }

    /// Fills the piece at hand, hands it over when it is full, and takes the next.
    fn parse_payload(&mut self, client: &mut Client) -> Progress {
        let volume = client.negotiated.export as u16;
        let Stage::Payload(mut payload) = std::mem::replace(&mut client.stage, Stage::Header) else {
            return Progress::On;
        };
        loop {
            let Some(piece) = &mut payload.piece else {
                let wanted = (payload.left as usize).min(CHUNK_BYTES);
                let taken = if self.pool.free_chunks() > RESERVED_CHUNKS && self.core.accepting() {
                    self.pool.take(wanted)
                } else {
                    None
                };
                let Some((place, bytes)) = taken else {
                    client.stage = Stage::Payload(payload);
                    return Progress::Gated;
                };
                payload.left -= bytes as u32;
                payload.piece = Some(Piece { place, bytes, filled: 0 });
                continue;
            };
            let to = Place(piece.place.0 + piece.filled as u64);
            piece.filled += client.copy_out(&self.memory, to, piece.bytes - piece.filled);
            if piece.filled < piece.bytes {
                client.stage = Stage::Payload(payload);
                return Progress::NeedBytes;
            }
            let Piece { place, bytes, .. } = *piece;
            let rest = padded(bytes) - bytes;
            // SAFETY: the piece is complete and only ours; its padding goes to the disk and must hold nobody's secrets.
            let contents = unsafe {
                self.memory.bytes_mut(Place(place.0 + bytes as u64), rest).fill(0);
                self.memory.bytes(place, bytes)
            };
            let last = payload.left == 0;
            let flags = if payload.fua && last { RECORD_FUA } else { 0 };
            let (offset, length) = (payload.offset, bytes as u32);
            let record = Record { volume, kind: Kind::Write, flags, offset, length, checksum: crc32c(contents) };
            self.counters.written_bytes += bytes as u64;
            if !last {
                self.requests.get(payload.ticket).outstanding += 1;
            }
            self.core.handle_record(Entry { record, place, ticket: payload.ticket });
            if last {
                return Progress::On;
            }
            payload.offset += bytes as u64;
            payload.piece = None;
        }
    }

    /// Lets clients go on that waited for memory or room.
    pub(super) fn open_gates(&mut self) {
        for _ in 0..self.gated.len() {
            let Some(index) = self.gated.pop_front() else { return };
            if self.clients[index as usize].as_ref().is_some_and(|client| client.gated) {
                self.parse(index);
            }
        }
    }

    /// One record of a request is as safe as promised.
    pub(super) fn part_answered(&mut self, ticket: Ticket) {
        if self.requests.part_done(ticket) {
            self.answer(ticket);
        }
    }

    /// All parts of a request are done; its reply is queued at the end of the turn.
    pub(super) fn answer(&mut self, ticket: Ticket) {
        self.finished.push(ticket);
    }

    /// Queues the replies of finished requests, with all clients in their places. True where a request gave back what
    /// it held at once.
    pub(super) fn queue_replies(&mut self) -> bool {
        let mut freed = false;
        let mut finished = std::mem::take(&mut self.finished);
        for ticket in finished.drain(..) {
            let request = self.requests.get(ticket);
            let (cookie, offset, length) = (request.cookie, request.offset, request.length);
            let Some(client) = self.clients[request.client as usize].as_mut() else { continue };
            client.requests -= 1;
            match (request.kind, request.error) {
                _ if client.dead => {}
                (RequestKind::Read, None) => {
                    self.counters.answered_reads += 1;
                    self.counters.read_bytes += u64::from(length);
                    client.reply_data(cookie, ticket, offset, length);
                    continue;
                }
                (RequestKind::Change, None) => {
                    self.counters.answered_writes += 1;
                    client.reply(cookie, None, false);
                }
                (kind, Some(error)) => {
                    let structured = client.negotiated.structured && kind == RequestKind::Read;
                    client.reply(cookie, Some(error), structured);
                }
            }
            self.forget_request(ticket);
            freed = true;
        }
        self.finished = finished;
        freed
    }

    /// Gives back a request's memory and its slot.
    fn forget_request(&mut self, ticket: Ticket) {
        let request = self.requests.get(ticket);
        let (index, length, kind) = (request.client, request.length, request.kind);
        for (place, bytes) in request.pieces.drain(..) {
            self.read_pool.release(place, bytes);
        }
        if kind == RequestKind::Read
            && let Some(client) = self.clients[index as usize].as_mut()
        {
            client.read_bytes = client.read_bytes.saturating_sub(length as usize);
        }
        self.requests.remove(ticket);
    }

    /// Sends waiting replies, and lets go of a client that is done.
    pub(super) fn pump_client(&mut self, index: u32) {
        let Some(client) = self.clients[index as usize].as_mut() else { return };
        if !client.sending && !client.dead && client.has_replies() {
            let mut pieces = std::mem::take(&mut self.pieces);
            let requests = &mut self.requests;
            client.gather(&self.memory, &mut pieces, |ticket, out| out.extend_from_slice(&requests.get(ticket).pieces));
            client.sending = true;
            self.ring.send(Token::ClientSend(index), client.socket.as_raw_fd(), &pieces);
            self.pieces = pieces;
        }
        if client.leaving && !client.dead && client.requests == 0 && !client.sending && !client.has_replies() {
            self.kill_client(index);
        }
        let over = self.clients[index as usize]
            .as_ref()
            .is_some_and(|client| client.dead && !client.sending && client.receiving.is_none() && client.requests == 0);
        if over {
            self.clients[index as usize] = None;
        }
    }

    pub(super) fn client_sent(&mut self, index: u32, outcome: io::Result<usize>) {
        let Some(client) = self.clients[index as usize].as_mut() else { return };
        client.sending = false;
        for ticket in std::mem::take(&mut client.sent) {
            self.forget_request(ticket);
        }
        if outcome.is_err() {
            self.kill_client(index);
        }
    }

    /// Ends a connection; what is under way for it completes unanswered.
    pub(super) fn kill_client(&mut self, index: u32) {
        if let Some(mut client) = self.clients[index as usize].take() {
            self.die(index, &mut client);
            self.clients[index as usize] = Some(client);
        }
    }

    fn die(&mut self, index: u32, client: &mut Client) {
        if client.dead {
            return;
        }
        client.dead = true;
        client.gated = false;
        shut_down(&client.socket);
        for ticket in client.forget_replies() {
            self.forget_request(ticket);
        }
        // A write whose payload never arrived whole: its records so far stay, nobody waits for the rest. A piece that
        // is still being received into is given back when that receive is over, with the client itself.
        if let Stage::Payload(payload) = std::mem::replace(&mut client.stage, Stage::Header) {
            self.abandoned.push((index, payload.ticket, payload.piece));
        }
    }

    /// Gives back the pieces of writes that were cut off, once nothing is received into them any more.
    pub(super) fn bury(&mut self) {
        let mut abandoned = std::mem::take(&mut self.abandoned);
        abandoned.retain(|(index, ticket, piece)| {
            let receiving = self.clients[*index as usize].as_ref().is_some_and(|client| client.receiving.is_some());
            if !receiving {
                if let Some(piece) = piece {
                    self.pool.release(piece.place, padded(piece.bytes) as u64);
                }
                // Its own part: the one that counted for the payload to come.
                self.part_answered(*ticket);
            }
            receiving
        });
        self.abandoned = abandoned;
    }
}
