//! What both daemons' statuses share.

use super::admin::{Handler, Request};
use super::metrics::{self, Render};
use crate::engine::command::HalfStatus;
use serde_json::{Value, json};
use std::sync::Arc;

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
