//! One NBD connection: what was received and isn't parsed yet, and the replies that wait to be sent.

use super::memory::Memory;
use crate::core::Place;
use crate::core::half::Ticket;
use crate::format::nbd::{CHUNK_DONE, CHUNK_NONE};
use crate::format::nbd::{Errno, ExportShape, Negotiated, chunk_header, data_chunk_header, error_chunk, simple_reply};
use crate::limits::CLIENT_BUFFER_BYTES;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Bytes of reply headers that one send may carry.
pub const HEADS_BYTES: usize = 16 << 10;
/// Bytes of the mapping that one client uses.
pub const CLIENT_BYTES: usize = CLIENT_BUFFER_BYTES + HEADS_BYTES;
/// Replies that may wait for a client before its requests do.
const MAX_REPLIES: usize = 1024;
/// Pieces that one send may gather.
const MAX_SEND_PIECES: usize = 300;

/// What the next received bytes are.
#[derive(Debug)]
pub enum Stage {
    /// A request's header.
    Header,
    /// Payload of a write.
    Payload(Payload),
    /// Payload of a request that is refused; then its error is sent.
    Drain {
        /// Bytes left.
        left: u64,
        /// The request.
        cookie: u64,
        /// Its error.
        error: Errno,
    },
}

/// A write whose payload is arriving. It becomes records piece by piece, as memory allows.
#[derive(Debug)]
pub struct Payload {
    /// The request.
    pub ticket: Ticket,
    /// Where the next piece goes on the volume.
    pub offset: u64,
    /// Bytes for which no piece was taken yet.
    pub left: u32,
    /// Whether the last record must be stable.
    pub fua: bool,
    /// The piece that is being filled.
    pub piece: Option<Piece>,
}

/// Memory that is being filled.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Where.
    pub place: Place,
    /// Bytes.
    pub bytes: usize,
    /// Bytes that are there.
    pub filled: usize,
}

/// A reply that waits to be sent.
#[derive(Debug)]
pub struct Reply {
    /// What comes first.
    pub head: Head,
    /// The read whose memory follows, and is given back when it was sent.
    pub data: Option<Ticket>,
}

/// A reply's first bytes.
#[derive(Debug)]
pub enum Head {
    /// A short one.
    Short([u8; 28], usize),
    /// A long one.
    Long(Vec<u8>),
}

impl Head {
    fn short(bytes: &[u8]) -> Head {
        let mut head = [0; 28];
        head[..bytes.len()].copy_from_slice(bytes);
        Head::Short(head, bytes.len())
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Head::Short(bytes, length) => &bytes[..*length],
            Head::Long(bytes) => bytes,
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    /// The socket.
    pub socket: OwnedFd,
    /// What the handshake agreed on.
    pub negotiated: Negotiated,
    /// The export.
    pub shape: ExportShape,
    /// What comes next.
    pub stage: Stage,
    buffer: Place,
    /// Bytes of the buffer that are parsed.
    pub start: usize,
    /// Bytes of the buffer that are received.
    pub end: usize,
    /// Whether a receive is under way, and into which piece first.
    pub receiving: Option<Option<Piece>>,
    /// Whether a send is under way.
    pub sending: bool,
    /// Whether it waits for memory or for room in the queue.
    pub gated: bool,
    /// No more requests are taken; it ends when those under way are answered.
    pub leaving: bool,
    /// The socket is shut down: nothing is answered any more.
    pub dead: bool,
    /// Requests under way.
    pub requests: usize,
    /// Bytes of memory that its reads hold.
    pub read_bytes: usize,
    replies: VecDeque<Reply>,
    /// Reads whose memory is being sent.
    pub sent: Vec<Ticket>,
}

impl Client {
    /// A connection whose part of the mapping starts at `buffer`.
    pub fn new(socket: OwnedFd, negotiated: Negotiated, shape: ExportShape, buffer: Place) -> Client {
        Client {
            socket,
            negotiated,
            shape,
            stage: Stage::Header,
            buffer,
            start: 0,
            end: 0,
            receiving: None,
            sending: false,
            gated: false,
            leaving: false,
            dead: false,
            requests: 0,
            read_bytes: 0,
            replies: VecDeque::new(),
            sent: Vec::new(),
        }
    }

    /// Received bytes that aren't parsed.
    pub fn unparsed<'a>(&self, memory: &'a Memory) -> &'a [u8] {
        // SAFETY: no receive into start..end is under way: receives go behind `end`.
        unsafe { memory.bytes(Place(self.buffer.0 + self.start as u64), self.end - self.start) }
    }

    /// Copies up to `bytes` received bytes to `to`, which is the caller's; returns how many.
    pub fn copy_out(&mut self, memory: &Memory, to: Place, bytes: usize) -> usize {
        let bytes = bytes.min(self.end - self.start);
        // SAFETY: the received bytes are stable as in `unparsed`, and the target is a piece of this client's request.
        unsafe { memory.copy(Place(self.buffer.0 + self.start as u64), to, bytes) };
        self.start += bytes;
        bytes
    }

    /// Room for the next receive, after moving what is unparsed to the front where that is worth it.
    pub fn room(&mut self, memory: &Memory) -> (Place, u64) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == CLIENT_BUFFER_BYTES {
            // SAFETY: no receive is under way when this is called, and the buffer is this client's.
            unsafe { memory.copy(Place(self.buffer.0 + self.start as u64), self.buffer, self.end - self.start) };
            (self.start, self.end) = (0, self.end - self.start);
        }
        (Place(self.buffer.0 + self.end as u64), (CLIENT_BUFFER_BYTES - self.end) as u64)
    }

    /// Queues the reply of a request without data: `None` says that it worked.
    pub fn reply(&mut self, cookie: u64, error: Option<Errno>, structured: bool) {
        let head = match error {
            Some(error) if structured => Head::short(&error_chunk(error, cookie)),
            None if structured => Head::short(&chunk_header(CHUNK_DONE, CHUNK_NONE, cookie, 0)),
            _ => Head::short(&simple_reply(error, cookie)),
        };
        self.replies.push_back(Reply { head, data: None });
    }

    /// Queues the reply of a read whose memory holds the bytes.
    pub fn reply_data(&mut self, cookie: u64, ticket: Ticket, offset: u64, length: u32) {
        let head = if self.negotiated.structured {
            Head::short(&data_chunk_header(CHUNK_DONE, cookie, offset, length))
        } else {
            Head::short(&simple_reply(None, cookie))
        };
        self.replies.push_back(Reply { head, data: Some(ticket) });
    }

    /// Queues a reply made elsewhere.
    pub fn reply_long(&mut self, bytes: Vec<u8>) {
        self.replies.push_back(Reply { head: Head::Long(bytes), data: None });
    }

    /// Whether so many replies wait that no further request should be taken: this client doesn't read.
    pub fn is_clogged(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// Whether replies wait.
    pub fn has_replies(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Gathers waiting replies into one send. `data` gives a read's memory.
    pub fn gather(
        &mut self,
        memory: &Memory,
        pieces: &mut Vec<(Place, u64)>,
        mut data: impl FnMut(Ticket, &mut Vec<(Place, u64)>),
    ) {
        pieces.clear();
        let heads = self.buffer.0 + CLIENT_BUFFER_BYTES as u64;
        let mut used = 0;
        while let Some(reply) = self.replies.front() {
            let bytes = reply.head.bytes();
            if used + bytes.len() > HEADS_BYTES || pieces.len() >= MAX_SEND_PIECES {
                break;
            }
            let place = Place(heads + used as u64);
            // SAFETY: the heads' area is this client's, and no send is under way when this is called.
            unsafe { memory.bytes_mut(place, bytes.len()) }.copy_from_slice(bytes);
            used += bytes.len();
            match pieces.last_mut() {
                Some((last, length)) if last.0 + *length == place.0 => *length += bytes.len() as u64,
                _ => pieces.push((place, bytes.len() as u64)),
            }
            if let Some(ticket) = reply.data {
                data(ticket, pieces);
                self.sent.push(ticket);
            }
            self.replies.pop_front();
        }
    }

    /// Forgets the waiting replies; returns the reads whose memory goes back.
    pub fn forget_replies(&mut self) -> Vec<Ticket> {
        self.replies.drain(..).filter_map(|reply| reply.data).collect()
    }
}
