//! Drives the destination's core for one source: frames are received straight into the memory from which they go to
//! the journal file and later to the images; nothing is copied in between.

mod live;
mod nvram;
mod promote;
mod receive;
pub mod rejoin;
mod staging;
mod start;
mod sums;
mod warrant;

use super::clients::Serve as _;
use super::command::{Counters, DestinationCommand, DestinationStatus, HalfStatus, Promoted};
use super::disk::Disk;
use super::held::Held;
use super::memory::Memory;
use super::nvram::Share;
use super::ring::Ring;
use super::run;
use super::source::{EngineError, failed};
use super::store::Store;
use super::zeroing::Zeroing;
use crate::core::Place;
use crate::core::destination::{Destination, Effect, MoveOp, State, StoreOp};
use crate::core::half::Ticket;
use crate::core::index::Segment;
use crate::format::ids::Mark;
use crate::limits::{BLOCK_BYTES, MAX_COPY_WINDOWS};
use crossbeam_channel::Receiver;
use live::Live;
use nix::sys::eventfd::EventFd;
use receive::{Peer, half_place};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use sums::Summing;
use tokio::sync::oneshot;
use warrant::HeardAt;

pub use crate::core::destination::{StagingPlan, Unreadable};
pub use receive::check_images;
pub use start::{Folder, Handle, Image, spawn};
pub use warrant::Warrant;

/// Device writes of an apply under way while it is on time, and while it is late.
const APPLY_DEPTH: (u32, u32) = (4, 32);

/// Names an operation under way.
#[derive(Debug, Clone, Copy)]
enum Token {
    Wake,
    PeerReceive,
    PeerSend,
    Store(StoreOp),
    FileSync(usize),
    Move(MoveOp),
    MovedSync(usize),
    FreeSlot(u32),
    Erase(usize),
    State,
    Apply(u16),
    Zero(Zeroing),
    ImageSync(u16),
    Append,
    StagingSync,
    StageRestart,
    FreeStaging,
    Segment(u64, u64),
    Drain(u16),
    DrainZero(Zeroing),
    DrainSync(u16),
    SumRead(usize),
    ClientReceive(u32),
    ClientSend(u32),
    LiveRead(Ticket),
}

/// How an engine ended that wasn't told to stop.
#[derive(Debug)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// It was promoted: here are the images.
    Promoted(Promotion, Vec<Image>),
}

/// What a promote came to.
#[derive(Debug)]
pub struct Promotion {
    /// Everything up to here is held.
    pub at: Mark,
    /// Whether the source handed over by itself.
    pub handed_over: bool,
    /// What isn't on the images.
    pub held: Held,
}

type Waiting = oneshot::Sender<Promoted>;

struct Engine {
    core: Destination,
    ring: Ring<Token>,
    memory: Arc<Memory>,
    files: [Disk; 2],
    state: Disk,
    staging: Disk,
    /// Where frames go first.
    share: Option<Share>,
    /// First blocks of slots that were put together.
    slot_heads: usize,
    images: Vec<Image>,
    live: Live,
    /// Questions whose ranges are being read.
    sums: [Option<Summing>; MAX_COPY_WINDOWS],
    peer: Option<Peer>,
    /// A source that introduced itself and waits until the last connection's operations are over.
    next_peer: Option<(OwnedFd, Box<crate::format::superblock::Superblock>, String)>,
    reason: Option<String>,
    /// When the source was heard last.
    heard_at: Option<HeardAt>,
    /// Since when this side lacks answered writes, as the source said when it connected; 0: it lacks none.
    lacking_since_unix_s: u64,
    promote: Option<(Waiting, Box<Warrant>)>,
    /// Whether the promote was handed to the core, once the connection was over.
    promote_begun: bool,
    promoted: Option<Mark>,
    /// The source asked for a promote, with nothing of it under way.
    handed_over: bool,
    commands: Receiver<DestinationCommand>,
    wake: Arc<EventFd>,
    stopping: bool,
    counters: Counters,
    effects: Vec<Effect>,
    pieces: Vec<(Place, u64)>,
    segments: Vec<Segment>,
}

impl Engine {
    fn run(mut self) -> Result<Ended, EngineError> {
        let outcome = self.serve();
        self.close_peer("the destination stops");
        self.live.shut_down();
        self.ring.drain();
        self.give_slot_back();
        outcome?;
        Ok(match self.promoted {
            Some(mark) => {
                if let Err(error) = self.staging.truncate() {
                    tracing::warn!("{error}; its room isn't given back");
                }
                let halves = self.core.halves();
                let stored = |half: usize| (half_place(self.core.superblock().half_bytes, half), halves[half].stored);
                let held = Held::new(self.memory, [stored(0), stored(1)]);
                Ended::Promoted(Promotion { at: mark, handed_over: self.handed_over, held }, self.images)
            }
            None => Ended::Stopped,
        })
    }

    fn serve(&mut self) -> Result<(), EngineError> {
        self.ring.wake_on(Token::Wake, self.wake.as_raw_fd());
        let mut finished = Vec::new();
        self.turn();
        while !self.stopping && self.promoted.is_none() {
            self.ring.wait(None, &mut finished)?;
            for (token, outcome) in finished.drain(..) {
                self.handle(token, outcome)?;
            }
            self.turn();
        }
        Ok(())
    }

    fn handle(&mut self, token: Token, outcome: io::Result<usize>) -> Result<(), EngineError> {
        match token {
            Token::Wake => {
                self.ring.wake_on(Token::Wake, self.wake.as_raw_fd());
                while let Ok(command) = self.commands.try_recv() {
                    self.handle_command(command);
                }
            }
            Token::PeerReceive => self.peer_received(outcome),
            Token::PeerSend => self.peer_sent(outcome),
            Token::Store(op) => {
                let bytes = outcome.map_err(|cause| self.store_failed(op, cause))?;
                self.counters.journal_bytes += bytes as u64;
                self.counters.journal_writes += 1;
                self.core.handle_stored(op, &mut self.effects);
            }
            Token::FileSync(half) => {
                outcome.map_err(|cause| failed("the journal file's sync", &self.files[half], cause))?;
                self.core.handle_file_synced(&mut self.effects);
            }
            Token::Move(op) => {
                outcome.map_err(|cause| failed("the journal file's write", &self.files[op.half], cause))?;
                self.core.handle_moved(op);
            }
            Token::MovedSync(half) => {
                outcome.map_err(|cause| failed("the journal file's sync", &self.files[half], cause))?;
                self.core.handle_moved_synced(&mut self.effects);
            }
            Token::FreeSlot(slot) => self.slot_freed(slot, outcome)?,
            Token::Erase(half) => {
                outcome.map_err(|cause| failed("erasing a frame in the journal file", &self.files[half], cause))?;
                self.core.handle_erased();
            }
            Token::State => {
                outcome.map_err(|cause| failed("the state's write", &self.state, cause))?;
                self.core.handle_state_written(&mut self.effects);
            }
            Token::Apply(volume) => {
                let image = &self.images[usize::from(volume)];
                let bytes = outcome.map_err(|cause| failed("the apply to the image", &image.disk, cause))?;
                self.counters.flushed_bytes += bytes as u64;
                self.core.handle_applied();
            }
            Token::Zero(zeroing) => {
                if self.zeroed(zeroing, outcome, Token::Zero)? {
                    self.core.handle_applied();
                }
            }
            Token::ImageSync(volume) => {
                let image = &self.images[usize::from(volume)];
                outcome.map_err(|cause| failed("the image's sync", &image.disk, cause))?;
                self.core.handle_image_synced(volume);
            }
            Token::SumRead(number) => self.sum_read(number, outcome),
            Token::ClientReceive(client) => self.client_received(client, outcome),
            Token::ClientSend(client) => self.client_sent(client, outcome),
            Token::LiveRead(ticket) => self.live_read(ticket, outcome),
            token => self.handle_staging(token, outcome)?,
        }
        Ok(())
    }

    fn turn(&mut self) {
        self.admit_peer();
        self.begin_promote();
        loop {
            self.core.handle_turn(&mut self.effects);
            let mut effects = std::mem::take(&mut self.effects);
            let any = !effects.is_empty();
            for effect in effects.drain(..) {
                self.act(effect);
            }
            effects.append(&mut self.effects);
            self.effects = effects;
            if !any {
                break;
            }
        }
        self.pump_stores();
        self.pump_moves();
        self.pump_apply();
        self.pump_append();
        self.pump_drain();
        self.pump_sums();
        self.send_reports();
        self.pump_live();
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Report(report) => self.report(report),
            Effect::SyncFile(half) => self.ring.sync(Token::FileSync(half), self.files[half].target()),
            Effect::SyncMoved(half) => self.ring.sync(Token::MovedSync(half), self.files[half].target()),
            Effect::FreeSlot(slot) => self.free_slot(slot),
            Effect::WriteState(block, offset) => {
                let place = receive::state_place(self.core.superblock().half_bytes);
                // SAFETY: this block of the mapping is only used for the state, of which one is under way at most.
                unsafe { self.memory.bytes_mut(place, BLOCK_BYTES) }.copy_from_slice(&*block);
                self.ring.write(Token::State, self.state.target(), offset, &[(place, BLOCK_BYTES as u64)], true);
            }
            Effect::Erase(half, position) => {
                let zeros = receive::zeros_place(self.core.superblock().half_bytes);
                let file = self.files[half].target();
                self.ring.write(Token::Erase(half), file, position, &[(zeros, BLOCK_BYTES as u64)], true);
            }
            Effect::SyncImage(volume) => {
                self.ring.sync(Token::ImageSync(volume), self.images[usize::from(volume)].disk.target());
            }
            Effect::Applied(mark) => tracing::debug!("applied {mark}"),
            Effect::SyncStaging => self.ring.sync(Token::StagingSync, self.staging.target()),
            Effect::StageRestart(block, at) => self.stage_restart(&block, at),
            Effect::FreeStaging(range) => self.free_staging(range),
            Effect::SyncDrained(volume) => {
                self.ring.sync(Token::DrainSync(volume), self.images[usize::from(volume)].disk.target());
            }
            Effect::TakeOver => {
                tracing::info!("source {}: it hands over", self.core.superblock().name);
                self.handed_over = true;
            }
            Effect::Disconnect(reason) => {
                tracing::error!("source {}: {reason}", self.core.superblock().name);
                self.close_peer(&reason);
            }
            Effect::Promoted(mark) => {
                self.promoted = Some(mark);
                if let Some((done, warrant)) = self.promote.take() {
                    // Nobody may be waiting any more.
                    let _ = done.send(Promoted { warrant, outcome: Ok(mark) });
                }
            }
        }
    }

    fn handle_command(&mut self, command: DestinationCommand) {
        match command {
            DestinationCommand::Peer(socket, hello, address) => self.next_peer = Some((socket, hello, address)),
            DestinationCommand::Promote { force, done } => self.promote(force, done),
            DestinationCommand::Status(answer) => drop(answer.send(self.status())),
            DestinationCommand::Client(socket, negotiated) => self.serve_reader(socket, negotiated),
            DestinationCommand::Stop => self.stopping = true,
        }
    }

    fn pump_apply(&mut self) {
        let depth = if self.core.apply_is_late() { APPLY_DEPTH.1 } else { APPLY_DEPTH.0 };
        let mut pieces = std::mem::take(&mut self.pieces);
        while self.core.applies_under_way() < depth
            && let Some(op) = self.core.next_apply(&mut pieces)
        {
            let disk = &self.images[usize::from(op.volume)].disk;
            let zeros = receive::zeros_place(self.core.superblock().half_bytes);
            run::start(op, &mut self.ring, disk, &pieces, zeros, Token::Apply(op.volume), Token::Zero);
        }
        self.pieces = pieces;
    }

    /// A range of an image was zeroed, or a part of it; `token` names the rest, which is started. Whether it is done.
    fn zeroed(
        &mut self,
        zeroing: Zeroing,
        outcome: io::Result<usize>,
        token: fn(Zeroing) -> Token,
    ) -> Result<bool, EngineError> {
        let zeros = receive::zeros_place(self.core.superblock().half_bytes);
        let disk = &mut self.images[usize::from(zeroing.volume)].disk;
        let left = zeroing.next(disk, outcome);
        let left = left.map_err(|cause| failed("zeroing a range of the image", disk, cause))?;
        if let Some(rest) = left {
            rest.start(&mut self.ring, token, disk, zeros);
        }
        Ok(left.is_none())
    }

    fn status(&self) -> DestinationStatus {
        let capacity_bytes = self.core.superblock().half_bytes;
        let staging = &self.core.superblock().staging;
        let half = |half: &crate::core::destination::Half| HalfStatus {
            fill: half.fill.0,
            state: half.word(),
            bytes: if half.state == State::Clean { 0 } else { half.stored },
            capacity_bytes,
            records: half.records,
        };
        DestinationStatus {
            superblock: self.core.superblock().clone(),
            logged: self.logged(),
            promotable: self.core.promotable(),
            live: self.core.view().map(|view| view.mark.seq.0),
            clients: self.live.count(),
            base_record: self.core.base().map(|mark| mark.seq.0),
            phase: staging.phase,
            staged_bytes: staging.tail - staging.head,
            staging_limit_bytes: self.core.staging_plan().limit_bytes,
            staging_trouble: self.core.staging_trouble(),
            heard_unix_s: self
                .heard_at
                .and_then(|at| at.wall.duration_since(UNIX_EPOCH).ok())
                .map(|since| since.as_secs()),
            answered_record: self.core.heard().answered().0,
            source_alone: self.core.heard().alone(),
            warrant: Box::new(self.warrant()),
            peer: self.peer_address(),
            reason: self.reason.clone(),
            held_record: self.core.stored().seq.0,
            verified_record: self.core.verified().0,
            journal: Store::weakest([&self.files[0], &self.files[1], &self.state].map(Disk::how_stored)),
            halves: self.core.halves().iter().map(half).collect(),
            counters: self.counters,
        }
    }
}
