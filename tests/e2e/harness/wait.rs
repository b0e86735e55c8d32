//! Waiting: always for a condition, always with a deadline.

use std::time::{Duration, Instant};

/// Polls `condition` until it yields a value; fails the test after `limit`, naming `what`.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let (start, limit) = (Instant::now(), limit * patience());
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// By how much longer than on a machine of its own anything may take before it counts as hanging: what
/// `NBD_MIRROR_TEST_PATIENCE` says, which an emulated machine sets.
pub fn patience() -> u32 {
    std::env::var("NBD_MIRROR_TEST_PATIENCE").map_or(1, |factor| factor.parse().expect("a whole number"))
}

/// Polls `condition` until it holds.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    eventually(what, limit, || condition().then_some(()))
}
