//! The destination's side of one source: verifies frames, stores them, acknowledges the contiguous prefix, and applies
//! each fill to the images when the source's sync signal says that it is complete.
//!
//! - `receive`: what a connected source says, and what is acknowledged.
//! - `meet`: where a source goes on: resume, settle, restart.
//! - `apply`: sealed fills go to the images.
//! - `staging`: while a resync goes on they go to the staging log instead, so that the images stay as they were.
//! - `drain`: once the resync is whole, the log goes to the images.
//! - `nvram`: what of it is in the shared log, and on its way to the journal files.
//! - `sums`: what the source asks of the contents.
//! - `heard`: what the source said of itself, and what a promote may lack by it.
//! - `live`: what may be read of the images meanwhile.
//! - `state`: the durable state. `promote`: what is served in the end.
//!
//! Fill n lives in journal file n mod 2, at the very positions it has in the source's half.

mod apply;
mod drain;
mod half;
mod heard;
mod live;
mod meet;
mod nvram;
mod promote;
mod receive;
mod staging;
mod state;
mod sums;
#[cfg(test)]
mod tests;

pub use half::{Half, State};
pub use heard::Heard;
pub use live::{Unreadable, View};
pub use nvram::{LogPlace, MoveOp};
pub use receive::MAX_STORES;
pub use staging::{AppendOp, StagingPlan, Written};
pub use sums::Ask;

use super::Place;
use super::grains::Grains;
use super::recovery::{Found, Recovered, Rescanned, hello};
use crate::canary::{Bug, sings};
use crate::format::block::Block;
use crate::format::frame::Record;
use crate::format::ids::{Mark, Seq};
use crate::format::superblock::{Phase, Staging, Superblock};
use crate::format::wire::{Report, Verdict, Welcome};
use crate::limits::{BOUNDARIES_IN_A_ROW, MAX_BOUNDARIES, MAX_KNOWN_MARKS};
use live::Live;
use meet::Settling;
use nvram::Nvram;
use staging::Log;
use std::collections::VecDeque;
use std::ops::Range;
use sums::Asks;

/// What must happen outside.
#[derive(Debug)]
pub enum Effect {
    /// Tell the source.
    Report(Report),
    /// Make everything written to this half's journal file stable and report [`Destination::handle_file_synced`].
    SyncFile(usize),
    /// Make the frames stable that were moved to this half's journal file, and report
    /// [`Destination::handle_moved_synced`].
    SyncMoved(usize),
    /// Make this slot of the shared log void, durably, and report [`Destination::handle_slot_freed`].
    FreeSlot(u32),
    /// Write this block to the state file, durably, and report [`Destination::handle_state_written`].
    WriteState(Box<Block>, u64),
    /// Write a block of zeros into this half's file at this position, durably, and report
    /// [`Destination::handle_erased`].
    Erase(usize, u64),
    /// Sync this image's device and report [`Destination::handle_image_synced`].
    SyncImage(u16),
    /// Make everything written to the staging log stable and report [`Destination::handle_staging_synced`].
    SyncStaging,
    /// Write this block into the staging log at this position, durably, and report
    /// [`Destination::handle_restart_staged`].
    StageRestart(Box<Block>, u64),
    /// Give back this part of the staging log's file and report [`Destination::handle_staging_freed`].
    FreeStaging(Range<u64>),
    /// Sync this image's device, which the staging log was written to, and report [`Destination::handle_drain_synced`].
    SyncDrained(u16),
    /// The source hands over, and nothing of it is under way: promote.
    TakeOver,
    /// Close the connection, for this reason.
    Disconnect(String),
    /// The promote is complete: images and journal files together hold everything up to this mark.
    Promoted(Mark),
    /// A fill is on the images, or in the staging log; for the log.
    Applied(Mark),
}

/// A write to a journal file, or to the shared log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOp {
    /// The half, and thus the file.
    pub half: usize,
    /// Where it starts in the half, in bytes.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
    /// Whether it must be on stable storage when it completes; in the shared log it always must.
    pub stable: bool,
    /// Where it goes in the shared log. `None`: to the journal file.
    pub log: Option<LogPlace>,
}

/// A frame that is verified but not stored.
#[derive(Debug)]
struct Pending {
    mark: Mark,
    end: u64,
    flags: u16,
    records: Vec<(Record, Place)>,
}

/// A write that is under way.
#[derive(Debug)]
struct Writing {
    op: StoreOp,
    frames: usize,
    done: bool,
}

/// What the durable state says of where fills go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Durable {
    whole: bool,
    staging: Staging,
}

impl Durable {
    fn of(superblock: &Superblock) -> Durable {
        Durable { whole: superblock.whole, staging: superblock.staging }
    }

    /// While a resync is staged the images stay what they were before it; while a whole log is drained, images and log
    /// together are a whole copy.
    fn promotable(&self) -> bool {
        self.whole || self.staging.phase == Phase::Staging
    }
}

/// The state of one source at its destination.
#[derive(Debug)]
pub struct Destination {
    superblock: Superblock,
    durable: Durable,
    halves: [Half; 2],
    connected: bool,
    /// Whether the source said from where it goes on, so that frames may come.
    resumed: bool,
    /// The source asked to settle, over this connection.
    settling: Option<Settling>,
    heard: Heard,
    /// Boundary after the last frame received.
    received: Mark,
    /// Boundary after the last frame stored.
    stored: Mark,
    acked: Seq,
    pending: VecDeque<Pending>,
    handed: usize,
    writing: VecDeque<Writing>,
    /// All boundaries from the applied one on, with where they end in their half.
    boundaries: VecDeque<(Mark, u64)>,
    /// Stored frames that wait for a sync: their first and last record.
    unsynced: VecDeque<(Seq, Seq)>,
    synced: Seq,
    /// What the file syncs under way make stable, and how many they are.
    syncing: Option<(Seq, u32)>,
    /// Headers of dropped frames that are being erased.
    erasing: u32,
    state_writing: bool,
    state_dirty: bool,
    /// Copies of the state that don't have what this write brings.
    stale_copies: u8,
    /// The mark from which the order begins anew isn't durable yet.
    starting_over: bool,
    /// That mark, as long as the state isn't being written that says so.
    restarting: Option<Mark>,
    log: Log,
    nvram: Option<Nvram>,
    asks: Asks,
    live: Live,
    promoting: bool,
    verified: Seq,
    /// What the frames' headers say to be stable on both sides: the source can't have lost it.
    vouched: Seq,
}

impl Destination {
    /// Continues from what the journal files hold; `records` gives a found frame's records with their places, `touched`
    /// is what a scan of the staging log has found.
    pub fn recover(
        superblock: Superblock,
        plan: StagingPlan,
        touched: Grains,
        recovered: Recovered,
        mut records: impl FnMut(&Found) -> Vec<(Record, Place)>,
    ) -> Destination {
        let volumes = superblock.volumes.len();
        let applied = superblock.clean;
        let mut destination = Destination {
            durable: Durable::of(&superblock),
            halves: [Half::clean(volumes), Half::clean(volumes)],
            connected: false,
            resumed: false,
            settling: None,
            heard: Heard::default(),
            received: applied,
            stored: applied,
            acked: applied.seq,
            pending: VecDeque::new(),
            handed: 0,
            writing: VecDeque::new(),
            boundaries: VecDeque::from([(applied, 0)]),
            unsynced: VecDeque::new(),
            synced: applied.seq,
            syncing: None,
            erasing: 0,
            state_writing: false,
            state_dirty: false,
            stale_copies: 0,
            starting_over: false,
            restarting: None,
            log: Log::new(plan, touched),
            nvram: None,
            asks: Asks::default(),
            live: Live::default(),
            promoting: false,
            verified: applied.seq,
            vouched: applied.seq,
            superblock,
        };
        for found in [recovered.first, recovered.second] {
            let frames: Vec<Rescanned> = found.iter().map(|frame| (*frame, records(frame))).collect();
            destination.adopt(frames);
        }
        if destination.stored != applied {
            destination.live.found(destination.stored.fill);
        }
        destination
    }

    /// Fills a half from frames that are stored, and stable, already.
    fn adopt(&mut self, frames: Vec<Rescanned>) {
        let Some(fill) = frames.first().map(|(found, _)| found.header.fill) else { return };
        let volumes = self.superblock.volumes.len();
        let half = &mut self.halves[fill.half()];
        *half = Half { fill, state: State::Open, ..Half::clean(volumes) };
        for (found, records) in frames {
            half.stored = found.header.position + found.header.frame_bytes();
            half.records += records.len() as u64;
            records.iter().for_each(|(record, place)| half.index.insert(record, *place));
            half.last = found.mark;
            self.vouched = self.vouched.max(found.header.committed);
            self.stored = found.mark;
            self.boundaries.push_back((found.mark, half.stored));
        }
        (half.received, half.handed) = (half.stored, half.stored);
        (self.received, self.acked) = (self.stored, self.stored.seq);
    }

    /// What to answer a source that introduces itself. `Err`: not now, operations of the last connection are still
    /// under way; try again.
    pub fn welcome(&self, hello: &Superblock) -> Result<Welcome, &'static str> {
        let ours = &self.superblock;
        let taken = self.promoting || (ours.promoted && !sings(Bug::ForgetEpoch));
        let answer = hello::answer(ours, hello, taken, self.connected || !self.idle());
        match (answer, self.staging_trouble()) {
            (hello::Answer::Refuse(welcome), _) => return Ok(*welcome),
            // What it would send can't be kept: as before its resync, it goes on without this side.
            (_, Some(trouble)) => return Ok(Welcome::refuse(Verdict::Refused, ours.epoch, trouble)),
            (hello::Answer::Later(reason), None) => return Err(reason),
            (hello::Answer::Welcome, None) => {}
        }
        Ok(Welcome {
            verdict: Verdict::Welcome,
            epoch: ours.epoch,
            whole: ours.whole,
            phase: ours.staging.phase,
            promotable: self.promotable(),
            base: self.base().unwrap_or_default(),
            fresh: self.fresh(),
            applied: ours.clean,
            boundaries: self.some_boundaries(&hello.known),
            fork: None,
            reason: String::new(),
        })
    }

    /// Those of the boundaries that the source asks for; then the newest, and ever fewer of the older ones, down to the
    /// applied one.
    fn some_boundaries(&self, asked: &[Mark]) -> Vec<Mark> {
        let (mut back, mut step) = (0, 1);
        let held = |mark: &&Mark| {
            let at = self.boundaries.partition_point(|(ours, _)| ours.seq < mark.seq);
            self.boundaries.get(at).is_some_and(|(ours, _)| ours == *mark)
        };
        let mut marks: Vec<Mark> = asked.iter().filter(held).take(MAX_KNOWN_MARKS).copied().collect();
        while back < self.boundaries.len() && marks.len() < MAX_BOUNDARIES - 4 {
            marks.push(self.boundaries[self.boundaries.len() - 1 - back].0);
            if back >= BOUNDARIES_IN_A_ROW {
                step *= 2;
            }
            back += step;
        }
        // Whatever a source lost, it has the ends of the fills that it signalled, and what it called stable.
        let sealed = self.halves.iter().filter(|half| half.state == State::Sealed).map(|half| half.last);
        let vouched = self.boundaries.partition_point(|(mark, _)| mark.seq < self.vouched);
        let named = [self.boundaries.front(), self.boundaries.get(vouched)];
        marks.extend(named.into_iter().flatten().map(|(mark, _)| *mark).chain(sealed));
        marks.sort_by_key(|mark| mark.seq);
        marks.dedup();
        marks
    }

    /// Whether nothing of this source was ever stored.
    pub fn fresh(&self) -> bool {
        self.stored == Mark::default()
    }

    /// Whether a promote would give a consistent image, also after a crash at this moment: by the durable state, and by
    /// the one that is being written.
    pub fn promotable(&self) -> bool {
        self.durable.promotable() && Durable::of(&self.superblock).promotable()
    }

    /// What a promote would serve, where that is an earlier state than what is held.
    pub fn base(&self) -> Option<Mark> {
        let staging = &self.superblock.staging;
        (staging.phase == Phase::Staging).then_some(staging.base)
    }

    /// Whether nothing is under way and all that is stored is stable: a source counts what a welcome names as stored as
    /// if it had been acknowledged.
    fn idle(&self) -> bool {
        let volatile = self.halves.iter().any(|half| half.state != State::Clean && half.volatile);
        let logged = self.nvram.as_ref().is_some_and(|nvram| !nvram.is_empty());
        let storing = !self.writing.is_empty() || self.syncing.is_some() || self.erasing > 0 || volatile || logged;
        !storing && !self.state_writing && self.restarting.is_none() && self.asks.under_way == 0
    }

    /// The durable facts as they will be next.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Both halves.
    pub fn halves(&self) -> &[Half; 2] {
        &self.halves
    }

    /// Boundary after the last frame stored.
    pub fn stored(&self) -> Mark {
        self.stored
    }

    /// The last record up to which our digest was compared with the source's.
    pub fn verified(&self) -> Seq {
        self.verified
    }

    /// What the source said of itself last.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Whether a source is connected.
    pub fn connected(&self) -> bool {
        self.connected
    }
}
