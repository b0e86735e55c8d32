//! The connection to the destination.

use super::{Engine, Token, shut_down};
use crate::core::Place;
use crate::core::grains::Grains;
use crate::core::source::Send;
use crate::engine::command::LinkState;
use crate::format::wire::{REPORT_BYTES, Report, Sum, Welcome};
use crate::limits::{BLOCK_BYTES, MAX_FRAME_PAYLOAD_BYTES, MAX_SUMS};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// What is received at once, in bytes: many reports, or one with as many checksums as there can be.
const RECEIVE_BYTES: usize = 8 << 10;
const _: () = assert!(RECEIVE_BYTES >= REPORT_BYTES + MAX_SUMS * size_of::<Sum>() + REPORT_BYTES);
/// Signals that one send may carry.
const BLOCKS: u64 = 4;
/// Bytes of the mapping that the connection uses.
pub(super) const PEER_BYTES: usize = RECEIVE_BYTES + BLOCKS as usize * BLOCK_BYTES;
/// Pieces that one send may gather before it is sent.
const MAX_PIECES: usize = 512;

/// A connection to the destination.
#[derive(Debug)]
pub(super) struct Peer {
    socket: OwnedFd,
    received: usize,
    receiving: bool,
    sending: bool,
    closed: bool,
}

impl Engine {
    /// Takes the next connection once the last one's operations are over.
    pub(super) fn admit_peer(&mut self) {
        if self.peer.as_ref().is_some_and(|peer| peer.closed && !peer.receiving && !peer.sending) {
            self.peer = None;
        }
        if let Some(peer) = &self.peer {
            if !peer.closed && self.next_peer.is_some() {
                self.close_peer("a newer connection took over");
            }
            return;
        }
        if !self.core.ready_to_meet() {
            return;
        }
        let Some((socket, welcome, lacks)) = self.next_peer.take() else { return };
        self.welcome(socket, &welcome, lacks.as_deref());
    }

    fn welcome(&mut self, socket: OwnedFd, welcome: &Welcome, lacks: Option<&Grains>) {
        self.peer = Some(Peer { socket, received: 0, receiving: false, sending: false, closed: false });
        self.link.send_replace(LinkState::Up);
        self.report.met(welcome);
        self.core.handle_welcome_of(welcome, lacks, &mut self.effects);
        self.receive_reports();
    }

    pub(super) fn close_peer(&mut self, reason: &str) {
        self.core.handle_link_down(&mut self.effects);
        self.drop_questions();
        if let Some(peer) = &mut self.peer
            && !peer.closed
        {
            peer.closed = true;
            shut_down(&peer.socket);
            self.link.send_replace(LinkState::Down(reason.to_owned()));
        }
    }

    fn receive_reports(&mut self) {
        let Some(peer) = self.peer.as_mut().filter(|peer| !peer.closed && !peer.receiving) else { return };
        peer.receiving = true;
        let place = Place(self.peer_memory.0 + peer.received as u64);
        let room = (RECEIVE_BYTES - peer.received) as u64;
        self.ring.receive(Token::PeerReceive, peer.socket.as_raw_fd(), &[(place, room)]);
    }

    pub(super) fn peer_received(&mut self, outcome: io::Result<usize>) {
        let Some(peer) = &mut self.peer else { return };
        peer.receiving = false;
        match outcome {
            Ok(0) => return self.close_peer("the destination closed the connection"),
            Err(error) => return self.close_peer(&format!("receiving from the destination failed: {error}")),
            Ok(bytes) => peer.received += bytes,
        }
        if peer.closed {
            return;
        }
        let (total, mut at) = (peer.received, 0);
        while total - at >= REPORT_BYTES {
            let mut bytes = [0; REPORT_BYTES];
            // SAFETY: these bytes are received, and the next receive starts after this loop.
            bytes.copy_from_slice(unsafe { self.memory.bytes(Place(self.peer_memory.0 + at as u64), REPORT_BYTES) });
            let report = match Report::decode(&bytes) {
                Ok(report) => report,
                Err(error) => return self.close_peer(&format!("the destination sent a damaged report: {error}")),
            };
            if let Report::Sums { id, count } = report {
                let length = count * size_of::<Sum>();
                if total - at < REPORT_BYTES + length {
                    break;
                }
                // SAFETY: as above.
                let sums = unsafe { self.memory.bytes(Place(self.peer_memory.0 + (at + REPORT_BYTES) as u64), length) };
                let sums = sums.chunks_exact(size_of::<Sum>()).filter_map(|sum| sum.first_chunk().copied()).collect();
                if let Err(reason) = self.copy_answered(id, sums) {
                    return self.close_peer(&reason);
                }
                at += length;
            }
            at += REPORT_BYTES;
            self.core.handle_report(report, &mut self.effects);
        }
        // SAFETY: as above; the rest of a report moves to the front.
        unsafe { self.memory.copy(Place(self.peer_memory.0 + at as u64), self.peer_memory, total - at) };
        if let Some(peer) = &mut self.peer {
            peer.received = total - at;
        }
        self.receive_reports();
    }

    /// Sends what the core has to send, if nothing is being sent.
    pub(super) fn pump_peer(&mut self) {
        let Some(peer) = self.peer.as_mut().filter(|peer| !peer.closed && !peer.sending) else { return };
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        let (mut bytes, mut blocks) = (0, 0);
        while bytes < MAX_FRAME_PAYLOAD_BYTES && pieces.len() < MAX_PIECES && blocks < BLOCKS {
            match self.core.next_to_send() {
                None => break,
                Some(Send::Frame(id)) => {
                    let before = pieces.len();
                    self.core.frame_pieces(id, &mut pieces);
                    bytes +=
                        pieces[before.saturating_sub(1)..].iter().map(|(_, length)| *length as usize).sum::<usize>();
                }
                Some(Send::Block(block)) => {
                    let place = Place(self.peer_memory.0 + RECEIVE_BYTES as u64 + blocks * BLOCK_BYTES as u64);
                    // SAFETY: these blocks are only used by sends, and none is under way.
                    unsafe { self.memory.bytes_mut(place, BLOCK_BYTES) }.copy_from_slice(&*block);
                    pieces.push((place, BLOCK_BYTES as u64));
                    blocks += 1;
                }
            }
        }
        if !pieces.is_empty() {
            peer.sending = true;
            self.ring.send(Token::PeerSend, peer.socket.as_raw_fd(), &pieces);
        }
        self.pieces = pieces;
    }

    pub(super) fn peer_sent(&mut self, outcome: io::Result<usize>) {
        if let Some(peer) = &mut self.peer {
            peer.sending = false;
        }
        if let Err(error) = outcome {
            self.close_peer(&format!("sending to the destination failed: {error}"));
        }
    }
}
