//! Persistent memory: a file on it is mapped, and written by the processor alone, without a system call.
//!
//! What proves that a file is on persistent memory is that the kernel maps it with MAP_SYNC, and nothing else does: then a
//! byte that has left the processor's caches survives a power cut, with no word to the file system. Every other file system
//! answers EOPNOTSUPP.
//!
//! A store is stable when [`Mapping::store`] returns. Before that a power cut can take any part of it, in units of 8
//! aligned bytes, in any order: a disk does the same in sectors. Nothing needs a commit word nevertheless, for whatever is
//! stored tells by itself whether it is whole: a frame by its checksums and the digest chain, a superblock's copy by its
//! checksum (its magic is one of those units, so what is torn isn't taken for something foreign), a sector of the bitmap by
//! its checksum: one that isn't whole counts as dirty.
//!
//! Nothing is read through the mapping: a byte that the medium has lost is an error of a read, but a SIGBUS of a load.

mod stores;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;
use stores::Stores;

/// Set to 1, files that aren't on persistent memory are written as if they were: for measuring only.
pub const ASSUME: &str = "NBD_MIRROR_ASSUME_PMEM";

/// The beginning of a file, mapped to be written. It must stay that long: whoever truncates it ends this process.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    stores: Stores,
    /// Whether nothing says that what is stored is stable.
    pub assumed: bool,
}

// SAFETY: the mapping belongs to this value alone, and any thread may write to it.
unsafe impl Send for Mapping {}
// SAFETY: no reference into the mapping is ever made, and nothing reads through it. Threads that share one write to parts of
// their own: the slots of a shared log.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a file's first `bytes` bytes, all of which must be there. The error says in words why that can't be.
    pub fn new(file: &File, bytes: u64) -> Result<Mapping, String> {
        let proved = Mapping::with(file, bytes, libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC);
        let mapping = match proved {
            Err(Refusal::NotPersistent) if std::env::var_os(ASSUME).is_some_and(|value| value == "1") => {
                Mapping::with(file, bytes, libc::MAP_SHARED)
            }
            proved => proved,
        };
        mapping.map_err(|refusal| refusal.to_string())
    }

    fn with(file: &File, bytes: u64, flags: i32) -> Result<Mapping, Refusal> {
        let stores = Stores::of_this_processor().ok_or(Refusal::Processor)?;
        let length = usize::try_from(bytes).ok().filter(|length| *length > 0).ok_or(Refusal::Length(bytes))?;
        // SAFETY: a new mapping; no existing memory is involved.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, file.as_raw_fd(), 0)
        };
        let base = if address == libc::MAP_FAILED { None } else { NonNull::new(address.cast::<u8>()) };
        let base = base.ok_or_else(|| match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Refusal::NotPersistent,
            error => Refusal::System(error),
        })?;
        let mapping = Mapping { base, bytes: length, stores, assumed: flags & libc::MAP_SYNC == 0 };
        // So that no first store to a page waits for the file system, and that what can't be written shows now.
        // SAFETY: the range is the mapping just made.
        if unsafe { libc::madvise(address, length, libc::MADV_POPULATE_WRITE) } != 0 {
            let error = io::Error::last_os_error();
            // Before Linux 5.14.
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(Refusal::System(error));
            }
        }
        Ok(mapping)
    }

    /// One of a file that may be anywhere, for tests.
    #[cfg(test)]
    pub fn unproved(file: &File, bytes: u64) -> Mapping {
        Mapping::with(file, bytes, libc::MAP_SHARED).expect("an ordinary mapping")
    }

    /// Writes the pieces one behind the other from `offset` on; they are stable when this returns how many bytes they are.
    pub fn store<'a>(&self, offset: u64, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut stored = 0;
        for piece in pieces {
            let end = at.checked_add(piece.len()).filter(|end| *end <= self.bytes);
            let end =
                end.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "behind the end of the mapping"))?;
            // SAFETY: at..end is inside the mapping, of which there is no reference, and which no piece can be a part of.
            unsafe { self.stores.copy(piece, self.base.as_ptr().add(at)) };
            (at, stored) = (end, stored + piece.len());
        }
        self.fence();
        Ok(stored)
    }

    /// Waits until all stores before it are stable.
    pub fn fence(&self) {
        self.stores.fence();
    }

    /// How it is written, for people.
    pub fn words(&self) -> String {
        match self.assumed {
            false => format!("mapped with MAP_SYNC, written by {}", self.stores),
            true => format!("{ASSUME}=1 says so; nothing survives a power cut here. Written by {}", self.stores),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing of it is borrowed.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this program stores to persistent memory on x86_64 only")]
    Processor,
    #[error("{0} bytes can't be mapped")]
    Length(u64),
    #[error("it isn't on persistent memory, or its file system isn't mounted with -o dax")]
    NotPersistent,
    #[error("it can't be mapped: {0}")]
    System(io::Error),
}

#[cfg(test)]
mod tests;
