//! `nbd-mirror verify`: compares volumes and images while both go on, and repairs what differs.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressFinish, ProgressStyle};
use serde_json::Value;

use super::{EXIT_CODES, print, runtime, view};
use crate::control::admin::{self, Request};

/// Time between two looks at the progress.
const REDRAW_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct VerifyArgs {
    /// The source's admin socket, as in its configuration
    #[arg(long, value_name = "PATH")]
    admin: PathBuf,
    /// Send again what differs; the volumes count, the images are changed
    #[arg(long)]
    repair: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Volumes and images differ, and that was not repaired.
#[derive(Debug, thiserror::Error)]
#[error("volumes and images differ: {0}")]
pub(super) struct Different(&'static str);

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let request = Request::Verify { repair: args.repair };
    let found = runtime()?.block_on(async {
        let call = admin::call(&args.admin, &request);
        // The bar goes to stderr; without a terminal nobody would see it move.
        if std::io::stderr().is_terminal() {
            tokio::select! { found = call => found, never = show(&args.admin) => match never? {} }
        } else {
            call.await
        }
    });
    let found = found.context("can't verify")?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&found)?))?;
    } else {
        print(&view::verified(&found))?;
    }
    judge(&found, args.repair)
}

/// An error where something differs still.
fn judge(found: &Value, repair: bool) -> anyhow::Result<()> {
    let bytes = |key: &str| found[key].as_u64().with_context(|| format!("the answer lacks {key}"));
    if bytes("repaired_bytes")? >= bytes("differing_bytes")? {
        return Ok(());
    }
    let remedy = if repair { "not all was repaired; verify again" } else { "`verify --repair` sends them again" };
    Err(Different(remedy).into())
}

/// Shows how far it is, over a connection of its own, until it is dropped.
async fn show(admin: &Path) -> anyhow::Result<std::convert::Infallible> {
    let style = ProgressStyle::with_template("  [{bar:30}] {percent} %  {msg}")?.progress_chars("=> ");
    let bar = ProgressBar::new(1).with_style(style).with_finish(ProgressFinish::AndClear);
    loop {
        tokio::time::sleep(REDRAW_INTERVAL).await;
        // A status that can't be had is no reason to give up the verify; its own call says what is wrong.
        let status = admin::call(admin, &Request::Status).await.unwrap_or_default();
        let verify = &status["verify"];
        if let (Some(total), Some(done)) = (verify["total_bytes"].as_u64(), verify["done_bytes"].as_u64()) {
            let rate = verify["bytes_per_s"].as_u64().unwrap_or(0);
            bar.set_length(total.max(1));
            bar.set_position(done);
            bar.set_message(format!("{} of {}, {}/s", HumanBytes(done), HumanBytes(total), HumanBytes(rate)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_still_differs_is_an_error() {
        let found = |differing: u64, repaired: u64| json!({"differing_bytes": differing, "repaired_bytes": repaired});
        judge(&found(0, 0), false).expect("equal");
        judge(&found(8192, 8192), true).expect("repaired");
        for (repaired, repair, remedy) in [(0, false, "--repair"), (4096, true, "verify again")] {
            let error = judge(&found(8192, repaired), repair).expect_err("differs");
            assert!(error.downcast_ref::<Different>().is_some_and(|e| e.to_string().contains(remedy)), "{error:#}");
            assert_eq!(super::super::exit_code(&error), 5);
        }
        judge(&json!({}), false).expect_err("no answer at all");
    }
}
