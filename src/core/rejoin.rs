//! A fenced source comes back as the destination of the one that was promoted: what it holds beyond the mark at which that
//! happened, and where its volumes may differ from what they were there.
//!
//! The first is discarded, so it is shown and kept before. The second is what the new source sends again; a grain too many
//! costs a comparison, one too few would be silent damage.

use super::dirty::Dirty;
use super::grains::Grains;
use super::recovery::reach::{self, Action, Boundary, Copy};
use super::recovery::{Found, Halves, Recovered};
use crate::format::frame::{Kind, RECORD_COPY, Record};
use crate::format::ids::{Mark, Seq};
use crate::format::superblock::Superblock;
use rangemap::RangeSet;
use std::ops::Range;

/// How far it is known what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Outside [`Divergence::lacks`] the volumes are as they were at the mark.
    Exact,
    /// Everything may differ.
    Unknown,
}

/// A fenced source against the mark at which the other side was promoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// How far it is known what differs.
    pub reach: Reach,
    /// Why so, in words.
    pub why: &'static str,
    /// Where this side's volumes may differ from what they were at the mark: never too little.
    pub lacks: Grains,
    /// What only this side has.
    pub own: Own,
    /// Frames that end at this record or before it are on the other side as well. 0 where the mark isn't one of this
    /// source's history: then nothing in the journal is known to be there.
    pub common: Seq,
}

/// What only this side has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Records in the journal behind the mark that change something.
    pub records: u64,
    /// Those among them that clients asked for; a write of more than 128 KiB counts as several.
    pub client_records: u64,
    /// The bytes that they changed, each counted once.
    pub bytes: u64,
    /// What of it is on which volume, in the superblock's order.
    pub volumes: Vec<OwnVolume>,
    /// What the journal no longer holds, but was changed behind the mark, or may have been.
    pub dirty: Grains,
}

impl Own {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.records == 0 && self.dirty.is_empty()
    }
}

/// What only this side has, of one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnVolume {
    /// Records in the journal.
    pub records: u64,
    /// The bytes that they changed, each counted once.
    pub bytes: u64,
    /// Which bytes that are: ascending, neighbours joined.
    pub ranges: Vec<Range<u64>>,
    /// Bytes of dirty grains: at most so many more may have been changed.
    pub dirty_bytes: u64,
}

impl Divergence {
    /// Compares what a source was found to hold with the mark at which the other side was promoted. `mark` must be that of
    /// a whole copy: one of which not even the other side says so is no state of this source's history.
    ///
    /// `found` is what recovery found in `halves`: a journal in which it finds damage tells nothing.
    ///
    /// Why `lacks` is enough, where the reach is exact. The volumes hold every record up to `clean`, and any of those that
    /// came behind: a crash may have cut off a flush. All of these are in the halves, for a flush begins only when its fill
    /// is stable there, and a half is filled anew only behind the superblock that calls it clean. So where the mark is
    /// `clean` or behind it, volumes and mark differ by records of the halves only: those up to the mark may not be on the
    /// volumes yet, those beyond may be. Therefore all frames count, on either side of the mark.
    ///
    /// A mark before `clean` differs also by what came between and has left the journal. `retire_alone` marks each record of
    /// a fill as dirty, and the bitmap is stored before the superblock that calls the fill clean; `remember` adds to `known`
    /// only what is sent and not clean by then. So what came behind any known mark is in the halves or marked. Marks are
    /// taken away again in three places. `retire_applied` does it as the destination has applied them: that is a resync,
    /// `whole` is false then, durably since before it began, and nothing is taken for exact. The end of a resync and a
    /// meeting with a destination whose copy is whole clear all marks, and `known` with them; a crash may leave the stored
    /// `known` without the marks, but the destination was beyond all of it then, in what it has stored for good.
    pub fn of(
        superblock: &Superblock,
        dirty: &Dirty,
        found: &Recovered,
        halves: &impl Halves,
        mark: Mark,
    ) -> Divergence {
        let boundary = locate(superblock, found, mark);
        let copy = if superblock.whole { Copy::Whole } else { Copy::Partial };
        let row = reach::Found { boundary, copy }.decide();
        let (sizes, grain_bytes) = (superblock.sizes(), superblock.grain_bytes);
        let common = match boundary {
            Boundary::InHalves | Boundary::Clean | Boundary::Known => mark.seq,
            Boundary::Ahead | Boundary::Elsewhere => Seq(0),
        };
        let (reach, dirty_own, mut lacks) = match row.action {
            // A mark too many in the bitmap would only be shown, and kept, for nothing.
            Action::Halves => (Reach::Exact, Grains::none(&sizes, grain_bytes), dirty.grains().clone()),
            Action::HalvesAndDirty => (Reach::Exact, dirty.grains().clone(), dirty.grains().clone()),
            Action::Everything => {
                let all = Grains::all(&sizes, grain_bytes);
                (Reach::Unknown, all.clone(), all)
            }
        };
        let mut own = Tally::new(sizes.len());
        for frame in frames(found) {
            for (seq, record) in records(frame, halves).filter(|(_, record)| record.length > 0) {
                lacks.insert(record.volume, record.offset..record.end());
                if seq > common {
                    own.add(&record);
                }
            }
        }
        Divergence { reach, why: row.why, lacks, own: own.finish(dirty_own), common }
    }

    /// The frames that only this side has, in order.
    pub fn frames<'a>(&self, found: &'a Recovered) -> impl Iterator<Item = &'a Found> + use<'a> {
        let common = self.common;
        frames(found).filter(move |frame| frame.mark.seq > common)
    }
}

fn frames(found: &Recovered) -> impl Iterator<Item = &Found> {
    found.first.iter().chain(&found.second)
}

/// A frame's records by number.
fn records(frame: &Found, halves: &impl Halves) -> impl Iterator<Item = (Seq, Record)> {
    let header = frame.header;
    let block = halves.block(header.fill.half(), header.position);
    let records = block.into_iter().flat_map(move |block| header.records(block));
    records.enumerate().map(move |(index, record)| (Seq(header.first.0 + index as u64), record))
}

/// Where a mark lies in a source's history. Its fill says nothing by itself: a destination may have been settled in the
/// middle of one.
fn locate(superblock: &Superblock, found: &Recovered, mark: Mark) -> Boundary {
    let same = |ours: &Mark| (ours.seq, ours.digest) == (mark.seq, mark.digest);
    if frames(found).any(|frame| same(&frame.mark)) {
        Boundary::InHalves
    } else if same(&superblock.clean) {
        Boundary::Clean
    } else if superblock.known.iter().any(same) {
        Boundary::Known
    } else if mark.seq > found.end.seq {
        Boundary::Ahead
    } else {
        Boundary::Elsewhere
    }
}

/// Counts records.
struct Tally {
    client_records: u64,
    records: Vec<u64>,
    ranges: Vec<RangeSet<u64>>,
}

impl Tally {
    fn new(volumes: usize) -> Tally {
        Tally { client_records: 0, records: vec![0; volumes], ranges: vec![RangeSet::new(); volumes] }
    }

    fn add(&mut self, record: &Record) {
        let volume = usize::from(record.volume);
        if let (Some(records), Some(ranges)) = (self.records.get_mut(volume), self.ranges.get_mut(volume)) {
            *records += 1;
            self.client_records += u64::from(record.kind != Kind::Flush && record.flags & RECORD_COPY == 0);
            ranges.insert(record.offset..record.end());
        }
    }

    fn finish(self, dirty: Grains) -> Own {
        let volume = |(index, (records, ranges)): (usize, (u64, RangeSet<u64>))| {
            let ranges: Vec<Range<u64>> = ranges.iter().cloned().collect();
            let bytes = ranges.iter().map(|range| range.end - range.start).sum();
            OwnVolume { records, bytes, ranges, dirty_bytes: dirty.bytes_of(index) }
        };
        let volumes: Vec<OwnVolume> = self.records.into_iter().zip(self.ranges).enumerate().map(volume).collect();
        Own {
            records: volumes.iter().map(|volume| volume.records).sum(),
            client_records: self.client_records,
            bytes: volumes.iter().map(|volume| volume.bytes).sum(),
            volumes,
            dirty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::recovery::recover_source;
    use crate::format::checksum::crc32c;
    use crate::format::frame::Header;
    use crate::format::ids::{Digest, Epoch, Fill, Id};
    use crate::format::superblock::{Role, Volume};
    use crate::limits::BLOCK_BYTES;

    const HALF: usize = 64 * BLOCK_BYTES;
    const GRAIN: u32 = 64 << 10;
    const SIZES: [u64; 2] = [1 << 20, 1 << 20];

    /// A fenced source whose halves hold four frames of one record each, behind record 10 of fill 4.
    struct Fenced {
        superblock: Superblock,
        dirty: Dirty,
        halves: [Vec<u8>; 2],
        marks: Vec<Mark>,
    }

    fn record(kind: Kind, volume: u16, offset: u64, flags: u8) -> Record {
        let length = if kind == Kind::Flush { 0 } else { BLOCK_BYTES as u32 };
        let checksum = if kind == Kind::Write { crc32c(&[0; BLOCK_BYTES]) } else { 0 };
        Record { volume, kind, flags, offset, length, checksum }
    }

    impl Fenced {
        fn new() -> Fenced {
            let volume = |name: &str| Volume { name: name.into(), size_bytes: 1 << 20, block_bytes: 512 };
            let volumes = vec![volume("a"), volume("b")];
            let clean = Mark { fill: Fill(4), seq: Seq(10), digest: Digest(1) };
            let first = Superblock::first(Role::Source, Id([1; 16]), "alpha", 8 << 20, Epoch(1), volumes);
            let known = vec![Mark { fill: Fill(3), seq: Seq(7), digest: Digest(70) }];
            let superblock = Superblock { clean, known, whole: true, grain_bytes: GRAIN, ..first };
            let mut dirty = Dirty::clean(Id([1; 16]), &SIZES, GRAIN);
            dirty.mark(1, 0..1);
            let mut fenced = Fenced { superblock, dirty, halves: [vec![0; HALF], vec![0; HALF]], marks: Vec::new() };
            let mut end = clean;
            for (fill, position, record) in [
                (5, 0, record(Kind::Write, 0, 0, 0)),
                (5, 2, record(Kind::Write, 0, 100 << 10, 0)),
                (6, 0, record(Kind::Trim, 0, 104 << 10, 0)),
                (6, 1, record(Kind::Flush, 0, 0, 0)),
                (6, 2, record(Kind::Write, 1, 1 << 19, RECORD_COPY)),
            ] {
                let at = position * BLOCK_BYTES;
                let header = Header {
                    flags: 0,
                    source: Id([1; 16]),
                    epoch: Epoch(1),
                    incarnation: 1,
                    fill: Fill(fill),
                    position: at as u64,
                    first: end.seq.next(),
                    committed: Seq(10),
                    stable_here: Seq(10),
                    previous: end.digest,
                    payload_bytes: 0,
                    count: 0,
                };
                let mut block = [0; BLOCK_BYTES];
                let digest = header.encode([record].iter(), &mut block);
                fenced.halves[Fill(fill).half()][at..at + BLOCK_BYTES].copy_from_slice(&block);
                end = Mark { fill: Fill(fill), seq: header.first, digest };
                fenced.marks.push(end);
            }
            fenced
        }

        fn at(&self, mark: Mark) -> (Divergence, Vec<Seq>) {
            let halves = [&self.halves[0][..], &self.halves[1]];
            let found = recover_source(&halves, self.superblock.source, self.superblock.clean).unwrap();
            assert_eq!(found.end, self.marks[4]);
            let divergence = Divergence::of(&self.superblock, &self.dirty, &found, &halves, mark);
            let frames = divergence.frames(&found).map(|frame| frame.mark.seq).collect();
            (divergence, frames)
        }
    }

    /// Which grains of the two volumes are in a set.
    fn grains(grains: &Grains) -> Vec<(u16, u64)> {
        let all = (0..2).flat_map(|volume| (0..16).map(move |n| (volume, n)));
        all.filter(|(volume, n)| grains.touched(*volume, n * u64::from(GRAIN)..n * u64::from(GRAIN) + 1)).collect()
    }

    const HALVES: [(u16, u64); 4] = [(0, 0), (0, 1), (1, 0), (1, 8)];

    #[test]
    fn in_the_halves_all_frames_may_differ_but_only_later_ones_are_its_own() {
        let fenced = Fenced::new();
        let (divergence, frames) = fenced.at(fenced.marks[0]);
        assert_eq!(divergence.reach, Reach::Exact);
        assert_eq!(grains(&divergence.lacks), HALVES, "also of the frame before the mark, and of what is dirty");
        assert_eq!(frames, [12, 13, 14, 15].map(Seq));
        let own = &divergence.own;
        assert_eq!((own.records, own.client_records, own.bytes), (3, 2, 3 * 4096));
        assert!(own.dirty.is_empty() && own.volumes[1].dirty_bytes == 0);
        assert_eq!(own.volumes[0].ranges, vec![100 << 10..108 << 10], "neighbours are joined");
        assert_eq!((own.volumes[0].records, own.volumes[0].bytes, own.volumes[1].records), (2, 8192, 1));
        let (divergence, frames) = fenced.at(fenced.marks[4]);
        assert!(divergence.own.is_empty() && frames.is_empty());
        assert_eq!((divergence.reach, grains(&divergence.lacks)), (Reach::Exact, HALVES.to_vec()));
    }

    #[test]
    fn at_the_clean_mark_and_before_it() {
        let fenced = Fenced::new();
        let (clean, frames) = fenced.at(fenced.superblock.clean);
        assert_eq!((clean.reach, clean.common, frames.len()), (Reach::Exact, Seq(10), 5));
        assert!(clean.own.dirty.is_empty() && clean.own.records == 4);
        let (known, frames) = fenced.at(fenced.superblock.known[0]);
        assert_eq!((known.reach, known.common, frames.len()), (Reach::Exact, Seq(7), 5));
        assert_eq!((grains(&known.lacks), grains(&known.own.dirty)), (HALVES.to_vec(), vec![(1, 0)]));
        assert_eq!(known.own.volumes[1].dirty_bytes, u64::from(GRAIN));
    }

    #[test]
    fn what_cannot_be_told_is_everything() {
        let mut fenced = Fenced::new();
        let forked = Mark { digest: Digest(99), ..fenced.marks[1] };
        let ahead = Mark { fill: Fill(6), seq: Seq(16), digest: Digest(99) };
        let everything = Grains::all(&SIZES, GRAIN);
        for (mark, word) in [(forked, "isn't in this source's history"), (ahead, "was lost here")] {
            let (divergence, frames) = fenced.at(mark);
            assert_eq!((divergence.reach, &divergence.lacks), (Reach::Unknown, &everything));
            assert!(divergence.why.contains(word), "{}", divergence.why);
            assert_eq!((divergence.own.records, frames.len()), (4, 5), "all of the journal may be its own");
            assert_eq!(divergence.own.volumes[0].dirty_bytes, 1 << 20);
        }
        fenced.superblock.whole = false;
        let (divergence, frames) = fenced.at(fenced.marks[3]);
        assert_eq!((divergence.reach, &divergence.lacks), (Reach::Unknown, &everything));
        assert!(divergence.why.contains("a resync was under way") && frames == [Seq(15)]);
    }
}
