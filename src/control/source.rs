//! The source daemon: opens what the configuration names, starts the engine, and connects the world to it.

use super::admin::{self, Answer, Handler, Request};
use super::config::{Durability as Configured, OnDisconnect, SourceConfig, check_timeout, format_duration};
use super::exports::{self, Exports, Served, Server};
use super::link::{self, Reason};
use super::signals::Signals;
use super::{listen, metrics, notify, status};
use crate::core::Durability;
use crate::core::policy::{Mode, Policy};
use crate::engine::command::{Commands, LinkState, Setting, SourceCommand, SourceStatus};
use crate::engine::disk::Disk;
use crate::engine::source::{self as engine, Birth, Plan, Volume};
use crate::format::nbd::ExportShape;
use crate::format::nbd::identity::{Identity, Role, VolumeId};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
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
        birth: Birth::First,
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
    let (ask, answer) = oneshot::channel();
    commands.send(SourceCommand::Hello(ask))?;
    let superblock = answer.await.context("the engine has ended")?;
    let exports = Exports::default();
    for (index, (volume, shape)) in config.volumes.iter().zip(shapes).enumerate() {
        let id = VolumeId::of(superblock.source, &volume.name);
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
    async fn engine(&self) -> anyhow::Result<SourceStatus> {
        let (ask, answer) = oneshot::channel();
        self.commands.send(SourceCommand::Status(ask))?;
        answer.await.context("the engine has ended")
    }

    async fn status(&self) -> anyhow::Result<Value> {
        let status = self.engine().await?;
        Ok(status::source::describe(&self.config, &self.reason.get(), &status))
    }

    /// Changes the policy, and answers with the one that then holds.
    async fn set(&self, on_disconnect: Option<OnDisconnect>, timeout_ms: Option<u64>) -> anyhow::Result<Value> {
        if self.config.destination.is_none() {
            bail!("this source has no destination that could be away");
        }
        let timeout =
            timeout_ms.map(Duration::from_millis).map(check_timeout).transpose().map_err(anyhow::Error::msg)?;
        if let LinkState::Fenced(epoch) = self.engine().await?.link {
            bail!("this source is fenced: another side was promoted in epoch {epoch}, and no setting releases it");
        }
        // The timeout first: where both are given, the policy is judged by the new one.
        let settings = timeout.map(Setting::Timeout).into_iter();
        for setting in settings.chain(on_disconnect.map(|policy| Setting::OnDisconnect(policy.into()))) {
            let (ask, done) = oneshot::channel();
            self.commands.send(SourceCommand::Set(setting, ask))?;
            done.await.context("the engine has ended")?;
        }
        let policy = self.engine().await?.policy;
        tracing::info!(
            "set: on_disconnect = {}, timeout = {}",
            OnDisconnect::from(policy.on_disconnect).as_str(),
            format_duration(policy.timeout)
        );
        Ok(status::source::policy(&policy))
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
                Request::Sync => {
                    let status = self.engine().await?;
                    if self.config.destination.is_some() && status.mode == Mode::Alone && status.link != LinkState::Up {
                        bail!("the destination is away, so nothing can be applied there: wait until it is back");
                    }
                    let (ask, answer) = oneshot::channel();
                    self.commands.send(SourceCommand::Sync(ask))?;
                    let mark = answer.await.context("the engine has ended")?;
                    Ok(json!({ "fill": mark.fill.0, "record": mark.seq.0, "digest": mark.digest.to_string() }))
                }
                Request::Set { on_disconnect, timeout_ms } => self.set(on_disconnect, timeout_ms).await,
                Request::Verify { repair } => self.verify(repair).await,
                Request::Promote { .. } => bail!("this is a source: promote is for the destination's admin socket"),
            }
        })
    }
}
