//! A daemon's answers as text for people: the state in one word first, details below it.
//!
//! Daemon and command line may be of different versions, so every field may be missing: a number
//! that isn't there is shown as `?`, a whole line that says nothing is left out.

use serde_json::Value;

/// Width of the first column, which fits the longest state.
const FIRST_COLUMN: usize = 11;

/// Renders the status of either role.
pub(super) fn status(status: &Value) -> String {
    let mut out = Lines::default();
    match status["sources"].as_array() {
        Some(sources) if sources.is_empty() => out.state("empty", "a destination without sources"),
        Some(sources) => {
            for (index, source) in sources.iter().enumerate() {
                if index > 0 {
                    out.0.push('\n');
                }
                mirrored(&mut out, source);
            }
        }
        None => source(&mut out, status),
    }
    out.0
}

/// Renders what a verb did: `headline: fill 7, record 123`.
pub(super) fn outcome(headline: &str, data: &Value) -> String {
    let facts: Vec<String> = data
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(truth) => (if *truth { "yes" } else { "no" }).to_owned(),
                Value::Null | Value::Array(_) | Value::Object(_) => return None,
            };
            // The headline names the source already.
            (key != "source").then(|| format!("{} {value}", key.replace('_', " ")))
        })
        .collect();
    let mut out = Lines::default();
    match facts.is_empty() {
        true => out.put(headline),
        false => out.put(&format!("{headline}: {}", facts.join(", "))),
    }
    out.0
}

/// A source's own view.
fn source(out: &mut Lines, status: &Value) {
    let destination = match (status["destination"].as_str(), status["connected"].as_bool()) {
        (None, _) => "without a destination".to_owned(),
        (Some(address), Some(true)) => format!("to {address}"),
        (Some(address), Some(false)) => format!("to {address} (not connected)"),
        (Some(address), None) => format!("to {address} (?)"),
    };
    out.state(
        word(status, "state"),
        &format!(
            "source {} {destination}, epoch {}, durability {}",
            word(status, "name"),
            number(status, "epoch"),
            word(status, "durability"),
        ),
    );
    out.reason(status);
    let behind = match (count(status, "stored_here"), count(status, "stored_there")) {
        (Some(here), Some(there)) if here > there => format!(" ({} behind)", here - there),
        _ => String::new(),
    };
    out.line(
        "records",
        &format!(
            "{} made, {} stored here, {} there{behind}; {}",
            number(status, "last_record"),
            number(status, "stored_here"),
            number(status, "stored_there"),
            verified(status),
        ),
    );
    out.halves(status);
    out.line(
        "clients",
        &format!("{} connected, {} writes waiting", number(status, "clients"), number(status, "writes_waiting"),),
    );
    out.line(
        "answered",
        &format!(
            "{} writes ({}), {} reads ({}); {} flushed",
            number(status, "answered_writes"),
            size(status, "written_bytes"),
            number(status, "answered_reads"),
            size(status, "read_bytes"),
            size(status, "flushed_bytes"),
        ),
    );
    for volume in array(status, "volumes") {
        let copied = match (count(volume, "copied_bytes"), count(volume, "copy_total_bytes")) {
            (Some(done), Some(total)) if done < total => format!(
                ", first copy {} % ({} of {})",
                u128::from(done) * 100 / u128::from(total),
                bytes(done),
                bytes(total)
            ),
            _ => String::new(),
        };
        out.volume(volume, "device", &copied);
    }
}

/// A destination's view of one source.
fn mirrored(out: &mut Lines, status: &Value) {
    let peer = match (status["peer"].as_str(), status["connected"].as_bool()) {
        (Some(peer), _) => format!("from {peer}"),
        (None, Some(false)) => "not connected".to_owned(),
        (None, _) => "from ?".to_owned(),
    };
    let promotable = match status["promotable"].as_bool() {
        Some(true) => "promotable",
        Some(false) => "not promotable",
        None => "promotable ?",
    };
    out.state(
        word(status, "state"),
        &format!("source {} {peer}, epoch {}, {promotable}", word(status, "name"), number(status, "epoch"),),
    );
    out.reason(status);
    out.line(
        "records",
        &format!(
            "{} held, {} applied; {}",
            number(status, "held_record"),
            number(status, "applied_record"),
            verified(status),
        ),
    );
    out.halves(status);
    out.line(
        "written",
        &format!("{} stored, {} applied", size(status, "stored_bytes"), size(status, "applied_bytes"),),
    );
    for volume in array(status, "volumes") {
        out.volume(volume, "image", "");
    }
}

/// The text in the making.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn state(&mut self, state: &str, text: &str) {
        self.put(&format!("{state:<FIRST_COLUMN$}  {text}"));
    }

    fn line(&mut self, label: &str, text: &str) {
        // A line of unknowns only would say nothing.
        let known = text.chars().any(|c| c.is_ascii_digit());
        if known {
            self.put(&format!("  {label:<width$}  {text}", width = FIRST_COLUMN - 2));
        }
    }

    fn reason(&mut self, status: &Value) {
        if let Some(reason) = status["reason"].as_str() {
            self.put(&format!("  {:<width$}  {reason}", "because", width = FIRST_COLUMN - 2));
        }
    }

    fn halves(&mut self, status: &Value) {
        for (half, label) in array(status, "halves").iter().zip(["half A", "half B"]) {
            let filled = match count(half, "capacity_bytes") {
                Some(capacity) => format!("{} of {}", size(half, "bytes"), bytes(capacity)),
                None => size(half, "bytes"),
            };
            let text = format!(
                "{:<8}  fill {}, {filled}, {} records",
                word(half, "state"),
                number(half, "fill"),
                number(half, "records"),
            );
            self.line(label, &text);
        }
    }

    fn volume(&mut self, volume: &Value, device_key: &str, more: &str) {
        let text =
            format!("{} on {}, {}{more}", word(volume, "name"), word(volume, device_key), size(volume, "size_bytes"),);
        self.put(&format!("  {:<width$}  {text}", "volume", width = FIRST_COLUMN - 2));
    }

    /// Appends one line. What a terminal would obey, such as an escape, is taken out.
    fn put(&mut self, text: &str) {
        let safe = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        self.0.extend(safe);
        self.0.push('\n');
    }
}

fn verified(status: &Value) -> String {
    match count(status, "verified_record") {
        Some(0) => "nothing verified yet".to_owned(),
        Some(record) => format!("verified to record {record}"),
        None => "verified to record ?".to_owned(),
    }
}

fn array<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object[key].as_array().map_or(&[], Vec::as_slice)
}

fn word<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or("?")
}

fn count(object: &Value, key: &str) -> Option<u64> {
    object[key].as_u64()
}

fn number(object: &Value, key: &str) -> String {
    count(object, key).map_or_else(|| "?".to_owned(), |n| n.to_string())
}

fn size(object: &Value, key: &str) -> String {
    count(object, key).map_or_else(|| "?".to_owned(), bytes)
}

/// A number of bytes, rounded for people: `12.3 MiB`.
fn bytes(bytes: u64) -> String {
    const LARGER_UNITS: [&str; 4] = ["MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = "KiB";
    for larger in LARGER_UNITS {
        // From 1023.95 on, one decimal place would show 1024.0.
        if value < 1023.95 {
            break;
        }
        unit = larger;
        value /= 1024.0;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn source_status() -> Value {
        json!({
            "role": "source", "name": "alpha", "state": "mirroring", "reason": null,
            "durability": "always", "epoch": 1, "destination": "10.0.0.2:10808",
            "connected": true, "last_record": 123, "stored_here": 123, "stored_there": 120,
            "verified_record": 100, "open_fill": 7,
            "halves": [
                {"fill": 6, "state": "clean", "bytes": 0, "capacity_bytes": 134217728, "records": 0},
                {"fill": 7, "state": "open", "bytes": 12902400, "capacity_bytes": 134217728, "records": 23},
            ],
            "clients": 2, "writes_waiting": 0,
            "volumes": [{"name": "vol0", "device": "/dev/vdb", "size_bytes": 1073741824,
                         "copied_bytes": 536870912, "copy_total_bytes": 1073741824}],
            "answered_writes": 120, "answered_reads": 8, "written_bytes": 491520,
            "read_bytes": 32768, "flushed_bytes": 0,
        })
    }

    #[test]
    fn a_source_is_shown_whole() {
        let expected = "\
mirroring    source alpha to 10.0.0.2:10808, epoch 1, durability always
  records    123 made, 123 stored here, 120 there (3 behind); verified to record 100
  half A     clean     fill 6, 0 B of 128.0 MiB, 0 records
  half B     open      fill 7, 12.3 MiB of 128.0 MiB, 23 records
  clients    2 connected, 0 writes waiting
  answered   120 writes (480.0 KiB), 8 reads (32.0 KiB); 0 B flushed
  volume     vol0 on /dev/vdb, 1.0 GiB, first copy 50 % (512.0 MiB of 1.0 GiB)
";
        assert_eq!(status(&source_status()), expected);
    }

    #[test]
    fn a_waiting_source_says_why() {
        let mut waiting = source_status();
        waiting["state"] = json!("waiting");
        waiting["connected"] = json!(false);
        waiting["reason"] = json!("connection refused");
        waiting["verified_record"] = json!(0);
        waiting["volumes"][0]["copied_bytes"] = json!(1073741824);
        let text = status(&waiting);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("waiting "), "{text}");
        assert!(lines[0].contains("10.0.0.2:10808 (not connected)"), "{text}");
        assert_eq!(lines[1], "  because    connection refused");
        assert!(text.contains("nothing verified yet"), "{text}");
        assert!(!text.contains("first copy"), "a finished copy isn't shown: {text}");
    }

    #[test]
    fn a_destination_shows_each_source() {
        let text = status(&json!({"role": "destination", "sources": [
            {"name": "alpha", "state": "receiving", "reason": null, "connected": true,
             "peer": "10.0.0.1:4242", "epoch": 1, "held_record": 120, "applied_record": 100,
             "verified_record": 100, "promotable": true, "stored_bytes": 491520,
             "applied_bytes": 409600, "halves": [],
             "volumes": [{"name": "vol0", "image": "/dev/vdc", "size_bytes": 1073741824}]},
            {"name": "beta", "state": "promoted", "connected": false, "peer": null, "epoch": 2,
             "promotable": false},
        ]}));
        let expected = "\
receiving    source alpha from 10.0.0.1:4242, epoch 1, promotable
  records    120 held, 100 applied; verified to record 100
  written    480.0 KiB stored, 400.0 KiB applied
  volume     vol0 on /dev/vdc, 1.0 GiB

promoted     source beta not connected, epoch 2, not promotable
";
        assert_eq!(text, expected);
    }

    #[test]
    fn no_missing_field_is_fatal() {
        let whole = source_status();
        for key in whole.as_object().expect("an object").keys() {
            let mut part = whole.clone();
            part.as_object_mut().expect("an object").remove(key);
            assert!(status(&part).contains("source "), "without {key}");
            let mut odd = whole.clone();
            odd[key] = json!([[null]]);
            assert!(status(&odd).contains("source "), "with an odd {key}");
        }
        for odd in [json!(null), json!(3), json!({}), json!({"sources": [null, {}]})] {
            assert!(status(&odd).starts_with('?'), "{odd}");
        }
        assert!(status(&json!({"sources": []})).starts_with("empty"));
    }

    #[test]
    fn a_terminal_is_not_commanded() {
        let text = status(&json!({"state": "waiting", "reason": "\x1b[2Jgone\nforged line"}));
        assert!(!text.contains('\x1b') && !text.contains("\nforged"), "{text}");
    }

    #[test]
    fn outcomes_are_one_line() {
        let data = json!({"epoch": 2, "last_record": 120, "source": "alpha", "volumes": [1]});
        assert_eq!(outcome("promoted alpha", &data), "promoted alpha: epoch 2, last record 120\n");
        assert_eq!(outcome("synced", &json!(null)), "synced\n");
    }

    #[test]
    fn bytes_are_rounded_for_people() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1048575, "1.0 MiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }
}
