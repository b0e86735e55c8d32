//! Roles are swapped under a mounted ext4: planned, by switchovers, and after failovers, when the lost side comes back.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::failover::{HANG, Mounted, RECORDS};
use crate::harness::{Daemon, Plan, free_port, verb};
use crate::times::Times;

/// Each side can be the other's destination.
fn both_ways(plan: &mut Plan) {
    let standby = free_port();
    plan.source.journal_size = "16MiB".to_owned();
    let folder = plan.path("standby");
    plan.source.extra = format!("[standby]\nlisten = \"{standby}\"\njournal_dir = {folder:?}\n");
    plan.destination.peer = Some(standby);
}

fn at(admin: &Path, words: &[&str]) -> String {
    let admin = admin.to_str().expect("test paths are UTF-8");
    verb(&[&[words[0], "--admin", admin], &words[1..]].concat()).success()
}

/// Waits until this side, which serves, mirrors to the other one, in step.
#[track_caller]
fn wait_until_in_step(serving: &Daemon) {
    serving.wait_for_mirror("it is in step with its peer", |mirror| {
        mirror["serving"]["state"] == "mirroring" && mirror["serving"]["whole"] == true
    });
}

#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn an_ext4_stays_mounted_through_ten_switchovers() {
    let mounted = Mounted::start(both_ways);
    let plan = &mounted.mirror.plan;
    let sides = [(plan.source.admin(), plan.source.unix()), (plan.destination.admin(), plan.destination.unix())];
    let mut times =
        Times::new("Switchovers under load", &["longest time without an fsync", "writes waited, as it said"]);
    for round in 0..10 {
        let ((from, _), (_, to)) = (&sides[round % 2], &sides[(round + 1) % 2]);
        let (acknowledged, logged) = (mounted.records.count(), mounted.agent.logged());
        let said = at(from, &["switchover", "--json"]);
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}:\n{said}"));
        mounted.agent.wait_until_at(to, logged);
        mounted.records.wait_for(RECORDS, HANG);
        let waited = said["longest_pause_ms"].as_u64().or(said["mirroring_after_ms"].as_u64()).unwrap_or_default();
        times.add_ms(&[mounted.records.longest_pause(acknowledged).as_millis(), waited.into()]);
        wait_until_in_step(if round % 2 == 0 { &mounted.mirror.destination } else { &mounted.mirror.source });
    }
    mounted.end();
    times.write("switchover.md");
}

/// There and back again: each side is killed once while it serves, and comes back as the other one's destination.
#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn an_ext4_stays_mounted_through_failover_and_failback() {
    let mut mounted = Mounted::start(both_ways);
    let (ours, theirs) = (mounted.mirror.plan.source.admin(), mounted.mirror.plan.destination.admin());
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
        mounted.mirror.source.wait_for_status_of("it is fenced", |status| {
            status["state"] == "fenced" || status["sources"][0]["serving"]["state"] == "fenced"
        });
        at(&ours, &["rejoin"]);
        let rejoined = Instant::now();
        wait_until_in_step(&mounted.mirror.destination);
        times.add(began, &[started, rejoined, Instant::now()]);
        let (logged, source) = (mounted.agent.logged(), mounted.mirror.plan.source.unix());
        at(&theirs, &["switchover"]);
        mounted.agent.wait_until_at(&source, logged);
        wait_until_in_step(&mounted.mirror.source);
        mounted.records.wait_for(RECORDS, HANG);
    }
    mounted.end();
    times.write("failback.md");
}
