//! Roles are swapped: planned, by a switchover, and after a failover, when the old source comes back.

use std::sync::Arc;

use serde_json::Value;

use crate::harness::{
    Client, Daemon, Endpoint, Image, Ledger, Load, MIB, Mirror, Plan, assert_same, assert_says, free_port, pattern,
    verb,
};

const SIZE: u64 = 16 * MIB;

/// A pair of which each side can be the other's destination.
pub fn plan() -> Plan {
    let mut plan = Plan::new(&[SIZE, SIZE]);
    let standby = free_port();
    plan.source.journal_size = "16MiB".to_owned();
    plan.source.on_disconnect = "continue".to_owned();
    plan.source.timeout = "2s".to_owned();
    plan.source.extra =
        format!("[standby]\nlisten = \"{standby}\"\njournal_dir = {:?}\n", plan.path("standby").display().to_string());
    plan.destination.peer = Some(standby);
    plan
}

fn switchover(side: &Daemon) -> Value {
    let text = side.verb(&["switchover", "--json"]).success();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

/// Both volumes, as they are served there.
pub fn served(endpoint: &Endpoint) -> Vec<Image> {
    ["vol0", "vol1"].iter().map(|name| Image::export(endpoint, name)).collect()
}

#[test]
fn roles_are_swapped_back_and_forth_without_a_byte_in_doubt() {
    let mirror = plan().start();
    mirror.assert_in_step();
    let ends = [mirror.unix(), mirror.promoted()];
    let mut epoch = 1;
    let ledger = Arc::new(Ledger::new(2, 2048, true));
    for round in 0..4_u64 {
        let (from, to) = (round as usize % 2, (round as usize + 1) % 2);
        let load = Load::start(&ledger, &["vol0", "vol1"].map(|name| (ends[from].clone(), name.to_owned())), 2);
        load.wait_for_answers(500);
        let data = switchover(if from == 0 { &mirror.source } else { &mirror.destination });
        epoch += 1;
        assert_eq!(data["epoch"], epoch, "{data:#}");
        load.stop();
        // Mirroring goes on in the other direction, with nothing to be copied.
        let other = if to == 0 { &mirror.source } else { &mirror.destination };
        other.wait_until_in_step();
        assert_eq!(other.log().matches("resync:").count(), 2 * usize::from(to == 0), "{}", other.log());
        ledger.settle("what the other side serves", &served(&ends[to]));
        // The side that gave up has the volume no more, only its image, to be read.
        assert!(Client::go(&ends[from], "vol0").is_err(), "the old side still serves");
        let mut reader = Client::go(&ends[from], "vol0@image").expect("a live image");
        assert!(reader.write(0, &pattern(9, 4096)).is_err(), "an image takes writes");
    }
    mirror.source.sync();
    for volume in 0..2 {
        assert_same(mirror.plan.volume(volume), mirror.plan.image(volume), SIZE);
    }
}

#[test]
fn a_switchover_that_cannot_be_is_refused_and_changes_nothing() {
    let mut plan = plan();
    plan.source.extra.clear();
    let mut mirror = plan.start();
    mirror.assert_in_step();
    let refused = mirror.source.verb(&["switchover"]);
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
    assert_says(&refused.stderr, &["standby", "peer"]);
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(1, 4096)).unwrap();
    mirror.source.kill();
}

#[test]
fn an_old_source_with_nothing_of_its_own_comes_back_without_a_copy() {
    let mut mirror = plan().start();
    mirror.assert_in_step();
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(1, 65536)).unwrap();
    mirror.source.kill();
    mirror.destination.promote("alpha", true).success();
    let mut client = Client::go(&mirror.promoted(), "vol0").unwrap();
    assert_eq!(client.read(0, 65536).unwrap(), pattern(1, 65536));
    client.write(MIB, &pattern(2, 65536)).unwrap();
    mirror.source.restart();
    mirror.source.wait_for_state("fenced");
    let said = mirror.source.verb(&["rejoin"]).success();
    assert_says(&said, &["nothing"]);
    mirror.destination.wait_until_in_step();
    mirror.destination.sync();
    for volume in 0..2 {
        assert_same(mirror.plan.volume(volume), mirror.plan.image(volume), SIZE);
    }
    // After a restart it still is the destination.
    mirror.source.kill();
    mirror.source.restart();
    mirror.destination.wait_until_in_step();
}

#[test]
fn what_only_the_old_source_has_is_shown_then_kept_then_overwritten() {
    let mut mirror = plan().start();
    mirror.assert_in_step();
    // The destination is away for a while: what is written then is only here.
    mirror.destination.kill();
    mirror.source.wait_for_state("degraded");
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(2 * MIB, &pattern(7, 65536)).unwrap();
    mirror.source.kill();
    mirror.destination.restart();
    mirror.destination.promote("alpha", true).success();
    let mut client = Client::go(&mirror.promoted(), "vol0").unwrap();
    client.write(4 * MIB, &pattern(8, 65536)).unwrap();
    mirror.source.restart();
    mirror.source.wait_for_state("fenced");
    let shown = mirror.source.verb(&["rejoin"]);
    assert_eq!(shown.status.code(), Some(3), "{}\n{}", shown.stdout, shown.stderr);
    assert_says(&shown.stdout, &["vol0", "64KiB|65536", "2097152"]);
    mirror.source.wait_for_state("fenced");
    mirror.source.verb(&["rejoin", "--discard"]).success();
    mirror.destination.wait_until_in_step();
    mirror.destination.sync();
    assert_same(mirror.plan.volume(0), mirror.plan.image(0), SIZE);
    let mut client = Client::go(&mirror.promoted(), "vol0").unwrap();
    assert_eq!(client.read(2 * MIB, 65536).unwrap(), vec![0; 65536], "the old source's own write is gone");
    assert_eq!(client.read(4 * MIB, 65536).unwrap(), pattern(8, 65536));
    // But kept, and only what differed was sent.
    let kept = mirror.plan.path("standby").join("alpha").join("discarded-by-epoch-2.journal");
    let listed = verb(&["inspect", kept.to_str().unwrap()]).success();
    assert_says(&listed, &["2097152"]);
    let log = mirror.destination.log();
    let sent = log.lines().find(|line| line.contains("resync:") && line.contains("differed and were sent")).unwrap();
    // What the new source wrote since is still in its journal, and travels as it is.
    assert!(sent.contains(" 65536 of 65536 "), "{sent}");
}

#[test]
fn a_source_that_is_not_fenced_has_nothing_to_rejoin() {
    let mirror: Mirror = plan().start();
    mirror.assert_in_step();
    let refused = mirror.source.verb(&["rejoin"]);
    assert_eq!(refused.status.code(), Some(3));
    assert_says(&refused.stderr, &["isn't fenced", "switchover"]);
}

#[test]
fn promoted_without_the_daemon_the_image_is_whole_and_a_failback_compares_all() {
    let mut mirror = plan().start();
    mirror.assert_in_step();
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(3 * MIB, &pattern(5, 65536)).unwrap();
    let config = mirror.plan.destination.write();
    let offline = |force: &[&str]| {
        verb(&[&["promote", "--offline", "--config", config.to_str().unwrap(), "alpha"], force].concat())
    };
    let running = offline(&["--force"]);
    assert!(!running.status.success(), "it is promoted under a running daemon");
    assert_says(&running.stderr, &["in use"]);
    mirror.source.kill();
    mirror.destination.kill();
    assert!(!offline(&[]).status.success(), "nobody knows what the source answered since");
    offline(&["--force"]).success();
    let image = std::fs::read(mirror.plan.image(0)).unwrap();
    assert!(image[3 << 20..(3 << 20) + 65536] == pattern(5, 65536)[..], "the image lacks what was answered");
    // Somebody mounts it, and writes.
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::OpenOptions::new().write(true).open(mirror.plan.image(0)).unwrap();
    file.write_all_at(&pattern(6, 4096), 5 << 20).unwrap();
    drop(file);
    mirror.destination.restart();
    mirror.source.restart();
    mirror.source.wait_for_state("fenced");
    mirror.source.verb(&["rejoin", "--discard"]).success();
    mirror.destination.wait_until_in_step();
    assert_same(mirror.plan.volume(0), mirror.plan.image(0), SIZE);
}
