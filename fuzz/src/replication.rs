//! What a peer or a disk holds against `format`: every block and report, with a right checksum and without.
//!
//! Nothing panics, and what is accepted is written again as it was: the same bytes where no reserved ones are set, and
//! the same value in any case.

use super::structured::{Encode, List};
use arbitrary::{Arbitrary, Unstructured};
use nbd_mirror::format::block::{self, Block};
use nbd_mirror::format::checksum::{crc32c, digest};
use nbd_mirror::format::frame::{self, Header, Record, padded, verify_payload};
use nbd_mirror::format::superblock::{Role, Superblock};
use nbd_mirror::format::wire::{self, HELLO, REPORT_BYTES, Report, SIGNAL, Signal, WELCOME, Welcome};
use nbd_mirror::limits::{BLOCK_BYTES, MAX_BOUNDARIES, MAX_FRAME_PAYLOAD_BYTES, MAX_VOLUMES};

structured! {
    /// A message.
    struct Message {
        kind: Kind,
        /// Whether magic, version and checksum are put right.
        seal: bool,
        flags: u16,
        /// Its bytes behind the preamble, with zeros up to its end.
        bytes: List<u8>,
    }

    /// What it is taken for.
    enum Kind { Hello, Welcome, Signal, Report, Frame, SourceSuperblock, DestinationSuperblock }
}

const PREAMBLE_BYTES: usize = 16;

impl Message {
    /// The block that is received.
    fn block(&self, magic: [u8; 8]) -> Box<Block> {
        let mut block = Box::new([0; BLOCK_BYTES]);
        let start = if self.seal { PREAMBLE_BYTES } else { 0 };
        let count = self.bytes.0.len().min(BLOCK_BYTES - start);
        block[start..start + count].copy_from_slice(&self.bytes.0[..count]);
        if self.seal {
            block::seal(&mut block, magic, self.flags);
        }
        block
    }
}

/// Runs one message.
pub fn run(data: &[u8]) {
    let Ok(message) = Message::arbitrary(&mut Unstructured::new(data)) else { return };
    match message.kind {
        Kind::Hello => superblock(Role::Source, HELLO, &message.block(HELLO)),
        Kind::SourceSuperblock => superblock(Role::Source, Role::Source.magic(), &message.block(Role::Source.magic())),
        Kind::DestinationSuperblock => {
            superblock(Role::Destination, Role::Destination.magic(), &message.block(Role::Destination.magic()));
        }
        Kind::Welcome => welcome(&message.block(WELCOME)),
        Kind::Signal => signal(&message.block(SIGNAL)),
        Kind::Report => report(&message),
        Kind::Frame => frame(&message.block(frame::MAGIC)),
    }
}

fn superblock(role: Role, magic: [u8; 8], block: &Block) {
    let other = if role == Role::Source { Role::Destination } else { Role::Source };
    assert!(Superblock::decode(other, block).is_err());
    let Ok(superblock) = Superblock::decode_as(role, magic, block) else { return };
    assert!((1..=MAX_VOLUMES).contains(&superblock.volumes.len()));
    let again = superblock.encode_as(magic);
    assert_eq!(Superblock::decode_as(role, magic, &again).as_ref(), Ok(&superblock));
    if magic == HELLO {
        assert_eq!(wire::encode_hello(&superblock), again);
        assert_eq!(wire::decode_hello(&again).as_ref(), Ok(&superblock));
    } else {
        let torn = [0; BLOCK_BYTES];
        assert_eq!(Superblock::newest(role, [block, &torn]).as_ref(), Ok(&superblock));
        assert_eq!(Superblock::newest(role, [&torn, &again]).as_ref(), Ok(&superblock));
        assert!(superblock.copy_offset() <= BLOCK_BYTES as u64);
    }
    // Its numbers can be counted on: an epoch is raised by a promote, a fill and a record follow the clean ones.
    assert!(superblock.epoch.next() > superblock.epoch && superblock.clean.seq.next() > superblock.clean.seq);
    assert!(superblock.clean.fill.next().next() > superblock.clean.fill);
    assert!(superblock.generation.checked_add(1).is_some() && superblock.incarnation.checked_add(1).is_some());
}

fn welcome(block: &Block) {
    let Ok(welcome) = Welcome::decode(block) else { return };
    assert!(welcome.boundaries.len() <= MAX_BOUNDARIES);
    let again = Welcome::decode(&welcome.encode()).expect("what was just encoded");
    let reason = again.reason.clone();
    // What wasn't UTF-8 becomes longer and may be cut.
    assert!(welcome.reason.starts_with(&reason) && (reason == welcome.reason || welcome.reason.len() > 512));
    assert_eq!(again, Welcome { reason, ..welcome });
}

fn signal(block: &Block) {
    let Ok(signal) = Signal::decode(block) else { return };
    assert_eq!(Signal::decode(&signal.encode()), Ok(signal));
    same_where_used(block, &signal.encode(), PREAMBLE_BYTES + 8 + 24 + 16);
}

fn report(message: &Message) {
    let mut bytes = [0; REPORT_BYTES];
    let start = if message.seal { 8 } else { 0 };
    let count = message.bytes.0.len().min(REPORT_BYTES - start);
    bytes[start..start + count].copy_from_slice(&message.bytes.0[..count]);
    if message.seal {
        bytes[..4].copy_from_slice(b"NBDR");
        let checksum = crc32c(&bytes);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
    }
    let Ok(report) = Report::decode(&bytes) else { return };
    assert_eq!(Report::decode(&report.encode()), Ok(report));
    let unused_is_zero = bytes[9..16].iter().chain(&bytes[40..]).all(|byte| *byte == 0);
    if unused_is_zero && matches!(report, Report::Applied(_)) {
        assert_eq!(report.encode(), bytes);
    }
}

/// Where nothing is set beyond the used bytes and flags are plain, the encoding is the very block.
fn same_where_used(block: &Block, again: &Block, used: usize) {
    let plain = block[10..12] == again[10..12] && block[PREAMBLE_BYTES + 1] < 2;
    // Each kind of signal has fields of its own, and leaves those of the others zero.
    let mut fields = (PREAMBLE_BYTES..used).map(|at| (block[at], again[at]));
    if plain && fields.all(|(given, kept)| kept != 0 || given == 0) && block[used..].iter().all(|byte| *byte == 0) {
        assert_eq!(block, again);
    }
}

fn frame(block: &Block) {
    let Ok(header) = Header::parse(block) else { return };
    let mut records: Vec<Record> = header.records(block).collect();
    assert_eq!(records.len(), usize::from(header.count));
    assert!(
        header.last().next() > header.last()
            && header.fill.next() > header.fill
            && header.last() >= header.first
            && header.first.0 > 0
    );
    for record in &records {
        assert!(usize::from(record.volume) < MAX_VOLUMES && record.end() >= record.offset);
    }
    let bytes: usize = records.iter().map(|record| padded(record.payload_bytes())).sum();
    assert!(bytes == header.payload_bytes as usize && bytes <= MAX_FRAME_PAYLOAD_BYTES);
    assert_eq!(header.frame_bytes(), (BLOCK_BYTES + bytes) as u64);

    let mut again = [0; BLOCK_BYTES];
    let chained = header.encode(records.iter(), &mut again);
    assert_eq!(Header::parse(&again), Ok(header));
    assert!(header.records(&again).eq(records.iter().copied()));
    assert_eq!(chained, digest(&again));
    let reserved = |record: usize| 128 + record * 32 + 20..128 + record * 32 + 32;
    let mut unused = (0..records.len()).flat_map(reserved).chain(94..128).chain(128 + records.len() * 32..BLOCK_BYTES);
    if unused.all(|at| block[at] == 0) {
        assert_eq!(block, &again);
    }

    // Payloads that fit the descriptors are accepted, and no other byte of them.
    let mut payload = vec![0x5a; bytes];
    let _ = verify_payload(&header, block, |at| crc32c(&payload[at]));
    let mut at = 0;
    for record in &mut records {
        let used = record.payload_bytes();
        record.checksum = if used == 0 { 0 } else { crc32c(&payload[at..at + used]) };
        at += padded(used);
    }
    header.encode(records.iter(), &mut again);
    assert_eq!(verify_payload(&header, &again, |at| crc32c(&payload[at])), Ok(()));
    if let Some(first) = records.iter().position(|record| record.payload_bytes() > 0) {
        payload[0] ^= 1;
        let seq = header.first.0 + first as u64;
        assert_eq!(verify_payload(&header, &again, |at| crc32c(&payload[at])).map_err(|error| error.seq.0), Err(seq));
    }
}
