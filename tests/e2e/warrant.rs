//! What a promote says before it acts: whether answered writes may be missing.

use std::thread::sleep;
use std::time::Duration;

use crate::harness::{Client, MIB, Mirror, Plan, assert_says, eventually, pattern};

/// The source's timeout.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A mirror in step, with a write in it, whose destination was told so.
fn in_step(on_disconnect: &str) -> Mirror {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.on_disconnect = on_disconnect.to_owned();
    plan.source.timeout = "1s".to_owned();
    let mirror = plan.start();
    mirror.assert_in_step();
    Client::go(&mirror.unix(), "vol0").unwrap().write(0, &pattern(1, 4096)).unwrap();
    mirror.destination.wait_for_mirror("nothing is missing", |mirror| mirror["warrant"]["missing_writes"] == 0);
    mirror
}

/// The warrant, once the destination knows that its source is gone.
fn gone(mirror: &Mirror) -> serde_json::Value {
    eventually("the destination notices that its source is gone", Duration::from_secs(20), || {
        let warrant = &mirror.destination.status()["sources"][0]["warrant"];
        (warrant["peer"].is_null()).then(|| warrant.clone())
    })
}

#[track_caller]
fn assert_goes(mirror: &Mirror) {
    assert!(mirror.destination.warrants("alpha"), "{:#}", mirror.destination.status());
    let said = mirror.destination.promote("alpha", false).success();
    assert_says(&said, &["warrant", "goes", "promoted alpha"]);
    assert!(Client::go(&mirror.promoted(), "vol0").unwrap().read(0, 4096).unwrap() == pattern(1, 4096));
}

#[track_caller]
fn assert_needs_force(mirror: &Mirror, why: &str) {
    assert!(!mirror.destination.warrants("alpha"), "{:#}", mirror.destination.status());
    let refused = mirror.destination.promote("alpha", false);
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stdout);
    assert_says(&refused.stdout, &["warrant", "unknown", why, "refused without --force"]);
    let said = mirror.destination.promote("alpha", true).success();
    assert_says(&said, &["unknown", "promoted alpha"]);
    assert!(Client::go(&mirror.promoted(), "vol0").unwrap().read(0, 4096).unwrap() == pattern(1, 4096));
}

#[test]
fn a_source_with_continue_is_trusted_for_its_timeout_only() {
    let mut mirror = in_step("continue");
    assert!(!mirror.destination.warrants("alpha"), "it is connected, and alive");
    mirror.source.kill();
    let warrant = gone(&mirror);
    assert_eq!((&warrant["missing_writes"], &warrant["goes"]), (&0.into(), &true.into()), "{warrant:#}");
    assert!(warrant["holds_ms"].as_u64().unwrap() <= TIMEOUT.as_millis() as u64, "{warrant:#}");
    sleep(TIMEOUT);
    let warrant = gone(&mirror);
    assert!(warrant["missing_since"].is_string() && warrant["holds_ms"].is_null(), "{warrant:#}");
    assert_needs_force(&mirror, "may have gone alone");
}

#[test]
fn a_source_that_stalls_is_trusted_for_good() {
    for policy in ["stall", "fail"] {
        let mut mirror = in_step(policy);
        mirror.source.kill();
        sleep(2 * TIMEOUT);
        let warrant = gone(&mirror);
        assert_eq!((&warrant["on_disconnect"], &warrant["holds_ms"]), (&policy.into(), &serde_json::Value::Null));
        assert_goes(&mirror);
    }
}

#[test]
fn a_source_that_ended_is_trusted_for_good_and_comes_back_fenced() {
    let mut mirror = in_step("continue");
    mirror.source.stop(nix::sys::signal::Signal::SIGTERM);
    sleep(2 * TIMEOUT);
    let warrant = gone(&mirror);
    assert_eq!(warrant["last_word"], "ended in step", "{warrant:#}");
    assert_goes(&mirror);
    mirror.source.restart();
    mirror.source.wait_for_state("fenced");
}

#[test]
fn a_policy_that_is_changed_while_both_run_is_known_at_once() {
    let mut mirror = in_step("continue");
    mirror.source.set(&["on_disconnect=stall", "timeout=3s"]);
    let told = |mirror: &serde_json::Value| mirror["warrant"]["timeout_ms"] == 3000;
    let known = mirror.destination.wait_for_mirror("it knows", told);
    assert_eq!(known["warrant"]["on_disconnect"], "stall", "{known:#}");
    mirror.source.kill();
    sleep(4 * TIMEOUT);
    assert_goes(&mirror);
}

#[test]
fn a_destination_that_was_restarted_knows_nothing() {
    let mut mirror = in_step("stall");
    mirror.source.kill();
    mirror.destination.kill();
    mirror.destination.restart();
    assert_needs_force(&mirror, "nobody here knows");
}

#[test]
fn the_check_alone_does_nothing() {
    let mut mirror = in_step("stall");
    mirror.source.kill();
    gone(&mirror);
    for _ in 0..2 {
        assert!(mirror.destination.warrants("alpha"));
    }
    mirror.source.restart();
    mirror.assert_in_step();
}
