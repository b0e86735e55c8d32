//! What a promote would serve and lack, as scripts see it.

use super::super::config::OnDisconnect;
use super::moment;
use crate::core::recovery::table::Fact as _;
use crate::core::recovery::warrant::Missing;
use crate::engine::destination::Warrant;
use serde_json::{Value, json};

/// The warrant; each field is in docs/status.md.
pub(in crate::control) fn describe(warrant: &Warrant) -> Value {
    json!({
        "goes": warrant.refusal.is_none(), "refusal": warrant.refusal,
        "held_record": warrant.held_record, "served_record": warrant.served_record, "answered_record": warrant.answered_record,
        "missing_writes": (warrant.missing == Missing::Nothing).then_some(0), "missing": warrant.missing.words(),
        "missing_since": warrant.missing_since_unix_s.and_then(moment), "missing_since_unix_s": warrant.missing_since_unix_s,
        "holds_ms": warrant.holds_ms, "because": warrant.because, "last_word": warrant.word.words(),
        "on_disconnect": warrant.on_disconnect.map(|policy| OnDisconnect::from(policy).as_str()),
        "timeout_ms": warrant.timeout_ms, "source_alive": warrant.alive, "peer": warrant.peer,
        "heard": warrant.heard_unix_s.and_then(moment), "heard_unix_s": warrant.heard_unix_s,
        "heard_ms_ago": warrant.heard_ms_ago,
    })
}
