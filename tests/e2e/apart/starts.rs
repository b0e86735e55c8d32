//! A source that starts while its destination is away.

use super::{Apart, STAMPED, plan};
use crate::harness::{Client, MIB, Witness, pattern};

#[test]
fn a_source_that_was_in_step_waits_for_its_destination() {
    let mut apart = Apart::start(plan());
    apart.change(1, 1);
    apart.mirror.source.kill();
    apart.mirror.destination.kill();
    apart.mirror.source.restart();
    let mut client = Client::go(&apart.mirror.unix(), "vol0").unwrap();
    assert!(client.read(STAMPED, 4096).unwrap() == pattern(1 << 32, 4096), "reads are answered");
    let witness = Witness::start(&apart.mirror.unix(), "vol0", STAMPED..STAMPED + MIB);
    // The policy is `continue`, and the timeout is long over.
    witness.wait_for_a_wait(super::TIMEOUT * 4);
    let status = apart.mirror.source.status();
    assert_eq!(status["state"], "stalled", "{status:#}");
    let admin = apart.mirror.plan.source.admin();
    let remedy = format!("nbd-mirror set --admin {} on_disconnect=continue", admin.display());
    crate::harness::assert_says(status["reason"].as_str().unwrap(), &["in step", "promoted", &remedy]);
    apart.mirror.source.set(&["on_disconnect=continue"]);
    witness.wait_for_writes(20, 0);
    apart.mirror.source.wait_for_state("degraded");
    apart.mirror.destination.restart();
    apart.mirror.source.wait_for_state("mirroring");
    let (writes, _) = witness.stop();
    assert!(writes.iter().all(|write| write.error == 0));
    apart.assert_together();
}

#[test]
fn a_source_that_was_in_step_goes_on_when_its_destination_answers() {
    let mut plan = plan();
    // A busy machine must be able to store a write within it.
    plan.source.timeout = "4s".to_owned();
    let mut apart = Apart::start(plan);
    apart.mirror.source.kill();
    apart.mirror.destination.kill();
    apart.mirror.source.restart();
    let witness = Witness::start(&apart.mirror.unix(), "vol0", STAMPED..STAMPED + MIB);
    // For longer than the timeout.
    witness.wait_for_a_wait(std::time::Duration::from_secs(5));
    apart.mirror.destination.restart();
    witness.wait_for_writes(20, 0);
    witness.stop();
    assert_eq!(apart.logged("DEGRADED"), 0);
    apart.assert_together();
}

#[test]
fn a_source_killed_right_after_it_went_alone() {
    // Much of what the destination holds is in the half that is open when the link is lost, and when the source dies.
    let mut plan = plan();
    plan.source.max_age = "1h".to_owned();
    let mut apart = Apart::start(plan);
    let load = apart.load();
    load.wait_for_answers(400);
    apart.part();
    load.wait_for_answers(400);
    apart.mirror.source.kill();
    apart.mirror.source.restart();
    // Whether it still knows that it was alone is its own matter; here the operator says so.
    apart.mirror.source.set(&["on_disconnect=continue"]);
    load.wait_for_answers(50);
    apart.change(1, 24);
    load.stop();
    let before = apart.proxy.carried();
    apart.join();
    apart.mirror.source.wait_for_state("mirroring");
    let carried = apart.proxy.carried() - before;
    assert!((24 * MIB..40 * MIB).contains(&carried), "{carried} bytes travelled for 24 MiB and some");
    apart.assert_together();
}

#[test]
fn a_source_that_was_alone_goes_on_alone() {
    let mut apart = Apart::start(plan());
    apart.part();
    apart.change(1, 20);
    let load = apart.load();
    load.wait_for_answers(50);
    // That it is alone is stored by now: it was written when it went alone, and then fills were flushed without its
    // destination.
    for _ in 0..2 {
        apart.mirror.source.kill();
        apart.mirror.source.restart();
        let status = apart.mirror.source.status();
        assert_eq!(status["state"], "degraded", "{status:#}");
        assert_eq!(status["failover_loses"]["what"], "writes since", "{status:#}");
        load.wait_for_answers(50);
    }
    load.stop();
    // The dirty bitmap has come through: only that travels.
    let before = apart.proxy.carried();
    apart.join();
    apart.mirror.source.wait_for_state("mirroring");
    let carried = apart.proxy.carried() - before;
    assert!((20 * MIB..40 * MIB).contains(&carried), "{carried} bytes travelled for 20 MiB and some");
    apart.assert_together();
}
