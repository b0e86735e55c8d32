//! Memory runs out on a machine that has everything: source, destination, and the kernel's client with a file system.
//!
//! The kernel then writes dirty pages to get memory back, over NBD to a process that needs memory itself to take
//! them. Where that process may wait for just those writes, both wait for ever.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::Device;
use crate::ext4::Ext4;
use crate::guest::{assert_in_guest, memory, set};
use crate::harness::{MIB, Mirror, finish, pattern};
use crate::kernel_log::KernelLog;

/// Without a single write answered for this long it hangs, however slow the machine is.
const HANG: Duration = Duration::from_secs(120);
/// Whatever isn't a write must end within this.
const PATIENCE: Duration = Duration::from_secs(300);

/// A file of twice all memory, through dirty pages that fill most of it, then all to the disk; and each byte must be right.
#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn a_same_host_source_gets_through_dirty_pages_of_all_memory() {
    assert_in_guest();
    let log = KernelLog::from_now();
    let total = memory("MemTotal");
    assert!(total < 600 * MIB, "this is for a small machine, not one of {} MiB", total / MIB);
    // Three times what is usual. All of it is too much for any slow disk: the kernel ends processes then.
    set("vm/dirty_ratio", "60");
    set("vm/dirty_background_ratio", "30");

    let chunks = 2 * total / MIB;
    let mirror = Mirror::start("always", (chunks + 256) * MIB);
    let device = Device::attach(&mirror.plan.source.unix(), "vol0");
    let ext4 = Ext4::make(&device.path, &mirror.plan.path("mnt"));
    let path = ext4.path.join("large");

    println!("{} MiB are free; {chunks} MiB are written", memory("MemAvailable") / MIB);
    let start = Instant::now();
    let (done, written) = mpsc::channel();
    let target = path.clone();
    // In a thread of its own: one that hangs in the kernel can't be told to stop.
    thread::spawn(move || {
        let mut file = BufWriter::with_capacity(MIB as usize, File::create(target).expect("make a large file"));
        for chunk in 0..chunks {
            file.write_all(&pattern(chunk, MIB as usize)).expect("write a large file");
        }
        let file = file.into_inner().expect("write a large file");
        println!("written after {:.0} s", start.elapsed().as_secs_f64());
        file.sync_all().expect("sync a large file");
        let _ = done.send(());
    });
    let mut last = 0;
    loop {
        match written.recv_timeout(HANG) {
            Ok(()) => break,
            Err(RecvTimeoutError::Disconnected) => panic!("the file could not be written\n{}", log.text()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = device.sectors_written();
        println!("{} MiB answered after {:.0} s", now / 2048, start.elapsed().as_secs_f64());
        if now == last {
            // Which tasks wait, and for what.
            std::fs::write("/proc/sysrq-trigger", "w").expect("ask the kernel for its blocked tasks");
            panic!("no write was answered for {HANG:?}\n{}", log.text());
        }
        last = now;
    }
    println!("synced after {:.0} s", start.elapsed().as_secs_f64());
    finish(Command::new("sync"), PATIENCE).success();

    set("vm/drop_caches", "3");
    let file = File::open(&path).expect("open a large file");
    let mut bytes = vec![0; MIB as usize];
    for chunk in 0..chunks {
        file.read_exact_at(&mut bytes, chunk * MIB).expect("read a large file");
        assert!(bytes == pattern(chunk, MIB as usize), "MiB {chunk} isn't what was written");
    }
    println!("read after {:.0} s", start.elapsed().as_secs_f64());
    drop(file);
    ext4.unmount_clean();
    device.detach();
    log.assert_harmless();
}
