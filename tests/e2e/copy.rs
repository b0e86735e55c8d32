//! First contact: a volume that already holds data is copied to its image.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Client, Daemon, Ledger, Load, MIB, Mirror, Plan, Proxy, allocated, assert_same, eventually, fill_pattern, pattern,
};

/// A volume of 256 MiB with two islands of data and an island of written zeros, nothing started yet.
fn islands() -> Plan {
    let plan = Plan::new(&[256 * MIB]);
    fill_pattern(plan.volume(0), 1, 4 * MIB + 512, 9 * MIB as usize);
    fill_pattern(plan.volume(0), 2, 200 * MIB, 7 * MIB as usize);
    let file = std::fs::OpenOptions::new().write(true).open(plan.volume(0)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 64 << 20], 64 * MIB).unwrap();
    file.sync_all().unwrap();
    plan
}

/// A mirror over a slow link, with enough data that its first copy takes seconds.
fn slow_copy(rate: u64) -> (Mirror, Proxy) {
    let mut plan = Plan::new(&[48 * MIB]);
    // Stamped blocks are written to the first 8 MiB; the rest is old data.
    fill_pattern(plan.volume(0), 3, 8 * MIB, 40 * MIB as usize);
    let proxy = Proxy::start(plan.destination.listen, rate);
    plan.source.destination = Some(proxy.address);
    (plan.start(), proxy)
}

/// How many bytes of its first copy a source has done; `None` when no copy is under way.
fn progress(status: &Value) -> Option<u64> {
    let resync = &status["resync"];
    let (done, total) = (resync["done_bytes"].as_u64()?, resync["total_bytes"].as_u64()?);
    (done < total).then_some(done)
}

#[test]
fn holes_and_zeros_are_skipped() {
    for durability in ["always", "flush"] {
        let mut plan = islands();
        plan.source.durability = durability.to_owned();
        let mirror = plan.start();
        mirror.assert_in_step();
        let taken = allocated(mirror.plan.image(0));
        assert!(taken <= 20 * MIB, "16 MiB of data take {} MiB in the image", taken / MIB);
    }
}

#[test]
fn a_volume_is_complete_where_its_image_held_something_else() {
    // What the image held before is not part of the volume, and must not shine through its holes.
    let plan = islands();
    fill_pattern(plan.image(0), 9, 0, 12 * MIB as usize);
    fill_pattern(plan.image(0), 10, 100 * MIB, MIB as usize);
    // --init says that what is there may go.
    let destination = Daemon::destination_with(&plan.destination, &["--init"]);
    let source = Daemon::source(&plan.source);
    Mirror { source, destination, plan }.assert_in_step();
}

#[test]
fn writes_and_status_go_on_during_the_copy() {
    let (mirror, proxy) = slow_copy(16 * MIB);
    let ledger = Arc::new(Ledger::new(1, 2048, true));
    let load = Load::start(&ledger, &mirror.exports(), 2);
    let first =
        eventually("the copy's progress in status", Duration::from_secs(20), || progress(&mirror.source.status()));
    load.wait_for_answers(200);
    eventually("the copy's progress in status moves on", Duration::from_secs(20), || {
        (progress(&mirror.source.status())? > first).then_some(())
    });
    load.stop();
    proxy.set_rate(0);
    mirror.assert_in_step();
    ledger.check("the image", &mirror.images());
    let status = mirror.source.status();
    assert_eq!((&status["state"], &status["resync"]), (&"mirroring".into(), &Value::Null), "the copy is complete");
}

#[test]
fn clients_read_old_data_and_write_over_it_during_the_copy() {
    let (mirror, proxy) = slow_copy(8 * MIB);
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    let old = pattern(3, 40 * MIB as usize);
    for at in [9 * MIB, 20 * MIB, 47 * MIB] {
        let from = (at - 8 * MIB) as usize;
        assert!(client.read(at, 65_536).unwrap() == old[from..from + 65_536]);
        // Overwritten before, while or after the copy passes here: the newer one wins on both sides.
        client.write(at + 4096, &pattern(at, 4096)).unwrap();
        assert!(client.read(at + 4096, 4096).unwrap() == pattern(at, 4096));
    }
    proxy.set_rate(0);
    mirror.assert_in_step();
    for at in [9 * MIB, 20 * MIB, 47 * MIB] {
        assert!(client.read(at + 4096, 4096).unwrap() == pattern(at, 4096));
    }
}

#[test]
fn a_source_killed_in_the_middle_of_the_copy() {
    let (mut mirror, proxy) = slow_copy(16 * MIB);
    let ledger = Arc::new(Ledger::new(1, 2048, true));
    for _ in 0..3 {
        let load = Load::start(&ledger, &mirror.exports(), 2);
        load.wait_for_answers(100);
        mirror.source.kill();
        load.stop();
        mirror.source.restart();
        ledger.settle("the export after a restart", &mirror.volumes());
    }
    proxy.set_rate(0);
    mirror.assert_in_step();
    ledger.check("the image", &mirror.images());
}

#[test]
fn a_destination_killed_in_the_middle_of_the_copy() {
    let (mut mirror, proxy) = slow_copy(16 * MIB);
    let ledger = Arc::new(Ledger::new(1, 2048, true));
    let load = Load::start(&ledger, &mirror.exports(), 2);
    for _ in 0..3 {
        load.wait_for_answers(100);
        mirror.destination.kill();
        mirror.destination.restart();
    }
    proxy.set_rate(0);
    load.stop();
    mirror.assert_in_step();
    ledger.check("the image", &mirror.images());
}

#[test]
fn no_promote_of_an_image_that_was_never_complete() {
    // Before the first sync has finished there is no consistent image yet (promise P4): a promote has to say so.
    let (mut mirror, _proxy) = slow_copy(4 * MIB);
    eventually("the copy's progress in status", Duration::from_secs(20), || progress(&mirror.source.status()));
    mirror.source.kill();
    let refused = eventually("the destination notices that its source is gone", Duration::from_secs(20), || {
        let finished = mirror.destination.promote("alpha", false);
        (!crate::promote::is_connected(&finished)).then_some(finished)
    });
    assert!(!refused.status.success(), "an incomplete image was promoted:\n{}", refused.stdout);
    crate::harness::assert_says(&refused.stderr, &["alpha", "copy|sync|complete"]);
}

#[test]
fn an_image_made_by_hand_beforehand_stays_sparse() {
    let plan = Plan::new(&[128 * MIB]);
    let mirror = plan.start();
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(100 * MIB, &pattern(4, MIB as usize)).unwrap();
    mirror.assert_in_step();
    let taken = allocated(mirror.plan.image(0));
    assert!(taken <= 4 * MIB, "1 MiB of data takes {} MiB in the image", taken / MIB);
    assert_same(mirror.plan.volume(0), mirror.plan.image(0), 128 * MIB);
}
