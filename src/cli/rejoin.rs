//! `nbd-mirror rejoin`: a fenced source becomes the destination of the side that was promoted.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::{EXIT_CODES, ask, print};
use crate::control::admin::Request;
use crate::control::config::format_bytes;

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct RejoinArgs {
    /// The fenced source's admin socket, as in its configuration
    #[arg(long, value_name = "PATH")]
    admin: PathBuf,
    /// Name of the source, where the daemon has several
    source: Option<String>,
    /// Give up what only this side has; it is kept in a file. Without this, it is only shown
    #[arg(long)]
    discard: bool,
    /// Print what is discarded as JSON, with all ranges
    #[arg(long)]
    json: bool,
}

/// There is something that only this side has, and nobody said that it may go.
#[derive(Debug, thiserror::Error)]
#[error(
    "nothing was changed: this side has what the other one doesn't. Give --discard to give it up; it is kept in a file"
)]
pub(super) struct Discards;

pub(super) fn run(args: &RejoinArgs) -> anyhow::Result<()> {
    let request = Request::Rejoin { source: args.source.clone(), discard: args.discard };
    let data = ask(&args.admin, &request).context("can't rejoin")?;
    print(&if args.json { format!("{data:#}\n") } else { text(&data) })?;
    if data["rejoins"] == true { Ok(()) } else { Err(Discards.into()) }
}

fn text(data: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let mut text = format!(
        "The other side was promoted at record {}, in epoch {}.\n",
        number(&data["promoted_at_record"]),
        number(&data["epoch"])
    );
    // Writing to a string can't fail.
    if data["nothing_to_discard"] == true {
        text += "Nothing is here that isn't there.\n";
    } else {
        let _ = writeln!(
            text,
            "Only here: {} writes in the journal, {} ({}).",
            number(&data["discards_writes"]),
            format_bytes(number(&data["discards_bytes"])),
            data["why"].as_str().unwrap_or_default()
        );
        for volume in data["volumes"].as_array().into_iter().flatten() {
            let _ = writeln!(
                text,
                "  {}: {} in {} ranges, and up to {} that the journal no longer holds",
                volume["name"].as_str().unwrap_or_default(),
                format_bytes(number(&volume["bytes"])),
                volume["ranges"].as_array().map_or(0, Vec::len),
                format_bytes(number(&volume["dirty_bytes"]))
            );
            for range in volume["ranges"].as_array().into_iter().flatten().take(20) {
                let _ = writeln!(text, "    {} bytes at {}", number(&range["length"]), number(&range["offset"]));
            }
        }
    }
    if data["rejoins"] == true {
        let differ = number(&data["may_differ_bytes"]);
        text += &match data["whole"] == true {
            true => "It is the destination now, with a whole copy.\n".to_owned(),
            false => format!("It is the destination now; at most {} are compared.\n", format_bytes(differ)),
        };
    }
    text
}
