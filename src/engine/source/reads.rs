//! Reads: what the index knows comes from memory at once, the rest from the volume.

use super::{Engine, Token};
use crate::core::Place;
use crate::core::half::Ticket;
use crate::core::index::Found;
use crate::engine::disk::Extent;
use crate::engine::request::Kind;
use crate::format::nbd::{Errno, STATE_HOLE, STATE_ZERO, push_block_status};
use std::io;

/// Extents in one BLOCK_STATUS reply.
const MAX_EXTENTS: usize = 512;

impl Engine {
    /// Starts a read; false while there is no memory for its reply.
    pub(super) fn start_read(&mut self, index: u32, volume: u16, cookie: u64, offset: u64, length: u32) -> bool {
        // A whole request's memory at once: two half-served ones could wait for each other.
        let chunks = (length as usize).div_ceil(crate::limits::CHUNK_BYTES) + 1;
        if self.read_pool.free_chunks() < chunks {
            return false;
        }
        let ticket = self.requests.add(index, cookie, Kind::Read, offset, length);
        let mut left = length as usize;
        let mut at = offset;
        while left > 0 {
            let Some((place, bytes)) = self.read_pool.take(left) else { break };
            self.requests.get(ticket).pieces.push((place, bytes as u64));
            self.read_into(Token::Read(ticket, volume), volume, at, place, bytes as u64, |engine| {
                engine.requests.get(ticket).outstanding += 1;
            });
            at += bytes as u64;
            left -= bytes;
        }
        if self.requests.part_done(ticket) {
            self.answer(ticket);
        }
        true
    }

    /// Fills memory with the newest committed bytes; `started` is called for each device read under way.
    pub(super) fn read_into(
        &mut self,
        token: Token,
        volume: u16,
        offset: u64,
        place: Place,
        bytes: u64,
        mut started: impl FnMut(&mut Engine),
    ) {
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        self.core.read(volume, offset..offset + bytes, &mut segments);
        for segment in &segments {
            let to = Place(place.0 + segment.offset - offset);
            let length = segment.length as usize;
            match segment.found {
                // SAFETY: committed records don't change, and the target is this request's memory; the device reads of
                // its other parts go elsewhere.
                Found::Memory(from) => unsafe { self.memory.copy(from, to, length) },
                // SAFETY: as above.
                Found::Zeros => unsafe { self.memory.bytes_mut(to, length) }.fill(0),
                Found::Device => {
                    started(self);
                    let fd = self.volumes[usize::from(volume)].fd();
                    self.ring.read(token, fd, segment.offset, &[(to, segment.length)]);
                }
            }
        }
        self.segments = segments;
    }

    pub(super) fn read_done(&mut self, ticket: Ticket, volume: u16, outcome: io::Result<usize>) {
        if let Err(error) = outcome {
            let request = self.requests.get(ticket);
            let path = self.volumes[usize::from(volume)].path().display();
            let (bytes, at) = (request.length, request.offset);
            tracing::error!("reading {bytes} bytes at byte {at} of the volume ({path}) failed: {error}");
            request.error = Some(Errno::Io);
        }
        if self.requests.part_done(ticket) {
            self.answer(ticket);
        }
    }

    /// Answers BLOCK_STATUS: holes of the device and unflushed zeros are zeros, the rest is data.
    pub(super) fn block_status(&mut self, volume: u16, cookie: u64, offset: u64, length: u32, one: bool) -> Vec<u8> {
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        self.core.read(volume, offset..offset + u64::from(length), &mut segments);
        let mut extents: Vec<(u32, u32)> = Vec::new();
        let mut add = |bytes: u64, state: u32| match extents.last_mut() {
            Some((length, last)) if *last == state => *length += bytes as u32,
            _ => extents.push((bytes as u32, state)),
        };
        let zero = STATE_HOLE | STATE_ZERO;
        // Asking the file system takes a moment for each extent: no more are looked at than go into the reply.
        let mut budget = if one { 2 } else { MAX_EXTENTS };
        for segment in &segments {
            budget = budget.saturating_sub(1);
            if budget == 0 {
                break;
            }
            match segment.found {
                Found::Memory(_) => add(segment.length, 0),
                Found::Zeros => add(segment.length, zero),
                Found::Device => {
                    let mut at = segment.offset;
                    let end = segment.offset + segment.length;
                    while at < end && budget > 0 {
                        budget -= 1;
                        let (bytes, state) = match self.volumes[usize::from(volume)].extent(at, end - at) {
                            Extent::Hole(bytes) => (bytes, zero),
                            Extent::Data(bytes) => (bytes, 0),
                        };
                        add(bytes, state);
                        at += bytes;
                    }
                }
            }
        }
        self.segments = segments;
        extents.truncate(if one { 1 } else { MAX_EXTENTS });
        let mut reply = Vec::new();
        push_block_status(&mut reply, cookie, &extents);
        reply
    }
}
