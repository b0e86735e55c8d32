//! The daemons stay in memory, so that a machine that is short of it can write to the disks that they serve.

use nbd_mirror::engine::process::has_capability;

use crate::harness::{MIB, Mirror, root_or_skip};

/// Of a process, a line of its status in KiB.
fn kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field of its status");
    line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").trim().parse().expect("a number")
}

#[test]
fn both_daemons_are_locked_and_get_memory_without_waiting_for_disks() {
    if !root_or_skip("locking all memory is not for everybody") {
        return;
    }
    let mirror = Mirror::start("always", 8 * MIB);
    mirror.assert_in_step();
    for daemon in [&mirror.source, &mirror.destination] {
        let resident = &daemon.status()["resident"];
        // CAP_SYS_RESOURCE, bit 24: root in a container may lack it.
        let may = has_capability(24);
        assert_eq!(resident, &serde_json::json!({ "locked": true, "io_flusher": may, "spared": may }));
        let (locked, mapped) = (kib(daemon.pid(), "VmLck"), kib(daemon.pid(), "VmSize"));
        assert!(locked > mapped / 2, "{locked} of {mapped} KiB are locked");
        // What is mapped for the worst case costs nothing before it is used.
        let used = kib(daemon.pid(), "VmRSS");
        eprintln!("locked {locked} KiB of {mapped} KiB mapped, {used} KiB in memory");
        assert!(used < mapped / 2, "{used} of {mapped} KiB are in memory");
    }
}
