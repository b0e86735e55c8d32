//! The destination's shared log on non-volatile memory: opened or made, emptied at a start, and its slots given to the
//! engines of the sources.
//!
//! Half of the slots belong to the sources, to each the same number for good; the other half is for whoever takes it. So a
//! busy source can take half of the log beside its own part, and never what another one has for itself. Slots are handed out
//! by lists without a lock, as engines run on threads of their own.
//!
//! Which log a destination uses is noted in its `journal_dir`, in the file `nvram`: what a log holds must be found again
//! also where the configuration names another one, or none any more.

mod note;
mod restore;

use super::disk::{Disk, random_id};
use super::ring::Target;
use crate::format::block::Block;
use crate::format::nvram::{LogHead, SLOTS_OFFSET};
use crate::limits::NVRAM_SLOT_BYTES;
use anyhow::{Context as _, bail};
use crossbeam_channel::{Receiver, Sender};
use note::Note;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A list of free slots, for several threads.
#[derive(Debug)]
struct FreeList(Sender<u32>, Receiver<u32>);

impl FreeList {
    fn of(slots: std::ops::Range<u32>) -> FreeList {
        let (sender, receiver) = crossbeam_channel::bounded(slots.len().max(1));
        let list = FreeList(sender, receiver);
        slots.for_each(|slot| list.give(slot));
        list
    }

    fn take(&self) -> Option<u32> {
        self.1.try_recv().ok()
    }

    fn give(&self, slot: u32) {
        // There is room for each slot that belongs to this list, and both ends are here.
        let _ = self.0.try_send(slot);
    }
}

/// What a configuration says of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// A file or block device.
    pub path: PathBuf,
    /// How large a file is to be, in bytes, and how much of a device is used at the most.
    pub size_bytes: u64,
}

/// The log, opened and empty.
#[derive(Debug)]
pub struct Log {
    disk: Disk,
    head: LogHead,
    /// Slots of each source's own.
    own_slots: u32,
    own: Vec<FreeList>,
    common: FreeList,
}

/// One source's part of the log.
#[derive(Debug, Clone)]
pub struct Share {
    log: Arc<Log>,
    source: usize,
}

/// Opens the log for so many sources, or makes it, and empties the one that was used before: what it holds is put into the
/// journal files below `journal_dir`. `None`: no log is wanted.
///
/// # Errors
/// A log that was used can't be found or read, something else is where the new one should be (without `init`), there is no
/// room, or a disk fails.
pub fn open(
    wanted: Option<&Wanted>,
    journal_dir: &Path,
    sources: usize,
    init: bool,
) -> anyhow::Result<Option<Arc<Log>>> {
    let path = wanted.map(|wanted| wanted.path.as_path());
    if let Some(path) = path.filter(|path| Note::is_at(path, journal_dir)) {
        bail!("nvram = {}: a file of that name in journal_dir says which log is used; name another", path.display());
    }
    let note = Note::read(journal_dir)?;
    let before = note.as_ref().map(|note| note.find(path)).transpose()?;
    if let Some((disk, head)) = &before {
        restore::restore(disk, head, journal_dir, init)?;
    }
    let (mut disk, head) = match (wanted, before) {
        (None, None) => return Ok(None),
        (None, Some((disk, _))) => {
            Note::remove(journal_dir)?;
            tracing::info!("the NVRAM log {} is empty and not used any more", disk.path().display());
            return Ok(None);
        }
        (Some(wanted), Some((disk, head))) if same(disk.path(), &wanted.path) && fits(&disk, &head, wanted) => {
            // It may have been found by another path than before.
            let found = Note { path: wanted.path.clone(), id: head.id };
            if note.is_some_and(|note| note.path != found.absolute()) {
                found.write(journal_dir)?;
            }
            (disk, head)
        }
        (Some(wanted), before) => {
            if let Some((disk, _)) = before {
                // Nothing is in it: whoever comes across it may make it anew.
                drop(disk);
                Note::remove(journal_dir)?;
            }
            let (disk, head) = make(wanted, sources, init)?;
            Note { path: wanted.path.clone(), id: head.id }.write(journal_dir)?;
            (disk, head)
        }
    };
    let own_slots = own_slots(&disk, head.slots, sources)?;
    disk.choose_way();
    disk.map_persistent(head.log_bytes());
    let own = |source: u32| FreeList::of(source * own_slots..(source + 1) * own_slots);
    let own: Vec<FreeList> = (0..sources as u32).map(own).collect();
    let common = FreeList::of(sources as u32 * own_slots..head.slots);
    Ok(Some(Arc::new(Log { disk, head, own_slots, own, common })))
}

/// Empties the log that was used before, if there was one, and uses none any more.
///
/// # Errors
/// As of [`open`].
pub fn empty(journal_dir: &Path) -> anyhow::Result<()> {
    open(None, journal_dir, 0, false).map(drop)
}

fn same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

fn fits(disk: &Disk, head: &LogHead, wanted: &Wanted) -> bool {
    head.slot_bytes == NVRAM_SLOT_BYTES && head.slots == wanted.slots(disk)
}

impl Wanted {
    /// How many slots a log on this disk has.
    fn slots(&self, disk: &Disk) -> u32 {
        let bytes = if disk.is_device { self.size_bytes.min(disk.size_bytes) } else { self.size_bytes };
        u32::try_from(bytes.saturating_sub(SLOTS_OFFSET) / NVRAM_SLOT_BYTES).unwrap_or(u32::MAX)
    }
}

/// How many slots each source has for itself: one that takes frames, and one in reserve, at least.
fn own_slots(disk: &Disk, slots: u32, sources: usize) -> anyhow::Result<u32> {
    let own = (slots / 2).checked_div(sources as u32).unwrap_or(0);
    if own < 2 {
        let needed = needed_bytes(sources);
        bail!(disk.error(&format!("is too small: {sources} sources need at least {needed} bytes (nvram_size)")));
    }
    Ok(own)
}

/// How large a log for so many sources is at least, in bytes.
pub fn needed_bytes(sources: usize) -> u64 {
    SLOTS_OFFSET + 4 * sources as u64 * NVRAM_SLOT_BYTES
}

/// Whether a block says that this is a log.
pub fn is_log(first: &Block) -> bool {
    LogHead::decode(first).is_ok()
}

/// Makes a new log, each byte of it written.
fn make(wanted: &Wanted, sources: usize, init: bool) -> anyhow::Result<(Disk, LogHead)> {
    let mut disk = Disk::open_or_create("NVRAM log", &wanted.path)?;
    // Further than any file system's first words.
    let (blocks, blank) = disk.first_blocks(1 << 20)?;
    match LogHead::decode(&blocks[0]) {
        // One without anything was made, and not noted: a crash came between.
        Ok(head) => match restore::used(&disk, &head)?.len() {
            0 => {}
            used => bail!(disk.error(&format!(
                "is the log of another destination, or of another journal_dir, with something in {used} slots: start that \
                 one. If it is of no use any more, overwrite its first block with zeros"
            ))),
        },
        Err(error) if !blank && !init => bail!(disk.error(&format!(
            "holds something else ({error}). Name another file or device as nvram, or give --init to overwrite it"
        ))),
        Err(_) => {}
    }
    let slots = wanted.slots(&disk);
    own_slots(&disk, slots, sources)?;
    let bytes = SLOTS_OFFSET + u64::from(slots) * NVRAM_SLOT_BYTES;
    if disk.is_device {
        tracing::info!("NVRAM log {}: writing all {bytes} bytes of it once", wanted.path.display());
        disk.zero(0..bytes)?;
        disk.sync()?;
    } else {
        disk.preallocate(bytes)?;
    }
    let id = random_id().context("no random number for the NVRAM log's identity")?;
    let head = LogHead { id, slot_bytes: NVRAM_SLOT_BYTES, slots };
    disk.store_block(&head.encode(), 0)?;
    Ok((disk, head))
}

impl Log {
    /// Its disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// What it says of itself.
    pub fn head(&self) -> &LogHead {
        &self.head
    }

    /// Bytes of the slots that each source has for itself.
    pub fn own_bytes(&self) -> u64 {
        u64::from(self.own_slots) * self.head.slot_bytes
    }

    /// The part of the source with this number in the configuration.
    pub fn share(self: &Arc<Log>, source: usize) -> Share {
        Share { log: self.clone(), source }
    }
}

impl Share {
    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// For the ring; valid as long as this share lives.
    pub fn target(&self) -> Target<'_> {
        self.log.disk.target()
    }

    /// A free slot: of this source's own, or of those that are for everybody. Never waits.
    pub fn take(&self) -> Option<u32> {
        self.log.own[self.source].take().or_else(|| self.log.common.take())
    }

    /// Gives a slot back that is void.
    pub fn give(&self, slot: u32) {
        let owner = (slot / self.log.own_slots) as usize;
        self.log.own.get(owner).unwrap_or(&self.log.common).give(slot);
    }
}

#[cfg(test)]
mod tests;
