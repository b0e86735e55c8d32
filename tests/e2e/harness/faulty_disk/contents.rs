//! One file's bytes on a disk with a volatile write cache.
//!
//! Reads see every write. A power cut leaves what was synced, and of each later write all, nothing, or some of its
//! sectors: a sector is never torn, anything larger can be, and nothing that isn't synced keeps its order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
/// What space is counted in, in bytes.
pub const PAGE: u64 = 4096;

/// One sector as one write left it.
struct Version {
    write: u64,
    thread: u32,
    bytes: Arc<[u8]>,
    at: usize,
}

/// Writes of one thread in a row.
struct Run {
    start: u64,
    end: u64,
    first: u64,
}

/// What a power cut does to one write that no sync covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Kept,
    Lost,
    /// Each sector for itself; even ones of this hash are kept.
    Torn(u64),
}

#[derive(Default)]
pub struct Contents {
    len: u64,
    now: Vec<u8>,
    stable: Vec<u8>,
    unsynced: BTreeMap<u64, Vec<Version>>,
    /// What each thread wrote last, until it syncs.
    wrote: BTreeMap<u32, Run>,
    allocated: Vec<bool>,
}

impl Contents {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Pages that take room on the disk.
    pub fn pages(&self) -> u64 {
        self.allocated.iter().filter(|allocated| **allocated).count() as u64
    }

    /// Pages of a range that would take room which they don't take yet.
    pub fn pages_missing(&self, offset: u64, length: u64) -> u64 {
        let taken = |page: &u64| self.allocated.get(*page as usize).copied().unwrap_or(false);
        pages(offset, length).filter(|page| !taken(page)).count() as u64
    }

    /// Changes the length. That is never lost: what a file system does about its metadata isn't what is tested.
    pub fn resize(&mut self, len: u64) {
        let bytes = (len as usize).next_multiple_of(SECTOR);
        if len < self.len {
            self.now.truncate(bytes);
            self.stable.truncate(bytes);
            self.unsynced.split_off(&(bytes as u64 / SECTOR as u64));
            self.now[len as usize..].fill(0);
            self.stable[len as usize..].fill(0);
        }
        self.len = len;
        self.now.resize(bytes, 0);
        self.stable.resize(bytes, 0);
        self.allocated.resize(len.div_ceil(PAGE) as usize, false);
    }

    pub fn read(&self, offset: u64, length: usize) -> &[u8] {
        let start = offset.min(self.len) as usize;
        let end = (start + length).min(self.len as usize);
        &self.now[start..end]
    }

    /// Takes a write into the cache.
    pub fn write(&mut self, write: u64, thread: u32, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len() as u64;
        self.allocate(offset, data.len() as u64);
        // The kernel splits what is large.
        let before = self.wrote.get(&thread).filter(|run| run.end == offset);
        let (start, first) = before.map_or((offset, write), |run| (run.start, run.first));
        self.wrote.insert(thread, Run { start, end, first });
        self.now[offset as usize..end as usize].copy_from_slice(data);
        let first = offset as usize / SECTOR;
        let last = (end as usize).div_ceil(SECTOR);
        let bytes: Arc<[u8]> = self.now[first * SECTOR..last * SECTOR].into();
        for sector in first..last {
            let version = Version { write, thread, bytes: bytes.clone(), at: (sector - first) * SECTOR };
            self.unsynced.entry(sector as u64).or_default().push(version);
        }
    }

    /// Makes room for a range, without a change to what it reads as.
    pub fn allocate(&mut self, offset: u64, length: u64) {
        if offset + length > self.len {
            self.resize(offset + length);
        }
        for page in pages(offset, length) {
            self.allocated[page as usize] = true;
        }
    }

    /// Makes zeros of what there is of a range; a hole takes no room.
    pub fn zero(&mut self, write: u64, thread: u32, offset: u64, length: u64, hole: bool) {
        let end = (offset + length).min(self.len);
        if offset >= end {
            return;
        }
        self.write(write, thread, offset, &vec![0; (end - offset) as usize]);
        if hole {
            for page in offset.div_ceil(PAGE)..end / PAGE {
                self.allocated[page as usize] = false;
            }
        }
    }

    /// A sync: all that was written is stable. Where it follows a write of the same thread into the `forced` range, it
    /// is the second half of a forced write: that one write is stable, and nothing else.
    pub fn sync(&mut self, thread: u32, forced: Range<u64>) {
        let Some(run) = self.wrote.remove(&thread).filter(|run| forced.contains(&run.start)) else {
            return self.sync_all();
        };
        let stable = &mut self.stable;
        self.unsynced.retain(|sector, versions| {
            let of_run = |version: &Version| version.thread == thread && version.write >= run.first;
            if let Some(last) = versions.iter().rposition(of_run) {
                keep(stable, *sector, &versions[last]);
                versions.drain(..=last);
            }
            !versions.is_empty()
        });
    }

    /// Makes all that was written stable.
    pub fn sync_all(&mut self) {
        for (sector, versions) in std::mem::take(&mut self.unsynced) {
            if let Some(last) = versions.last() {
                keep(&mut self.stable, sector, last);
            }
        }
    }

    /// A power cut; returns how many writes weren't kept whole.
    pub fn cut(&mut self, mut fate: impl FnMut(u64) -> Fate) -> usize {
        let mut fates = BTreeMap::new();
        for (sector, versions) in std::mem::take(&mut self.unsynced) {
            let survivor = versions.iter().rfind(|version| {
                match *fates.entry(version.write).or_insert_with(|| fate(version.write)) {
                    Fate::Kept => true,
                    Fate::Lost => false,
                    Fate::Torn(hash) => super::hash(hash ^ sector) & 1 == 0,
                }
            });
            if let Some(survivor) = survivor {
                keep(&mut self.stable, sector, survivor);
            }
        }
        self.now.clone_from(&self.stable);
        self.wrote.clear();
        fates.values().filter(|fate| **fate != Fate::Kept).count()
    }
}

fn pages(offset: u64, length: u64) -> std::ops::Range<u64> {
    offset / PAGE..(offset + length).div_ceil(PAGE)
}

fn keep(stable: &mut [u8], sector: u64, version: &Version) {
    let start = sector as usize * SECTOR;
    stable[start..start + SECTOR].copy_from_slice(&version.bytes[version.at..version.at + SECTOR]);
}
