//! What the control plane asks of an engine, and what an engine tells it.
//!
//! Commands go in over a bounded channel and an eventfd; answers come back over tokio's oneshot and watch, whose
//! senders never block.

use super::destination::Warrant;
use super::store::Store;
use crate::core::destination::Unreadable;
use crate::core::grains::Grains;
use crate::core::policy::{Mode, OnDisconnect, Policy};
use crate::format::ids::{Epoch, Mark};
use crate::format::nbd::Negotiated;
use crate::format::superblock::{Phase, Superblock};
use crate::format::wire::Welcome;
use crossbeam_channel::Sender;
use nix::sys::eventfd::EventFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
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
    Peer(OwnedFd, Box<Welcome>, Option<Box<Grains>>),
    /// Switch halves, and answer when all is applied.
    Sync(oneshot::Sender<Mark>),
    /// Change a setting of the running source; answered when it holds.
    Set(Setting, oneshot::Sender<()>),
    /// Compare volumes and images; answered at the end, or with the reason why not.
    Verify {
        /// Whether what differs is sent again at once.
        repair: bool,
        /// Whom to answer.
        done: oneshot::Sender<Result<Verified, String>>,
    },
    /// Stop taking writes and hand over to the destination; answered when this source is fenced, with the time since writes
    /// were taken last, or with the reason why not.
    HandOver(oneshot::Sender<Result<Duration, String>>),
    /// How things stand.
    Status(oneshot::Sender<SourceStatus>),
    /// Close everything and end.
    Stop,
}

/// A setting that can be changed while a source runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// What becomes of writes while the destination is away. `Continue` also releases a source that waits for a
    /// destination that it hasn't met since its start.
    OnDisconnect(OnDisconnect),
    /// How long the destination may be away.
    Timeout(Duration),
}

/// What a verify has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes compared.
    pub compared_bytes: u64,
    /// Bytes that differ, in whole blocks.
    pub differing_bytes: u64,
    /// Bytes of those that were sent again.
    pub repaired_bytes: u64,
    /// The first ranges that differ, as volume, offset and length in bytes.
    pub ranges: Vec<(u16, u64, u64)>,
    /// When it ended, in seconds since 1970.
    pub ended_unix_s: u64,
}

/// How far a resync or a verify has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes to be looked at in all.
    pub total_bytes: u64,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes of those that had to be sent.
    pub sent_bytes: u64,
    /// How many bytes are done a second, over the last seconds.
    pub bytes_per_s: u64,
    /// When it began, in seconds since 1970.
    pub began_unix_s: u64,
}

/// What a source knows of the destination that it is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStatus {
    /// Where complete fills went when it was met.
    pub phase: Phase,
    /// Whether a promote there gives a consistent image.
    pub promotable: bool,
    /// The last record of that image, where it is an earlier state than the one of its last frame.
    pub base_record: u64,
    /// How long ago it was heard, in milliseconds.
    pub heard_ms_ago: u64,
}

/// To a destination's engine of one source.
#[derive(Debug)]
pub enum DestinationCommand {
    /// A source introduced itself.
    Peer(OwnedFd, Box<Superblock>, String),
    /// Let this client read an image; the handshake is done.
    Client(OwnedFd, Negotiated),
    /// Raise the epoch, apply all that is stored, and end. An `Err` says why not.
    Promote {
        /// Even though the source is connected, or the image isn't whole.
        force: bool,
        /// Answered when the images hold everything.
        done: oneshot::Sender<Promoted>,
    },
    /// How things stand.
    Status(oneshot::Sender<DestinationStatus>),
    /// Close everything and end.
    Stop,
}

/// How a promote went.
#[derive(Debug)]
pub struct Promoted {
    /// What was known before it.
    pub warrant: Box<Warrant>,
    /// The last record served, or why it was refused.
    pub outcome: Result<Mark, String>,
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
    /// Of these, writes that found no room in the shared log.
    pub bypassed_writes: u64,
}

/// What of a source is in the shared log.
#[derive(Debug, Clone, Copy)]
pub struct Logged {
    /// Bytes of its frames.
    pub logged_bytes: u64,
    /// Bytes that it has for itself.
    pub own_bytes: u64,
    /// Journal writes of this run that found no room.
    pub bypassed_writes: u64,
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
    /// How the journal is written.
    pub journal: Store,
    /// The fill that is open.
    pub open_fill: u64,
    /// Both halves.
    pub halves: Vec<HalfStatus>,
    /// Fills that a promote left, and that aren't on the volumes yet.
    pub inherited: usize,
    /// The last record before them, where there are any.
    pub before_inherited: Option<u64>,
    /// NBD connections.
    pub clients: usize,
    /// Requests that aren't answered.
    pub requests: usize,
    /// Records that wait for room in the journal.
    pub waiting: usize,
    /// How it stands towards its destination.
    pub mode: Mode,
    /// Since when, in milliseconds since 1970.
    pub mode_since_unix_ms: u64,
    /// The policy that holds now.
    pub policy: Policy,
    /// Whether it waits at its start, as it doesn't know whether the destination was promoted since it last ran.
    pub held_back: bool,
    /// Whether what the destination holds is a whole copy as of its last frame, as far as is known here.
    pub whole: bool,
    /// Since when the image that a promote would give lacks answered writes, in seconds since 1970.
    pub lacking_since_unix_s: Option<u64>,
    /// Bytes of volumes that changed and that the destination doesn't hold: a bound from above.
    pub lacking_bytes: u64,
    /// The destination, while there is a connection.
    pub peer: Option<PeerStatus>,
    /// The resync, while one goes on.
    pub resync: Option<Progress>,
    /// The verify, while one goes on.
    pub verify: Option<Progress>,
    /// The last verify.
    pub verified: Option<Verified>,
    /// Counters.
    pub counters: Counters,
}

/// How a destination's source stands.
#[derive(Debug, Clone)]
pub struct DestinationStatus {
    /// The durable facts.
    pub superblock: Superblock,
    /// What of it is in the shared log, where there is one.
    pub logged: Option<Logged>,
    /// Whether a promote would give a consistent image.
    pub promotable: bool,
    /// The last record that who reads an image sees; or why nobody may.
    pub live: Result<u64, Unreadable>,
    /// Clients that read the images.
    pub clients: usize,
    /// The last record of that image, where it is an earlier state than what is held: during a resync.
    pub base_record: Option<u64>,
    /// Where complete fills go.
    pub phase: Phase,
    /// Bytes in the staging log that aren't on the images.
    pub staged_bytes: u64,
    /// Bytes that the staging log may hold.
    pub staging_limit_bytes: u64,
    /// Why the staging log takes no more.
    pub staging_trouble: Option<String>,
    /// When the source was heard last, in seconds since 1970.
    pub heard_unix_s: Option<u64>,
    /// The last record that the source said it had answered.
    pub answered_record: u64,
    /// Whether the source said, when it was heard last, that it answers writes alone.
    pub source_alone: bool,
    /// What a promote would serve and lack.
    pub warrant: Box<Warrant>,
    /// The connected source's address.
    pub peer: Option<String>,
    /// Why the last connection ended.
    pub reason: Option<String>,
    /// The last record stored.
    pub held_record: u64,
    /// The last record up to which both digests were compared.
    pub verified_record: u64,
    /// How the journal files and the state are written.
    pub journal: Store,
    /// Both halves.
    pub halves: Vec<HalfStatus>,
    /// Counters.
    pub counters: Counters,
}
