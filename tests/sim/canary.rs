//! Each known bug is switched on, and must be found. NBD_MIRROR_CANARY=ForgetWord: only this one.

use crate::runner::survive;
use nbd_mirror::canary::{Bug, switch};

/// Seeds within which each bug must be found.
const SEEDS: u64 = 20_000;

#[test]
fn each_known_bug_is_found() {
    let found = |bug: Bug| {
        switch(Some(bug));
        let seed = (0..SEEDS).find(|seed| survive(*seed, false).is_none());
        switch(None);
        println!("{bug:?}: {}", seed.map_or("not found".into(), |seed| format!("found by seed {seed}")));
        (bug, seed)
    };
    // What these worlds die of isn't of interest; what others do is.
    let (say, here) = (std::panic::take_hook(), std::thread::current().id());
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != here {
            say(panic);
        }
    }));
    let only = std::env::var("NBD_MIRROR_CANARY").ok();
    let wanted = |bug: &Bug| only.as_ref().is_none_or(|name| *name == format!("{bug:?}"));
    let found: Vec<(Bug, Option<u64>)> = Bug::ALL.into_iter().filter(wanted).map(found).collect();
    let missed: Vec<Bug> = found.iter().filter(|(_, seed)| seed.is_none()).map(|(bug, _)| *bug).collect();
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}
