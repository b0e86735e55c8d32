//! Roles are swapped under a mounted ext4: planned, by switchovers, and after failovers, when the lost side comes back.

use std::time::Instant;

use serde_json::Value;

use crate::failover::{HANG, Mounted, RECORDS};
use crate::harness::{Plan, free_port};
use crate::times::Times;

/// Each side can be the other's destination.
fn both_ways(plan: &mut Plan) {
    let standby = free_port();
    plan.source.journal_size = "16MiB".to_owned();
    let folder = plan.path("standby");
    plan.source.extra = format!("[standby]\nlisten = \"{standby}\"\njournal_dir = {folder:?}\n");
    plan.destination.peer = Some(standby);
}

#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn an_ext4_stays_mounted_through_ten_switchovers() {
    let mounted = Mounted::start(both_ways);
    let plan = &mounted.mirror.plan;
    let sides = [(&mounted.mirror.source, plan.source.unix()), (&mounted.mirror.destination, plan.destination.unix())];
    let mut times =
        Times::new("Switchovers under load", &["longest time without an fsync", "writes waited, as it said"]);
    for round in 0..10 {
        let ((from, _), (serving, to)) = (&sides[round % 2], &sides[(round + 1) % 2]);
        let (acknowledged, logged) = (mounted.records.count(), mounted.agent.logged());
        let said = from.verb(&["switchover", "--json"]).success();
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}:\n{said}"));
        mounted.agent.wait_until_at(to, logged);
        mounted.records.wait_for(RECORDS, HANG);
        let waited = said["longest_pause_ms"].as_u64().or(said["mirroring_after_ms"].as_u64()).unwrap_or_default();
        times.add_ms(&[mounted.records.longest_pause(acknowledged).as_millis(), waited.into()]);
        serving.wait_until_in_step();
    }
    mounted.end();
    times.write("switchover.md");
}

/// There and back again, twice: the source is killed while it serves, comes back as the destination, and takes over.
#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn an_ext4_stays_mounted_through_failover_and_failback() {
    let mut mounted = Mounted::start(both_ways);
    let mut times = Times::new(
        "The lost side comes back",
        &["its start", "its rejoin", "in step again, while the other side is written to"],
    );
    for _ in 0..2 {
        mounted.mirror.source.kill();
        mounted.fail_over(true);
        let began = Instant::now();
        mounted.mirror.source.restart();
        let started = Instant::now();
        // From the second time on it isn't a source any more, but promoted images that were overtaken.
        mounted.mirror.source.wait_for_serving("it is fenced", |serving| serving["state"] == "fenced");
        mounted.mirror.source.verb(&["rejoin"]).success();
        let rejoined = Instant::now();
        mounted.mirror.destination.wait_until_in_step();
        times.add(began, &[started, rejoined, Instant::now()]);
        let (logged, source) = (mounted.agent.logged(), mounted.mirror.plan.source.unix());
        mounted.mirror.destination.verb(&["switchover"]).success();
        mounted.agent.wait_until_at(&source, logged);
        mounted.mirror.source.wait_until_in_step();
        mounted.records.wait_for(RECORDS, HANG);
    }
    mounted.end();
    times.write("failback.md");
}
