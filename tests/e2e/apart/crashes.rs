//! Daemons are killed during a resync, again and again: it goes on where it was.

use super::{Apart, done, plan, total};
use crate::harness::{Chance, MIB};

/// MiB that changed while the two were apart.
const CHANGED: u64 = 48;
/// Bytes of the volume.
const WHOLE: u64 = 64 * MIB;
/// Bytes a second over the link.
const RATE: u64 = 12 * MIB;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Source,
    Destination,
    Both,
}

/// Kills in one resync, each at a random moment once some of it is done.
fn kill_during_a_resync(durability: &str, victims: &[Victim], seed: u64) {
    let mut plan = plan();
    plan.source.durability = durability.to_owned();
    let mut apart = Apart::start(plan);
    let load = apart.load();
    load.wait_for_answers(50);
    apart.part();
    apart.change(1, CHANGED);
    let before = apart.proxy.carried();
    apart.proxy.set_rate(RATE);
    apart.join();
    let mut chance = Chance::new(&[seed]);
    let mut first = None;
    let mut left = u64::MAX;
    for victim in victims {
        // The state may say that it is resyncing before there is anything to do.
        let begun = apart.mirror.source.wait_for_status_of("a resync", |status| total(status) > 0);
        let total = total(&begun);
        eprintln!("{durability}: {victim:?}, {total} bytes to look at");
        first.get_or_insert(total);
        // What clients write meanwhile is in the bitmap as well, by whole grains.
        // A destination that its source doesn't know how to go on with is compared as a whole; nothing equal travels.
        let bound = total <= left.saturating_add(4 * MIB) || total == WHOLE;
        assert!(bound, "{total} bytes to look at, though only {left} were left");
        let goal = done(&begun) + 2 * MIB + chance.below(4 * MIB);
        let moment = apart.mirror.source.wait_for_status_of("some of the resync is done", |status| {
            done(status) >= goal || super::total(status) == 0
        });
        // What isn't applied yet is done again: at most what both halves hold.
        left = total - done(&moment).min(total);
        left += 16 * MIB;
        if matches!(victim, Victim::Source | Victim::Both) {
            apart.mirror.source.kill();
        }
        if matches!(victim, Victim::Destination | Victim::Both) {
            apart.mirror.destination.kill();
            apart.mirror.destination.restart();
            let mirror = &apart.mirror.destination.status()["sources"][0];
            assert_eq!(mirror["promotable"], true, "{mirror:#}");
        }
        if matches!(victim, Victim::Source | Victim::Both) {
            apart.mirror.source.restart();
        }
        load.wait_for_answers(5);
    }
    let last = total(&apart.mirror.source.wait_for_status_of("a resync", |status| total(status) > 0));
    apart.mirror.source.wait_for_state("mirroring");
    load.stop();
    apart.proxy.set_rate(0);
    let carried = apart.proxy.carried() - before;
    let first = first.expect("at least one victim");
    eprintln!("{durability}: {first} bytes to look at in the first resync, {last} in the last, {carried} carried");
    let less = last < first || last == WHOLE;
    assert!(less, "it goes on rather than starting over: {last} of {first} bytes to look at in the end");
    apart.assert_together();
}

#[test]
fn the_destination_is_killed_during_a_resync() {
    kill_during_a_resync("always", &[Victim::Destination; 4], 1);
}

#[test]
fn the_source_is_killed_during_a_resync() {
    kill_during_a_resync("always", &[Victim::Source; 4], 2);
}

#[test]
fn both_are_killed_during_a_resync() {
    kill_during_a_resync("flush", &[Victim::Both, Victim::Source, Victim::Both, Victim::Destination], 3);
}
