//! Drives the destination's core for one source: frames are received straight into the memory from which they go to
//! the journal file and later to the images; nothing is copied in between.

mod receive;
mod start;

use super::command::{Counters, DestinationCommand, DestinationStatus, HalfStatus};
use super::disk::Disk;
use super::memory::Memory;
use super::ring::Ring;
use super::source::EngineError;
use super::zeroing::Zeroing;
use crate::core::Place;
use crate::core::destination::{Destination, Effect, State, StoreOp};
use crate::core::index::Action;
use crate::format::ids::Mark;
use crate::limits::BLOCK_BYTES;
use crossbeam_channel::Receiver;
use nix::sys::eventfd::EventFd;
use receive::Peer;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use tokio::sync::oneshot;

pub use receive::check_images;
pub use start::{Folder, Handle, Image, StagingPlan, spawn};

/// Device writes of an apply under way while it is on time, and while it is late.
const APPLY_DEPTH: (u32, u32) = (4, 48);

/// Names an operation under way.
#[derive(Debug, Clone, Copy)]
enum Token {
    Wake,
    PeerReceive,
    PeerSend,
    Store(StoreOp),
    FileSync(usize),
    Erase(usize),
    State,
    Apply(u16),
    Zero(Zeroing),
    ImageSync(u16),
}

/// How an engine ended that wasn't told to stop.
#[derive(Debug)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// It was promoted: here are the images, which hold everything up to the mark.
    Promoted(Mark, Vec<Image>),
}

type Waiting = oneshot::Sender<Result<Mark, String>>;

struct Engine {
    core: Destination,
    ring: Ring<Token>,
    memory: Arc<Memory>,
    files: [Disk; 2],
    state: Disk,
    images: Vec<Image>,
    peer: Option<Peer>,
    /// A source that introduced itself and waits until the last connection's operations are over.
    next_peer: Option<(OwnedFd, Box<crate::format::superblock::Superblock>, String)>,
    reason: Option<String>,
    promote: Option<Waiting>,
    /// Whether the promote was handed to the core, once the connection was over.
    promote_begun: bool,
    promoted: Option<Mark>,
    commands: Receiver<DestinationCommand>,
    wake: Arc<EventFd>,
    stopping: bool,
    counters: Counters,
    effects: Vec<Effect>,
    pieces: Vec<(Place, u64)>,
}

impl Engine {
    fn run(mut self) -> Result<Ended, EngineError> {
        let outcome = self.serve();
        self.close_peer("the destination stops");
        self.ring.drain();
        outcome?;
        Ok(match self.promoted {
            Some(mark) => Ended::Promoted(mark, self.images),
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
        let failed = |what: &str, disk: &Disk, cause: io::Error| EngineError::Disk {
            what: format!("{what} ({})", disk.path().display()),
            cause,
        };
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
                let bytes = outcome.map_err(|cause| failed("the journal file's write", &self.files[op.half], cause))?;
                self.counters.journal_bytes += bytes as u64;
                self.counters.journal_writes += 1;
                self.core.handle_stored(op, &mut self.effects);
            }
            Token::FileSync(half) => {
                outcome.map_err(|cause| failed("the journal file's sync", &self.files[half], cause))?;
                self.core.handle_file_synced(&mut self.effects);
            }
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
                let zeros = receive::zeros_place(self.core.superblock().half_bytes);
                let disk = &mut self.images[usize::from(zeroing.volume)].disk;
                match zeroing
                    .next(disk, outcome)
                    .map_err(|cause| failed("zeroing a range of the image", disk, cause))?
                {
                    Some(rest) => rest.start(&mut self.ring, Token::Zero, disk, zeros),
                    None => self.core.handle_applied(),
                }
            }
            Token::ImageSync(volume) => {
                let image = &self.images[usize::from(volume)];
                outcome.map_err(|cause| failed("the image's sync", &image.disk, cause))?;
                self.core.handle_image_synced(volume);
            }
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
        while let Some(op) = self.core.next_store() {
            let place = Place(receive::half_place(self.core.superblock().half_bytes, op.half).0 + op.start);
            let fd = self.files[op.half].fd();
            self.ring.write(Token::Store(op), fd, op.start, &[(place, op.end - op.start)], op.stable);
        }
        self.pump_apply();
        self.send_reports();
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Report(report) => self.report(report),
            Effect::SyncFile(half) => self.ring.sync(Token::FileSync(half), self.files[half].fd()),
            Effect::WriteState(block, offset) => {
                let place = receive::state_place(self.core.superblock().half_bytes);
                // SAFETY: this block of the mapping is only used for the state, of which one is under way at most.
                unsafe { self.memory.bytes_mut(place, BLOCK_BYTES) }.copy_from_slice(&*block);
                self.ring.write(Token::State, self.state.fd(), offset, &[(place, BLOCK_BYTES as u64)], true);
            }
            Effect::Erase(half, position) => {
                let zeros = receive::zeros_place(self.core.superblock().half_bytes);
                let fd = self.files[half].fd();
                self.ring.write(Token::Erase(half), fd, position, &[(zeros, BLOCK_BYTES as u64)], true);
            }
            Effect::SyncImage(volume) => {
                self.ring.sync(Token::ImageSync(volume), self.images[usize::from(volume)].disk.fd());
            }
            Effect::Applied(mark) => tracing::debug!("applied {mark}"),
            Effect::Promoted(mark) => {
                self.promoted = Some(mark);
                if let Some(done) = self.promote.take() {
                    // Nobody may be waiting any more.
                    let _ = done.send(Ok(mark));
                }
            }
        }
    }

    fn handle_command(&mut self, command: DestinationCommand) {
        match command {
            DestinationCommand::Peer(socket, hello, address) => self.next_peer = Some((socket, hello, address)),
            DestinationCommand::Promote { force, done } => self.promote(force, done),
            DestinationCommand::Status(answer) => drop(answer.send(self.status())),
            DestinationCommand::Stop => self.stopping = true,
        }
    }

    fn promote(&mut self, force: bool, done: Waiting) {
        let refusal = if self.promote.is_some() {
            Some("a promote is under way already".into())
        } else if self.core.connected() && !force {
            let address = self.peer_address().unwrap_or_default();
            Some(format!(
                "the source is connected ({address}) and may be answering writes: stop it first, or give --force to take over from it"
            ))
        } else if !self.core.promotable() && !force {
            Some(
                "the image isn't a whole copy yet: the first sync never finished. Let it finish, or give --force to serve what is there"
                    .into(),
            )
        } else {
            None
        };
        match refusal {
            Some(reason) => drop(done.send(Err(reason))),
            None => self.promote = Some(done),
        }
    }

    /// A promote begins when nothing of the connection is under way any more; until then nothing new is acknowledged.
    fn begin_promote(&mut self) {
        if self.promote.is_none() || self.promote_begun {
            return;
        }
        self.fence_peer();
        if self.peer.is_none() {
            self.promote_begun = true;
            self.core.handle_promote(&mut self.effects);
        }
    }

    fn pump_apply(&mut self) {
        let depth = if self.core.apply_is_late() { APPLY_DEPTH.1 } else { APPLY_DEPTH.0 };
        let mut pieces = std::mem::take(&mut self.pieces);
        while self.core.applies_under_way() < depth
            && let Some(op) = self.core.next_apply(&mut pieces)
        {
            let disk = &self.images[usize::from(op.volume)].disk;
            match op.run.action {
                Action::Write => self.ring.write(Token::Apply(op.volume), disk.fd(), op.run.offset, &pieces, false),
                Action::Zero { no_hole } => {
                    let zeroing = Zeroing { volume: op.volume, offset: op.run.offset, length: op.run.length, no_hole };
                    let zeros = receive::zeros_place(self.core.superblock().half_bytes);
                    zeroing.start(&mut self.ring, Token::Zero, disk, zeros);
                }
            }
        }
        self.pieces = pieces;
    }

    fn status(&self) -> DestinationStatus {
        let capacity_bytes = self.core.superblock().half_bytes;
        let half = |half: &crate::core::destination::Half| HalfStatus {
            fill: half.fill.0,
            state: half.word(),
            bytes: if half.state == State::Clean { 0 } else { half.stored },
            capacity_bytes,
            records: half.records,
        };
        DestinationStatus {
            superblock: self.core.superblock().clone(),
            promotable: self.core.promotable(),
            base_record: None,
            phase: self.core.superblock().staging.phase,
            staged_bytes: 0,
            staging_limit_bytes: 0,
            staging_trouble: None,
            heard_unix_s: None,
            answered_record: 0,
            source_alone: false,
            peer: self.peer_address(),
            reason: self.reason.clone(),
            held_record: self.core.stored().seq.0,
            verified_record: self.core.verified().0,
            halves: self.core.halves().iter().map(half).collect(),
            counters: self.counters,
        }
    }
}
