//! What a promote would serve and lack, for whoever decides.

use super::{Lines, ago, count, number, word};
use serde_json::Value;

/// Renders a warrant.
pub(in crate::cli) fn warrant(source: &str, warrant: &Value, now_unix_s: u64) -> String {
    let mut out = Lines::default();
    out.state("warrant", &format!("for a promote of {source}"));
    let (held, served) = (number(warrant, "held_record"), number(warrant, "served_record"));
    let from = if held == served { String::new() } else { format!("; {held} is held") };
    out.text("serves", &format!("all up to record {served}{from}"));
    let heard = match count(warrant, "heard_unix_s") {
        Some(heard) => {
            let connected = if warrant["peer"].is_string() { "connected" } else { "not connected" };
            let policy = warrant["on_disconnect"].as_str().map_or_else(String::new, |policy| {
                let timeout = count(warrant, "timeout_ms").unwrap_or_default();
                format!(", policy {policy}, timeout {} s", timeout as f64 / 1e3)
            });
            format!(
                "{connected}, heard last{}: {}{policy}",
                &ago(heard, now_unix_s).replacen(',', "", 1),
                word(warrant, "last_word")
            )
        }
        None => "not heard since this daemon started".into(),
    };
    out.text("source", &heard);
    out.text("missing", &missing(warrant));
    match warrant["refusal"].as_str() {
        None => out.text("verdict", "goes"),
        Some(refusal) => out.text("verdict", &format!("refused without --force: {refusal}")),
    }
    out.0
}

/// What may be missing, and why.
pub(super) fn missing(warrant: &Value) -> String {
    let since = warrant["missing_since"].as_str().map_or_else(String::new, |since| format!(" ({since})"));
    let holds =
        count(warrant, "holds_ms").map_or_else(String::new, |ms| format!(", for another {:.1} s", ms as f64 / 1e3));
    format!("{}{since}{holds}: {}", word(warrant, "missing"), word(warrant, "because"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_warrant_is_shown_with_what_decides() {
        let mut facts = json!({
            "held_record": 119, "served_record": 119, "heard_unix_s": 997, "peer": null, "last_word": "in step",
            "on_disconnect": "continue", "timeout_ms": 5000, "missing": "0", "holds_ms": 1200, "because": "so", "refusal": null,
        });
        let text = warrant("alpha", &facts, 1000);
        for line in [
            "for a promote of alpha",
            "all up to record 119\n",
            "not connected, heard last 3 s ago: in step, policy continue, timeout 5 s\n",
            "0, for another 1.2 s: so\n",
            "goes\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        facts["refusal"] = "no".into();
        facts["served_record"] = 7.into();
        let text = warrant("alpha", &facts, 1000);
        assert!(text.contains("refused without --force: no") && text.contains("record 7; 119 is held"), "{text}");
        assert!(warrant("alpha", &json!({}), 1000).contains("not heard"));
    }
}
