//! `nbd-mirror promote`: makes a source's images writable at the destination, and says before what they may lack.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::{EXIT_CODES, ask, now_unix_s, print, view};
use crate::control::admin::Request;

/// A promote would be refused.
#[derive(Debug, thiserror::Error)]
#[error("a promote would need --force")]
pub(super) struct NeedsForce;

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct PromoteArgs {
    /// The destination's admin socket, as in its configuration
    #[arg(long, value_name = "PATH")]
    admin: PathBuf,
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
    let request = |check| Request::Promote { source: args.source.clone(), force: args.force, check };
    let data = ask(&args.admin, &request(true)).with_context(refused)?;
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
    let data = ask(&args.admin, &request(false)).with_context(refused)?;
    print(&view::outcome(&format!("promoted {}", args.source), &data))
}
