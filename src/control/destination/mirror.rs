//! One source's mirror, through its life: empty until the source connects for the first time, then an engine that
//! receives, and after a promote a source's engine that serves the images.

use super::super::config::{AdminConfig, DestinationConfig, HostPort, MirroredSource};
use super::super::exports::{Exports, Served, Server};
use super::super::link::{self, Reason};
use super::super::seat::{self, Seat, Turn};
use super::super::source::{open_whole, shape};
use super::super::{admin, handshake, status};
use crate::core::Durability;
use crate::core::policy::Policy;
use crate::core::recovery::hello;
use crate::engine::command::{Commands, DestinationCommand, DestinationStatus, LinkState, SourceCommand, SourceStatus};
use crate::engine::destination::{self as engine, Ended, Folder, Image, Promotion, StagingPlan, rejoin};
use crate::engine::source::{self as serving, Birth, Plan, Promoted};
use crate::format::ids::Epoch;
use crate::format::nbd::ExportShape;
use crate::format::nbd::identity::{Identity, Role, VolumeId};
use crate::format::superblock::{Phase, Superblock, Volume};
use crate::format::wire::{Fork, Verdict, Welcome};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;

/// What a volume's name is followed by where its image is read while it is mirrored.
const IMAGE: &str = "@image";
/// How old a fill of a promoted image may become.
const PROMOTED_MAX_AGE: Duration = Duration::from_secs(10);
/// How long a stopping engine may take.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What the staging log of each source may take, by the configuration.
pub(super) fn staging_plan(config: &DestinationConfig) -> StagingPlan {
    StagingPlan { limit_bytes: config.staging_size_bytes, best_effort: config.best_effort() }
}

/// What a mirror is at the moment.
#[derive(Debug)]
enum State {
    /// The source never connected.
    Empty(Vec<Image>),
    /// Frames are received, or waited for.
    Receiving { commands: Commands<DestinationCommand>, exports: Vec<String> },
    /// The images are served.
    Promoted {
        commands: Commands<SourceCommand>,
        superblock: Box<Superblock>,
        /// Where the order went on here.
        fork: Fork,
        /// Why the peer isn't connected.
        reason: Reason,
        exports: Vec<String>,
    },
    /// Something failed; the daemon must be started again after the repair.
    Failed(String),
}

/// What a mirror is to know of where it runs.
#[derive(Debug)]
pub(super) struct Node {
    /// Where its daemon is asked.
    pub admin: AdminConfig,
    /// Whether the images may be written to by others once they were promoted.
    pub unwatched: bool,
    /// Whether images may be read while they are mirrored.
    pub live: bool,
}

/// How promoted images are served.
#[derive(Debug)]
struct Serving {
    peer: Option<HostPort>,
    admin: AdminConfig,
    unwatched: bool,
    durability: Durability,
    policy: Policy,
}

/// One source's mirror.
#[derive(Debug)]
pub(super) struct Mirror {
    name: String,
    folder: PathBuf,
    images: Vec<(String, PathBuf)>,
    /// What it is once it was promoted.
    serving: Serving,
    plan: StagingPlan,
    /// Whether images may be read while they are mirrored: whether there is an address to do so.
    live: bool,
    exports: Exports,
    state: Mutex<State>,
    /// One for each engine: they end when it has let go of everything.
    engines: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl Mirror {
    /// Opens the images and whatever is stored of the source.
    pub(super) async fn start(
        config: &MirroredSource,
        node: Node,
        journal_dir: &Path,
        plan: StagingPlan,
        exports: Exports,
        init: bool,
    ) -> anyhow::Result<Arc<Mirror>> {
        let mut images = Vec::new();
        for volume in &config.volumes {
            images.push(Image { name: volume.name.clone(), disk: open_whole("image", &volume.image)? });
        }
        let mirror = Arc::new(Mirror {
            name: config.name.clone(),
            folder: journal_dir.join(&config.name),
            images: config.volumes.iter().map(|volume| (volume.name.clone(), volume.image.clone())).collect(),
            serving: Serving {
                peer: config.peer.clone(),
                admin: node.admin,
                unwatched: node.unwatched,
                durability: config.durability.into(),
                policy: Policy { on_disconnect: config.on_disconnect.into(), timeout: config.timeout },
            },
            plan,
            live: node.live,
            exports,
            state: Mutex::new(State::Empty(Vec::new())),
            engines: std::sync::Mutex::default(),
        });
        let mut state = mirror.state.lock().await;
        *state = match Folder::open(&mirror.folder, &mirror.name, init)? {
            None => State::Empty(images),
            // Damage in what one promote left is no matter of the other sources.
            Some(folder) if folder.superblock().promoted => {
                let served = mirror.clone().serve(folder.superblock().clone(), images, None).await;
                served.unwrap_or_else(|error| mirror.failed(&format!("{error:#}")))
            }
            Some(folder) => match mirror.clone().receive(folder, images).await {
                Ok(state) => state,
                Err(error) => mirror.failed(&format!("{error:#}")),
            },
        };
        drop(state);
        Ok(mirror)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn failed(&self, reason: &str) -> State {
        tracing::error!("source {}: {reason}", self.name);
        State::Failed(reason.to_owned())
    }

    /// Starts the engine that receives, and a task that sees how it ends.
    async fn receive(self: Arc<Mirror>, folder: Folder, images: Vec<Image>) -> anyhow::Result<State> {
        let (plan, live) = (self.plan, self.live);
        let Superblock { volumes, lineage, epoch, .. } = folder.superblock().clone();
        let handle = tokio::task::spawn_blocking(move || engine::spawn(folder, images, plan, live)).await??;
        let engine::Handle { commands, refusal, ended } = handle;
        let mut exports = Vec::new();
        for (volume, facts) in volumes.into_iter().enumerate().filter(|_| live) {
            let Volume { name, size_bytes, block_bytes } = facts;
            let shape = ExportShape { size_bytes, block_bytes, read_only: true };
            let identity = Identity { volume: VolumeId::of(lineage, &name), epoch, role: Role::Image };
            let server = Server::Image(commands.clone(), refusal.clone());
            // Not the volume's own name: a client that lost the volume here, when roles were swapped, must not find something
            // that answers its writes with an error.
            let name = format!("{name}{IMAGE}");
            exports.push(self.exports.add(&self.name, Served { name, shape, identity, server, volume }));
        }
        let (mirror, read_only) = (self.clone(), exports.clone());
        self.watch(tokio::spawn(async move {
            let ended = ended.await;
            // Nobody reads the images any more.
            mirror.exports.remove(&read_only);
            let state = match ended {
                Ok(Ok(Ended::Stopped)) => return,
                Ok(Ok(Ended::Promoted(promotion, images))) => {
                    tracing::info!("source {}: promoted at {}", mirror.name, promotion.at);
                    mirror.clone().reopen(images, promotion).await
                }
                Ok(Err(error)) => mirror.failed(&error.to_string()),
                Err(_) => mirror.failed("the engine's thread ended"),
            };
            *mirror.state.lock().await = state;
        }));
        Ok(State::Receiving { commands, exports })
    }

    /// Serves the images after a promote.
    async fn reopen(self: Arc<Mirror>, images: Vec<Image>, promotion: Promotion) -> State {
        let served = async {
            let folder = Folder::open(&self.folder, &self.name, false)?.context("the state file is gone")?;
            self.clone().serve(folder.superblock().clone(), images, Some(promotion)).await
        };
        served.await.unwrap_or_else(|error| self.failed(&format!("{error:#}")))
    }

    /// Starts a source's engine on the images, with a journal of its own; the peer, if there is one, is its destination.
    async fn serve(
        self: Arc<Mirror>,
        superblock: Superblock,
        images: Vec<Image>,
        promotion: Option<Promotion>,
    ) -> anyhow::Result<State> {
        // They may be others than those that were promoted, by the configuration.
        engine::check_images(&superblock, &images).map_err(anyhow::Error::msg)?;
        let mut volumes = Vec::new();
        for (image, volume) in images.into_iter().zip(&superblock.volumes) {
            let Image { name, mut disk } = image;
            // An image may be larger than its volume.
            disk.size_bytes = volume.size_bytes;
            disk.block_bytes = volume.block_bytes;
            volumes.push(serving::Volume { name, disk });
        }
        let shapes: Vec<_> = volumes.iter().map(|volume| (volume.name.clone(), shape(&volume.disk))).collect();
        let handed_over = promotion.as_ref().is_some_and(|promotion| promotion.handed_over);
        let plan = Plan {
            name: self.name.clone(),
            durability: self.serving.durability,
            mirrored: self.serving.peer.is_some(),
            policy: self.serving.policy,
            grain_bytes: superblock.grain_bytes,
            max_age: PROMOTED_MAX_AGE,
            journal: Folder::promoted_journal(&self.folder),
            journal_bytes: 2 * superblock.half_bytes,
            volumes,
            birth: Birth::Promote(Box::new(Promoted {
                state: superblock.clone(),
                files: Folder::journal_files(&self.folder),
                held: promotion.map(|promotion| promotion.held),
                handed_over,
                unwatched: self.serving.unwatched,
            })),
            init: false,
        };
        let handle = tokio::task::spawn_blocking(|| serving::spawn(plan)).await??;
        let name = self.name.clone();
        let ended = handle.ended;
        self.watch(tokio::spawn(async move {
            if let Ok(Err(error)) = ended.await {
                tracing::error!("promoted source {name}: {error}");
            }
        }));
        let mut exports = Vec::new();
        for (volume, (name, shape)) in shapes.into_iter().enumerate() {
            let id = VolumeId::of(superblock.lineage, &name);
            let identity = Identity { volume: id, epoch: superblock.epoch, role: Role::Primary };
            let server = Server::Source(handle.commands.clone());
            let served = Served { name, shape, identity, server, volume };
            exports.push(self.exports.add(&self.name, served));
        }
        let at = superblock.known.last().copied().unwrap_or(superblock.clean);
        let fork = Fork { at, source: seat::ask(&handle.commands, SourceCommand::Hello).await?.source };
        let reason = Reason::default();
        if let Some(peer) = self.serving.peer.clone() {
            tokio::spawn(link::keep(peer, handle.commands.clone(), handle.link.clone(), reason.clone()));
        }
        let (mirror, mut link, served) = (self.clone(), handle.link, exports.clone());
        tokio::spawn(async move {
            // From now on nobody is served: a client that finds no export tries the next server.
            if link.wait_for(|state| matches!(state, LinkState::Fenced(_))).await.is_ok() {
                mirror.exports.remove(&served);
            }
        });
        tracing::info!("source {}: promoted images are served as {}", self.name, exports.join(", "));
        Ok(State::Promoted { commands: handle.commands, superblock: Box::new(superblock), fork, reason, exports })
    }

    /// A source introduced itself.
    pub(super) async fn meet(
        self: &Arc<Mirror>,
        mut stream: TcpStream,
        hello: Superblock,
        address: String,
    ) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        if let State::Empty(images) = &mut *state {
            match engine::check_images(&hello, images) {
                Err(reason) => {
                    drop(state);
                    let welcome = Welcome::refuse(Verdict::Refused, Epoch(0), reason.clone());
                    handshake::answer(&mut stream, &welcome).await?;
                    bail!(reason);
                }
                Ok(()) => {
                    match self.make_folder(&hello).await {
                        Ok(folder) => {
                            tracing::info!("source {} connected from {address} for the first time", self.name);
                            let images = std::mem::take(images);
                            *state = match self.clone().receive(folder, images).await {
                                Ok(state) => state,
                                Err(error) => self.failed(&format!("{error:#}")),
                            };
                        }
                        // Nothing is lost: the source comes back, and there may be room then.
                        Err(error) => {
                            drop(state);
                            let welcome = Welcome::refuse(Verdict::Refused, Epoch(0), format!("{error:#}"));
                            handshake::answer(&mut stream, &welcome).await?;
                            return Err(error);
                        }
                    }
                }
            }
        }
        let welcome = match &*state {
            State::Receiving { commands, .. } => {
                self.tell_lacks(commands, &hello, &mut stream).await?;
                let socket = handshake::into_owned_fd(stream)?;
                commands.send(DestinationCommand::Peer(socket, Box::new(hello), address))?;
                return Ok(());
            }
            State::Promoted { superblock, fork, .. } => match hello::answer(superblock, &hello, true, false) {
                hello::Answer::Refuse(welcome) if welcome.verdict == Verdict::Fenced => {
                    Welcome { fork: Some(*fork), ..*welcome }
                }
                hello::Answer::Refuse(welcome) => *welcome,
                hello::Answer::Later(reason) => Welcome::refuse(Verdict::Refused, Epoch(0), reason),
                hello::Answer::Welcome => Welcome::refuse(Verdict::Refused, Epoch(0), "not ready"),
            },
            State::Failed(reason) => {
                Welcome::refuse(Verdict::Refused, Epoch(0), format!("the destination failed: {reason}"))
            }
            State::Empty(_) => Welcome::refuse(Verdict::Refused, Epoch(0), "not ready"),
        };
        drop(state);
        handshake::answer(&mut stream, &welcome).await?;
        bail!(welcome.reason)
    }

    /// Says what the images may lack since this side was the source itself, until the copy is whole.
    async fn tell_lacks(
        &self,
        commands: &Commands<DestinationCommand>,
        hello: &Superblock,
        stream: &mut TcpStream,
    ) -> anyhow::Result<()> {
        let Some(map) = rejoin::lacks(&self.folder)? else { return Ok(()) };
        let (ask, answer) = oneshot::channel();
        commands.send(DestinationCommand::Status(ask))?;
        let ours = answer.await.context("the engine has ended")?.superblock;
        if ours.whole {
            rejoin::forget_lacks(&self.folder)?;
        } else if ours.staging.phase == Phase::Direct && ours.source == hello.source && ours.volumes == hello.volumes {
            handshake::tell_lacks(stream, &map).await?;
        }
        Ok(())
    }

    fn seat(&self) -> anyhow::Result<Seat> {
        let peer = self.serving.peer.clone();
        let peer = peer.with_context(|| {
            format!("source {} has no peer in this configuration: give its [[source]] one", self.name)
        })?;
        Ok(Seat {
            name: self.name.clone(),
            journal: Folder::promoted_journal(&self.folder),
            folder: self.folder.clone(),
            volumes: self.images.clone(),
            peer,
        })
    }

    /// The engine that serves the images.
    pub(super) async fn serving(&self) -> anyhow::Result<Commands<SourceCommand>> {
        match &*self.state.lock().await {
            State::Promoted { commands, .. } => Ok(commands.clone()),
            _ => bail!("source {} isn't served here: ask the side that serves it", self.name),
        }
    }

    /// Hands the images over to the peer, and mirrors it.
    pub(super) async fn switchover(self: &Arc<Mirror>) -> anyhow::Result<Value> {
        let (seat, commands) = (self.seat()?, self.serving().await?);
        let (turn, paused) = seat.hand_over(&commands).await?;
        self.turn(&seat, turn).await?;
        Ok(seat::handed_over(turn, paused))
    }

    /// Becomes the destination again, once the peer was promoted.
    pub(super) async fn rejoin(self: &Arc<Mirror>, discard: bool) -> anyhow::Result<Value> {
        let (seat, commands) = (self.seat()?, self.serving().await?);
        seat::fenced_by(&seat::ask(&commands, SourceCommand::Status).await?)?;
        let turn = seat.turn(&commands).await?;
        let (goes, answer) = seat.weigh(turn, discard).await?;
        if goes {
            self.turn(&seat, turn).await?;
        }
        Ok(answer)
    }

    /// The source's engine ends, and one that receives begins.
    async fn turn(self: &Arc<Mirror>, seat: &Seat, turn: Turn) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        if let State::Promoted { commands, exports, .. } = &*state {
            self.exports.remove(exports);
            if commands.send(SourceCommand::Stop).is_err() {
                tracing::debug!("source {}: its engine has ended already", self.name);
            }
        }
        self.engines_ended().await;
        let turned = async {
            let (folder, images) = seat.rejoin(turn).await?;
            self.clone().receive(folder, images).await
        };
        *state = turned.await.unwrap_or_else(|error| self.failed(&format!("{error:#}")));
        match &*state {
            State::Failed(reason) => {
                bail!("the other side serves, but this one can't become its destination: {reason}")
            }
            _ => Ok(()),
        }
    }

    async fn make_folder(&self, hello: &Superblock) -> anyhow::Result<Folder> {
        let (path, hello) = (self.folder.clone(), hello.clone());
        tokio::task::spawn_blocking(move || Folder::create(&path, &hello)).await?
    }

    /// Promotes, and answers when the images are served. `check`: only says what it would lack.
    pub(super) async fn promote(&self, force: bool, check: bool) -> anyhow::Result<Value> {
        let commands = match &*self.state.lock().await {
            State::Receiving { commands, .. } => commands.clone(),
            State::Promoted { exports, .. } => {
                bail!("source {} is promoted already and served as {}", self.name, exports.join(", "))
            }
            State::Empty(_) => bail!("source {} never connected: there is nothing to promote", self.name),
            State::Failed(reason) => bail!("source {} can't be promoted: {reason}", self.name),
        };
        let before = {
            let (ask, answer) = oneshot::channel();
            commands.send(DestinationCommand::Status(ask))?;
            answer.await.ok()
        };
        if check {
            let status = before.context("the engine is between two states")?;
            return Ok(json!({ "source": self.name, "warrant": status::warrant::describe(&status.warrant) }));
        }
        let (ask, done) = oneshot::channel();
        commands.send(DestinationCommand::Promote { force, done: ask })?;
        let promoted = done.await.context("the engine ended in the middle of the promote; see the log")?;
        let warrant = status::warrant::describe(&promoted.warrant);
        let refused = |reason| admin::Refusal { reason, data: json!({ "warrant": warrant }) };
        let mark = promoted.outcome.map_err(refused)?;
        loop {
            match &*self.state.lock().await {
                State::Promoted { superblock, exports, .. } => {
                    return Ok(json!({
                        "source": self.name, "epoch": superblock.epoch.0, "last_record": mark.seq.0, "exports": exports.join(", "),
                        "note": before.and_then(|status| served(&status, mark.seq.0)), "warrant": warrant,
                    }));
                }
                State::Failed(reason) => {
                    bail!("the images hold everything up to record {}, but can't be served: {reason}", mark.seq)
                }
                State::Receiving { .. } | State::Empty(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How it stands; a lock that is held (journal files are being made) is said, not waited for.
    pub(super) async fn status(&self) -> Value {
        let Ok(state) = self.state.try_lock() else {
            return json!({ "name": self.name, "state": "preparing", "reason": "its journal files are being made", "connected": false });
        };
        let simple = |state: &str, reason: Option<&str>| json!({ "name": self.name, "state": state, "reason": reason, "connected": false, "promotable": false, "volumes": self.volumes(None) });
        match &*state {
            State::Empty(_) => simple("empty", Some("the source never connected")),
            State::Failed(reason) => simple("failed", Some(reason)),
            State::Receiving { commands, exports } => {
                let (ask, answer) = oneshot::channel();
                let exports = exports.clone();
                let sent = commands.send(DestinationCommand::Status(ask));
                drop(state);
                match (sent, answer.await) {
                    (Ok(()), Ok(status)) => self.describe(&status, &exports),
                    _ => simple("preparing", Some("the engine is between two states")),
                }
            }
            State::Promoted { commands, superblock, exports, reason, .. } => {
                let (ask, answer) = oneshot::channel();
                let (superblock, exports, link) = (superblock.clone(), exports.clone(), reason.get());
                let peer = self.serving.peer.as_ref();
                let sent = commands.send(SourceCommand::Status(ask));
                drop(state);
                let serving = if sent.is_ok() { answer.await.ok() } else { None };
                let held = superblock.known.last().unwrap_or(&superblock.clean).seq.0;
                let applied = |status: &SourceStatus| status.before_inherited.unwrap_or(held);
                json!({
                    "name": self.name, "state": if serving.is_some() { "promoted" } else { "failed" },
                    "reason": if serving.is_some() { None } else { Some("its engine has ended; see the log") },
                    "connected": false, "epoch": superblock.epoch.0,
                    "held_record": held, "applied_record": serving.as_ref().map(applied),
                    "unapplied_fills": serving.as_ref().map(|status| status.inherited),
                    "serving": serving.as_ref().map(|status| status::source::promoted(peer, &self.serving.admin, &link, status)),
                    "promotable": true, "exports": exports, "volumes": self.volumes(Some(&superblock)),
                    "clients": serving.as_ref().map(|status| status.clients),
                    "answered_writes": serving.as_ref().map(|status| status.counters.answered_writes),
                })
            }
        }
    }

    fn describe(&self, status: &DestinationStatus, exports: &[String]) -> Value {
        let superblock = &status.superblock;
        let state = match (&status.peer, status.phase, status.promotable) {
            (None, ..) => "waiting",
            (Some(_), Phase::Direct, false) => "copying",
            (Some(_), Phase::Direct, true) => "receiving",
            (Some(_), Phase::Staging | Phase::Draining, _) => "resyncing",
        };
        let phase = status::source::phase(status.phase);
        let counters = &status.counters;
        json!({
            "name": self.name, "state": state, "reason": status.reason, "connected": status.peer.is_some(), "peer": status.peer,
            "epoch": superblock.epoch.0, "held_record": status.held_record, "applied_record": superblock.clean.seq.0,
            "verified_record": status.verified_record, "promotable": status.promotable,
            "base_record": status.base_record, "phase": phase, "staged_bytes": status.staged_bytes,
            "staging_limit_bytes": status.staging_limit_bytes, "staging_trouble": status.staging_trouble,
            "heard_unix_s": status.heard_unix_s, "source_alone": status.source_alone, "answered_record": status.answered_record,
            "warrant": status::warrant::describe(&status.warrant),
            "received_bytes": counters.written_bytes, "stored_bytes": counters.journal_bytes,
            "applied_bytes": counters.flushed_bytes, "journal_writes": counters.journal_writes,
            "journal": status::journal(&status.journal), "halves": status::halves(&status.halves), "volumes": self.volumes(Some(superblock)),
            "exports": exports, "clients": status.clients, "read_record": status.live.ok(),
            "read_refusal": status.live.err().map(|reason| reason.to_string()),
        })
    }

    fn volumes(&self, superblock: Option<&Superblock>) -> Vec<Value> {
        let size = |index: usize| {
            superblock.and_then(|superblock| superblock.volumes.get(index)).map(|volume| volume.size_bytes)
        };
        let volume = |(index, (name, image)): (usize, &(String, PathBuf))| {
            let id = superblock.map(|superblock| VolumeId::of(superblock.source, name).to_string());
            json!({ "name": name, "id": id, "image": image, "size_bytes": size(index) })
        };
        self.images.iter().enumerate().map(volume).collect()
    }

    /// Stops its engine, and waits until that has let go of everything.
    pub(super) async fn stop(&self) {
        let told = match &*self.state.lock().await {
            State::Receiving { commands, .. } => commands.send(DestinationCommand::Stop),
            State::Promoted { commands, .. } => commands.send(SourceCommand::Stop),
            State::Empty(_) | State::Failed(_) => Ok(()),
        };
        if told.is_err() {
            tracing::debug!("source {}: its engine has ended already", self.name);
        }
        self.engines_ended().await;
    }

    async fn engines_ended(&self) {
        let engines = std::mem::take(&mut *self.engines.lock().unwrap_or_else(PoisonError::into_inner));
        for engine in engines {
            if tokio::time::timeout(STOP_LIMIT, engine).await.is_err() {
                tracing::warn!("source {}: its engine didn't stop in time", self.name);
            }
        }
    }

    fn watch(&self, engine: JoinHandle<()>) {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
    }
}

/// What is to be said of an image that was promoted although it isn't what the source answered last.
fn served(before: &DestinationStatus, record: u64) -> Option<String> {
    if before.base_record == Some(record) {
        return Some(format!("a resync wasn't complete: the images are served as of record {record}, from before it"));
    }
    if !before.promotable {
        return Some("the images weren't a whole copy: what is served is what was there".into());
    }
    before.source_alone.then(|| {
        let answered = before.answered_record;
        format!("the source had gone on alone: it had answered up to record {answered} when it was heard last, {record} is served")
    })
}
