//! Attaching: `/dev/nbdN` goes to a volume's primary, and follows it through failovers with its file system mounted.
//!
//! The kernel's own NBD client serves the device; an agent in this process watches over it. The agent may be killed and
//! started again at any time: requests go on without it, only nobody would take the device to another server meanwhile.
//!
//! - [`uri`]: where a volume may be served. [`client`]: asking a server who it is.
//! - [`choice`], [`follow`]: which server is taken, and when. Pure decisions.
//! - [`netlink`], [`kernel`]: the kernel's NBD client. [`devices`]: its devices as the system shows them.
//! - `agent`: what ties these together. [`state`], [`keep`]: what outlives an agent.

mod agent;
pub mod choice;
pub mod client;
pub mod devices;
pub mod follow;
pub mod keep;
pub mod kernel;
pub mod netlink;
pub mod state;
pub mod uri;

use crate::engine::process;
use crate::format::ids::Epoch;
use crate::format::nbd::identity::{Identity, VolumeId};
use agent::{ASK_LIMIT, Agent, Probe};
use anyhow::{Context as _, anyhow};
use choice::{Offer, Refusal, Wanted, best, judge};
use client::Asked;
use devices::Device;
use follow::Follow;
use keep::Kept;
use kernel::{Kernel, Setup};
use state::{Standing, State, StateDir};
use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use uri::Uri;

/// Between two looks at the servers before the first is found.
const FIRST_LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a device that an earlier agent left may take to be read, before its connection counts as lost.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(2);
/// How long an agent may take to notice that its device is being detached.
const DISMISS_LIMIT: Duration = Duration::from_secs(5);

/// What to attach, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the volume may be served.
    pub uris: Vec<Uri>,
    /// The device; else one that is attached to the volume already, or the first that is free.
    pub device: Option<Device>,
    /// Where the state is kept.
    pub state_dir: StateDir,
    /// How long to wait for a server at first.
    pub wait: Duration,
    /// How soon requests that were in flight at a loss are sent again, once there is a server.
    pub io_timeout: Duration,
}

/// Why nothing was attached, or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// What was asked for isn't done, lest something be damaged.
    #[error("{0}")]
    Refused(String),
    /// There is no server to attach to.
    #[error("{0}")]
    Unreachable(String),
    /// The kernel's NBD client isn't there, or not for us.
    #[error("{0}")]
    Kernel(String),
}

fn refused(error: impl std::fmt::Display) -> anyhow::Error {
    AttachError::Refused(error.to_string()).into()
}

/// Attaches a device, and watches over it until it is detached or this process is told to end.
///
/// # Errors
/// An [`AttachError`] where it is one of those, or whatever else keeps the agent from going on.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // What is wrong with the servers is said first: that is where most mistakes are, and it needs no rights.
    let first = look(&options.uris).await;
    let volume = volume_of(&options.uris, &first)?;
    let kernel = open_kernel()?;
    let device = pick_device(&options, volume)?;
    let claim = options.state_dir.claim(device).map_err(refused)?;
    let before = options.state_dir.read(device)?;
    let kept = Kept::inherited(device);
    let attaching = async {
        let mut agent = if device.is_attached() {
            take_over(&options, &first, kernel, device, claim, before, kept).await?
        } else {
            attach(&options, first, kernel, device, claim, kept).await?
        };
        process::stay_resident();
        agent.run().await
    };
    tokio::select! {
        outcome = attaching => outcome,
        _ = terminate.recv() => { ended(device); Ok(()) }
        _ = interrupt.recv() => { ended(device); Ok(()) }
    }
}

fn ended(device: Device) {
    agent::notify(sd_notify::NotifyState::Stopping);
    if device.is_attached() {
        tracing::info!(
            "{device} stays attached, but nobody takes it to another server any more: nbd-mirror detach {device}"
        );
    }
}

type Look = Vec<Result<Asked, String>>;

/// Asks all servers once.
async fn look(uris: &[Uri]) -> Look {
    let mut asking = JoinSet::new();
    for (place, uri) in uris.iter().cloned().enumerate() {
        asking.spawn(async move { (place, client::ask(&uri, ASK_LIMIT).await) });
    }
    let mut answers: Look = uris.iter().map(|_| Err("it didn't answer".into())).collect();
    while let Some(Ok((place, asked))) = asking.join_next().await {
        if let Some(answer) = answers.get_mut(place) {
            *answer = asked.map_err(|error| error.to_string());
        }
    }
    answers
}

/// The one volume that all servers which answer have; `None` while there is none.
fn volume_of(uris: &[Uri], answers: &Look) -> anyhow::Result<Option<VolumeId>> {
    let mut found: Option<(VolumeId, &Uri)> = None;
    for (uri, asked) in uris.iter().zip(answers) {
        let Ok(asked) = asked else { continue };
        let Some(Identity { volume, .. }) = asked.offer.identity else {
            return Err(refused(format!("{uri}: {}", Refusal::Unknown)));
        };
        match found {
            Some((first, at)) if first != volume => {
                return Err(refused(format!("{at} serves volume {first}, but {uri} serves volume {volume}")));
            }
            _ => found = Some((volume, uri)),
        }
    }
    Ok(found.map(|(volume, _)| volume))
}

fn open_kernel() -> anyhow::Result<Kernel> {
    let kernel = Kernel::open().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            AttachError::Kernel("the kernel's NBD client isn't loaded: modprobe nbd max_part=0".into())
        }
        _ => AttachError::Kernel(format!("the kernel's NBD client can't be asked: {error}")),
    })?;
    if !process::has_capability(process::CAP_SYS_ADMIN) {
        return Err(AttachError::Kernel("attaching needs CAP_SYS_ADMIN: run it as root".into()).into());
    }
    Ok(kernel)
}

/// The device that was asked for; else the one that is attached to the volume already, or one that is free.
fn pick_device(options: &Options, volume: Option<VolumeId>) -> anyhow::Result<Device> {
    if let Some(device) = options.device {
        device.check_exists().map_err(refused)?;
        return Ok(device);
    }
    let all = devices::all();
    let id = volume.map(|volume| volume.to_string());
    if let Some(device) = all.iter().find(|device| id.is_some() && device.is_attached() && device.backend() == id) {
        return Ok(*device);
    }
    let free = all.into_iter().find(|device| !device.is_attached() && options.state_dir.claim(*device).is_ok());
    free.ok_or_else(|| refused("no device is free: detach one, or load the module with more (modprobe nbd nbds_max=N)"))
}

/// Goes on with a device that an earlier agent has attached.
async fn take_over(
    options: &Options,
    first: &Look,
    kernel: Kernel,
    device: Device,
    claim: state::Claim,
    before: Option<State>,
    kept: Kept,
) -> anyhow::Result<Agent> {
    let backend = device.backend().unwrap_or_default();
    let volume: VolumeId = backend.parse().map_err(|_| {
        refused(format!("{device} is in use by another program (nbd-client -d {device} would end that): name another"))
    })?;
    if let Some(served) = volume_of(&options.uris, first)?.filter(|served| *served != volume) {
        return Err(refused(format!("{device} is attached to volume {volume}, and the servers have volume {served}")));
    }
    let before = before.filter(|before| before.volume == backend);
    let (size_bytes, block_bytes) =
        device.size_bytes().zip(device.block_bytes()).ok_or_else(|| anyhow!("{device} doesn't tell its size"))?;
    let flags = before.as_ref().and_then(|before| before.flags);
    // Where nobody remembers the epoch, the device counts as being where it should be, and follows from there.
    let epochs = first.iter().filter_map(|asked| Some(asked.as_ref().ok()?.offer.identity?.epoch));
    let epoch = before.as_ref().map_or_else(|| epochs.max().unwrap_or_default(), |before| Epoch(before.epoch));
    let uri = before.and_then(|before| before.uri);
    device.set_io_timeout(options.io_timeout)?;
    if kept.is_empty() {
        tracing::info!(
            "{device} was attached by an agent that left no socket: a server that hangs must be ended by hand"
        );
    }
    let wanted = Wanted { volume, epoch, device: Some(choice::Device { size_bytes, block_bytes, flags }) };
    let mut agent = agent(options, wanted, kernel, device, claim, kept)?;
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
async fn attach(
    options: &Options,
    first: Look,
    mut kernel: Kernel,
    device: Device,
    claim: state::Claim,
    mut kept: Kept,
) -> anyhow::Result<Agent> {
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
    kernel.connect(device.0, socket.as_fd(), &setup).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => refused(format!("{device} is in use: name another")),
        Some(libc::EPERM) => AttachError::Kernel("attaching isn't permitted here: run it as root".into()).into(),
        _ => anyhow!("the kernel can't attach {device}: {error}"),
    })?;
    kept.replace(socket);
    // Setting a device up may have put it back.
    device.set_io_timeout(options.io_timeout)?;
    tracing::info!("{device}: attached to volume {volume} of {size_bytes} bytes, in blocks of {block_bytes}");
    let mut agent = agent(options, wanted, kernel, device, claim, kept)?;
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

fn agent(
    options: &Options,
    wanted: Wanted,
    kernel: Kernel,
    device: Device,
    claim: state::Claim,
    kept: Kept,
) -> anyhow::Result<Agent> {
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

/// Detaches a device, after its agent has ended.
///
/// # Errors
/// An [`AttachError`]: it isn't attached, or in use and not forced.
pub fn detach(device: Device, state_dir: &StateDir, force: bool) -> anyhow::Result<()> {
    let mut kernel = open_kernel()?;
    device.check_exists().map_err(refused)?;
    if !device.is_attached() {
        state_dir.dismiss(device)?;
        return Err(refused(format!("{device} isn't attached")));
    }
    if !force {
        device.check_unheld().map_err(refused)?;
    }
    let began = Instant::now();
    while !state_dir.dismiss(device)? {
        if began.elapsed() > DISMISS_LIMIT {
            return Err(anyhow!("the agent of {device} doesn't end: stop it, then detach again"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    kernel.disconnect(device.0).with_context(|| format!("the kernel can't detach {device}"))
}
