//! What of a source is in the shared log on non-volatile memory, and on its way from there to the journal files.
//!
//! A frame in the log counts as stored. The log is divided into slots, each of which has the frames of one source, one
//! behind the other. Behind the answers each slot that is full, or that somebody waits for, is moved: its frames are written
//! to the journal file, from memory; the file is synced; the slot is made void, durably, and given back. A crash anywhere
//! in between is repaired by doing it again, for the frames have their places in the journal files already.
//!
//! Whatever looks at the journal files as a whole waits until nothing of a half is in the log only: applies, appends to the
//! staging log, promotes, and each welcome. So what a source drops when it comes back is in the files alone, and what counts
//! at a start is what the files hold with all slots laid over them.

use super::{Destination, Effect, State};
use crate::canary::{Bug, sings};
use crate::format::ids::{Fill, Mark};
use crate::limits::BLOCK_BYTES;
use std::collections::VecDeque;

/// Slots whose frames are in a journal file, and that are worth a sync of it.
const SYNC_SLOTS: usize = 4;
/// Moves under way at once.
const MOVES: usize = 4;

/// Where a write goes in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    /// The slot.
    pub slot: u32,
    /// Where the frames go in it, in bytes.
    pub at: u64,
    /// The first write to a slot brings the block that says whose frames these are: their fill, and the boundary before.
    pub begins: Option<(Fill, Mark)>,
}

/// Frames go from memory to their journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveOp {
    /// The slot that holds them.
    pub slot: u32,
    /// The half, and thus the file.
    pub half: usize,
    /// Where they start in the half, in bytes.
    pub start: u64,
    /// Where they end.
    pub end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// More frames may come.
    Filling,
    /// It takes no more.
    Full,
    /// Its frames are on their way to the journal file.
    Moving,
    /// They are there, but not stable.
    Moved,
    /// The file is being synced.
    Syncing,
    /// It is being made void.
    Freeing,
}

#[derive(Debug)]
struct Slot {
    number: u32,
    half: usize,
    start: u64,
    end: u64,
    stage: Stage,
}

/// A source's part of the log.
#[derive(Debug)]
pub(super) struct Nvram {
    slot_bytes: u64,
    /// A slot that was given, for the frames that come next.
    spare: Option<u32>,
    slots: VecDeque<Slot>,
    /// Syncs of journal files under way.
    syncing: u32,
}

impl Nvram {
    pub(super) fn new(slot_bytes: u64) -> Nvram {
        Nvram { slot_bytes, spare: None, slots: VecDeque::new(), syncing: 0 }
    }

    fn filling(&mut self) -> Option<&mut Slot> {
        self.slots.back_mut().filter(|slot| slot.stage == Stage::Filling)
    }

    /// Bytes of frames that may be written next, from this place of a half on, of which the first has so many; `None`: the
    /// log has no room for it.
    pub(super) fn room(&mut self, half: usize, at: u64, first_bytes: u64) -> Option<u64> {
        let capacity = self.slot_bytes - BLOCK_BYTES as u64;
        if let Some(slot) = self.filling() {
            let left = capacity - (slot.end - slot.start);
            if slot.half == half && slot.end == at && first_bytes <= left {
                return Some(left);
            }
            slot.stage = Stage::Full;
        }
        (self.spare.is_some() && first_bytes <= capacity).then_some(capacity)
    }

    /// Where frames go for which there is room; `fill` and `before` are theirs.
    pub(super) fn place(&mut self, half: usize, start: u64, end: u64, fill: Fill, before: Mark) -> Option<LogPlace> {
        if let Some(slot) = self.filling() {
            let at = BLOCK_BYTES as u64 + (slot.end - slot.start);
            slot.end = end;
            return Some(LogPlace { slot: slot.number, at, begins: None });
        }
        let number = self.spare.take()?;
        self.slots.push_back(Slot { number, half, start, end, stage: Stage::Filling });
        Some(LogPlace { slot: number, at: BLOCK_BYTES as u64, begins: Some((fill, before)) })
    }

    /// Whether nothing of this source is in the log.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

impl Destination {
    /// Frames go to a shared log first, whose slots have so many bytes. It holds nothing of this source: a start has put that
    /// into the journal files.
    pub fn with_nvram(self, slot_bytes: u64) -> Destination {
        Destination { nvram: Some(Nvram::new(slot_bytes)), ..self }
    }

    /// Whether another slot is wanted: give one by [`Destination::handle_slot`], if there is one.
    pub fn wants_slot(&self) -> bool {
        self.connected && self.nvram.as_ref().is_some_and(|nvram| nvram.spare.is_none())
    }

    /// A free slot is this source's from now on.
    pub fn handle_slot(&mut self, slot: u32) {
        if let Some(nvram) = &mut self.nvram {
            nvram.spare = Some(slot);
        }
    }

    /// The slot that was given and not used, for whoever comes next.
    pub fn take_slot_back(&mut self) -> Option<u32> {
        self.nvram.as_mut()?.spare.take()
    }

    /// Bytes of frames that are in the log, not yet or also in a journal file.
    pub fn logged_bytes(&self) -> u64 {
        self.nvram.iter().flat_map(|nvram| &nvram.slots).map(|slot| slot.end - slot.start).sum()
    }

    /// The next move of a slot's frames to their journal file.
    pub fn next_move(&mut self) -> Option<MoveOp> {
        let nvram = self.nvram.as_mut()?;
        if nvram.slots.iter().filter(|slot| slot.stage == Stage::Moving).count() >= MOVES {
            return None;
        }
        let halves = &self.halves;
        // In order: what is moved first is what an apply waits for.
        let slot = nvram.slots.iter_mut().find(|slot| slot.stage == Stage::Full)?;
        if halves[slot.half].stored < slot.end {
            return None;
        }
        slot.stage = Stage::Moving;
        Some(MoveOp { slot: slot.number, half: slot.half, start: slot.start, end: slot.end })
    }

    /// What [`Destination::next_move`] gave is written.
    pub fn handle_moved(&mut self, op: MoveOp) {
        let slots = self.nvram.iter_mut().flat_map(|nvram| &mut nvram.slots);
        slots.filter(|slot| slot.number == op.slot).for_each(|slot| slot.stage = Stage::Moved);
    }

    /// What was written to the file when [`Effect::SyncMoved`] asked for it is stable.
    pub fn handle_moved_synced(&mut self, effects: &mut Vec<Effect>) {
        let Some(nvram) = &mut self.nvram else { return };
        nvram.syncing -= 1;
        if nvram.syncing == 0 {
            free(nvram, Stage::Syncing, effects);
        }
    }

    /// What [`Effect::FreeSlot`] asked for is durable: the slot is nobody's.
    pub fn handle_slot_freed(&mut self, number: u32) {
        let Some(nvram) = &mut self.nvram else { return };
        if let Some(at) = nvram.slots.iter().position(|slot| slot.number == number)
            && let Some(slot) = nvram.slots.remove(at)
        {
            self.halves[slot.half].logged -= 1;
        }
    }

    /// Closes slots that are waited for, and lets go of those whose frames are in the journal files.
    pub(super) fn move_on(&mut self, effects: &mut Vec<Effect>) {
        let all = !self.connected || self.promoting || self.settling.is_some();
        let Some(nvram) = &mut self.nvram else { return };
        let halves = &self.halves;
        if let Some(slot) = nvram.filling()
            && (all || halves[slot.half].state == State::Sealed)
            && halves[slot.half].stored == slot.end
        {
            slot.stage = Stage::Full;
        }
        let sealed = halves.iter().any(|half| half.state == State::Sealed && half.logged > 0);
        // Without a slot in reserve the log is short of room.
        let hurried = all || sealed || nvram.spare.is_none();
        let count = |stage| nvram.slots.iter().filter(|slot| slot.stage == stage).count();
        let moved = count(Stage::Moved);
        let due = moved >= SYNC_SLOTS || (hurried && count(Stage::Full) + count(Stage::Moving) == 0);
        if nvram.syncing > 0 || moved == 0 || !due {
            return;
        }
        if sings(Bug::FreeUnsynced) {
            return free(nvram, Stage::Moved, effects);
        }
        let mut files = [false; 2];
        for slot in nvram.slots.iter_mut().filter(|slot| slot.stage == Stage::Moved) {
            slot.stage = Stage::Syncing;
            files[slot.half] = true;
        }
        for half in (0..2).filter(|half| files[*half]) {
            nvram.syncing += 1;
            effects.push(Effect::SyncMoved(half));
        }
    }
}

fn free(nvram: &mut Nvram, from: Stage, effects: &mut Vec<Effect>) {
    for slot in nvram.slots.iter_mut().filter(|slot| slot.stage == from) {
        slot.stage = Stage::Freeing;
        effects.push(Effect::FreeSlot(slot.number));
    }
}
