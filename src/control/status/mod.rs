//! What both daemons' statuses share.

pub(super) mod source;
pub(super) mod warrant;

use super::admin::{Handler, Request};
use super::metrics::{self, Render};
use crate::engine::command::HalfStatus;
use crate::engine::process::{self, Residence};
use crate::engine::store::Store;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// The halves as in status.
pub(super) fn halves(halves: &[HalfStatus]) -> Vec<Value> {
    let half = |half: &HalfStatus| {
        json!({
            "fill": half.fill, "state": half.state, "bytes": half.bytes,
            "capacity_bytes": half.capacity_bytes, "records": half.records,
        })
    };
    halves.iter().map(half).collect()
}

/// How something is written, and why so.
pub(super) fn store(store: &Store) -> Value {
    json!({ "how": store.how.words(), "why": store.why })
}

/// The journal, or a destination's journal files, as in status.
pub(super) fn journal(journal: &Store) -> Value {
    json!({ "store": store(journal) })
}

/// How far the daemon is safe from waiting for a disk that it serves itself.
pub(super) fn resident() -> Value {
    let Residence { locked, io_flusher, spared } = process::residence();
    json!({ "locked": locked, "io_flusher": io_flusher, "spared": spared })
}

/// A moment as status shows it, in RFC 3339 and UTC: `2026-01-05T03:12:44Z`. `None` for 0, which means never, and for
/// what no clock says.
pub(super) fn moment(unix_s: u64) -> Option<String> {
    // The last second of the year 9999: that is as far as RFC 3339 goes.
    let known = (1..=253_402_300_799).contains(&unix_s);
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(unix_s)).filter(|_| known)?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

/// Renders a daemon's status as metrics, asked for anew by each scrape.
pub(super) fn renderer(role: &'static str, handler: Arc<dyn Handler>) -> Arc<Render> {
    Arc::new(move || {
        let handler = handler.clone();
        Box::pin(async move {
            // A daemon between two states has no numbers; a scrape without them says so.
            let status = handler.handle(Request::Status).await.unwrap_or_default();
            metrics::render(role, &status)
        })
    })
}

#[cfg(test)]
pub(super) mod tests;
