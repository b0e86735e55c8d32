//! How long it takes until a write is stable, measured on a disk in the way in which an engine writes to it.

use super::disk::{Disk, DiskError};
use super::memory::Memory;
use super::ring::Ring;
use super::store::Store;
use crate::core::Place;
use crate::format::superblock::Superblock;
use crate::limits::BLOCK_BYTES;
use anyhow::Context as _;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Writes at the most, and at the least.
const WRITES: std::ops::Range<usize> = 5..200;
/// After this long it is enough.
const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of a file that is made to be measured.
pub const FILE_BYTES: u64 = 1 << 20;

/// How long single writes of one block took, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latency {
    /// How many.
    pub writes: usize,
    /// Half of them took no longer.
    pub median: Duration,
    /// All but one in a hundred took no longer.
    pub p99: Duration,
}

impl Latency {
    /// Of these times; `None` of none.
    fn of(mut times: Vec<Duration>) -> Option<Latency> {
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Latency { writes: times.len(), median: at(50)?, p99: at(99)? })
    }
}

/// Writes the older copy of a superblock again and again, as it is. Should the power fail in the middle, the newer one
/// counts, as ever.
///
/// # Errors
/// The disk can't be read or written, or there is no ring.
pub fn of_superblock(disk: &Disk, superblock: &Superblock) -> anyhow::Result<Latency> {
    let older = if superblock.copy_offset() == 0 { BLOCK_BYTES as u64 } else { 0 };
    let memory = Arc::new(Memory::map(BLOCK_BYTES).context("no memory for a block")?);
    disk.load(&memory, Place(0), older, BLOCK_BYTES as u64)?;
    rewrite(disk, &memory, older)
}

/// Measures on a file of [`FILE_BYTES`] that is made in this folder, and removed again. Tells its path, and how it was
/// written.
///
/// # Errors
/// The file can't be made, written or removed.
pub fn of_new_file(folder: &Path) -> anyhow::Result<(Latency, PathBuf, Store)> {
    let path = folder.join(format!(".nbd-mirror-check-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    made.with_context(|| format!("{} can't be made, to measure how fast it is written", path.display()))?;
    let measured = || {
        let mut disk = Disk::open_now("file", &path)?;
        disk.preallocate(FILE_BYTES)?;
        disk.choose_way();
        disk.map_persistent(FILE_BYTES);
        let latency = rewrite(&disk, &Arc::new(Memory::map(BLOCK_BYTES).context("no memory for a block")?), 0)?;
        Ok((latency, disk.how_stored()))
    };
    let measured: anyhow::Result<(Latency, Store)> = measured();
    std::fs::remove_file(&path).with_context(|| format!("{} can't be removed", path.display()))?;
    let (latency, store) = measured?;
    Ok((latency, path, store))
}

/// Writes the block that is in memory to its place, again and again.
fn rewrite(disk: &Disk, memory: &Arc<Memory>, offset: u64) -> anyhow::Result<Latency> {
    let mut ring = Ring::new(memory.clone())?;
    let (mut times, mut finished) = (Vec::with_capacity(WRITES.end), Vec::new());
    let began = Instant::now();
    while times.len() < WRITES.start || (times.len() < WRITES.end && began.elapsed() < LIMIT) {
        let at = Instant::now();
        ring.write((), disk.target(), offset, &[(Place(0), BLOCK_BYTES as u64)], true);
        while finished.is_empty() {
            ring.wait(None, &mut finished).context("io_uring failed")?;
        }
        for ((), outcome) in finished.drain(..) {
            outcome.map_err(|error| -> DiskError { disk.error(&format!("can't be written: {error}")) })?;
        }
        times.push(at.elapsed());
    }
    Latency::of(times).context("nothing was written")
}

#[cfg(test)]
mod tests {
    use super::super::store::How;
    use super::*;
    use crate::format::ids::{Epoch, Id};
    use crate::format::superblock::{Role, Volume};

    #[test]
    fn the_median_and_the_slowest_of_a_hundred() {
        let ms = Duration::from_millis;
        assert_eq!(Latency::of(Vec::new()), None);
        assert_eq!(Latency::of(vec![ms(3)]), Some(Latency { writes: 1, median: ms(3), p99: ms(3) }));
        let hundred = Latency::of((1..=100).rev().map(ms).collect());
        assert_eq!(hundred, Some(Latency { writes: 100, median: ms(50), p99: ms(99) }));
    }

    #[test]
    fn what_is_measured_on_stays_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let volume = Volume { name: "v".into(), size_bytes: 1 << 20, block_bytes: 512 };
        let superblock = Superblock::first(Role::Source, Id::default(), "a", 8 << 20, Epoch(1), vec![volume]);
        let mut bytes = vec![0x5a; 4 * BLOCK_BYTES];
        bytes[BLOCK_BYTES..2 * BLOCK_BYTES].copy_from_slice(&*superblock.encode());
        std::fs::write(&path, &bytes).expect("writes");
        let disk = Disk::open("journal", &path).expect("opens");
        let latency = of_superblock(&disk, &superblock).expect("measures");
        assert!(WRITES.contains(&latency.writes) || latency.writes == WRITES.end, "{latency:?}");
        assert!(latency.median <= latency.p99, "{latency:?}");
        assert!(std::fs::read(&path).expect("reads") == bytes);
    }

    #[test]
    fn a_file_that_is_made_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (latency, path, store) = of_new_file(folder.path()).expect("measures");
        assert!(latency.writes >= WRITES.start, "{latency:?}");
        assert_eq!((path.parent(), store.how), (Some(folder.path()), How::Dsync));
        assert_eq!(std::fs::read_dir(folder.path()).expect("reads").count(), 0);
        of_new_file(&folder.path().join("nowhere")).expect_err("no such folder");
    }
}
