//! `nbd-mirror attach`: a device that follows its volume through failovers (an agent, in the foreground).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::{EXIT_CODES, daemon, print, runtime};
use crate::attach::devices::Device;
use crate::attach::state::{Listed, StateDir};
use crate::attach::uri::Uri;
use crate::attach::{self, Options};

/// Where agents keep their state.
pub(super) const STATE_DIR: &str = "/run/nbd-mirror";

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct AttachArgs {
    /// Where the volume may be served: nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=/PATH
    #[arg(value_name = "URI", required_unless_present = "list", conflicts_with = "list")]
    uris: Vec<Uri>,
    /// The device; else one that is attached to the volume already, or the first that is free
    #[arg(long, value_name = "/dev/nbdN")]
    device: Option<Device>,
    /// Folder of the agents' state; it has to survive an agent's restart, not the machine's
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// How long to wait for a server at first
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// How soon requests in flight at a failover are sent again: 50ms to 60s
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = io_timeout)]
    io_timeout: Duration,
    /// Show the devices and their agents
    #[arg(long)]
    list: bool,
    /// With --list: print everything as JSON
    #[arg(long, conflicts_with = "uris")]
    json: bool,
}

fn io_timeout(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(50)..=Duration::from_secs(60);
    if allowed.contains(&time) { Ok(time) } else { Err("write a time from 50ms to 60s".into()) }
}

pub(super) fn run(args: AttachArgs) -> anyhow::Result<()> {
    let state_dir = StateDir(args.state_dir);
    if args.list {
        return list(&state_dir, args.json);
    }
    daemon::start_log()?;
    let options =
        Options { uris: args.uris, device: args.device, state_dir, wait: args.wait, io_timeout: args.io_timeout };
    runtime()?.block_on(attach::run(options))
}

fn list(state_dir: &StateDir, json: bool) -> anyhow::Result<()> {
    let listed = state_dir.list()?;
    if json {
        let devices = listed.iter().map(describe).collect::<anyhow::Result<Vec<_>>>()?;
        return print(&format!("{}\n", serde_json::to_string_pretty(&devices)?));
    }
    print(&listed.iter().map(line).collect::<String>())
}

fn describe(listed: &Listed) -> anyhow::Result<serde_json::Value> {
    let mut value = serde_json::to_value(&listed.state).context("a state can't be shown")?;
    value["pid"] = json!(listed.runs.then_some(listed.state.pid));
    Ok(value)
}

fn line(Listed { state, runs }: &Listed) -> String {
    let agent = if *runs { format!("agent {}", state.pid) } else { "no agent".into() };
    let uri = state.uri.as_deref().unwrap_or("no server yet");
    let word = if *runs { state.state.as_str() } else { "unwatched" };
    format!("{:<11}  {word:<9}  {uri}  epoch {}  volume {}  {agent}\n", state.device, state.epoch, state.volume)
}
