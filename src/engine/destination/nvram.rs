//! Frames go to the shared log, or straight to their journal file; and from the log to the journal files.

use super::super::command::Logged;
use super::super::source::{EngineError, failed};
use super::receive::{half_place, slot_head_place, zeros_place};
use super::{Engine, Token};
use crate::core::Place;
use crate::core::destination::{LogPlace, StoreOp};
use crate::core::recovery::logged::FREED;
use crate::format::nvram::SlotHead;
use crate::limits::BLOCK_BYTES;
use std::io;

impl Engine {
    pub(super) fn pump_stores(&mut self) {
        loop {
            if self.core.wants_slot()
                && let Some(slot) = self.share.as_ref().and_then(|share| share.take())
            {
                self.core.handle_slot(slot);
            }
            let Some(op) = self.core.next_store() else { return };
            let frames = (Place(half_place(self.half_bytes(), op.half).0 + op.start), op.end - op.start);
            match op.log {
                Some(place) => self.log(op, place, frames),
                None => {
                    self.counters.bypassed_writes += u64::from(self.share.is_some());
                    let file = self.files[op.half].target();
                    self.ring.write(Token::Store(op), file, op.start, &[frames], op.stable);
                }
            }
        }
    }

    fn log(&mut self, op: StoreOp, place: LogPlace, frames: (Place, u64)) {
        let Some(share) = &self.share else { return };
        let (head, target) = (share.log().head(), share.target());
        let slot = head.slot_offset(place.slot);
        let Some((fill, before)) = place.begins else {
            return self.ring.write(Token::Store(op), target, slot + place.at, &[frames], true);
        };
        let source = self.core.superblock().source;
        let block = SlotHead { log: head.id, source, fill, start: op.start, before }.encode();
        let at = slot_head_place(self.half_bytes(), self.slot_heads);
        self.slot_heads += 1;
        // SAFETY: at most half as many writes are under way as there are such places, and each is used in its turn.
        unsafe { self.memory.bytes_mut(at, BLOCK_BYTES) }.copy_from_slice(&*block);
        // One write: without the head the frames don't count, and without a frame nor does the head.
        self.ring.write(Token::Store(op), target, slot, &[(at, BLOCK_BYTES as u64), frames], true);
    }

    pub(super) fn pump_moves(&mut self) {
        while let Some(op) = self.core.next_move() {
            let frames = (Place(half_place(self.half_bytes(), op.half).0 + op.start), op.end - op.start);
            self.ring.write(Token::Move(op), self.files[op.half].target(), op.start, &[frames], false);
        }
    }

    pub(super) fn free_slot(&mut self, slot: u32) {
        let Some(share) = &self.share else { return };
        let at = share.log().head().slot_offset(slot) + FREED.start;
        let zeros = (zeros_place(self.half_bytes()), FREED.end - FREED.start);
        self.ring.write(Token::FreeSlot(slot), share.target(), at, &[zeros], true);
    }

    pub(super) fn slot_freed(&mut self, slot: u32, outcome: io::Result<usize>) -> Result<(), EngineError> {
        let Some(share) = &self.share else { return Ok(()) };
        outcome.map_err(|cause| failed("giving back room in the NVRAM log", share.log().disk(), cause))?;
        self.core.handle_slot_freed(slot);
        share.give(slot);
        Ok(())
    }

    /// The slot that nothing was written to goes back.
    pub(super) fn give_slot_back(&mut self) {
        if let (Some(share), Some(slot)) = (&self.share, self.core.take_slot_back()) {
            share.give(slot);
        }
    }

    pub(super) fn store_failed(&self, op: StoreOp, cause: io::Error) -> EngineError {
        match &self.share {
            Some(share) if op.log.is_some() => failed("the NVRAM log's write", share.log().disk(), cause),
            _ => failed("the journal file's write", &self.files[op.half], cause),
        }
    }

    /// For the status.
    pub(super) fn logged(&self) -> Option<Logged> {
        self.share.as_ref().map(|share| Logged {
            logged_bytes: self.core.logged_bytes(),
            own_bytes: share.log().own_bytes(),
            bypassed_writes: self.counters.bypassed_writes,
        })
    }

    fn half_bytes(&self) -> u64 {
        self.core.superblock().half_bytes
    }
}
