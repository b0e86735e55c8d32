//! The dirty bitmap: which grains of the volumes the destination may not hold as they are here.
//!
//! It is kept behind the journal's halves and is only written when a half becomes clean, before the superblock that says
//! so. So no write pays for it, and a crash loses no mark: what isn't marked yet is still in the journal. A mark too many
//! costs a comparison; so marks are taken away in memory first, and from the disk with whatever is written next.

use super::grains::Grains;
use crate::format::block::Block;
use crate::format::ids::Id;
use crate::format::map::{self, SECTOR_BITS, SECTOR_BYTES, SECTOR_WORDS};
use crate::limits::BLOCK_BYTES;
use std::collections::BTreeSet;
use std::ops::Range;

/// Sectors of one block.
const BLOCK_SECTORS: u32 = (BLOCK_BYTES / SECTOR_BYTES) as u32;
/// Blocks that are written at once.
const MAX_BLOCKS: usize = 32;

/// Bytes that one write of the bitmap has at the most.
pub const MAX_WRITE_BYTES: usize = MAX_BLOCKS * BLOCK_BYTES;

/// The bitmap of one source.
#[derive(Debug)]
pub struct Dirty {
    source: Id,
    grains: Grains,
    /// The first sector of each volume, and the end.
    sectors: Vec<u32>,
    /// Blocks that differ from what is stored.
    stale: BTreeSet<u32>,
}

/// The first sector of each volume, and the end.
fn sectors(sizes: &[u64], grain_bytes: u32) -> Vec<u32> {
    let mut at = 0;
    let mut first = vec![0];
    for size in sizes {
        at += size.div_ceil(u64::from(grain_bytes)).div_ceil(SECTOR_BITS) as u32;
        first.push(at);
    }
    first
}

/// Bytes that the bitmap of such volumes takes up when stored, in whole blocks.
pub fn stored_bytes(sizes: &[u64], grain_bytes: u32) -> u64 {
    let end = sectors(sizes, grain_bytes).last().copied().unwrap_or_default();
    u64::from(end.div_ceil(BLOCK_SECTORS)) * BLOCK_BYTES as u64
}

impl Dirty {
    /// The bitmap as it is stored: `block` gives the blocks, by number. What can't be read counts as dirty; how many
    /// sectors that are comes back as well.
    pub fn load<'a>(
        source: Id,
        sizes: &[u64],
        grain_bytes: u32,
        mut block: impl FnMut(u32) -> &'a Block,
    ) -> (Dirty, u32) {
        let mut dirty = Dirty::clean(source, sizes, grain_bytes);
        let mut unreadable = 0;
        let span = SECTOR_BITS * u64::from(grain_bytes);
        for volume in 0..sizes.len() {
            for sector in dirty.sectors[volume]..dirty.sectors[volume + 1] {
                let at = (sector % BLOCK_SECTORS) as usize * SECTOR_BYTES;
                let bytes = block(sector / BLOCK_SECTORS)[at..].first_chunk();
                let start = u64::from(sector - dirty.sectors[volume]) * span;
                match bytes.and_then(|bytes| map::decode(sector, source, bytes)) {
                    Some(words) => dirty.adopt(volume as u16, start, &words, u64::from(grain_bytes)),
                    None => {
                        unreadable += 1;
                        dirty.grains.insert(volume as u16, start..start + span);
                        dirty.stale.insert(sector / BLOCK_SECTORS);
                    }
                }
            }
        }
        (dirty, unreadable)
    }

    fn adopt(&mut self, volume: u16, start: u64, words: &[u64], grain: u64) {
        for (index, word) in words.iter().enumerate() {
            // Run by run: mostly all are set, or few.
            let (mut rest, mut bit) = (*word, 0);
            while rest != 0 {
                bit += rest.trailing_zeros();
                let run = (word >> bit).trailing_ones();
                let at = start + (index as u64 * 64 + u64::from(bit)) * grain;
                self.grains.insert(volume, at..at + u64::from(run) * grain);
                bit += run;
                rest = word.checked_shr(bit).unwrap_or(0);
            }
        }
    }

    /// As [`Dirty::load`], from all of it in a row: whole blocks.
    pub fn parse(source: Id, sizes: &[u64], grain_bytes: u32, stored: &[u8]) -> (Dirty, u32) {
        let (blocks, _) = stored.as_chunks::<BLOCK_BYTES>();
        Dirty::load(source, sizes, grain_bytes, |block| &blocks[block as usize])
    }

    /// Nothing is dirty, and nothing is stored that can be read: all of it is to be written.
    pub fn unstored(source: Id, sizes: &[u64], grain_bytes: u32) -> Dirty {
        let mut dirty = Dirty::clean(source, sizes, grain_bytes);
        dirty.fill();
        dirty.clear();
        dirty
    }

    /// Nothing is dirty, here and where it is stored.
    pub fn clean(source: Id, sizes: &[u64], grain_bytes: u32) -> Dirty {
        Dirty {
            source,
            grains: Grains::none(sizes, grain_bytes),
            sectors: sectors(sizes, grain_bytes),
            stale: BTreeSet::new(),
        }
    }

    /// What is dirty.
    pub fn grains(&self) -> &Grains {
        &self.grains
    }

    /// Everything is dirty from now on.
    pub fn fill(&mut self) {
        for volume in 0..self.grains.sizes().len() {
            self.mark(volume as u16, 0..self.grains.sizes()[volume]);
        }
    }

    /// Nothing is dirty any more.
    pub fn clear(&mut self) {
        for volume in 0..self.grains.sizes().len() {
            self.unmark(volume as u16, 0..self.grains.sizes()[volume]);
        }
    }

    /// This range has changed.
    pub fn mark(&mut self, volume: u16, range: Range<u64>) {
        if self.grains.insert(volume, range.clone()) {
            self.touch(volume, range);
        }
    }

    /// All of these have changed, or may have.
    pub fn mark_all(&mut self, grains: &Grains) {
        for volume in 0..grains.sizes().len() as u16 {
            let mut at = 0;
            while let Some(run) = grains.next(volume, at) {
                at = run.end;
                self.mark(volume, run);
            }
        }
    }

    /// The destination has this range as it is here.
    pub fn unmark(&mut self, volume: u16, range: Range<u64>) {
        if self.grains.remove(volume, range.clone()) {
            self.touch(volume, range);
        }
    }

    fn touch(&mut self, volume: u16, range: Range<u64>) {
        let first = self.sectors[usize::from(volume)];
        let span = SECTOR_BITS * self.grains.grain_bytes();
        let end = range.end.min(self.grains.sizes()[usize::from(volume)]);
        let (from, to) = (first + (range.start / span) as u32, first + (end.saturating_sub(1) / span) as u32);
        self.stale.extend(from / BLOCK_SECTORS..=to / BLOCK_SECTORS);
    }

    /// Whether what is stored says the same.
    pub fn is_stored(&self) -> bool {
        self.stale.is_empty()
    }

    /// What is to be written next: the bytes are put into `bytes`, and where they go, counted from the bitmap's start,
    /// comes back.
    pub fn next_write(&mut self, bytes: &mut Vec<u8>) -> Option<u64> {
        let first = self.stale.pop_first()?;
        let mut next = first + 1;
        while ((next - first) as usize) < MAX_BLOCKS && self.stale.remove(&next) {
            next += 1;
        }
        bytes.clear();
        bytes.resize((next - first) as usize * BLOCK_BYTES, 0);
        for (index, sector) in bytes.chunks_exact_mut(SECTOR_BYTES).enumerate() {
            let number = first * BLOCK_SECTORS + index as u32;
            if let (Some(sector), Some(words)) = (sector.first_chunk_mut(), self.sector(number)) {
                map::encode(number, self.source, words, sector);
            }
        }
        Some(u64::from(first) * BLOCK_BYTES as u64)
    }

    /// The bits of a sector; `None` behind the last one.
    fn sector(&self, number: u32) -> Option<&[u64]> {
        let volume = self.sectors.partition_point(|first| *first <= number).checked_sub(1)?;
        if volume >= self.grains.sizes().len() {
            return None;
        }
        let from = (number - self.sectors[volume]) as usize * SECTOR_WORDS;
        let words = self.grains.words(volume);
        Some(&words[from.min(words.len())..(from + SECTOR_WORDS).min(words.len())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [u64; 3] = [4096, 700 << 20, 300 << 20];

    fn store(dirty: &mut Dirty, disk: &mut [Block]) -> usize {
        let (mut bytes, mut writes) = (Vec::new(), 0);
        while let Some(at) = dirty.next_write(&mut bytes) {
            assert!(bytes.len() <= MAX_WRITE_BYTES);
            for (n, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
                disk[at as usize / BLOCK_BYTES + n].copy_from_slice(block);
            }
            writes += 1;
        }
        writes
    }

    fn load(disk: &[Block]) -> (Dirty, u32) {
        Dirty::load(Id([1; 16]), &SIZES, 4096, |block| &disk[block as usize])
    }

    #[test]
    fn what_is_stored_comes_back() {
        let blocks = stored_bytes(&SIZES, 4096) as usize / BLOCK_BYTES;
        let mut disk = vec![[0; BLOCK_BYTES]; blocks];
        let (mut dirty, unreadable) = load(&disk);
        assert!(unreadable > 0 && dirty.grains() == &Grains::all(&SIZES, 4096), "what was never written is dirty");
        dirty.clear();
        store(&mut dirty, &mut disk);
        assert!(dirty.is_stored() && load(&disk).0.grains().is_empty() && load(&disk).1 == 0);
        for (volume, at) in [(0, 0), (1, 0), (1, (700 << 20) - 1), (2, 5000), (2, 200 << 20)] {
            dirty.mark(volume, at..at + 1);
        }
        assert!(!dirty.is_stored());
        assert_eq!(store(&mut dirty, &mut disk), 3, "neighbours go together");
        dirty.mark(2, 5000..5001);
        assert!(dirty.is_stored(), "what was marked already costs no write");
        assert_eq!(load(&disk).0.grains(), dirty.grains());
        dirty.unmark(2, 4096..8192);
        store(&mut dirty, &mut disk);
        assert_eq!(load(&disk).0.grains(), dirty.grains());
    }

    #[test]
    fn a_torn_write_leaves_each_sector_old_or_new() {
        let blocks = stored_bytes(&SIZES, 4096) as usize / BLOCK_BYTES;
        let mut old = vec![[0; BLOCK_BYTES]; blocks];
        let (mut dirty, _) = load(&old);
        dirty.clear();
        store(&mut dirty, &mut old);
        let before = dirty.grains().clone();
        let mut new = old.clone();
        dirty.mark(1, 0..100 << 20);
        store(&mut dirty, &mut new);
        for which in 0..256u32 {
            let mut torn = old.clone();
            for sector in (0..8).filter(|sector| which & (1 << sector) != 0) {
                let at = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                torn[0][at.clone()].copy_from_slice(&new[0][at]);
            }
            let (found, unreadable) = load(&torn);
            assert_eq!(unreadable, 0);
            for at in (0..700u64 << 20).step_by(1 << 20) {
                let is = |grains: &Grains| grains.touched(1, at..at + 1);
                assert!(is(found.grains()) == is(&before) || is(found.grains()) == is(dirty.grains()));
            }
            if which == 0 {
                assert_eq!(found.grains(), &before);
            }
        }
    }

    #[test]
    fn an_unreadable_sector_is_all_dirty() {
        let blocks = stored_bytes(&SIZES, 4096) as usize / BLOCK_BYTES;
        let mut disk = vec![[0; BLOCK_BYTES]; blocks];
        let (mut dirty, _) = load(&disk);
        dirty.clear();
        store(&mut dirty, &mut disk);
        disk[0][SECTOR_BYTES + 100] ^= 1;
        let (found, unreadable) = load(&disk);
        assert_eq!(unreadable, 1);
        assert_eq!(found.grains().next(1, 0), Some(0..COPY_WINDOW));
        assert_eq!(found.grains().bytes(), SECTOR_BITS * 4096);
        assert!(!found.is_stored(), "it is mended by the next write");
    }

    const COPY_WINDOW: u64 = crate::limits::COPY_WINDOW_BYTES;
}
