//! A frame: one header block with the record descriptors, then the records' payloads, each padded to a block.
//!
//! These bytes are made once, at the source. The same are in its journal, on the wire and in the destination's
//! journal file. Each header names the digest before it, so that a frame can only ever follow the very frame that
//! it followed when it was made: leftovers of an earlier filling or of a crash never look like a continuation.

use super::block::{self, Block, BlockError};
use super::checksum;
use super::ids::{Digest, Epoch, Fill, Id, Seq};
use crate::canary::{Bug, sings};
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES, MAX_FRAME_PAYLOAD_BYTES, MAX_RECORDS_PER_FRAME, MAX_VOLUMES};
use std::ops::Range;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Magic of a frame's header block.
pub const MAGIC: [u8; 8] = *b"NBDMFRAM";

/// This frame itself must be on stable storage before it is acknowledged.
pub const FLAG_STABLE: u16 = 1;
/// This frame and everything before it must be on stable storage before it is acknowledged.
pub const FLAG_SYNC: u16 = 2;

/// Set on a record of the first sync: the source's volume holds it already and needn't be written.
pub const RECORD_COPY: u8 = 1;
/// Write-zeroes only: the range must stay allocated.
pub const RECORD_NO_HOLE: u8 = 2;
/// The client asked for this record to be on stable storage (FUA).
pub const RECORD_FUA: u8 = 4;

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Payload onto a range.
    Write = 1,
    /// The range reads as zeros afterwards and may be deallocated.
    Trim = 2,
    /// The range reads as zeros afterwards.
    WriteZeroes = 3,
    /// Nothing is written; a place in the order up to which all must be stable.
    Flush = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Write, Kind::Trim, Kind::WriteZeroes, Kind::Flush].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A record's description, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Index of the volume in the source's list.
    pub volume: u16,
    /// What it does.
    pub kind: Kind,
    /// `RECORD_…` bits.
    pub flags: u8,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range.
    pub length: u32,
    /// CRC-32C of the payload; 0 where there is none.
    pub checksum: u32,
}

impl Record {
    /// Bytes of payload that follow the header block for this record, padding left out.
    pub fn payload_bytes(&self) -> usize {
        if self.kind == Kind::Write { self.length as usize } else { 0 }
    }

    /// The range's end. Never overflows for a record that was parsed or checked against its volume.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}

/// Bytes that a payload takes up, with its padding.
pub fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRecord {
    offset: U64,
    length: U32,
    checksum: U32,
    volume: U16,
    kind: u8,
    flags: u8,
    reserved: [u8; 12],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    preamble: [u8; 16],
    source: Id,
    epoch: U64,
    incarnation: U64,
    fill: U64,
    position: U64,
    first: U64,
    committed: U64,
    previous: U64,
    payload_bytes: U32,
    count: U16,
    reserved: [u8; 26],
    stable_here: U64,
}

const FIXED: usize = size_of::<RawHeader>();
const _: () = assert!(FIXED == 128 && size_of::<RawRecord>() == 32);

/// A frame's header: where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// `FLAG_…` bits.
    pub flags: u16,
    /// The source's identity.
    pub source: Id,
    /// The epoch in which it was made.
    pub epoch: Epoch,
    /// Which run of the source made it; raised at each start.
    pub incarnation: u64,
    /// The fill it belongs to.
    pub fill: Fill,
    /// Where it starts within its half, in bytes.
    pub position: u64,
    /// The first record's sequence number.
    pub first: Seq,
    /// The last record known to be on stable storage on both sides when this frame was made. If it can't be read any
    /// more the journal is damaged, and not merely torn by a crash.
    pub committed: Seq,
    /// The last record known to be on stable storage in the source's own journal when this frame was made, and so perhaps
    /// answered: while a source runs alone that is more than `committed`. Only the source's own recovery counts on it.
    pub stable_here: Seq,
    /// The digest after the frame before.
    pub previous: Digest,
    /// Bytes of payload with padding.
    pub payload_bytes: u32,
    /// Number of records, 1 and more.
    pub count: u16,
}

impl Header {
    /// The last record's sequence number.
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count) - 1)
    }

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> u64 {
        BLOCK_BYTES as u64 + u64::from(self.payload_bytes)
    }

    /// Encodes header and descriptors into `block` and returns the digest after this frame.
    /// `count` and `payload_bytes` are taken from `records`, of which there are 1 to [`MAX_RECORDS_PER_FRAME`].
    pub fn encode<'a>(&self, records: impl ExactSizeIterator<Item = &'a Record>, block: &mut Block) -> Digest {
        block.fill(0);
        let count = records.len();
        let mut payload = 0;
        for (raw, record) in block[FIXED..].chunks_exact_mut(size_of::<RawRecord>()).zip(records) {
            payload += padded(record.payload_bytes());
            let bytes = RawRecord {
                offset: record.offset.into(),
                length: record.length.into(),
                checksum: record.checksum.into(),
                volume: record.volume.into(),
                kind: record.kind as u8,
                flags: record.flags,
                reserved: [0; 12],
            };
            raw.copy_from_slice(bytes.as_bytes());
        }
        let raw = RawHeader {
            preamble: [0; 16],
            source: self.source,
            epoch: self.epoch.0.into(),
            incarnation: self.incarnation.into(),
            fill: self.fill.0.into(),
            position: self.position.into(),
            first: self.first.0.into(),
            committed: self.committed.0.into(),
            previous: self.previous.0.into(),
            payload_bytes: (payload as u32).into(),
            count: (count as u16).into(),
            reserved: [0; 26],
            stable_here: self.stable_here.0.into(),
        };
        block[..FIXED].copy_from_slice(raw.as_bytes());
        block::seal(block, MAGIC, self.flags);
        checksum::digest(block)
    }

    /// Checks a header block: magic, version, checksum and every field that can be wrong by itself.
    pub fn parse(block: &Block) -> Result<Header, BlockError> {
        let preamble = block::open(block, MAGIC)?;
        let raw = RawHeader::read_from_bytes(&block[..FIXED]).map_err(|_| BlockError::Field("length"))?;
        let header = Header {
            flags: preamble.flags.get(),
            source: raw.source,
            epoch: Epoch(raw.epoch.get()),
            incarnation: raw.incarnation.get(),
            fill: Fill(raw.fill.get()),
            position: raw.position.get(),
            first: Seq(raw.first.get()),
            committed: Seq(raw.committed.get()),
            stable_here: Seq(raw.stable_here.get()),
            previous: Digest(raw.previous.get()),
            payload_bytes: raw.payload_bytes.get(),
            count: raw.count.get(),
        };
        if header.count == 0 || usize::from(header.count) > MAX_RECORDS_PER_FRAME {
            return Err(BlockError::Field("record count"));
        }
        if header.first.0 == 0 {
            return Err(BlockError::Field("sequence number"));
        }
        let numbers = [header.epoch.0, header.incarnation, header.fill.0, header.first.0];
        block::countable(numbers.into_iter().chain([header.committed.0, header.stable_here.0]))?;
        if header.position > crate::limits::MAX_HALF_BYTES {
            return Err(BlockError::Field("position"));
        }
        let mut payload = 0;
        for record in raw_records(block, header.count) {
            payload += padded(decode(record)?.payload_bytes());
        }
        if payload != header.payload_bytes as usize || payload > MAX_FRAME_PAYLOAD_BYTES {
            return Err(BlockError::Field("payload length"));
        }
        Ok(header)
    }

    /// The records of a block that [`Header::parse`] accepted.
    pub fn records<'a>(&self, block: &'a Block) -> impl Iterator<Item = Record> + use<'a> {
        raw_records(block, self.count).filter_map(|raw| decode(raw).ok())
    }
}

fn raw_records(block: &Block, count: u16) -> impl Iterator<Item = &[u8]> {
    block[FIXED..].chunks_exact(size_of::<RawRecord>()).take(count.into())
}

fn decode(raw: &[u8]) -> Result<Record, BlockError> {
    let raw = RawRecord::read_from_bytes(raw).map_err(|_| BlockError::Field("length"))?;
    let kind = Kind::from_byte(raw.kind).ok_or(BlockError::Field("record kind"))?;
    let record = Record {
        volume: raw.volume.get(),
        kind,
        flags: raw.flags,
        offset: raw.offset.get(),
        length: raw.length.get(),
        checksum: raw.checksum.get(),
    };
    if usize::from(record.volume) >= MAX_VOLUMES {
        return Err(BlockError::Field("record volume"));
    }
    if record.offset.checked_add(u64::from(record.length)).is_none() {
        return Err(BlockError::Field("record range"));
    }
    let length_fits = match kind {
        Kind::Write => (1..=CHUNK_BYTES).contains(&(record.length as usize)),
        Kind::Trim | Kind::WriteZeroes => record.length > 0,
        Kind::Flush => record.length == 0,
    };
    if !length_fits {
        return Err(BlockError::Field("record length"));
    }
    Ok(record)
}

/// A payload whose bytes aren't the ones that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("payload of record {seq} is damaged: stored checksum {stored:08x}, computed {computed:08x}")]
pub struct PayloadError {
    /// The record.
    pub seq: Seq,
    /// The checksum in the descriptor.
    pub stored: u32,
    /// The checksum of the bytes.
    pub computed: u32,
}

/// Checks every payload of a frame. `checksum` gives the CRC-32C of a range of what follows the header block.
pub fn verify_payload(
    header: &Header,
    block: &Block,
    checksum: impl Fn(Range<usize>) -> u32,
) -> Result<(), PayloadError> {
    let mut at = 0;
    for (index, record) in header.records(block).enumerate() {
        let bytes = record.payload_bytes();
        let computed = if bytes == 0 { 0 } else { checksum(at..at + bytes) };
        if computed != record.checksum && !sings(Bug::SkipChecksum) {
            return Err(PayloadError { seq: Seq(header.first.0 + index as u64), stored: record.checksum, computed });
        }
        at += padded(bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::checksum::crc32c;

    fn header() -> Header {
        Header {
            flags: FLAG_STABLE,
            source: Id([7; 16]),
            epoch: Epoch(2),
            incarnation: 3,
            fill: Fill(4),
            position: 8192,
            first: Seq(5),
            committed: Seq(4),
            stable_here: Seq(4),
            previous: Digest(6),
            payload_bytes: 8192,
            count: 3,
        }
    }

    fn records(payload: &[u8]) -> Vec<Record> {
        let write = |offset, part: &[u8]| Record {
            volume: 1,
            kind: Kind::Write,
            flags: 0,
            offset,
            length: part.len() as u32,
            checksum: crc32c(part),
        };
        let trim = Record { volume: 0, kind: Kind::Trim, flags: 0, offset: 4096, length: 1 << 20, checksum: 0 };
        vec![write(512, &payload[..512]), trim, write(8192, &payload[4096..8192])]
    }

    #[test]
    fn round_trip_and_each_flipped_bit_is_noticed() {
        let payload: Vec<u8> = (0..8192u32).map(|i| (i * 7) as u8).collect();
        let (header, records) = (header(), records(&payload));
        let mut block = [0; BLOCK_BYTES];
        header.encode(records.iter(), &mut block);
        assert_eq!(Header::parse(&block), Ok(header));
        assert_eq!(header.records(&block).collect::<Vec<_>>(), records);
        assert_eq!(verify_payload(&header, &block, |at| crc32c(&payload[at])), Ok(()));
        for bit in 0..BLOCK_BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&block).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        let mut torn = payload.clone();
        torn[4096] ^= 1;
        assert_eq!(verify_payload(&header, &block, |at| crc32c(&torn[at])).unwrap_err().seq, Seq(7));
    }

    #[test]
    fn impossible_fields_are_refused_though_the_checksum_is_right() {
        let payload = vec![0; 8192];
        let mut bad = records(&payload);
        bad[1].length = 0;
        let mut block = [0; BLOCK_BYTES];
        header().encode(bad.iter(), &mut block);
        assert_eq!(Header::parse(&block), Err(BlockError::Field("record length")));
        let mut bad = records(&payload);
        bad[0].offset = u64::MAX - 3;
        header().encode(bad.iter(), &mut block);
        assert_eq!(Header::parse(&block), Err(BlockError::Field("record range")));
        Header { first: Seq(u64::MAX - 3), ..header() }.encode(records(&payload).iter(), &mut block);
        assert_eq!(Header::parse(&block), Err(BlockError::Field("number")));
        header().encode([].iter(), &mut block);
        assert_eq!(Header::parse(&block), Err(BlockError::Field("record count")));
    }

    #[test]
    fn golden_bytes() {
        let mut block = [0; BLOCK_BYTES];
        let digest = header().encode(records(&[1; 8192]).iter(), &mut block);
        assert_eq!(&block[..12], b"NBDMFRAM\x03\x00\x01\x00");
        assert_eq!(&block[16..32], &[7; 16]);
        assert_eq!(block[32], 2);
        assert_eq!(block[48], 4);
        assert_eq!(&block[88..94], &[0, 32, 0, 0, 3, 0]);
        assert_eq!(&block[128..138], &[0, 2, 0, 0, 0, 0, 0, 0, 0, 2]);
        // Changes only with a new format version.
        assert_eq!(digest, checksum::digest(&block));
    }
}
