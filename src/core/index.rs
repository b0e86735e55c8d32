//! The interval index over records that aren't on the devices yet.
//!
//! One index covers one fill. Later records win over earlier ones as they are inserted, and neighbours that lie side
//! by side in memory merge; so the index is at once what reads look into and the plan of a flush or an apply, in
//! ascending order.

use super::Place;
use crate::format::frame::{Kind, RECORD_NO_HOLE, Record};
use crate::limits::{MAX_FLUSH_BYTES, MAX_FLUSH_PIECES};
use rangemap::RangeMap;
use std::ops::Range;

/// What a range holds. For data the place is kept as its difference to the offset: ranges can then be cut and
/// joined without touching the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Data { base: u64 },
    Zero { no_hole: bool },
}

/// What a read finds for a part of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The bytes are in memory here.
    Memory(Place),
    /// The bytes are zeros.
    Zeros,
    /// The device has the bytes.
    Device,
}

/// A part of a range, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First byte on the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Where they are.
    pub found: Found,
}

/// One write of a flush or an apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte on the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What to do with the range.
    pub action: Action,
}

/// What a [`Run`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Write the pieces that came with the run.
    Write,
    /// Make the range read as zeros.
    Zero {
        /// Whether it must stay allocated.
        no_hole: bool,
    },
}

/// The index of one fill.
#[derive(Debug, Default)]
pub struct Index {
    volumes: Vec<RangeMap<u64, Content>>,
    payload_bytes: u64,
}

impl Index {
    /// An empty index over `volumes` volumes.
    pub fn new(volumes: usize) -> Index {
        Index { volumes: vec![RangeMap::new(); volumes], payload_bytes: 0 }
    }

    /// Volumes that it covers.
    pub fn volumes(&self) -> usize {
        self.volumes.len()
    }

    /// Inserts a record that is later than all before it. `place` is its payload's.
    pub fn insert(&mut self, record: &Record, place: Place) {
        let content = match record.kind {
            Kind::Write => Content::Data { base: place.0.wrapping_sub(record.offset) },
            Kind::Trim => Content::Zero { no_hole: false },
            Kind::WriteZeroes => Content::Zero { no_hole: record.flags & RECORD_NO_HOLE != 0 },
            Kind::Flush => return,
        };
        if let Some(map) = self.volumes.get_mut(usize::from(record.volume)) {
            map.insert(record.offset..record.end(), content);
            self.payload_bytes += record.payload_bytes() as u64;
        }
    }

    /// Bytes of payload inserted, those overwritten since included.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Whether any part of the range is covered.
    pub fn overlaps(&self, volume: u16, range: &Range<u64>) -> bool {
        self.volumes.get(usize::from(volume)).is_some_and(|map| map.overlaps(range))
    }

    /// The first run that starts at or after `offset`, at most [`MAX_FLUSH_BYTES`] of data; its pieces of memory are
    /// put into `pieces`, in order.
    pub fn next_run(&self, volume: u16, offset: u64, pieces: &mut Vec<(Place, u64)>) -> Option<Run> {
        pieces.clear();
        let map = self.volumes.get(usize::from(volume))?;
        let mut run: Option<Run> = None;
        for (range, content) in map.overlapping(offset..u64::MAX) {
            let start = range.start.max(offset);
            match (&mut run, *content) {
                (None, Content::Zero { no_hole }) => {
                    return Some(Run { offset: start, length: range.end - start, action: Action::Zero { no_hole } });
                }
                (None, Content::Data { base }) => {
                    let length = (range.end - start).min(MAX_FLUSH_BYTES);
                    pieces.push((Place(base.wrapping_add(start)), length));
                    run = Some(Run { offset: start, length, action: Action::Write });
                }
                (Some(run), Content::Data { base }) => {
                    let room = MAX_FLUSH_BYTES - run.length;
                    if start != run.offset + run.length || room == 0 || pieces.len() == MAX_FLUSH_PIECES {
                        break;
                    }
                    let length = (range.end - start).min(room);
                    pieces.push((Place(base.wrapping_add(start)), length));
                    run.length += length;
                }
                (Some(_), Content::Zero { .. }) => break,
            }
        }
        run
    }
}

/// Finds where the newest bytes of a range are. `indexes` come newest first; what none covers is the device's.
pub fn resolve(indexes: &[&Index], volume: u16, range: Range<u64>, out: &mut Vec<Segment>) {
    if range.is_empty() {
        return;
    }
    let Some((newest, older)) = indexes.split_first() else {
        out.push(Segment { offset: range.start, length: range.end - range.start, found: Found::Device });
        return;
    };
    let mut at = range.start;
    if let Some(map) = newest.volumes.get(usize::from(volume)) {
        for (covered, content) in map.overlapping(range.clone()) {
            let (start, end) = (covered.start.max(range.start), covered.end.min(range.end));
            resolve(older, volume, at..start, out);
            let found = match *content {
                Content::Data { base } => Found::Memory(Place(base.wrapping_add(start))),
                Content::Zero { .. } => Found::Zeros,
            };
            out.push(Segment { offset: start, length: end - start, found });
            at = end;
        }
    }
    resolve(older, volume, at..range.end, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: Kind, offset: u64, length: u32) -> Record {
        Record { volume: 0, kind, flags: 0, offset, length, checksum: 0 }
    }

    proptest! {
        /// A flush by runs and a read by segments both give what writing record after record into an array gives.
        #[test]
        fn equals_a_plain_array(ops in proptest::collection::vec((0u64..60, 1u32..20, 0u8..4, any::<bool>()), 1..60)) {
            const SIZE: usize = 80;
            let mut model = [0u64; SIZE];
            let mut indexes = [Index::new(1), Index::new(1)];
            let mut place = 1000;
            let split = ops.len() / 2;
            for (n, (offset, length, kind, _)) in ops.iter().enumerate() {
                let which = usize::from(n >= split);
                let kind = if *kind == 0 { Kind::Trim } else { Kind::Write };
                indexes[which].insert(&record(kind, *offset, *length), Place(place));
                for i in 0..u64::from(*length) {
                    model[(offset + i) as usize] = if kind == Kind::Write { place + i } else { u64::MAX };
                }
                place += 1000;
            }
            let mut read = [0u64; SIZE];
            let mut segments = Vec::new();
            resolve(&[&indexes[1], &indexes[0]], 0, 0..SIZE as u64, &mut segments);
            prop_assert_eq!(segments.iter().map(|s| s.length).sum::<u64>(), SIZE as u64);
            for segment in &segments {
                for i in 0..segment.length {
                    read[(segment.offset + i) as usize] = match segment.found {
                        Found::Memory(place) => place.0 + i,
                        Found::Zeros => u64::MAX,
                        Found::Device => 0,
                    };
                }
            }
            prop_assert_eq!(read, model);
            let mut flushed = [0u64; SIZE];
            let mut pieces = Vec::new();
            for index in &indexes {
                let mut at = 0;
                while let Some(run) = index.next_run(0, at, &mut pieces) {
                    prop_assert!(run.offset >= at);
                    let mut position = run.offset as usize;
                    match run.action {
                        Action::Write => for (place, length) in &pieces {
                            for i in 0..*length { flushed[position] = place.0 + i; position += 1; }
                        },
                        Action::Zero { .. } => flushed[position..position + run.length as usize].fill(u64::MAX),
                    }
                    at = run.offset + run.length;
                }
            }
            prop_assert_eq!(flushed, model);
        }
    }

    #[test]
    fn long_runs_are_cut() {
        let mut index = Index::new(1);
        for n in 0..100u64 {
            // Not side by side in memory: each stays a piece of its own.
            index.insert(&record(Kind::Write, n * 65536, 65536), Place(n * 1_000_000));
        }
        let mut pieces = Vec::new();
        let run = index.next_run(0, 0, &mut pieces).unwrap();
        assert_eq!((run.length, pieces.len()), (MAX_FLUSH_BYTES, 8));
    }
}
