//! `nbd-mirror check`: what a daemon would find, how fast it would be, and what would break a promise.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{EXIT_CODES, print, runtime, view};
use crate::control::check;
use crate::control::config::Config;

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct CheckArgs {
    /// Configuration file of a source or a destination
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Whose configuration it is, where its keys don't tell
    #[arg(long)]
    role: Option<Role>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Source,
    Destination,
}

/// Something would break a promise.
#[derive(Debug, thiserror::Error)]
#[error("something would break a promise; each warning says what helps")]
pub(super) struct Warned;

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config, args.role.map(|role| role == Role::Destination))?;
    let report = runtime()?.block_on(check::run(&config))?;
    if args.json {
        print(&format!("{report:#}\n"))?;
    } else {
        print(&view::check(&report))?;
    }
    let count = |key: &str| report[key].as_array().map_or(0, Vec::len);
    match (count("errors"), count("warnings")) {
        (0, 0) => Ok(()),
        (0, _) => Err(Warned.into()),
        _ => anyhow::bail!("a daemon wouldn't start by this configuration; each error says why"),
    }
}
