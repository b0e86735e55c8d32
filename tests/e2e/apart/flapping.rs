//! A link that comes and goes: the mirror doesn't flap with it.

use std::time::Duration;

use super::{Apart, TIMEOUT, plan};

/// What a source says when it goes alone, and when it waits for its destination again.
const ALONE: &str = "DEGRADED";
const AGAIN: &str = "writes are stored on both sides again (was alone before)";

#[test]
fn cuts_that_are_shorter_than_the_timeout_only_delay_writes() {
    let mut plan = plan();
    plan.source.timeout = "20s".to_owned();
    let apart = Apart::start(plan);
    let load = apart.load();
    for _ in 0..20 {
        load.wait_for_answers(5);
        apart.proxy.cut();
    }
    load.wait_for_answers(5);
    let longest = load.longest();
    load.stop();
    assert_eq!((apart.logged(ALONE), apart.logged(AGAIN)), (0, 0), "{}", apart.mirror.source.log());
    assert!(longest < Duration::from_secs(15), "a client waited for {longest:?}");
    let told = apart.logged("the connection to the destination") + apart.logged("connected to the destination");
    assert!(told <= 8, "the log is flooded:\n{}", apart.mirror.source.log());
    apart.assert_together();
}

#[test]
fn outages_that_are_longer_than_the_timeout_part_it_only_a_few_times() {
    let apart = Apart::start(plan());
    let load = apart.load();
    for _ in 0..8 {
        load.wait_for_answers(5);
        apart.proxy.set_open(false);
        // How long the link is bad and good is what is tested; nothing is waited for.
        std::thread::sleep(TIMEOUT + TIMEOUT / 4);
        apart.join();
        std::thread::sleep(TIMEOUT);
    }
    let longest = load.longest();
    apart.mirror.source.wait_for_state("mirroring");
    load.wait_for_answers(5);
    load.stop();
    // With a memory of how often it was parted it returns after 1 s, then 4 s, then 16 s without a loss; without one it
    // would do so each time.
    let (alone, again) = (apart.logged(ALONE), apart.logged(AGAIN));
    assert!((1..=3).contains(&alone) && again <= alone, "alone {alone} times, back {again} times");
    assert!(longest < TIMEOUT * 8, "a client waited for {longest:?}");
    apart.assert_together();
}
