//! What the kernel said since a test began.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::run;

/// Words that mean that a file system or a process got hurt, in lower case.
const HARM: [&str; 8] = [
    "i/o error",
    "ext4-fs error",
    "ext4-fs warning",
    "aborting journal",
    "aborted journal",
    "remounting filesystem read-only",
    "blocked for more than",
    "out of memory",
];

/// The kernel's log from a moment on.
pub struct KernelLog {
    mark: String,
}

impl KernelLog {
    /// From now on.
    #[track_caller]
    pub fn from_now() -> KernelLog {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("nbd-mirror test log {}", NEXT.fetch_add(1, Ordering::Relaxed));
        std::fs::write("/dev/kmsg", format!("{mark}\n")).expect("write to the kernel's log");
        KernelLog { mark }
    }

    /// What was said since.
    #[track_caller]
    pub fn text(&self) -> String {
        let all = run("dmesg", [] as [&str; 0]);
        let mark = format!("{}\n", self.mark);
        all.split_once(&mark).expect("the mark is still in the kernel's log").1.to_owned()
    }

    /// Asserts that nothing was said that tells of harm.
    #[track_caller]
    pub fn assert_harmless(&self) {
        let text = self.text();
        let harmed = |line: &&str| HARM.iter().any(|word| line.to_lowercase().contains(word));
        let lines: Vec<&str> = text.lines().filter(harmed).collect();
        assert!(lines.is_empty(), "the kernel tells of harm:\n{}\nall it said:\n{text}", lines.join("\n"));
    }
}
