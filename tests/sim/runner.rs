//! Many worlds, on all cores.

use crate::rare::Met;
use crate::world::World;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Failing seeds after which a run ends.
const ENOUGH_FAILURES: usize = 5;

/// What a world was like that kept its promises.
pub struct Life {
    pub met: Met,
    pub events: u64,
    pub healing: u64,
}

pub struct Outcome {
    pub met: Met,
    pub events: u64,
    /// Events that a pair needed to come into step after the last fault, at most.
    pub healing: u64,
    pub seconds: f64,
    pub failures: Vec<u64>,
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs a world; `None`: a promise was broken, and the panic's message says which.
pub fn survive(seed: u64, trace: bool) -> Option<Life> {
    let life = AssertUnwindSafe(|| {
        let mut world = World::new(seed, trace);
        world.run();
        Life { met: world.cx.met, events: world.events, healing: world.healing }
    });
    catch_unwind(life).ok()
}

/// Runs one seed and shows each event.
pub fn replay(seed: u64) {
    eprintln!("{:>6} {:18} | {:64} | destination", "event", "what comes next", "source");
    assert!(survive(seed, true).is_some(), "seed {seed} fails");
}

pub fn run(seeds: Range<u64>) -> Outcome {
    let (start, next) = (Instant::now(), AtomicU64::new(seeds.start));
    let outcome = Mutex::new(Outcome { met: Met::none(), events: 0, healing: 0, seconds: 0.0, failures: Vec::new() });
    let said = Mutex::new(Instant::now());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let lived = survive(seed, false);
            let mut outcome = outcome.lock().expect("no thread panics with this lock");
            match lived {
                Some(life) => {
                    outcome.met.add(&life.met);
                    outcome.events += life.events;
                    outcome.healing = outcome.healing.max(life.healing);
                }
                None => {
                    eprintln!("seed {seed} fails");
                    outcome.failures.push(seed);
                }
            }
            if outcome.failures.len() >= ENOUGH_FAILURES {
                break;
            }
            let mut said = said.lock().expect("no thread panics with this lock");
            if said.elapsed() > Duration::from_secs(10) {
                *said = Instant::now();
                let (done, left) = (seed - seeds.start, seeds.end - seed);
                let rate = done as f64 / start.elapsed().as_secs_f64();
                eprintln!("{done} seeds, {rate:.0} a second, {:.0} s left", left as f64 / rate);
            }
        }
    };
    std::thread::scope(|scope| (0..cores()).for_each(|_| drop(scope.spawn(work))));
    let mut outcome = outcome.into_inner().expect("no thread panics with this lock");
    outcome.seconds = start.elapsed().as_secs_f64();
    outcome.failures.sort_unstable();
    outcome
}
