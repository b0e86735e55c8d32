//! Attaching: `/dev/nbdN` goes to a volume's primary, and follows it through failovers with its file system mounted.
//!
//! The kernel's own NBD client serves the device; an agent in this process watches over it. The agent may be killed and
//! started again at any time: requests go on without it, only nobody would take the device to another server meanwhile.
//!
//! - [`uri`]: where a volume may be served. [`client`]: asking a server who it is.
//! - [`choice`], [`follow`]: which server is taken, and when. Pure decisions.
//! - [`netlink`], [`kernel`]: the kernel's NBD client. [`devices`]: its devices as the system shows them.
//! - `start`, `agent`: what ties these together. [`state`], [`keep`]: what outlives an agent.

mod agent;
pub mod choice;
pub mod client;
pub mod devices;
pub mod follow;
pub mod keep;
pub mod kernel;
pub mod netlink;
mod start;
pub mod state;
pub mod uri;

use crate::engine::process;
use crate::format::nbd::identity::{Identity, VolumeId};
use agent::ASK_LIMIT;
use anyhow::{Context as _, anyhow};
use choice::Refusal;
use client::Asked;
use devices::Device;
use keep::Kept;
use kernel::Kernel;
use start::Own;
use state::StateDir;
use std::io;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use uri::Uri;

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
    let volume = match volume_of(&options.uris, &first) {
        // An agent that comes back must not stay away for a server that it wouldn't take anyway.
        Err(error) if options.device.is_some_and(|device| device.is_attached()) => {
            tracing::warn!("{error}");
            None
        }
        found => found?,
    };
    let kernel = open_kernel()?;
    let device = pick_device(&options, volume)?;
    let claim = options.state_dir.claim(device).map_err(refused)?;
    let before = options.state_dir.read(device)?;
    let own = Own { device, kernel, claim, kept: Kept::inherited(device) };
    let attaching = async {
        let mut agent = if device.is_attached() {
            start::take_over(&options, volume, &first, before, own).await?
        } else {
            start::attach(&options, first, own).await?
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
