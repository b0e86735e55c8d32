use super::*;
use crate::format::ids::{Digest, Fill, Seq};

const SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;

/// A version with many volumes, so that it fills several sectors.
fn version(generation: u64) -> Superblock {
    // The odd ones change the first sector only, every fourth one changes all, the others some.
    let size = |volume: u64| match generation % 4 {
        0 => generation * 4096,
        2 if volume.is_multiple_of(5) => generation * 4096,
        _ => 1 << 30,
    };
    let volume = |n: u64| Volume { name: format!("vol{n}"), size_bytes: size(n), block_bytes: 512 };
    let volumes = (0..MAX_VOLUMES as u64).map(volume).collect();
    let mark = |n: u64| Mark { fill: Fill(n), seq: Seq(10 * n), digest: Digest(9) };
    Superblock {
        generation,
        incarnation: generation,
        clean: mark(generation),
        whole: true,
        alone: generation % 2 == 1,
        lacking_since_unix_s: generation * 3,
        known: (0..generation % 4 * 10).map(mark).collect(),
        staging: Staging {
            phase: Phase::Draining,
            head: 4096,
            tail: 8192 * generation,
            before: mark(3),
            base: mark(2),
        },
        ..Superblock::first(Role::Source, Id([3; 16]), "alpha", 8 << 20, Epoch(1), volumes)
    }
}

/// What a write leaves that a power cut has torn: of the sectors in `new` the new content, of the others the old.
fn torn(old: &Block, new: &Block, which: u32) -> Block {
    let mut block = *old;
    for sector in (0..SECTORS).filter(|sector| which & (1 << sector) != 0) {
        let at = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
        block[at.clone()].copy_from_slice(&new[at]);
    }
    block
}

fn newest(copies: &[Block; 2]) -> Result<Superblock, BlockError> {
    Superblock::newest(Role::Source, [&copies[0], &copies[1]])
}

fn slot(superblock: &Superblock) -> usize {
    superblock.copy_offset() as usize / BLOCK_BYTES
}

#[test]
fn round_trip_with_as_many_volumes_as_allowed() {
    let superblock = version(8);
    assert_eq!(Superblock::decode(Role::Source, &superblock.encode()), Ok(superblock.clone()));
    assert!(matches!(Superblock::decode(Role::Destination, &superblock.encode()), Err(BlockError::Magic(_))));
}

/// Every way to tear every write, in both places, over versions that differ in one sector, in some and in all.
#[test]
fn a_torn_write_leaves_the_old_version_or_the_new_one() {
    let mut copies = [*version(2).encode(); 2];
    let (mut left_old, mut left_new) = (0, 0);
    for generation in 3..=12 {
        let (old, new) = (newest(&copies).unwrap(), version(generation));
        assert_eq!(old, version(generation - 1));
        let (place, block) = (slot(&new), new.encode());
        for which in 0..1 << SECTORS {
            let mut crashed = copies;
            crashed[place] = torn(&copies[place], &block, which);
            let found = newest(&crashed).unwrap_or_else(|error| panic!("version {generation}, {which:08b}: {error}"));
            let done = crashed[place] == *block;
            assert_eq!(found, if done { new.clone() } else { old.clone() }, "version {generation}, {which:08b}");
            if done {
                left_new += 1
            } else {
                left_old += 1
            }
            // Whoever goes on from there writes over the torn copy, never over the one that it goes on from.
            let next = Superblock { generation: found.generation + 1, ..found.clone() };
            assert!(crashed[1 - slot(&next)] == *found.encode(), "version {generation}, {which:08b}");
        }
        copies[place] = *block;
    }
    assert!(left_old > 1000 && left_new > 10, "{left_old}, {left_new}");
}

/// Persistent memory is torn between any two units of 8 bytes. A copy like that isn't whole, nor something foreign.
#[test]
fn a_copy_that_is_torn_within_a_sector_is_known_as_torn() {
    const UNIT: usize = 8;
    let mut state = 1_u64;
    for generation in 3..=12 {
        let (old, new) = (*version(generation - 1).encode(), *version(generation).encode());
        let differ = |at: &usize| old[*at..][..UNIT] != new[*at..][..UNIT];
        let units: Vec<usize> = (0..BLOCK_BYTES).step_by(UNIT).filter(differ).collect();
        for round in 0..300 {
            let mut torn = old;
            for at in &units {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                // From few new units to many.
                if (state >> 33) % 300 < round {
                    torn[*at..][..UNIT].copy_from_slice(&new[*at..][..UNIT]);
                }
            }
            match Superblock::decode(Role::Source, &torn) {
                Ok(_) => assert!(torn == old || torn == new, "version {generation}, round {round}"),
                Err(error) => assert!(matches!(error, BlockError::Checksum { .. }), "version {generation}: {error}"),
            }
        }
    }
}

/// A second crash, at the write that goes over what the first one has torn.
#[test]
fn a_write_over_a_torn_copy_may_be_torn_as_well() {
    for generation in [5, 8] {
        let mut copies = [*version(2).encode(); 2];
        for before in 3..generation {
            copies[slot(&version(before))] = *version(before).encode();
        }
        let old = newest(&copies).unwrap();
        let (lost, next) =
            (version(generation), Superblock { incarnation: 77, fenced_by: Epoch(5), ..version(generation) });
        let place = slot(&next);
        let mut volumes = next.volumes.clone();
        volumes.iter_mut().for_each(|volume| volume.size_bytes += 512);
        let next = Superblock { volumes, ..next };
        let (lost_block, next_block) = (lost.encode(), next.encode());
        for first in 0..1 << SECTORS {
            let mut crashed = copies;
            crashed[place] = torn(&copies[place], &lost_block, first);
            if crashed[place] == *lost_block {
                continue;
            }
            // A fifth of the second crashes, others each time.
            for second in (0..1u32 << SECTORS).filter(|second| (second * 7 + first).is_multiple_of(5)) {
                let mut again = crashed;
                again[place] = torn(&crashed[place], &next_block, second);
                let found = newest(&again).unwrap();
                // What was torn first comes back only where the two are alike in all sectors that were lost; nothing
                // has happened in between, so it is as if its write had been completed late.
                let whole = |version: &Superblock| (again[place] == *version.encode()).then(|| version.clone());
                let expected = whole(&next).or_else(|| whole(&lost)).unwrap_or_else(|| old.clone());
                assert!(found == expected, "{first:08b}, {second:08b}");
            }
        }
    }
}

/// From the claim to the first version that is used, over anything: at each point either nothing counts yet, and a
/// start knows that a making was cut off, or the first version does.
#[test]
fn a_torn_making_is_known_as_one() {
    let older = |generation: u64| Superblock { name: "beta".into(), source: Id([9; 16]), ..version(generation) };
    let mut foreign = [0u8; BLOCK_BYTES];
    foreign.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 % 251) as u8 | 1);
    let blank = [0; BLOCK_BYTES];
    let before = [
        [blank; 2],
        [foreign; 2],
        [blank, foreign],
        [*older(8).encode(), *older(9).encode()],
        [*older(2).encode(), *older(2).encode()],
        [*version(2).encode(), *version(2).encode()],
        [*version(30).encode(), *version(29).encode()],
    ];
    let second = Superblock { generation: 2, source: Id([4; 16]), ..version(2) };
    let first = Superblock { generation: 1, ..second.clone() };
    let (claim, blocks) = (encode_claim("alpha"), [first.encode(), second.encode()]);
    for start in before {
        let mut copies = start;
        for (step, (place, new)) in [(0, &claim), (1, &blocks[0]), (0, &blocks[1])].into_iter().enumerate() {
            for which in 0..1 << SECTORS {
                let mut crashed = copies;
                crashed[place] = torn(&copies[place], new, which);
                let claimed = claimed_by(&crashed[0]).as_deref() == Some("alpha");
                // The first sector decides at once: it is never torn.
                let expected = match step {
                    0 => which & 1 != 0,
                    1 => true,
                    _ => which & 1 == 0,
                };
                assert_eq!(claimed, expected, "step {step}, {which:08b}");
                // Before it, what was there is there, or broken; nothing of ours yet.
                if step == 0 && !claimed {
                    let found = newest(&crashed).ok().map(|found| *found.encode());
                    assert!(found.is_none_or(|found| start.contains(&found)), "{which:08b}");
                }
                if step == 2 && !claimed {
                    let whole = crashed[0] == *blocks[1];
                    assert_eq!(newest(&crashed).as_ref(), Ok(if whole { &second } else { &first }), "{which:08b}");
                }
            }
            copies[place] = **new;
        }
        assert_eq!(newest(&copies), Ok(second.clone()));
    }
}

#[test]
fn a_claim_is_nothing_else() {
    let claim = encode_claim("alpha");
    assert!(claim[SECTOR_BYTES..].iter().all(|byte| *byte == 0), "it fits into a sector");
    assert!(matches!(Superblock::decode(Role::Source, &claim), Err(BlockError::Magic(_))));
    assert_eq!(claimed_by(&version(2).encode()), None);
    for bit in 0..SECTOR_BYTES * 8 {
        let mut damaged = claim.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(claimed_by(&damaged), None, "bit {bit}");
    }
}

/// One copy rots while nobody looks, then the write of the other is torn: both are lost, and that is said.
#[test]
fn a_torn_write_beside_a_rotten_copy_is_an_error_and_no_mixture() {
    let (old, new) = (version(8), version(11));
    let mut rotten = version(10).encode();
    rotten[700] ^= 1;
    let (mut errors, mut found_new) = (0, 0);
    for which in 0..1 << SECTORS {
        let copy = torn(&old.encode(), &new.encode(), which);
        match newest(&[*rotten, copy]) {
            Ok(found) if copy == *old.encode() => assert_eq!(found, old),
            Ok(found) => {
                assert_eq!(found, new);
                found_new += 1;
            }
            Err(error) => {
                assert!(matches!(error, BlockError::Checksum { .. }), "{error}");
                errors += 1;
            }
        }
    }
    assert!(errors > 200 && found_new > 0, "{errors}, {found_new}");
}

#[test]
fn numbers_that_nobody_counted_up_to_are_refused() {
    let most = block::MAX_NUMBER;
    let mark = |fill, seq| Mark { fill: Fill(fill), seq: Seq(seq), digest: Digest(u64::MAX) };
    for bad in [
        Superblock { generation: most, ..version(2) },
        Superblock { epoch: Epoch(u64::MAX), ..version(2) },
        Superblock { fenced_by: Epoch(u64::MAX), ..version(2) },
        Superblock { incarnation: u64::MAX, ..version(2) },
        Superblock { clean: mark(most, 1), ..version(2) },
        Superblock { clean: mark(1, u64::MAX), ..version(2) },
    ] {
        assert_eq!(Superblock::decode(Role::Source, &bad.encode()), Err(BlockError::Field("number")));
    }
    let last = Superblock { generation: most - 1, clean: mark(most - 1, most - 1), ..version(2) };
    assert_eq!(Superblock::decode(Role::Source, &last.encode()), Ok(last));
}

/// A crash tears the last step of a making; the next start's first version must spare the copy that is whole.
#[test]
fn the_version_after_a_torn_making_goes_over_the_torn_copy() {
    let (claim, second) = (encode_claim("alpha"), version(2));
    let first = Superblock { generation: 1, ..second.clone() };
    let mut tried = 0;
    for which in 0..1 << SECTORS {
        let copies = [torn(&claim, &second.encode(), which), *first.encode()];
        if claimed_by(&copies[0]).is_some() || copies[0] == *second.encode() {
            continue;
        }
        let found = newest(&copies).unwrap();
        let next = Superblock { generation: found.generation + 1, ..found.clone() };
        assert!(copies[1 - slot(&next)] == *found.encode(), "{which:08b}: the only whole copy is written over");
        tried += 1;
    }
    assert!(tried > 100, "{tried}");
}
