//! The source: puts records into one order, frames them, and answers what is stored on both sides.
//!
//! - `frames`: records become frames; frames become committed, in order.
//! - `fills`: halves switch, are flushed, and become clean again.
//! - `handover`: a planned switchover.
//! - `inherited`: fills that a promoted destination held, and that aren't on the images yet.
//! - `link`: what the destination is sent and what it reports.
//! - `meeting`: how the source goes on with a destination that answered its hello.
//! - `mode`: how long the destination may be away, and what becomes of writes then.
//! - `word`: what the destination is told of how this source stands, and how long that binds it.
//! - `resync`: contents of the volumes go through the stream, and the dirty bitmap that says which.
//!
//! The engine calls [`Source::handle_turn`] once after each batch of events; everything that can be gathered from
//! load is gathered there.

mod fills;
mod frames;
mod handover;
mod inherited;
mod link;
mod meeting;
mod mode;
mod resync;
#[cfg(test)]
mod tests;
mod word;

use super::copy::{Copier, Tally};
use super::dirty::Dirty;
use super::half::{Entry, Half, State, Ticket};
use super::index::{self, Index, Segment};
use super::pace::Pace;
use super::policy::{Mode, Policy};
use super::recovery::Recovered;
use super::{Durability, Place};
use crate::canary::{Bug, sings};
use crate::format::block::Block;
use crate::format::frame::Kind;
use crate::format::ids::{Epoch, Fill, Mark, Seq};
use crate::format::superblock::Superblock;
use frames::Flight;
use handover::HandOver;
pub use link::{Link, Send};
use mode::Clock;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

/// What a source is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// How strong an answered write is.
    pub durability: Durability,
    /// Whether there is a destination at all.
    pub mirrored: bool,
    /// What becomes of writes while the destination is away.
    pub policy: Policy,
    /// Age at which a half is switched though it isn't full.
    pub max_age: Duration,
    /// What time it is at [`Duration::ZERO`] of this run, in seconds since 1970: for what people are told only.
    pub started_unix_s: u64,
}

/// What must happen outside.
#[derive(Debug)]
pub enum Effect {
    /// Write this frame to the journal and report [`Source::handle_frame_written`].
    WriteFrame(FrameId),
    /// Make everything written to the journal so far stable and report [`Source::handle_journal_synced`].
    SyncJournal,
    /// Answer the request: its record is as safe as promised.
    Answer(Ticket),
    /// Answer the request with an error: its record may or may not come to be.
    Fail(Ticket),
    /// Write this block to the journal, durably, and report [`Source::handle_superblock_written`].
    WriteSuperblock(Box<Block>, u64),
    /// Write these blocks of the dirty bitmap, durably, at this place within it, and report [`Source::handle_map_written`].
    WriteMap(Vec<u8>, u64),
    /// Sync this volume's device and report [`Source::handle_volume_synced`].
    SyncVolume(u16),
    /// This memory isn't needed any more.
    Release(Place, u64),
    /// The destination can't be trusted or is of no use: close the connection and say why.
    ClosePeer(String),
    /// Another side was promoted: close all clients without a reply, take no write ever again.
    Fenced(Epoch),
    /// A `sync` command is complete.
    SyncDone(u64),
    /// A fill was switched; for the log.
    Switched(Mark),
    /// The source stands otherwise towards its destination from now on; for the log.
    Mode(Mode),
    /// A resync began or ended; for the log.
    Resync(Resync),
    /// A verify is over: what it has found, or why it has no result.
    Verified(Result<Tally, &'static str>),
}

/// What happens to a resync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resync {
    /// So many bytes are to be compared and sent where they differ. `all`: everything, for what the destination lacks isn't
    /// known.
    Began {
        /// Bytes.
        bytes: u64,
        /// Whether that is all there are.
        all: bool,
    },
    /// The destination holds everything, though perhaps not on its images yet.
    Sent(Tally),
    /// The destination has a whole copy.
    Whole,
}

/// Names a frame while its fill isn't clean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameId {
    /// Its fill.
    pub fill: Fill,
    /// Its place within the fill.
    pub index: usize,
}

/// Memory for header blocks, which the core makes itself.
pub trait Headers {
    /// Stores a header block.
    fn store(&mut self, block: &Block) -> Place;
}

/// The state of a source.
#[derive(Debug)]
pub struct Source {
    shape: Shape,
    superblock: Superblock,
    halves: [Half; 2],
    /// What a promote left unapplied, the older fill first.
    inherited: VecDeque<Half>,
    /// The fill that is open or will be opened next.
    open: Fill,
    /// Records that have no frame yet, in order.
    queue: VecDeque<Entry>,
    queued_bytes: usize,
    queued_flushes: usize,
    /// Frames that aren't committed, in order.
    flights: VecDeque<Flight>,
    unwritten: usize,
    /// Boundary after the last frame.
    last: Mark,
    committed: Seq,
    /// Up to here everything is known to be on stable storage in this journal.
    stable: Seq,
    /// Up to here everything is known to be on stable storage on both sides.
    stable_both: Seq,
    synced: Seq,
    /// Up to here frames were recovered that the destination may hold without having made them stable.
    volatile_until: Seq,
    syncing: Option<Seq>,
    link: Link,
    acked: Seq,
    verified: Seq,
    superblock_writing: bool,
    superblock_dirty: bool,
    /// Copies of the superblock that don't have what this write brings.
    stale_copies: u8,
    switch_wanted: bool,
    syncs: Vec<(Fill, u64)>,
    dirty: Dirty,
    map_writing: bool,
    /// All was marked: no superblock may be written before that is stored.
    map_first: bool,
    /// The half that will be called clean once the dirty bitmap is stored.
    retiring: Option<Fill>,
    /// The last record that was ever sent to the destination, or may have been by a run before.
    sent: Seq,
    copier: Option<Copier>,
    copied_windows: Vec<resync::Ready>,
    /// Ranges that were found to be equal on both sides since the last fill was sealed. They stay dirty until the records
    /// behind which they were compared are on both sides' devices.
    equal: Vec<(u16, u64, u64)>,
    copies: usize,
    /// The fill whose apply makes the destination's copy whole.
    whole_from: Option<Fill>,
    hand_over: Option<HandOver>,
    /// Where the runs before this one ended, as far as the journal told at the start; oldest first.
    ends: Vec<Mark>,
    pace: Pace,
    clock: Clock,
    scratch: Box<Block>,
}

impl Source {
    /// A source that continues from what its journal holds. `superblock` is the one that was made durable for this
    /// run (its incarnation is already raised); `places` gives, frame by frame, where the recovered header blocks
    /// are in memory, each followed by its payloads, and hands out the records. `dirty` is the bitmap as it is stored.
    pub fn recover(
        shape: Shape,
        superblock: Superblock,
        dirty: Dirty,
        recovered: Recovered,
        mut places: impl FnMut(FrameId, u64) -> (Place, Vec<Entry>),
    ) -> Source {
        let volumes = superblock.volumes.len();
        let clean = superblock.clean;
        let half = |index: u64| Half::clean(Fill(index), volumes);
        let mut source = Source {
            open: clean.fill.next(),
            halves: [half(0), half(1)],
            inherited: VecDeque::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            queued_flushes: 0,
            flights: VecDeque::new(),
            unwritten: 0,
            last: clean,
            committed: clean.seq,
            stable: clean.seq,
            stable_both: clean.seq,
            synced: clean.seq,
            volatile_until: clean.seq,
            syncing: None,
            link: Link::Down,
            acked: clean.seq,
            verified: clean.seq,
            superblock_writing: false,
            superblock_dirty: false,
            stale_copies: 0,
            switch_wanted: false,
            syncs: Vec::new(),
            dirty,
            map_writing: false,
            map_first: false,
            retiring: None,
            sent: recovered.end.seq,
            copier: None,
            copied_windows: Vec::new(),
            equal: Vec::new(),
            copies: 0,
            whole_from: None,
            hand_over: None,
            ends: Vec::new(),
            pace: Pace::default(),
            clock: Clock::new(&shape, &superblock),
            scratch: Box::new([0; crate::limits::BLOCK_BYTES]),
            shape,
            superblock,
        };
        let end = recovered.end.seq;
        source.ends = meeting::ends_of_runs(recovered.first.iter().chain(&recovered.second));
        for frames in [recovered.first, recovered.second] {
            source.adopt(frames, &mut places);
        }
        // A start makes what it finds stable before it looks.
        (source.stable, source.synced) = (end, end);
        source.clock.word.find(end);
        source.start_mode();
        source
    }

    /// Whether more records may be handed in. Beyond that they still are taken, but a client's socket should be left unread.
    pub fn accepting(&self) -> bool {
        self.hand_over.is_none()
            && self.queued_bytes < crate::limits::MAX_WAITING_BYTES
            && self.queue.len() < crate::limits::MAX_WAITING_RECORDS
    }

    /// A record was received whole. It is answered by [`Effect::Answer`].
    pub fn handle_record(&mut self, entry: Entry) {
        self.queued_bytes += entry.record.payload_bytes();
        self.queued_flushes += usize::from(entry.record.kind == Kind::Flush);
        self.queue.push_back(entry);
    }

    /// A client wants everything that was answered so far to be stable. Returns whether it is already: so with
    /// [`Durability::Always`], unless a run before had another one; otherwise a flush record must be handed in.
    pub fn flush_is_free(&self) -> bool {
        let elsewhere = self.shape.mirrored && !self.clock.alone;
        let stable = if elsewhere { self.stable_both } else { self.stable };
        self.shape.durability == Durability::Always && stable >= self.volatile_until
    }

    /// Finds where the newest committed bytes of a range are.
    pub fn read(&self, volume: u16, range: Range<u64>, out: &mut Vec<Segment>) {
        let newer = usize::from(self.halves[1].fill > self.halves[0].fill);
        let own: [&Index; 2] = [&self.halves[newer].index, &self.halves[1 - newer].index];
        match (self.inherited.front().filter(|_| !sings(Bug::PastInherited)), self.inherited.get(1)) {
            (None, _) => index::resolve(&own, volume, range, out),
            (Some(last), None) => index::resolve(&[own[0], own[1], &last.index], volume, range, out),
            (Some(first), Some(last)) => {
                index::resolve(&[own[0], own[1], &last.index, &first.index], volume, range, out);
            }
        }
    }

    /// A `sync` command: switch halves now; [`Effect::SyncDone`] with this token when all is applied.
    pub fn handle_sync(&mut self, token: u64) {
        let half = &self.halves[self.open.half()];
        let target =
            if half.state == State::Open || !self.queue.is_empty() { self.open } else { Fill(self.open.0 - 1) };
        self.switch_wanted |= target == self.open;
        self.syncs.push((target, token));
    }

    /// Call once after each batch of events.
    pub fn handle_turn(&mut self, now: Duration, headers: &mut impl Headers, effects: &mut Vec<Effect>) {
        self.tick(now);
        if self.fenced() {
            return;
        }
        self.turn_mode(effects);
        self.commit(effects);
        self.turn_hand_over();
        self.switch_if_due(now, effects);
        self.make_frames(now, headers, effects);
        self.sync_if_due(effects);
        self.advance_inherited(effects);
        self.advance_halves(effects);
        self.finish_copy(effects);
        self.finish_syncs(effects);
    }

    /// The next moment at which [`Source::handle_turn`] should be called though nothing happens.
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.fenced() {
            return None;
        }
        let half = &self.halves[self.open.half()];
        let may = self.can_switch() && half.state == State::Open && self.may_age();
        let aged = half.opened_at.filter(|_| may).map(|opened| opened + self.shape.max_age);
        let paced = self.copier.as_ref().and_then(|_| self.pace.deadline(self.clock.now));
        aged.into_iter().chain(paced).chain(self.mode_deadline()).chain(self.hand_over_deadline()).min()
    }

    /// Whether another side was promoted.
    pub fn fenced(&self) -> bool {
        self.superblock.fenced_by.0 != 0
    }

    /// The durable facts as they will be next.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Both halves.
    pub fn halves(&self) -> &[Half; 2] {
        &self.halves
    }

    /// The fill that is open or will be opened next.
    pub fn open_fill(&self) -> Fill {
        self.open
    }

    /// The last record that has a sequence number.
    pub fn last(&self) -> Seq {
        self.last.seq
    }

    /// The last record stored on both sides.
    pub fn committed(&self) -> Seq {
        self.committed
    }

    /// The last record stored at the destination.
    pub fn acked(&self) -> Seq {
        self.acked
    }

    /// The last record up to which the destination's digest was compared with ours.
    pub fn verified(&self) -> Seq {
        self.verified
    }

    /// Records that wait for a frame.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// The last record in the local journal.
    pub fn written(&self) -> Seq {
        self.flights.iter().find(|flight| !flight.written).map_or(self.last.seq, |flight| Seq(flight.first.0 - 1))
    }

    /// What is marked in the dirty bitmap, in bytes.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty.grains().bytes()
    }

    /// The resync or verify that goes on.
    pub fn copier(&self) -> Option<&Copier> {
        self.copier.as_ref()
    }

    /// Whether a half is switched though it isn't full. While the destination is away that would only waste what is left
    /// of it: as long as the journal reaches back, what was missed is just sent again.
    fn may_age(&self) -> bool {
        self.link.is_up() || !self.shape.mirrored
    }

    /// Memory for payload gets scarce: what the open half holds should be given back soon.
    pub fn handle_memory_low(&mut self) {
        self.switch_wanted |= self.halves[self.open.half()].state == State::Open && self.can_be_stored();
    }

    /// Whether records can be stored everywhere where they must be before they are answered.
    fn can_be_stored(&self) -> bool {
        self.link.is_up() || !self.shape.mirrored || self.clock.alone
    }
}
