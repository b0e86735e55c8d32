//! NBD clients: what their requests do; payloads go straight to where the journal takes them from.

use super::{Engine, Token, shut_down};
use crate::core::Place;
use crate::core::half::Entry;
use crate::engine::client::{Client, Payload, Piece, Stage};
use crate::engine::clients::{Parts, Progress, Serve};
use crate::engine::request::Kind as RequestKind;
use crate::format::checksum::crc32c;
use crate::format::frame::{Kind, RECORD_FUA, RECORD_NO_HOLE, Record, padded};
use crate::format::nbd::{Command, Errno, ExportShape, Negotiated};
use crate::limits::CHUNK_BYTES;
use std::os::fd::OwnedFd;

/// Chunks that clients leave for header blocks and for copies: with at most 16 MiB of records queued, a header each.
pub(super) const RESERVED_CHUNKS: usize = 64;
/// Chunks beyond those, at which memory counts as scarce.
pub(super) const LOW_CHUNKS: usize = 64;

impl Serve for Engine {
    type Token = Token;

    fn receiving(index: u32) -> Token {
        Token::ClientReceive(index)
    }

    fn sending(index: u32) -> Token {
        Token::ClientSend(index)
    }

    fn parts(&mut self) -> Parts<'_, Token> {
        let Engine { clients, ring, memory, counters, .. } = self;
        Parts { clients, ring, memory, counters }
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
                let Some(ticket) = self.clients.take_read(index, client, cookie, offset, length) else { return false };
                self.start_read(ticket, volume);
            }
            Command::Write { offset, length, fua } => {
                client.requests += 1;
                let ticket = self.clients.requests.add(index, cookie, RequestKind::Change, offset, length);
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

    /// Fills the piece at hand, hands it over when it is full, and takes the next.
    fn take_payload(&mut self, client: &mut Client) -> Progress {
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
                self.clients.requests.get(payload.ticket).outstanding += 1;
            }
            self.core.handle_record(Entry { record, place, ticket: payload.ticket });
            if last {
                return Progress::On;
            }
            payload.offset += bytes as u64;
            payload.piece = None;
        }
    }

    /// A piece that is still being received into is given back when that receive is over, with the client itself.
    fn cut_off(&mut self, index: u32, payload: Payload) {
        self.abandoned.push((index, payload.ticket, payload.piece));
    }
}

impl Engine {
    pub(super) fn serve_client(&mut self, socket: OwnedFd, negotiated: Negotiated) {
        if self.core.fenced() || self.stopping.is_some() {
            return shut_down(&socket);
        }
        let Some(disk) = self.volumes.get(negotiated.export) else { return };
        let shape = ExportShape { size_bytes: disk.size_bytes, block_bytes: disk.block_bytes, read_only: false };
        self.add_client(socket, negotiated, shape);
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
        let ticket = self.clients.requests.add(index, cookie, RequestKind::Change, offset, length);
        let volume = client.negotiated.export as u16;
        let record = Record { volume, kind, flags, offset, length, checksum: 0 };
        self.core.handle_record(Entry { record, place: Place(0), ticket });
    }

    /// Gives back the pieces of writes that were cut off, once nothing is received into them any more.
    pub(super) fn bury(&mut self) {
        let mut abandoned = std::mem::take(&mut self.abandoned);
        abandoned.retain(|(index, ticket, piece)| {
            let receiving = self.clients.receiving(*index);
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
