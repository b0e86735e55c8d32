//! A block device as the system shows it in `/sys`: whether what it has taken is stable, and which disks are under it.
//!
//! A partition has no queue of its own; its disk's counts. What stands on other devices (dm, md, loop) has a queue that
//! says what holds for all of them together, and names them; the disks at the bottom are what can fail.

use nix::sys::stat::{major, minor};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How many devices may stand on each other.
const MAX_DEPTH: usize = 16;

/// What becomes of a write that a device has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// It is stable; the kernel never asks such a device to flush.
    WriteThrough,
    /// It may be in a volatile cache until that is flushed.
    WriteBack,
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cache::WriteThrough => "write through",
            Cache::WriteBack => "write back",
        })
    }
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its name in `/dev`.
    pub name: String,
    /// Its cache; `None` where the system doesn't say.
    pub cache: Option<Cache>,
    /// Whether it takes a single write through its cache.
    pub fua: bool,
    /// Whether it can be mapped as memory.
    pub dax: bool,
    /// Whether it rotates.
    pub rotational: bool,
    /// Whether it is memory, and gone with the next reboot.
    pub volatile: bool,
    /// The disks at the bottom, by name.
    pub disks: BTreeSet<String>,
}

impl BlockDevice {
    /// Reads what `sys` (`/sys`) says of the device with this number. An `Err` is the reason why it isn't known.
    pub fn read(sys: &Path, number: u64) -> Result<BlockDevice, String> {
        let folder = folder(sys, number).ok_or("it has no device that the system knows")?;
        let disk = whole(&folder);
        let queue = |name: &str| fs::read_to_string(disk.join("queue").join(name)).unwrap_or_default();
        let yes = |name: &str| queue(name).trim() == "1";
        let cache = match queue("write_cache").trim() {
            "write through" => Some(Cache::WriteThrough),
            "write back" => Some(Cache::WriteBack),
            _ => None,
        };
        let mut disks = BTreeSet::new();
        bottom(sys, disk, MAX_DEPTH, &mut disks);
        let volatile = !disks.is_empty() && disks.iter().all(|disk| is_memory(disk));
        let (fua, dax, rotational) = (yes("fua"), yes("dax"), yes("rotational"));
        Ok(BlockDevice { name: name(&folder), cache, fua, dax, rotational, volatile, disks })
    }
}

/// Where the system shows a device; `None` for the numbers of file systems that aren't on one.
fn folder(sys: &Path, number: u64) -> Option<PathBuf> {
    sys.join(format!("dev/block/{}:{}", major(number), minor(number))).canonicalize().ok()
}

/// The disk that a partition is of; any other device is itself.
fn whole(folder: &Path) -> &Path {
    match folder.parent() {
        Some(disk) if folder.join("partition").exists() => disk,
        _ => folder,
    }
}

fn name(folder: &Path) -> String {
    // As in `cciss!c0d0`, whose node is in a folder.
    folder.file_name().unwrap_or_default().to_string_lossy().replace('!', "/")
}

/// Collects the disks under a device, which is one itself where nothing is known to be under it.
fn bottom(sys: &Path, device: &Path, depth: usize, found: &mut BTreeSet<String>) {
    let device = whole(device);
    let entries = fs::read_dir(device.join("slaves")).into_iter().flatten().flatten();
    let mut under: Vec<PathBuf> = entries.filter_map(|entry| entry.path().canonicalize().ok()).collect();
    // A path as the system that attached it saw it: in a container there may be nothing, or something else.
    let backing = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
    if let Ok(file) = fs::metadata(backing.trim_end_matches('\n')) {
        under.extend(self::folder(sys, file.dev()));
    }
    if under.is_empty() || depth == 0 {
        found.insert(name(device));
        return;
    }
    under.iter().for_each(|device| bottom(sys, device, depth - 1, found));
}

/// The kernel's RAM disks, compressed or not.
fn is_memory(disk: &str) -> bool {
    let number = disk.strip_prefix("zram").or_else(|| disk.strip_prefix("ram"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::makedev;
    use std::os::unix::fs::symlink;

    /// A made-up `/sys`.
    struct Sys(tempfile::TempDir);

    impl Sys {
        fn new() -> Sys {
            let sys = Sys(tempfile::tempdir().expect("a temporary folder"));
            fs::create_dir_all(sys.0.path().join("dev/block")).expect("makes");
            sys
        }

        /// A device of this number, with these files.
        fn device(&self, number: &str, path: &str, files: &[(&str, &str)]) -> PathBuf {
            let folder = self.0.path().join("devices").join(path);
            fs::create_dir_all(&folder).expect("makes");
            symlink(&folder, self.0.path().join("dev/block").join(number)).expect("links");
            for (file, text) in files {
                let file = folder.join(file);
                fs::create_dir_all(file.parent().expect("a folder")).expect("makes");
                fs::write(file, format!("{text}\n")).expect("writes");
            }
            folder
        }

        fn read(&self, major: u64, minor: u64) -> Result<BlockDevice, String> {
            BlockDevice::read(self.0.path(), makedev(major, minor))
        }
    }

    fn disks(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    const DISK: [(&str, &str); 4] =
        [("queue/write_cache", "write back"), ("queue/fua", "1"), ("queue/dax", "0"), ("queue/rotational", "0")];

    #[test]
    fn a_partition_is_what_its_disk_is() {
        let sys = Sys::new();
        sys.device("8:0", "pci/block/sda", &DISK);
        sys.device("8:1", "pci/block/sda/sda1", &[("partition", "1")]);
        let disk = sys.read(8, 0).expect("is there");
        assert_eq!((disk.name.as_str(), disk.cache, &disk.disks), ("sda", Some(Cache::WriteBack), &disks(&["sda"])));
        assert_eq!((disk.fua, disk.dax, disk.rotational, disk.volatile), (true, false, false, false));
        assert_eq!(sys.read(8, 1).expect("is there"), BlockDevice { name: "sda1".into(), ..disk });
    }

    #[test]
    fn what_the_system_does_not_say_is_not_made_up() {
        let sys = Sys::new();
        sys.device("8:0", "sda", &[("queue/write_cache", "something new")]);
        sys.device("8:16", "sdb", &[]);
        for minor in [0, 16] {
            let disk = sys.read(8, minor).expect("is there");
            assert_eq!((disk.cache, disk.fua, disk.dax, disk.rotational), (None, false, false, false));
        }
        sys.device("8:32", "sdc", &[("queue/write_cache", "write through"), ("queue/rotational", "1")]);
        let disk = sys.read(8, 32).expect("is there");
        assert_eq!((disk.cache, disk.rotational), (Some(Cache::WriteThrough), true));
        sys.read(0, 42).expect_err("is no device");
    }

    #[test]
    fn disks_are_found_through_everything_that_stands_on_them() {
        let sys = Sys::new();
        let sda = sys.device("8:0", "sda", &DISK);
        let sda2 = sys.device("8:2", "sda/sda2", &[("partition", "2")]);
        let sdb = sys.device("8:16", "sdb", &DISK);
        let md = sys.device("9:0", "md0", &DISK);
        let dm = sys.device("252:0", "dm-0", &[("queue/write_cache", "write through")]);
        for (above, below) in [(&md, &sda2), (&md, &sdb), (&dm, &md)] {
            fs::create_dir_all(above.join("slaves")).expect("makes");
            symlink(below, above.join("slaves").join(below.file_name().expect("a name"))).expect("links");
        }
        let device = sys.read(252, 0).expect("is there");
        assert_eq!((device.name.as_str(), device.disks), ("dm-0", disks(&["sda", "sdb"])));
        assert_eq!(device.cache, Some(Cache::WriteThrough), "its own queue counts");
        // A loop device is on the disk of its file.
        let file = tempfile::NamedTempFile::new().expect("a file");
        let number = file.as_file().metadata().expect("looks").dev();
        symlink(&sda, sys.0.path().join(format!("dev/block/{}:{}", major(number), minor(number)))).expect("links");
        let backing = file.path().to_str().expect("a path");
        sys.device("7:0", "loop0", &[("loop/backing_file", backing)]);
        assert_eq!(sys.read(7, 0).expect("is there").disks, disks(&["sda"]));
        sys.device("7:1", "loop1", &[("loop/backing_file", "/nonexistent (deleted)")]);
        assert_eq!(sys.read(7, 1).expect("is there").disks, disks(&["loop1"]));
    }

    #[test]
    fn devices_in_a_circle_have_an_end() {
        let sys = Sys::new();
        let dm = sys.device("252:0", "dm-0", &DISK);
        fs::create_dir_all(dm.join("slaves")).expect("makes");
        symlink(&dm, dm.join("slaves/dm-0")).expect("links");
        assert_eq!(sys.read(252, 0).expect("is there").disks, disks(&["dm-0"]));
    }

    #[test]
    fn memory_is_told_from_disks() {
        for (name, volatile) in [("zram0", true), ("ram15", true), ("ram", false), ("rama", false), ("sda", false)] {
            assert_eq!(is_memory(name), volatile, "{name}");
        }
    }
}
