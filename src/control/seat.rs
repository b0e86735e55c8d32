//! A source's place, which it can give up: to a destination that takes over, by a switchover; and, once it was fenced, to
//! become the destination of the side that was promoted.
//!
//! The same for a source daemon and for promoted images: a journal, volumes, and a folder for the state of a destination.

use super::config::{HostPort, OnDisconnect, check_timeout, format_duration};
use super::source::open_whole;
use super::{handshake, status};
use crate::core::policy::Mode;
use crate::engine::command::{Commands, LinkState, Setting, SourceCommand, SourceStatus};
use crate::engine::destination::rejoin::Holdings;
use crate::engine::destination::{Folder, Image};
use crate::engine::kept::Summary;
use crate::format::ids::Epoch;
use crate::format::wire::{Fork, Verdict};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

/// How long a promote may take that this source handed over for.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(30);
/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Between two questions whether the promote is complete.
const PAUSE: Duration = Duration::from_millis(10);

/// Where the side that was promoted went on, and in which epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub epoch: Epoch,
    pub fork: Fork,
}

/// A source's place.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    pub name: String,
    /// The journal of the source.
    pub journal: PathBuf,
    /// Folder of the destination that it can become.
    pub folder: PathBuf,
    /// The volumes' names and disks.
    pub volumes: Vec<(String, PathBuf)>,
    /// Where the other side listens, now as the destination and later as the source that was promoted.
    pub peer: HostPort,
}

impl Seat {
    /// Hands over to the destination; returns when it serves, with the time since writes were taken last.
    pub async fn hand_over(&self, commands: &Commands<SourceCommand>) -> anyhow::Result<(Turn, Duration)> {
        // Whatever takes long is done before writes wait: the files are made, and the journal is flushed.
        let hello = ask(commands, SourceCommand::Hello).await?;
        let folder = self.folder.clone();
        tokio::task::spawn_blocking(move || Folder::prepare(&folder, &hello)).await??;
        let status = ask(commands, SourceCommand::Status).await?;
        if status.link != LinkState::Up {
            bail!("the destination isn't connected: a switchover needs both sides; promote there if this side is lost");
        }
        let _mark = ask(commands, SourceCommand::Sync).await?;
        let begun = Instant::now();
        ask(commands, SourceCommand::HandOver).await?.map_err(anyhow::Error::msg)?;
        let turn = loop {
            match self.turn(commands).await {
                Ok(turn) => break turn,
                Err(error) if begun.elapsed() > TAKE_OVER_LIMIT => {
                    return Err(error.context(
                        "it was handed over, but the other side doesn't say that it serves: look at its status; if it isn't \
                         promoted, promote it there",
                    ));
                }
                Err(_) => sleep(PAUSE).await,
            }
        };
        Ok((turn, begun.elapsed()))
    }

    /// Asks the other side where it went on.
    pub async fn turn(&self, commands: &Commands<SourceCommand>) -> anyhow::Result<Turn> {
        let hello = ask(commands, SourceCommand::Hello).await?;
        let HostPort { host, port } = &self.peer;
        let connecting = TcpStream::connect((host.as_str(), *port));
        let stream = timeout(CONNECT_LIMIT, connecting).await.context("connecting took too long");
        let mut stream = stream.and_then(|stream| Ok(stream?)).with_context(|| format!("can't reach {}", self.peer))?;
        handshake::prepare(&stream)?;
        let (welcome, _) = handshake::introduce(&mut stream, &hello).await?;
        match (welcome.verdict, welcome.fork) {
            (Verdict::Fenced, Some(fork)) => Ok(Turn { epoch: welcome.epoch, fork }),
            (Verdict::Fenced, None) => bail!("{} is being promoted: try again", self.peer),
            (Verdict::Welcome, _) => bail!("{} wasn't promoted: there is nothing to rejoin", self.peer),
            (Verdict::Refused, _) => bail!("{} refuses: {}", self.peer, welcome.reason),
        }
    }

    /// Shows what a rejoin would discard, and whether it goes ahead: where that is nothing, or `discard` was given.
    pub async fn weigh(&self, turn: Turn, discard: bool) -> anyhow::Result<(bool, Value)> {
        let (journal, folder) = (self.journal.clone(), self.folder.clone());
        let look = move || Holdings::of(&journal, &folder, turn.epoch, turn.fork);
        let holdings = tokio::task::spawn_blocking(look).await??;
        let mut answer = describe(&holdings, turn);
        let goes = discard || holdings.divergence.own.is_empty();
        answer["rejoins"] = goes.into();
        Ok((goes, answer))
    }

    /// Becomes the destination. The source's engine must have ended.
    pub async fn rejoin(&self, turn: Turn) -> anyhow::Result<(Folder, Vec<Image>)> {
        let seat = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut images = Vec::new();
            for (name, path) in &seat.volumes {
                images.push(Image { name: name.clone(), disk: open_whole("image", path)? });
            }
            let holdings = Holdings::of(&seat.journal, &seat.folder, turn.epoch, turn.fork)?;
            let disks: Vec<_> = images.iter().map(|image| &image.disk).collect();
            let (folder, kept) = holdings.rejoin(&seat.folder, &disks)?;
            tracing::info!(
                "source {}: a destination from now on, in epoch {}, at {}",
                seat.name,
                turn.epoch,
                turn.fork.at
            );
            if let Some(Summary { path, .. }) = kept {
                tracing::warn!(
                    "what only this side had is kept in {}; look into it with nbd-mirror inspect",
                    path.display()
                );
            }
            Ok((folder, images))
        })
        .await?
    }
}

/// The answer to a switchover.
pub(super) fn handed_over(turn: Turn, paused: Duration) -> Value {
    json!({ "epoch": turn.epoch.0, "last_record": turn.fork.at.seq.0, "paused_ms": paused.as_millis() as u64 })
}

/// What would be discarded, for people and scripts.
fn describe(holdings: &Holdings, turn: Turn) -> Value {
    let divergence = &holdings.divergence;
    let own = &divergence.own;
    let volumes = holdings.volumes().zip(&own.volumes).map(|(name, volume)| {
        let ranges: Vec<Value> =
            volume.ranges.iter().map(|range| json!({ "offset": range.start, "length": range.end - range.start })).collect();
        json!({ "name": name, "records": volume.records, "bytes": volume.bytes, "ranges": ranges, "dirty_bytes": volume.dirty_bytes })
    });
    json!({
        "epoch": turn.epoch.0, "promoted_at_record": turn.fork.at.seq.0,
        "nothing_to_discard": own.is_empty(), "whole": holdings.is_whole(), "why": divergence.why,
        "discards_records": own.records, "discards_writes": own.client_records, "discards_bytes": own.bytes,
        "may_differ_bytes": divergence.lacks.bytes(), "volumes": volumes.collect::<Vec<_>>(),
    })
}

/// Asks an engine something.
pub(super) async fn ask<T>(
    commands: &Commands<SourceCommand>,
    question: impl FnOnce(oneshot::Sender<T>) -> SourceCommand,
) -> anyhow::Result<T> {
    let (ask, answer) = oneshot::channel();
    commands.send(question(ask))?;
    answer.await.context("the engine has ended")
}

/// The epoch that fenced this source.
pub(super) fn fenced_by(status: &SourceStatus) -> anyhow::Result<Epoch> {
    match status.link {
        LinkState::Fenced(epoch) => Ok(epoch),
        _ => bail!("this source isn't fenced: it serves, and has nothing to rejoin. To swap roles, use switchover"),
    }
}

/// Switches halves, and answers when all is applied.
pub(super) async fn sync(commands: &Commands<SourceCommand>) -> anyhow::Result<Value> {
    let status = ask(commands, SourceCommand::Status).await?;
    if status.mode == Mode::Alone && status.link != LinkState::Up {
        bail!("the destination is away, so nothing can be applied there: wait until it is back");
    }
    let mark = ask(commands, SourceCommand::Sync).await?;
    Ok(json!({ "fill": mark.fill.0, "record": mark.seq.0, "digest": mark.digest.to_string() }))
}

/// Changes the policy, and answers with the one that then holds.
pub(super) async fn set(
    commands: &Commands<SourceCommand>,
    on_disconnect: Option<OnDisconnect>,
    timeout_ms: Option<u64>,
) -> anyhow::Result<Value> {
    let timeout = timeout_ms.map(Duration::from_millis).map(check_timeout).transpose().map_err(anyhow::Error::msg)?;
    if let LinkState::Fenced(epoch) = ask(commands, SourceCommand::Status).await?.link {
        bail!("this source is fenced: another side was promoted in epoch {epoch}, and no setting releases it");
    }
    // The timeout first: where both are given, the policy is judged by the new one.
    let settings = timeout.map(Setting::Timeout).into_iter();
    for setting in settings.chain(on_disconnect.map(|policy| Setting::OnDisconnect(policy.into()))) {
        ask(commands, |done| SourceCommand::Set(setting, done)).await?;
    }
    let policy = ask(commands, SourceCommand::Status).await?.policy;
    tracing::info!(
        "set: on_disconnect = {}, timeout = {}",
        OnDisconnect::from(policy.on_disconnect).as_str(),
        format_duration(policy.timeout)
    );
    Ok(status::source::policy(&policy))
}
