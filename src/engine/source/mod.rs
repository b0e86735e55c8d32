//! Drives the source's core: NBD clients, the journal, the volumes and the connection to the destination, from one
//! loop on one thread.
//!
//! Each turn of the loop waits for completions, hands them to the core, lets the core act on all of them at once
//! ([`Source::handle_turn`]), and queues what follows. Everything queued in one turn reaches the kernel in one system
//! call, together with the wait for the next.

mod clients;
mod copies;
mod journal;
mod peer;
mod reads;
mod report;
mod start;

use super::clients::{Clients, Serve as _, shut_down};
use super::command::{Commands, Counters, LinkState, Setting, SourceCommand};
use super::disk::Disk;
use super::memory::{Memory, Pool};
use super::ring::Ring;
use super::run;
use super::zeroing::Zeroing;
use crate::core::grains::Grains;
use crate::core::half::Ticket;
use crate::core::index::Segment;
use crate::core::policy::Policy;
use crate::core::source::{Effect, FrameId, Headers, Source};
use crate::core::{Durability, Place};
use crate::format::block::Block;
use crate::format::ids::Mark;
use crate::limits::{BLOCK_BYTES, JOURNAL_DATA_OFFSET};
use crossbeam_channel::Receiver;
use nix::sys::eventfd::EventFd;
use peer::Peer;
use report::Report;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

pub use start::{Birth, Handle, Plan, Promoted, Volume, journal_bytes, look, spawn};

/// Device writes of a flush under way while it is on time, and while it is late.
const FLUSH_DEPTH: (u32, u32) = (4, 32);

/// How long a source that ends waits for its destination to hear of it.
const GOODBYE: Duration = Duration::from_millis(500);

/// Names an operation under way.
#[derive(Debug, Clone, Copy)]
enum Token {
    Wake,
    ClientReceive(u32),
    ClientSend(u32),
    PeerReceive,
    PeerSend,
    Frame(FrameId),
    JournalSync,
    Superblock,
    Map,
    Flush(u16),
    Zero(Zeroing),
    VolumeSync(u16),
    Read(Ticket, u16),
    Copy(usize),
}

/// Why an engine ended by itself: a disk failed, and going on would break a promise.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The journal, a volume, an image or a state file failed.
    #[error(
        "{what} failed: {cause}; stopping, since no write could be answered safely. After the repair start again with the same command"
    )]
    Disk {
        /// Which, and what was tried.
        what: String,
        /// The system's error.
        cause: io::Error,
    },
    /// io_uring itself failed.
    #[error("io_uring failed: {0}")]
    Ring(#[from] io::Error),
}

struct Engine {
    core: Source,
    durability: Durability,
    ring: Ring<Token>,
    memory: Arc<Memory>,
    pool: Pool,
    clients: Clients,
    peer: Option<Peer>,
    peer_memory: Place,
    next_peer: Option<(std::os::fd::OwnedFd, Box<crate::format::wire::Welcome>, Option<Box<Grains>>)>,
    /// Whoever waits for the hand-over, and since when no write is taken.
    hand_over: Option<(Instant, oneshot::Sender<Result<Duration, String>>)>,
    journal: Disk,
    superblock_memory: Place,
    map_memory: Place,
    zeros: Place,
    half_bytes: u64,
    volumes: Vec<Disk>,
    commands: Receiver<SourceCommand>,
    wake: Arc<EventFd>,
    link: watch::Sender<LinkState>,
    syncs: Vec<(u64, oneshot::Sender<Mark>)>,
    sync_count: u64,
    report: Report,
    copies: Vec<copies::Reading>,
    /// Told to stop: the destination hears of it until then.
    stopping: Option<Duration>,
    counters: Counters,
    started: Instant,
    effects: Vec<Effect>,
    pieces: Vec<(Place, u64)>,
    /// Writes whose client left in the middle of the payload.
    abandoned: Vec<(u32, Ticket, Option<super::client::Piece>)>,
    segments: Vec<Segment>,
}

/// Stores header blocks in the pool. A place is always left for them: clients are kept from the last chunks.
struct HeaderMemory<'a> {
    memory: &'a Memory,
    pool: &'a mut Pool,
}

impl Headers for HeaderMemory<'_> {
    fn store(&mut self, block: &Block) -> Place {
        let (place, _) = self.pool.take(BLOCK_BYTES).expect("clients leave memory for headers");
        // SAFETY: the place was just taken; nobody else knows it.
        unsafe { self.memory.bytes_mut(place, BLOCK_BYTES) }.copy_from_slice(block);
        place
    }
}

impl Engine {
    /// Runs until it is told to stop, or a disk fails.
    fn run(mut self) -> Result<(), EngineError> {
        let outcome = self.serve();
        self.drain(outcome.is_err());
        outcome
    }

    fn serve(&mut self) -> Result<(), EngineError> {
        self.ring.wake_on(Token::Wake, self.wake.as_raw_fd());
        let mut finished = Vec::new();
        self.turn()?;
        while !self.stopped() {
            let now = self.started.elapsed();
            let deadline = self.core.next_deadline().into_iter().chain(self.stopping).min();
            let timeout = deadline.map(|deadline| deadline.saturating_sub(now));
            self.ring.wait(timeout, &mut finished)?;
            for (token, outcome) in finished.drain(..) {
                self.handle(token, outcome)?;
            }
            self.turn()?;
        }
        Ok(())
    }

    /// No client hears an answer any more; the destination is told that none will.
    fn stop(&mut self) {
        self.kill_clients();
        let patience = if self.core.handle_end() { GOODBYE } else { Duration::ZERO };
        self.stopping = Some(self.started.elapsed() + patience);
    }

    fn stopped(&self) -> bool {
        self.stopping.is_some_and(|until| self.core.has_ended() || self.started.elapsed() >= until)
    }

    /// Closes every socket and waits for what is still under way: its memory must not go before.
    fn drain(&mut self, failed: bool) {
        self.clients.shut_down();
        self.close_peer("stopping");
        self.ring.drain();
        if failed {
            tracing::error!("stopped after a failure; clients' connections were closed without a reply");
        }
    }

    fn handle(&mut self, token: Token, outcome: io::Result<usize>) -> Result<(), EngineError> {
        match token {
            Token::Wake => {
                self.ring.wake_on(Token::Wake, self.wake.as_raw_fd());
                while let Ok(command) = self.commands.try_recv() {
                    self.handle_command(command);
                }
            }
            Token::ClientReceive(client) => self.client_received(client, outcome),
            Token::ClientSend(client) => self.client_sent(client, outcome),
            Token::PeerReceive => self.peer_received(outcome),
            Token::PeerSend => self.peer_sent(outcome),
            Token::Frame(id) => {
                let bytes = outcome.map_err(|cause| failed("the journal's write", &self.journal, cause))?;
                self.counters.journal_bytes += bytes as u64;
                self.counters.journal_writes += 1;
                self.core.handle_frame_written(id);
            }
            Token::JournalSync => {
                outcome.map_err(|cause| failed("the journal's sync", &self.journal, cause))?;
                self.core.handle_journal_synced();
            }
            Token::Superblock => {
                outcome.map_err(|cause| failed("the superblock's write", &self.journal, cause))?;
                self.core.handle_superblock_written(&mut self.effects);
            }
            Token::Map => {
                outcome.map_err(|cause| failed("the dirty bitmap's write", &self.journal, cause))?;
                self.core.handle_map_written();
            }
            Token::Flush(volume) => {
                let disk = &self.volumes[usize::from(volume)];
                let bytes = outcome.map_err(|cause| failed("the flush to the volume", disk, cause))?;
                self.counters.flushed_bytes += bytes as u64;
                self.core.handle_flush_written();
            }
            Token::Zero(zeroing) => self.zeroed(zeroing, outcome)?,
            Token::VolumeSync(volume) => {
                outcome.map_err(|cause| failed("the volume's sync", &self.volumes[usize::from(volume)], cause))?;
                self.core.handle_volume_synced(volume);
            }
            Token::Read(ticket, volume) => self.read_done(ticket, volume, outcome),
            Token::Copy(number) => self.copy_read(number, outcome),
        }
        Ok(())
    }

    /// Lets the core act on everything that has happened, and queues what follows.
    fn turn(&mut self) -> Result<(), EngineError> {
        self.admit_peer();
        loop {
            self.bury();
            if self.pool.free_chunks() <= clients::RESERVED_CHUNKS + clients::LOW_CHUNKS {
                self.core.handle_memory_low();
            }
            self.open_gates();
            let now = self.started.elapsed();
            let mut headers = HeaderMemory { memory: &self.memory, pool: &mut self.pool };
            self.core.handle_turn(now, &mut headers, &mut self.effects);
            // The destination first: its work and ours then overlap the longest.
            self.pump_peer();
            let mut effects = std::mem::take(&mut self.effects);
            let mut settled = effects.is_empty();
            for effect in effects.drain(..) {
                self.act(effect);
            }
            // What acting on effects caused goes behind, in the same allocation.
            effects.append(&mut self.effects);
            self.effects = effects;
            settled &= !self.pump_copies();
            // What unanswerable requests give back may be what a gated client waits for.
            settled &= !self.queue_replies() || !self.clients.any_gated();
            if settled {
                break;
            }
        }
        if !self.core.hands_over()
            && let Some((_, done)) = self.hand_over.take()
        {
            let why = "given up: the destination didn't take over, its log says why; writes are taken again";
            tracing::warn!("handing over was {why}");
            // Nobody may be waiting any more.
            let _ = done.send(Err(why.into()));
        }
        self.pump_flush();
        self.pump_clients();
        Ok(())
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::WriteFrame(id) => self.write_frame(id),
            Effect::SyncJournal => self.ring.sync(Token::JournalSync, self.journal.target()),
            Effect::Answer(ticket) => self.part_answered(ticket),
            Effect::WriteSuperblock(block, offset) => self.write_superblock(&block, offset),
            Effect::WriteMap(bytes, offset) => self.write_map(&bytes, offset),
            Effect::Fail(ticket) => {
                self.clients.requests.get(ticket).error = Some(crate::format::nbd::Errno::Io);
                self.part_answered(ticket);
            }
            Effect::Mode(mode) => self.report.mode(mode, &self.core, &self.link.borrow(), self.started),
            Effect::Resync(resync) => self.report.resync(&resync, self.started),
            Effect::Verified(outcome) => self.report.verified(outcome),
            Effect::SyncVolume(volume) => {
                self.ring.sync(Token::VolumeSync(volume), self.volumes[usize::from(volume)].target())
            }
            Effect::Release(place, bytes) => self.pool.release(place, bytes),
            Effect::ClosePeer(reason) => self.close_peer(&reason),
            Effect::Fenced(epoch) => {
                let reason = format!("fenced: another side was promoted in epoch {epoch}");
                tracing::error!(
                    "{reason}. No write is answered any more; clients' connections are closed without a reply"
                );
                self.kill_clients();
                self.close_peer(&reason);
                self.link.send_replace(LinkState::Fenced(epoch));
                if let Some((since, done)) = self.hand_over.take() {
                    // Nobody may be waiting any more.
                    let _ = done.send(Ok(since.elapsed()));
                }
            }
            Effect::SyncDone(token) => {
                if let Some(at) = self.syncs.iter().position(|(t, _)| *t == token) {
                    let (_, done) = self.syncs.swap_remove(at);
                    // Nobody may be waiting any more.
                    let _ = done.send(self.core.superblock().clean);
                }
            }
            Effect::Switched(mark) => tracing::debug!("switched halves at {mark}"),
        }
    }

    fn handle_command(&mut self, command: SourceCommand) {
        match command {
            SourceCommand::Client(socket, negotiated) => self.serve_client(socket, negotiated),
            SourceCommand::Hello(answer) => drop(answer.send(self.core.hello())),
            SourceCommand::Peer(socket, welcome, lacks) => self.next_peer = Some((socket, welcome, lacks)),
            SourceCommand::HandOver(done) => match self.core.handle_hand_over() {
                Ok(()) => {
                    tracing::info!("handing over to the destination; no write is taken");
                    self.hand_over = Some((Instant::now(), done));
                }
                Err(reason) => drop(done.send(Err(reason.into()))),
            },
            SourceCommand::Sync(done) => {
                self.sync_count += 1;
                self.syncs.push((self.sync_count, done));
                self.core.handle_sync(self.sync_count);
            }
            SourceCommand::Status(answer) => {
                let status = self.status();
                // Nobody may be waiting any more.
                let _ = answer.send(status);
            }
            SourceCommand::Set(setting, done) => {
                match setting {
                    Setting::OnDisconnect(on_disconnect) => {
                        self.core.handle_policy(Policy { on_disconnect, ..self.core.policy() });
                    }
                    Setting::Timeout(timeout) => self.core.handle_timeout(timeout),
                }
                // Nobody may be waiting any more.
                let _ = done.send(());
            }
            // One that has ended in this turn hasn't been told yet.
            SourceCommand::Verify { done, .. } if self.report.verifies() => {
                drop(done.send(Err("a verify is under way already".into())));
            }
            SourceCommand::Verify { repair, done } => match self.core.handle_verify(repair) {
                Ok(()) => self.report.begin_verify(repair, done),
                Err(reason) => drop(done.send(Err(reason.into()))),
            },
            SourceCommand::Stop => self.stop(),
        }
    }

    fn pump_flush(&mut self) {
        let depth = if self.core.flush_is_late() { FLUSH_DEPTH.1 } else { FLUSH_DEPTH.0 };
        let mut pieces = std::mem::take(&mut self.pieces);
        while self.core.flushes_under_way() < depth
            && let Some(op) = self.core.next_flush(&mut pieces)
        {
            let disk = &self.volumes[usize::from(op.volume)];
            run::start(op, &mut self.ring, disk, &pieces, self.zeros, Token::Flush(op.volume), Token::Zero);
        }
        self.pieces = pieces;
    }

    fn zeroed(&mut self, zeroing: Zeroing, outcome: io::Result<usize>) -> Result<(), EngineError> {
        let disk = &mut self.volumes[usize::from(zeroing.volume)];
        match zeroing.next(disk, outcome).map_err(|cause| failed("zeroing a range of the volume", disk, cause))? {
            Some(rest) => rest.start(&mut self.ring, Token::Zero, disk, self.zeros),
            None => self.core.handle_flush_written(),
        }
        Ok(())
    }
}

/// An operation on this disk failed for good.
pub(super) fn failed(what: &str, disk: &Disk, cause: io::Error) -> EngineError {
    EngineError::Disk { what: format!("{what} ({})", disk.path().display()), cause }
}

/// Where the dirty bitmap starts in the journal, in bytes: behind both halves.
pub(super) fn map_offset(half_bytes: u64) -> u64 {
    journal_offset(half_bytes, 2, 0)
}

/// Where a frame starts in the journal, in bytes.
fn journal_offset(half_bytes: u64, half: usize, position: u64) -> u64 {
    JOURNAL_DATA_OFFSET + half as u64 * half_bytes + position
}

/// The commands' sending side, for a handle.
type Sender = Commands<SourceCommand>;
