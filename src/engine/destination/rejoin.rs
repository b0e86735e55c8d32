//! A fenced source becomes the destination of the side that was promoted: what only it has is kept in a file and given up,
//! and its volumes become images.
//!
//! The old journal isn't changed, and a folder like that of any destination is made beside it. The write of that folder's
//! state is the moment of change; whatever a crash leaves before it is made again.
//!
//! - Where the volumes, with what is still in the journal, are just what was promoted, that is brought to the volumes, and
//!   the state calls them whole: nothing has to be sent, and they can be promoted at once.
//! - Otherwise `lacks.map` says what may differ, in the form of a dirty bitmap. It goes to the new source with the answer to
//!   its hello, until the copy is whole; only blocks that really differ travel.

use super::super::disk::Disk;
use super::super::kept::{self, KeptError, Summary};
use super::super::memory::Memory;
use super::super::source::map_offset;
use super::start::Folder;
use crate::core::Place;
use crate::core::dirty::{self, Dirty};
use crate::core::grains::Grains;
use crate::core::index::{Action, Index};
use crate::core::recovery::{self, Halves as _, Recovered};
use crate::core::rejoin::{Divergence, Reach};
use crate::format::ids::Epoch;
use crate::format::kept::Kept;
use crate::format::superblock::{Role, Superblock};
use crate::format::wire::Fork;
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES, JOURNAL_DATA_OFFSET};
use anyhow::{Context as _, bail};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a fenced source holds.
#[derive(Debug)]
pub struct Holdings {
    superblock: Superblock,
    recovered: Recovered,
    halves: Memory,
    /// Whether fills that an earlier promote left unapplied may not be on the volumes yet.
    inherits: bool,
    /// What differs from what was promoted, as far as that is known.
    pub divergence: Divergence,
    fork: Fork,
    epoch: Epoch,
}

impl Holdings {
    /// Looks into the journal of a source that was fenced by `epoch`, which began at `fork`. Changes nothing, and takes no
    /// lock: a fenced source doesn't write any more.
    /// `folder` is that of the destination that it is to be, and may have been once.
    pub fn of(journal: &Path, folder: &Path, epoch: Epoch, fork: Fork) -> anyhow::Result<Holdings> {
        let read = || -> anyhow::Result<Holdings> {
            let file = File::open(journal)?;
            let mut copies = [[0; BLOCK_BYTES]; 2];
            for (copy, at) in copies.iter_mut().zip([0, BLOCK_BYTES as u64]) {
                file.read_exact_at(copy, at)?;
            }
            let superblock = Superblock::newest(Role::Source, [&copies[0], &copies[1]])?;
            let half_bytes = superblock.half_bytes as usize;
            let halves = Memory::map(2 * half_bytes).context("no memory for the journal")?;
            // SAFETY: the mapping is new, and nobody else knows it.
            file.read_exact_at(unsafe { halves.bytes_mut(Place(0), 2 * half_bytes) }, JOURNAL_DATA_OFFSET)?;
            let sizes = superblock.sizes();
            let mut map = vec![0; dirty::stored_bytes(&sizes, superblock.grain_bytes) as usize];
            file.read_exact_at(&mut map, map_offset(superblock.half_bytes))?;
            let (dirty, _) = Dirty::parse(superblock.source, &sizes, superblock.grain_bytes, &map);
            let parts = parts(&halves, half_bytes);
            let recovered = recovery::recover_source(&parts, superblock.source, superblock.clean)?;
            let mut divergence = Divergence::of(&superblock, &dirty, &recovered, &parts, fork.at);
            let inherits = Folder::left_unapplied(folder)? == Some(superblock.clean);
            if inherits {
                // The journal doesn't know of them; the volumes don't have them.
                divergence.lacks = Grains::all(&sizes, superblock.grain_bytes);
            }
            Ok(Holdings { superblock, recovered, divergence, inherits, halves, fork, epoch })
        };
        read().with_context(|| format!("journal {}", journal.display()))
    }

    /// Whether the volumes, with what is in the journal, are what was promoted.
    pub fn is_whole(&self) -> bool {
        self.divergence.reach == Reach::Exact && self.divergence.own.is_empty() && !self.inherits
    }

    /// The volumes' names, in order.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.superblock.volumes.iter().map(|volume| volume.name.as_str())
    }

    /// Gives up what only this side has, which is kept in the folder, and makes the volumes images. The source's engine must
    /// have ended. Returns the folder, and what was kept.
    pub fn rejoin(&self, folder: &Path, volumes: &[&Disk]) -> anyhow::Result<(Folder, Option<Summary>)> {
        super::super::disk::make_folder(folder)
            .with_context(|| format!("the folder {} can't be made", folder.display()))?;
        let kept = self.keep(folder, volumes)?;
        if self.is_whole() {
            self.flush(volumes)?;
            forget_lacks(folder)?;
        } else {
            self.store_lacks(folder)?;
        }
        let state = Superblock {
            role: Role::Destination,
            generation: 1,
            source: self.fork.source,
            epoch: self.epoch,
            fenced_by: Epoch(0),
            incarnation: 0,
            clean: self.fork.at,
            whole: self.is_whole(),
            promoted: false,
            alone: false,
            unwatched: false,
            lacking_since_unix_s: 0,
            known: Vec::new(),
            ..self.superblock.clone()
        };
        Ok((Folder::adopt(folder, &state)?, kept))
    }

    fn keep(&self, folder: &Path, volumes: &[&Disk]) -> Result<Option<Summary>, KeptError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let head = Kept {
            superblock: self.superblock.clone(),
            discarded_by: self.epoch,
            mark: self.fork.at,
            exact: self.divergence.reach == Reach::Exact,
            common: self.divergence.common,
            kept_unix_s: now.as_secs(),
            contents_bytes: 0,
            journal_bytes: 0,
        };
        let parts = parts(&self.halves, self.superblock.half_bytes as usize);
        // Where it isn't known what differs, all of the volumes would be kept: nobody has room for that. What is in the
        // journal is.
        let nothing = Grains::none(&self.superblock.sizes(), self.superblock.grain_bytes);
        let dirty = if head.exact { &self.divergence.own.dirty } else { &nothing };
        let frames = self.divergence.frames(&self.recovered);
        let frames = frames.filter(|_| !self.divergence.own.is_empty()).map(|found| kept::raw(&parts, found));
        kept::write(&folder.join(kept::file_name(&head)), &head, dirty, volumes, frames, &mut |_, _| {})
    }

    /// Brings what is in the journal to the volumes, as a flush would.
    fn flush(&self, volumes: &[&Disk]) -> anyhow::Result<()> {
        let half_bytes = self.superblock.half_bytes as usize;
        let parts = parts(&self.halves, half_bytes);
        let mut index = Index::new(volumes.len());
        for found in self.recovered.first.iter().chain(&self.recovered.second) {
            let (half, position) = (found.header.fill.half(), found.header.position);
            let payload = Place((half * half_bytes) as u64 + position + BLOCK_BYTES as u64);
            let block = parts.block(half, position).context("a frame is gone from memory")?;
            for (record, place) in recovery::records(&found.header, block, payload) {
                index.insert(&record, place);
            }
        }
        let zeros = Memory::map(CHUNK_BYTES)?;
        // SAFETY: the mapping is new, and nobody else knows it.
        let zeros = unsafe { zeros.bytes(Place(0), CHUNK_BYTES) };
        let mut pieces = Vec::new();
        for (number, disk) in volumes.iter().enumerate() {
            let mut at = 0;
            while let Some(run) = index.next_run(number as u16, at, &mut pieces) {
                at = run.offset + run.length;
                let mut to = run.offset;
                match run.action {
                    Action::Write => {
                        for (place, bytes) in &pieces {
                            // SAFETY: nobody writes to the halves any more.
                            let bytes = unsafe { self.halves.bytes(*place, *bytes as usize) };
                            disk.write(bytes, to)?;
                            to += bytes.len() as u64;
                        }
                    }
                    Action::Zero { .. } => {
                        while to < at {
                            let length = (at - to).min(zeros.len() as u64);
                            disk.write(&zeros[..length as usize], to)?;
                            to += length;
                        }
                    }
                }
            }
            disk.sync()?;
        }
        Ok(())
    }

    fn store_lacks(&self, folder: &Path) -> anyhow::Result<()> {
        let mut map = Dirty::unstored(self.fork.source, &self.superblock.sizes(), self.superblock.grain_bytes);
        map.mark_all(&self.divergence.lacks);
        let path = lacks_path(folder);
        let mut write = || {
            let file = File::create(&path)?;
            let mut bytes = Vec::new();
            while let Some(at) = map.next_write(&mut bytes) {
                file.write_all_at(&bytes, at)?;
            }
            file.sync_all()?;
            File::open(folder)?.sync_all()
        };
        write().with_context(|| format!("{} can't be written", path.display()))
    }
}

/// Both halves in memory.
fn parts(memory: &Memory, half_bytes: usize) -> [&[u8]; 2] {
    // SAFETY: after it was filled nobody writes to this mapping.
    [0, 1].map(|half| unsafe { memory.bytes(Place((half * half_bytes) as u64), half_bytes) })
}

fn lacks_path(folder: &Path) -> PathBuf {
    folder.join("lacks.map")
}

/// What the images may lack beside what the new source knows of, in the form of a dirty bitmap's blocks; `None` where there
/// is nothing to say.
pub fn lacks(folder: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let path = lacks_path(folder);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => bail!("{} can't be read: {error}", path.display()),
    }
}

/// The copy is whole, and nothing has to be said any more.
pub fn forget_lacks(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(lacks_path(folder)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{Digest, Fill, Id, Mark, Seq};
    use crate::format::superblock::Volume;
    use crate::limits::MAX_FRAME_BYTES;

    const AT: Mark = Mark { fill: Fill(3), seq: Seq(30), digest: Digest(300) };

    /// A fenced source's journal that is clean at `AT`, and a folder whose state is this one.
    fn places(state: Option<&Superblock>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        let superblock = superblock(Role::Source);
        let bytes =
            map_offset(superblock.half_bytes) + dirty::stored_bytes(&superblock.sizes(), superblock.grain_bytes);
        let file = File::create(&journal).unwrap();
        file.set_len(bytes).unwrap();
        file.write_all_at(&*superblock.encode(), superblock.copy_offset()).unwrap();
        if let Some(state) = state {
            let file = File::create(dir.path().join("state")).unwrap();
            file.set_len(2 * BLOCK_BYTES as u64).unwrap();
            file.write_all_at(&*state.encode(), state.copy_offset()).unwrap();
        }
        (dir, journal)
    }

    fn superblock(role: Role) -> Superblock {
        let volume = Volume { name: "vol0".into(), size_bytes: 1 << 20, block_bytes: 512 };
        let first = Superblock::first(role, Id([1; 16]), "alpha", MAX_FRAME_BYTES as u64, Epoch(2), vec![volume]);
        Superblock { clean: AT, whole: true, ..first }
    }

    fn holdings(state: Option<&Superblock>) -> Holdings {
        let (dir, journal) = places(state);
        Holdings::of(&journal, dir.path(), Epoch(3), Fork { at: AT, source: Id([2; 16]) }).unwrap()
    }

    #[test]
    fn a_source_of_a_promote_is_whole_only_when_all_that_was_promoted_is_on_the_volumes() {
        assert!(holdings(None).is_whole(), "no promote came before");
        let before = Mark { fill: Fill(2), seq: Seq(20), digest: Digest(200) };
        let promoted = |clean| Superblock { clean, promoted: true, known: vec![AT], ..superblock(Role::Destination) };
        assert!(holdings(Some(&promoted(AT))).is_whole(), "nothing was left unapplied");
        let unapplied = holdings(Some(&promoted(before)));
        assert!(!unapplied.is_whole(), "fills that were promoted may not be on the volumes");
        assert_eq!(unapplied.divergence.lacks.bytes(), 1 << 20, "all is compared");
        let elsewhere = Superblock { known: vec![before], ..promoted(Mark::default()) };
        assert!(holdings(Some(&elsewhere)).is_whole(), "its own fills were flushed, and so those before them");
        let receiving = Superblock { promoted: false, ..promoted(before) };
        assert!(holdings(Some(&receiving)).is_whole(), "nothing was promoted here");
    }
}
