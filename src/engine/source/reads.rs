//! Reads: what the index knows comes from memory at once, the rest from the volume.

use super::{Engine, Token};
use crate::core::Place;
use crate::core::half::Ticket;
use crate::core::index::Found;
use crate::engine::clients::Serve as _;
use crate::engine::extents::block_status;
use crate::format::nbd::Errno;
use std::io;

impl Engine {
    /// Starts a read, which has its memory.
    pub(super) fn start_read(&mut self, ticket: Ticket, volume: u16) {
        let mut at = self.clients.requests.get(ticket).offset;
        for piece in 0..self.clients.requests.get(ticket).pieces.len() {
            let (place, bytes) = self.clients.requests.get(ticket).pieces[piece];
            self.read_into(Token::Read(ticket, volume), volume, at, place, bytes, |engine| {
                engine.clients.requests.get(ticket).outstanding += 1;
            });
            at += bytes;
        }
        self.part_answered(ticket);
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
                    let file = self.volumes[usize::from(volume)].target();
                    self.ring.read(token, file, segment.offset, &[(to, segment.length)]);
                }
            }
        }
        self.segments = segments;
    }

    pub(super) fn read_done(&mut self, ticket: Ticket, volume: u16, outcome: io::Result<usize>) {
        if let Err(error) = outcome {
            let request = self.clients.requests.get(ticket);
            let path = self.volumes[usize::from(volume)].path().display();
            let (bytes, at) = (request.length, request.offset);
            tracing::error!("reading {bytes} bytes at byte {at} of the volume ({path}) failed: {error}");
            request.error = Some(Errno::Io);
        }
        self.part_answered(ticket);
    }

    /// Answers BLOCK_STATUS: holes of the device and unflushed zeros are zeros, the rest is data.
    pub(super) fn block_status(&mut self, volume: u16, cookie: u64, offset: u64, length: u32, one: bool) -> Vec<u8> {
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        self.core.read(volume, offset..offset + u64::from(length), &mut segments);
        let reply = block_status(cookie, &segments, &self.volumes[usize::from(volume)], one);
        self.segments = segments;
        reply
    }
}
