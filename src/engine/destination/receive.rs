//! The connection from the source.
//!
//! A frame's place in memory is its place in the half, so that one write stores whole runs of frames. Bytes are
//! received right behind the last ones; only what arrives while no half is open, and what follows a signal, is
//! moved to its place once.

use super::warrant::{HeardAt, now};
use super::{Engine, Token};
use crate::core::Place;
use crate::core::destination::{MAX_STORES, State};
use crate::core::recovery;
use crate::format::checksum;
use crate::format::frame::{self, Header};
use crate::format::ids::Mark;
use crate::format::superblock::Superblock;
use crate::format::wire::{REPORT_BYTES, Report, SIGNAL, Signal, Sum, Verdict, Welcome};
use crate::limits::{
    BLOCK_BYTES, CHUNK_BYTES, COPY_WINDOW_BYTES, DRAIN_BYTES, MAX_COPY_WINDOWS, MAX_FRAME_PAYLOAD_BYTES, MAX_SUMS,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// What may wait to be sent to a source, in bytes: a welcome, the answers to all questions, and some reports. Acknowledgements take the place of older
/// ones, so only a source that repeats its signals and reads nothing comes near.
const MAX_OUTGOING_BYTES: usize = 64 << 10;
const _: () =
    assert!(MAX_OUTGOING_BYTES > BLOCK_BYTES + MAX_COPY_WINDOWS * (REPORT_BYTES + MAX_SUMS * size_of::<Sum>()));

/// Room behind each half: a receive may go beyond the half's end.
const SLACK_BYTES: u64 = 2 << 20;
/// Most bytes of one receive.
const RECEIVE_BYTES: u64 = 1 << 20;
/// Bytes of one send.
const SEND_BYTES: usize = 16 << 10;

const SLOT_HEADS: usize = 2 * MAX_STORES;

const _: () = assert!(SLACK_BYTES > RECEIVE_BYTES + (MAX_FRAME_PAYLOAD_BYTES / 2) as u64 + BLOCK_BYTES as u64);

/// Where a half's bytes are in memory.
pub(super) fn half_place(half_bytes: u64, half: usize) -> Place {
    Place(half as u64 * (half_bytes + SLACK_BYTES))
}

/// Where bytes go while no half is open.
fn lobby_place(half_bytes: u64) -> Place {
    half_place(half_bytes, 2)
}

/// Where the state's block is.
pub(super) fn state_place(half_bytes: u64) -> Place {
    Place(lobby_place(half_bytes).0 + SLACK_BYTES)
}

fn reports_place(half_bytes: u64) -> Place {
    Place(state_place(half_bytes).0 + BLOCK_BYTES as u64)
}

/// A chunk of zeros that is never written.
pub(super) fn zeros_place(half_bytes: u64) -> Place {
    Place(reports_place(half_bytes).0 + SEND_BYTES as u64)
}

/// Where a restart's block is, on its way to the staging log.
pub(super) fn restart_place(half_bytes: u64) -> Place {
    Place(zeros_place(half_bytes).0 + CHUNK_BYTES as u64)
}

/// Where the staging log is read into.
pub(super) fn drain_place(half_bytes: u64) -> Place {
    Place(restart_place(half_bytes).0 + BLOCK_BYTES as u64)
}

/// Where the range of a question is put together; there is one place for each that may be under way.
pub(super) fn sums_place(half_bytes: u64, number: usize) -> Place {
    Place(drain_place(half_bytes).0 + DRAIN_BYTES + number as u64 * COPY_WINDOW_BYTES)
}

/// Where the first block of a slot of the shared log is put together, each time at the next of so many places: more writes
/// are never under way.
pub(super) fn slot_head_place(half_bytes: u64, number: usize) -> Place {
    Place(sums_place(half_bytes, MAX_COPY_WINDOWS).0 + (number % SLOT_HEADS * BLOCK_BYTES) as u64)
}

/// Bytes of the mapping.
pub(super) fn memory_bytes(half_bytes: u64) -> usize {
    slot_head_place(half_bytes, 0).0 as usize + SLOT_HEADS * BLOCK_BYTES
}

/// A connected source.
#[derive(Debug)]
pub(super) struct Peer {
    socket: OwnedFd,
    address: String,
    /// Unparsed bytes: where they are, and how many.
    start: Place,
    bytes: u64,
    /// The end of the memory that the unparsed bytes may grow into.
    limit: u64,
    receiving: bool,
    sending: bool,
    closed: bool,
    /// To be sent: blocks and reports, already encoded.
    outgoing: Vec<u8>,
    /// The header that was checked already, while its payload arrives.
    admitted: Option<Header>,
}

impl Engine {
    pub(super) fn peer_address(&self) -> Option<String> {
        self.peer.as_ref().filter(|peer| !peer.closed).map(|peer| peer.address.clone())
    }

    /// Lets go of a closed connection, and welcomes the next.
    pub(super) fn admit_peer(&mut self) {
        if self.peer.as_ref().is_some_and(|peer| peer.closed && !peer.receiving && !peer.sending) {
            self.peer = None;
        }
        let Some((_, hello, address)) = &self.next_peer else { return };
        if self.promotes() && !self.promote_begun {
            // It is answered when the epoch is raised: fenced.
            return;
        }
        if self.peer.as_ref().is_some_and(|peer| !peer.closed) && hello.source == self.core.superblock().source {
            tracing::info!("the source connected anew from {address}");
            return self.close_peer("the source connected anew");
        }
        if self.peer.is_some() {
            return;
        }
        match self.core.welcome(hello) {
            // What the last connection left under way ends soon; the turn after that asks again.
            Err(_) => {}
            Ok(welcome) => {
                if let Some((socket, hello, address)) = self.next_peer.take() {
                    self.lacking_since_unix_s = hello.lacking_since_unix_s;
                    self.welcome(socket, address, &welcome);
                }
            }
        }
    }

    fn welcome(&mut self, socket: OwnedFd, address: String, welcome: &Welcome) {
        let half_bytes = self.core.superblock().half_bytes;
        let start = lobby_place(half_bytes);
        let limit = start.0 + SLACK_BYTES;
        self.peer = Some(Peer {
            socket,
            address,
            start,
            bytes: 0,
            limit,
            receiving: false,
            sending: false,
            closed: false,
            outgoing: welcome.encode().to_vec(),
            admitted: None,
        });
        if welcome.verdict == Verdict::Welcome {
            self.core.handle_connected(now());
            self.reason = None;
            self.receive();
        } else {
            tracing::warn!("a source was refused: {}", welcome.reason);
            self.reason = Some(welcome.reason.clone());
        }
    }

    /// Closes the connection; what is under way ends soon.
    pub(super) fn close_peer(&mut self, reason: &str) {
        if let Some(peer) = self.peer.as_mut().filter(|peer| !peer.closed) {
            peer.closed = true;
            // ENOTCONN: the other side was faster.
            let _ = nix::sys::socket::shutdown(peer.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
            if self.core.connected() {
                tracing::warn!("lost the source at {}: {reason}", peer.address);
                self.core.handle_disconnected();
            }
            self.reason = Some(reason.to_owned());
        }
    }

    /// A promote was asked for: the source is told, and not listened to any more.
    pub(super) fn fence_peer(&mut self) {
        if self.peer.as_ref().is_some_and(|peer| !peer.closed && !peer.sending) {
            if self.core.connected() {
                self.core.handle_disconnected();
                self.report(Report::Fenced(self.core.superblock().epoch.next()));
                self.send_reports();
            } else {
                self.close_peer("a promote began");
            }
        }
    }

    fn receive(&mut self) {
        let superblock = self.core.superblock();
        let half_bytes = superblock.half_bytes;
        let Some(peer) = self.peer.as_mut().filter(|peer| !peer.closed && !peer.receiving) else { return };
        if peer.bytes == 0 {
            let open = self.core.halves().iter().position(|half| half.state == State::Open);
            (peer.start, peer.limit) = match open {
                Some(half) => {
                    let place = half_place(half_bytes, half);
                    let received = self.core.halves()[half].received;
                    (Place(place.0 + received), place.0 + half_bytes + SLACK_BYTES)
                }
                None => (lobby_place(half_bytes), lobby_place(half_bytes).0 + SLACK_BYTES),
            };
        }
        let at = peer.start.0 + peer.bytes;
        let room = (peer.limit - at).min(RECEIVE_BYTES);
        peer.receiving = true;
        self.ring.receive(Token::PeerReceive, peer.socket.as_raw_fd(), &[(Place(at), room)]);
    }

    pub(super) fn peer_received(&mut self, outcome: io::Result<usize>) {
        let Some(peer) = &mut self.peer else { return };
        peer.receiving = false;
        if peer.closed {
            return;
        }
        match outcome {
            Ok(0) => return self.close_peer("the source closed the connection"),
            Err(error) => return self.close_peer(&format!("receiving failed: {error}")),
            Ok(bytes) => peer.bytes += bytes as u64,
        }
        self.heard_at = Some(HeardAt::now());
        if !self.core.connected() {
            // Being fenced: nothing of it counts any more.
            return self.close_peer("fenced by a promote");
        }
        loop {
            match self.parse_one() {
                Ok(true) => {}
                Ok(false) => break,
                Err(reason) => return self.close_peer(&reason),
            }
        }
        self.receive();
    }

    /// Takes one signal or frame; false: more must arrive. An error closes the connection.
    fn parse_one(&mut self) -> Result<bool, String> {
        let Some(peer) = &mut self.peer else { return Ok(false) };
        if peer.bytes < BLOCK_BYTES as u64 {
            return Ok(false);
        }
        let admitted = match peer.admitted {
            Some(header) => header,
            None => {
                let mut block = [0; BLOCK_BYTES];
                // SAFETY: these bytes are received; receives go behind them.
                block.copy_from_slice(unsafe { self.memory.bytes(peer.start, BLOCK_BYTES) });
                if block[..8] == SIGNAL {
                    let signal = Signal::decode(&block).map_err(|error| format!("a damaged signal: {error}"))?;
                    peer.start.0 += BLOCK_BYTES as u64;
                    peer.bytes -= BLOCK_BYTES as u64;
                    self.handle_signal(signal)?;
                    return Ok(true);
                }
                let header = Header::parse(&block).map_err(|error| format!("a damaged frame header: {error}"))?;
                self.core.admit(&header)?;
                self.put_in_place(&header);
                header
            }
        };
        let Some(peer) = &mut self.peer else { return Ok(false) };
        if peer.bytes < admitted.frame_bytes() {
            peer.admitted = Some(admitted);
            return Ok(false);
        }
        peer.admitted = None;
        let (start, payload) = (peer.start, Place(peer.start.0 + BLOCK_BYTES as u64));
        peer.start.0 += admitted.frame_bytes();
        peer.bytes -= admitted.frame_bytes();
        // SAFETY: the frame is received whole; receives go behind it.
        let bytes = unsafe { self.memory.bytes(start, admitted.frame_bytes() as usize) };
        let Some((block, contents)) = bytes.split_first_chunk::<BLOCK_BYTES>() else { return Ok(false) };
        frame::verify_payload(&admitted, block, |at| checksum::crc32c(&contents[at]))
            .map_err(|error| error.to_string())?;
        self.counters.written_bytes += u64::from(admitted.payload_bytes);
        let records = recovery::records(&admitted, block, payload);
        self.core.handle_frame(&admitted, checksum::digest(block), records)?;
        Ok(true)
    }

    /// Moves the unparsed bytes to where the frame that they begin with belongs.
    fn put_in_place(&mut self, header: &Header) {
        let half_bytes = self.core.superblock().half_bytes;
        let place = half_place(half_bytes, header.fill.half());
        let target = Place(place.0 + header.position);
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.start != target) else { return };
        // SAFETY: the target is behind all that the half holds and before its slack's end (a receive's bytes always
        // fit there), and no receive is under way while bytes are parsed.
        unsafe { self.memory.copy(peer.start, target, peer.bytes as usize) };
        (peer.start, peer.limit) = (target, place.0 + half_bytes + SLACK_BYTES);
    }

    fn handle_signal(&mut self, signal: Signal) -> Result<(), String> {
        let (memory, source) = (self.memory.clone(), self.core.superblock().source);
        let half_bytes = self.core.superblock().half_bytes;
        let mut rescan = |before: Mark, until: Mark| {
            // SAFETY: called before anything new is received: the halves' bytes are stable.
            let halves = [0, 1].map(|half| unsafe { memory.bytes(half_place(half_bytes, half), half_bytes as usize) });
            recovery::rescan(&halves, source, before, until, half_place(half_bytes, until.fill.half()))
        };
        self.core.handle_signal(now(), signal, &mut rescan, &mut self.effects)
    }

    pub(super) fn report(&mut self, report: Report) {
        if let Some(peer) = self.peer.as_mut().filter(|peer| !peer.closed) {
            // A newer acknowledgement says all that an unsent one says; so a source that doesn't read can't make this grow.
            if let (Report::Stored(_), Some(last)) = (report, peer.outgoing.last_chunk::<REPORT_BYTES>())
                && matches!(Report::decode(last), Ok(Report::Stored(_)))
            {
                peer.outgoing.truncate(peer.outgoing.len() - REPORT_BYTES);
            }
            peer.outgoing.extend_from_slice(&report.encode());
            self.limit_outgoing();
        }
    }

    /// Answers a question.
    pub(super) fn report_sums(&mut self, id: u64, sums: &[Sum]) {
        if let Some(peer) = self.peer.as_mut().filter(|peer| !peer.closed) {
            peer.outgoing.extend_from_slice(&Report::Sums { id, count: sums.len() }.encode());
            peer.outgoing.extend_from_slice(sums.as_flattened());
            self.limit_outgoing();
        }
    }

    fn limit_outgoing(&mut self) {
        if self.peer.as_ref().is_some_and(|peer| peer.outgoing.len() > MAX_OUTGOING_BYTES) {
            self.close_peer("the source doesn't read what it is told");
        }
    }

    pub(super) fn send_reports(&mut self) {
        let place = reports_place(self.core.superblock().half_bytes);
        let Some(peer) = self.peer.as_mut().filter(|peer| !peer.closed && !peer.sending) else { return };
        let bytes = peer.outgoing.len().min(SEND_BYTES);
        if bytes == 0 {
            return;
        }
        // SAFETY: these bytes are only used by sends, and none is under way.
        unsafe { self.memory.bytes_mut(place, bytes) }.copy_from_slice(&peer.outgoing[..bytes]);
        peer.outgoing.drain(..bytes);
        peer.sending = true;
        self.ring.send(Token::PeerSend, peer.socket.as_raw_fd(), &[(place, bytes as u64)]);
    }

    pub(super) fn peer_sent(&mut self, outcome: io::Result<usize>) {
        let Some(peer) = &mut self.peer else { return };
        peer.sending = false;
        let refused = peer.outgoing.is_empty() && !self.core.connected();
        match outcome {
            Err(error) => self.close_peer(&format!("sending failed: {error}")),
            // A refusal, or the word that it is fenced, was all there was to say.
            Ok(_) if refused => {
                let reason = self.reason.clone().unwrap_or_else(|| "fenced by a promote".into());
                self.close_peer(&reason);
            }
            Ok(_) => {}
        }
    }
}

/// Whether a hello's volumes fit the images; says what doesn't.
pub fn check_images(hello: &Superblock, images: &[super::Image]) -> Result<(), String> {
    let names = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect::<Vec<_>>().join(", ");
    let theirs = names(&mut hello.volumes.iter().map(|volume| &volume.name));
    let ours = names(&mut images.iter().map(|image| &image.name));
    if theirs != ours {
        return Err(format!(
            "source {} has the volumes {theirs}, this destination is configured for {ours} (in this order)",
            hello.name
        ));
    }
    for (volume, image) in hello.volumes.iter().zip(images) {
        let path = image.disk.path().display();
        if image.disk.size_bytes < volume.size_bytes {
            return Err(format!(
                "image {path} has {} bytes, smaller than volume {} with {} bytes: make it at least as large",
                image.disk.size_bytes, volume.name, volume.size_bytes
            ));
        }
        if image.disk.block_bytes > volume.block_bytes {
            return Err(format!(
                "image {path} can only be written in units of {} bytes, volume {} in units of {}",
                image.disk.block_bytes, volume.name, volume.block_bytes
            ));
        }
    }
    Ok(())
}
