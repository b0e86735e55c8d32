//! A destination that stores frames in a log shared by all its sources first.
//!
//! The campaigns of kills and power cuts have it, too.

use std::sync::Arc;
use std::time::Duration;

use crate::harness::{
    Client, Daemon, DestinationConfig, Effect, Endpoint, Fault, FaultyDisk, Ledger, Load, MIB, Mirror, Operation, Plan,
    SourceConfig, assert_same, create_file, fuse_or_skip, pattern, refused, wait_until,
};
use crate::promote::promote_by_force;

const SIZE: u64 = 16 * MIB;
const BLOCKS: usize = 1024;

fn plan() -> Plan {
    let mut plan = Plan::new(&[SIZE]);
    plan.source.journal_size = "16MiB".to_owned();
    plan.destination.nvram = Some(plan.path("nvram.log"));
    plan
}

/// Whether the log holds something of the only source.
fn logged(mirror: &Mirror) -> u64 {
    mirror.destination.status()["sources"][0]["nvram"]["logged_bytes"].as_u64().expect("a log")
}

fn write(mirror: &Mirror, seed: u64, at: u64) {
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(at, &pattern(seed, 64 << 10)).unwrap();
}

#[track_caller]
fn assert_promoted(mirror: &Mirror, seed: u64, at: u64) {
    let mut client = Client::go(&mirror.promoted(), "vol0").unwrap();
    assert!(client.read(at, 64 << 10).unwrap() == pattern(seed, 64 << 10), "what was answered is missing");
}

/// Both daemons are killed behind a write that may be in the log alone.
#[track_caller]
fn killed_behind_a_write(seed: u64, at: u64) -> Mirror {
    let mut mirror = plan().start();
    mirror.assert_in_step();
    write(&mirror, seed, at);
    assert!(logged(&mirror) > 0);
    mirror.source.kill();
    mirror.destination.kill();
    mirror
}

#[test]
fn status_tells_of_the_log() {
    let mirror = plan().start();
    mirror.assert_in_step();
    write(&mirror, 1, 0);
    let status = mirror.destination.status();
    let log = &status["nvram"];
    assert_eq!(log["path"], mirror.plan.path("nvram.log").to_str().unwrap(), "{log:#}");
    assert_eq!((&log["size_bytes"], &log["own_bytes"]), (&(60 * MIB + (64 << 10)).into(), &(28 * MIB).into()));
    assert_eq!(status["sources"][0]["nvram"]["bypassed_writes"], 0, "{status:#}");
    assert!(logged(&mirror) >= 64 << 10);
    let text = mirror.destination.verb(&["status"]).success();
    assert!(text.contains("nvram"), "{text}");
}

#[test]
fn what_is_only_in_the_log_is_promoted() {
    let mut mirror = killed_behind_a_write(1, MIB);
    mirror.destination.restart();
    assert_eq!(logged(&mirror), 0, "a start empties it");
    promote_by_force(&mirror.destination, "alpha");
    assert_promoted(&mirror, 1, MIB);
}

#[test]
fn a_promote_offline_finds_what_is_in_the_log() {
    let mirror = killed_behind_a_write(1, MIB);
    let config = mirror.plan.destination.write();
    let words = ["promote", "--offline", "--config", config.to_str().unwrap(), "alpha", "--force"];
    crate::harness::verb(&words).success();
    let image = std::fs::read(mirror.plan.image(0)).unwrap();
    assert!(image[MIB as usize..][..64 << 10] == pattern(1, 64 << 10));
}

#[test]
fn it_is_turned_on_and_off_at_restarts() {
    let mut mirror = plan().start();
    let log = mirror.plan.destination.nvram.clone();
    let ledger = Arc::new(Ledger::new(1, BLOCKS, true));
    let load = Load::start(&ledger, &mirror.exports(), 1);
    for round in 0..6 {
        load.wait_for_answers(200);
        if round % 2 == 0 {
            mirror.destination.kill();
        } else {
            assert!(mirror.destination.stop(nix::sys::signal::SIGTERM).success());
        }
        let config = &mut mirror.plan.destination;
        // With the log, without it, and with another one.
        config.nvram = match round % 3 {
            0 => None,
            1 => log.clone(),
            _ => Some(config.dir.join("another.log")),
        };
        config.write();
        mirror.destination.restart();
        let used = mirror.destination.status()["nvram"]["path"].as_str().map(str::to_owned);
        let wanted = mirror.plan.destination.nvram.as_ref().map(|path| path.to_str().unwrap().to_owned());
        assert_eq!(used, wanted);
        assert_eq!(mirror.plan.destination.journal_dir.join("nvram").exists(), wanted.is_some());
    }
    load.stop();
    mirror.assert_in_step();
    ledger.check("the images", &mirror.images());
}

#[test]
fn a_log_that_is_missing_is_named_with_the_remedy() {
    let mut mirror = plan().start();
    mirror.assert_in_step();
    write(&mirror, 1, MIB);
    mirror.destination.kill();
    let (log, aside) = (mirror.plan.path("nvram.log"), mirror.plan.path("aside"));
    std::fs::rename(&log, &aside).unwrap();
    let config = mirror.plan.destination.write();
    let error = refused("destination", &config);
    assert!(error.contains("nvram.log") && error.contains("give it back"), "{error}");
    create_file(&log, 64 * MIB);
    let error = refused("destination", &config);
    assert!(error.contains("isn't the log that was used"), "{error}");
    std::fs::rename(&aside, &log).unwrap();
    mirror.destination.restart();
    mirror.assert_in_step();
}

/// One source takes all that the log has for everybody; the other's frames find room in it all the same.
#[test]
fn a_busy_source_leaves_the_others_their_part() {
    if !fuse_or_skip() {
        return;
    }
    let disk = FaultyDisk::mount();
    let dir = tempfile::Builder::new().prefix("nbd-mirror-").tempdir().unwrap();
    let mut config = DestinationConfig::new(dir.path());
    config.nvram = Some(dir.path().join("nvram.log"));
    config.journal_dir = disk.path().join("journals");
    let mut sources = Vec::new();
    for (name, journal_size) in [("busy", "128MiB"), ("quiet", "16MiB")] {
        let mut source = SourceConfig::new(dir.path(), name);
        (source.destination, source.journal_size) = (Some(config.listen), journal_size.to_owned());
        let (volume, image) = (dir.path().join(format!("{name}.volume")), dir.path().join(format!("{name}.image")));
        create_file(&volume, SIZE);
        create_file(&image, SIZE);
        source.volumes.push(("vol0".to_owned(), volume));
        config.sources.push((name.to_owned(), vec![("vol0".to_owned(), image)]));
        sources.push(source);
    }
    let destination = Daemon::destination(&config);
    let daemons: Vec<Daemon> = sources.iter().map(Daemon::source).collect();
    daemons.iter().for_each(Daemon::wait_for_first_copy);
    daemons.iter().for_each(Daemon::sync);
    let bypassed = |at: usize| destination.status()["sources"][at]["nvram"]["bypassed_writes"].as_u64().unwrap();
    // What is moved from the log isn't stable for long: the busy source's 48 MiB of slots are full before a half is.
    for file in ["busy/fill-0.journal", "busy/fill-1.journal"] {
        disk.inject(Fault::new(Operation::Sync, file, Effect::Slow(Duration::from_secs(5))));
    }
    let client = |at: usize| Client::go(&Endpoint::Unix(sources[at].unix()), "vol0").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut client, bytes) = (client(0), pattern(1, MIB as usize));
            (0..60).for_each(|number| client.write(number % 16 * MIB, &bytes).unwrap());
        });
        wait_until("the busy source finds no room", Duration::from_secs(60), || bypassed(0) > 0);
        let mut client = client(1);
        for number in 0..500 {
            client.write(number * 4096, &pattern(number, 4096)).unwrap();
        }
    });
    assert_eq!(bypassed(1), 0, "the quiet source's frames found no room");
    daemons.iter().for_each(Daemon::sync);
    let image = std::fs::read(&config.sources[1].1[0].1).unwrap();
    assert!((0..500).all(|number| image[number * 4096..][..4096] == pattern(number as u64, 4096)));
    assert_same(&sources[0].volumes[0].1, &config.sources[0].1[0].1, SIZE);
}
