//! The first sync: what doesn't travel, and that it goes on after a restart of either side.

use super::{Apart, done, plan, total};
use crate::harness::{Daemon, Habits, Ledger, Load, MIB, Mirror, Plan, Proxy, allocated, fill_pattern};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A volume of so many MiB whose first sync goes over a proxy.
fn large(mib: u64) -> Plan {
    let mut plan = plan();
    plan.sizes = vec![mib * MIB];
    for path in [plan.volume(0).to_owned(), plan.image(0).to_owned()] {
        crate::harness::create_file(&path, mib * MIB);
    }
    plan
}

#[test]
fn holes_and_zeros_do_not_travel() {
    let plan = large(256);
    fill_pattern(plan.volume(0), 1, 5 * MIB + 512, 8 * MIB as usize);
    let file = std::fs::OpenOptions::new().write(true).open(plan.volume(0)).unwrap();
    file.write_all_at(&vec![0; 64 << 20], 64 * MIB).unwrap();
    file.sync_all().unwrap();
    let apart = Apart::start(plan);
    let carried = apart.proxy.carried();
    assert!((8 * MIB..14 * MIB).contains(&carried), "{carried} bytes travelled for 8 MiB of data");
    apart.assert_together();
    let taken = allocated(apart.mirror.plan.image(0));
    assert!(taken <= 12 * MIB, "8 MiB of data take {taken} bytes in the image");
}

#[test]
fn what_the_image_holds_already_does_not_travel() {
    let mut plan = large(48);
    for path in [plan.volume(0).to_owned(), plan.image(0).to_owned()] {
        fill_pattern(&path, 1, 0, 48 << 20);
    }
    // Two places differ.
    fill_pattern(plan.image(0), 2, 7 * MIB, 4096);
    fill_pattern(plan.image(0), 3, 40 * MIB, 256 << 10);
    let proxy = Proxy::start(plan.destination.listen, 0);
    plan.source.destination = Some(proxy.address);
    let destination = Daemon::destination_with(&plan.destination, &["--init"]);
    let source = Daemon::source(&plan.source);
    let mirror = Mirror { source, destination, plan };
    mirror.assert_in_step();
    let carried = proxy.carried();
    assert!(carried < 3 * MIB, "{carried} bytes travelled, though hardly anything differed");
}

#[test]
fn it_goes_on_after_a_restart_of_either_side() {
    const DATA: u64 = 40;
    let plan = large(48);
    fill_pattern(plan.volume(0), 1, 4 * MIB, (DATA * MIB) as usize);
    let mut apart = Apart::begin(plan, 10 * MIB);
    let load = apart.load();
    let wait_for = |apart: &Apart, bytes: u64| {
        apart.mirror.source.wait_for_status_of("the first sync moves on", |status| done(status) >= bytes)
    };
    let first = wait_for(&apart, 14 * MIB);
    assert_eq!((total(&first), &first["failover_loses"]["what"]), (48 * MIB, &"everything".into()), "{first:#}");
    apart.mirror.source.kill();
    apart.mirror.source.restart();
    let second = apart.mirror.source.wait_for_status_of("a resync", |status| total(status) > 0);
    assert!(total(&second) < total(&first) - 4 * MIB, "it looks at all again: {second:#}");
    wait_for(&apart, 10 * MIB);
    // By the log: two may begin within the same second, and status tells no finer.
    let begun = |apart: &Apart| apart.mirror.source.log().matches("resync: comparing").count();
    let before = begun(&apart);
    apart.mirror.destination.kill();
    apart.mirror.destination.restart();
    let fourth =
        apart.mirror.source.wait_for_status_of("a resync anew", |status| begun(&apart) > before && total(status) > 0);
    // What wasn't applied when the destination ended is compared once more, and nothing else.
    assert!(total(&fourth) <= total(&second), "it looks at all again: {fourth:#}");
    load.wait_for_answers(20);
    load.stop();
    apart.mirror.source.wait_for_first_copy();
    let carried = apart.proxy.carried();
    assert!(carried < (2 * DATA - 8) * MIB, "{carried} bytes travelled for {DATA} MiB");
    apart.proxy.set_rate(0);
    apart.assert_together();
}

#[test]
fn clients_write_during_it_though_the_link_is_lost_for_long() {
    // There is nothing to promote yet, and still nothing of what was answered alone may be missing in the end.
    let plan = large(48);
    fill_pattern(plan.volume(0), 1, 4 * MIB, 40 << 20);
    let apart = Apart::begin(plan, 10 * MIB);
    let ledger = Arc::clone(&apart.ledger);
    apart.mirror.source.wait_for_status_of("the first sync", |status| done(status) >= 8 * MIB);
    apart.part();
    apart.change(5, 20);
    let load = Load::with(&ledger as &Arc<Ledger>, &apart.mirror.exports(), 2, Habits::GENTLE);
    load.wait_for_answers(200);
    let mirror = apart.mirror.destination.wait_for_mirror("it is alone, too", |mirror| mirror["state"] == "waiting");
    assert_eq!(mirror["promotable"], false, "{mirror:#}");
    apart.proxy.set_rate(0);
    apart.join();
    load.wait_for_answers(50);
    apart.mirror.source.wait_for_state("mirroring");
    load.stop();
    apart.assert_together();
}
