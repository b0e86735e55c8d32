//! How an agent begins: with a free device, or with one that an earlier agent has attached.

use super::agent::{ASK_LIMIT, Agent, Probe};
use super::choice::{self, Offer, Refusal, Wanted, best, judge};
use super::client::Asked;
use super::devices::Device;
use super::follow::Follow;
use super::keep::Kept;
use super::kernel::{Kernel, Setup};
use super::state::{Claim, Standing, State};
use super::uri::Uri;
use super::{AttachError, Look, Options, look, refused, volume_of};
use crate::format::ids::Epoch;
use crate::format::nbd::identity::VolumeId;
use anyhow::{Context as _, anyhow};
use std::time::{Duration, Instant};

/// Between two looks at the servers before the first is found.
const FIRST_LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a device that an earlier agent left may take to be read, before its connection counts as lost.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(2);

/// What an agent has for itself.
#[derive(Debug)]
pub(super) struct Own {
    pub device: Device,
    pub kernel: Kernel,
    pub claim: Claim,
    pub kept: Kept,
}

/// Goes on with a device that an earlier agent has attached.
pub(super) async fn take_over(
    options: &Options,
    served: Option<VolumeId>,
    first: &Look,
    before: Option<State>,
    own: Own,
) -> anyhow::Result<Agent> {
    let device = own.device;
    let backend = device.backend().unwrap_or_default();
    let volume: VolumeId = backend.parse().map_err(|_| {
        refused(format!("{device} is in use by another program (nbd-client -d {device} would end that): name another"))
    })?;
    if let Some(served) = served.filter(|served| *served != volume) {
        return Err(refused(format!("{device} is attached to volume {volume}, and the servers have volume {served}")));
    }
    let before = before.filter(|before| before.volume == backend);
    let (size_bytes, block_bytes) =
        device.size_bytes().zip(device.block_bytes()).ok_or_else(|| anyhow!("{device} doesn't tell its size"))?;
    let flags = before.as_ref().and_then(|before| before.flags);
    // Where nobody remembers the epoch, the device counts as being where it should be, and follows from there.
    let any = Wanted { volume, epoch: Epoch(0), device: None };
    let epochs = first.iter().filter_map(|asked| judge(&any, &asked.as_ref().ok()?.offer).ok());
    let epoch = before.as_ref().map_or_else(|| epochs.max().unwrap_or_default(), |before| Epoch(before.epoch));
    let uri = before.and_then(|before| before.uri);
    device.set_io_timeout(options.io_timeout)?;
    if own.kept.is_empty() {
        tracing::info!(
            "{device} was attached by an agent that left no socket: a server that hangs must be ended by hand"
        );
    }
    let wanted = Wanted { volume, epoch, device: Some(choice::Device { size_bytes, block_bytes, flags }) };
    let mut agent = agent(options, wanted, own)?;
    let current = options.uris.iter().position(|known| Some(known.to_string()) == uri);
    agent.state.uri = uri;
    if agent.probe.answers(device, TAKE_OVER_LIMIT).await {
        agent.follow.handle_confirmed(current);
        agent.confirmed()?;
    } else {
        tracing::warn!("{device} can't be read: its server is lost");
        agent.lost_at = Some(Instant::now());
    }
    Ok(agent)
}

/// Waits for a server, and sets a free device up.
pub(super) async fn attach(options: &Options, first: Look, mut own: Own) -> anyhow::Result<Agent> {
    let device = own.device;
    device.check_unheld().map_err(refused)?;
    let (volume, server, asked) = wait_for_server(options, first).await?;
    let Offer { size_bytes, flags, .. } = asked.offer;
    let epoch = asked.offer.identity.map_or(Epoch(0), |identity| identity.epoch);
    let block_bytes = asked.offer.device_block_bytes();
    let uri = options.uris.get(server).context("a server that isn't in the list")?;
    let wanted = Wanted { volume, epoch, device: Some(choice::Device { size_bytes, block_bytes, flags: Some(flags) }) };
    device.set_io_timeout(options.io_timeout)?;
    let socket = asked.go(ASK_LIMIT).await.map_err(|error| AttachError::Unreachable(format!("{uri}: {error}")))?;
    let backend = volume.to_string();
    let setup = Setup { size_bytes, block_bytes, flags, backend: &backend };
    own.kernel.connect(device.0, own.kept.add(socket), &setup).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => refused(format!("{device} is in use: name another")),
        Some(libc::EPERM) => AttachError::Kernel("attaching isn't permitted here: run it as root".into()).into(),
        _ => anyhow!("the kernel can't attach {device}: {error}"),
    })?;
    own.kept.keep_newest();
    // Setting a device up may have put it back.
    device.set_io_timeout(options.io_timeout)?;
    tracing::info!("{device}: attached to volume {volume} of {size_bytes} bytes, in blocks of {block_bytes}");
    let mut agent = agent(options, wanted, own)?;
    agent.state.uri = Some(uri.to_string());
    if agent.probe.answers(device, agent.follow.confirm_limit()).await {
        agent.follow.handle_confirmed(Some(server));
        agent.confirmed()?;
    } else {
        agent.lost_at = Some(Instant::now());
    }
    Ok(agent)
}

async fn wait_for_server(options: &Options, mut answers: Look) -> anyhow::Result<(VolumeId, usize, Asked)> {
    let began = Instant::now();
    let mut waiting = false;
    loop {
        let verdicts: Vec<Result<Epoch, Refusal>> = match volume_of(&options.uris, &answers)? {
            None => {
                let reason = |asked: &Result<Asked, String>| asked.as_ref().err().cloned().unwrap_or_default();
                answers.iter().map(|asked| Err(Refusal::Unreachable(reason(asked)))).collect()
            }
            Some(volume) => {
                let wanted = Wanted { volume, epoch: Epoch(0), device: None };
                let verdict = |asked: &Result<Asked, String>| match asked {
                    Ok(asked) => judge(&wanted, &asked.offer),
                    Err(reason) => Err(Refusal::Unreachable(reason.clone())),
                };
                answers.iter().map(verdict).collect()
            }
        };
        if let Some(server) = best(&verdicts) {
            let asked = answers.swap_remove(server).map_err(anyhow::Error::msg)?;
            let identity = asked.offer.identity.context("a server without an identity was taken")?;
            return Ok((identity.volume, server, asked));
        }
        let reasons = options.uris.iter().zip(&verdicts).filter_map(|(uri, verdict)| {
            let reason = verdict.as_ref().err()?;
            Some(format!("{uri}: {reason}"))
        });
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        if began.elapsed() >= options.wait {
            return Err(AttachError::Unreachable(format!("no server has the volume as its primary: {reasons}")).into());
        }
        if !std::mem::replace(&mut waiting, true) {
            tracing::info!("waiting for a server: {reasons}");
        }
        tokio::time::sleep(FIRST_LOOK_INTERVAL).await;
        answers = look(&options.uris).await;
    }
}

fn agent(options: &Options, wanted: Wanted, own: Own) -> anyhow::Result<Agent> {
    let Own { device, kernel, claim, kept } = own;
    let facts = wanted.device.context("a device without facts")?;
    let state = State {
        device: device.to_string(),
        volume: wanted.volume.to_string(),
        epoch: wanted.epoch.0,
        size_bytes: facts.size_bytes,
        block_bytes: facts.block_bytes,
        flags: facts.flags,
        uris: options.uris.iter().map(Uri::to_string).collect(),
        uri: None,
        state: Standing::Waiting,
        since_unix_s: 0,
        pid: std::process::id(),
    };
    claim.store(&state)?;
    let events = kernel.events().context("the kernel's events can't be read")?;
    Ok(Agent {
        device,
        kernel,
        events,
        claim,
        state,
        follow: Follow::new(wanted, options.uris.len()),
        uris: options.uris.clone(),
        kept,
        dead: false,
        probe: Probe::default(),
        ready: false,
        lost_at: None,
        logged: None,
    })
}
