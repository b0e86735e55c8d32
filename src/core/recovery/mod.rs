//! What is found at a start and at a meeting, and what is done about it.
//!
//! Each decision is a table of rows (`table`), and the code that acts asks the table: docs/recovery.md shows them all.
//!
//! - `copies`: what the two copies of a superblock are together.
//! - `source_start`, `destination_start`: whether what is stored is made, recovered or refused.
//! - `chain`, and the functions right here: what the halves hold after a crash.
//! - `staged`: what a destination's staging log holds.
//! - `hello`, `welcome`: what the two sides do when they meet.
//! - `reach`: what may differ at a source that was fenced.
//!
//! The halves hold the longest chain of frames that follows the clean mark, on both sides alike. Of the two halves at
//! most two fills count: the one after the clean mark, then the next. The chain ends at the first frame that isn't
//! whole or doesn't follow. That is where the crash tore it, unless a later header proves that a missing frame was once
//! safe on both sides, or that the clean mark itself is out of date: then the journal is damaged, and nobody may go on
//! as if nothing had been there.

pub mod chain;
pub mod copies;
pub mod destination_start;
pub mod hello;
pub mod logged;
pub mod reach;
pub mod source_start;
pub mod staged;
pub mod table;
#[cfg(test)]
mod tests;
pub mod warrant;
pub mod welcome;

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
    /// Headers that are whole but don't count, by half and position: they stand behind a break.
    pub stale: Vec<(usize, u64)>,
}

impl Recovered {
    /// What a start makes void before anything builds on what it found, as half and position, so that no frame that was
    /// seen to be lost comes back.
    ///
    /// - Where the frames that come next may go. A frame may lie there that a crash has torn: should the next crash tear
    ///   the one written over it, then the sectors that both have alike (zeros, mostly) could make the old one whole.
    /// - Whole frames behind a break. At a destination the very frame that is missing between may be sent again, and then
    ///   they would follow it, though its source has long gone on to another fill.
    pub fn loose_ends(&self, half_bytes: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        let end = |frames: &[Found]| {
            let last = frames.last()?;
            Some((last.header.fill.half(), last.header.position + last.header.frame_bytes()))
        };
        let behind = end(&self.second).or_else(|| end(&self.first));
        let next = self.second.is_empty().then_some((self.end.fill.next().half(), 0));
        let next = behind.into_iter().chain(next).filter(move |(_, position)| *position < half_bytes);
        next.chain(self.stale.clone())
    }
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
    recover_by(halves, source, clean, vouched, |header| header.committed)
}

/// As [`recover`], in a source's own journal: there it counts as well what was answered while the source was alone.
pub fn recover_source(halves: &impl Halves, source: Id, clean: Mark) -> Result<Recovered, Damage> {
    recover_by(halves, source, clean, true, |header| header.committed.max(header.stable_here))
}

fn recover_by(
    halves: &impl Halves,
    source: Id,
    clean: Mark,
    vouched: bool,
    word: fn(&Header) -> Seq,
) -> Result<Recovered, Damage> {
    let mut found = Recovered { end: clean, ..Recovered::default() };
    let (first, second) = (clean.fill.next(), clean.fill.next().next());
    let mut broken = chain(halves, source, first, &mut found.end, &mut found.first);
    if !found.first.is_empty() {
        let in_first = broken;
        broken = chain(halves, source, second, &mut found.end, &mut found.second);
        if found.second.is_empty() && !begun(halves, second, found.end) {
            broken = in_first;
        }
    }
    let ours = headers(halves, source).filter(|header| header.fill >= first);
    let (later, known): (Vec<Header>, Vec<Header>) = ours.partition(|header| header.fill > second);
    let committed = known.iter().map(word).max().unwrap_or_default();
    let decision = chain::Found {
        frames: match (found.first.is_empty(), found.second.is_empty()) {
            (true, _) => chain::Frames::None,
            (false, true) => chain::Frames::One,
            (false, false) => chain::Frames::Two,
        },
        word: if committed > found.end.seq { chain::Word::Missing } else { chain::Word::Held },
        later: if later.is_empty() { chain::Later::No } else { chain::Later::Yes },
        vouched: if vouched { chain::Vouched::Yes } else { chain::Vouched::No },
    };
    let (fill, position, reason) = broken;
    match decision.decide().action {
        chain::Action::Nothing | chain::Action::Adopt => {
            let counted = |header: &Header| {
                let frames = if header.fill == first { &found.first } else { &found.second };
                frames.last().is_some_and(|last| header.position <= last.header.position)
            };
            let stale = known.iter().filter(|header| !counted(header));
            found.stale = stale.map(|header| (header.fill.half(), header.position)).collect();
            Ok(found)
        }
        chain::Action::LostRecords => Err(Damage { fill, position, reason, committed, held: found.end.seq }),
        chain::Action::LostSuperblock => {
            let last = later.iter().map(|header| header.fill).max().unwrap_or_default();
            let reason = format!(
                "a frame of fill {last} is in the journal, so the superblock's last version, which called this fill \
                 clean, is lost"
            );
            let committed = later.iter().map(word).max().unwrap_or_default().max(committed);
            Err(Damage { fill, position, reason, committed, held: found.end.seq })
        }
    }
}

/// Whether a fill of which nothing can be read was begun right after this boundary: its first frame's place holds one
/// that follows it, or something that is no header, with headers of the same fill behind it.
fn begun(halves: &impl Halves, fill: Fill, end: Mark) -> bool {
    let header = |position: u64| Header::parse(halves.block(fill.half(), position)?).ok();
    match header(0) {
        Some(header) => header.fill == fill && header.previous == end.digest,
        None => {
            let positions = (0..halves.half_bytes()).step_by(BLOCK_BYTES);
            positions.filter_map(header).any(|header| header.fill == fill)
        }
    }
}

/// All valid headers of a source that stand where they belong. A block of payload may look like one; that it also names
/// its own place would be a strange chance.
fn headers(halves: &impl Halves, source: Id) -> impl Iterator<Item = Header> {
    let positions = (0..halves.half_bytes()).step_by(BLOCK_BYTES);
    positions
        .flat_map(|position| [0, 1].map(|half| (half, position)))
        .filter_map(move |(half, position)| {
            let block = halves.block(half, position).filter(|block| block[..8] == frame::MAGIC)?;
            let header = Header::parse(block).ok()?;
            (header.fill.half() == half && header.position == position).then_some(header)
        })
        .filter(move |header| header.source == source)
}

/// Follows the chain through one fill; returns where and why it ends.
fn chain(halves: &impl Halves, source: Id, fill: Fill, end: &mut Mark, found: &mut Vec<Found>) -> (Fill, u64, String) {
    chain_from(halves, source, fill, 0, end, found)
}

fn chain_from(
    halves: &impl Halves,
    source: Id,
    fill: Fill,
    mut position: u64,
    end: &mut Mark,
    found: &mut Vec<Found>,
) -> (Fill, u64, String) {
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
