//! `verify`: what the disks hold is compared, what differs is named, and repaired where that is wanted.

use serde_json::{Value, json};

use super::{Apart, STAMPED, plan};
use crate::harness::{Finished, MIB, assert_says, fill_pattern};

/// Ranges to be damaged, as offset and length: one block, neighbours, the very last block.
const DAMAGE: [(u64, u64); 3] = [(STAMPED + 40_960, 4096), (20 * MIB - 8192, 16_384), (super::SIZE - 4096, 4096)];

fn damage(apart: &Apart) {
    for (at, (offset, length)) in DAMAGE.iter().enumerate() {
        fill_pattern(apart.mirror.plan.image(0), 90 + at as u64, *offset, *length as usize);
    }
}

/// What `verify --json` says.
#[track_caller]
fn found(finished: &Finished, code: i32) -> Value {
    assert_eq!(finished.status.code(), Some(code), "{}{}", finished.stdout, finished.stderr);
    serde_json::from_str(&finished.stdout).expect("JSON")
}

/// Neighbouring ranges as one.
fn merged(found: &Value) -> Vec<(u64, u64)> {
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for range in found["ranges"].as_array().expect("ranges") {
        assert_eq!(range["volume"], "vol0");
        let (offset, length) = (range["offset"].as_u64().unwrap(), range["length"].as_u64().unwrap());
        match merged.last_mut() {
            Some(last) if last.0 + last.1 == offset => last.1 += length,
            _ => merged.push((offset, length)),
        }
    }
    merged
}

#[track_caller]
fn assert_finds_and_repairs(apart: &Apart) {
    let source = &apart.mirror.source;
    let bytes: u64 = DAMAGE.iter().map(|(_, length)| length).sum();
    let equal = found(&source.verify(&["--json"]), 0);
    assert_eq!((&equal["compared_bytes"], &equal["differing_bytes"]), (&super::SIZE.into(), &0.into()), "{equal:#}");
    damage(apart);
    for _ in 0..2 {
        // To compare changes nothing.
        let differs = found(&source.verify(&["--json"]), 5);
        assert_eq!(
            (&differs["differing_bytes"], &differs["repaired_bytes"]),
            (&bytes.into(), &0.into()),
            "{differs:#}"
        );
        assert_eq!(merged(&differs), DAMAGE);
    }
    assert_eq!(source.status()["last_verify"]["differing_bytes"], bytes);
    let told = source.verify(&[]);
    assert_eq!(told.status.code(), Some(5));
    assert_says(&told.stderr, &["differ", "--repair"]);
    assert_says(&told.stdout, &["vol0", &DAMAGE[0].0.to_string()]);
    let repaired = found(&source.verify(&["--repair", "--json"]), 0);
    assert_eq!((&repaired["differing_bytes"], &repaired["repaired_bytes"]), (&bytes.into(), &bytes.into()));
    let equal = found(&source.verify(&["--json"]), 0);
    assert_eq!(equal["differing_bytes"], 0, "{equal:#}");
    assert_eq!(source.status()["last_verify"]["ranges"], json!([]));
}

#[test]
fn damage_behind_the_destinations_back_is_found_and_repaired() {
    let apart = Apart::start(plan());
    apart.change(1, 30);
    apart.assert_together();
    assert_finds_and_repairs(&apart);
    apart.assert_together();
}

#[test]
fn damage_is_found_and_repaired_under_load() {
    let mut plan = plan();
    plan.source.durability = "flush".to_owned();
    let apart = Apart::start(plan);
    apart.change(1, 30);
    apart.assert_together();
    let load = apart.load();
    load.wait_for_answers(20);
    assert_finds_and_repairs(&apart);
    load.wait_for_answers(20);
    load.stop();
    apart.assert_together();
}

#[test]
fn it_needs_a_destination_that_is_in_step() {
    let apart = Apart::start(plan());
    apart.proxy.set_open(false);
    apart.mirror.source.wait_for_state("degraded");
    let refused = apart.mirror.source.verify(&[]);
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
    assert_says(&refused.stderr, &["connection|connected", "destination"]);
    apart.change(1, 24);
    apart.proxy.set_rate(4 * MIB);
    apart.join();
    apart.mirror.source.wait_for_status_of("a resync", |status| super::total(status) > 0);
    let refused = apart.mirror.source.verify(&["--repair"]);
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
    assert_says(&refused.stderr, &["resync"]);
    apart.proxy.set_rate(0);
    apart.assert_together();
}
