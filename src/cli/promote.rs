//! `nbd-mirror promote`: makes a source's images writable at the destination, and says before what they may lack.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{EXIT_CODES, ask, daemon, now_unix_s, print, runtime, view};
use crate::control::admin::Request;
use crate::control::config::DestinationConfig;
use crate::control::destination::promote_offline;

/// A promote would be refused.
#[derive(Debug, thiserror::Error)]
#[error("a promote would need --force")]
pub(super) struct NeedsForce;

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct PromoteArgs {
    /// The destination's admin socket, as in its configuration
    #[arg(long, value_name = "PATH", required_unless_present = "offline", conflicts_with = "offline")]
    admin: Option<PathBuf>,
    /// Promote while the destination daemon is stopped, and bring everything to the images, to use them on this host
    #[arg(long, requires = "config", conflicts_with = "check")]
    offline: bool,
    /// The destination's configuration, for --offline
    #[arg(long, value_name = "FILE", requires = "offline")]
    config: Option<PathBuf>,
    /// Name of the source whose images are promoted
    source: String,
    /// Promote though the source may be alive, or answered writes may be missing; it is fenced
    #[arg(long)]
    force: bool,
    /// Only print the warrant: what would be served, and what may be missing
    #[arg(long, conflicts_with = "force")]
    check: bool,
    /// Print the warrant as JSON
    #[arg(long, requires = "check")]
    json: bool,
}

pub(super) fn run(args: &PromoteArgs) -> anyhow::Result<()> {
    let refused = || format!("can't promote {:?}", args.source);
    let admin = match (&args.admin, &args.config) {
        (Some(admin), _) => admin,
        (None, Some(config)) => return offline(args, config).with_context(refused),
        (None, None) => anyhow::bail!("--admin is missing"),
    };
    let request = |check| Request::Promote { source: args.source.clone(), force: args.force, check };
    let data = ask(admin, &request(true)).with_context(refused)?;
    let warrant = &data["warrant"];
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(warrant)?))?;
    } else {
        print(&view::warrant(&args.source, warrant, now_unix_s()))?;
    }
    if args.check {
        return if warrant["goes"] == true { Ok(()) } else { Err(NeedsForce.into()) };
    }
    // What was printed may have changed: the daemon judges anew.
    let data = ask(admin, &request(false)).with_context(refused)?;
    print(&view::outcome(&format!("promoted {}", args.source), &data))
}

fn offline(args: &PromoteArgs, config: &Path) -> anyhow::Result<()> {
    daemon::start_log()?;
    let config = DestinationConfig::load(config)?;
    let data = runtime()?.block_on(promote_offline(&config, &args.source, args.force))?;
    print(&view::outcome(&format!("promoted {}; its images are whole and free to be used", args.source), &data))
}
