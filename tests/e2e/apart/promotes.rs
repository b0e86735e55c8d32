//! A promote at any moment of an outage and of the resync after it: what is served is a prefix of the order in which the
//! clients wrote, and holds what the destination vouches for.

use std::time::Duration;

use super::{Apart, done, plan, total};
use crate::harness::{
    Chance, Client, Effect, Fault, FaultyDisk, MIB, Operation, PromotedCopy, assert_says, create_file, eventually,
    fuse_or_skip, kind,
};
use crate::promote::is_connected;

/// MiB that change while the two are apart.
const CHANGED: u64 = 24;

/// Promotes by force, as answered writes may be missing, as soon as the destination knows that its source is gone; returns
/// what it said.
#[track_caller]
fn promote(apart: &Apart) -> String {
    eventually("the promote", Duration::from_secs(30), || {
        let refused = apart.mirror.destination.promote("alpha", false);
        assert_eq!(refused.status.code(), Some(3), "nothing seems to be missing: {}", refused.stdout);
        (!is_connected(&refused)).then(|| {
            assert_says(&refused.stderr, &["missing", "unknown", "--force"]);
            apart.mirror.destination.promote("alpha", true).success()
        })
    })
}

/// Promotes as soon as the destination knows that its source is gone: nothing is missing.
#[track_caller]
fn promote_in_step(apart: &Apart) -> String {
    eventually("the promote", Duration::from_secs(30), || {
        let finished = apart.mirror.destination.promote("alpha", false);
        (!is_connected(&finished)).then(|| finished.success())
    })
}

/// The promoted images hold a prefix with all that was answered before `in_step`, and nothing sent from `until` on; the old
/// source gets no write answered any more.
#[track_caller]
fn assert_promoted(apart: &mut Apart, what: &str, in_step: u64, until: u64) {
    let found = apart.ledger.check_as_of(in_step, what, &apart.mirror.promoted_volumes());
    assert!(apart.ledger.newest(&found) < until, "{what}: it holds more than it may");
    apart.ledger.check_as_of(in_step, what, &apart.mirror.promoted_images());
    apart.join();
    if !apart.mirror.source.runs() {
        apart.mirror.source.restart();
    }
    apart.mirror.source.wait_for_state("fenced");
    if let Ok(mut client) = Client::go(&apart.mirror.unix(), "vol0") {
        let answer = client.call(0, kind::WRITE, 0, 4096, &[7; 4096]);
        assert!(answer.is_err(), "{what}: the old source answered a write: {answer:?}");
    }
    // What is served can be written, and survives.
    let mut client = Client::go(&apart.mirror.promoted(), "vol0").expect("open the promoted volume");
    client.write(super::SIZE - 4096, &[9; 4096]).expect("a write to the promoted volume");
    apart.mirror.destination.kill();
    apart.mirror.destination.restart();
    let mut client = Client::go(&apart.mirror.promoted(), "vol0").expect("open the promoted volume");
    assert!(client.read(super::SIZE - 4096, 4096).unwrap() == [9; 4096], "{what}: a write is lost");
    apart.ledger.check_as_of(in_step, what, &apart.mirror.promoted_volumes());
}

/// Parted, with writes that only the source has: the times before which all was answered in step, and after which nothing
/// was sent to the destination.
#[track_caller]
fn lacking(apart: &Apart) -> (u64, u64) {
    let load = apart.load();
    load.wait_for_answers(100);
    let in_step = apart.part();
    let parted = apart.ledger.now();
    load.wait_for_answers(100);
    apart.change(1, CHANGED);
    load.wait_for_answers(100);
    load.stop();
    (in_step, parted)
}

#[test]
fn while_the_source_is_degraded() {
    let mut apart = Apart::start(plan());
    let (in_step, parted) = lacking(&apart);
    // It lives, and answers writes: it can't hear of the promote.
    let load = apart.load();
    load.wait_for_answers(50);
    assert_says(&promote(&apart), &["alpha", "record"]);
    load.wait_for_answers(50);
    apart.mirror.source.kill();
    load.stop();
    assert_promoted(&mut apart, "a promote while degraded", in_step, parted);
}

#[test]
fn while_a_resync_is_staged() {
    let mut apart = Apart::start(plan());
    let (in_step, parted) = lacking(&apart);
    apart.proxy.set_rate(4 * MIB);
    apart.join();
    let mirror = apart.wait_for_staging();
    let refused = apart.mirror.destination.promote("alpha", false);
    assert_eq!(refused.status.code(), Some(3), "the source is connected: {}", refused.stdout);
    assert_says(&refused.stderr, &["connected", "--force", &format!("record {}", mirror["base_record"])]);
    apart.mirror.source.kill();
    let said = promote(&apart);
    assert_says(&said, &[&format!("record {}", mirror["base_record"]), "resync", "from before"]);
    apart.proxy.set_rate(0);
    assert_promoted(&mut apart, "a promote while a resync is staged", in_step, parted);
}

#[test]
fn by_force_while_a_resync_is_staged_and_the_source_lives() {
    let mut apart = Apart::start(plan());
    let (in_step, parted) = lacking(&apart);
    apart.proxy.set_rate(4 * MIB);
    apart.join();
    apart.wait_for_staging();
    let load = apart.load();
    load.wait_for_answers(20);
    apart.mirror.destination.promote("alpha", true).success();
    // It hears of it over its connection.
    apart.mirror.source.wait_for_state("fenced");
    load.stop();
    apart.proxy.set_rate(0);
    assert_promoted(&mut apart, "a forced promote while a resync is staged", in_step, parted);
}

#[test]
fn after_the_destination_was_killed_in_a_resync() {
    let mut apart = Apart::start(plan());
    let (in_step, parted) = lacking(&apart);
    apart.proxy.set_rate(4 * MIB);
    apart.join();
    apart.wait_for_staging();
    apart.mirror.destination.kill();
    apart.mirror.source.kill();
    apart.mirror.destination.restart();
    let mirror = &apart.mirror.destination.status()["sources"][0];
    assert_eq!((&mirror["promotable"], &mirror["phase"]), (&true.into(), &"staging".into()), "{mirror:#}");
    assert_says(&promote(&apart), &["resync", "from before"]);
    apart.proxy.set_rate(0);
    assert_promoted(&mut apart, "a promote after a crash in a resync", in_step, parted);
}

#[test]
fn while_a_whole_resync_goes_to_the_image() {
    if !fuse_or_skip() {
        return;
    }
    let (near, far) = (FaultyDisk::mount(), FaultyDisk::mount());
    let mut plan = plan();
    plan.source.volumes[0].1 = near.path().join("vol0.volume");
    create_file(plan.volume(0), super::SIZE);
    plan.destination.sources[0].1[0].1 = far.path().join("vol0.image");
    create_file(plan.image(0), super::SIZE);
    let mut apart = Apart::start(plan);
    lacking(&apart);
    // From now on the image is slow, so that it takes a while until the log is empty.
    far.inject(Fault::new(Operation::Write, "vol0.image", Effect::Slow(Duration::from_millis(100))));
    apart.join();
    let draining = |mirror: &serde_json::Value| mirror["phase"] == "draining";
    let mirror = apart.mirror.destination.wait_for_mirror("the log goes to the image", draining);
    assert_eq!((&mirror["promotable"], &mirror["base_record"]), (&true.into(), &serde_json::Value::Null), "{mirror:#}");
    // With a crash in the middle of it.
    apart.mirror.destination.kill();
    apart.mirror.source.kill();
    apart.mirror.destination.restart();
    let mirror = &apart.mirror.destination.status()["sources"][0];
    assert!(draining(mirror) && mirror["promotable"] == true, "{mirror:#}");
    promote(&apart);
    far.heal();
    let now = apart.ledger.now();
    assert_promoted(&mut apart, "a promote while the staging log is drained", now, now);
}

#[test]
fn after_a_resync_nothing_answered_is_missing() {
    let mut apart = Apart::start(plan());
    lacking(&apart);
    apart.join();
    let load = apart.load();
    apart.mirror.source.wait_for_state("mirroring");
    load.wait_for_answers(50);
    apart.mirror.source.kill();
    promote_in_step(&apart);
    load.stop();
    let now = apart.ledger.now();
    assert_promoted(&mut apart, "a promote after a resync", now, now);
}

/// Kills the destination at random moments from the reconnect on, and promotes a copy of what it left behind.
#[test]
fn at_random_moments_from_the_reconnect_on() {
    let mut apart = Apart::start(plan());
    let mut chance = Chance::new(&[11]);
    let (in_step, parted) = lacking(&apart);
    let load = apart.load();
    apart.proxy.set_rate(10 * MIB);
    apart.join();
    for round in 0..6 {
        // Also within the first milliseconds, while the two settle.
        if round % 2 == 0 {
            let connected = |status: &serde_json::Value| status["connected"] == true;
            apart.mirror.source.wait_for_status_of("a connection", connected);
        }
        std::thread::sleep(chance.moment(1200));
        let status = apart.mirror.source.status();
        apart.mirror.destination.kill();
        let left = total(&status).saturating_sub(done(&status));
        let folder = tempfile::tempdir().unwrap();
        let copy = PromotedCopy::of(&apart.mirror.plan, folder.path());
        let what = format!("round {round}, {}, {left} bytes left: a copy, promoted", status["state"]);
        let found = apart.ledger.check_as_of(in_step, &what, &copy.exports());
        let old = copy.said.contains("from before");
        eprintln!("{what}: {}", if old { "the old image" } else { "all that is there" });
        if old {
            assert!(apart.ledger.newest(&found) < parted, "{what}: the old image has something new");
        }
        drop(copy);
        apart.mirror.destination.restart();
    }
    apart.proxy.set_rate(0);
    apart.mirror.source.wait_for_state("mirroring");
    load.stop();
    apart.assert_together();
    apart.mirror.destination.kill();
    let folder = tempfile::tempdir().unwrap();
    apart.ledger.check("a copy in the end", &PromotedCopy::of(&apart.mirror.plan, folder.path()).exports());
}
