//! The source daemon: opens what the configuration names, starts the engine, and connects the world to it.

use super::admin::{self, Answer, Handler, Request};
use super::config::{Durability as Configured, SourceConfig};
use super::exports::{self, Exports, Served};
use super::link::{self, Reason};
use super::signals::Signals;
use super::{listen, metrics, notify, status};
use crate::core::Durability;
use crate::core::policy::Policy;
use crate::engine::command::{Commands, LinkState, SourceCommand, SourceStatus};
use crate::engine::disk::Disk;
use crate::engine::source::{self as engine, Plan, Volume};
use crate::format::ids::Epoch;
use crate::format::nbd::ExportShape;
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Runs a source until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting, and a disk that fails while it runs.
pub async fn run(config: SourceConfig, init: bool) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let mut volumes = Vec::new();
    for volume in &config.volumes {
        let disk = open_whole("volume", &volume.device)?;
        volumes.push(Volume { name: volume.name.clone(), disk });
    }
    let shapes: Vec<ExportShape> = volumes.iter().map(|volume| shape(&volume.disk)).collect();
    let plan = Plan {
        name: config.name.clone(),
        durability: match config.durability {
            Configured::Always => Durability::Always,
            Configured::Flush => Durability::Flush,
        },
        mirrored: config.destination.is_some(),
        policy: Policy { on_disconnect: config.on_disconnect.into(), timeout: config.timeout },
        grain_bytes: u32::try_from(config.journal.grain_bytes).context("journal.grain is out of range")?,
        max_age: config.journal.max_age,
        journal: config.journal.path.clone(),
        journal_bytes: config.journal.size_bytes,
        volumes,
        epoch: Epoch(1),
        init,
    };
    let engine::Handle { commands, link, mut ended } = tokio::task::spawn_blocking(|| engine::spawn(plan)).await??;
    let outcome = serve(&config, shapes, commands.clone(), link, &mut ended, &mut signals).await;
    notify::stopping();
    // An engine that has ended already doesn't take the command, and doesn't need it.
    let _ = commands.send(SourceCommand::Stop);
    let engine = if ended.is_terminated() {
        Ok(())
    } else {
        ended.await.context("the engine's thread ended")?.map_err(Into::into)
    };
    outcome.and(engine)
}

async fn serve(
    config: &SourceConfig,
    shapes: Vec<ExportShape>,
    commands: Commands<SourceCommand>,
    mut link: tokio::sync::watch::Receiver<LinkState>,
    ended: &mut oneshot::Receiver<Result<(), engine::EngineError>>,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let exports = Exports::default();
    for (index, (volume, shape)) in config.volumes.iter().zip(shapes).enumerate() {
        let served = Served { name: volume.name.clone(), shape, commands: commands.clone(), volume: index };
        exports.add(&config.name, served);
    }
    let reason = Reason::default();
    let daemon = Arc::new(Daemon { config: config.clone(), commands: commands.clone(), reason: reason.clone() });
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
    tokio::select! {
        signal = signals.stop() => { tracing::info!("stopping: {signal}"); Ok(()) }
        outcome = ended => outcome.context("the engine's thread ended")?.map_err(Into::into),
        () = fenced => Ok(()),
    }
}

/// Opens a disk whose size is a whole number of its blocks.
pub(super) fn open_whole(what: &'static str, path: &std::path::Path) -> anyhow::Result<Disk> {
    let disk = Disk::open(what, path)?;
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
}

impl Daemon {
    async fn status(&self) -> anyhow::Result<Value> {
        let (ask, answer) = oneshot::channel();
        self.commands.send(SourceCommand::Status(ask))?;
        let status = answer.await.context("the engine has ended")?;
        Ok(self.describe(&status))
    }

    fn describe(&self, status: &SourceStatus) -> Value {
        let superblock = &status.superblock;
        let connected = status.link == LinkState::Up;
        let (state, reason) = match &status.link {
            LinkState::Fenced(epoch) => ("fenced", Some(format!("another side was promoted in epoch {epoch}"))),
            _ if self.config.destination.is_none() => ("local", Some("no destination is configured".into())),
            LinkState::Down(why) => {
                let known = self.reason.get();
                ("waiting", Some(if known.is_empty() { why.clone() } else { known }))
            }
            LinkState::Up if superblock.whole => ("mirroring", None),
            LinkState::Up => ("copying", Some("the volumes are copied for the first time".into())),
        };
        let volumes: Vec<Value> = superblock
            .volumes
            .iter()
            .zip(&self.config.volumes)
            .map(|(volume, config)| {
                json!({
                    "name": volume.name, "device": config.device, "size_bytes": volume.size_bytes,
                })
            })
            .collect();
        let counters = &status.counters;
        json!({
            "role": "source", "name": superblock.name, "state": state, "reason": reason,
            "durability": self.config.durability.as_str(), "epoch": superblock.epoch.0,
            "destination": self.config.destination.as_ref().map(|destination| destination.address.to_string()),
            "connected": connected, "last_record": status.last_record, "stored_here": status.stored_here,
            "stored_there": status.stored_there, "verified_record": status.verified_record,
            "open_fill": status.open_fill, "halves": status::halves(&status.halves), "clients": status.clients,
            "requests": status.requests, "writes_waiting": status.waiting, "volumes": volumes,
            "answered_writes": counters.answered_writes, "answered_reads": counters.answered_reads,
            "written_bytes": counters.written_bytes, "read_bytes": counters.read_bytes,
            "flushed_bytes": counters.flushed_bytes, "journal_bytes": counters.journal_bytes,
            "journal_writes": counters.journal_writes,
        })
    }
}

impl Handler for Daemon {
    fn handle(&self, request: Request) -> Answer<'_> {
        Box::pin(async move {
            match request {
                Request::Status => self.status().await,
                Request::Sync => {
                    let (ask, answer) = oneshot::channel();
                    self.commands.send(SourceCommand::Sync(ask))?;
                    let mark = answer.await.context("the engine has ended")?;
                    Ok(json!({ "fill": mark.fill.0, "record": mark.seq.0, "digest": mark.digest.to_string() }))
                }
                Request::Promote { .. } => bail!("this is a source: promote is for the destination's admin socket"),
            }
        })
    }
}
