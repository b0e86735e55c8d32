//! `nbd-mirror set`: changes the policy of a running source.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _};

use super::{CommandLine, EXIT_CODES, ask, print};
use crate::control::admin::Request;
use crate::control::config::{OnDisconnect, format_duration, parse_timeout};

const SETTINGS: &str = "\
Settings, as in the configuration:
  on_disconnect=continue  without the destination, writes are answered alone after the timeout
  on_disconnect=stall     without the destination, writes wait
  on_disconnect=fail      without the destination, writes get an I/O error after the timeout
  timeout=5s              how long the destination may be away or silent

They hold until the source ends; what is to stay goes into its configuration.

`on_disconnect=continue` also releases a source that is stalled: one whose policy was another, and one that waits at its
start because its destination may have been promoted since it last ran. Make sure that it was not: two machines would
answer writes.";

#[derive(Debug, Args)]
#[command(after_help = format!("{SETTINGS}\n\n{EXIT_CODES}"))]
pub(super) struct SetArgs {
    /// The source's admin socket, as in its configuration
    #[arg(long, value_name = "PATH")]
    admin: PathBuf,
    /// What to change, on_disconnect or timeout
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse)]
    settings: Vec<Setting>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    OnDisconnect(OnDisconnect),
    Timeout(Duration),
}

fn parse(text: &str) -> Result<Setting, String> {
    let keys = "the settings are on_disconnect and timeout";
    let (key, value) = text.split_once('=').ok_or_else(|| format!("it has no '='; {keys}, e.g. timeout=5s"))?;
    match key {
        "on_disconnect" => {
            let named = OnDisconnect::ALL.into_iter().find(|policy| policy.as_str() == value);
            named.map(Setting::OnDisconnect).ok_or_else(|| {
                let allowed = OnDisconnect::ALL.map(OnDisconnect::as_str).join(", ");
                format!("on_disconnect is one of {allowed}")
            })
        }
        "timeout" => parse_timeout(value).map(Setting::Timeout),
        _ => Err(format!("there is no setting {key:?}; {keys}")),
    }
}

/// One request for all settings, each named once.
fn request(settings: &[Setting]) -> Result<Request, String> {
    let (mut on_disconnect, mut timeout_ms) = (None, None);
    for setting in settings {
        let before = match *setting {
            Setting::OnDisconnect(policy) => on_disconnect.replace(policy).map(|_| "on_disconnect"),
            Setting::Timeout(timeout) => timeout_ms.replace(timeout.as_millis() as u64).map(|_| "timeout"),
        };
        if let Some(key) = before {
            return Err(format!("{key} is named twice"));
        }
    }
    Ok(Request::Set { on_disconnect, timeout_ms })
}

pub(super) fn run(args: &SetArgs) -> anyhow::Result<()> {
    let request = request(&args.settings)
        .unwrap_or_else(|wrong| CommandLine::command().error(ErrorKind::ArgumentConflict, wrong).exit());
    let policy = ask(&args.admin, &request)?;
    let word = policy["on_disconnect"].as_str().unwrap_or("?");
    let timeout = policy["timeout_ms"].as_u64().map(Duration::from_millis).map(format_duration);
    let timeout = timeout.as_deref().unwrap_or("?");
    print(&format!("on_disconnect = {word}, timeout = {timeout}, until the source ends\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_in_the_configuration() {
        let settings = ["on_disconnect=continue", "timeout=1500ms"].map(|text| parse(text).expect("is right"));
        let set = Request::Set { on_disconnect: Some(OnDisconnect::Continue), timeout_ms: Some(1500) };
        assert_eq!(request(&settings), Ok(set));
        let twice = ["timeout=1s", "timeout=2s"].map(|text| parse(text).expect("is right"));
        assert_eq!(request(&twice), Err("timeout is named twice".into()));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_is_allowed() {
        for (text, pieces) in [
            ("continue", ["on_disconnect", "timeout=5s"]),
            ("durability=flush", ["durability", "on_disconnect and timeout"]),
            ("on_disconnect=panic", ["continue, stall, fail", "on_disconnect"]),
            ("timeout=5", ["\"5\"", "10s"]),
            ("timeout=1ms", ["1ms", "from 100ms to 24h"]),
        ] {
            let wrong = parse(text).expect_err("is wrong");
            assert!(pieces.iter().all(|piece| wrong.contains(piece)), "{text}: {wrong}");
        }
    }
}
