//! `nbd-mirror source` and `nbd-mirror destination`: the daemons, in the foreground.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::{DaemonArgs, runtime};
use crate::control::config::{DestinationConfig, SourceConfig};
use crate::control::{destination as destination_daemon, source as source_daemon};
use crate::engine::process;

/// Runs a source until it is told to stop.
pub(super) fn source(args: &DaemonArgs) -> anyhow::Result<()> {
    start_log()?;
    let config = SourceConfig::load(&args.config)?;
    process::stay_resident();
    runtime()?.block_on(source_daemon::run(config, args.init))
}

/// Runs a destination until it is told to stop.
pub(super) fn destination(args: &DaemonArgs) -> anyhow::Result<()> {
    start_log()?;
    let config = DestinationConfig::load(&args.config)?;
    process::stay_resident();
    runtime()?.block_on(destination_daemon::run(config, args.init))
}

/// Logs to stderr: from `info` upwards, or as RUST_LOG says.
pub(super) fn start_log() -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env()
        .context("RUST_LOG isn't understood: write e.g. RUST_LOG=debug")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // systemd sets JOURNAL_STREAM, and its journal has its own timestamps.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
    Ok(())
}
