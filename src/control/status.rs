//! What both daemons' statuses share.

use super::admin::{Handler, Request};
use super::metrics::{self, Render};
use crate::engine::command::HalfStatus;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the status behind the metrics is renewed.
const RENEWAL: Duration = Duration::from_secs(1);

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

/// The last status, for the metrics: whoever scrapes never waits for an engine.
#[derive(Debug, Clone, Default)]
pub(super) struct Cached(Arc<Mutex<Value>>);

impl Cached {
    /// Renews it for good, in a task of its own.
    pub(super) fn keep(handler: Arc<dyn Handler>) -> Cached {
        let cached = Cached::default();
        let copy = cached.clone();
        tokio::spawn(async move {
            loop {
                if let Ok(status) = handler.handle(Request::Status).await {
                    *copy.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
                }
                tokio::time::sleep(RENEWAL).await;
            }
        });
        cached
    }

    /// Renders it as metrics.
    pub(super) fn renderer(self, role: &'static str) -> Arc<Render> {
        Arc::new(move || metrics::render(role, &self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}
