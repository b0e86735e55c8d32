//! What if? Questions that are asked of copies, so that the world goes on as if nothing had been asked.

use crate::content::{LogPiece, SECTOR, Shelf, Vault, rot as flip_bit};
use crate::context::Context;
use crate::destination::{DestinationNode, scan};
use crate::disk::{Crash, Disk, Faults};
use crate::link::Link;
use crate::model::{Model, Volumes};
use crate::pair::Pair;
use crate::rare::Rare;
use crate::source::{Estate, LOG, MAP, SUPERBLOCKS, VOLUMES, load_map, newest};
use nbd_mirror::core::Place;
use nbd_mirror::core::recovery::staged::{Entry as LogEntry, Walk};
use nbd_mirror::core::recovery::{self, Found, Halves};
use nbd_mirror::format::frame::Header;
use nbd_mirror::format::ids::{Mark, Seq};
use nbd_mirror::format::superblock::{Phase, Role, Superblock};
use nbd_mirror::limits::BLOCK_BYTES;

/// What if the destination crashed now, and were promoted? It must come to an image that is a prefix of the order with
/// everything that was answered.
pub fn promote(mirror: &DestinationNode, how: Crash, lost: bool, model: &mut Model, cx: &mut Context) {
    // What a copy meets counts for nothing.
    let met = cx.met.clone();
    let phase = promote_copy(mirror, how, lost, model, cx);
    cx.met = met;
    cx.met.count_if(phase == Some(Phase::Staging), Rare::GhostWhileStaging);
    cx.met.count_if(phase == Some(Phase::Draining), Rare::GhostWhileDraining);
}

fn promote_copy(
    mirror: &DestinationNode,
    how: Crash,
    lost: bool,
    model: &mut Model,
    cx: &mut Context,
) -> Option<Phase> {
    let core = mirror.core.as_ref().expect("a mirror that is up");
    let lost = lost && !(core.promotable() && model.complete_there(core.base().unwrap_or(core.stored()).digest));
    let promotable = core.promotable();
    let mut ghost = mirror.ghost();
    ghost.io.crash(how, &mut cx.rng);
    ghost.start(cx).unwrap_or_else(|damage| panic!("the destination's journal files: {damage}"));
    while ghost.core.is_none() {
        assert!(ghost.step(Faults::default(), cx).expect("a disk without faults"), "the start waits for nothing");
    }
    if !ghost.core.as_ref().is_some_and(|core| core.promotable()) {
        assert!(!promotable, "it was promotable, and isn't any more after a crash");
        return None;
    }
    let phase = ghost.core.as_ref().map(|core| core.superblock().staging.phase);
    // The crash may have come behind the last write of a promote, of which only one copy was written.
    let base = phase == Some(Phase::Staging) || (ghost.promoted.is_some() && mirror.serves_base);
    let mut nowhere = Link::default();
    ghost.turn(&mut nowhere, cx);
    ghost.promote(&mut nowhere);
    ghost.turn(&mut nowhere, cx);
    while ghost.promoted.is_none() {
        let progress = ghost.step(Faults::default(), cx).expect("a disk without faults");
        assert!(progress, "the promote waits for nothing");
        ghost.turn(&mut nowhere, cx);
    }
    let mark = ghost.promoted.expect("it is promoted");
    check_promoted(&ghost, mark, base, lost || how == Crash::Power, model, cx);
    phase
}

/// The images must be the order's prefix up to the mark, on stable storage. `base`: they are what they were before a resync.
pub fn check_promoted(
    mirror: &DestinationNode,
    mark: Mark,
    base: bool,
    power: bool,
    model: &mut Model,
    cx: &mut Context,
) {
    if base {
        // They are stable, so no power cut takes anything from them.
        model.check_base(mark.digest);
    } else {
        model.check_there(mark.digest, power);
        cx.met.count_if(!model.complete_there(mark.digest), Rare::DestinationLostUnpromised);
    }
    let images = inherited_images(mirror, &cx.vault);
    for (volume, expected) in model.state(mark.digest).iter().enumerate() {
        let image = &images[volume];
        let differs = image.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "image {volume} isn't the order's prefix up to {mark}: first sector that differs");
    }
}

/// What is stable of a promoted destination.
pub fn estate(mirror: &DestinationNode, vault: &Vault) -> Estate {
    let stable = |disk: usize| mirror.io.disks[disk].stable().to_vec();
    let (state, _) = newest(Role::Destination, &stable(SUPERBLOCKS), vault).expect("a promoted destination's state");
    assert!(state.promoted, "the promote isn't durable");
    Estate { state, halves: [stable(0), stable(1)] }
}

/// The images with what is only in the journal files on top.
fn inherited_images(mirror: &DestinationNode, vault: &Vault) -> Volumes {
    let estate = estate(mirror, vault);
    let recovered = estate.recovered(vault);
    let mut images: Volumes = mirror.io.disks[VOLUMES..].iter().map(|disk| disk.stable().to_vec()).collect();
    for found in recovered.first.iter().chain(&recovered.second) {
        let (half, position) = (found.header.fill.half(), found.header.position);
        let shelf = Shelf { halves: [&estate.halves[0], &estate.halves[1]], vault };
        let block = shelf.block(half, position).expect("a header that was found");
        for (record, place) in recovery::records(&found.header, block, Place(position + BLOCK_BYTES as u64)) {
            let at = record.offset as usize / SECTOR;
            let image = &mut images[usize::from(record.volume)][at..at + record.length as usize / SECTOR];
            let from = place.0 as usize / SECTOR;
            match record.payload_bytes() {
                0 => image.fill(0),
                bytes => image.copy_from_slice(&estate.halves[half][from..from + bytes / SECTOR]),
            }
        }
    }
    images
}

/// The last record that any header in these halves says was stored on both sides.
fn vouched(role: Role, shelf: &Shelf, chain: &[Found]) -> Seq {
    let header = |found: &Found| shelf.block(found.header.fill.half(), found.header.position);
    let whole = chain.iter().filter_map(header).filter_map(|block| Header::parse(block).ok());
    whole.map(|header| word(role, &header)).max().unwrap_or_default()
}

/// What a header says to be stored, to a start of that side.
fn word(role: Role, header: &Header) -> Seq {
    if role == Role::Source { header.committed.max(header.stable_here) } else { header.committed }
}

/// What a start of that side makes of its halves.
fn recover(role: Role, shelf: &Shelf, superblock: &Superblock) -> Result<recovery::Recovered, recovery::Damage> {
    match role {
        Role::Source => recovery::recover_source(shelf, superblock.source, superblock.clean),
        Role::Destination => recovery::recover(shelf, superblock.source, superblock.clean, superblock.whole),
    }
}

/// What if a bit had flipped in a journal, or in a superblock, of a side that is then started?
pub fn rot(pair: &Pair, cx: &mut Context) {
    let (role, disks) = if cx.rng.chance(500) {
        let mut io = pair.source.io.clone();
        io.crash(Crash::Kill, &mut cx.rng);
        (Role::Source, io.disks)
    } else {
        let mut io = pair.mirror.io.clone();
        io.crash(Crash::Kill, &mut cx.rng);
        pair.mirror.nvram.lay_over(&mut io.disks, &cx.vault);
        (Role::Destination, io.disks)
    };
    match cx.rng.below(10) {
        0..3 => rot_superblock(role, disks, pair, cx),
        3..5 if role == Role::Source => rot_map(disks, cx),
        3..6 => rot_log(disks, cx),
        _ => rot_frame(role, disks, cx),
    }
}

/// A sector of a dirty bitmap that can't be read makes all that it stands for dirty, and takes no other mark away.
fn rot_map(mut disks: Vec<Disk>, cx: &mut Context) {
    let Some((superblock, _)) = newest(Role::Source, disks[SUPERBLOCKS].words(), &cx.vault) else { return };
    let (right, unreadable) = load_map(&superblock, disks[MAP].words(), &cx.vault);
    let victim = cx.rng.below(superblock.volumes.len());
    flip_bit(&mut disks[MAP].words_mut()[victim]);
    let (found, now) = load_map(&superblock, disks[MAP].words(), &cx.vault);
    if unreadable > 0 {
        return;
    }
    assert_eq!(now, 1, "a rotten sector of the dirty bitmap is read");
    for (volume, facts) in superblock.volumes.iter().enumerate() {
        let mut at = 0;
        while let Some(run) = right.grains().next(volume as u16, at) {
            for byte in run.clone().step_by(superblock.grain_bytes as usize) {
                assert!(found.grains().touched(volume as u16, byte..byte + 1), "rot takes a mark away");
            }
            at = run.end;
        }
        let all = (0..facts.size_bytes).step_by(superblock.grain_bytes as usize);
        let dirty = |byte: u64| found.grains().touched(volume as u16, byte..byte + 1);
        assert!(volume != victim || all.into_iter().all(dirty), "what can't be read isn't dirty");
    }
    cx.met.count(Rare::MapRotIsDirty);
}

/// Rot in a staging log is reported by a start, at its place.
fn rot_log(disks: Vec<Disk>, cx: &mut Context) {
    let Some((superblock, _)) = newest(Role::Destination, disks[SUPERBLOCKS].words(), &cx.vault) else { return };
    if superblock.staging.phase == Phase::Direct || superblock.staging.head == superblock.staging.tail {
        return;
    }
    let mut log = disks[LOG].words().to_vec();
    let mut walk = Walk::new(superblock.source, &superblock.staging);
    // Each entry's place, and the sectors that somebody looks at: not what only fills up a block.
    let mut entries: Vec<(u64, Vec<usize>)> = Vec::new();
    let piece = LogPiece { start: 0, words: &log[..superblock.staging.tail as usize / SECTOR], vault: &cx.vault };
    loop {
        let at = walk.at();
        let Some(entry) = walk.next(&piece).unwrap_or_else(|damage| panic!("the staging log is {damage}")) else {
            break;
        };
        let mut sectors: Vec<usize> = (at as usize / SECTOR..at as usize / SECTOR + 8).collect();
        if let LogEntry::Frame(records) = entry {
            for (record, place) in records {
                let from = place.0 as usize / SECTOR;
                sectors.extend(from..from + record.payload_bytes() / SECTOR);
            }
        }
        entries.push((at, sectors));
    }
    let (at, sectors) = &entries[cx.rng.below(entries.len())];
    flip_bit(&mut log[cx.rng.pick(sectors)]);
    match scan(&superblock, &log, &cx.vault) {
        Err(damage) => assert_eq!(damage.at, *at, "{damage}, but the rot is elsewhere"),
        Ok(_) => panic!("rot in the staging log at byte {at} goes unnoticed"),
    }
    cx.met.count(Rare::StagingRotReported);
}

fn rot_frame(role: Role, disks: Vec<Disk>, cx: &mut Context) {
    let Some((superblock, _)) = newest(role, disks[SUPERBLOCKS].words(), &cx.vault) else { return };
    if superblock.promoted {
        // Nobody looks at the journal files any more.
        return;
    }
    let counts = role == Role::Source || superblock.whole;
    let mut halves = [disks[0].words().to_vec(), disks[1].words().to_vec()];
    let shelf = Shelf { halves: [&halves[0], &halves[1]], vault: &cx.vault };
    let Ok(right) = recover(role, &shelf, &superblock) else { return };
    let chain: Vec<Found> = right.first.iter().chain(&right.second).copied().collect();
    if chain.is_empty() {
        return;
    }
    let victim = chain[cx.rng.below(chain.len())].header;
    let (half, at) = (victim.fill.half(), victim.position as usize / SECTOR);
    let block = shelf.block(half, victim.position).expect("a header that was found");
    // Not what only fills up a block: nobody ever looks at it.
    let payloads = recovery::records(&victim, block, Place(BLOCK_BYTES as u64));
    let payloads = payloads.iter().filter(|(record, _)| record.payload_bytes() > 0);
    let sectors = payloads
        .flat_map(|(record, place)| place.0 as usize / SECTOR..(place.0 as usize + record.payload_bytes()) / SECTOR);
    let sectors: Vec<usize> = (0..BLOCK_BYTES / SECTOR).chain(sectors).collect();
    flip_bit(&mut halves[half][at + cx.rng.pick(&sectors)]);
    let shelf = Shelf { halves: [&halves[0], &halves[1]], vault: &cx.vault };
    let vouched = if counts { vouched(role, &shelf, &chain) } else { Seq::default() };
    match recover(role, &shelf, &superblock) {
        Err(damage) => {
            let place = (damage.fill, damage.position);
            // Where a crash tore the next fill's first frame as well, nobody can tell which of the two is missed.
            let torn_too = right.second.is_empty() && place == (victim.fill.next(), 0);
            let right = place == (victim.fill, victim.position) || torn_too;
            assert!(right, "{damage}, but the rot is in fill {} at byte {}", victim.fill, victim.position);
            let source = role == Role::Source;
            cx.met.count(if source { Rare::SourceRotReported } else { Rare::DestinationRotReported });
        }
        Ok(found) => {
            let kept: Vec<Found> = found.first.iter().chain(&found.second).copied().collect();
            assert_eq!(kept[..], chain[..kept.len()], "what a rotten journal gives isn't a prefix of what was in it");
            assert!(found.end.seq < victim.first, "a rotten frame was taken for a whole one");
            assert!(found.end.seq >= vouched, "rot took away record {vouched}, and nobody says so");
            cx.met.count(Rare::RotLooksTorn);
        }
    }
}

fn rot_superblock(role: Role, mut disks: Vec<Disk>, pair: &Pair, cx: &mut Context) {
    let Some((before, torn)) = newest(role, disks[SUPERBLOCKS].words(), &cx.vault) else { return };
    if torn {
        return;
    }
    let copy = cx.rng.below(2);
    flip_bit(&mut disks[SUPERBLOCKS].words_mut()[copy * 8]);
    let after = newest(role, disks[SUPERBLOCKS].words(), &cx.vault);
    let (after, _) = after.expect("one rotten copy of two makes both useless");
    let shelf = Shelf { halves: [disks[0].words(), disks[1].words()], vault: &cx.vault };
    if pair.promoted.is_some() && role == Role::Destination {
        let knows = after.epoch > pair.epoch() && after.promoted;
        assert!(knows, "one rotten copy makes the destination forget that it was promoted");
    }
    if after.promoted {
        return cx.met.count(Rare::RottenSuperblockSurvived);
    }
    let (right, found) = (recover(role, &shelf, &before), recover(role, &shelf, &after));
    if let (Ok(right), Ok(found)) = (right, found) {
        // What isn't whole has nothing to lose; also where the older copy says that it was, before the order began anew.
        let counts = role == Role::Source || (before.whole && after.whole);
        assert!(
            !counts || found.end.seq >= right.end.seq,
            "a rotten superblock takes records away, and nobody says so"
        );
        cx.met.count(Rare::RottenSuperblockSurvived);
    }
}
