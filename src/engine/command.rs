//! What the control plane asks of an engine, and what an engine tells it.
//!
//! Commands go in over a bounded channel and an eventfd; answers come back over tokio's oneshot and watch, whose
//! senders never block.

use crate::format::ids::{Epoch, Mark};
use crate::format::nbd::Negotiated;
use crate::format::superblock::Superblock;
use crate::format::wire::Welcome;
use crossbeam_channel::Sender;
use nix::sys::eventfd::EventFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Commands that may wait for an engine.
pub const MAX_COMMANDS: usize = 256;

/// To a source's engine.
#[derive(Debug)]
pub enum SourceCommand {
    /// Serve this client; the handshake is done.
    Client(OwnedFd, Negotiated),
    /// What to introduce ourselves with at the destination.
    Hello(oneshot::Sender<Superblock>),
    /// The destination answered our hello.
    Peer(OwnedFd, Box<Welcome>),
    /// Switch halves, and answer when all is applied.
    Sync(oneshot::Sender<Mark>),
    /// How things stand.
    Status(oneshot::Sender<SourceStatus>),
    /// Close everything and end.
    Stop,
}

/// To a destination's engine of one source.
#[derive(Debug)]
pub enum DestinationCommand {
    /// A source introduced itself.
    Peer(OwnedFd, Box<Superblock>, String),
    /// Raise the epoch, apply all that is stored, and end. An `Err` says why not.
    Promote {
        /// Even though the source is connected, or the image isn't whole.
        force: bool,
        /// Answered when the images hold everything.
        done: oneshot::Sender<Result<Mark, String>>,
    },
    /// How things stand.
    Status(oneshot::Sender<DestinationStatus>),
    /// Close everything and end.
    Stop,
}

/// The connection to the destination, as the source's engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// There is none, for this reason; another may be made.
    Down(String),
    /// There is one.
    Up,
    /// There never will be one: another side was promoted.
    Fenced(Epoch),
}

/// Sends commands to an engine's thread.
#[derive(Debug)]
pub struct Commands<C> {
    sender: Sender<C>,
    wake: Arc<EventFd>,
}

impl<C> Clone for Commands<C> {
    fn clone(&self) -> Commands<C> {
        Commands { sender: self.sender.clone(), wake: self.wake.clone() }
    }
}

/// The engine has ended, or has more commands waiting than it can take.
#[derive(Debug, thiserror::Error)]
#[error("the engine doesn't take commands")]
pub struct Unavailable;

impl<C> Commands<C> {
    /// A channel's sending side.
    pub fn new(sender: Sender<C>, wake: Arc<EventFd>) -> Commands<C> {
        Commands { sender, wake }
    }

    /// Hands over a command. Never blocks.
    pub fn send(&self, command: C) -> Result<(), Unavailable> {
        self.sender.try_send(command).map_err(|_| Unavailable)?;
        self.wake.write(1).map_err(|_| Unavailable)?;
        Ok(())
    }
}

/// A half as shown in status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalfStatus {
    /// The fill in it.
    pub fill: u64,
    /// How far it has come.
    pub state: &'static str,
    /// Bytes used.
    pub bytes: u64,
    /// Bytes there are.
    pub capacity_bytes: u64,
    /// Records in it.
    pub records: u64,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes, trims and write-zeroes answered without error.
    pub answered_writes: u64,
    /// Reads answered without error.
    pub answered_reads: u64,
    /// Bytes received with writes.
    pub written_bytes: u64,
    /// Bytes read by clients.
    pub read_bytes: u64,
    /// Bytes written to volumes or images.
    pub flushed_bytes: u64,
    /// Bytes of frames written to the journal.
    pub journal_bytes: u64,
    /// Frames written to the journal, or journal writes at a destination.
    pub journal_writes: u64,
}

/// How a source stands.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    /// The durable facts.
    pub superblock: Superblock,
    /// The connection.
    pub link: LinkState,
    /// The last record in the order.
    pub last_record: u64,
    /// The last record in the local journal.
    pub stored_here: u64,
    /// The last record at the destination.
    pub stored_there: u64,
    /// The last record up to which both digests were compared.
    pub verified_record: u64,
    /// The fill that is open.
    pub open_fill: u64,
    /// Both halves.
    pub halves: Vec<HalfStatus>,
    /// NBD connections.
    pub clients: usize,
    /// Requests that aren't answered.
    pub requests: usize,
    /// Records that wait for room in the journal.
    pub waiting: usize,
    /// First-sync cursors while one goes on.
    pub copied: Option<Vec<u64>>,
    /// Counters.
    pub counters: Counters,
}

/// How a destination's source stands.
#[derive(Debug, Clone)]
pub struct DestinationStatus {
    /// The durable facts.
    pub superblock: Superblock,
    /// Whether a promote would give a consistent image.
    pub promotable: bool,
    /// The connected source's address.
    pub peer: Option<String>,
    /// Why the last connection ended.
    pub reason: Option<String>,
    /// The last record stored.
    pub held_record: u64,
    /// The last record up to which both digests were compared.
    pub verified_record: u64,
    /// Both halves.
    pub halves: Vec<HalfStatus>,
    /// Counters.
    pub counters: Counters,
}
