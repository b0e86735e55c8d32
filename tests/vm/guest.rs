//! The machine that the tests run on.

use std::path::PathBuf;

/// Fails a test outside the virtual machine: it would attach devices of the host's kernel, and set its memory limits.
#[track_caller]
pub fn assert_in_guest() {
    assert!(
        std::env::var_os("NBD_MIRROR_VM_RESULTS").is_some() && cmdline().contains("virtme"),
        "this test needs a virtual machine of its own: make test-vm"
    );
}

/// Where a file for the host goes.
pub fn results(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("NBD_MIRROR_VM_RESULTS").expect("a folder for results")).join(name)
}

/// The kernel's release, "6.1.0-…".
pub fn kernel() -> String {
    read("/proc/sys/kernel/osrelease").trim().to_owned()
}

/// A value of /proc/meminfo, in bytes.
#[track_caller]
pub fn memory(key: &str) -> u64 {
    let info = read("/proc/meminfo");
    let line = info.lines().find(|line| line.starts_with(&format!("{key}:"))).expect("a key of /proc/meminfo");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("kibibytes") * 1024
}

/// Sets a kernel parameter, a path below /proc/sys.
#[track_caller]
pub fn set(parameter: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{parameter}"), value)
        .unwrap_or_else(|error| panic!("set {parameter} to {value}: {error}"));
}

fn cmdline() -> String {
    read("/proc/cmdline")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path}: {error}"))
}
