//! Disks that fail while the daemons run: each failure is named, none is answered, and after the repair a restart with
//! the same command recovers every answered write.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::harness::{
    Client, Daemon, Effect, Endpoint, Fault, FaultyDisk, FaultyMirror, KIB, Ledger, Load, MIB, Mirror, Operation,
    SUPERBLOCKS, SourceConfig, VOLUME, assert_same, assert_says, create_file, fill_pattern, flag, fuse_or_skip, kind,
    pattern, refused, wait_until,
};
use crate::promote::promote_when_noticed;

/// Blocks of the stamped workload; those behind are for other writes.
const BLOCKS: usize = 2000;
const BEHIND: u64 = BLOCKS as u64 * 4096;

/// A failing operation, and what is to be said about it besides the file's path.
type Case = (Fault, &'static str);

fn fails(on: Operation, file: &str, error: Errno) -> Fault {
    Fault::new(on, file, Effect::Error(error))
}

/// What the system calls an error.
fn words(error: Errno) -> &'static str {
    match error {
        Errno::ENOSPC => "no space left",
        _ => "input/output error",
    }
}

/// Whether one line of the log names the operation, the file and the error.
#[track_caller]
fn assert_logged(daemon: &Daemon, operation: &str, file: &str, error: Errno) {
    daemon.wait_for_log(&[operation, file, words(error)]);
}

/// Writes and flushes until a disk of the source fails, which ends it; then repairs the disk.
fn the_source_stops(durability: &str, cases: &[Case]) {
    if !fuse_or_skip() {
        return;
    }
    let mut whole = FaultyMirror::start(durability, 1);
    let ledger = Arc::new(Ledger::new(1, BLOCKS, durability == "always"));
    for (fault, operation) in cases {
        eprintln!("{durability}: {operation} fails: {fault:?}");
        let load = Load::start(&ledger, &whole.mirror.exports(), 2);
        load.wait_for_answers(200);
        let mut trimmer = Client::go(&whole.mirror.unix(), "vol0").unwrap();
        whole.near.inject(fault.clone());
        trimmer.send(0, kind::TRIM, BEHIND, 4096, &[]).unwrap();
        let ended = whole.mirror.source.wait_for_end();
        assert!(ended.code().is_some_and(|code| code != 0), "{operation}: ended with {ended}");
        assert_logged(&whole.mirror.source, operation, fault.file(), fault.error());
        // Not even an error is answered: the writers see their connections closed.
        load.stop();
        whole.near.heal();
        // After a failed sync nobody knows what is on the disk.
        whole.near.lose_unsynced();
        whole.mirror.source.restart();
        ledger.settle(&format!("{durability}: exports after {operation} failed"), &whole.mirror.volumes());
        whole.mirror.assert_in_step();
        ledger.check(&format!("{durability}: images after {operation} failed"), &whole.mirror.images());
    }
}

#[test]
fn the_sources_disk_always() {
    the_source_stops(
        "always",
        &[
            (
                fails(Operation::Write, "/alpha.journal", Errno::EIO).within(SUPERBLOCKS..u64::MAX),
                "the journal's write",
            ),
            (fails(Operation::Sync, "/alpha.journal", Errno::EIO), "the journal's write|the superblock's write"),
            (fails(Operation::Write, "/alpha.journal", Errno::EIO).within(0..SUPERBLOCKS), "the superblock's write"),
            (fails(Operation::Write, "/vol0.volume", Errno::EIO).within(0..BEHIND), "the flush to the volume"),
            (fails(Operation::Write, "/vol0.volume", Errno::ENOSPC).within(0..BEHIND), "the flush to the volume"),
            (fails(Operation::Write, "/vol0.volume", Errno::EIO).within(BEHIND..u64::MAX), "zeroing a range"),
            (fails(Operation::Sync, "/vol0.volume", Errno::EIO), "the volume's sync"),
        ],
    );
}

#[test]
fn the_sources_disk_flush() {
    the_source_stops(
        "flush",
        &[
            (
                fails(Operation::Write, "/alpha.journal", Errno::EIO).within(SUPERBLOCKS..u64::MAX),
                "the journal's write",
            ),
            (fails(Operation::Sync, "/alpha.journal", Errno::EIO), "the journal's sync|the superblock's write"),
            (fails(Operation::Write, "/vol0.volume", Errno::ENOSPC), "the flush to the volume|zeroing a range"),
            (fails(Operation::Sync, "/vol0.volume", Errno::EIO), "the volume's sync"),
        ],
    );
}

/// Writes until a disk of the destination fails: the daemon lives and says so, writes wait; then repairs the disk.
fn the_destination_fails(durability: &str, cases: &[Case]) {
    if !fuse_or_skip() {
        return;
    }
    let mut whole = FaultyMirror::start(durability, 1);
    let ledger = Arc::new(Ledger::new(1, BLOCKS, durability == "always"));
    for (fault, operation) in cases {
        eprintln!("{durability}: {operation} fails: {fault:?}");
        let load = Load::start(&ledger, &whole.mirror.exports(), 2);
        load.wait_for_answers(200);
        let mut writer = Client::go(&whole.mirror.unix(), "vol0").unwrap();
        whole.far.inject(fault.clone());
        writer.send(0, kind::TRIM, BEHIND, 4096, &[]).unwrap();
        let reason = failure(&whole.mirror.destination);
        assert_says(&reason, &[operation, fault.file(), words(fault.error())]);
        assert_logged(&whole.mirror.destination, operation, fault.file(), fault.error());
        // The source's operator is told the same.
        whole.mirror.source.wait_for_status("why the destination is away", |status| {
            let reason = status["reason"].as_str().unwrap_or_default();
            status["state"] == "stalled" && reason.contains(fault.file())
        });
        let cookie = writer.send(flag::FUA, kind::WRITE, BEHIND + 4096, 4096, &pattern(1, 4096)).unwrap();
        writer.stream.set_answer_limit(Duration::from_millis(300)).unwrap();
        let error = loop {
            match writer.answer() {
                Ok((answered, _)) => assert_ne!(answered, cookie, "{operation}: answered, though stored only once"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "the client waits, not: {error}");
        whole.far.heal();
        assert_eq!(whole.mirror.destination.stop(Signal::SIGTERM).code(), Some(0), "{operation}");
        whole.far.lose_unsynced();
        whole.mirror.destination.restart();
        writer.stream.set_answer_limit(Duration::from_secs(30)).unwrap();
        while writer.answer().expect("the write that waited is answered").0 != cookie {}
        load.wait_for_answers(100);
        load.stop();
        ledger.settle(&format!("{durability}: exports after {operation} failed"), &whole.mirror.volumes());
        whole.mirror.assert_in_step();
        ledger.check(&format!("{durability}: images after {operation} failed"), &whole.mirror.images());
    }
}

/// Waits until the only source of a destination is shown as failed; returns why.
#[track_caller]
fn failure(destination: &Daemon) -> String {
    destination.wait_for_status("the source as failed", |status| status["sources"][0]["state"] == "failed");
    destination.status()["sources"][0]["reason"].as_str().expect("a reason").to_owned()
}

#[test]
fn the_destinations_disk_always() {
    the_destination_fails(
        "always",
        &[
            (fails(Operation::Write, ".journal", Errno::EIO), "the journal file's write"),
            (fails(Operation::Sync, ".journal", Errno::EIO), "the journal file's write"),
            (fails(Operation::Write, "/vol0.image", Errno::EIO).within(0..BEHIND), "the apply to the image"),
            (fails(Operation::Write, "/vol0.image", Errno::ENOSPC).within(0..BEHIND), "the apply to the image"),
            (fails(Operation::Write, "/vol0.image", Errno::EIO).within(BEHIND..u64::MAX), "zeroing a range"),
            (fails(Operation::Sync, "/vol0.image", Errno::EIO), "the image's sync"),
            (fails(Operation::Write, "/state", Errno::EIO), "the state's write"),
            (fails(Operation::Sync, "/state", Errno::EIO), "the state's write"),
        ],
    );
}

#[test]
fn the_destinations_disk_flush() {
    the_destination_fails(
        "flush",
        &[
            (fails(Operation::Write, ".journal", Errno::EIO), "the journal file's write"),
            (fails(Operation::Sync, "/fill-0.journal", Errno::EIO), "the journal file's sync"),
            (fails(Operation::Sync, "/fill-1.journal", Errno::EIO), "the journal file's sync"),
            (fails(Operation::Sync, "/vol0.image", Errno::EIO), "the image's sync"),
        ],
    );
}

#[test]
fn a_volume_that_can_not_be_read() {
    if !fuse_or_skip() {
        return;
    }
    let whole = FaultyMirror::start("always", 1);
    let mut client = Client::go(&whole.mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(1, 64 << 10)).unwrap();
    whole.mirror.source.sync();
    whole.near.inject(fails(Operation::Read, "/vol0.volume", Errno::EIO).within(8192..12288));
    assert_eq!(client.call(0, kind::READ, 4096, 8192, &[]).unwrap(), 5);
    assert_logged(&whole.mirror.source, "reading", "/vol0.volume", Errno::EIO);
    // Only that request fails, and newer bytes don't come from there.
    assert!(client.read(0, 8192).unwrap() == pattern(1, 64 << 10)[..8192]);
    client.write(8192, &pattern(2, 4096)).unwrap();
    assert!(client.read(8192, 4096).unwrap() == pattern(2, 4096));
    whole.near.heal();
    assert!(client.read(12288, 4096).unwrap() == pattern(1, 64 << 10)[12288..16384]);
    whole.mirror.assert_in_step();
}

#[test]
fn a_volume_that_can_not_be_read_for_its_first_copy() {
    if !fuse_or_skip() {
        return;
    }
    let (near, far) = (FaultyDisk::mount(), FaultyDisk::mount());
    let plan = FaultyMirror::plan("always", 2, &near, &far, false);
    fill_pattern(plan.volume(1), 3, 0, VOLUME as usize);
    near.settle();
    near.inject(fails(Operation::Read, "/vol1.volume", Errno::EIO).within(5 * MIB..6 * MIB));
    let destination = Daemon::destination(&plan.destination);
    let source = Daemon::source(&plan.source);
    // It goes on serving clients, and says what keeps it from mirroring.
    source.wait_for_status("why it isn't mirroring", |status| {
        status["whole"] == false && status["reason"].as_str().is_some_and(|reason| reason.contains("can't be read"))
    });
    assert_logged(&source, "resync", "/vol1.volume", Errno::EIO);
    assert!(Client::go(&Endpoint::Unix(plan.source.unix()), "vol1").unwrap().read(0, 4096).is_ok());
    near.heal();
    Mirror { source, destination, plan }.assert_in_step();
}

#[test]
fn a_source_that_can_not_read_or_write_its_journal_at_its_start() {
    if !fuse_or_skip() {
        return;
    }
    let mut whole = FaultyMirror::start("always", 1);
    let mut client = Client::go(&whole.mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(1, 8192)).unwrap();
    whole.mirror.source.kill();
    let config = whole.mirror.plan.source.write();
    let journal = whole.near.path().join("alpha.journal");
    let journal = journal.to_str().unwrap();
    for (fault, operation) in [
        (fails(Operation::Read, "/alpha.journal", Errno::EIO).within(0..SUPERBLOCKS), "read"),
        (fails(Operation::Read, "/alpha.journal", Errno::EIO).within(9 * MIB..9 * MIB + 1), "read"),
        (fails(Operation::Write, "/alpha.journal", Errno::EIO), "written"),
        (fails(Operation::Sync, "/alpha.journal", Errno::EIO), "synced|written"),
    ] {
        whole.near.inject(fault.clone());
        assert_says(&refused("source", &config), &[journal, operation, words(Errno::EIO)]);
        whole.near.heal();
    }
    whole.mirror.source.restart();
    let mut client = Client::go(&whole.mirror.unix(), "vol0").unwrap();
    assert!(client.read(0, 8192).unwrap() == pattern(1, 8192));
    whole.mirror.assert_in_step();
}

#[test]
fn a_destination_that_can_not_read_what_it_stored() {
    if !fuse_or_skip() {
        return;
    }
    let mut whole = FaultyMirror::start("always", 1);
    let mut client = Client::go(&whole.mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(1, 8192)).unwrap();
    for file in ["/alpha/fill-0.journal", "/alpha/fill-1.journal"] {
        whole.mirror.destination.kill();
        whole.far.inject(fails(Operation::Read, file, Errno::EIO));
        whole.mirror.destination.restart();
        assert_says(&failure(&whole.mirror.destination), &[file, "read", words(Errno::EIO)]);
        // It isn't promoted to less than it was told.
        let refused = whole.mirror.destination.promote("alpha", true);
        assert!(!refused.status.success(), "promoted without its journal file: {}", refused.stdout);
        whole.far.heal();
    }
    whole.mirror.destination.kill();
    whole.far.inject(fails(Operation::Read, "/state", Errno::EIO));
    assert_says(
        &refused("destination", &whole.mirror.plan.destination.write()),
        &["/alpha/state", "read", words(Errno::EIO)],
    );
    whole.far.heal();
    whole.mirror.destination.restart();
    whole.mirror.assert_in_step();
    assert!(client.read(0, 8192).unwrap() == pattern(1, 8192));
}

#[test]
fn no_room_for_the_journals() {
    if !fuse_or_skip() {
        return;
    }
    let (near, far) = (FaultyDisk::mount(), FaultyDisk::mount());
    let plan = FaultyMirror::plan("always", 1, &near, &far, false);
    near.set_capacity(10 * MIB);
    assert_says(&refused("source", &plan.source.write()), &["alpha.journal", "room|space"]);
    near.set_capacity(100 * MIB);
    // Wherever it ends, it is told, and more room is all that is needed.
    far.set_capacity(4 * MIB);
    let source = Daemon::source(&plan.source);
    let destination = Daemon::destination(&plan.destination);
    for (room, file) in [(12, "/fill-1.journal"), (20, "/promoted.journal")] {
        far.set_capacity(room * MIB);
        destination.wait_for_log(&[file, "room|space"]);
        source.wait_for_status("why there is no mirror", |status| {
            let reason = status["reason"].as_str().unwrap_or_default();
            reason.contains(file) && status["connected"] == false
        });
    }
    far.set_capacity(100 * MIB);
    Mirror { source, destination, plan }.assert_in_step();
}

/// The journals, as they are made and as they are read at a start.
#[test]
fn disks_that_transfer_one_block_at_a_time() {
    if !fuse_or_skip() {
        return;
    }
    let (near, far) = (FaultyDisk::mount_direct(), FaultyDisk::mount_direct());
    let short = |disk: &FaultyDisk, on, file| disk.inject(Fault::new(on, file, Effect::Short));
    let plan = FaultyMirror::plan("always", 1, &near, &far, false);
    let made = [
        short(&near, Operation::Write, "/alpha.journal"),
        short(&far, Operation::Write, "/promoted.journal"),
        short(&far, Operation::Write, "/state"),
    ];
    let source = Daemon::source(&plan.source);
    near.heal();
    let mut mirror = Mirror { destination: Daemon::destination(&plan.destination), source, plan };
    mirror.assert_in_step();
    far.heal();
    let ledger = Arc::new(Ledger::new(1, BLOCKS, true));
    let load = Load::start(&ledger, &mirror.exports(), 2);
    load.wait_for_answers(500);
    mirror.source.kill();
    mirror.destination.kill();
    load.stop();
    let read = [
        short(&near, Operation::Read, "/alpha.journal"),
        short(&far, Operation::Read, "/fill-0.journal"),
        short(&far, Operation::Read, "/fill-1.journal"),
        short(&far, Operation::Read, "/state"),
    ];
    mirror.destination.restart();
    mirror.source.restart();
    ledger.settle("exports after a restart", &mirror.volumes());
    mirror.assert_in_step();
    ledger.check("images", &mirror.images());
    for fault in made.iter().chain(&read) {
        assert!(fault.hits() > 0, "never met: {fault:?}");
    }
    // Before the disks go.
    drop(mirror);
}

#[test]
fn slow_disks() {
    if !fuse_or_skip() {
        return;
    }
    let whole = FaultyMirror::start("always", 1);
    let mut client = Client::go(&whole.mirror.unix(), "vol0").unwrap();
    client.write(BEHIND, &pattern(1, 4096)).unwrap();
    let slow = |disk: &FaultyDisk, on, file, time| {
        disk.inject(Fault::new(on, file, Effect::Slow(Duration::from_millis(time))))
    };
    let faults = [
        slow(&whole.near, Operation::Write, "/alpha.journal", 3),
        slow(&whole.near, Operation::Write, "/vol0.volume", 10),
        slow(&whole.near, Operation::Sync, "/vol0.volume", 100),
        slow(&whole.far, Operation::Write, ".journal", 3),
        slow(&whole.far, Operation::Sync, ".journal", 5),
        slow(&whole.far, Operation::Write, "/vol0.image", 10),
        slow(&whole.far, Operation::Sync, "/vol0.image", 100),
        slow(&whole.far, Operation::Write, "/state", 100),
    ];
    let ledger = Arc::new(Ledger::new(1, BLOCKS, true));
    let load = Load::start(&ledger, &whole.mirror.exports(), 2);
    load.wait_for_answers(500);
    wait_until("each slow operation", Duration::from_secs(30), || faults.iter().all(|fault| fault.hits() > 0));
    assert!(client.read(BEHIND, 4096).unwrap() == pattern(1, 4096), "reads go on");
    load.stop();
    whole.mirror.assert_in_step();
    ledger.check("images", &whole.mirror.images());
}

#[test]
fn a_promoted_image_whose_disk_fails() {
    if !fuse_or_skip() {
        return;
    }
    for (on, file, operation) in [
        (Operation::Write, "/promoted.journal", "the journal's write"),
        (Operation::Sync, "/promoted.journal", "the journal's write"),
    ] {
        let mut whole = FaultyMirror::start("always", 1);
        whole
            .mirror
            .destination
            .wait_for_mirror("nothing is missing", |mirror| mirror["warrant"]["missing_writes"] == 0);
        whole.mirror.source.kill();
        promote_when_noticed(&whole.mirror.destination, "alpha");
        let mut client = Client::go(&whole.mirror.promoted(), "vol0").unwrap();
        client.write(0, &pattern(1, 4 << 10)).unwrap();
        whole.far.inject(fails(on, file, Errno::EIO));
        let error = client.write(4 * KIB, &pattern(2, 4096)).expect_err("a write that wasn't stored");
        let closed = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(closed.contains(&error.kind()), "the connection is closed, not: {error}");
        assert_logged(&whole.mirror.destination, operation, file, Errno::EIO);
        failure(&whole.mirror.destination);
        whole.far.heal();
        whole.mirror.destination.stop(Signal::SIGTERM);
        whole.far.lose_unsynced();
        whole.mirror.destination.restart();
        let mut client = Client::go(&whole.mirror.promoted(), "vol0").unwrap();
        assert!(client.read(0, 4096).unwrap() == pattern(1, 4096));
        client.write(4 * KIB, &pattern(3, 4096)).unwrap();
    }
}

#[test]
fn what_one_source_stored_fails_and_another_goes_on() {
    if !fuse_or_skip() {
        return;
    }
    let (near, far) = (FaultyDisk::mount(), FaultyDisk::mount());
    let mut plan = FaultyMirror::plan("always", 1, &near, &far, false);
    let mut other = SourceConfig::new(plan.dir.path(), "beta");
    let (volume, image) = (plan.path("beta.volume"), plan.path("beta.image"));
    create_file(&volume, VOLUME);
    create_file(&image, VOLUME);
    other.destination = Some(plan.destination.listen);
    other.volumes.push(("beta0".to_owned(), volume.clone()));
    plan.destination.sources.push(("beta".to_owned(), vec![("beta0".to_owned(), image.clone())]));
    let mirror = plan.start();
    mirror.assert_in_step();
    let beta = Daemon::source(&other);
    beta.wait_for_first_copy();
    far.inject(fails(Operation::Write, "/alpha/fill-0.journal", Errno::EIO));
    far.inject(fails(Operation::Write, "/alpha/fill-1.journal", Errno::EIO));
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.send(0, kind::WRITE, 0, 4096, &pattern(1, 4096)).unwrap();
    failure(&mirror.destination);
    let mut client = Client::go(&Endpoint::Unix(other.unix()), "beta0").unwrap();
    client.write(0, &pattern(2, 4096)).unwrap();
    beta.sync();
    assert_same(&volume, &image, VOLUME);
    assert_ne!(mirror.destination.status()["sources"][1]["state"], "failed");
    drop((beta, mirror));
}

/// The files that a failure is named by are the ones it happened to.
#[test]
fn of_two_volumes_the_failing_one_is_named() {
    if !fuse_or_skip() {
        return;
    }
    let mut whole = FaultyMirror::start("always", 2);
    whole.near.inject(fails(Operation::Write, "/vol1.volume", Errno::EIO));
    let mut client = Client::go(&whole.mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(1, 4096)).unwrap();
    let mut client = Client::go(&whole.mirror.unix(), "vol1").unwrap();
    client.write(0, &pattern(1, 4096)).unwrap();
    whole.mirror.source.wait_for_end();
    let log = whole.mirror.source.log();
    let named = |path: &Path| log.lines().any(|line| line.contains("failed:") && line.contains(path.to_str().unwrap()));
    assert!(named(whole.mirror.plan.volume(1)) && !named(whole.mirror.plan.volume(0)), "{log}");
}
