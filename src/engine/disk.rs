//! Files and devices: opened exclusively, with O_DIRECT, measured, preallocated; and the few synchronous transfers
//! that a start needs.

use super::filesystem::{FileSystem, Home};
use super::memory::Memory;
use super::pmem::Mapping;
use super::promise::Ground;
use super::ring::Target;
use super::store::{How, Store};
use crate::core::Place;
use crate::format::block::Block;
use crate::limits::BLOCK_BYTES;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::fstatfs;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What went wrong with a file or device: what it is for, where it is, the cause, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {cause}", path.display())]
pub struct DiskError {
    what: &'static str,
    path: PathBuf,
    cause: String,
    in_use: bool,
}

impl DiskError {
    /// Whether nothing is wrong but that somebody else has it.
    pub fn in_use(&self) -> bool {
        self.in_use
    }
}

/// An open file or block device. It is locked against other daemons as long as it is open.
#[derive(Debug)]
pub struct Disk {
    file: Flock<File>,
    path: PathBuf,
    what: &'static str,
    /// Bytes.
    pub size_bytes: u64,
    /// Smallest unit of O_DIRECT transfers, in bytes.
    pub block_bytes: u32,
    /// Whether it is a block device.
    pub is_device: bool,
    /// Whether a range can be deallocated.
    pub can_punch: bool,
    /// Whether a range can be zeroed without writing it; found out by trying.
    pub can_zero: bool,
    /// Whether the kernel may wait for it while an operation is submitted.
    may_block: bool,
    /// How what has to be stable is written, where it isn't mapped.
    store: Store,
    /// Where it is written as persistent memory; else why not.
    mapping: Result<Mapping, String>,
}

impl Disk {
    /// Opens an existing file or block device for O_DIRECT. `what` names its part in messages ("volume", "journal"…).
    pub fn open(what: &'static str, path: &Path) -> Result<Disk, DiskError> {
        Disk::open_within(what, path, LOCK_PATIENCE)
    }

    /// As [`Disk::open`], but who has it isn't waited for.
    pub fn open_now(what: &'static str, path: &Path) -> Result<Disk, DiskError> {
        Disk::open_within(what, path, Duration::ZERO)
    }

    fn open_within(what: &'static str, path: &Path, patience: Duration) -> Result<Disk, DiskError> {
        let fail = |cause: String| DiskError { what, path: path.to_owned(), cause, in_use: false };
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                fail("there is no such file or device; check the path in the configuration".into())
            }
            _ => fail(error.to_string()),
        })?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(fail("is neither a regular file nor a block device".into()));
        }
        if let Some(user) = mounted_elsewhere(path, &metadata) {
            return Err(fail(format!("{user}; unmount or detach it first")));
        }
        // On a block device O_EXCL fails where a file system or another exclusive user has it.
        let exclusive = if is_device { libc::O_EXCL } else { 0 };
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DIRECT | exclusive | libc::O_CLOEXEC);
        let deadline = Instant::now() + patience;
        let file = loop {
            match lock(&options, path) {
                Ok(file) => break file,
                Err(Busy::Locked) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                Err(Busy::Locked) => {
                    let error = fail("is in use by another daemon or program (its lock is held)".into());
                    return Err(DiskError { in_use: true, ..error });
                }
                Err(Busy::Other(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return Err(fail("this file system doesn't support O_DIRECT; put it on another one".into()));
                }
                Err(Busy::Other(error)) => return Err(fail(error.to_string())),
            }
        };
        let mut disk = Disk {
            file,
            path: path.to_owned(),
            what,
            size_bytes: metadata.len(),
            block_bytes: 512,
            is_device,
            can_punch: true,
            can_zero: true,
            may_block: false,
            store: Store::unknown(),
            mapping: Err("it wasn't tried".into()),
        };
        disk.measure().map_err(|error| disk.error(&error))?;
        Ok(disk)
    }

    /// Opens a file or device, making a file that isn't there.
    pub fn open_or_create(what: &'static str, path: &Path) -> Result<Disk, DiskError> {
        if !path.exists() {
            let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
            made.map_err(|error| DiskError {
                what,
                path: path.to_owned(),
                cause: format!("can't be made: {error}"),
                in_use: false,
            })?;
        }
        Disk::open(what, path)
    }

    fn measure(&mut self) -> io::Result<()> {
        if self.is_device {
            use std::io::{Seek, SeekFrom};
            self.size_bytes = (&*self.file).seek(SeekFrom::End(0))?;
            // Punching a hole into a device fails where it can't zero by itself; zeroing a range always works.
            let number = self.file.metadata()?.rdev();
            let folder = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
            let limit = ["queue", "../queue"]
                .iter()
                .find_map(|queue| std::fs::read_to_string(format!("{folder}/{queue}/write_zeroes_max_bytes")).ok());
            self.can_punch = limit.is_some_and(|limit| limit.trim() != "0");
        } else {
            // What is far away takes asynchronous operations, and waits for them nevertheless.
            self.may_block = FileSystem::of(fstatfs(&*self.file)?.filesystem_type()).home == Home::Far;
        }
        let path = CString::new(self.path.as_os_str().as_bytes())?;
        // SAFETY: statx writes into a zeroed struct of its own type; all-zero is a valid value of it.
        let (result, stat) = unsafe {
            let mut stat = std::mem::zeroed::<libc::statx>();
            (libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, libc::STATX_DIOALIGN, &mut stat), stat)
        };
        // Linux before 6.1, and some file systems, don't tell: 4096 is right everywhere.
        let told = result == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0;
        self.block_bytes = if told { stat.stx_dio_offset_align.max(512) } else { BLOCK_BYTES as u32 };
        if told && stat.stx_dio_mem_align > self.block_bytes {
            self.block_bytes = stat.stx_dio_mem_align.min(BLOCK_BYTES as u32);
        }
        if self.block_bytes as usize > BLOCK_BYTES {
            let cause = format!("has blocks of {} bytes; at most {BLOCK_BYTES} are supported", self.block_bytes);
            return Err(io::Error::new(io::ErrorKind::Unsupported, cause));
        }
        Ok(())
    }

    /// An error about this disk.
    pub fn error(&self, cause: &dyn std::fmt::Display) -> DiskError {
        DiskError { what: self.what, path: self.path.clone(), cause: cause.to_string(), in_use: false }
    }

    /// For the ring; its descriptor is valid as long as the disk lives.
    pub fn target(&self) -> Target<'_> {
        let mapping = self.mapping.as_ref().ok();
        Target { fd: self.file.as_raw_fd(), may_block: self.may_block, how: self.store.how, mapping }
    }

    /// From now on it is written in the cheapest way that is stable. For what is written synchronously, record by record; what
    /// is written first and synced later has nothing to win.
    pub fn choose_way(&mut self) {
        if let Ok(ground) = Ground::of(&self.path) {
            self.store = ground.store();
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a regular file `bytes` long with every block written, so that later writes change no metadata. A block
    /// device must be that large already.
    pub fn preallocate(&mut self, bytes: u64) -> Result<(), DiskError> {
        if self.is_device {
            if self.size_bytes < bytes {
                return Err(self.error(&format!("holds {} bytes, {bytes} are needed", self.size_bytes)));
            }
            return Ok(());
        }
        let full = |disk: &Disk, error: io::Error| match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => disk.error(&format!(
                "no room for {bytes} bytes on this file system ({error}); free some, or make the journal smaller"
            )),
            _ => disk.error(&error),
        };
        // Always all of it, and all the syncs: whether a making that was cut off came so far can't be seen.
        let allocated = nix::fcntl::fallocate(&*self.file, nix::fcntl::FallocateFlags::empty(), 0, bytes as i64);
        match allocated {
            Ok(()) | Err(nix::Error::EOPNOTSUPP) => {}
            Err(error) => return Err(full(self, error.into())),
        }
        self.write_zeros(0..bytes).map_err(|error| full(self, error))?;
        self.file.sync_all().map_err(|error| full(self, error))?;
        self.size_bytes = bytes;
        self.sync_name()
    }

    /// Writes zeros over whole blocks. They aren't stable before [`Disk::sync`].
    pub fn zero(&self, range: Range<u64>) -> Result<(), DiskError> {
        let start = range.start;
        self.write_zeros(range).map_err(|error| self.error(&format!("can't be zeroed from byte {start} on: {error}")))
    }

    fn write_zeros(&self, range: Range<u64>) -> io::Result<()> {
        let piece = 1 << 20;
        let zeros = Memory::map(piece)?;
        // SAFETY: the mapping is new, and nobody else knows it.
        let zeros = unsafe { zeros.bytes(Place(0), piece) };
        let mut at = range.start;
        while at < range.end {
            let length = (range.end - at).min(piece as u64);
            self.file.write_all_at(&zeros[..length as usize], at)?;
            at += length;
        }
        Ok(())
    }

    /// Has the ring write the first `bytes` bytes as persistent memory from now on, if that is what they are. For a file that
    /// was preallocated: a store to a hole would wait for the file system, and one behind the end would end the process.
    ///
    /// Last of all at a start: after a sync of the file, each page's next store waits for the file system once more.
    pub fn map_persistent(&mut self, bytes: u64) {
        self.mapping = self.try_mapping(bytes);
        let (what, path, store) = (self.what, self.path.display(), self.how_stored());
        match store.how {
            How::PersistentMemory => tracing::info!("{what} {path} is persistent memory: {}", store.why),
            How::AssumedPersistentMemory => {
                tracing::warn!("{what} {path} is taken for persistent memory, for measuring only: {}", store.why);
            }
            How::Direct | How::Dsync => tracing::debug!("{what} {path}, {}: {}", store.how.words(), store.why),
        }
    }

    fn try_mapping(&self, bytes: u64) -> Result<Mapping, String> {
        if self.is_device {
            return Err(match self.is_persistent_memory() {
                true => {
                    "a block device can't be mapped so: bring its namespace into mode fsdax, put a file system on it (mkfs.ext4, \
                     mount -o dax), and the journal there as a file"
                }
                false => "it is a block device, and no persistent memory",
            }
            .into());
        }
        let length = self.file.metadata().map_err(|error| error.to_string())?.len();
        if length < bytes {
            return Err(format!("it has {length} of {bytes} bytes"));
        }
        match self.extent(0, bytes) {
            Extent::Data(data) if data == bytes => Mapping::new(&self.file, bytes),
            Extent::Data(at) => Err(format!("it has a hole at byte {at}")),
            Extent::Hole(_) => Err("it has a hole at byte 0".into()),
        }
    }

    /// Whether a block device is on a bus of persistent memory, in whatever mode.
    fn is_persistent_memory(&self) -> bool {
        let number = self.file.metadata().map_or(0, |metadata| metadata.rdev());
        let path = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
        std::fs::canonicalize(path).is_ok_and(|path| path.to_string_lossy().contains("/ndbus"))
    }

    /// By what means the ring writes it, and why so.
    pub fn how_stored(&self) -> Store {
        match &self.mapping {
            Ok(mapping) if mapping.assumed => Store { how: How::AssumedPersistentMemory, why: mapping.words() },
            Ok(mapping) => Store { how: How::PersistentMemory, why: mapping.words() },
            Err(why) => Store { how: self.store.how, why: format!("{}; no persistent memory: {why}", self.store.why) },
        }
    }

    /// Makes a file's name survive a power cut as well as its contents.
    pub fn sync_name(&self) -> Result<(), DiskError> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| self.error(&error))
    }

    /// Reads into memory that nobody else uses yet. Bytes beyond the end of a file stay zero.
    pub fn load(&self, memory: &Memory, place: Place, offset: u64, bytes: u64) -> Result<(), DiskError> {
        // SAFETY: only called at a start, before any operation is under way in this memory.
        let target = unsafe { memory.bytes_mut(place, bytes as usize) };
        let mut done = 0;
        while done < target.len() {
            let end = (done + (4 << 20)).min(target.len());
            match self.file.read_at(&mut target[done..end], offset + done as u64) {
                Ok(0) => return Ok(()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let at = offset + done as u64;
                    return Err(self.error(&format!("can't be read at byte {at}: {error}")));
                }
            }
        }
        Ok(())
    }

    /// Gives back all of a regular file's room.
    pub fn truncate(&self) -> Result<(), DiskError> {
        self.file.set_len(0).map_err(|error| self.error(&format!("can't be emptied: {error}")))
    }

    /// Makes everything written so far stable.
    pub fn sync(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|error| self.error(&format!("can't be synced: {error}")))
    }

    /// Writes one block, durably.
    pub fn store_block(&self, block: &Block, offset: u64) -> Result<(), DiskError> {
        self.store(block, offset)
    }

    /// Writes whole blocks, durably.
    pub fn store(&self, blocks: &[u8], offset: u64) -> Result<(), DiskError> {
        let memory = Memory::map(blocks.len()).map_err(|error| self.error(&error))?;
        // SAFETY: the mapping is new, and nobody else knows it.
        let aligned = unsafe { memory.bytes_mut(Place(0), blocks.len()) };
        aligned.copy_from_slice(blocks);
        let written = self.file.write_all_at(aligned, offset).and_then(|()| self.file.sync_data());
        written.map_err(|error| self.error(&format!("can't be written at byte {offset}: {error}")))
    }

    /// Writes aligned memory to an aligned place. It isn't stable before [`Disk::sync`].
    pub fn write(&self, aligned: &[u8], offset: u64) -> Result<(), DiskError> {
        let written = self.file.write_all_at(aligned, offset);
        written.map_err(|error| self.error(&format!("can't be written at byte {offset}: {error}")))
    }

    /// Reads the first two blocks and tells whether the disk is blank: whether everything before `until` is zero.
    pub fn first_blocks(&self, until: u64) -> Result<([Box<Block>; 2], bool), DiskError> {
        let memory = Memory::map(until as usize).map_err(|error| self.error(&error))?;
        self.load(&memory, Place(0), 0, until)?;
        // SAFETY: the mapping is new, and nobody else knows it.
        let bytes = unsafe { memory.bytes(Place(0), until as usize) };
        let block = |n: usize| {
            let mut block = Box::new([0; BLOCK_BYTES]);
            block.copy_from_slice(&bytes[n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES]);
            block
        };
        Ok(([block(0), block(1)], bytes.iter().all(|byte| *byte == 0)))
    }

    /// Whether a range is a hole. Where its data end isn't asked for: on some file systems that takes the longer the more
    /// data there are.
    pub fn is_hole(&self, offset: u64, length: u64) -> bool {
        if self.is_device {
            return false;
        }
        match nix::unistd::lseek(&*self.file, offset as i64, nix::unistd::Whence::SeekData) {
            Err(error) => error == nix::Error::ENXIO,
            Ok(data) => data as u64 >= offset + length,
        }
    }

    /// How many bytes from `offset` on are a hole (up to `limit`), and how many are data where none are.
    pub fn extent(&self, offset: u64, limit: u64) -> Extent {
        if self.is_device {
            return Extent::Data(limit);
        }
        let seek = |whence| nix::unistd::lseek(&*self.file, offset as i64, whence).map(|at| at as u64);
        match seek(nix::unistd::Whence::SeekData) {
            Err(nix::Error::ENXIO) => Extent::Hole(limit),
            Ok(data) if data > offset => Extent::Hole((data - offset).min(limit)),
            Ok(_) => match seek(nix::unistd::Whence::SeekHole) {
                Ok(hole) if hole > offset => Extent::Data((hole - offset).min(limit)),
                _ => Extent::Data(limit),
            },
            // A file system that can't tell.
            Err(_) => Extent::Data(limit),
        }
    }
}

/// Makes a folder and whatever is missing above it, so that their names survive a power cut. Also one that is there may
/// have been made by a run that was killed before it could sync the name: so all above it are synced.
pub fn make_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    for above in path.canonicalize()?.ancestors().skip(1) {
        match File::open(above).and_then(|above| above.sync_all()) {
            // Nothing was made in a folder that may not even be looked at.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            // A file system that is read-only, or has nothing to sync.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EROFS | libc::EINVAL)) => {}
            done => done?,
        }
    }
    Ok(())
}

/// How long a lock is waited for: the writes of a daemon that was killed hold its files open until they are complete,
/// and nobody may read a journal before.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

enum Busy {
    Locked,
    Other(io::Error),
}

fn lock(options: &OpenOptions, path: &Path) -> Result<Flock<File>, Busy> {
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => Busy::Locked,
        _ => Busy::Other(error),
    })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::Error::EWOULDBLOCK => Busy::Locked,
        other => Busy::Other(other.into()),
    })
}

/// A part of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Not allocated: reads as zeros.
    Hole(u64),
    /// Allocated.
    Data(u64),
}

/// Sixteen random bytes from the system.
pub fn random_id() -> io::Result<crate::format::ids::Id> {
    let mut id = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(crate::format::ids::Id(id))
}

/// Who has a device mounted, or a file attached as a loop device. Where the system doesn't tell, the exclusive open
/// has the last word.
fn mounted_elsewhere(path: &Path, metadata: &std::fs::Metadata) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted_at = |major: u64, minor: u64| {
        let number = format!("{major}:{minor}");
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find_map(|fields| {
            (fields.get(2) == Some(&number.as_str())).then(|| fields.get(4).copied().unwrap_or("?").to_owned())
        })
    };
    if metadata.file_type().is_block_device() {
        let device = metadata.rdev();
        let at = mounted_at(libc::major(device).into(), libc::minor(device).into())?;
        return Some(format!("is mounted on {at}"));
    }
    let canonical = path.canonicalize().ok()?;
    for entry in std::fs::read_dir("/sys/block").ok()?.flatten() {
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if backing.trim_end() != canonical.to_string_lossy() {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = std::fs::read_to_string(entry.path().join("dev")).unwrap_or_default();
        let at = number
            .trim()
            .split_once(':')
            .and_then(|(major, minor)| mounted_at(major.parse().ok()?, minor.parse().ok()?));
        return Some(match at {
            Some(at) => format!("is attached as /dev/{name}, which is mounted on {at}"),
            None => format!("is attached as /dev/{name}"),
        });
    }
    None
}
