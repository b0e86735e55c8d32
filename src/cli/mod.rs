//! The command line: one file a verb.

mod attach;
mod check;
mod daemon;
pub mod demo;
mod detach;
mod inspect;
mod promote;
mod rejoin;
mod set;
mod status;
mod switchover;
mod sync;
mod verify;
mod view;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::attach::AttachError;
use crate::control::admin::{self, CallError, Request};

/// Exit code: it failed; the message says why.
const EXIT_FAILURE: u8 = 1;
/// Exit code: the daemon was asked and refused.
const EXIT_REFUSED: u8 = 3;
/// Exit code: no daemon answers at the admin socket.
const EXIT_UNREACHABLE: u8 = 4;
/// Exit code: volumes and images differ.
const EXIT_DIFFERENT: u8 = 5;
/// Exit code: a promote would need force.
const EXIT_NEEDS_FORCE: u8 = 7;
/// Exit code: a check found what would break a promise.
const EXIT_WARNED: u8 = 8;

/// Exit code: the kernel's NBD client can't be used.
const EXIT_KERNEL: u8 = 6;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; one message on stderr says why
  2  wrong usage
  3  refused: by the daemon that was asked, or because a device or server isn't the right one
  4  the daemon can't be reached, or no server has the volume
  5  verify found differences that are not repaired
  6  the kernel's NBD client isn't loaded, or not permitted
  7  promote --check: without --force it would be refused
  8  check found something that would break a promise";

/// Mirrors block devices synchronously, in userspace, over NBD.
#[derive(Debug, Parser)]
#[command(name = "nbd-mirror", version, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Export volumes over NBD and mirror them (a daemon, in the foreground)
    Source(DaemonArgs),
    /// Keep the images of one or more sources (a daemon, in the foreground)
    Destination(DaemonArgs),
    /// Look at what a configuration names, measure it, and warn of what would break a promise; changes nothing
    Check(check::CheckArgs),
    /// Show how a daemon fares
    Status(status::StatusArgs),
    /// Switch halves now and wait until the destination has applied (at a source)
    Sync(AdminArgs),
    /// Change what a running source does without its destination; release one that is stalled
    Set(set::SetArgs),
    /// Compare volumes and images while both go on (at a source)
    Verify(verify::VerifyArgs),
    /// Make a source's images writable and serve them here (at a destination)
    Promote(promote::PromoteArgs),
    /// Swap roles with nothing in doubt: the destination serves, and this side mirrors it (where the volumes are served)
    Switchover(switchover::SwitchoverArgs),
    /// Become the destination of the side that was promoted (at a fenced source)
    Rejoin(rejoin::RejoinArgs),
    /// Look into what a fenced source discarded, or into a journal
    Inspect(inspect::InspectArgs),
    /// Keep /dev/nbdN at a volume through failovers (an agent, in the foreground)
    Attach(attach::AttachArgs),
    /// Take /dev/nbdN off its volume
    Detach(detach::DetachArgs),
    /// Run both daemons on local files, kill the source, promote, and check that no write is lost
    Demo {
        /// Keep the files in this folder instead of a temporary one
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// What both daemons take.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
struct DaemonArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Overwrite foreign content where the journal or state should be
    #[arg(long)]
    init: bool,
}

/// Where a daemon is asked.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
struct AdminArgs {
    /// The daemon's admin socket, as in its configuration
    #[arg(long, value_name = "PATH")]
    admin: PathBuf,
}

/// Runs the verb that the command line names.
pub fn main() -> ExitCode {
    let done = match CommandLine::parse().verb {
        Verb::Source(args) => daemon::source(&args),
        Verb::Destination(args) => daemon::destination(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Sync(args) => sync::run(&args),
        Verb::Set(args) => set::run(&args),
        Verb::Verify(args) => verify::run(&args),
        Verb::Promote(args) => promote::run(&args),
        Verb::Switchover(args) => switchover::run(&args),
        Verb::Rejoin(args) => rejoin::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Attach(args) => attach::run(args),
        Verb::Detach(args) => detach::run(&args),
        Verb::Demo { dir } => demo::run(dir),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd-mirror: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// The exit code that tells a script what kind of error this is.
fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(CallError::Refused(_)) => EXIT_REFUSED,
        Some(CallError::Unreachable(_)) => EXIT_UNREACHABLE,
        None if error.is::<verify::Different>() => EXIT_DIFFERENT,
        None if error.is::<promote::NeedsForce>() => EXIT_NEEDS_FORCE,
        None if error.is::<check::Warned>() => EXIT_WARNED,
        None if error.is::<rejoin::Discards>() => EXIT_REFUSED,
        None => match error.downcast_ref() {
            Some(AttachError::Refused(_)) => EXIT_REFUSED,
            Some(AttachError::Unreachable(_)) => EXIT_UNREACHABLE,
            Some(AttachError::Kernel(_)) => EXIT_KERNEL,
            None => EXIT_FAILURE,
        },
    }
}

/// A runtime on this thread: enough for the control plane, whose work is small.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't start the tokio runtime")
}

/// Asks a daemon once.
fn ask(admin: &Path, request: &Request) -> anyhow::Result<Value> {
    runtime()?.block_on(admin::call(admin, request))
}

/// Seconds since 1970. A clock before that shows no ages, which is right.
fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Prints to stdout; a closed pipe is an error here, not a panic.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("can't write to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_documented_forms_are_understood() {
        for line in [
            "source --config source.toml",
            "source --config source.toml --init",
            "destination --config destination.toml",
            "check --config source.toml",
            "check --config source.toml --role source --json",
            "status --admin /run/a",
            "status --admin /run/a --json",
            "status --admin /run/a --watch",
            "sync --admin /run/a",
            "set --admin /run/a on_disconnect=continue",
            "set --admin /run/a on_disconnect=stall timeout=5s",
            "verify --admin /run/a",
            "verify --admin /run/a --repair --json",
            "promote --admin /run/a alpha",
            "promote --admin /run/a alpha --force",
            "promote --offline --config destination.toml alpha --force",
            "promote --admin /run/a alpha --check",
            "promote --admin /run/a alpha --check --json",
            "switchover --admin /run/a",
            "switchover --admin /run/a alpha",
            "rejoin --admin /run/a",
            "rejoin --admin /run/a alpha --discard",
            "rejoin --admin /run/a --json",
            "inspect discarded-by-epoch-2.journal",
            "inspect alpha.journal --json --covering vol0:4096",
            "inspect alpha.journal --record c17 --output bytes",
            "attach nbd://a/vol0 nbd+unix:///vol0?socket=/run/b.nbd",
            "attach --device /dev/nbd0 --wait 1m --io-timeout 100ms nbd://a/vol0",
            "attach --list --json",
            "detach /dev/nbd0 --force",
            "demo",
            "demo --dir /tmp/d",
        ] {
            let words = std::iter::once("nbd-mirror").chain(line.split(' '));
            CommandLine::try_parse_from(words).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for line in [
            "",
            "sync",
            "source",
            "check",
            "check --config a --role both",
            "promote --admin /a",
            "promote alpha",
            "promote --offline alpha",
            "promote --admin /a alpha --check --force",
            "status --admin /a --json --watch",
            "set --admin /a",
            "attach",
            "attach http://a/vol0",
            "attach --list nbd://a/vol0",
            "attach --device /dev/sda nbd://a/vol0",
            "attach --io-timeout 1ms nbd://a/vol0",
            "attach --json nbd://a/vol0",
            "detach",
            "set --admin /a durability=flush",
            "inspect",
            "inspect a --record x",
            "inspect a --covering vol0",
            "inspect a --output b",
            "set --admin /a on_disconnect=panic",
            "set --admin /a timeout=0s",
        ] {
            let words = std::iter::once("nbd-mirror").chain(line.split_whitespace());
            let error = CommandLine::try_parse_from(words).expect_err("is refused");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn exit_codes_tell_refusal_from_silence() {
        let refused = anyhow::Error::new(CallError::Refused("no".into()));
        assert_eq!(exit_code(&refused.context("can't promote")), 3);
        assert_eq!(exit_code(&CallError::Unreachable("no".into()).into()), 4);
        assert_eq!(exit_code(&AttachError::Refused("no".into()).into()), 3);
        assert_eq!(exit_code(&AttachError::Unreachable("no".into()).into()), 4);
        assert_eq!(exit_code(&AttachError::Kernel("no".into()).into()), 6);
        assert_eq!(exit_code(&anyhow::anyhow!("anything else")), 1);
    }
}
