//! Each state with its reason, what a failover would lose in it, and the document that lists every field.

use super::source::describe;
use super::*;
use crate::control::config::SourceConfig;
use crate::core::policy::{Mode, OnDisconnect, Policy};
use crate::engine::command::{Counters, LinkState, PeerStatus, Progress, SourceStatus, Verified};
use crate::engine::store::Store;
use crate::format::ids::{Epoch, Id};
use crate::format::superblock::{Phase, Role, Superblock, Volume};
use std::collections::BTreeSet;
use std::path::Path;

const CONFIG: &str = "name = 'alpha'\njournal.path = '/j'\nnbd.listen = ['unix:/n']\nadmin.socket = '/a'\n\
                      destination.address = '10.0.0.2:10808'\nvolume = [{name = 'vol0', device = '/dev/vdb'}]";

fn config() -> SourceConfig {
    SourceConfig::parse(CONFIG).expect("parses")
}

/// A source in step with its destination.
fn in_step() -> SourceStatus {
    let volume = Volume { name: "vol0".into(), size_bytes: 1 << 30, block_bytes: 512 };
    let half = HalfStatus { fill: 7, state: "open", bytes: 4096, capacity_bytes: 128 << 20, records: 1 };
    SourceStatus {
        superblock: Superblock::first(Role::Source, Id::default(), "alpha", 128 << 20, Epoch(1), vec![volume]),
        journal: Store::unknown(),
        link: LinkState::Up,
        last_record: 123,
        stored_here: 123,
        stored_there: 120,
        verified_record: 100,
        open_fill: 7,
        halves: vec![half],
        inherited: 0,
        before_inherited: None,
        clients: 2,
        requests: 3,
        waiting: 0,
        mode: Mode::Together,
        mode_since_unix_ms: 1_767_582_764_123,
        policy: Policy { on_disconnect: OnDisconnect::Continue, timeout: Duration::from_secs(5) },
        held_back: false,
        whole: true,
        lacking_since_unix_s: None,
        lacking_bytes: 0,
        peer: Some(PeerStatus { phase: Phase::Direct, promotable: true, base_record: 0, heard_ms_ago: 12 }),
        resync: None,
        verify: None,
        verified: None,
        counters: Counters::default(),
    }
}

/// One that goes on alone.
fn degraded() -> SourceStatus {
    SourceStatus {
        link: LinkState::Down("silent for 5 s".into()),
        mode: Mode::Alone,
        lacking_since_unix_s: Some(1_767_582_761),
        lacking_bytes: 12 << 20,
        peer: None,
        ..in_step()
    }
}

/// One that sends what changed meanwhile, while the destination keeps what it had.
fn resyncing() -> SourceStatus {
    let began_unix_s = 1_767_582_800;
    SourceStatus {
        whole: false,
        lacking_since_unix_s: Some(1_767_582_761),
        lacking_bytes: 3 << 20,
        peer: Some(PeerStatus { phase: Phase::Staging, promotable: true, base_record: 90, heard_ms_ago: 12 }),
        resync: Some(Progress {
            total_bytes: 12_000,
            done_bytes: 3_000,
            sent_bytes: 1_000,
            bytes_per_s: 2_000,
            began_unix_s,
        }),
        ..in_step()
    }
}

#[track_caller]
fn shows(status: &SourceStatus, state: &str, reason: &str) -> Value {
    let shown = describe(&config(), "", status);
    assert_eq!(shown["state"], state, "{shown:#}");
    let said = shown["reason"].as_str().unwrap_or_default();
    assert!(said.contains(reason) && said.is_empty() == reason.is_empty(), "{reason:?} in {said:?}");
    shown
}

#[track_caller]
fn loses(shown: &Value, what: &str, since: Option<&str>, records: Option<u64>) {
    assert_eq!(shown["failover_loses"]["what"], what, "{shown:#}");
    assert_eq!(shown["failover_loses"]["since"], json!(since), "{shown:#}");
    assert_eq!(shown["lacking_records"], json!(records), "{shown:#}");
}

#[test]
fn in_step_nothing_is_lost() {
    let shown = shows(&in_step(), "mirroring", "");
    loses(&shown, "nothing", None, Some(0));
    assert_eq!(shown["since"], "2026-01-05T03:12:44Z");
    assert_eq!(shown["since_unix_ms"], 1_767_582_764_123_u64);
    assert_eq!(shown["policy"], json!({"on_disconnect": "continue", "timeout_ms": 5000}));
    assert_eq!(shown["peer"]["phase"], "direct");
    assert_eq!(shown["resync"], Value::Null);
}

#[test]
fn alone_what_was_written_since_is_lost() {
    loses(
        &shows(&degraded(), "degraded", "silent for 5 s"),
        "writes since",
        Some("2026-01-05T03:12:41Z"),
        Some(123 - 120),
    );
    // Not known to lack anything yet, but answered without the destination from here on.
    let just = SourceStatus { lacking_since_unix_s: None, ..degraded() };
    loses(&shows(&just, "degraded", "silent"), "writes since", Some("2026-01-05T03:12:44Z"), Some(3));
    // Why it can't be reached now says more than why it was lost.
    let shown = describe(&config(), "Connection refused", &degraded());
    assert_eq!(shown["reason"], "Connection refused");
}

#[test]
fn a_resync_keeps_what_was_there_before() {
    let shown = shows(&resyncing(), "resyncing", "resync by changed blocks; until its end a promote gives");
    loses(&shown, "writes since", Some("2026-01-05T03:12:41Z"), Some(123 - 90));
    assert_eq!(shown["since"], "2026-01-05T03:13:20Z", "the resync began after the connection was made");
    assert_eq!(shown["resync"]["seconds_left"], 5);
    let alone = SourceStatus { mode: Mode::Alone, ..resyncing() };
    shows(&alone, "resyncing", "answered without the destination meanwhile");
    // The connection is lost in the middle: which state the destination has kept isn't known any more.
    let lost = SourceStatus { resync: None, whole: false, ..degraded() };
    loses(&shows(&lost, "degraded", "silent"), "writes since", Some("2026-01-05T03:12:41Z"), None);
}

#[test]
fn a_resync_without_staging_leaves_nothing_to_promote() {
    let peer = PeerStatus { phase: Phase::Draining, promotable: false, base_record: 0, heard_ms_ago: 12 };
    let in_place = SourceStatus { peer: Some(peer), ..resyncing() };
    let shown = shows(&in_place, "resyncing", "resync by changed blocks; until its end there is nothing to promote");
    loses(&shown, "everything", None, Some(123));
}

#[test]
fn a_first_sync_leaves_nothing_to_promote() {
    let peer = PeerStatus { phase: Phase::Direct, promotable: false, base_record: 0, heard_ms_ago: 12 };
    let first = SourceStatus { lacking_since_unix_s: None, peer: Some(peer), ..resyncing() };
    loses(&shows(&first, "resyncing", "first sync"), "everything", None, Some(123));
    let lost = SourceStatus { mode: Mode::Waiting, peer: None, link: LinkState::Down("cut".into()), ..first };
    loses(&shows(&lost, "stalled", "cut"), "everything", None, Some(123));
}

#[test]
fn after_a_short_cut_the_link_has_to_prove_itself() {
    let back = SourceStatus { link: LinkState::Up, peer: in_step().peer, ..degraded() };
    shows(&back, "resyncing", "has to prove that it holds");
}

#[test]
fn where_writes_wait_or_fail_nothing_answered_is_missing() {
    let waiting = SourceStatus { mode: Mode::Waiting, lacking_since_unix_s: None, ..degraded() };
    loses(&shows(&waiting, "stalled", "silent for 5 s"), "nothing", None, Some(0));
    let failing = SourceStatus { mode: Mode::Failing, ..waiting.clone() };
    loses(&shows(&failing, "failing", "silent for 5 s"), "nothing", None, Some(0));
    // Between the loss and what follows from it.
    shows(&SourceStatus { mode: Mode::Together, ..waiting.clone() }, "stalled", "silent for 5 s");
    // Connected again, and not yet in step.
    shows(&SourceStatus { link: LinkState::Up, ..waiting }, "stalled", "the last record that they have in common");
}

#[test]
fn a_source_that_is_held_back_says_what_releases_it() {
    let mut held = SourceStatus { mode: Mode::Waiting, held_back: true, lacking_since_unix_s: None, ..degraded() };
    let shown =
        shows(&held, "stalled", "its destination may have been promoted since. Waiting for it (silent for 5 s)");
    let reason = shown["reason"].as_str().expect("a reason");
    assert!(reason.ends_with("nbd-mirror set --admin /a on_disconnect=continue"), "{reason}");
    held.held_back = false;
    assert!(!shows(&held, "stalled", "silent")["reason"].as_str().expect("a reason").contains("set --admin"));
}

#[test]
fn there_is_no_failover_from_nowhere_or_twice() {
    let fenced = SourceStatus { link: LinkState::Fenced(Epoch(2)), ..degraded() };
    assert_eq!(shows(&fenced, "fenced", "epoch 2")["failover_loses"], Value::Null);
    let mut config = config();
    config.destination = None;
    let shown = describe(&config, "", &degraded());
    assert_eq!((&shown["state"], &shown["failover_loses"]), (&json!("local"), &Value::Null));
}

#[test]
fn a_rate_of_nothing_has_no_end() {
    let mut stuck = resyncing();
    stuck.resync.as_mut().expect("goes on").bytes_per_s = 0;
    assert_eq!(describe(&config(), "", &stuck)["resync"]["seconds_left"], Value::Null);
}

#[test]
fn moments_are_told_in_utc() {
    assert_eq!(moment(1_767_582_764).as_deref(), Some("2026-01-05T03:12:44Z"));
    assert_eq!(moment(253_402_300_799).as_deref(), Some("9999-12-31T23:59:59Z"));
    for never in [0, 253_402_300_800, u64::MAX] {
        assert_eq!(moment(never), None);
    }
}

#[test]
fn every_field_of_a_source_is_documented() {
    let verified = Verified {
        compared_bytes: 1 << 30,
        differing_bytes: 8192,
        repaired_bytes: 8192,
        ranges: vec![(0, 4096, 8192)],
        ended_unix_s: 1_767_500_000,
    };
    let whole = SourceStatus { verify: resyncing().resync, verified: Some(verified), ..resyncing() };
    assert_documented("A source", &describe(&config(), "", &whole));
}

/// Asserts that a section of docs/status.md lists exactly the fields of this status.
#[track_caller]
pub(in crate::control) fn assert_documented(section: &str, status: &Value) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/status.md")).expect("reads");
    let body = text.split("\n## ").find_map(|part| part.strip_prefix(section)?.strip_prefix('\n'));
    let body = body.unwrap_or_else(|| panic!("docs/status.md has no section {section}"));
    let documented: BTreeSet<String> = body
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(field, _)| field.to_owned()))
        .collect();
    let mut found = BTreeSet::new();
    collect(&mut found, "", status);
    let missing: Vec<_> = found.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&found).collect();
    assert!(missing.is_empty() && gone.is_empty(), "docs/status.md, {section}: add {missing:?}, remove {gone:?}");
}

/// The names of all fields, those inside others behind a dot: `policy.timeout_ms`, `halves[].fill`.
fn collect(found: &mut BTreeSet<String>, above: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
                collect(found, &name, value);
                found.insert(name);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(found, &format!("{above}[]"), item)),
        _ => {}
    }
}
