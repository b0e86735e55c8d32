//! `nbd-mirror promote`: makes a source's images writable at the destination.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::{EXIT_CODES, ask, print, view};
use crate::control::admin::Request;

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct PromoteArgs {
    /// The destination's admin socket, as in its configuration
    #[arg(long, value_name = "PATH")]
    admin: PathBuf,
    /// Name of the source whose images are promoted
    source: String,
    /// Promote even while that source is connected; it is fenced
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &PromoteArgs) -> anyhow::Result<()> {
    let request = Request::Promote { source: args.source.clone(), force: args.force };
    let data = ask(&args.admin, &request).with_context(|| format!("can't promote {:?}", args.source))?;
    print(&view::outcome(&format!("promoted {}", args.source), &data))
}
