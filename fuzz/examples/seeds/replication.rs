//! What source and destination send each other.

use crate::{list, write};
use nbd_mirror::format::block;
use nbd_mirror::format::frame::{FLAG_STABLE, Header, Kind as RecordKind, Record};
use nbd_mirror::format::ids::{Digest, Epoch, Fill, Id, Mark, Seq};
use nbd_mirror::format::ping::{OnDisconnect, Ping, Standing};
use nbd_mirror::format::superblock::{Phase, Role, Staging, Superblock, Volume};
use nbd_mirror::format::wire::{Fork, Report, Signal, Verdict, Welcome, encode_hello};
use nbd_mirror::limits::{BLOCK_BYTES, MAX_BOUNDARIES, MAX_KNOWN_MARKS, MAX_SUMS};
use nbd_mirror_fuzz::replication::{Kind, Message};

const PING: Ping = Ping {
    answered: Seq(77),
    standing: Standing::Bound,
    on_disconnect: OnDisconnect::Stall,
    timeout_ms: 5000,
    echo: 78,
};

fn mark(n: u64) -> Mark {
    Mark { fill: Fill(n), seq: Seq(n.saturating_mul(10)), digest: Digest(n.wrapping_mul(1000)) }
}

fn superblock(role: Role, volumes: u8) -> Superblock {
    let volume = |n| Volume { name: format!("vol{n}"), size_bytes: 1 << 30, block_bytes: 512 };
    let volumes = (0..volumes).map(volume).collect();
    let first = Superblock::first(role, Id([7; 16]), "alpha", 8 << 20, Epoch(3), volumes);
    Superblock { generation: 8, incarnation: 2, clean: mark(5), whole: true, ..first }
}

/// A block's bytes behind its preamble, without the zeros at its end.
fn sealed(kind: Kind, block: &block::Block) -> Message {
    let flags = u16::from_le_bytes([block[10], block[11]]);
    let end = block.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    Message { kind, seal: true, flags, bytes: list(&block[16..end.max(16)]) }
}

pub fn write_all() -> std::io::Result<()> {
    let write = |name: &str, message: Message| write("replication", name, &message);
    for volumes in [1, 2, 32] {
        let (source, destination) = (superblock(Role::Source, volumes), superblock(Role::Destination, volumes));
        write(&format!("source-{volumes}"), sealed(Kind::SourceSuperblock, &source.encode()))?;
        write(&format!("destination-{volumes}"), sealed(Kind::DestinationSuperblock, &destination.encode()))?;
        write(&format!("hello-{volumes}"), sealed(Kind::Hello, &encode_hello(&source)))?;
    }
    let last = Superblock { epoch: Epoch(u64::MAX), clean: mark(u64::MAX), ..superblock(Role::Source, 1) };
    write("hello-of-the-last-epoch", sealed(Kind::Hello, &encode_hello(&last)))?;
    let last = Superblock { generation: u64::MAX, incarnation: u64::MAX, ..superblock(Role::Source, 1) };
    write("source-of-the-last-run", sealed(Kind::SourceSuperblock, &last.encode()))?;
    let fenced = Superblock { fenced_by: Epoch(4), whole: false, ..superblock(Role::Source, 1) };
    write("source-fenced", sealed(Kind::SourceSuperblock, &fenced.encode()))?;
    let promoted = Superblock { promoted: true, ..superblock(Role::Destination, 1) };
    write("destination-promoted", sealed(Kind::DestinationSuperblock, &promoted.encode()))?;
    let alone = Superblock {
        alone: true,
        lacking_since_unix_s: 1_800_000_000,
        known: (1..=MAX_KNOWN_MARKS as u64).map(mark).collect(),
        ..superblock(Role::Source, 1)
    };
    write("source-alone", sealed(Kind::SourceSuperblock, &alone.encode()))?;
    for (name, phase) in [("staging", Phase::Staging), ("draining", Phase::Draining)] {
        let staging = Staging { phase, head: 4096, tail: 1 << 20, before: mark(3), base: mark(2) };
        let resyncing = Superblock { staging, ..superblock(Role::Destination, 1) };
        write(&format!("destination-{name}"), sealed(Kind::DestinationSuperblock, &resyncing.encode()))?;
    }
    write(
        "raw-superblock",
        Message {
            kind: Kind::SourceSuperblock,
            seal: false,
            flags: 0,
            bytes: list(&superblock(Role::Source, 1).encode()[..]),
        },
    )?;

    let welcome = |boundaries: usize, reason: &str| Welcome {
        verdict: Verdict::Welcome,
        epoch: Epoch(3),
        whole: boundaries > 1,
        phase: if boundaries == 1 { Phase::Staging } else { Phase::Direct },
        promotable: boundaries > 0,
        base: if boundaries == 1 { mark(2) } else { Mark::default() },
        fresh: boundaries == 0,
        applied: mark(4),
        boundaries: (5..).take(boundaries).map(mark).collect(),
        fork: None,
        reason: reason.into(),
    };
    for boundaries in [0, 1, MAX_BOUNDARIES] {
        write(&format!("welcome-{boundaries}"), sealed(Kind::Welcome, &welcome(boundaries, "").encode()))?;
    }
    let fenced = Welcome::refuse(Verdict::Fenced, Epoch(4), "fenced: the destination was promoted");
    write("welcome-fenced", sealed(Kind::Welcome, &fenced.encode()))?;
    let forked = Welcome { fork: Some(Fork { at: mark(7), source: Id([7; 16]) }), ..fenced };
    write("welcome-forked", sealed(Kind::Welcome, &forked.encode()))?;
    let refused = Welcome::refuse(Verdict::Refused, Epoch(3), "é".repeat(300));
    write("welcome-refused", sealed(Kind::Welcome, &refused.encode()))?;
    let mut garbled = sealed(Kind::Welcome, &Welcome::refuse(Verdict::Refused, Epoch(3), "x".repeat(512)).encode());
    let at = garbled.bytes.0.len() - 200;
    garbled.bytes.0[at..].fill(0xff);
    write("welcome-not-utf-8", garbled)?;

    for (name, signal) in [
        ("resume", Signal::Resume { common: mark(2) }),
        ("settle", Signal::Settle { common: mark(2) }),
        ("restart", Signal::Restart { at: mark(0) }),
        ("ping", Signal::Ping(PING)),
        ("ask", Signal::Ask { id: 3, volume: 1, offset: 1 << 20, length: 1 << 20 }),
        ("sync", Signal::Sync { last: mark(3), whole: false }),
        ("sync-whole", Signal::Sync { last: mark(3), whole: true }),
        ("sync-of-the-last-fill", Signal::Sync { last: mark(u64::MAX), whole: true }),
    ] {
        write(name, sealed(Kind::Signal, &signal.encode()))?;
    }
    for (name, report) in [
        ("stored", Report::Stored(Seq(7))),
        ("applied", Report::Applied(mark(4))),
        ("fenced", Report::Fenced(Epoch(4))),
        ("settled", Report::Settled(mark(4))),
        ("pong", Report::Pong { stamp: 78 }),
        ("sums", Report::Sums { id: 3, count: MAX_SUMS }),
        ("stored-the-last-of-all", Report::Stored(Seq(u64::MAX))),
    ] {
        let bytes = list(&report.encode()[8..]);
        write(name, Message { kind: Kind::Report, seal: true, flags: 0, bytes })?;
    }

    let record = |kind, length| Record { volume: 1, kind, flags: 0, offset: 4096, length, checksum: 0 };
    let one_of_each = [
        record(RecordKind::Write, 512),
        record(RecordKind::Trim, 1 << 20),
        record(RecordKind::WriteZeroes, 4096),
        record(RecordKind::Flush, 0),
    ];
    let full = vec![record(RecordKind::Write, 8192); 124];
    let large = vec![record(RecordKind::Write, 128 << 10); 8];
    for (name, records) in [("frame", &one_of_each[..]), ("frame-full", &full), ("frame-large", &large)] {
        let mut block = [0; BLOCK_BYTES];
        header().encode(records.iter(), &mut block);
        write(name, sealed(Kind::Frame, &block))?;
    }
    Ok(())
}

fn header() -> Header {
    Header {
        flags: FLAG_STABLE,
        source: Id([7; 16]),
        epoch: Epoch(3),
        incarnation: 2,
        fill: Fill(6),
        position: 8192,
        first: Seq(51),
        committed: Seq(50),
        stable_here: Seq(50),
        previous: Digest(5000),
        payload_bytes: 0,
        count: 0,
    }
}
