//! An ext4 on a device, mounted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::{finish, run};

/// How long a mount, an unmount or a check may take before it hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// A mounted ext4. Dropping it unmounts it lazily, so that a failed test leaves the machine usable.
pub struct Ext4 {
    pub path: PathBuf,
    device: PathBuf,
}

impl Ext4 {
    /// Makes a new ext4 on a device, and mounts it. All of it is written at once: nothing trickles in later.
    #[track_caller]
    pub fn make(device: &Path, point: &Path) -> Ext4 {
        let options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"].map(AsRef::as_ref);
        run("mkfs.ext4", options.into_iter().chain([device.as_os_str()]));
        Ext4::mount(device, point, "")
    }

    /// Mounts what is on a device, with options as of `mount -o`.
    #[track_caller]
    pub fn mount(device: &Path, point: &Path, options: &str) -> Ext4 {
        std::fs::create_dir_all(point).expect("make a mount point");
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4"]);
        if !options.is_empty() {
            mount.args(["-o", options]);
        }
        mount.args([device, point]);
        finish(mount, PATIENCE).success();
        Ext4 { path: point.to_owned(), device: device.to_owned() }
    }

    /// Unmounts it, which must succeed, and asserts that a full check finds nothing.
    #[track_caller]
    pub fn unmount_clean(self) {
        let device = self.device.clone();
        self.unmount();
        check(&device);
    }

    /// Unmounts it, which must succeed.
    #[track_caller]
    pub fn unmount(self) {
        let mut umount = Command::new("umount");
        umount.arg(&self.path);
        finish(umount, PATIENCE).success();
        std::mem::forget(self);
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

/// Asserts that a full check of an unmounted ext4 finds nothing.
#[track_caller]
pub fn check(device: &Path) {
    let mut fsck = Command::new("e2fsck");
    fsck.arg("-fn").arg(device);
    finish(fsck, PATIENCE).success();
}
