//! The source daemon: opens what the configuration names, starts the engine, and connects the world to it.

use super::admin::{self, Answer, Handler, Request};
use super::config::{DestinationConfig, SourceConfig};
use super::exports::{self, Exports, Served, Server};
use super::link::{self, Reason};
use super::seat::{self, Seat, Turn};
use super::signals::Signals;
use super::{destination, listen, metrics, notify, status};
use crate::core::policy::Policy;
use crate::engine::command::{Commands, LinkState, SourceCommand};
use crate::engine::destination::Folder;
use crate::engine::disk::Disk;
use crate::engine::source::{self as engine, Birth, Plan, Volume};
use crate::format::nbd::ExportShape;
use crate::format::nbd::identity::{Identity, Role, VolumeId};
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Runs a source until it is told to stop. One that has become a destination is that from then on, also after a restart.
///
/// # Errors
/// Whatever keeps it from starting, and a disk that fails while it runs.
pub async fn run(config: SourceConfig, init: bool) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let standby = DestinationConfig::of_source(&config);
    if let Some(standby) = &standby
        && Folder::open(&standby.journal_dir.join(&config.name), &config.name, false)?.is_some()
    {
        tracing::info!("source {} has become a destination; it runs as that", config.name);
        return destination::run_until(standby.clone(), init, &mut signals).await;
    }
    let mut volumes = Vec::new();
    for volume in &config.volumes {
        let disk = open_whole("volume", &volume.device)?;
        volumes.push(Volume { name: volume.name.clone(), disk });
    }
    let shapes: Vec<ExportShape> = volumes.iter().map(|volume| shape(&volume.disk)).collect();
    let plan = plan(&config, volumes, init)?;
    let engine::Handle { commands, link, mut ended } = tokio::task::spawn_blocking(|| engine::spawn(plan)).await??;
    let outcome: anyhow::Result<Option<Turn>> =
        serve(&config, shapes, commands.clone(), link, &mut ended, &mut signals).await;
    notify::stopping();
    // An engine that has ended already doesn't take the command, and doesn't need it.
    let _ = commands.send(SourceCommand::Stop);
    let engine = if ended.is_terminated() {
        Ok(())
    } else {
        ended.await.context("the engine's thread ended")?.map_err(Into::into)
    };
    let turn = outcome.and_then(|turn| engine.map(|()| turn))?;
    let (Some(turn), Some(standby), Some(seat)) = (turn, standby, seat(&config)) else { return Ok(()) };
    // It lets go of its files: the daemon opens all of them again.
    drop(seat.rejoin(turn).await?);
    destination::run_until(standby, init, &mut signals).await
}

/// What a source of this configuration is to be.
pub(super) fn plan(config: &SourceConfig, volumes: Vec<Volume>, init: bool) -> anyhow::Result<Plan> {
    Ok(Plan {
        name: config.name.clone(),
        durability: config.durability.into(),
        mirrored: config.destination.is_some(),
        policy: Policy { on_disconnect: config.on_disconnect.into(), timeout: config.timeout },
        grain_bytes: u32::try_from(config.journal.grain_bytes).context("journal.grain is out of range")?,
        max_age: config.journal.max_age,
        journal: config.journal.path.clone(),
        journal_bytes: config.journal.size_bytes,
        volumes,
        birth: Birth::First,
        init,
    })
}

/// What this source can give up, where it can.
fn seat(config: &SourceConfig) -> Option<Seat> {
    let (standby, peer) = (config.standby.as_ref()?, config.destination.as_ref()?);
    Some(Seat {
        name: config.name.clone(),
        journal: config.journal.path.clone(),
        folder: standby.journal_dir.join(&config.name),
        volumes: config.volumes.iter().map(|volume| (volume.name.clone(), volume.device.clone())).collect(),
        peer: peer.address.clone(),
    })
}

async fn serve(
    config: &SourceConfig,
    shapes: Vec<ExportShape>,
    commands: Commands<SourceCommand>,
    mut link: tokio::sync::watch::Receiver<LinkState>,
    ended: &mut oneshot::Receiver<Result<(), engine::EngineError>>,
    signals: &mut Signals,
) -> anyhow::Result<Option<Turn>> {
    let superblock = seat::ask(&commands, SourceCommand::Hello).await?;
    let exports = Exports::default();
    for (index, (volume, shape)) in config.volumes.iter().zip(shapes).enumerate() {
        let id = VolumeId::of(superblock.lineage, &volume.name);
        let identity = Identity { volume: id, epoch: superblock.epoch, role: Role::Primary };
        let served = Served {
            name: volume.name.clone(),
            shape,
            identity,
            server: Server::Source(commands.clone()),
            volume: index,
        };
        exports.add(&config.name, served);
    }
    let reason = Reason::default();
    let (turn, mut turned) = tokio::sync::mpsc::channel(1);
    let daemon = Arc::new(Daemon { config: config.clone(), commands: commands.clone(), reason: reason.clone(), turn });
    let mut tasks = tokio::task::JoinSet::new();
    if matches!(*link.borrow(), LinkState::Fenced(_)) {
        exports.close();
    }
    for address in &config.nbd.listen {
        tasks.spawn(exports::serve(listen::bind(address).await?, exports.clone()));
    }
    tasks.spawn(admin::serve(admin::bind(&config.admin.socket)?, daemon.clone()));
    if let Some(config) = &config.metrics {
        let listener = listen::bind_tcp(&config.listen).await?;
        tasks.spawn(metrics::serve(listener, status::renderer("source", daemon.clone())));
    }
    if let Some(destination) = &config.destination {
        tasks.spawn(link::keep(destination.address.clone(), commands, link.clone(), reason));
    }
    notify::ready();
    tracing::info!("source {} serves {} volumes", config.name, config.volumes.len());
    let fenced = async {
        // An engine that ends is seen by the other branch.
        if link.wait_for(|state| matches!(state, LinkState::Fenced(_))).await.is_ok() {
            exports.close();
        }
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        signal = signals.stop() => { tracing::info!("stopping: {signal}"); Ok(None) }
        outcome = ended => outcome.context("the engine's thread ended")?.map(|()| None).map_err(Into::into),
        turn = turned.recv() => Ok(turn),
        () = fenced => Ok(None),
    };
    // Whoever comes next in this process binds the same addresses.
    tasks.shutdown().await;
    outcome
}

/// Opens a disk whose size is a whole number of its blocks.
pub(super) fn open_whole(what: &'static str, path: &std::path::Path) -> anyhow::Result<Disk> {
    whole(Disk::open(what, path)?)
}

/// Refuses a disk whose size isn't a whole number of its blocks.
pub(super) fn whole(disk: Disk) -> anyhow::Result<Disk> {
    let block = u64::from(disk.block_bytes);
    if disk.size_bytes == 0 || !disk.size_bytes.is_multiple_of(block) {
        let size = disk.size_bytes;
        bail!(disk.error(&format!(
            "has {size} bytes, which isn't a multiple of its block size of {block}; make it larger (truncate -s)"
        )));
    }
    Ok(disk)
}

/// What clients are told of a disk.
pub(super) fn shape(disk: &Disk) -> ExportShape {
    ExportShape { size_bytes: disk.size_bytes, block_bytes: disk.block_bytes, read_only: false }
}

struct Daemon {
    config: SourceConfig,
    commands: Commands<SourceCommand>,
    reason: Reason,
    /// Takes the word that this source becomes a destination.
    turn: tokio::sync::mpsc::Sender<Turn>,
}

impl Daemon {
    async fn status(&self) -> anyhow::Result<Value> {
        let status = seat::ask(&self.commands, SourceCommand::Status).await?;
        Ok(status::source::describe(&self.config, &self.reason.get(), &status))
    }

    fn seat(&self) -> anyhow::Result<Seat> {
        seat(&self.config).context(
            "this source can't become a destination: give its configuration the sections [destination] and [standby], with \
             listen and journal_dir, and the destination's [[source]] a peer",
        )
    }

    /// Hands over to the destination, and becomes its destination.
    async fn switchover(&self) -> anyhow::Result<Value> {
        let (turn, paused) = self.seat()?.hand_over(&self.commands).await?;
        self.turn.send(turn).await.context("this source is ending")?;
        Ok(seat::handed_over(turn, paused))
    }

    async fn rejoin(&self, discard: bool) -> anyhow::Result<Value> {
        let seat = self.seat()?;
        seat::fenced_by(&seat::ask(&self.commands, SourceCommand::Status).await?)?;
        let turn = seat.turn(&self.commands).await?;
        let (goes, answer) = seat.weigh(turn, discard).await?;
        if goes {
            self.turn.send(turn).await.context("this source is ending")?;
        }
        Ok(answer)
    }

    async fn verify(&self, repair: bool) -> anyhow::Result<Value> {
        if self.config.destination.is_none() {
            bail!("this source has no destination to compare with");
        }
        let (ask, done) = oneshot::channel();
        self.commands.send(SourceCommand::Verify { repair, done: ask })?;
        let verified = done.await.context("the verify was given up; the log says why")?.map_err(anyhow::Error::msg)?;
        Ok(status::source::verified(&self.config, &verified))
    }
}

impl Handler for Daemon {
    fn handle(&self, request: Request) -> Answer<'_> {
        Box::pin(async move {
            match request {
                Request::Status => self.status().await,
                Request::Sync => seat::sync(&self.commands).await,
                Request::Set { .. } if self.config.destination.is_none() => {
                    bail!("this source has no destination that could be away")
                }
                Request::Set { on_disconnect, timeout_ms } => {
                    seat::set(&self.commands, on_disconnect, timeout_ms).await
                }
                Request::Verify { repair } => self.verify(repair).await,
                Request::Switchover { .. } => self.switchover().await,
                Request::Rejoin { discard, .. } => self.rejoin(discard).await,
                Request::Promote { .. } => bail!("this is a source: promote is for the destination's admin socket"),
            }
        })
    }
}
