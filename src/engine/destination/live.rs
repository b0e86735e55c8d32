//! NBD clients that read the images while they are mirrored.
//!
//! The core says where a range's bytes are, as of the last sync signal ([`Destination::read`]). What is in memory is copied
//! in the same moment, so no half that is filled anew is ever looked into; what is the image's is read beside it. When all
//! is there the core says whether that was the same state ([`Destination::still_holds`]). If not, the request is read again
//! as a whole.
//!
//! Readers have memory of their own, and a turn of the loop serves only so many bytes: mirroring doesn't wait for them.
//! Where nothing consistent can be read, their connections are closed without a reply.
//!
//! [`Destination::read`]: crate::core::destination::Destination::read
//! [`Destination::still_holds`]: crate::core::destination::Destination::still_holds

use super::{Engine, Token};
use crate::core::Place;
use crate::core::destination::{Destination, Unreadable, View};
use crate::core::half::Ticket;
use crate::core::index::Found;
use crate::engine::client::{Client, Payload};
use crate::engine::clients::{Clients, Parts, Progress, Serve, shut_down};
use crate::engine::extents::block_status;
use crate::format::nbd::{Command, Errno, ExportShape, Negotiated};
use crate::limits::{LIVE_READ_BYTES, MAX_LIVE_CLIENTS};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use tokio::sync::watch;

/// Bytes of requests that are begun in one turn: more wait for the next.
const TURN_BYTES: u64 = 4 << 20;
/// How often a request is read before it gets an error.
const MAX_TRIES: u32 = 32;

/// A request's part that is the image's.
#[derive(Debug)]
struct Reading {
    view: View,
    volume: u16,
    ranges: Vec<Range<u64>>,
    tries: u32,
    failed: bool,
}

/// The readers of one source's images.
#[derive(Debug)]
pub(super) struct Live {
    clients: Clients,
    /// By their requests' tickets.
    reads: Vec<Option<Reading>>,
    /// Bytes that may still be begun in this turn.
    budget: u64,
    /// Why clients are refused, for those who shake hands.
    refusal: watch::Sender<Option<Unreadable>>,
}

impl Live {
    /// Bytes of the mapping.
    pub(super) const fn bytes(served: bool) -> usize {
        if served { Clients::bytes(MAX_LIVE_CLIENTS, LIVE_READ_BYTES) } else { 0 }
    }

    /// No readers yet. Not `served`: and there never will be any.
    pub(super) fn new(place: Place, served: bool, core: &Destination) -> Live {
        let (limit, bytes) = if served { (MAX_LIVE_CLIENTS, LIVE_READ_BYTES) } else { (0, 0) };
        let refusal = watch::Sender::new(core.view().err());
        Live { clients: Clients::new(place, limit, bytes), reads: Vec::new(), budget: TURN_BYTES, refusal }
    }

    /// Why clients are refused, now and from now on.
    pub(super) fn refusal(&self) -> watch::Receiver<Option<Unreadable>> {
        self.refusal.subscribe()
    }

    /// Connections.
    pub(super) fn count(&self) -> usize {
        self.clients.count()
    }

    /// Ends all connections, for an engine that ends.
    pub(super) fn shut_down(&self) {
        self.clients.shut_down();
    }
}

impl Serve for Engine {
    type Token = Token;

    fn receiving(index: u32) -> Token {
        Token::ClientReceive(index)
    }

    fn sending(index: u32) -> Token {
        Token::ClientSend(index)
    }

    fn parts(&mut self) -> Parts<'_, Token> {
        let Engine { live, ring, memory, counters, .. } = self;
        Parts { clients: &mut live.clients, ring, memory, counters }
    }

    fn take_command(&mut self, index: u32, client: &mut Client, cookie: u64, command: Command) -> bool {
        let volume = client.negotiated.export as u16;
        match command {
            Command::Read { offset, length } => {
                if self.live.budget == 0 {
                    return false;
                }
                let Some(ticket) = self.live.clients.take_read(index, client, cookie, offset, length) else {
                    return false;
                };
                self.live.budget = self.live.budget.saturating_sub(u64::from(length));
                self.begin_live(ticket, volume, 1);
            }
            // There is nothing that could be lost.
            Command::Flush | Command::Cache { .. } => client.reply(cookie, None, false),
            Command::BlockStatus { offset, length, req_one } => {
                let mut segments = std::mem::take(&mut self.segments);
                segments.clear();
                // Fills that are being applied are in memory; so what is asked of the image doesn't change.
                match self.core.read(volume, offset..offset + u64::from(length), &mut segments) {
                    Ok(_) => {
                        let disk = &self.images[usize::from(volume)].disk;
                        client.reply_long(block_status(cookie, &segments, disk, req_one));
                    }
                    Err(_) => self.let_die(index, client),
                }
                self.segments = segments;
            }
            Command::Disconnect => client.leaving = true,
            // The check of requests doesn't let them through.
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } => {
                client.reply(cookie, Some(Errno::Perm), false);
            }
        }
        true
    }

    fn take_payload(&mut self, _: &mut Client) -> Progress {
        Progress::NeedBytes
    }

    fn cut_off(&mut self, _: u32, _: Payload) {}
}

impl Engine {
    pub(super) fn serve_reader(&mut self, socket: OwnedFd, negotiated: Negotiated) {
        let Some(volume) = self.core.superblock().volumes.get(negotiated.export) else { return };
        let shape = ExportShape { size_bytes: volume.size_bytes, block_bytes: volume.block_bytes, read_only: true };
        if self.core.view().is_err() {
            return shut_down(&socket);
        }
        self.add_client(socket, negotiated, shape);
    }

    /// Reads a request's range from the newest view.
    fn begin_live(&mut self, ticket: Ticket, volume: u16, tries: u32) {
        let request = self.live.clients.requests.get(ticket);
        let (offset, end) = (request.offset, request.offset + u64::from(request.length));
        let places = std::mem::take(&mut request.pieces);
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        match self.core.read(volume, offset..end, &mut segments) {
            // The connection is closed in this turn.
            Err(_) => request.error = Some(Errno::Io),
            Ok(view) => {
                let mut ranges = Vec::new();
                let mut parts = places.iter().copied();
                let (mut place, mut left) = parts.next().unwrap_or((Place(0), 0));
                let mut pieces = std::mem::take(&mut self.pieces);
                for segment in &segments {
                    pieces.clear();
                    let mut at = 0;
                    while at < segment.length {
                        if left == 0 {
                            (place, left) = parts.next().unwrap_or((Place(0), 0));
                        }
                        let bytes = left.min(segment.length - at);
                        match segment.found {
                            // SAFETY: what is stored in a half isn't written over while the core names it, which it did just
                            // now; the target is this request's memory, and the reads of its other parts go elsewhere.
                            Found::Memory(from) => unsafe {
                                self.memory.copy(Place(from.0 + at), place, bytes as usize);
                            },
                            // SAFETY: as above.
                            Found::Zeros => unsafe { self.memory.bytes_mut(place, bytes as usize) }.fill(0),
                            Found::Device => pieces.push((place, bytes)),
                        }
                        (at, left, place.0) = (at + bytes, left - bytes, place.0 + bytes);
                    }
                    if segment.found == Found::Device {
                        ranges.push(segment.offset..segment.offset + segment.length);
                        request.outstanding += 1;
                        let file = self.images[usize::from(volume)].disk.target();
                        self.ring.read(Token::LiveRead(ticket), file, segment.offset, &pieces);
                    }
                }
                self.pieces = pieces;
                let number = ticket.0 as usize;
                if self.live.reads.len() <= number {
                    self.live.reads.resize_with(number + 1, || None);
                }
                self.live.reads[number] = Some(Reading { view, volume, ranges, tries, failed: false });
            }
        }
        self.segments = segments;
        self.live.clients.requests.get(ticket).pieces = places;
        self.live_part_done(ticket);
    }

    /// The image has answered.
    pub(super) fn live_read(&mut self, ticket: Ticket, outcome: io::Result<usize>) {
        if let (Err(error), Some(reading)) = (outcome, &mut self.live.reads[ticket.0 as usize]) {
            let image = &self.images[usize::from(reading.volume)];
            tracing::error!("image {} can't be read for a client: {error}", image.disk.path().display());
            reading.failed = true;
        }
        self.live_part_done(ticket);
    }

    /// All is there: is it one state?
    fn live_part_done(&mut self, ticket: Ticket) {
        let requests = &mut self.live.clients.requests;
        if !requests.part_done(ticket) {
            return;
        }
        if let Some(reading) = self.live.reads.get_mut(ticket.0 as usize).and_then(Option::take) {
            let Reading { view, volume, ranges, tries, failed } = reading;
            if failed {
                requests.get(ticket).error = Some(Errno::Io);
            } else if !self.core.still_holds(view, volume, &ranges) {
                if tries < MAX_TRIES {
                    requests.get(ticket).outstanding = 1;
                    return self.begin_live(ticket, volume, tries + 1);
                }
                tracing::warn!("a client's read was given up: the image was written there {MAX_TRIES} times meanwhile");
                requests.get(ticket).error = Some(Errno::Io);
            }
        }
        self.live.clients.answer(ticket);
    }

    /// Serves readers, at the end of a turn.
    pub(super) fn pump_live(&mut self) {
        let refusal = self.core.view().err();
        self.live.refusal.send_if_modified(|said| std::mem::replace(said, refusal) != refusal);
        if refusal.is_some() {
            self.kill_clients();
        }
        self.open_gates();
        let freed = self.queue_replies();
        self.pump_clients();
        // What waits for the next turn shouldn't wait for an event. A full counter wakes as well.
        let spent = std::mem::replace(&mut self.live.budget, TURN_BYTES) == 0;
        if (freed || spent) && self.live.clients.any_gated() && self.wake.write(1).is_err() {
            tracing::debug!("the engine's wake-up is pending already");
        }
    }
}
