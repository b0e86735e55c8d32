//! A daemon's answers as text for people: the state in one word first, then what one wants to know at night, then the
//! rest.
//!
//! Daemon and command line may be of different versions, so every field may be missing: a number
//! that isn't there is shown as `?`, a whole line that says nothing is left out.

mod check;
mod warrant;

pub(super) use check::check;
pub(super) use warrant::warrant;

use serde_json::Value;

/// Width of the first column, which fits the longest state.
const FIRST_COLUMN: usize = 11;

/// Characters between the ends of a bar.
const BAR_WIDTH: u64 = 20;

/// Renders the status of either role, as of this second since 1970.
pub(super) fn status(status: &Value, now_unix_s: u64) -> String {
    let mut out = Lines::default();
    match status["sources"].as_array() {
        Some(sources) if sources.is_empty() => out.state("empty", "a destination without sources"),
        Some(sources) => {
            for (index, source) in sources.iter().enumerate() {
                if index > 0 {
                    out.0.push('\n');
                }
                mirrored(&mut out, source, now_unix_s);
            }
            let log = &status["nvram"];
            if let Some(path) = log["path"].as_str() {
                let each = size(log, "own_bytes");
                out.0.push('\n');
                out.state(
                    "nvram",
                    &format!("{path}, {}, of which each source has {each} for itself", size(log, "size_bytes")),
                );
                out.text("store", &format!("{}: {}", word(&log["store"], "how"), word(&log["store"], "why")));
            }
        }
        None => source(&mut out, status, now_unix_s),
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

/// Renders what a verify has found: a line for each range that differs, and the sums.
pub(super) fn verified(data: &Value) -> String {
    let mut out = Lines::default();
    let mut listed = 0;
    for range in array(data, "ranges") {
        let (volume, offset) = (word(range, "volume"), number(range, "offset"));
        out.put(&format!("{volume}: differs at offset {offset}, length {}", number(range, "length")));
        listed += count(range, "length").unwrap_or(0);
    }
    let differing = count(data, "differing_bytes").unwrap_or(0);
    if differing > listed {
        out.put(&format!("and more: {} bytes in further ranges", differing - listed));
    }
    let compared = format!("{} bytes compared", number(data, "compared_bytes"));
    match differing {
        0 => out.put(&format!("equal: {compared}")),
        _ => out.put(&format!(
            "different: {compared}, {differing} bytes differ, {} bytes repaired",
            number(data, "repaired_bytes")
        )),
    }
    out.0
}

/// A source's own view.
fn source(out: &mut Lines, status: &Value, now_unix_s: u64) {
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
    if let Some(since) = status["since"].as_str() {
        let age = count(status, "since_unix_ms").map_or_else(String::new, |ms| ago(ms / 1000, now_unix_s));
        out.text("since", &format!("{since}{age}"));
    }
    out.reason(status);
    failover(out, status, now_unix_s);
    out.text("proved", &verified_to(status));
    out.halves(status);
    out.journal(status);
    out.progress("resync", &status["resync"]);
    out.progress("verify", &status["verify"]);
    if let Some(ended) = status["last_verify"]["ended"].as_str() {
        let last = &status["last_verify"];
        let found = ["compared_bytes", "differing_bytes", "repaired_bytes"].map(|key| size(last, key));
        let [compared, differing, repaired] = found;
        out.line("compared", &format!("{compared} at {ended}: {differing} differed, {repaired} repaired"));
    }
    let behind = match (count(status, "stored_here"), count(status, "stored_there")) {
        (Some(here), Some(there)) if here > there => format!(" ({} behind)", here - there),
        _ => String::new(),
    };
    out.line(
        "records",
        &format!(
            "{} made, {} stored here, {} there{behind}",
            number(status, "last_record"),
            number(status, "stored_here"),
            number(status, "stored_there"),
        ),
    );
    let (policy, peer) = (&status["policy"], &status["peer"]);
    let seconds = |ms: u64| format!("{} s", ms as f64 / 1000.0);
    let timeout = count(policy, "timeout_ms").map_or_else(|| "?".to_owned(), seconds);
    out.line("policy", &format!("{} after {timeout} without the destination", word(policy, "on_disconnect")));
    let holds = match (peer["promotable"].as_bool(), count(peer, "base_record")) {
        (Some(true), Some(base)) if base > 0 => format!("promotable as of record {base}"),
        (Some(true), _) => "promotable".to_owned(),
        _ => "not promotable".to_owned(),
    };
    let heard = number(peer, "heard_ms_ago");
    out.line("peer", &format!("{}, {holds} when it was met; heard {heard} ms ago", word(peer, "phase")));
    out.line(
        "clients",
        &format!("{} connected, {} writes waiting", number(status, "clients"), number(status, "writes_waiting")),
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
        out.volume(volume, "device");
    }
}

/// What a failover at this moment would lose, and what the destination lacks.
fn failover(out: &mut Lines, status: &Value, now_unix_s: u64) {
    let loses = &status["failover_loses"];
    match loses["what"].as_str() {
        None => return,
        Some("nothing") => out.text("failover", "would lose nothing that was answered"),
        Some("everything") => out.text("failover", "would lose everything: there is nothing to promote"),
        Some("writes since") => {
            let since = word(loses, "since");
            let age = count(loses, "since_unix_s").map_or_else(String::new, |since| ago(since, now_unix_s));
            out.text("failover", &format!("would lose what was written since {since}{age}"));
        }
        Some(other) => out.text("failover", &format!("would lose {other}")),
    }
    let lacking = match (count(status, "lacking_records"), count(status, "lacking_bytes")) {
        (None, None) => return,
        (Some(0), None | Some(0)) if loses["what"] == "nothing" => "nothing".to_owned(),
        (records, _) if loses["what"] == "everything" => {
            let records = records.map_or_else(|| "?".to_owned(), |count| count.to_string());
            format!("{records} records, and what the volumes held before,")
        }
        (records, bytes) => {
            let records = records.map_or_else(|| "an unknown number of".to_owned(), |count| count.to_string());
            let bytes = bytes.map_or_else(String::new, |count| format!(", {} of changed blocks", self::bytes(count)));
            format!("{records} records{bytes}")
        }
    };
    out.text("lacking", &format!("{lacking} at the destination"));
}

/// A destination's view of one source.
fn mirrored(out: &mut Lines, status: &Value, now_unix_s: u64) {
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
        &format!("source {} {peer}, epoch {}, {promotable}", word(status, "name"), number(status, "epoch")),
    );
    out.reason(status);
    promote(out, status, now_unix_s);
    out.line(
        "records",
        &format!(
            "{} held, {} applied; {}",
            number(status, "held_record"),
            number(status, "applied_record"),
            verified_to(status),
        ),
    );
    out.journal(status);
    out.halves(status);
    if let (Some(staged), Some(limit)) = (count(status, "staged_bytes"), count(status, "staging_limit_bytes")) {
        let phase = word(status, "phase");
        out.text("staging", &format!("{}  {phase}, {} of {}", bar(staged, limit), bytes(staged), bytes(limit)));
    }
    if let Some(logged) = count(&status["nvram"], "logged_bytes") {
        let past = number(&status["nvram"], "bypassed_writes");
        out.line("nvram", &format!("{} in the log; {past} writes found no room", bytes(logged)));
    }
    if let Some(trouble) = status["staging_trouble"].as_str() {
        out.text("trouble", trouble);
    }
    out.line("written", &format!("{} stored, {} applied", size(status, "stored_bytes"), size(status, "applied_bytes")));
    for volume in array(status, "volumes") {
        out.volume(volume, "image");
    }
}

/// What a promote at this moment would give, as far as a destination can know.
fn promote(out: &mut Lines, status: &Value, now_unix_s: u64) {
    if status["state"] == "promoted" {
        return;
    }
    let heard = count(status, "heard_unix_s").map(|heard| ago(heard, now_unix_s)).unwrap_or_default();
    let held = number(status, "held_record");
    let gives = match (status["promotable"].as_bool(), count(status, "base_record")) {
        (None, _) => return,
        (Some(false), _) => "would give nothing consistent: the copy isn't complete".to_owned(),
        (Some(true), Some(base)) => {
            format!("would give the state of record {base}, from before the resync that is being staged")
        }
        (Some(true), None) if status["source_alone"] == true => format!(
            "would give the state of record {held}; the source has answered writes since that are not here{heard}"
        ),
        (Some(true), None) if status["connected"] == true => {
            format!("would give all that was answered, to record {held}")
        }
        (Some(true), None) => {
            let heard = if heard.is_empty() { String::new() } else { format!(" (heard last{})", &heard[1..]) };
            format!("would give the state of record {held}; the source may have gone on alone{heard}")
        }
    };
    out.text("promote", &gives);
    if status["warrant"].is_object() {
        out.text("missing", &warrant::missing(&status["warrant"]));
    }
    if let Some(answered) = count(status, "answered_record").filter(|answered| *answered > 0) {
        out.text("source", &format!("had answered to record {answered}{heard}"));
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
            self.text(label, text);
        }
    }

    fn reason(&mut self, status: &Value) {
        if let Some(reason) = status["reason"].as_str() {
            self.text("because", reason);
        }
    }

    fn halves(&mut self, status: &Value) {
        for (half, label) in array(status, "halves").iter().zip(["half A", "half B"]) {
            let filled = match count(half, "capacity_bytes") {
                Some(capacity) => format!("{} of {}", size(half, "bytes"), bytes(capacity)),
                None => size(half, "bytes"),
            };
            let bar = match (count(half, "bytes"), count(half, "capacity_bytes")) {
                (Some(bytes), Some(capacity)) => bar(bytes, capacity) + "  ",
                _ => String::new(),
            };
            let text = format!(
                "{bar}{:<8}  fill {}, {filled}, {} records",
                word(half, "state"),
                number(half, "fill"),
                number(half, "records"),
            );
            self.line(label, &text);
        }
    }

    fn journal(&mut self, status: &Value) {
        let store = &status["journal"]["store"];
        if let (Some(how), Some(why)) = (store["how"].as_str(), store["why"].as_str()) {
            self.text("journal", &format!("written {how}: {why}"));
        }
    }

    fn volume(&mut self, volume: &Value, device_key: &str) {
        let (name, device) = (word(volume, "name"), word(volume, device_key));
        self.text("volume", &format!("{name} on {device}, {}", size(volume, "size_bytes")));
    }

    /// A resync or a verify, where one goes on.
    fn progress(&mut self, label: &str, progress: &Value) {
        let (Some(done), Some(total)) = (count(progress, "done_bytes"), count(progress, "total_bytes")) else { return };
        let percent = u128::from(done.min(total)) * 100 / u128::from(total.max(1));
        let (bar, sent, rate) = (bar(done, total), size(progress, "sent_bytes"), size(progress, "bytes_per_s"));
        let left = count(progress, "seconds_left").map_or_else(|| "no end in sight".to_owned(), |s| span(s) + " left");
        let (done, total) = (bytes(done), bytes(total));
        self.text(label, &format!("{bar}  {percent} %, {done} of {total}, {sent} sent; {rate}/s, {left}"));
    }

    fn text(&mut self, label: &str, text: &str) {
        self.put(&format!("  {label:<width$}  {text}", width = FIRST_COLUMN - 2));
    }

    /// Appends one line. What a terminal would obey, such as an escape, is taken out.
    fn put(&mut self, text: &str) {
        let safe = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        self.0.extend(safe);
        self.0.push('\n');
    }
}

fn verified_to(status: &Value) -> String {
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

/// How much of a whole: `[#####---------------]`.
fn bar(part: u64, whole: u64) -> String {
    let filled = u128::from(part.min(whole)) * u128::from(BAR_WIDTH) / u128::from(whole.max(1));
    // Something is never shown as nothing.
    let filled = if part > 0 { filled.max(1) } else { filled } as usize;
    format!("[{}{}]", "#".repeat(filled), "-".repeat(BAR_WIDTH as usize - filled))
}

/// `, 4 min 10 s ago`; nothing for what a clock that was set says is yet to come.
fn ago(unix_s: u64, now_unix_s: u64) -> String {
    now_unix_s.checked_sub(unix_s).map_or_else(String::new, |seconds| format!(", {} ago", span(seconds)))
}

/// A time span in its two largest units.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
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
mod tests;
