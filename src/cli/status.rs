//! `nbd-mirror status`: how a daemon fares, for people, for scripts, or again each second.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{EXIT_CODES, ask, now_unix_s, print, view};
use crate::control::admin::Request;

/// Time between two redraws of `--watch`.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);
/// Cursor to the top left, then clear to the end of the screen: flickers less than clearing first.
const REDRAW: &str = "\x1b[H\x1b[J";

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct StatusArgs {
    /// The daemon's admin socket, as in its configuration
    #[arg(long, value_name = "PATH")]
    admin: PathBuf,
    /// Print everything as JSON
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Redraw every second until interrupted
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    if args.watch {
        return watch(args);
    }
    let status = ask(&args.admin, &Request::Status)?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&status)?))
    } else {
        print(&view::status(&status, now_unix_s()))
    }
}

/// Redraws until interrupted. A daemon that is away is shown as such: it may come back.
fn watch(args: &StatusArgs) -> anyhow::Result<()> {
    let before = if std::io::stdout().is_terminal() { REDRAW } else { "" };
    loop {
        let text = match ask(&args.admin, &Request::Status) {
            Ok(status) => view::status(&status, now_unix_s()),
            Err(error) => format!("unknown      {error:#}\n"),
        };
        print(&format!("{before}{text}"))?;
        std::thread::sleep(REDRAW_INTERVAL);
    }
}
