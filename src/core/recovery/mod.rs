//! What the halves of a journal hold after a crash: the longest chain of frames that follows the clean mark.
//!
//! The same for both sides. Of the two halves at most two fills count: the one after the clean mark, then the next.
//! The chain ends at the first frame that isn't whole or doesn't follow. That is where the crash tore it, unless a
//! later header proves that a missing frame was once safe on both sides: then the journal is damaged, and nobody
//! may go on as if nothing had been there.

use super::Place;
use crate::format::block::Block;
use crate::format::checksum;
use crate::format::frame::{self, Header, Record, padded};
use crate::format::ids::{Fill, Id, Mark, Seq};
use crate::limits::BLOCK_BYTES;
use std::ops::Range;

/// A frame that was found whole and in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its header.
    pub header: Header,
    /// The boundary after it.
    pub mark: Mark,
}

/// What a journal holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Frames of the fill after the clean mark, in order.
    pub first: Vec<Found>,
    /// Frames of the fill after that.
    pub second: Vec<Found>,
    /// The boundary after the last frame.
    pub end: Mark,
}

/// A frame that was found, and its records with their places.
pub type Rescanned = (Found, Vec<(Record, Place)>);

/// A record that both sides once had is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "fill {fill} is damaged at byte {position} of its half ({reason}): records up to {committed} were stored, but only those up to {held} can be read"
)]
pub struct Damage {
    /// The fill in which the chain breaks.
    pub fill: Fill,
    /// Where in its half, in bytes.
    pub position: u64,
    /// What is wrong there.
    pub reason: String,
    /// The last record that is known to have been stored.
    pub committed: Seq,
    /// The last record that can be read.
    pub held: Seq,
}

/// Both halves as they can be read. Only checksums are asked of payload, so whoever keeps it needs no bytes for it.
pub trait Halves {
    /// Bytes of one half.
    fn half_bytes(&self) -> u64;
    /// The block at a position of a half; `None` where the half ends before.
    fn block(&self, half: usize, position: u64) -> Option<&Block>;
    /// The CRC-32C of bytes within a half.
    fn checksum(&self, half: usize, range: Range<u64>) -> u32;
}

impl Halves for [&[u8]; 2] {
    fn half_bytes(&self) -> u64 {
        self[0].len().min(self[1].len()) as u64
    }

    fn block(&self, half: usize, position: u64) -> Option<&Block> {
        self[half].get(usize::try_from(position).ok()?..)?.first_chunk()
    }

    fn checksum(&self, half: usize, range: Range<u64>) -> u32 {
        checksum::crc32c(&self[half][range.start as usize..range.end as usize])
    }
}

/// Checks that the frame at `position` is whole and follows `after` in `fill`; says why not.
pub fn frame_at(halves: &impl Halves, source: Id, fill: Fill, position: u64, after: Mark) -> Result<Found, String> {
    let block = halves.block(fill.half(), position).ok_or("the half ends here")?;
    let header = Header::parse(block).map_err(|error| error.to_string())?;
    follows(&header, source, fill, position, after)?;
    let payload = position + BLOCK_BYTES as u64;
    if payload + u64::from(header.payload_bytes) > halves.half_bytes() {
        return Err("the frame exceeds its half".into());
    }
    let checksum = |at: Range<usize>| halves.checksum(fill.half(), payload + at.start as u64..payload + at.end as u64);
    frame::verify_payload(&header, block, checksum).map_err(|error| error.to_string())?;
    Ok(Found { header, mark: Mark { fill, seq: header.last(), digest: checksum::digest(block) } })
}

/// A frame's records with their payloads' places, given where the payload of the first is.
pub fn records(header: &Header, block: &Block, payload: Place) -> Vec<(Record, Place)> {
    let mut at = payload.0;
    let with_place = |record: Record| {
        let place = Place(at);
        at += padded(record.payload_bytes()) as u64;
        (record, place)
    };
    header.records(block).map(with_place).collect()
}

/// The frames of a fill from its start, which `before` names, up to a mark. `half_at` is the half's place in memory.
pub fn rescan(halves: &impl Halves, source: Id, before: Mark, until: Mark, half_at: Place) -> Vec<Rescanned> {
    let fill = until.fill;
    let (mut found, mut end, mut position) = (Vec::new(), before, 0);
    while end.seq < until.seq
        && let Ok(frame) = frame_at(halves, source, fill, position, end)
        && let Some(block) = halves.block(fill.half(), position)
    {
        let payload = Place(half_at.0 + position + BLOCK_BYTES as u64);
        found.push((frame, records(&frame.header, block, payload)));
        position += frame.header.frame_bytes();
        end = frame.mark;
    }
    found
}

/// Checks that a header stands where it belongs: right after the boundary `after`.
pub fn follows(header: &Header, source: Id, fill: Fill, position: u64, after: Mark) -> Result<(), String> {
    if header.source != source {
        return Err(format!("a frame of another source ({})", header.source));
    }
    if header.fill != fill || header.position != position {
        return Err(format!("a frame of fill {} for byte {}", header.fill, header.position));
    }
    if header.previous != after.digest || header.first != after.seq.next() {
        return Err(format!("a frame that follows record {}, not record {}", header.first.0 - 1, after.seq));
    }
    Ok(())
}

/// Finds what counts in both halves, given where the clean part ends.
///
/// `vouched` tells whether the headers' word on what was committed holds for this very journal. It doesn't at a
/// destination whose image isn't whole: a source sends a new destination frames that speak of an earlier one. There a
/// chain that breaks is taken for torn; nothing is lost by that, for such an image can't be promoted, and the source
/// sends again what is missing.
pub fn recover(halves: &impl Halves, source: Id, clean: Mark, vouched: bool) -> Result<Recovered, Damage> {
    let mut found = Recovered { end: clean, ..Recovered::default() };
    let (first, second) = (clean.fill.next(), clean.fill.next().next());
    let mut broken = chain(halves, source, first, &mut found.end, &mut found.first);
    if !found.first.is_empty() {
        let in_first = broken;
        broken = chain(halves, source, second, &mut found.end, &mut found.second);
        if found.second.is_empty() {
            broken = in_first;
        }
    }
    let positions = (0..halves.half_bytes()).step_by(BLOCK_BYTES);
    let committed = positions
        .flat_map(|position| [0, 1].map(|half| halves.block(half, position)))
        .flatten()
        .filter(|block| block[..8] == frame::MAGIC)
        .filter_map(|block| Header::parse(block).ok())
        .filter(|header| header.source == source && (header.fill == first || header.fill == second))
        .map(|header| header.committed)
        .max();
    match committed {
        Some(committed) if vouched && committed > found.end.seq => {
            let (fill, position, reason) = broken;
            Err(Damage { fill, position, reason, committed, held: found.end.seq })
        }
        _ => Ok(found),
    }
}

/// Follows the chain through one fill; returns where and why it ends.
fn chain(halves: &impl Halves, source: Id, fill: Fill, end: &mut Mark, found: &mut Vec<Found>) -> (Fill, u64, String) {
    let mut position = 0;
    loop {
        match frame_at(halves, source, fill, position, *end) {
            Ok(frame) => {
                position += frame.header.frame_bytes();
                *end = frame.mark;
                found.push(frame);
            }
            Err(reason) => return (fill, position, reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::checksum::crc32c;
    use crate::format::frame::Kind;
    use crate::format::ids::{Digest, Epoch};

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
}
