//! What a check has found.

use super::{Lines, array, bytes, count, word};
use serde_json::Value;

/// Renders a check: what is there, what was measured, and at the end what is wrong.
pub(in crate::cli) fn check(report: &Value) -> String {
    let mut out = Lines::default();
    let running = if report["running"] == true { "a daemon runs on it" } else { "no daemon runs on it" };
    let name = report["name"].as_str().map_or_else(String::new, |name| format!(" {name}"));
    out.put(&format!("{}{name}: {running}", word(report, "role")));
    for file in array(report, "files") {
        self::file(&mut out, file);
    }
    let latency = &report["latency"];
    out.text("writes", &writes(latency));
    let peer = &report["peer"];
    if let (Some(connect), Some(answer)) = (count(peer, "connect_us"), count(peer, "answer_us")) {
        let (connect, answer) = (milliseconds(connect), milliseconds(answer));
        let address = word(peer, "address");
        out.text("peer", &format!("{address}: a connect takes {connect}, an answered hello {answer} (medians)"));
    }
    for listen in array(report, "listens") {
        let state = match listen["free"].as_bool() {
            Some(true) => "free",
            Some(false) => "not free",
            None => "not tried, for the daemon has it",
        };
        out.text("listen", &format!("{}: {state}", word(listen, "address")));
    }
    for error in array(report, "errors") {
        out.state("error", error.as_str().unwrap_or("?"));
    }
    for warning in array(report, "warnings") {
        out.state("warning", word(warning, "text"));
        out.text("remedy", word(warning, "remedy"));
    }
    if array(report, "errors").is_empty() && array(report, "warnings").is_empty() {
        out.put("nothing to warn about");
    }
    out.0
}

fn file(out: &mut Lines, file: &Value) {
    let (label, title) = match word(file, "part") {
        "volume" => ("volume", format!("{} on ", word(file, "name"))),
        "image" => ("image", format!("{} on ", word(file, "name"))),
        "NVRAM log" => ("nvram", String::new()),
        _ => ("journal", String::new()),
    };
    let on = match (file["file_system"].as_str(), file["device"].as_str()) {
        (Some(system), Some(device)) => format!(", on {system} over {device}"),
        (Some(system), None) => format!(", on {system}"),
        (None, _) => String::new(),
    };
    let state = match (file["exists"] == true, file["in_use"] == true) {
        (false, _) => ", not there yet",
        (true, true) => ", in use",
        (true, false) => "",
    };
    let size = count(file, "size_bytes").map_or_else(String::new, |size| format!(", {}", bytes(size)));
    out.text(label, &format!("{title}{}{size}{on}{state}", word(file, "path")));
    let store = &file["store"];
    out.text("", &format!("written {}: {}", word(store, "how"), word(store, "why")));
}

fn writes(latency: &Value) -> String {
    let (Some(median), Some(p99)) = (count(latency, "median_us"), count(latency, "p99_us")) else {
        return format!("to the journal weren't measured: {}", word(latency, "why_not"));
    };
    let on = match count(latency, "made_bytes") {
        Some(made) => format!("a file of {} made and removed for that: {}", bytes(made), word(latency, "on")),
        None => format!("a block of {}, which stays as it is", word(latency, "on")),
    };
    let writes = count(latency, "writes").unwrap_or_default();
    format!("take {}, one in a hundred {} ({writes} of 4 KiB to {on})", milliseconds(median), milliseconds(p99))
}

fn milliseconds(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_check_is_shown_whole() {
        let report = json!({
            "role": "source", "name": "alpha", "running": false,
            "files": [
                {"part": "journal", "name": "alpha", "path": "/j", "exists": true, "in_use": false,
                 "size_bytes": 33562624, "file_system": "ext4", "device": "vda",
                 "store": {"how": "dsync", "why": "vda has a volatile cache"}},
                {"part": "volume", "name": "vol0", "path": "/dev/vdb", "exists": true, "in_use": false,
                 "size_bytes": 1073741824, "device": "vdb", "store": {"how": "sync", "why": "half by half"}},
            ],
            "latency": {"on": "/j", "writes": 200, "median_us": 95, "p99_us": 1730, "made_bytes": null},
            "peer": {"address": "10.0.0.2:10808", "connect_us": 180, "answer_us": 350},
            "listens": [{"address": "unix:/n", "free": true}, {"address": "unix:/a", "free": null}],
            "errors": ["volume /dev/vdc: there is no such file"],
            "warnings": [{"what": "no_tls", "text": "there is no TLS yet", "remedy": "use a tunnel"}],
        });
        let expected = "\
source alpha: no daemon runs on it
  journal    /j, 32.0 MiB, on ext4 over vda
             written dsync: vda has a volatile cache
  volume     vol0 on /dev/vdb, 1.0 GiB
             written sync: half by half
  writes     take 0.10 ms, one in a hundred 1.73 ms (200 of 4 KiB to a block of /j, which stays as it is)
  peer       10.0.0.2:10808: a connect takes 0.18 ms, an answered hello 0.35 ms (medians)
  listen     unix:/n: free
  listen     unix:/a: not tried, for the daemon has it
error        volume /dev/vdc: there is no such file
warning      there is no TLS yet
  remedy     use a tunnel
";
        assert_eq!(check(&report), expected);
        let quiet = check(&json!({"role": "destination", "latency": {"why_not": "it is in use"}}));
        assert!(
            quiet.contains("weren't measured: it is in use") && quiet.ends_with("nothing to warn about\n"),
            "{quiet}"
        );
        check(&json!(null));
    }
}
