//! The staging log: while a resync goes on, complete fills are appended to it, and the images stay as they were.
//!
//! A fill is appended as it is, frame behind frame, and synced; then one write of the state calls it clean and moves the
//! log's tail. A crash before that leaves bytes behind the tail, where nobody looks, and the fill in its journal file: it
//! is appended again, at the same place. With the fill that completes the resync the same write of the state says that
//! what is held is whole, and that the log is drained from now on: at no moment is there neither the old image nor the new.
//!
//! The log is bounded. Where a fill finds no room, by the plan either the source is cut off and the old image kept, or
//! the log is drained onto the images, which aren't promotable then until the resync is whole.

use super::super::grains::Grains;
use super::drain::Segment;
use super::{Destination, Effect};
use crate::canary::{Bug, sings};
use crate::format::ids::Mark;
use crate::format::superblock::{Phase, Staging};
use crate::format::wire::Signal;
use crate::limits::{BLOCK_BYTES, DRAIN_BYTES, MAX_FLUSH_BYTES};

/// What a staging log may take, and what happens when that doesn't suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagingPlan {
    /// Bytes that it may hold.
    pub limit_bytes: u64,
    /// Whether a resync goes on even where the image can't be kept promotable.
    pub best_effort: bool,
}

/// A write to the staging log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendOp {
    /// The half whose fill is appended.
    pub half: usize,
    /// Where the bytes start in the half.
    pub start: u64,
    /// Where they end there.
    pub end: u64,
    /// Where they go, in bytes from the log file's start.
    pub at: u64,
}

/// How a write to the staging log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is done.
    All,
    /// The file system has no room. Nothing counts that was written since the last sync: it is written again.
    NoRoom,
}

/// How far an append's sync has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    No,
    UnderWay,
    Done,
}

/// A fill that is being appended.
#[derive(Debug)]
struct Append {
    half: usize,
    bytes: u64,
    handed: u64,
    under_way: u32,
    refused: bool,
    sync: Sync,
}

/// What is going on with the log.
#[derive(Debug)]
pub(super) struct Log {
    plan: StagingPlan,
    /// Where it may differ from the images: a bound from above, kept in memory only. A start reads the log and finds it again.
    pub(super) touched: Grains,
    appending: Option<Append>,
    /// A restart is being written into it.
    pub(super) restart_staging: bool,
    /// What is being brought to the images.
    pub(super) segment: Option<Segment>,
    /// Parts of the file that are being given back. Nothing is appended meanwhile: after the log was emptied, the same
    /// places are used again.
    freeing: u32,
    /// Where the head stood when the file system had no room: before it moves, nothing fits.
    full_at: Option<u64>,
    /// How far the file was ever written.
    written: u64,
    /// Why it takes no more, and what to do about it.
    trouble: Option<String>,
}

impl Log {
    pub(super) fn new(plan: StagingPlan, touched: Grains) -> Log {
        Log {
            plan,
            touched,
            appending: None,
            restart_staging: false,
            segment: None,
            freeing: 0,
            full_at: None,
            written: 0,
            trouble: None,
        }
    }

    /// What is being appended is of no interest any more.
    pub(super) fn forget_append(&mut self) {
        self.appending = None;
    }

    /// Whether nothing is being appended.
    pub(super) fn at_rest(&self) -> bool {
        self.appending.is_none() && !self.restart_staging
    }
}

impl Destination {
    /// Why the staging log takes no more, with the remedy, once that has cut the source off.
    pub fn staging_trouble(&self) -> Option<String> {
        self.log.trouble.clone()
    }

    /// What the staging log may take.
    pub fn staging_plan(&self) -> StagingPlan {
        self.log.plan
    }

    /// Whether something new may go behind the log's end.
    pub(super) fn may_append(&self) -> bool {
        let (next, durable) = (self.superblock.staging.phase, self.durable.staging.phase);
        next != Phase::Direct && next == durable && self.log.at_rest() && self.log.freeing == 0
    }

    /// Whether so many bytes fit behind the log's end. Where they don't and never will, the plan says what becomes of it.
    pub(super) fn room_for(&mut self, bytes: u64, effects: &mut Vec<Effect>) -> bool {
        let staging = self.superblock.staging;
        let limit = self.log.plan.limit_bytes;
        let full = self.log.full_at.is_some_and(|head| staging.head <= head);
        let fits = !full && staging.tail - staging.head + bytes <= limit;
        match staging.phase {
            // While it is drained, there is room sooner or later. A log that never gets empty, as fills come as fast as they
            // go, would move on through its file for ever; so at some place it must.
            Phase::Draining => fits && staging.tail + bytes <= limit.saturating_mul(2),
            Phase::Staging if fits => true,
            Phase::Staging if self.log.trouble.is_some() => false,
            // It must be durable that the image isn't promotable before it is touched: `may_drain` waits for it.
            Phase::Staging if self.log.plan.best_effort => {
                self.superblock.staging.phase = Phase::Draining;
                self.write_state(effects);
                false
            }
            Phase::Staging => {
                let held = staging.tail - staging.head;
                let what = if full {
                    format!("its file system has no room for {bytes} bytes more")
                } else {
                    format!("{bytes} bytes more exceed its limit of {limit} bytes")
                };
                let trouble = format!(
                    "the staging log holds {held} bytes of a resync, and {what}. Raise staging_size and make room for it, or \
                     set resync_staging = \"best_effort\" (the image isn't promotable then until the resync ends), and start \
                     the destination again. Until then the image stays as of record {}",
                    staging.base.seq
                );
                self.log.trouble = Some(trouble.clone());
                if self.restarting.take().is_some() {
                    // Nothing was stored behind it, nor is what has come since.
                    (self.resumed, self.starting_over) = (false, false);
                    self.begin_from(self.superblock.clean);
                    self.pending.clear();
                    self.forget_unhanded();
                }
                if self.connected {
                    effects.push(Effect::Disconnect(trouble));
                }
                false
            }
            Phase::Direct => false,
        }
    }

    /// Writes a restart behind the log's end.
    pub(super) fn stage_restart(&mut self, at: Mark, effects: &mut Vec<Effect>) {
        let tail = self.superblock.staging.tail;
        self.log.restart_staging = true;
        self.log.written = self.log.written.max(tail + BLOCK_BYTES as u64);
        effects.push(Effect::StageRestart(Signal::Restart { at }.encode(), tail));
    }

    /// What [`Effect::StageRestart`] asked for is durable, or can't be.
    pub fn handle_restart_staged(&mut self, written: Written, effects: &mut Vec<Effect>) {
        self.log.restart_staging = false;
        match (written, self.restarting) {
            (Written::All, Some(at)) => self.restarted(at, BLOCK_BYTES as u64, effects),
            (Written::All, None) => {}
            (Written::NoRoom, _) => self.log.full_at = Some(self.superblock.staging.head),
        }
    }

    pub(super) fn append_on(&mut self, effects: &mut Vec<Effect>) {
        // What a promote serves then is the old image.
        if self.promoting && self.superblock.staging.phase == Phase::Staging {
            return;
        }
        loop {
            let Some(append) = &mut self.log.appending else {
                match self.begin_append(effects) {
                    Some(append) => self.log.appending = Some(append),
                    None => return,
                }
                continue;
            };
            if append.under_way > 0 || append.sync == Sync::UnderWay {
                return;
            }
            if append.refused {
                // Once more from its beginning, when there may be room.
                self.log.appending = None;
                self.log.full_at = Some(self.superblock.staging.head);
                continue;
            }
            if append.handed < append.bytes {
                return;
            }
            if append.sync == Sync::No && !sings(Bug::AppendUnsynced) {
                append.sync = Sync::UnderWay;
                effects.push(Effect::SyncStaging);
                return;
            }
            let (half, bytes) = (append.half, append.bytes);
            self.log.appending = None;
            self.appended(half, bytes, effects);
        }
    }

    /// The next fill, where it is complete and stable in its journal file (a frame that a power cut could still take away
    /// must not be called clean) and finds room.
    fn begin_append(&mut self, effects: &mut Vec<Effect>) -> Option<Append> {
        let fill = self.superblock.clean.fill.next();
        let half = &self.halves[fill.half()];
        if self.promoting || !self.may_append() || half.fill != fill || !half.ready() || half.retiring {
            return None;
        }
        if sings(Bug::DrainLate) && self.superblock.staging.phase == Phase::Draining {
            return None;
        }
        // What is left is brought to the images soon; then they take this fill themselves.
        let staging = &self.superblock.staging;
        if staging.phase == Phase::Draining && staging.tail - staging.head <= DRAIN_BYTES {
            return None;
        }
        let (index, bytes) = (fill.half(), half.stored);
        if !self.room_for(bytes, effects) {
            return None;
        }
        self.log.written = self.log.written.max(self.superblock.staging.tail + bytes);
        Some(Append { half: index, bytes, handed: 0, under_way: 0, refused: false, sync: Sync::No })
    }

    /// A fill is stable in the log: one write of the state says so, and what follows from it.
    fn appended(&mut self, half: usize, bytes: u64, effects: &mut Vec<Effect>) {
        let half = &mut self.halves[half];
        half.retiring = true;
        let mut pieces = Vec::new();
        for volume in 0..half.index.volumes() as u16 {
            let mut at = 0;
            while let Some(run) = half.index.next_run(volume, at, &mut pieces) {
                at = run.offset + run.length;
                self.log.touched.insert(volume, run.offset..at);
            }
        }
        self.log.full_at = None;
        let superblock = &mut self.superblock;
        superblock.clean = half.last;
        superblock.staging.tail += bytes;
        if half.whole {
            superblock.whole = true;
            superblock.staging.phase = Phase::Draining;
        }
        self.write_state(effects);
    }

    /// The next write to the staging log.
    pub fn next_append(&mut self) -> Option<AppendOp> {
        let at = self.superblock.staging.tail;
        let append = self.log.appending.as_mut().filter(|append| !append.refused && append.handed < append.bytes)?;
        let start = append.handed;
        append.handed = append.bytes.min(start + MAX_FLUSH_BYTES);
        append.under_way += 1;
        Some(AppendOp { half: append.half, start, end: append.handed, at: at + start })
    }

    /// Writes to the staging log that aren't complete.
    pub fn appends_under_way(&self) -> u32 {
        self.log.appending.as_ref().map_or(0, |append| append.under_way)
    }

    /// A write that [`Destination::next_append`] gave is complete.
    pub fn handle_appended(&mut self, written: Written) {
        if let Some(append) = &mut self.log.appending {
            append.under_way -= 1;
            append.refused |= written == Written::NoRoom;
        }
    }

    /// What was written to the staging log when the sync was asked for is stable, or can't be.
    pub fn handle_staging_synced(&mut self, written: Written) {
        if let Some(append) = &mut self.log.appending {
            append.sync = Sync::Done;
            append.refused |= written == Written::NoRoom;
        }
    }

    /// A part of the log that is on the images, durably, is given back.
    pub(super) fn free_log(&mut self, before: &Staging, effects: &mut Vec<Effect>) {
        let now = self.superblock.staging;
        let free = match (before.phase, now.phase) {
            (Phase::Draining, Phase::Direct) => {
                self.log.touched = Grains::none(&self.superblock.sizes(), self.superblock.grain_bytes);
                self.log.full_at = None;
                0..std::mem::take(&mut self.log.written).max(before.tail)
            }
            (_, Phase::Draining) => before.head..now.head,
            _ => return,
        };
        if !free.is_empty() {
            self.log.freeing += 1;
            effects.push(Effect::FreeStaging(free));
        }
    }

    /// What [`Effect::FreeStaging`] asked for is done.
    pub fn handle_staging_freed(&mut self) {
        self.log.freeing -= 1;
    }
}
