//! `nbd-mirror switchover`: both sides swap roles, with nothing in doubt.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use super::{EXIT_CODES, ask, print};
use crate::control::admin::Request;

/// How long it is waited for the mirroring in the other direction.
const LIMIT: Duration = Duration::from_secs(60);
/// How long it is waited for a client's first write on the other side.
const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct SwitchoverArgs {
    /// Admin socket of the side that serves the volumes
    #[arg(long, value_name = "PATH")]
    admin: PathBuf,
    /// Name of the source, where the daemon has several
    source: Option<String>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &SwitchoverArgs) -> anyhow::Result<()> {
    let request = Request::Switchover { source: args.source.clone() };
    let mut data = ask(&args.admin, &request).context("can't switch over")?;
    let answered = Instant::now();
    let at = data["last_record"].as_u64().unwrap_or_default();
    let paused = Duration::from_millis(data["paused_ms"].as_u64().unwrap_or_default());
    // The records of the new order reach this side as soon as the other one answers writes.
    let mut mirroring = None;
    let first_write = loop {
        let mirror = mirror(args);
        let connected = mirror.as_ref().is_some_and(|mirror| mirror["connected"] == true);
        if connected && mirroring.is_none() {
            mirroring = Some(answered.elapsed());
        }
        if mirror.is_some_and(|mirror| mirror["held_record"].as_u64() > Some(at)) {
            break Some(answered.elapsed());
        }
        match mirroring {
            Some(since) if answered.elapsed() > since + WRITE_LIMIT => break None,
            None if answered.elapsed() > LIMIT => bail!(
                "the other side serves in epoch {}, but doesn't mirror to this one: look at the status of both; its [[source]] needs \
                 this side's standby address as its peer",
                data["epoch"]
            ),
            _ => std::thread::sleep(PAUSE),
        }
    };
    let millis = |time: Duration| u64::try_from((paused + time).as_millis()).unwrap_or(u64::MAX);
    data["mirroring_after_ms"] = mirroring.map(millis).into();
    data["longest_pause_ms"] = first_write.map(millis).into();
    print(&if args.json { format!("{data:#}\n") } else { text(&data) })
}

/// The mirror at this side.
fn mirror(args: &SwitchoverArgs) -> Option<Value> {
    let mut status = ask(&args.admin, &Request::Status).ok()?;
    let mirrors = status["sources"].as_array_mut()?;
    let ours = mirrors.iter_mut().find(|mirror| args.source.as_deref().is_none_or(|name| mirror["name"] == name))?;
    Some(ours.take())
}

fn text(data: &Value) -> String {
    let pause = match data["longest_pause_ms"].as_u64() {
        Some(pause) => format!("writes waited for {pause} ms at most"),
        None => format!("no client wrote; a write would have waited for {} ms", data["mirroring_after_ms"]),
    };
    format!(
        "switched over at record {}: the other side serves in epoch {}, and this one mirrors it; {pause}\n",
        data["last_record"], data["epoch"]
    )
}
