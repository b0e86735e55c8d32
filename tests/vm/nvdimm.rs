//! Journals and a shared log on persistent memory, and a whole machine that is killed.
//!
//! Two boots with the same NVDIMM and the same disk (run.py): in the middle of [`before_the_kill`] the emulator gets a
//! SIGKILL, and nothing of the guest goes on. Then [`after_the_kill`] must find each write that was answered. Each answer
//! was counted in a file of the host before the next write was sent.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::ext4::Ext4;
use crate::guest::{assert_in_guest, results};
use crate::harness::{Client, Daemon, DestinationConfig, Endpoint, KIB, MIB, SourceConfig, create_file, pattern, run};

const VOLUME_BYTES: u64 = 64 * MIB;
/// Clients that write, each one request at a time, to a region of its own.
const WRITERS: u64 = 4;
const SLOTS: u64 = 32;
const SLOT_BYTES: u64 = 64 * KIB;
const REGION_BYTES: u64 = SLOTS * SLOT_BYTES;
/// Without a kill for so long nobody is going to send one.
const PATIENCE: Duration = Duration::from_secs(540);

/// Source and destination with all journals and the shared log on the NVDIMM, and volume and image on the disk.
fn configs(nvdimm: &Path) -> (SourceConfig, DestinationConfig) {
    let dir = std::env::temp_dir().join("nvdimm");
    std::fs::create_dir_all(&dir).expect("make a folder");
    let (mut source, mut destination) = (SourceConfig::new(&dir, "alpha"), DestinationConfig::new(&dir));
    source.destination = Some(destination.listen);
    source.journal = nvdimm.join("alpha.journal");
    source.journal_size = "16MiB".to_owned();
    source.volumes.push(("vol0".to_owned(), dir.join("vol0.volume")));
    destination.journal_dir = nvdimm.join("journals");
    destination.nvram = Some(nvdimm.join("nvram.log"));
    destination.sources.push(("alpha".to_owned(), vec![("vol0".to_owned(), dir.join("vol0.image"))]));
    (source, destination)
}

/// The write of this number by this writer: where, and what.
fn write(writer: u64, number: u64) -> (u64, Vec<u8>) {
    let bytes = [4 * KIB, 48 * KIB, 8 * KIB, 4 * KIB, 16 * KIB][(number % 5) as usize];
    (number * 7 % SLOTS * SLOT_BYTES, pattern(writer << 32 | number, bytes as usize))
}

/// Where the answers that a writer got are counted: a byte for each.
fn answered(writer: u64) -> PathBuf {
    results(&format!("answered-{writer}"))
}

fn write_until_killed(endpoint: &Endpoint, writer: u64) {
    let mut client = Client::go(endpoint, "vol0").expect("connect a writer");
    let mut answered = File::create(answered(writer)).expect("make a file of the host");
    for number in 0.. {
        let (offset, bytes) = write(writer, number);
        client.write(writer * REGION_BYTES + offset, &bytes).expect("write to the export");
        answered.write_all(b".").and_then(|()| answered.sync_all()).expect("count an answer");
    }
}

/// Asserts that each write that was answered can be read.
#[track_caller]
fn assert_all_answered_are_there(endpoint: &Endpoint) {
    let mut client = Client::go(endpoint, "vol0").expect("connect a reader");
    for writer in 0..WRITERS {
        let count = std::fs::metadata(answered(writer)).expect("a file of the host").len();
        let add = |region: &mut [u8], number| {
            let (offset, bytes) = write(writer, number);
            region[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        };
        let mut expected = vec![0; REGION_BYTES as usize];
        (0..count).for_each(|number| add(&mut expected, number));
        // The next one was on its way, or its answer was.
        let mut with_the_next = expected.clone();
        add(&mut with_the_next, count);
        let found = client.read(writer * REGION_BYTES, REGION_BYTES as usize).expect("read from the export");
        assert!(found == expected || found == with_the_next, "writer {writer} had {count} writes answered");
        println!("all {count} answered writes of writer {writer} are there");
    }
}

#[track_caller]
fn assert_persistent(journal: &serde_json::Value) {
    assert_eq!(journal["store"]["how"], "persistent memory", "{journal:#}");
}

/// Asserts that a process has a file mapped with MAP_SYNC.
#[track_caller]
fn assert_mapped_synchronously(process: u32, file: &Path) {
    let maps = std::fs::read_to_string(format!("/proc/{process}/smaps")).expect("a process's mappings");
    let file = file.to_str().expect("test paths are UTF-8");
    let flags = maps.lines().skip_while(|line| !line.ends_with(file)).find_map(|line| line.strip_prefix("VmFlags:"));
    let flags = flags.unwrap_or_else(|| panic!("{file} isn't mapped:\n{maps}"));
    // Synchronous page faults, by Documentation/filesystems/proc.rst.
    assert!(flags.split_whitespace().any(|flag| flag == "sf"), "{file}: {flags}");
}

#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn before_the_kill() {
    assert_in_guest();
    run("mkfs.ext4", ["-q", "-F", "-b", "4096", "/dev/pmem0"]);
    let nvdimm = Ext4::mount("/dev/pmem0".as_ref(), "/run/nvdimm".as_ref(), "dax");
    let (config, destination_config) = configs(&nvdimm.path);
    for file in [&config.volumes[0].1, &destination_config.sources[0].1[0].1] {
        create_file(file, VOLUME_BYTES);
    }
    let destination = Daemon::destination(&destination_config);
    let source = Daemon::source(&config);
    source.wait_for_first_copy();

    assert_persistent(&source.status()["journal"]);
    assert_persistent(&destination.status()["sources"][0]["journal"]);
    assert_persistent(&destination.status()["nvram"]);
    assert_mapped_synchronously(source.pid(), &config.journal);
    assert_mapped_synchronously(destination.pid(), &nvdimm.path.join("nvram.log"));
    for file in ["fill-0.journal", "fill-1.journal", "state"] {
        assert_mapped_synchronously(destination.pid(), &destination_config.journal_dir.join("alpha").join(file));
    }

    let endpoint = Endpoint::Unix(config.unix());
    let uri = format!("--uri={}", endpoint.uri("vol0"));
    let place = ["--offset=32m", "--size=8m", "--rw=randwrite", "--bssplit=4k/60:32k/30:128k/10", "--iodepth=8"];
    let check = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1"];
    run("fio", ["--name=nvdimm", "--ioengine=nbd", &uri].into_iter().chain(place).chain(check));

    let logged = &destination.status()["sources"][0]["nvram"];
    assert_eq!(logged["bypassed_writes"], 0, "{logged:#}");

    println!("writing until the machine is killed");
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let endpoint = endpoint.clone();
            thread::spawn(move || write_until_killed(&endpoint, writer))
        })
        .collect();
    let start = Instant::now();
    while start.elapsed() < PATIENCE && !writers.iter().any(JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(100));
    }
    panic!("the machine wasn't killed; the source's log:\n{}", source.log());
}

/// Each side by itself must hold all of it.
#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn after_the_kill() {
    assert_in_guest();
    let nvdimm = Ext4::mount("/dev/pmem0".as_ref(), "/run/nvdimm".as_ref(), "dax");
    let (config, destination_config) = configs(&nvdimm.path);
    let mut source = Daemon::source(&config);
    assert_persistent(&source.status()["journal"]);
    assert_all_answered_are_there(&Endpoint::Unix(config.unix()));
    source.stop(Signal::SIGTERM);

    let destination = Daemon::destination(&destination_config);
    destination.wait_for_log(&["nvram log", "bytes of frames were put into the journal files"]);
    destination.verb(&["promote", "--force", "alpha"]).success();
    assert_all_answered_are_there(&Endpoint::Unix(destination_config.unix()));
    assert_persistent(&destination.status()["sources"][0]["serving"]["journal"]);
}
