//! The shared log, as the engine has it: slots that are given and come back, and what a start makes of what is in them.

use super::Op;
use crate::content::{BLOCK, SECTOR, Slot, Vault, Word};
use crate::context::Context;
use crate::disk::{Disk, Io};
use crate::source::{NVRAM, NVRAM_BYTES, SUPERBLOCKS, newest};
use nbd_mirror::core::recovery::logged::{self, FREED};
use nbd_mirror::format::nvram::SlotHead;
use nbd_mirror::format::superblock::{Role, Superblock};
use nbd_mirror::limits::{BLOCK_BYTES, MAX_FRAME_BYTES};

/// Frames of a half, and where they go in it, in sectors.
pub type Laid = Vec<(usize, usize, Vec<Word>)>;

#[derive(Debug, Clone)]
pub struct Nvram {
    /// Whether the configuration names it; what is in it counts even if not.
    pub used: bool,
    slot_bytes: u64,
    free: Vec<u32>,
    /// At a start: slots that are made void, and what is still to be done for that.
    voiding: Vec<u32>,
    left: usize,
}

impl Nvram {
    pub fn none() -> Nvram {
        Nvram { used: false, slot_bytes: NVRAM_BYTES as u64, free: Vec::new(), voiding: Vec::new(), left: 0 }
    }

    pub fn choose(cx: &mut Context) -> Nvram {
        // Slots of which many are needed for a fill, and such that hold one.
        let slot_bytes = cx.rng.pick(&[48 << 10, 256 << 10, (BLOCK_BYTES + MAX_FRAME_BYTES) as u64]);
        Nvram { used: cx.rng.chance(500), slot_bytes, ..Nvram::none() }
    }

    pub fn slot_bytes(&self) -> Option<u64> {
        self.used.then_some(self.slot_bytes)
    }

    fn slots(&self) -> u32 {
        // Few enough that there are none left now and then.
        (NVRAM_BYTES as u64 / self.slot_bytes).min(6) as u32
    }

    /// Where a slot begins, in sectors.
    pub fn offset(&self, slot: u32) -> usize {
        slot as usize * self.slot_bytes as usize / SECTOR
    }

    pub fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    pub fn give(&mut self, slot: u32) {
        assert!(!self.free.contains(&slot), "slot {slot} is given back twice");
        self.free.insert(0, slot);
    }

    pub fn free(&self, slot: u32, io: &mut Io<Op>) {
        let at = self.offset(slot) + FREED.start as usize / SECTOR;
        io.write(Op::FreeSlot(slot), NVRAM, at, vec![0; (FREED.end - FREED.start) as usize / SECTOR], true);
    }

    fn words<'a>(&self, disks: &'a [Disk], slot: u32) -> &'a [Word] {
        &disks[NVRAM].words()[self.offset(slot)..][..self.slot_bytes as usize / SECTOR]
    }

    /// The slots that aren't free.
    fn in_use(&self, disks: &[Disk]) -> Vec<u32> {
        let used = |slot: &u32| self.words(disks, *slot)[..2 * BLOCK].iter().any(|word| *word != 0);
        (0..self.slots()).filter(used).collect()
    }

    /// What a start lays over the journal files, and which slots it makes void then.
    pub fn laid(&mut self, disks: &[Disk], superblock: &Superblock, vault: &Vault) -> Laid {
        self.free = (0..self.slots()).collect();
        self.voiding = self.in_use(disks);
        self.found(disks, superblock, vault)
    }

    fn found(&self, disks: &[Disk], superblock: &Superblock, vault: &Vault) -> Laid {
        let mut laid = Laid::new();
        for slot in self.in_use(disks).into_iter().filter(|_| !superblock.promoted) {
            let words = self.words(disks, slot);
            let Some(head) = vault.block(words).and_then(|block| SlotHead::decode(block).ok()) else { continue };
            let frames = Slot { start: head.start, half_bytes: superblock.half_bytes, words: &words[BLOCK..], vault };
            let found = logged::frames(&frames, &head, superblock.clean);
            if let Some(last) = found.last() {
                let bytes = last.header.position + last.header.frame_bytes() - head.start;
                let words = words[BLOCK..][..bytes as usize / SECTOR].to_vec();
                laid.push((head.fill.half(), head.start as usize / SECTOR, words));
            }
        }
        laid
    }

    /// The journal files as a start would have them.
    pub fn lay_over(&self, disks: &mut [Disk], vault: &Vault) {
        let Some((superblock, _)) = newest(Role::Destination, disks[SUPERBLOCKS].words(), vault) else { return };
        for (half, at, words) in self.found(disks, &superblock, vault) {
            disks[half].words_mut()[at..at + words.len()].copy_from_slice(&words);
        }
    }

    /// Begins to empty the log; false: it is empty.
    pub fn begin(&mut self, laid: Laid, io: &mut Io<Op>) -> bool {
        if self.voiding.is_empty() {
            return false;
        }
        self.left = laid.len();
        for (half, at, words) in laid {
            io.write(Op::Lay, half, at, words, false);
        }
        if self.left == 0 {
            io.sync(Op::Laid, &[0, 1]);
        }
        true
    }

    /// Goes on with it; true: it is empty.
    pub fn go_on(&mut self, op: Op, io: &mut Io<Op>) -> bool {
        match op {
            Op::Lay => {
                self.left -= 1;
                if self.left == 0 {
                    io.sync(Op::Laid, &[0, 1]);
                }
            }
            Op::VoidSlot(part) => {
                self.left -= 1;
                if self.left == 0 {
                    io.sync(Op::VoidedSlots(part), &[NVRAM]);
                }
            }
            Op::Laid => self.void(0, io),
            Op::VoidedSlots(0) => self.void(1, io),
            _ => return true,
        }
        false
    }

    fn void(&mut self, part: usize, io: &mut Io<Op>) {
        let range = logged::void(self.slot_bytes)[part].clone();
        let sectors = (range.end - range.start) as usize / SECTOR;
        self.left = self.voiding.len();
        for slot in &self.voiding {
            let at = self.offset(*slot) + range.start as usize / SECTOR;
            io.write(Op::VoidSlot(part), NVRAM, at, vec![0; sectors], false);
        }
    }
}
