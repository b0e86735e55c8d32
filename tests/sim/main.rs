//! The simulator: the real core source and the real core destination in a world of crashing machines, disks that lose
//! and tear, networks that are late and break, and clients who remember what they were told.
//!
//! One seed decides everything. `make sim` runs a fixed set of seeds, `make sim SEEDS=100000 FROM=7` others, and
//! `make sim SEED=7` one, with its trace. What the worlds are made of, and what they aren't: docs/testing.md.

mod arena;
mod canary;
mod client;
mod content;
mod context;
mod destination;
mod disk;
mod ghost;
mod link;
mod model;
mod pair;
mod rare;
mod rng;
mod runner;
mod source;
mod world;

use runner::{Outcome, replay, run};

/// Seeds of `make sim`.
const SEEDS: u64 = 8_000;
/// Seeds that must have met every rare state.
const ENOUGH: u64 = 8_000;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} isn't a number")))
}

#[test]
fn every_seed_keeps_every_promise() {
    if let Some(seed) = variable("SEED") {
        return replay(seed);
    }
    let (from, count) = (variable("FROM").unwrap_or(0), variable("SEEDS").unwrap_or(SEEDS));
    let Outcome { met, events, healing, seconds, failures } = run(from..from + count);
    println!(
        "{count} seeds from {from}: {events} events in {seconds:.1} s, {:.0} thousand a second and core",
        events as f64 / 1000.0 / seconds / runner::cores() as f64
    );
    println!("in step at most {healing} events after the last fault");
    for (state, count) in met.counts() {
        println!("{count:12}  {state}");
    }
    assert!(failures.is_empty(), "{} seeds failed: {failures:?}; see one with make sim SEED=n", failures.len());
    let unmet: Vec<&str> = met.counts().filter(|(_, count)| *count == 0).map(|(state, _)| state).collect();
    assert!(count < ENOUGH || unmet.is_empty(), "these seeds never met: {unmet:#?}");
}

#[test]
fn a_seed_gives_the_same_world_again() {
    for seed in 0..20 {
        let worlds = [(); 2].map(|()| {
            let mut world = world::World::new(seed, false);
            world.run();
            (world.events, world.cx.rng.next())
        });
        assert_eq!(worlds[0], worlds[1], "seed {seed}");
    }
}
