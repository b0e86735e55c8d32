//! `/dev/nbdN` as the system shows it: which there are, who holds them, and whether they answer.

use anyhow::{Context as _, anyhow, bail};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is read to see that a device answers: a block, as large as any device's, and so aligned.
const PROBE_BYTES: usize = 4096;

/// An NBD device of this machine, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device(pub u32);

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/nbd{}", self.0)
    }
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let digits = text.strip_prefix("/dev/nbd").or_else(|| text.strip_prefix("nbd")).unwrap_or_default();
        // Only the one way of writing a number: `nbd01` is no device.
        let number = digits.parse().ok().filter(|number: &u32| number.to_string() == digits);
        number.map(Device).ok_or_else(|| format!("{text:?} is no NBD device; write /dev/nbdN"))
    }
}

impl Device {
    /// Its short name.
    pub fn name(self) -> String {
        format!("nbd{}", self.0)
    }

    /// Its special file.
    pub fn path(self) -> PathBuf {
        format!("/dev/nbd{}", self.0).into()
    }

    fn attribute(self, name: &str) -> PathBuf {
        Path::new("/sys/block").join(self.name()).join(name)
    }

    fn read(self, name: &str) -> Option<String> {
        Some(fs::read_to_string(self.attribute(name)).ok()?.trim().to_owned())
    }

    /// Whether the kernel knows it.
    pub fn exists(self) -> bool {
        self.attribute("queue").exists()
    }

    /// Whether it is set up, with a connection or without.
    pub fn is_attached(self) -> bool {
        self.attribute("pid").exists()
    }

    /// By what identifier it was set up.
    pub fn backend(self) -> Option<String> {
        self.read("backend").filter(|backend| !backend.is_empty())
    }

    /// Its size in bytes.
    pub fn size_bytes(self) -> Option<u64> {
        self.read("size")?.parse::<u64>().ok()?.checked_mul(512)
    }

    /// Its logical block size in bytes.
    pub fn block_bytes(self) -> Option<u32> {
        self.read("queue/logical_block_size")?.parse().ok()
    }

    /// Lets the block layer look at requests in flight this often: those on a dead connection are sent again only then.
    pub fn set_io_timeout(self, every: Duration) -> anyhow::Result<()> {
        let path = self.attribute("queue/io_timeout");
        let wanted = every.as_millis().to_string();
        if self.read("queue/io_timeout").as_deref() == Some(&wanted) {
            return Ok(());
        }
        fs::write(&path, &wanted).with_context(|| format!("can't write {wanted} to {}", path.display()))
    }

    /// Where it is mounted, by the system's table.
    pub fn mounts(self) -> Vec<String> {
        let Ok(number) = fs::metadata(self.path()).map(|metadata| metadata.rdev()) else { return Vec::new() };
        let wanted = format!("{}:{}", libc::major(number), libc::minor(number));
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount = |line: &str| {
            let mut words = line.split(' ').skip(2);
            let (device, _, place) = (words.next()?, words.next()?, words.next()?);
            (device == wanted).then(|| place.to_owned())
        };
        table.lines().filter_map(mount).collect()
    }

    /// Fails where something holds it: a mount, a mapping, or a swap area.
    pub fn check_unheld(self) -> anyhow::Result<()> {
        let mounts = self.mounts();
        if !mounts.is_empty() {
            bail!("{self} is mounted on {}: umount it first", mounts.join(", "));
        }
        let holders = fs::read_dir(self.attribute("holders")).into_iter().flatten().flatten();
        let holders: Vec<_> = holders.map(|holder| holder.file_name().to_string_lossy().into_owned()).collect();
        if !holders.is_empty() {
            bail!("{self} is in use by {}: remove that first", holders.join(", "));
        }
        match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(self.path()) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(anyhow!(
                "{self} is in use (a mount elsewhere, swap, or a program that claims it): release it first"
            )),
            // What can't be opened isn't held by this.
            _ => Ok(()),
        }
    }

    /// Reads a block past all caches: it comes back only from a server. Waits as long as that takes.
    pub fn probe(self) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(self.path())?;
        let mut memory = vec![0; 2 * PROBE_BYTES];
        let aligned = memory.as_ptr().align_offset(PROBE_BYTES);
        let block = memory.get_mut(aligned..aligned + PROBE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        // A device that is smaller than the block gives what it has.
        match file.read(block)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Fails where there is no such device.
    pub fn check_exists(self) -> anyhow::Result<()> {
        let special = fs::metadata(self.path()).is_ok_and(|metadata| metadata.file_type().is_block_device());
        if self.exists() && special {
            return Ok(());
        }
        bail!("there is no {self}: name another, or load the module with more (modprobe nbd nbds_max=N)")
    }
}

/// All devices that the kernel knows, in the order of their numbers.
pub fn all() -> Vec<Device> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let device = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<Device>().ok();
    let mut devices: Vec<Device> = entries.filter_map(device).collect();
    devices.sort_by_key(|device| device.0);
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_in_two_ways() {
        for text in ["/dev/nbd12", "nbd12"] {
            let device: Device = text.parse().unwrap();
            assert_eq!((device, device.to_string(), device.name()), (Device(12), "/dev/nbd12".into(), "nbd12".into()));
        }
        for text in
            ["", "nbd", "/dev/nbd", "/dev/nbd0p1", "/dev/nbd01", "/dev/sda", "nbd-1", "12", "/dev/nbd99999999999"]
        {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
