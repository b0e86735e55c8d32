//! A resync that doesn't fit beside the image: the old image stays, or it is done in place, as configured.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Apart, plan};
use crate::harness::{MIB, Mount, PromotedCopy, assert_says, root_or_skip};

/// MiB that change while the two are apart.
const CHANGED: u64 = 24;

/// A mirror with that much to be sent, parted; and a time of its ledger before which all was answered in step.
#[track_caller]
fn lacking(apart: &Apart) -> u64 {
    let load = apart.load();
    load.wait_for_answers(100);
    let in_step = apart.part();
    apart.change(1, CHANGED);
    load.wait_for_answers(100);
    load.stop();
    in_step
}

/// Fills a file system but for so many MiB; returns the file that does it.
fn fill(folder: &Path, left_mib: u64) -> PathBuf {
    let path = folder.join("ballast");
    let mut ballast = File::create(&path).expect("make a ballast");
    let chunk = vec![1; 1 << 20];
    while ballast.write_all(&chunk).is_ok() {}
    let len = ballast.metadata().expect("look at the ballast").len();
    ballast.set_len(len - left_mib * MIB).expect("make some room");
    ballast.sync_all().expect("sync the ballast");
    path
}

/// Waits until both sides say that there is no room, and how it is made.
#[track_caller]
fn assert_refused(apart: &Apart, nouns: &[&str]) -> Value {
    let mirror = apart
        .mirror
        .destination
        .wait_for_mirror("no room for the resync", |mirror| mirror["staging_trouble"].is_string());
    assert_says(mirror["staging_trouble"].as_str().unwrap(), nouns);
    assert_eq!((&mirror["promotable"], &mirror["phase"]), (&true.into(), &"staging".into()), "{mirror:#}");
    // The source goes on alone, and says why.
    let status = apart.mirror.source.wait_for_status_of("why the resync doesn't go on", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["state"] == "degraded" && reason.contains("staging_size")
    });
    assert_says(status["reason"].as_str().unwrap(), nouns);
    let load = apart.load();
    load.wait_for_answers(50);
    load.stop();
    status
}

/// The image that can be promoted is the one from before the outage. Leaves the destination killed.
#[track_caller]
fn assert_old_image(apart: &mut Apart, in_step: u64, what: &str) {
    let base = apart.mirror.destination.status()["sources"][0]["base_record"].clone();
    let parted = apart.ledger.newest(&apart.ledger.check("the export", &apart.mirror.volumes()));
    apart.mirror.destination.kill();
    let folder = tempfile::tempdir().unwrap();
    let copy = PromotedCopy::of(&apart.mirror.plan, folder.path());
    assert_says(&copy.said, &[&format!("{base}"), "from before"]);
    let found = apart.ledger.check_as_of(in_step, what, &copy.exports());
    assert!(apart.ledger.newest(&found) < parted, "{what}: it has what came after the outage");
}

#[test]
fn a_staging_size_that_is_too_small_keeps_the_old_image() {
    let mut plan = plan();
    plan.destination.staging_size = "8MiB".to_owned();
    let mut apart = Apart::start(plan);
    let in_step = lacking(&apart);
    apart.join();
    assert_refused(&apart, &["8", "staging_size", "best_effort", "start the destination again"]);
    assert_old_image(&mut apart, in_step, "a copy of a destination without room");
    // A restart alone changes nothing.
    apart.mirror.destination.restart();
    assert_refused(&apart, &["staging_size"]);
    apart.mirror.destination.kill();
    apart.mirror.plan.destination.staging_size = "128MiB".to_owned();
    apart.mirror.plan.destination.write();
    apart.mirror.destination.restart();
    apart.assert_together();
}

#[test]
fn a_full_disk_keeps_the_old_image() {
    if !root_or_skip("a small file system for the journal files") {
        return;
    }
    let mut plan = plan();
    let disk = tempfile::tempdir().unwrap();
    let mount = Mount::ext4(&disk.path().join("disk"), 128 * MIB, &disk.path().join("mount"));
    plan.destination.journal_dir = mount.path.join("journals");
    let mut apart = Apart::start(plan);
    // Beside the journal files there is room for less than what changes now.
    let ballast = fill(&mount.path, 10);
    let in_step = lacking(&apart);
    apart.join();
    assert_refused(&apart, &["room|space|full", "staging_size|free"]);
    assert_old_image(&mut apart, in_step, "a copy of a destination whose disk is full");
    std::fs::remove_file(ballast).unwrap();
    apart.mirror.destination.restart();
    apart.assert_together();
    drop(apart);
    drop(mount);
}

#[test]
fn best_effort_goes_on_without_anything_to_promote() {
    let mut plan = plan();
    plan.destination.staging_size = "8MiB".to_owned();
    plan.destination.resync_staging = "best_effort".to_owned();
    let mut apart = Apart::start(plan);
    lacking(&apart);
    apart.proxy.set_rate(8 * MIB);
    apart.join();
    let promotable = |promotable: bool| move |mirror: &Value| mirror["promotable"] == promotable;
    let mirror = apart.mirror.destination.wait_for_mirror("it can't be promoted any more", promotable(false));
    assert_eq!(mirror["staging_trouble"], Value::Null, "{mirror:#}");
    let status =
        apart.mirror.source.wait_for_status_of("it has something to do still", |status| super::total(status) > 0);
    assert_eq!(status["failover_loses"]["what"], "writes since", "as the source knew when they met: {status:#}");
    // Its state says so over a restart, and a promote is refused.
    apart.mirror.source.kill();
    apart.mirror.destination.kill();
    apart.mirror.destination.restart();
    let refused = apart.mirror.destination.promote("alpha", false);
    assert!(!refused.status.success(), "promoted: {}", refused.stdout);
    assert_says(&refused.stderr, &["whole", "resync", "--force"]);
    apart.mirror.source.restart();
    apart.proxy.set_rate(0);
    apart.mirror.destination.wait_for_mirror("it can be promoted again", promotable(true));
    apart.assert_together();
    apart.mirror.destination.kill();
    let folder = tempfile::tempdir().unwrap();
    apart.ledger.check("a copy in the end", &PromotedCopy::of(&apart.mirror.plan, folder.path()).exports());
}
