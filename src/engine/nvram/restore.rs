//! At a start: what a log holds is put into the journal files, and the log is empty.
//!
//! All of it can be done again after a crash at any moment: frames go where they belong, and a slot is made void only when
//! the files that have its frames are synced.

use super::super::destination::Folder;
use super::super::disk::Disk;
use super::super::memory::Memory;
use crate::core::Place;
use crate::core::recovery::Halves as _;
use crate::core::recovery::logged::{self, SlotBytes};
use crate::format::nvram::{LogHead, SlotHead};
use crate::format::superblock::Superblock;
use crate::limits::BLOCK_BYTES;
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};

/// The journal files of a source that has something in the log.
struct Files {
    superblock: Superblock,
    paths: [PathBuf; 2],
    open: [Option<Disk>; 2],
}

impl Files {
    fn write(&mut self, half: usize, bytes: &[u8], at: u64) -> anyhow::Result<()> {
        let file = match &mut self.open[half] {
            Some(file) => file,
            none => none.insert(Disk::open("journal file", &self.paths[half])?),
        };
        Ok(file.write(bytes, at)?)
    }
}

/// The slots that aren't free, and what they say of themselves.
pub fn used(disk: &Disk, head: &LogHead) -> anyhow::Result<Vec<(u32, Option<SlotHead>)>> {
    let memory = Memory::map(2 * BLOCK_BYTES).context("no memory to read the NVRAM log")?;
    let mut used = Vec::new();
    for slot in 0..head.slots {
        disk.load(&memory, Place(0), head.slot_offset(slot), 2 * BLOCK_BYTES as u64)?;
        // SAFETY: nothing is under way in this memory.
        let bytes = unsafe { memory.bytes(Place(0), 2 * BLOCK_BYTES) };
        if let Some(block) = bytes.first_chunk::<BLOCK_BYTES>()
            && bytes.iter().any(|byte| *byte != 0)
        {
            used.push((slot, SlotHead::decode(block).ok().filter(|slot| slot.log == head.id)));
        }
    }
    Ok(used)
}

/// Empties a log. `init`: frames of sources that have no folder here any more are given up.
pub fn restore(disk: &Disk, head: &LogHead, journal_dir: &Path, init: bool) -> anyhow::Result<()> {
    let used = used(disk, head)?;
    if used.is_empty() {
        return Ok(());
    }
    let (mut sources, unreadable) = folders(journal_dir)?;
    let memory = Memory::map(head.slot_bytes as usize).context("no memory to read the NVRAM log")?;
    let mut moved_bytes = 0;
    for (slot, slot_head) in used.iter().filter_map(|(slot, head)| Some((*slot, (*head)?))) {
        let Some(files) = sources.iter_mut().find(|files| files.superblock.source == slot_head.source) else {
            let what = format!("slot {slot} holds frames of source {}, which has no folder here", slot_head.source);
            if init {
                tracing::warn!("NVRAM log {}: {what}; they are given up", disk.path().display());
                continue;
            }
            let what = match &unreadable {
                Some(error) => format!("{what} that can be read: {error:#}"),
                None => what,
            };
            bail!(disk.error(&format!("{what}. Give its folder back, or give --init to give these frames up")));
        };
        if files.superblock.promoted {
            // From a promote on all that counts is in the journal files.
            continue;
        }
        let clean = files.superblock.clean.fill;
        if slot_head.fill.0 > clean.0 + 2 {
            bail!(disk.error(&format!(
                "slot {slot} holds fill {} of source \"{}\", whose state is at fill {clean}: the state is an older one than \
                 this log's. Give the folder back as it was",
                slot_head.fill, files.superblock.name
            )));
        }
        disk.load(&memory, Place(0), head.slot_offset(slot), head.slot_bytes)?;
        // SAFETY: nothing is under way in this memory.
        let bytes = &unsafe { memory.bytes(Place(0), head.slot_bytes as usize) }[BLOCK_BYTES..];
        let view = SlotBytes { start: slot_head.start, half_bytes: files.superblock.half_bytes, bytes };
        let frames = logged::frames(&view, &slot_head, files.superblock.clean);
        if let Some(last) = frames.last() {
            let end = last.header.position + last.header.frame_bytes();
            debug_assert!(end <= view.half_bytes());
            let length = end - slot_head.start;
            files.write(slot_head.fill.half(), &bytes[..length as usize], slot_head.start)?;
            moved_bytes += length;
        }
    }
    for file in sources.iter().flat_map(|files| files.open.iter().flatten()) {
        file.sync()?;
    }
    for part in logged::void(head.slot_bytes) {
        for (slot, _) in &used {
            let at = head.slot_offset(*slot);
            disk.zero(at + part.start..at + part.end)?;
        }
        disk.sync()?;
    }
    tracing::info!(
        "NVRAM log {}: {moved_bytes} bytes of frames were put into the journal files",
        disk.path().display()
    );
    Ok(())
}

/// All folders of sources, as their states say, and what is wrong with one whose state can't be read. That one's source
/// fails by itself; others needn't wait for it. One that bears another name is somebody's copy.
fn folders(journal_dir: &Path) -> anyhow::Result<(Vec<Files>, Option<anyhow::Error>)> {
    let (mut found, mut wrong) = (Vec::new(), None);
    let unreadable = || format!("the folder {} can't be read", journal_dir.display());
    for entry in std::fs::read_dir(journal_dir).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let state = Folder::state(&path).unwrap_or_else(|error| {
            tracing::warn!("NVRAM log: {error:#}");
            wrong = Some(error);
            None
        });
        if let Some(superblock) = state.filter(|state| path.file_name().is_some_and(|name| name == state.name.as_str()))
        {
            found.push(Files { superblock, paths: Folder::journal_files(&path), open: [None, None] });
        }
    }
    Ok((found, wrong))
}
