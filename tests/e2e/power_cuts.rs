//! Power cuts: each side's disk loses, keeps or tears whatever no sync covered, in the moment in which the daemon dies.
//!
//! Where a plain SIGKILL leaves every write that was handed to the kernel, these show that everything is synced that
//! must be. `NBD_MIRROR_POWER_CUTS=n` makes n cuts in each test instead of a few, `NBD_MIRROR_POWER_SEED=n` begins at
//! another seed; a failure names the seed of its cut.

use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::libc;

use crate::harness::{
    Client, Daemon, Effect, Endpoint, Fault, FaultyDisk, FaultyMirror, Image, Ledger, Load, MIB, Mirror, Operation,
    SUPERBLOCKS, VOLUME, create_file, cut, eventually, fill_pattern, flag, fuse_or_skip, hash, kind, pattern, verb,
    wait_until,
};
use crate::promote::promote_by_force;

const BLOCKS: usize = (VOLUME / 4096) as usize;

/// The disk, judged: were it too kind, the other tests here would show nothing.
#[test]
fn a_cut_takes_what_no_sync_covers() {
    if !fuse_or_skip() {
        return;
    }
    let disk = FaultyDisk::mount();
    let path = disk.path().join("file");
    create_file(&path, 16384);
    disk.settle();
    disk.force_alone("/file", 0..4096);
    let open = |flags: i32| {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DIRECT | flags).open(&path).unwrap()
    };
    let (plain, forced) = (open(0), open(libc::O_DSYNC));
    plain.write_all_at(&[1; 4096], 4096).unwrap();
    plain.sync_data().unwrap();
    plain.write_all_at(&[2; 4096], 8192).unwrap();
    forced.write_all_at(&[3; 4096], 0).unwrap();
    forced.write_all_at(&[4; 4096], 12288).unwrap();
    plain.write_all_at(&[5; 1024], 512).unwrap();
    assert_eq!(fs::read(&path).unwrap()[511..513], [3, 5]);
    // Outside the range that is only ever forced, a sync is one of the whole file.
    assert_eq!(disk.lose_unsynced(), 1);
    let bytes = fs::read(&path).unwrap();
    let held = [0, 511, 512, 4096, 8192, 12288].map(|at| bytes[at]);
    assert_eq!(held, [3, 3, 3, 1, 2, 4]);
    assert!(plain.read_at(&mut [0; 512], 0).is_err(), "what was opened before the cut is dead");
    let (plain, forced) = (open(0), open(libc::O_DSYNC));
    plain.write_all_at(&[6; 4096], 8192).unwrap();
    forced.write_all_at(&[7; 4096], 0).unwrap();
    assert_eq!(disk.lose_unsynced(), 1);
    let bytes = fs::read(&path).unwrap();
    assert_eq!((bytes[0], bytes[8192]), (7, 2), "a forced write takes nothing else with it");
    // Torn writes, and names without a synced folder.
    let plain = open(0);
    plain.write_all_at(&[8; 16384], 0).unwrap();
    (0..32).for_each(|number| create_file(&disk.path().join(format!("new-{number}")), 0));
    let torn = (0..).find(|seed| hash(*seed) % 7 == 3).unwrap();
    disk.power_cut(torn);
    let kept = fs::read(&path).unwrap().chunks(512).filter(|sector| sector[0] == 8).count();
    let names = fs::read_dir(disk.path()).unwrap().count() - 1;
    assert!((1..32).contains(&kept) && (1..32).contains(&names), "{kept} sectors and {names} names are left");
    create_file(&disk.path().join("last"), 0);
    fs::File::open(disk.path()).unwrap().sync_all().unwrap();
    disk.power_cut(torn);
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), names + 2);
}

/// Whose power fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Source,
    Destination,
    Both,
}

/// The seeds of a test's cuts.
fn seeds(test: u64, usual: u64) -> impl Iterator<Item = u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (first, count) = (number("NBD_MIRROR_POWER_SEED").unwrap_or(1), number("NBD_MIRROR_POWER_CUTS"));
    (0..count.unwrap_or(usual)).map(move |round| hash(first ^ test << 48 ^ round << 24))
}

/// Operations in whose middle the power fails: the file, the range, and how many may come before.
type Moment = (Operation, &'static str, std::ops::Range<u64>, u64);
const ALL: std::ops::Range<u64> = 0..u64::MAX;

const NEAR: [Moment; 7] = [
    (Operation::Write, "/alpha.journal", SUPERBLOCKS..u64::MAX, 200),
    (Operation::Sync, "/alpha.journal", ALL, 200),
    (Operation::Write, "/alpha.journal", 0..SUPERBLOCKS, 5),
    (Operation::Write, "/vol0.volume", ALL, 60),
    (Operation::Write, "/vol1.volume", ALL, 60),
    (Operation::Sync, "/vol0.volume", ALL, 5),
    (Operation::Sync, "/vol1.volume", ALL, 5),
];

const FAR: [Moment; 10] = [
    // Where there is a log; a moment that never comes is one like any other.
    (Operation::Write, "/nvram.log", ALL, 200),
    (Operation::Sync, "/fill-1.journal", ALL, 10),
    (Operation::Write, "/fill-0.journal", ALL, 200),
    (Operation::Write, "/fill-1.journal", ALL, 200),
    (Operation::Sync, "/fill-0.journal", ALL, 10),
    (Operation::Write, "/state", ALL, 5),
    (Operation::Sync, "/state", ALL, 5),
    (Operation::Write, "/vol0.image", ALL, 60),
    (Operation::Sync, "/vol0.image", ALL, 5),
    (Operation::Sync, "/vol1.image", ALL, 5),
];

/// Lets the power fail in the middle of an operation that the seed chooses.
fn choose(disk: &FaultyDisk, moments: &[Moment], seed: u64) -> Fault {
    let (on, file, range, before) = moments[(hash(seed) % moments.len() as u64) as usize].clone();
    let skip = hash(seed ^ 1) % before;
    disk.inject(Fault::new(on, file, Effect::PowerFails).within(range).after(skip).once())
}

/// Waits for the moment in which the power fails: at a chosen operation, or at any time.
fn wait_for_moment(mirror: &FaultyMirror, victim: Victim, load: &Load, seed: u64) {
    let near = victim == Victim::Source || victim == Victim::Both && seed & 1 == 0;
    let (disk, moments) = if near { (&mirror.near, &NEAR[..]) } else { (&mirror.far, &FAR[..]) };
    match hash(seed ^ 2) % 3 {
        0 => load.wait_for_answers(50 + hash(seed ^ 3) % 3000),
        _ => {
            load.wait_for_answers(50);
            choose(disk, moments, seed);
            disk.wait_until_frozen();
        }
    }
}

fn cuts_under_load(durability: &str, victim: Victim, nvram: bool, test: u64) {
    if !fuse_or_skip() {
        return;
    }
    let near = FaultyDisk::mount();
    let far = if victim == Victim::Both { near.mount_beside() } else { FaultyDisk::mount() };
    let mut whole = FaultyMirror::start_on(near, far, durability, 2, nvram);
    let ledger = Arc::new(Ledger::new(2, BLOCKS, durability == "always"));
    let mut lost = 0;
    for seed in seeds(test, 6) {
        let what = format!("{durability}, {victim:?}, seed {seed:#x}");
        eprintln!("{what}");
        let load = Load::start(&ledger, &whole.mirror.exports(), 2);
        wait_for_moment(&whole, victim, &load, seed);
        match victim {
            Victim::Source => {
                lost += whole.cut_source(seed);
                whole.near.heal();
                load.stop();
                whole.mirror.source.restart();
            }
            Victim::Destination => {
                lost += whole.cut_destination(seed);
                whole.far.heal();
                whole.mirror.destination.restart();
                load.wait_for_answers(100);
                load.stop();
            }
            Victim::Both => {
                lost += whole.cut_both(seed);
                whole.near.heal();
                whole.far.heal();
                load.stop();
                whole.mirror.source.restart();
                ledger.settle(&format!("{what}: exports before the destination is back"), &whole.mirror.volumes());
                whole.mirror.destination.restart();
            }
        }
        ledger.settle(&format!("{what}: exports"), &whole.mirror.volumes());
        // Every other time the next cut meets what this one left.
        if seed & 2 == 0 {
            whole.mirror.assert_in_step();
            ledger.check(&format!("{what}: images"), &whole.mirror.images());
        }
    }
    whole.mirror.assert_in_step();
    ledger.check("images in the end", &whole.mirror.images());
    assert!(lost > 0, "cuts that lose nothing show nothing");
}

#[test]
fn the_sources_power_always() {
    cuts_under_load("always", Victim::Source, false, 1);
}

#[test]
fn the_sources_power_flush() {
    cuts_under_load("flush", Victim::Source, false, 2);
}

#[test]
fn the_destinations_power_always() {
    cuts_under_load("always", Victim::Destination, false, 3);
}

#[test]
fn the_destinations_power_flush() {
    cuts_under_load("flush", Victim::Destination, false, 4);
}

#[test]
fn both_sides_power_at_once_always() {
    cuts_under_load("always", Victim::Both, false, 5);
}

#[test]
fn both_sides_power_at_once_flush() {
    cuts_under_load("flush", Victim::Both, false, 6);
}

#[test]
fn the_destinations_power_with_a_log() {
    cuts_under_load("always", Victim::Destination, true, 15);
}

#[test]
fn both_sides_power_at_once_with_a_log() {
    cuts_under_load("flush", Victim::Both, true, 13);
}

/// A cut of both sides, or the destination alone, after which the source never comes back.
fn promote_after_a_cut(durability: &str, nvram: bool, test: u64) {
    if !fuse_or_skip() {
        return;
    }
    for seed in seeds(test, 4) {
        let what = format!("promote, {durability}, seed {seed:#x}");
        eprintln!("{what}");
        let near = FaultyDisk::mount();
        let far = near.mount_beside();
        let mut whole = FaultyMirror::start_on(near, far, durability, 2, nvram);
        let ledger = Arc::new(Ledger::new(2, BLOCKS, durability == "always"));
        let load = Load::start(&ledger, &whole.mirror.exports(), 2);
        wait_for_moment(&whole, Victim::Both, &load, seed);
        whole.cut_both(seed);
        whole.far.heal();
        load.stop();
        whole.mirror.destination.restart();
        // Half of the promotes are cut off themselves, in the middle of an apply or of what is stored about it.
        if seed & 4 == 0 {
            let moments = [
                (Operation::Write, "/state", ALL, 3),
                (Operation::Sync, "/state", ALL, 3),
                (Operation::Write, ".image", ALL, 8),
                (Operation::Sync, ".image", ALL, 2),
                (Operation::Write, "/promoted.journal", ALL, 1),
            ];
            let fault = choose(&whole.far, &moments, seed ^ 7);
            let admin = whole.mirror.plan.destination.admin();
            let admin = admin.to_str().unwrap().to_owned();
            let promoting = thread::spawn(move || verb(&["promote", "--admin", &admin, "alpha", "--force"]));
            // An apply may have less to do than the moment waits for.
            wait_until("the cut or the promote's end", Duration::from_secs(30), || {
                fault.hits() > 0 || promoting.is_finished()
            });
            whole.cut_destination(seed ^ 8);
            whole.far.heal();
            drop(promoting.join().unwrap());
            whole.mirror.destination.restart();
        }
        let state = eventually("the mirror's state", Duration::from_secs(20), || {
            let status = whole.mirror.destination.status();
            status["sources"][0]["state"].as_str().filter(|state| *state != "preparing").map(str::to_owned)
        });
        if state != "promoted" {
            promote_by_force(&whole.mirror.destination, "alpha");
        }
        ledger.settle(&format!("{what}: promoted exports"), &whole.mirror.promoted_volumes());
        ledger.check(&format!("{what}: image files"), &whole.mirror.promoted_images());
        // A promoted image is durable by itself, whatever the mirror was.
        let mut client = Client::go(&whole.mirror.promoted(), "vol1").unwrap();
        let given = pattern(seed, MIB as usize);
        client.write(MIB, &given).unwrap();
        whole.cut_destination(seed ^ 9);
        whole.mirror.destination.restart();
        let mut client = Client::go(&whole.mirror.promoted(), "vol1").unwrap();
        assert!(client.read(MIB, MIB as usize).unwrap() == given, "{what}: a write to the promoted image is lost");
    }
}

#[test]
fn promote_after_a_power_cut_always() {
    promote_after_a_cut("always", false, 7);
}

#[test]
fn promote_after_a_power_cut_flush() {
    promote_after_a_cut("flush", false, 8);
}

#[test]
fn promote_after_a_power_cut_with_a_log() {
    promote_after_a_cut("always", true, 14);
}

/// What a killed daemon wrote without a sync can be read again, until the power fails: whoever starts on it must make
/// it stable before a volume or an image is built on it.
#[test]
fn the_sources_power_after_a_crash() {
    if !fuse_or_skip() {
        return;
    }
    let moments = [
        (Operation::Write, ".volume", ALL, 8),
        (Operation::Sync, ".volume", ALL, 2),
        (Operation::Write, "/alpha.journal", 0..SUPERBLOCKS, 2),
    ];
    let mut whole = FaultyMirror::start("flush", 2);
    let ledger = Arc::new(Ledger::new(2, BLOCKS, false));
    for seed in seeds(11, 4) {
        let what = format!("the source after a crash, seed {seed:#x}");
        eprintln!("{what}");
        let load = Load::start(&ledger, &whole.mirror.exports(), 2);
        load.wait_for_answers(500);
        whole.mirror.source.kill();
        load.stop();
        choose(&whole.near, &moments, seed);
        whole.mirror.source.spawn(&[]);
        whole.near.wait_until_frozen();
        whole.cut_source(seed);
        whole.near.heal();
        whole.mirror.source.restart();
        ledger.settle(&format!("{what}: exports"), &whole.mirror.volumes());
        whole.mirror.assert_in_step();
        ledger.check(&format!("{what}: images"), &whole.mirror.images());
    }
}

/// The same at the destination, which is promoted then.
#[test]
fn the_destinations_power_after_a_crash() {
    if !fuse_or_skip() {
        return;
    }
    let moments = [
        (Operation::Write, ".image", ALL, 8),
        (Operation::Sync, ".image", ALL, 2),
        (Operation::Write, "/state", ALL, 2),
    ];
    for seed in seeds(12, 3) {
        let what = format!("the destination after a crash, seed {seed:#x}");
        eprintln!("{what}");
        let mut whole = FaultyMirror::start("flush", 2);
        let ledger = Arc::new(Ledger::new(2, BLOCKS, false));
        let load = Load::start(&ledger, &whole.mirror.exports(), 2);
        load.wait_for_answers(500);
        whole.mirror.destination.kill();
        choose(&whole.far, &moments, seed);
        whole.mirror.destination.spawn(&[]);
        whole.far.wait_until_frozen();
        whole.mirror.source.kill();
        load.stop();
        whole.cut_destination(seed);
        whole.far.heal();
        whole.mirror.destination.restart();
        promote_by_force(&whole.mirror.destination, "alpha");
        ledger.check(&format!("{what}: promoted exports"), &whole.mirror.promoted_volumes());
    }
}

#[test]
fn the_power_fails_while_everything_is_made() {
    if !fuse_or_skip() {
        return;
    }
    for seed in seeds(9, 10) {
        let what = format!("first contact, seed {seed:#x}");
        eprintln!("{what}");
        let near = FaultyDisk::mount();
        let far = FaultyDisk::mount();
        let plan = FaultyMirror::plan("always", 1, &near, &far, false);
        let mut source = Daemon::unstarted_source(&plan.source);
        let mut destination = Daemon::unstarted_destination(&plan.destination);
        let at_source = seed & 1 == 0;
        // Each is written and synced so often before anything else is needed from it.
        let names = if at_source {
            &[("/alpha.journal", 18, 4)][..]
        } else {
            &[("/fill-0.journal", 8, 1), ("/fill-1.journal", 8, 1), ("/promoted.journal", 16, 1), ("/state", 3, 3)][..]
        };
        let (name, writes, syncs) = names[(hash(seed ^ 5) % names.len() as u64) as usize];
        let (on, before) = if seed & 2 == 0 { (Operation::Write, writes) } else { (Operation::Sync, syncs) };
        let disk = if at_source { &near } else { &far };
        choose(disk, &[(on, name, ALL, before)], seed);
        destination.spawn(&[]);
        source.spawn(&[]);
        wait_until(&format!("{what}: the cut"), Duration::from_secs(30), || disk.is_frozen());
        cut(if at_source { &mut source } else { &mut destination }, disk, seed);
        disk.heal();
        if at_source {
            source.restart()
        } else {
            destination.restart()
        }
        let mirror = Mirror { source, destination, plan };
        mirror.assert_in_step();
        let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
        client.write(0, &pattern(seed, 4096)).unwrap();
        // What is made is found again after one more cut.
        let mut whole = FaultyMirror { mirror, near, far };
        whole.cut_both(seed ^ 3);
        whole.mirror.destination.restart();
        let status = whole.mirror.destination.status();
        assert_eq!(status["sources"][0]["promotable"], true, "{what}: all is lost at the destination: {status:#}");
        whole.mirror.source.restart();
        let mut client = Client::go(&whole.mirror.unix(), "vol0").unwrap();
        assert!(client.read(0, 4096).unwrap() == pattern(seed, 4096), "{what}");
    }
}

#[test]
fn the_power_fails_in_the_first_sync() {
    if !fuse_or_skip() {
        return;
    }
    let near = FaultyDisk::mount();
    let far = near.mount_beside();
    let plan = FaultyMirror::plan("flush", 2, &near, &far, false);
    for at in 0..2 {
        fill_pattern(plan.volume(at), at as u64, 0, VOLUME as usize);
    }
    near.settle();
    let mut destination = Daemon::unstarted_destination(&plan.destination);
    let source = Daemon::source(&plan.source);
    let moments = [FAR[0].clone(), FAR[3].clone(), FAR[5].clone(), FAR[6].clone(), NEAR[0].clone(), NEAR[2].clone()];
    let moments = moments.map(|(on, file, range, before)| (on, file, range, before.min(6)));
    destination.spawn(&[]);
    let mut whole = FaultyMirror { mirror: Mirror { source, destination, plan }, near, far };
    for seed in seeds(10, 6) {
        eprintln!("first sync, seed {seed:#x}");
        let disk = if seed & 1 == 0 { &whole.near } else { &whole.far };
        let moments = if seed & 1 == 0 { &moments[4..] } else { &moments[..4] };
        let fault = choose(disk, moments, seed);
        // Once all is copied nothing happens any more: then any moment is as good. The daemons can't be asked, for
        // they don't answer when the power has failed.
        (0..150).take_while(|_| fault.hits() == 0).for_each(|_| thread::sleep(Duration::from_millis(10)));
        whole.cut_both(seed);
        whole.near.heal();
        whole.far.heal();
        whole.mirror.source.restart();
        whole.mirror.destination.restart();
    }
    whole.mirror.assert_in_step();
    let mut client = Client::go(&Endpoint::Unix(whole.mirror.plan.source.unix()), "vol1").unwrap();
    assert!(client.read(0, VOLUME as usize).unwrap() == pattern(1, VOLUME as usize));
    client.succeed(flag::FUA, kind::WRITE, 0, 4096, &pattern(9, 4096)).unwrap();
    whole.mirror.assert_in_step();
    drop(Image::file(whole.mirror.plan.image(0)));
}
