//! What the device under a file promises, and so the cheapest way in which a write to it is stable when it is complete.
//!
//! The kernel never sends a flush to a device without a volatile cache, however a write is asked for. So on such a device
//! itself a plain direct write is as stable as any, and a sync has nothing to do. With a volatile cache it takes RWF_DSYNC:
//! the kernel writes through the cache where the device can (FUA), and flushes it where not.
//!
//! A file's write always asks for stability, also over a device without a cache: there may be something to store beside the
//! data, and whether there is can change while the file is open. A copy that shares blocks (`cp --reflink`, the default of
//! `cp` on XFS) makes each next write move its block; `chattr +j` makes ext4 keep it in memory. Where there is nothing, the
//! kernel sees it and adds nothing: on a device without a cache no difference could be measured.
//!
//! All this is read once, at a start. Whoever gives a device its cache back while a daemon runs (`hdparm -W1`,
//! `queue/write_cache`) restarts the daemon.

use super::block_device::{BlockDevice, Cache};
use super::filesystem::FileSystem;
use super::store::{How, Store};
use nix::sys::statfs::statfs;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// What a file or device stands on.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The file system; `None` for a block device itself.
    pub system: Option<FileSystem>,
    /// The device itself, or the one under the file system; or why it isn't known.
    pub device: Result<BlockDevice, String>,
    /// The number of that device or file system.
    pub number: u64,
}

/// What two files have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shared {
    /// A file system.
    FileSystem,
    /// Disks, by name.
    Disks(Vec<String>),
}

impl Ground {
    /// Of a file, a folder or a block device.
    ///
    /// # Errors
    /// It can't be looked at.
    pub fn of(path: &Path) -> io::Result<Ground> {
        Ground::seen(path, &std::fs::metadata(path)?)
    }

    fn seen(path: &Path, metadata: &Metadata) -> io::Result<Ground> {
        let is_device = metadata.file_type().is_block_device();
        let number = if is_device { metadata.rdev() } else { metadata.dev() };
        let system = if is_device { None } else { Some(FileSystem::of(statfs(path)?.filesystem_type())) };
        Ok(Ground { system, device: BlockDevice::read(Path::new("/sys"), number), number })
    }

    /// How a write to it is made stable.
    pub fn store(&self) -> Store {
        Store::on(self.system, self.device.as_ref().map_err(String::as_str))
    }

    /// What it has in common with another; nothing that is known where it is `None`.
    pub fn shared(&self, other: &Ground) -> Option<Shared> {
        if self.number == other.number && self.system.is_some() && other.system.is_some() {
            return Some(Shared::FileSystem);
        }
        let (ours, theirs) = (self.device.as_ref().ok()?, other.device.as_ref().ok()?);
        let both: Vec<String> = ours.disks.intersection(&theirs.disks).cloned().collect();
        (!both.is_empty()).then_some(Shared::Disks(both))
    }
}

impl Store {
    /// The way for a file on this file system, or for the device itself.
    pub fn on(system: Option<FileSystem>, device: Result<&BlockDevice, &str>) -> Store {
        let dsync = |why| Store { how: How::Dsync, why };
        let cache = device.map(|device| (&device.name, device.cache, device.fua));
        match (system.map(|system| system.name), cache) {
            (None, Ok((name, Some(Cache::WriteThrough), _))) => {
                Store { how: How::Direct, why: format!("{name} has no volatile cache, so what it has taken is stable") }
            }
            (None, Ok((name, Some(Cache::WriteBack), true))) => {
                dsync(format!("{name} has a volatile cache, and takes each such write through it (FUA)"))
            }
            (None, Ok((name, Some(Cache::WriteBack), false))) => {
                dsync(format!("{name} has a volatile cache, which is flushed with each such write"))
            }
            (None, Ok((name, None, _))) => dsync(format!("whether {name} has a volatile cache isn't known")),
            (None, Err(reason)) => dsync(format!("what the device does isn't known: {reason}")),
            (Some(system), Ok((name, Some(Cache::WriteThrough), _))) => dsync(format!(
                "a file on {system} over {name}, which has no volatile cache; the file system may have more to store"
            )),
            (Some(system), Ok((name, Some(Cache::WriteBack), true))) => dsync(format!(
                "a file on {system} over {name}, which has a volatile cache and takes each such write through it (FUA)"
            )),
            (Some(system), Ok((name, Some(Cache::WriteBack), false))) => dsync(format!(
                "a file on {system} over {name}, which has a volatile cache that is flushed with each such write"
            )),
            (Some(system), Ok((name, None, _))) => dsync(format!(
                "a file on {system} over {name}, of which it isn't known whether it has a volatile cache"
            )),
            (Some(system), Err(reason)) => {
                dsync(format!("a file on {system}, and what is under that isn't known: {reason}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::filesystem::Home;
    use super::*;

    fn device(name: &str, cache: Option<Cache>, fua: bool) -> BlockDevice {
        let disks = [name.to_owned()].into();
        BlockDevice { name: name.into(), cache, fua, dax: false, rotational: false, volatile: false, disks }
    }

    const EXT4: Option<FileSystem> = Some(FileSystem { name: "ext4", home: Home::Here });

    #[test]
    fn only_a_device_that_has_no_cache_takes_plain_writes() {
        use Cache::{WriteBack, WriteThrough};
        for (system, cache, fua, how, why) in [
            (None, Some(WriteThrough), false, How::Direct, "no volatile cache"),
            (None, Some(WriteThrough), true, How::Direct, "no volatile cache"),
            (None, Some(WriteBack), true, How::Dsync, "FUA"),
            (None, Some(WriteBack), false, How::Dsync, "is flushed"),
            (None, None, false, How::Dsync, "isn't known"),
            (None, None, true, How::Dsync, "isn't known"),
            (EXT4, Some(WriteThrough), false, How::Dsync, "ext4 over sda, which has no volatile cache"),
            (EXT4, Some(WriteThrough), true, How::Dsync, "may have more to store"),
            (EXT4, Some(WriteBack), true, How::Dsync, "FUA"),
            (EXT4, Some(WriteBack), false, How::Dsync, "is flushed"),
            (EXT4, None, false, How::Dsync, "isn't known"),
            (EXT4, None, true, How::Dsync, "isn't known"),
        ] {
            let device = device("sda", cache, fua);
            let store = Store::on(system, Ok(&device));
            assert_eq!(store.how, how, "{system:?}, {cache:?}, {fua}: {store:?}");
            assert!(store.why.contains(why) && store.why.contains("sda"), "{why:?} in {store:?}");
        }
        for system in [None, EXT4] {
            let store = Store::on(system, Err("no such device"));
            assert_eq!(store.how, How::Dsync);
            assert!(store.why.contains("no such device"), "{store:?}");
        }
    }

    #[test]
    fn what_two_have_in_common() {
        let on = |system, number, name: &str| Ground { system, device: Ok(device(name, None, false)), number };
        let (journal, volume) = (on(EXT4, 1, "sda"), on(EXT4, 1, "sda"));
        assert_eq!(journal.shared(&volume), Some(Shared::FileSystem));
        // A device and a file on it, two partitions, a mirror and one of its disks.
        let whole = on(None, 1, "sda");
        assert_eq!(journal.shared(&whole), Some(Shared::Disks(vec!["sda".into()])));
        let mut pair = on(None, 9, "md0");
        pair.device = pair.device.map(|md| BlockDevice { disks: ["sda".into(), "sdb".into()].into(), ..md });
        assert_eq!(pair.shared(&journal), Some(Shared::Disks(vec!["sda".into()])));
        assert_eq!(journal.shared(&on(EXT4, 2, "sdb")), None);
        // Not known isn't the same.
        let nowhere = |number| Ground { system: EXT4, device: Err("none".into()), number };
        assert_eq!(nowhere(1).shared(&nowhere(2)), None);
        assert_eq!(nowhere(1).shared(&nowhere(1)), Some(Shared::FileSystem));
    }

    #[test]
    fn this_machine_is_understood() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let ground = Ground::of(file.path()).expect("is there");
        assert!(ground.system.is_some(), "{ground:?}");
        assert_eq!(ground.store().how, How::Dsync, "a file: {ground:?}");
        Ground::of(Path::new("/nonexistent")).expect_err("isn't there");
    }
}
