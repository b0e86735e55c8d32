//! The kernel's NBD device, attached over netlink by nbd-client.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::run;

/// An attached device. Dropping it detaches it.
pub struct Device {
    pub path: PathBuf,
}

impl Device {
    /// Attaches the next device that no test of this run has had: one that was left behind by a failed test stays away.
    #[track_caller]
    pub fn attach(socket: &Path, export: &str) -> Device {
        let name = Device::unused();
        let path = PathBuf::from(format!("/dev/{name}"));
        fs::write(format!("/sys/block/{name}/queue/io_timeout"), "1000").expect("set a device's io_timeout");
        let args = ["-N", export, "-b", "4096", "-unix"].map(AsRef::as_ref);
        run("nbd-client", args.into_iter().chain([socket.as_os_str(), path.as_os_str()]));
        Device { path }
    }

    /// Sectors that were written to it since it was attached, as the kernel counts them when they are answered.
    #[track_caller]
    pub fn sectors_written(&self) -> u64 {
        let name = self.path.file_name().expect("a device's name").to_string_lossy();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).expect("a device's statistics");
        stat.split_whitespace().nth(6).and_then(|sectors| sectors.parse().ok()).expect("sectors written")
    }

    /// The name of a device that no test of this run has had.
    pub fn unused() -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        format!("nbd{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Detaches the device, which must succeed, and leave it with no size.
    #[track_caller]
    pub fn detach(self) {
        run("nbd-client", ["-d".as_ref(), self.path.as_os_str()]);
        let name = self.path.file_name().expect("a device's name").to_string_lossy();
        let pid = PathBuf::from(format!("/sys/block/{name}/pid"));
        assert!(!pid.exists(), "{name} is still attached");
        std::mem::forget(self);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = std::process::Command::new("nbd-client").arg("-d").arg(&self.path).status();
    }
}
