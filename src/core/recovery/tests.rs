use super::copies::{Copies, Owner, Reading};
use super::*;
use crate::format::checksum::crc32c;
use crate::format::frame::Kind;
use crate::format::ids::{Digest, Epoch};
use crate::format::superblock::{Role, Superblock, Volume, encode_claim};

const HALF: usize = 64 * BLOCK_BYTES;

/// Writes one-record frames as a source would.
struct Journal {
    halves: [Vec<u8>; 2],
    at: [usize; 2],
    end: Mark,
}

impl Journal {
    fn new() -> Journal {
        let end = Mark { fill: Fill(4), seq: Seq(10), digest: Digest(1) };
        Journal { halves: [vec![0; HALF], vec![0; HALF]], at: [0, 0], end }
    }

    fn frame(&mut self, fill: u64, incarnation: u64, committed: u64, byte: u8) {
        let half = Fill(fill).half();
        let payload = [byte; BLOCK_BYTES];
        let record = Record {
            volume: 0,
            kind: Kind::Write,
            flags: 0,
            offset: 0,
            length: BLOCK_BYTES as u32,
            checksum: crc32c(&payload),
        };
        let header = Header {
            flags: 0,
            source: Id([1; 16]),
            epoch: Epoch(1),
            incarnation,
            fill: Fill(fill),
            position: self.at[half] as u64,
            first: self.end.seq.next(),
            committed: Seq(committed),
            stable_here: Seq(committed),
            previous: self.end.digest,
            payload_bytes: 0,
            count: 0,
        };
        let mut block = [0; BLOCK_BYTES];
        let digest = header.encode([record].iter(), &mut block);
        let at = self.at[half];
        self.halves[half][at..at + BLOCK_BYTES].copy_from_slice(&block);
        self.halves[half][at + BLOCK_BYTES..at + 2 * BLOCK_BYTES].copy_from_slice(&payload);
        self.at[half] += 2 * BLOCK_BYTES;
        self.end = Mark { fill: Fill(fill), seq: header.first, digest };
    }

    fn recover(&self) -> Result<Recovered, Damage> {
        recover(&[&self.halves[0][..], &self.halves[1]], Id([1; 16]), Journal::new().end, true)
    }
}

#[test]
fn two_fills_in_order() {
    let mut journal = Journal::new();
    assert_eq!(journal.recover().unwrap().end, journal.end);
    (0..3).for_each(|_| journal.frame(5, 1, 10, 1));
    (0..2).for_each(|_| journal.frame(6, 1, 13, 2));
    let found = journal.recover().unwrap();
    assert_eq!((found.first.len(), found.second.len(), found.end), (3, 2, journal.end));
}

/// Two frames were under way when power failed: the first was torn, the second arrived. After the restart another
/// frame of the same size took the first one's place. The second, which was never answered, must not come back.
#[test]
fn a_frame_left_over_behind_a_torn_one_stays_dead() {
    let mut journal = Journal::new();
    journal.frame(5, 1, 10, 1);
    let (at, end) = (journal.at, journal.end);
    journal.frame(5, 1, 10, 2);
    journal.frame(5, 1, 10, 3);
    journal.halves[1][at[1] + BLOCK_BYTES] ^= 1;
    assert_eq!(journal.recover().unwrap().end, end);
    (journal.at, journal.end) = (at, end);
    journal.frame(5, 2, 10, 4);
    assert_eq!(journal.recover().unwrap().end, journal.end);
}

/// A frame was torn, the one behind it wasn't; then the torn one is sent again, as it was. What was behind it doesn't
/// follow it any more: the source has lost it, and has gone on in the next fill.
#[test]
fn what_stood_behind_a_torn_frame_does_not_follow_it_when_it_comes_again() {
    let mut journal = Journal::new();
    journal.frame(5, 1, 10, 1);
    let at = journal.at[1];
    journal.frame(5, 1, 10, 2);
    let (again, end) = (journal.halves[1][at..at + 2 * BLOCK_BYTES].to_vec(), journal.end);
    journal.frame(5, 1, 10, 3);
    journal.halves[1][at] ^= 1;
    let found = journal.recover().unwrap();
    assert_eq!((found.first.len(), &found.stale[..]), (1, &[(1, (at + 2 * BLOCK_BYTES) as u64)][..]));
    for (half, position) in found.loose_ends(HALF as u64) {
        journal.halves[half][position as usize..][..BLOCK_BYTES].fill(0);
    }
    journal.halves[1][at..at + 2 * BLOCK_BYTES].copy_from_slice(&again);
    assert_eq!(journal.recover().unwrap().end, end);
}

/// A frame whose header block was torn; then another one is written over it, and torn as well, in such a way that its
/// zeros make the first one's header whole.
#[test]
fn a_torn_frame_is_not_made_whole_by_the_next_one_over_it() {
    for fill in [5, 6] {
        let mut journal = Journal::new();
        journal.frame(5, 1, 10, 1);
        let (half, at) = ((fill % 2) as usize, if fill == 5 { journal.at[1] } else { 0 });
        let zeros = at + BLOCK_BYTES / 2..at + BLOCK_BYTES;
        journal.frame(fill, 1, 10, 2);
        journal.halves[half][zeros.clone()].fill(0xee);
        let found = journal.recover().unwrap();
        assert_eq!((found.first.len(), found.second.len()), (1, 0));
        let void: Vec<(usize, u64)> = found.loose_ends(HALF as u64).collect();
        assert_eq!(void, [(1, 2 * BLOCK_BYTES as u64), (0, 0)]);
        for (half, position) in void {
            journal.halves[half][position as usize..][..BLOCK_BYTES].fill(0);
        }
        journal.halves[half][zeros].fill(0);
        assert_eq!(journal.recover().unwrap(), found, "fill {fill}");
        assert!(found.stale.is_empty());
    }
}

/// Frames of the next fill were written while the last one of this fill wasn't yet.
#[test]
fn a_fill_behind_a_torn_tail_is_dropped() {
    let mut journal = Journal::new();
    journal.frame(5, 1, 10, 1);
    let end = journal.end;
    journal.frame(5, 1, 10, 2);
    let at = journal.at[1];
    journal.frame(6, 1, 10, 3);
    journal.halves[1][at - 1] ^= 1;
    let found = journal.recover().unwrap();
    assert_eq!((found.first.len(), found.second.len(), found.end), (1, 0, end));
}

/// The same picture, but the later frame says that the damaged one had been stored on both sides.
#[test]
fn damage_to_a_committed_frame_is_named() {
    let mut journal = Journal::new();
    journal.frame(5, 1, 10, 1);
    journal.frame(5, 1, 10, 2);
    journal.frame(6, 1, 12, 3);
    journal.halves[1][3 * BLOCK_BYTES] ^= 1;
    let damage = journal.recover().unwrap_err();
    assert_eq!((damage.fill, damage.position, damage.committed, damage.held), (Fill(5), 8192, Seq(12), Seq(11)));
    assert!(damage.reason.contains("payload of record 12"), "{damage}");
    // A destination that these frames were sent to again never had what they speak of.
    let halves = [&journal.halves[0][..], &journal.halves[1][..]];
    let found = recover(&halves, Id([1; 16]), Journal::new().end, false).unwrap();
    assert_eq!((found.first.len(), found.second.len(), found.end.seq), (1, 0, Seq(11)));
}

#[test]
fn an_older_filling_of_the_half_does_not_count() {
    let mut journal = Journal::new();
    journal.frame(3, 1, 10, 1);
    journal.end = Journal::new().end;
    assert_eq!(journal.recover().unwrap(), Recovered { end: journal.end, ..Recovered::default() });
}

#[test]
fn a_block_of_payload_that_looks_like_a_header_is_no_witness() {
    let mut journal = Journal::new();
    journal.frame(5, 1, 10, 1);
    let end = journal.end;
    let mut other = Journal::new();
    (0..3).for_each(|_| other.frame(5, 1, 10, 1));
    other.frame(5, 1, 13, 1);
    // A client wrote a copy of a journal's block to its volume: it stands elsewhere in the half.
    let header = other.halves[1][6 * BLOCK_BYTES..7 * BLOCK_BYTES].to_vec();
    journal.halves[1][9 * BLOCK_BYTES..10 * BLOCK_BYTES].copy_from_slice(&header);
    assert_eq!(journal.recover().unwrap().end, end);
    journal.halves[1][6 * BLOCK_BYTES..7 * BLOCK_BYTES].copy_from_slice(&header);
    assert_eq!(journal.recover().unwrap_err().committed, Seq(13), "where it belongs, its word counts");
}

/// The superblock's newest copy has rotted: the older one calls a fill not clean yet that has been overwritten since.
#[test]
fn a_frame_of_a_later_fill_shows_that_a_superblock_is_lost() {
    let mut journal = Journal::new();
    journal.frame(5, 1, 10, 1);
    journal.frame(6, 1, 10, 2);
    (journal.at[1], journal.halves[1]) = (0, vec![0; HALF]);
    journal.frame(7, 1, 10, 3);
    let damage = journal.recover().unwrap_err();
    assert!(damage.reason.contains("fill 7") && damage.reason.contains("superblock"), "{damage}");
    assert_eq!((damage.fill, damage.held), (Fill(5), Seq(10)));
    let halves = [&journal.halves[0][..], &journal.halves[1][..]];
    let found = recover(&halves, Id([1; 16]), Journal::new().end, false).unwrap();
    assert_eq!(found.end, Journal::new().end, "a destination that isn't whole is sent all of it again");
}

/// Tries every combination of what can be found.
fn assert_each_combination_meets_one_row<R: table::Row + std::fmt::Debug>() {
    let mut reached = vec![0; R::TABLE.len()];
    for found in R::every() {
        let meets: Vec<usize> = (0..R::TABLE.len()).filter(|row| R::TABLE[*row].meets(&found)).collect();
        let [row] = meets[..] else {
            let rows: Vec<_> = meets.iter().map(|row| &R::TABLE[*row]).collect();
            panic!("{found:?} meets {} rows: {rows:#?}", rows.len());
        };
        reached[row] += 1;
    }
    for (row, times) in R::TABLE.iter().zip(&reached) {
        assert!(*times > 0, "no combination meets {row:?}");
    }
    assert_eq!(reached.iter().sum::<usize>(), R::every().len());
}

#[test]
fn each_combination_meets_exactly_one_row() {
    use table::Row as _;
    assert_each_combination_meets_one_row::<source_start::Row>();
    assert_each_combination_meets_one_row::<destination_start::Row>();
    assert_each_combination_meets_one_row::<chain::Row>();
    assert_each_combination_meets_one_row::<hello::Row>();
    assert_each_combination_meets_one_row::<welcome::Row>();
    assert_each_combination_meets_one_row::<warrant::Row>();
    assert_each_combination_meets_one_row::<reach::Row>();
    assert_eq!(source_start::Row::every().len(), 9 * 2 * 2 * 2 * 2, "every combination is tried");
    let (first, last) = (source_start::Row::every()[0], *source_start::Row::every().last().unwrap());
    assert!(first.copies != last.copies && first.fence != last.fence);
}

fn version(generation: u64, source: u8, name: &str) -> Superblock {
    let volume = Volume { name: "vol0".into(), size_bytes: 1 << 20, block_bytes: 512 };
    let first = Superblock::first(Role::Source, Id([source; 16]), name, 8 << 20, Epoch(1), vec![volume]);
    Superblock { generation, incarnation: generation, ..first }
}

/// What two blocks are taken for.
#[test]
fn two_copies_are_read_for_what_they_are() {
    let whole = |generation, source| *version(generation, source, "alpha").encode();
    let (old, new, blank) = (whole(8, 1), whole(9, 1), [0; BLOCK_BYTES]);
    let mut broken = new;
    broken[200] ^= 1;
    let mut later = new;
    later[8] += 1;
    let foreign = [7; BLOCK_BYTES];
    let beta = *version(9, 1, "beta").encode();
    let differs = *Superblock { incarnation: 3, ..version(9, 1, "alpha") }.encode();
    let claim = *encode_claim("alpha");
    for (blocks, copies, newest, word) in [
        ([old, new], Copies::Both, Some(9), ""),
        ([new, old], Copies::Both, Some(9), ""),
        ([new, new], Copies::Both, Some(9), ""),
        ([old, broken], Copies::One, Some(8), "copy 1: checksum"),
        ([blank, new], Copies::One, Some(9), "copy 0 is blank"),
        ([foreign, new], Copies::Overwritten, Some(9), "copy 0: not one of"),
        // The newer one is another's, or another journal of the same name; two of a generation differ.
        ([old, beta], Copies::Split, None, "\"beta\""),
        ([old, whole(9, 2)], Copies::Split, None, "0202"),
        ([new, differs], Copies::Split, None, "version 9"),
        ([broken, broken], Copies::Damaged, None, "copy 0: checksum"),
        ([broken, blank], Copies::Damaged, None, "copy 1 is blank"),
        ([foreign, broken], Copies::Damaged, None, "copy 1: checksum"),
        // Were the other copy taken, it might be the older one.
        ([old, later], Copies::Version, None, "version 4"),
        ([later, broken], Copies::Version, None, "version 4"),
        ([claim, blank], Copies::Claimed, None, ""),
        ([claim, old], Copies::Claimed, None, ""),
        ([blank, blank], Copies::Blank, None, "blank"),
        ([foreign, blank], Copies::Foreign, None, "copy 0: not one of"),
        ([blank, claim], Copies::Foreign, None, "copy 1: not one of"),
    ] {
        let read = Reading::of(Role::Source, [&blocks[0], &blocks[1]], true);
        assert_eq!((read.copies, read.newest.map(|superblock| superblock.generation)), (copies, newest));
        assert!(read.trouble.contains(word), "{copies:?}: {}", read.trouble);
        assert!(!word.is_empty() || read.trouble.is_empty() || copies == Copies::Claimed, "{}", read.trouble);
    }
    let read = Reading::of(Role::Source, [&blank, &blank], false);
    assert_eq!(read.copies, Copies::Foreign, "something stands behind the two blocks");
    assert!(read.owner("alpha") == Owner::Another);
    let read = Reading::of(Role::Destination, [&old, &new], false);
    assert_eq!(read.copies, Copies::Foreign, "a journal is no state");
    let read = Reading::of(Role::Source, [&old, &broken], false);
    assert!(read.owner("alpha") == Owner::Ours && read.owner("beta") == Owner::Another);
}
