//! Whole views of both roles, and what a damaged or foreign answer may not do.

use super::*;
use serde_json::json;

/// 2026-01-05T03:16:54Z.
const NOW: u64 = 1_767_583_014;

fn source_status() -> Value {
    json!({
        "role": "source", "name": "alpha", "state": "mirroring", "reason": null,
        "since": "2026-01-05T03:12:44Z", "since_unix_ms": 1767582764123_u64,
        "durability": "always", "policy": {"on_disconnect": "continue", "timeout_ms": 5000},
        "epoch": 1, "destination": "10.0.0.2:10808", "connected": true,
        "peer": {"phase": "direct", "promotable": true, "base_record": 0, "heard_ms_ago": 12},
        "failover_loses": {"what": "nothing", "since": null, "since_unix_s": null},
        "whole": true, "lacking_records": 0, "lacking_bytes": 0,
        "last_record": 123, "stored_here": 123, "stored_there": 120, "verified_record": 100,
        "resync": null, "verify": null, "last_verify": null, "open_fill": 7,
        "halves": [
            {"fill": 6, "state": "clean", "bytes": 0, "capacity_bytes": 134217728, "records": 0},
            {"fill": 7, "state": "open", "bytes": 12902400, "capacity_bytes": 134217728, "records": 23},
        ],
        "journal": {"store": {"how": "direct", "why": "vdc has no volatile cache, so what it has taken is stable"}},
        "clients": 2, "requests": 0, "writes_waiting": 0,
        "volumes": [{"name": "vol0", "device": "/dev/vdb", "size_bytes": 1073741824}],
        "answered_writes": 120, "answered_reads": 8, "written_bytes": 491520,
        "read_bytes": 32768, "flushed_bytes": 0,
    })
}

#[test]
fn a_source_in_step_is_shown_whole() {
    let expected = "\
mirroring    source alpha to 10.0.0.2:10808, epoch 1, durability always
  since      2026-01-05T03:12:44Z, 4 min 10 s ago
  failover   would lose nothing that was answered
  lacking    nothing at the destination
  proved     verified to record 100
  half A     [--------------------]  clean     fill 6, 0 B of 128.0 MiB, 0 records
  half B     [#-------------------]  open      fill 7, 12.3 MiB of 128.0 MiB, 23 records
  journal    written direct: vdc has no volatile cache, so what it has taken is stable
  records    123 made, 123 stored here, 120 there (3 behind)
  policy     continue after 5 s without the destination
  peer       direct, promotable when it was met; heard 12 ms ago
  clients    2 connected, 0 writes waiting
  answered   120 writes (480.0 KiB), 8 reads (32.0 KiB); 0 B flushed
  volume     vol0 on /dev/vdb, 1.0 GiB
";
    assert_eq!(status(&source_status(), NOW), expected);
}

#[test]
fn a_degraded_source_says_what_is_at_stake_first() {
    let mut degraded = source_status();
    degraded["state"] = json!("degraded");
    degraded["connected"] = json!(false);
    degraded["reason"] = json!("Connection refused");
    degraded["failover_loses"] =
        json!({"what": "writes since", "since": "2026-01-05T03:12:41Z", "since_unix_s": 1767582761});
    degraded["lacking_records"] = json!(3);
    degraded["lacking_bytes"] = json!(12 << 20);
    degraded["peer"] = json!(null);
    degraded["verified_record"] = json!(0);
    let expected = "\
degraded     source alpha to 10.0.0.2:10808 (not connected), epoch 1, durability always
  since      2026-01-05T03:12:44Z, 4 min 10 s ago
  because    Connection refused
  failover   would lose what was written since 2026-01-05T03:12:41Z, 4 min 13 s ago
  lacking    3 records, 12.0 MiB of changed blocks at the destination
  proved     nothing verified yet
  half A ";
    let text = status(&degraded, NOW);
    assert!(text.starts_with(expected), "{text}");
    assert!(!text.contains("\n  peer"), "{text}");
    // A clock that was set back says no nonsense.
    assert!(!status(&degraded, 1).contains("ago\n"), "{text}");
}

#[test]
fn a_resync_shows_its_progress_and_its_end() {
    let mut resyncing = source_status();
    resyncing["state"] = json!("resyncing");
    resyncing["failover_loses"] = json!({"what": "writes since", "since": "2026-01-05T03:12:41Z"});
    resyncing["lacking_records"] = json!(null);
    resyncing["lacking_bytes"] = json!(536870912);
    resyncing["peer"]["base_record"] = json!(90);
    resyncing["resync"] = json!({
        "total_bytes": 1073741824, "done_bytes": 536870912, "sent_bytes": 31457280, "bytes_per_s": 12582912,
        "seconds_left": 43, "began_unix_s": 1767582800,
    });
    let text = status(&resyncing, NOW);
    for line in [
        "  failover   would lose what was written since 2026-01-05T03:12:41Z",
        "  lacking    an unknown number of records, 512.0 MiB of changed blocks at the destination",
        "  resync     [##########----------]  50 %, 512.0 MiB of 1.0 GiB, 30.0 MiB sent; 12.0 MiB/s, 43 s left",
        "  peer       direct, promotable as of record 90 when it was met; heard 12 ms ago",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is missing in\n{text}");
    }
    resyncing["resync"]["seconds_left"] = json!(null);
    resyncing["failover_loses"] = json!({"what": "everything", "since": null, "since_unix_s": null});
    resyncing["lacking_records"] = json!(123);
    let text = status(&resyncing, NOW);
    for piece in [
        "no end in sight",
        "  failover   would lose everything: there is nothing to promote\n",
        "  lacking    123 records, and what the volumes held before, at the destination\n",
    ] {
        assert!(text.contains(piece), "{piece} is missing in\n{text}");
    }
}

#[test]
fn a_verify_shows_what_the_last_one_found() {
    let mut verified = source_status();
    verified["verify"] = json!({"total_bytes": 0, "done_bytes": 0, "bytes_per_s": 0, "sent_bytes": 0});
    verified["last_verify"] = json!({"compared_bytes": 1073741824, "differing_bytes": 8192, "repaired_bytes": 0,
                                     "ranges": [], "ended": "2026-01-04T03:00:00Z"});
    let text = status(&verified, NOW);
    assert!(text.contains("  verify     [--------------------]  0 %, 0 B of 0 B"), "{text}");
    assert!(text.contains("  compared   1.0 GiB at 2026-01-04T03:00:00Z: 8.0 KiB differed, 0 B repaired"), "{text}");
}

#[test]
fn a_destination_shows_each_source() {
    let text = status(
        &json!({"role": "destination", "sources": [
            {"name": "alpha", "state": "receiving", "reason": null, "connected": true,
             "peer": "10.0.0.1:4242", "epoch": 1, "held_record": 120, "applied_record": 100,
             "verified_record": 100, "promotable": true, "base_record": null, "stored_bytes": 491520,
             "applied_bytes": 409600, "halves": [], "phase": "direct", "staged_bytes": 0,
             "staging_limit_bytes": 8589934592_u64, "staging_trouble": null, "heard_unix_s": NOW - 3,
             "source_alone": false, "answered_record": 119,
             "nvram": {"logged_bytes": 81920, "own_bytes": 134217728, "bypassed_writes": 7},
             "volumes": [{"name": "vol0", "image": "/dev/vdc", "size_bytes": 1073741824}]},
            {"name": "beta", "state": "promoted", "connected": false, "peer": null, "epoch": 2,
             "promotable": false},
        ], "nvram": {"path": "/dev/nvme1n1", "size_bytes": 1073741824, "own_bytes": 134217728,
                "store": {"how": "dsync", "why": "it has a cache"}}}),
        NOW,
    );
    let expected = "\
receiving    source alpha from 10.0.0.1:4242, epoch 1, promotable
  promote    would give all that was answered, to record 120
  source     had answered to record 119, 3 s ago
  records    120 held, 100 applied; verified to record 100
  staging    [--------------------]  direct, 0 B of 8.0 GiB
  nvram      80.0 KiB in the log; 7 writes found no room
  written    480.0 KiB stored, 400.0 KiB applied
  volume     vol0 on /dev/vdc, 1.0 GiB

promoted     source beta not connected, epoch 2, not promotable

nvram        /dev/nvme1n1, 1.0 GiB, of which each source has 128.0 MiB for itself
  store      dsync: it has a cache
";
    assert_eq!(text, expected);
}

#[test]
fn a_destination_says_what_a_promote_would_give() {
    let shown = |fields: Value| {
        let mut source = json!({"name": "alpha", "state": "waiting", "connected": false, "promotable": true,
                                "held_record": 120, "heard_unix_s": NOW - 70});
        for (key, value) in fields.as_object().expect("an object") {
            source[key] = value.clone();
        }
        status(&json!({"sources": [source]}), NOW)
    };
    for (fields, line) in [
        (json!({}), "the state of record 120; the source may have gone on alone (heard last 1 min 10 s ago)"),
        (
            json!({"source_alone": true}),
            "the state of record 120; the source has answered writes since that are not here, 1 min 10 s ago",
        ),
        (json!({"base_record": 90}), "the state of record 90, from before the resync that is being staged"),
        (json!({"promotable": false}), "nothing consistent"),
    ] {
        let text = shown(fields);
        assert!(text.contains(&format!("  promote    would give {line}")), "{line} is missing in\n{text}");
    }
    let text = shown(json!({"staged_bytes": 4_u64 << 30, "staging_limit_bytes": 4_u64 << 30, "phase": "staging",
                            "staging_trouble": "full: raise staging_size"}));
    assert!(text.contains("[####################]  staging, 4.0 GiB of 4.0 GiB"), "{text}");
    assert!(text.contains("  trouble    full: raise staging_size"), "{text}");
}

#[test]
fn no_missing_field_is_fatal() {
    let whole = source_status();
    for key in whole.as_object().expect("an object").keys() {
        let mut part = whole.clone();
        part.as_object_mut().expect("an object").remove(key);
        assert!(status(&part, NOW).contains("source "), "without {key}");
        let mut odd = whole.clone();
        odd[key] = json!([[null]]);
        assert!(status(&odd, NOW).contains("source "), "with an odd {key}");
    }
    for odd in [json!(null), json!(3), json!({}), json!({"sources": [null, {}]})] {
        assert!(status(&odd, NOW).starts_with('?'), "{odd}");
    }
    assert!(status(&json!({"sources": []}), NOW).starts_with("empty"));
}

#[test]
fn a_terminal_is_not_commanded() {
    let text = status(&json!({"state": "waiting", "reason": "\x1b[2Jgone\nforged line"}), NOW);
    assert!(!text.contains('\x1b') && !text.contains("\nforged"), "{text}");
}

#[test]
fn outcomes_are_one_line() {
    let data = json!({"epoch": 2, "last_record": 120, "source": "alpha", "volumes": [1]});
    assert_eq!(outcome("promoted alpha", &data), "promoted alpha: epoch 2, last record 120\n");
    assert_eq!(outcome("synced", &json!(null)), "synced\n");
}

#[test]
fn a_verify_lists_what_differs() {
    let equal = json!({"compared_bytes": 1073741824, "differing_bytes": 0, "repaired_bytes": 0, "ranges": []});
    assert_eq!(verified(&equal), "equal: 1073741824 bytes compared\n");
    let different = json!({"compared_bytes": 1073741824, "differing_bytes": 12288, "repaired_bytes": 12288,
                           "ranges": [{"volume": "vol0", "offset": 4096, "length": 8192}]});
    let expected = "\
vol0: differs at offset 4096, length 8192
and more: 4096 bytes in further ranges
different: 1073741824 bytes compared, 12288 bytes differ, 12288 bytes repaired
";
    assert_eq!(verified(&different), expected);
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

#[test]
fn bars_and_spans() {
    for (part, whole, filled) in [(0, 0, 0), (0, 9, 0), (1, u64::MAX, 1), (5, 10, 10), (9, 9, 20), (99, 9, 20)] {
        let bar = bar(part, whole);
        assert_eq!((bar.matches('#').count(), bar.len()), (filled, 22), "{part} of {whole}: {bar}");
    }
    for (seconds, text) in [(59, "59 s"), (250, "4 min 10 s"), (11_100, "3 h 5 min"), (183_600, "2 d 3 h")] {
        assert_eq!(span(seconds), text);
    }
}
