//! `check`: what it finds, what it measures, what it warns of, and that it changes nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    Client, Daemon, DestinationConfig, LoopDevice, MIB, Mirror, Mount, Plan, SourceConfig, assert_says, create_file,
    kind, pattern, root_or_skip, verb,
};

/// Runs a check that ends with this exit code, and returns what it prints as JSON.
#[track_caller]
fn check(config: &Path, code: i32) -> Value {
    let ended = verb(&["check", "--json", "--config", config.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(code), "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}:\n{}", ended.stdout))
}

#[track_caller]
fn check_source(config: &SourceConfig, code: i32) -> Value {
    check(&config.write(), code)
}

#[track_caller]
fn check_destination(config: &DestinationConfig, code: i32) -> Value {
    check(&config.write(), code)
}

/// Whether it warns of this.
fn warns(report: &Value, what: &str) -> bool {
    report["warnings"].as_array().unwrap().iter().any(|warning| warning["what"] == what)
}

/// What is wrong, in one piece.
fn errors(report: &Value) -> String {
    report["errors"].to_string()
}

/// Names and sizes of all that is in a folder, but for the sockets of daemons.
fn listing(folder: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())).collect();
    names.sort();
    names
}

#[test]
fn a_shared_log_is_looked_at_before_and_after_it_is_made() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.destination.nvram = Some(plan.path("log"));
    let log_of = |report: &Value| report["files"][0].clone();
    let report = check_destination(&plan.destination, 8);
    let log = log_of(&report);
    assert_eq!((&log["part"], &log["exists"]), (&"NVRAM log".into(), &false.into()), "{report:#}");
    assert!(log["store"]["why"].as_str().unwrap().contains("no persistent memory"), "as it was measured: {report:#}");
    let shares =
        |report: &Value| report["warnings"].to_string().contains("the NVRAM log and the journal files of source");
    assert!(shares(&report), "{report:#}");
    assert_eq!(report["latency"]["made_bytes"], MIB, "{report:#}");
    let mut mirror = plan.start();
    mirror.source.wait_for_first_copy();
    let report = check_destination(&mirror.plan.destination, 8);
    assert_eq!((&report["running"], &log_of(&report)["in_use"]), (&true.into(), &true.into()), "{report:#}");
    let said = mirror.destination.status()["nvram"]["store"].clone();
    assert_eq!(log_of(&report)["store"], said, "as the daemon says it: {report:#}");
    assert_eq!(report["errors"], serde_json::json!([]), "{report:#}");
    mirror.destination.stop(Signal::SIGTERM);
    let report = check_destination(&mirror.plan.destination, 8);
    assert_eq!((&log_of(&report)["in_use"], &log_of(&report)["exists"]), (&false.into(), &true.into()), "{report:#}");
    assert!(log_of(&report)["size_bytes"].as_u64() > Some(60 * MIB), "{report:#}");
    assert_says(
        &verb(&["check", "--config", mirror.plan.destination.write().to_str().unwrap()]).stdout,
        &["nvram", "/log"],
    );
}

/// What is on it isn't written to, and of a large one no more is used than was asked for.
#[test]
fn a_shared_log_on_a_device_is_not_measured() {
    if !root_or_skip("loop devices") {
        return;
    }
    let mut plan = Plan::new(&[8 * MIB]);
    create_file(&plan.path("small"), 8 * MIB);
    create_file(&plan.path("large"), 256 * MIB);
    let (small, large) = (LoopDevice::attach(&plan.path("small")), LoopDevice::attach(&plan.path("large")));
    plan.destination.nvram = Some(small.path.clone());
    assert_says(&errors(&check_destination(&plan.destination, 1)), &["too small", "1 sources need at least"]);
    plan.destination.nvram = Some(large.path.clone());
    let report = check_destination(&plan.destination, 8);
    assert_says(report["latency"]["why_not"].as_str().unwrap(), &["device"]);
    assert_eq!(report["files"][0]["size_bytes"], 256 * MIB, "{report:#}");
    let mirror = plan.start();
    mirror.source.wait_for_first_copy();
    let log = mirror.destination.status()["nvram"].clone();
    assert_eq!(log["size_bytes"], 60 * MIB + (64 << 10), "nvram_size: {log:#}");
}

#[test]
fn before_the_first_start_it_measures_beside_and_leaves_nothing() {
    let plan = Plan::new(&[8 * MIB]);
    let (source, destination) = (plan.source.write(), plan.destination.write());
    let before = listing(plan.dir.path());
    let report = check(&source, 8);
    assert_eq!((&report["role"], &report["running"]), (&"source".into(), &false.into()), "{report:#}");
    assert_eq!(report["files"][0]["exists"], false, "{report:#}");
    assert_eq!(report["files"][0]["store"]["how"], "dsync", "a file: {report:#}");
    assert_eq!(report["files"][1]["store"]["how"], "sync", "{report:#}");
    assert_eq!(report["files"][1]["size_bytes"], 8 * MIB, "{report:#}");
    assert_eq!(report["latency"]["made_bytes"], MIB, "{report:#}");
    assert!(report["latency"]["writes"].as_u64() >= Some(5), "{report:#}");
    assert!(report["latency"]["median_us"].as_u64() <= report["latency"]["p99_us"].as_u64(), "{report:#}");
    assert!(warns(&report, "same_file_system") && warns(&report, "unreachable"), "{report:#}");
    assert!(!warns(&report, "no_tls"), "only this machine is between the two: {report:#}");
    let report = check(&destination, 8);
    assert_eq!((&report["role"], &report["running"]), (&"destination".into(), &false.into()), "{report:#}");
    assert_eq!(report["latency"]["made_bytes"], MIB, "{report:#}");
    assert!(warns(&report, "same_file_system"), "{report:#}");
    assert_eq!(listing(plan.dir.path()), before, "it changes nothing");
    let text = verb(&["check", "--config", source.to_str().unwrap(), "--role", "source"]);
    assert_eq!(text.status.code(), Some(8));
    assert_says(&text.stdout, &["source alpha", "not there yet", "warning", "remedy", "can't be reached"]);
}

#[test]
fn beside_running_daemons_it_disturbs_nobody() {
    let mut mirror = Mirror::start("always", 8 * MIB);
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(1, 65_536)).unwrap();
    mirror.assert_in_step();
    let report = check_source(&mirror.plan.source, 8);
    assert_eq!(report["running"], true, "{report:#}");
    assert!(report["files"].as_array().unwrap().iter().all(|file| file["in_use"] == true), "{report:#}");
    assert!(report["latency"]["why_not"].is_string(), "{report:#}");
    assert!(report["peer"]["answer_us"].is_u64() && report["peer"]["connect_us"].is_u64(), "{report:#}");
    assert_eq!(report["peer"]["trouble"], Value::Null, "{report:#}");
    assert!(!warns(&report, "unreachable") && !warns(&report, "refused") && !warns(&report, "sparse"), "{report:#}");
    let report = check_destination(&mirror.plan.destination, 8);
    assert_eq!(report["running"], true, "{report:#}");
    assert!(report["files"].as_array().unwrap().iter().all(|file| file["in_use"] == true), "{report:#}");
    assert!(report["latency"]["why_not"].is_string(), "{report:#}");
    client.write(65_536, &pattern(2, 65_536)).unwrap();
    mirror.assert_in_step();
    let log = mirror.destination.log();
    assert!(!log.contains("WARN") && !log.contains(".check"), "{log}");
    // Nor does what it measures on change.
    mirror.source.stop(Signal::SIGTERM);
    mirror.destination.stop(Signal::SIGTERM);
    let state = mirror.plan.destination.journal_dir.join("alpha/state");
    let journal = mirror.plan.source.journal.clone();
    let before = (fs::read(&journal).unwrap(), fs::read(&state).unwrap());
    let report = check_source(&mirror.plan.source, 8);
    assert_eq!(report["running"], false, "{report:#}");
    assert_eq!(report["latency"]["on"], journal.to_str().unwrap(), "{report:#}");
    assert_eq!(report["latency"]["made_bytes"], Value::Null, "{report:#}");
    let report = check_destination(&mirror.plan.destination, 8);
    assert_eq!(report["latency"]["on"], state.to_str().unwrap(), "{report:#}");
    assert!((fs::read(&journal).unwrap(), fs::read(&state).unwrap()) == before, "it writes what is there");
}

/// Makes a hole of a mebibyte, as a copy that skips zeros does.
fn punch(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, mode, at as i64, MIB as i64).unwrap();
}

#[test]
fn journals_with_holes_are_warned_of() {
    let mut mirror = Mirror::start("always", 8 * MIB);
    mirror.assert_in_step();
    mirror.source.stop(Signal::SIGTERM);
    mirror.destination.stop(Signal::SIGTERM);
    let (source, destination) = (&mirror.plan.source, &mirror.plan.destination);
    assert!(!warns(&check_source(source, 8), "sparse") && !warns(&check_destination(destination, 8), "sparse"));
    punch(&source.journal, 24 * MIB);
    punch(&destination.journal_dir.join("alpha/fill-1.journal"), 8 * MIB);
    for report in [check_source(source, 8), check_destination(destination, 8)] {
        assert!(warns(&report, "sparse"), "{report:#}");
    }
}

#[test]
fn a_destination_that_does_not_know_the_source_says_so() {
    let plan = Plan::new(&[8 * MIB]);
    let _destination = Daemon::destination(&plan.destination);
    let mut source = plan.source.clone();
    source.name = "beta".to_owned();
    let report = check_source(&source, 8);
    assert!(warns(&report, "refused"), "{report:#}");
    assert_says(&report["peer"]["trouble"].to_string(), &["beta", "alpha", "add it"]);
}

#[test]
fn what_keeps_a_daemon_from_starting_is_an_error() {
    let mut plan = Plan::new(&[8 * MIB, 8 * MIB]);
    let volume = plan.volume(1).to_owned();
    fs::remove_file(&volume).unwrap();
    assert_says(&errors(&check_source(&plan.source, 1)), &["vol1.volume", "no such file"]);
    create_file(&volume, 8 * MIB);
    // Somebody has it who is no daemon of this configuration.
    let lock = Flock::lock(fs::File::open(&volume).unwrap(), FlockArg::LockExclusive).unwrap();
    assert_says(&errors(&check_source(&plan.source, 1)), &["vol1.volume", "in use"]);
    drop(lock);
    let taken = TcpListener::bind(plan.source.tcp).unwrap();
    assert_says(&errors(&check_source(&plan.source, 1)), &[&plan.source.tcp.to_string(), "in use"]);
    drop(taken);
    fs::write(&plan.source.journal, vec![0x5a; MIB as usize]).unwrap();
    let ended = verb(&["check", "--config", plan.source.write().to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert_says(&ended.stdout, &["error", "alpha.journal", "holds something else", "--init"]);
    assert!(fs::read(&plan.source.journal).unwrap() == vec![0x5a; MIB as usize]);
    plan.source.journal = plan.path("nowhere/alpha.journal");
    assert_says(&errors(&check_source(&plan.source, 1)), &["nowhere", "isn't a folder"]);
    plan.source.journal_size = "1KiB".to_owned();
    let ended = verb(&["check", "--config", plan.source.write().to_str().unwrap()]);
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""));
    assert_says(&ended.stderr, &["alpha.toml", "journal.size"]);
}

#[test]
fn memory_and_open_networks_are_warned_of() {
    let mut plan = Plan::new(&[8 * MIB]);
    let memory = tempfile::Builder::new().prefix("nbd-mirror-").tempdir_in("/dev/shm").unwrap();
    plan.source.journal = memory.path().join("alpha.journal");
    plan.destination.listen.set_ip([0, 0, 0, 0].into());
    let report = verb(&["check", "--json", "--config", plan.source.write().to_str().unwrap()]);
    // Before Linux 6.6 tmpfs has no O_DIRECT, and then it is an error beside.
    assert!([Some(1), Some(8)].contains(&report.status.code()), "{}", report.stderr);
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    assert!(warns(&report, "volatile") && !warns(&report, "same_file_system"), "{report:#}");
    let report = check_destination(&plan.destination, 8);
    assert!(warns(&report, "no_tls"), "{report:#}");
}

/// A loop device over a file of its own. In memory there is no disk under it that it could have in common with another.
fn disk(folder: &Path, name: &str, bytes: u64) -> LoopDevice {
    let file = folder.join(name);
    create_file(&file, bytes);
    LoopDevice::attach(&file)
}

/// Tells the kernel that a device has no volatile cache, until this is dropped: a loop device keeps that beyond its file.
struct WithoutCache(PathBuf);

impl WithoutCache {
    fn new(device: &LoopDevice) -> WithoutCache {
        let name = device.path.file_name().unwrap();
        let told = WithoutCache(Path::new("/sys/block").join(name).join("queue/write_cache"));
        fs::write(&told.0, "write through").unwrap();
        told
    }
}

impl Drop for WithoutCache {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.0, "write back") {
            eprintln!("could not clean up: {}: {error}", self.0.display());
        }
    }
}

#[test]
fn disks_of_their_own_are_nothing_to_warn_about() {
    if !root_or_skip("loop devices") {
        return;
    }
    let memory = tempfile::Builder::new().prefix("nbd-mirror-").tempdir_in("/dev/shm").unwrap();
    let (journal, volume) = (disk(memory.path(), "journal", 34 * MIB), disk(memory.path(), "volume", 8 * MIB));
    let mut plan = Plan::new(&[]);
    plan.source.journal = journal.path.clone();
    plan.source.volumes.push(("vol0".to_owned(), volume.path.clone()));
    plan.source.destination = None;
    let report = check_source(&plan.source, 0);
    assert_eq!((&report["errors"], &report["warnings"]), (&Value::Array(vec![]), &Value::Array(vec![])), "{report:#}");
    assert_eq!(report["files"][0]["store"]["how"], "dsync", "{report:#}");
    assert!(report["latency"]["why_not"].is_string(), "nothing on a device is the daemon's yet: {report:#}");
    let text = verb(&["check", "--config", plan.source.write().to_str().unwrap()]).success();
    assert_says(&text, &["nothing to warn about", "has a volatile cache"]);
    let without_cache = WithoutCache::new(&journal);
    let report = check_source(&plan.source, 0);
    assert_eq!(report["files"][0]["write_cache"], "write through", "{report:#}");
    assert_eq!(report["files"][0]["store"]["how"], "direct", "{report:#}");
    drop(without_cache);
    // A file of a file system, and a device over another file of it, are on one disk in the end.
    let mount = Mount::ext4(&plan.path("filesystem"), 64 * MIB, &plan.path("mounted"));
    plan.source.volumes.push(("vol1".to_owned(), mount.path.join("vol1.volume")));
    create_file(&mount.path.join("vol1.volume"), 8 * MIB);
    let other = disk(&mount.path, "other", 34 * MIB);
    plan.source.journal = other.path.clone();
    let report = check_source(&plan.source, 8);
    let same: Vec<&Value> =
        report["warnings"].as_array().unwrap().iter().filter(|warning| warning["what"] == "same_disk").collect();
    assert_eq!(same.len(), 1, "{report:#}");
    assert_says(&same[0]["text"].to_string(), &["vol1"]);
}

#[test]
fn a_journal_on_a_device_without_a_cache_needs_no_flushes() {
    if !root_or_skip("loop devices") {
        return;
    }
    for durability in ["always", "flush"] {
        let mut plan = Plan::new(&[8 * MIB]);
        let journal = disk(plan.dir.path(), "journal", 34 * MIB);
        let _without_cache = WithoutCache::new(&journal);
        plan.source.journal = journal.path.clone();
        plan.source.durability = durability.to_owned();
        let mut mirror = plan.start();
        let status = mirror.source.status();
        assert_eq!(status["journal"]["store"]["how"], "direct", "{status:#}");
        assert_says(&status["journal"]["store"]["why"].to_string(), &["no volatile cache"]);
        let alpha = &mirror.destination.status()["sources"][0];
        assert!(alpha["journal"]["store"]["how"] == "dsync" || alpha["state"] != "receiving", "{alpha:#}");
        let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
        for at in 0..32 {
            client.write(at * 65_536, &pattern(at, 65_536)).unwrap();
            client.succeed(0, kind::FLUSH, 0, 0, &[]).unwrap();
        }
        mirror.assert_in_step();
        client.write(4 * MIB, &pattern(99, 65_536)).unwrap();
        client.succeed(0, kind::FLUSH, 0, 0, &[]).unwrap();
        // What was answered is in the journal, and a start finds it there.
        mirror.source.kill();
        mirror.source = Daemon::source(&mirror.plan.source);
        mirror.assert_in_step();
        let mut found = vec![0; 65_536];
        fs::File::open(mirror.plan.image(0)).unwrap().read_exact_at(&mut found, 4 * MIB).unwrap();
        assert!(found == pattern(99, 65_536), "{durability}");
        mirror.source.stop(Signal::SIGTERM);
        let report = check_source(&mirror.plan.source, 8);
        assert_eq!(report["latency"]["on"], journal.path.to_str().unwrap(), "{report:#}");
        // Before its loop device is detached.
        drop(mirror);
    }
}

#[test]
fn a_source_that_has_become_a_destination_is_checked_as_that() {
    let mut mirror = crate::swap::plan().start();
    mirror.assert_in_step();
    mirror.source.verb(&["switchover"]).success();
    mirror.destination.wait_until_in_step();
    let report = check_source(&mirror.plan.source, 8);
    assert_eq!((&report["role"], &report["running"]), (&"destination".into(), &true.into()), "{report:#}");
    mirror.source.stop(Signal::SIGTERM);
    let report = check_source(&mirror.plan.source, 8);
    assert_eq!((&report["role"], &report["running"]), (&"destination".into(), &false.into()), "{report:#}");
    assert_eq!(report["latency"]["on"], mirror.plan.path("standby/alpha/state").to_str().unwrap(), "{report:#}");
    let serving = &mirror.destination.status()["sources"][0]["serving"];
    assert_eq!(serving["journal"]["store"]["how"], "dsync", "{serving:#}");
}
