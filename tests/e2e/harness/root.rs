//! What only root can do: loop devices and mounts. Both are undone when dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::run;

/// Whether this process is root's.
pub fn is_root() -> bool {
    let myself = std::fs::metadata("/proc/self").expect("look at the own process");
    std::os::unix::fs::MetadataExt::uid(&myself) == 0
}

/// Whether a test that needs root can go on. Without root it fails, unless `NBD_MIRROR_SKIP_ROOT=1` allows to leave
/// it out.
#[track_caller]
pub fn root_or_skip(why: &str) -> bool {
    if is_root() {
        return true;
    }
    assert!(
        std::env::var_os("NBD_MIRROR_SKIP_ROOT").is_some_and(|value| value == "1"),
        "this test needs root ({why}); run it as root, or set NBD_MIRROR_SKIP_ROOT=1 to leave such tests out"
    );
    eprintln!("left out, since NBD_MIRROR_SKIP_ROOT=1: {why}");
    false
}

/// A loop device over a file.
pub struct LoopDevice {
    pub path: PathBuf,
}

impl LoopDevice {
    /// Attaches the next free loop device to a file.
    #[track_caller]
    pub fn attach(file: &Path) -> LoopDevice {
        let path = run("losetup", ["--find".as_ref(), "--show".as_ref(), file.as_os_str()]);
        LoopDevice { path: path.trim().into() }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        quietly("losetup", &["--detach".as_ref(), &self.path]);
    }
}

/// A mounted file system.
pub struct Mount {
    pub path: PathBuf,
    _device: Option<LoopDevice>,
}

impl Mount {
    /// Makes an ext4 in a file of `len` bytes, and mounts it over a loop device.
    #[track_caller]
    pub fn ext4(file: &Path, len: u64, point: &Path) -> Mount {
        super::create_file(file, len);
        run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), file.as_os_str()]);
        let device = LoopDevice::attach(file);
        let mut mount = Mount::device(&device.path, point);
        mount._device = Some(device);
        mount
    }

    /// Mounts a device that holds a file system.
    #[track_caller]
    pub fn device(device: &Path, point: &Path) -> Mount {
        std::fs::create_dir_all(point).expect("make a mount point");
        run("mount", [device, point]);
        Mount { path: point.to_owned(), _device: None }
    }

    /// The device that is mounted here, where [`Mount::ext4`] made it.
    pub fn loop_device(&self) -> &Path {
        &self._device.as_ref().expect("a mount over a loop device").path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        quietly("umount", &[&self.path]);
    }
}

/// Cleans up as far as it goes: a failure here must not hide the test's own.
fn quietly(tool: &str, args: &[&Path]) {
    let ended = Command::new(tool).args(args).stdout(Stdio::null()).status();
    if !ended.is_ok_and(|status| status.success()) {
        eprintln!("could not clean up: {tool} {args:?}");
    }
}
