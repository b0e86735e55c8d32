//! Every checked-in seed of the fuzz targets, once through its harness, without a fuzzer: what fuzzing ever found stays
//! fixed, and the harnesses stay true to the code.

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, reason = "what only the fuzz targets and the seeds' generator use")]
mod harness;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Fewest seeds of one target: fewer and they were lost, not thinned out.
const FEWEST: usize = 20;

#[test]
fn every_seed_keeps_every_promise() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut broken = Vec::new();
    for (target, run) in harness::TARGETS {
        let mut paths: Vec<_> = fs::read_dir(seeds.join(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(paths.len() >= FEWEST, "only {} seeds of {target}", paths.len());
        for path in paths {
            let bytes = fs::read(&path).unwrap();
            if catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_err() {
                broken.push(path.strip_prefix(&seeds).unwrap().display().to_string());
            }
        }
    }
    assert!(broken.is_empty(), "{broken:?}; what they say stands above");
}

#[test]
fn a_folder_of_seeds_has_a_target() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut folders: Vec<_> = fs::read_dir(seeds).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    folders.sort();
    assert_eq!(folders, harness::TARGETS.map(|(target, _)| target));
}
