//! The destination is away for a while: what travels afterwards, and what clients notice.

use super::{Apart, SIZE, TIMEOUT, plan};
use crate::harness::{Daemon, MIB};

/// The line that tells of a resync by the dirty bitmap.
const RESYNC: &str = "resync: comparing and copying what changed";

/// Bytes that clients have written.
fn written(source: &Daemon) -> u64 {
    source.status()["written_bytes"].as_u64().unwrap()
}

#[test]
fn after_a_short_outage_only_what_was_written_travels() {
    let mut plan = plan();
    // No half is full, or old, before the link is back.
    plan.source.journal_size = "128MiB".to_owned();
    plan.source.max_age = "1h".to_owned();
    let apart = Apart::start(plan);
    let load = apart.load();
    load.wait_for_answers(50);
    apart.part();
    let journal = |status: &serde_json::Value| status["journal_bytes"].as_u64().unwrap();
    let before = (apart.proxy.carried(), journal(&apart.mirror.source.status()));
    apart.change(1, 6);
    load.wait_for_answers(200);
    let away = apart.mirror.source.status();
    assert_eq!(away["failover_loses"]["what"], "writes since", "{away:#}");
    assert!(away["lacking_records"].as_u64() > Some(200) && away["connected"] == false, "{away:#}");
    apart.join();
    apart.mirror.source.wait_for_state("mirroring");
    load.wait_for_answers(50);
    load.stop();
    let carried = apart.proxy.carried() - before.0;
    let written = journal(&apart.mirror.source.status()) - before.1;
    assert!(written >= 6 * MIB, "it wrote {written} bytes");
    // What was under way when the link was lost comes on top.
    assert!(carried <= written + 2 * MIB, "{carried} bytes travelled for {written} that were written");
    assert_eq!(apart.logged(RESYNC), 0, "the journal has it all: {}", apart.mirror.source.log());
    apart.assert_together();
}

#[test]
fn after_a_long_outage_changed_blocks_are_staged_under_load() {
    let apart = Apart::start(plan());
    apart.change(1, 40);
    let load = apart.load();
    load.wait_for_answers(50);
    apart.part();
    // Half of it is what is there already: it doesn't have to travel. All in all it is twice the journal.
    apart.change(1, 16);
    apart.change(2, 16);
    apart.change(1, 8);
    load.wait_for_answers(100);
    let away = apart.mirror.source.status();
    assert!(away["lacking_bytes"].as_u64() > Some(8 * MIB), "{away:#}");
    let waiting =
        apart.mirror.destination.wait_for_mirror("it knows that its source is gone", |m| m["state"] == "waiting");
    assert_eq!(waiting["promotable"], true);
    let before = (apart.proxy.carried(), written(&apart.mirror.source));
    apart.proxy.set_rate(6 * MIB);
    apart.join();
    let staging = apart.wait_for_staging();
    assert_eq!((&staging["promotable"], &staging["state"]), (&true.into(), &"resyncing".into()), "{staging:#}");
    assert!(staging["base_record"].as_u64() < staging["held_record"].as_u64(), "{staging:#}");
    load.wait_for_answers(50);
    let under_way = apart.mirror.source.wait_for_state("resyncing");
    assert!(
        super::done(&under_way) <= super::total(&under_way) && super::total(&under_way) < SIZE / 2,
        "{under_way:#}"
    );
    assert_eq!(under_way["peer"]["phase"], "direct", "as it was when they met");
    apart.proxy.set_rate(0);
    apart.mirror.source.wait_for_state("mirroring");
    load.wait_for_answers(50);
    load.stop();
    // What the clients write meanwhile travels as well, however long a busy machine gives them.
    let (carried, load) = (apart.proxy.carried() - before.0, written(&apart.mirror.source) - before.1);
    assert!(carried < 40 * MIB + 2 * load, "{carried} bytes travelled of {SIZE}, beside {load} that were written");
    assert_eq!(apart.logged(RESYNC), 1, "{}", apart.mirror.source.log());
    apart.assert_together();
    let empty = apart.mirror.destination.wait_for_mirror("an empty staging log", |mirror| mirror["staged_bytes"] == 0);
    assert_eq!(empty["staging_trouble"], serde_json::Value::Null);
}

#[test]
fn a_destination_that_falls_silent_counts_as_gone() {
    let apart = Apart::start(plan());
    let load = apart.load();
    load.wait_for_answers(50);
    apart.mirror.destination.freeze();
    let status = apart.mirror.source.wait_for_state("degraded");
    assert_eq!(status["connected"], false);
    assert!(apart.mirror.source.log().contains("has been silent for"), "{}", apart.mirror.source.log());
    load.wait_for_answers(100);
    apart.mirror.destination.thaw();
    apart.mirror.source.wait_for_state("mirroring");
    load.wait_for_answers(50);
    let longest = load.longest();
    load.stop();
    assert!(longest >= TIMEOUT / 2, "nothing waited for the silent destination: {longest:?}");
    assert!(longest <= TIMEOUT * 6, "a client waited for {longest:?}");
    apart.assert_together();
}

#[test]
fn an_idle_source_notices_that_its_destination_fell_silent() {
    let apart = Apart::start(plan());
    apart.mirror.destination.freeze();
    apart.mirror.source.wait_for_state("degraded");
    apart.mirror.destination.thaw();
    apart.assert_together();
}

#[test]
fn outages_one_after_the_other_on_two_volumes() {
    let mut plan = crate::harness::Plan::new(&[SIZE / 2, SIZE / 4]);
    plan.source.on_disconnect = "continue".to_owned();
    plan.source.timeout = "500ms".to_owned();
    plan.source.journal_size = "16MiB".to_owned();
    plan.source.max_age = "100ms".to_owned();
    plan.source.durability = "flush".to_owned();
    let apart = Apart::start(plan);
    let load = apart.load();
    for round in 0..2 {
        load.wait_for_answers(50);
        apart.part();
        apart.change(round, 20);
        load.wait_for_answers(100);
        apart.join();
        apart.mirror.source.wait_for_state("mirroring");
    }
    load.stop();
    apart.assert_together();
}
