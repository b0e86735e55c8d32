//! Writes the seeds of all targets: `cargo run --example seeds` in `fuzz/`. Inputs that were found by fuzzing lie
//! beside them as `found-…` and stay as they are.

use nbd_mirror::format::block;
use nbd_mirror::format::frame::{FLAG_STABLE, Header, Kind as RecordKind, Record};
use nbd_mirror::format::ids::{Digest, Epoch, Fill, Id, Mark, Seq};
use nbd_mirror::format::nbd::options::*;
use nbd_mirror::format::superblock::{Phase, Role, Staging, Superblock, Volume};
use nbd_mirror::format::wire::{Report, Signal, Verdict, Welcome, encode_hello};
use nbd_mirror::limits::{BLOCK_BYTES, MAX_BOUNDARIES, MAX_KNOWN_MARKS, MAX_SUMS};
use nbd_mirror_fuzz::core_events::Play;
use nbd_mirror_fuzz::core_events::destination::{
    self, DestinationEvent, DestinationPlay, FrameEdit, FrameField, SentRecord,
};
use nbd_mirror_fuzz::core_events::source::{SourceEvent, SourcePlay};
use nbd_mirror_fuzz::journal_recovery::image::{Field, Image, Mutation, Step, Written};
use nbd_mirror_fuzz::nbd_negotiation::{self, Client, Part};
use nbd_mirror_fuzz::nbd_requests::{self, Session};
use nbd_mirror_fuzz::pick::{MarkPick, Number};
use nbd_mirror_fuzz::replication::{Kind, Message};
use nbd_mirror_fuzz::structured::{Encode, List};
use std::path::Path;

fn main() -> std::io::Result<()> {
    negotiation()?;
    requests()?;
    replication()?;
    recovery()?;
    sources()?;
    destinations()
}

fn write(target: &str, name: &str, seed: &impl Encode) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut bytes = Vec::new();
    seed.encode(&mut bytes);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)
}

fn list<T: Clone>(items: &[T]) -> List<T> {
    List(items.to_vec())
}

fn negotiation() -> std::io::Result<()> {
    use nbd_negotiation::Sent;
    let option = |option: u32, data: &[Part]| Sent::Option { option: option as u8, data: list(data) };
    let named = |name| Part::Named { name };
    let info = |name, kinds: &[u16]| {
        let kinds = kinds.iter().map(|n| Part::Count16 { n: *n });
        [named(name), Part::Count16 { n: kinds.len() as u16 }].into_iter().chain(kinds).collect::<Vec<_>>()
    };
    let contexts = |name, queries: &[u8]| {
        let queries = queries.iter().map(|query| named(*query));
        [named(name), Part::Count32 { n: queries.len() as u32 }].into_iter().chain(queries).collect::<Vec<_>>()
    };
    let text = |bytes: &[u8]| Part::Bytes { bytes: list(bytes) };
    let structured = option(OPT_STRUCTURED_REPLY, &[]);
    let go = |name| option(OPT_GO, &info(name, &[INFO_NAME, INFO_BLOCK_SIZE]));
    let cases: [(&str, u8, u32, Vec<Sent>); 22] = [
        ("go", 3, 3, vec![go(0)]),
        ("go-the-only-one", 1, 3, vec![go(1)]),
        ("go-unknown", 2, 3, vec![go(5), go(0)]),
        ("go-read-only", 3, 1, vec![structured.clone(), go(1)]),
        ("export-name", 2, 3, vec![option(OPT_EXPORT_NAME, &[text(b"vol0")])]),
        ("export-name-with-zeroes", 2, 1, vec![structured.clone(), option(OPT_EXPORT_NAME, &[text(b"vol0")])]),
        ("export-name-unknown", 0, 1, vec![option(OPT_EXPORT_NAME, &[text(b"\xff")])]),
        ("list", 3, 3, vec![option(OPT_LIST, &[]), option(OPT_ABORT, &[])]),
        ("list-with-data", 3, 3, vec![option(OPT_LIST, &[text(b"x")]), option(OPT_ABORT, &[text(b"y")])]),
        ("info-of-all", 3, 3, (0..6).map(|name| option(OPT_INFO, &info(name, &[0, 1, 2, 3, 4]))).collect()),
        ("info-count-too-high", 2, 3, vec![option(OPT_INFO, &[named(0), Part::Count16 { n: 9 }]), go(0)]),
        ("contexts", 2, 3, vec![structured.clone(), option(OPT_SET_META_CONTEXT, &contexts(0, &[3])), go(0)]),
        ("contexts-listed", 2, 3, vec![structured.clone(), option(OPT_LIST_META_CONTEXT, &contexts(0, &[])), go(0)]),
        ("contexts-unset", 2, 3, {
            let set = |queries: &[u8]| option(OPT_SET_META_CONTEXT, &contexts(0, queries));
            vec![structured.clone(), set(&[3, 4]), set(&[5]), go(0)]
        }),
        (
            "contexts-of-another",
            2,
            3,
            vec![structured.clone(), option(OPT_SET_META_CONTEXT, &contexts(1, &[3])), go(0)],
        ),
        ("contexts-too-early", 2, 3, vec![option(OPT_SET_META_CONTEXT, &contexts(0, &[3])), go(0)]),
        ("contexts-false-count", 2, 3, {
            let data = [named(0), Part::Count32 { n: u32::MAX }, named(3)];
            vec![structured.clone(), option(OPT_SET_META_CONTEXT, &data), go(0)]
        }),
        ("starttls-and-unknown", 1, 3, vec![option(OPT_STARTTLS, &[]), option(99, &[text(b"z")]), go(0)]),
        ("long-name", 1, 3, vec![option(OPT_GO, &[Part::Filler { byte: b'n', count: 5000 }]), go(0)]),
        ("option-too-long", 1, 3, vec![Sent::Header { option: OPT_GO, length: u32::MAX }]),
        ("cut-off", 1, 3, vec![Sent::Header { option: OPT_GO, length: 40 }, Sent::Raw { bytes: list(b"abc") }]),
        ("another-protocol", 1, 0x4745_5420, vec![Sent::Raw { bytes: list(b"/ HTTP/1.1\r\n\r\n") }]),
    ];
    for (number, (name, exports, flags, options)) in cases.into_iter().enumerate() {
        let client = Client { exports, piece_bytes: number as u8, flags, options: List(options) };
        write("nbd_negotiation", name, &client)?;
    }
    let behind = vec![go(0), Sent::Raw { bytes: list(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]) }];
    write(
        "nbd_negotiation",
        "requests-behind",
        &Client { exports: 1, piece_bytes: 3, flags: 3, options: List(behind) },
    )?;
    let many = vec![option(OPT_LIST, &[]); 1001];
    write(
        "nbd_negotiation",
        "too-many-options",
        &Client { exports: 1, piece_bytes: 255, flags: 3, options: List(many) },
    )
}

fn requests() -> std::io::Result<()> {
    use nbd_requests::Sent;
    let near = |command, flags, from_end, blocks, skew, length_blocks, length_skew| Sent::Near {
        command,
        flags,
        from_end,
        blocks,
        skew,
        length_blocks,
        length_skew,
    };
    for command in 0..9 {
        let sent = [
            near(command, 0, false, 0, 0, 1, 0),
            near(command, 1, false, 3, 0, 8, 0),
            near(command, 2, false, 3, 0, 8, 0),
            near(command, 4, true, 8, 0, 8, 0),
            near(command, 8, true, 8, 0, 9, 0),
            near(command, 16, false, 0, 0, 1, 0),
            near(command, 0, true, 0, 0, 1, 0),
            near(command, 0, false, 0, 1, 1, 0),
            near(command, 0, false, 0, 0, 1, 1),
            near(command, 0, false, 0, 0, 0, 0),
            near(command, 0, true, 1, 0, 65535, 0),
            Sent::Any { command: command.into(), flags: 0, offset: 0, length: (32 << 20) + 65536 },
            Sent::Any { command: command.into(), flags: 0, offset: 0, length: 32 << 20 },
            Sent::Any { command: command.into(), flags: 0, offset: u64::MAX - 511, length: 1024 },
            Sent::Raw { bytes: [0x25; 28] },
        ];
        for (name, block_log, blocks, read_only) in
            [("small", 9, 64, false), ("large", 16, u64::MAX >> 17, false), ("read-only", 12, 1 << 20, true)]
        {
            let flags = usize::from(command) + name.len();
            let (structured, base_allocation) = (!flags.is_multiple_of(3), flags.is_multiple_of(2));
            let session = Session { block_log, blocks, read_only, structured, base_allocation, requests: list(&sent) };
            write("nbd_requests", &format!("{name}-{command}"), &session)?;
        }
    }
    Ok(())
}

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

fn replication() -> std::io::Result<()> {
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
        reason: reason.into(),
    };
    for boundaries in [0, 1, MAX_BOUNDARIES] {
        write(&format!("welcome-{boundaries}"), sealed(Kind::Welcome, &welcome(boundaries, "").encode()))?;
    }
    let fenced = Welcome::refuse(Verdict::Fenced, Epoch(4), "fenced: the destination was promoted");
    write("welcome-fenced", sealed(Kind::Welcome, &fenced.encode()))?;
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
        ("ping", Signal::Ping { answered: Seq(77), alone: true }),
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
        ("pong", Report::Pong),
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

fn recovery() -> std::io::Result<()> {
    let records = |count: u8| -> List<Written> {
        let written = |n: u8| Written {
            kind: n % 5,
            volume: n,
            flags: n,
            offset_blocks: n * 3,
            length: 1000 * u16::from(n),
            byte: n,
        };
        List((0..count).map(written).collect())
    };
    let frame = |n: u8| Step::Frame { flags: n, uncommitted: n % 3, records: records(1 + n % 4) };
    let frames = |count: u8| -> Vec<Step> { (0..count).map(frame).collect() };
    let one_fill = frames(4);
    let two_fills = [frames(5), vec![Step::NextFill], frames(3)].concat();
    let many_fills = [frames(40), vec![Step::Restart], frames(40)].concat();
    let torn = [frames(6), vec![Step::Torn { frames: 2 }], frames(1), vec![Step::NextFill], frames(2)].concat();
    let untouched = |name: &str, steps: &[Step], behind| {
        let image = Image {
            half_blocks: 28,
            fill: 4,
            seq: Number::Small { n: 40 },
            steps: list(steps),
            behind,
            vouched: true,
            mutations: list(&[]),
        };
        write("journal_recovery", name, &image)
    };
    untouched("empty", &[], 0)?;
    untouched("one-fill", &one_fill, 1)?;
    untouched("two-fills", &two_fills, 2)?;
    untouched("second-fill-clean", &two_fills, 1)?;
    untouched("all-clean", &two_fills, 0)?;
    untouched("many-fills", &many_fills, 2)?;
    untouched("torn-tail", &torn, 2)?;
    untouched("torn-last", &[frames(3), vec![Step::Torn { frames: 1 }]].concat(), 1)?;

    let flip = |half, at| Mutation::Flip { half, at, bit: 3 };
    let forge = |at: Field, value| Mutation::Forge { half: true, block: 0, at, value };
    let mut cases = vec![
        ("flip-header", vec![flip(true, 50)]),
        ("flip-payload", vec![flip(true, 5000)]),
        ("flip-second-fill", vec![flip(false, 50)]),
        ("zeroed", vec![Mutation::Zero { half: true, sector: 8, count: 24 }]),
        ("misplaced-sector", vec![Mutation::Misplaced { half: true, from: 0, to: 16, whole_block: false }]),
        ("misplaced-block", vec![Mutation::Misplaced { half: true, from: 0, to: 2, whole_block: true }]),
        ("swapped", vec![Mutation::Swap]),
        ("short", vec![Mutation::Short { half: true, bytes: 60000 }]),
        ("noise", vec![Mutation::Noise { half: false, at: 10, bytes: list(b"NBDMFRAM") }]),
        ("forged-count", vec![forge(Field::Count, Number::More { by: 1 })]),
        ("forged-position", vec![forge(Field::Position, Number::Huge { below: 0 })]),
        ("forged-first", vec![forge(Field::First, Number::Huge { below: 3 })]),
        ("forged-committed", vec![forge(Field::Committed, Number::Huge { below: 0 })]),
        ("forged-fill", vec![forge(Field::Fill, Number::More { by: 1 })]),
        ("forged-epoch", vec![forge(Field::Epoch, Number::Huge { below: 0 })]),
        ("forged-length", vec![forge(Field::Length, Number::Less { by: 1 })]),
        ("forged-offset", vec![forge(Field::Offset, Number::Huge { below: 255 })]),
        ("forged-volume", vec![forge(Field::Volume, Number::Small { n: 31 })]),
        ("forged-previous", vec![forge(Field::Previous, Number::Same)]),
    ];
    for (vouched, suffix) in [(true, ""), (false, "-not-vouched")] {
        for (name, mutations) in &mut cases {
            let image = Image {
                half_blocks: 28,
                fill: 4,
                seq: Number::Small { n: 40 },
                steps: list(&two_fills),
                behind: 2,
                vouched,
                mutations: list(mutations),
            };
            write("journal_recovery", &format!("{name}{suffix}"), &image)?;
        }
    }
    Ok(())
}

fn sources() -> std::io::Result<()> {
    use SourceEvent::*;
    let record = |block| Record { kind: 0, flags: 0, volume: 0, block, length: 4096 };
    let known = MarkPick::Known { back: 0 };
    let welcome = |fresh: bool, applied: &MarkPick, boundaries: &[MarkPick]| Welcome {
        verdict: 0,
        epoch: Number::Same,
        whole: !fresh,
        fresh,
        applied: applied.clone(),
        boundaries: list(boundaries),
    };
    let usual = welcome(false, &MarkPick::Known { back: 0 }, &[MarkPick::Known { back: 1 }, known.clone()]);
    let work = vec![
        record(1),
        record(2),
        Turn { millis: 1 },
        Burst { count: 40, kind: 0, block: 0, length: 131072 },
        Turn { millis: 1 },
        Send { count: 9 },
        Complete { which: 1 },
        CompleteAll,
        StoredAll,
        Turn { millis: 1 },
        Read { volume: 0, block: 0, blocks: 300 },
    ];
    let fill =
        vec![Burst { count: 200, kind: 0, block: 7, length: 131072 }, Settle, StoredAll, Settle, StoredAll, Settle];
    let change = vec![
        Record { kind: 2, flags: 0, volume: 1, block: 3, length: 1 << 20 },
        Record { kind: 3, flags: 3, volume: 0, block: 9, length: 8192 },
        Record { kind: 4, flags: 0, volume: 0, block: 0, length: 0 },
        Record { kind: 0, flags: 1, volume: 2, block: 5, length: 700 },
    ];
    let switch = vec![Turn { millis: 6000 }, Settle, StoredAll, Settle, Applied { mark: known.clone() }, Settle];
    let answer = [0, 0xff, 0xf0].map(|equal| Sums { which: 0, equal, unknown: false });
    let answers = [&answer[..], &[Settle, StoredAll, Settle], &answer, &answer, &answer].concat();
    // Until a fill that nobody else has is clean.
    let alone = [vec![Deadline, Deadline, Settle], change.clone(), fill.clone(), vec![Sync, Settle]].concat();
    let resync = [
        vec![Settle, Turn { millis: 1 }, Settle],
        answers.clone(),
        vec![Settle, StoredAll, Settle, StoredAll, Settle, Applied { mark: known.clone() }, Settle],
    ]
    .concat();
    let flap = vec![
        WelcomeAt { back: 0, lag: 0, whole: true },
        record(3),
        Settle,
        Disconnect,
        Deadline,
        WelcomeAt { back: 1, lag: 0, whole: true },
        Settle,
        StoredAll,
        Pong,
        Deadline,
        Pong,
        Turn { millis: 1000 },
        Settle,
        Disconnect,
        Turn { millis: 6000 },
    ];
    let (going_on, stalling, failing) = (0, 1, 2);
    let cases: Vec<(&str, bool, u8, Vec<SourceEvent>)> = vec![
        ("unmirrored", false, stalling, [work.clone(), change.clone(), fill.clone(), vec![Sync, Settle]].concat()),
        ("mirrored", true, stalling, [vec![usual.clone()], work.clone(), change.clone(), switch.clone()].concat()),
        ("full", true, stalling, [vec![usual.clone()], fill.clone(), fill.clone(), switch.clone()].concat()),
        ("away", true, stalling, [work.clone(), fill.clone(), vec![usual.clone()], switch.clone()].concat()),
        (
            "first-sync",
            true,
            stalling,
            [
                vec![welcome(true, &MarkPick::Zero, &[])],
                work.clone(),
                vec![Copy { count: 4 }, CompleteAll],
                work.clone(),
                vec![Settle, StoredAll, Settle, StoredAll],
                switch.clone(),
            ]
            .concat(),
        ),
        (
            "connected-anew",
            true,
            stalling,
            [
                vec![usual.clone()],
                work.clone(),
                vec![Disconnect, usual.clone(), Send { count: 20 }],
                work.clone(),
                vec![welcome(true, &MarkPick::Zero, &[]), Settle],
            ]
            .concat(),
        ),
        (
            "sync",
            true,
            stalling,
            [vec![usual.clone()], work.clone(), vec![Sync, Sync], switch.clone(), vec![Sync]].concat(),
        ),
        (
            "fenced",
            true,
            stalling,
            [vec![usual.clone()], work.clone(), vec![Fenced { epoch: Number::More { by: 1 } }], work.clone()].concat(),
        ),
        (
            "fenced-by-an-older-epoch",
            true,
            stalling,
            [vec![usual.clone()], work.clone(), vec![Fenced { epoch: Number::Less { by: 1 } }, Settle], work.clone()]
                .concat(),
        ),
        (
            "refused",
            true,
            stalling,
            [
                work.clone(),
                vec![
                    Welcome {
                        verdict: 2,
                        epoch: Number::Same,
                        whole: true,
                        fresh: false,
                        applied: MarkPick::Zero,
                        boundaries: list(&[]),
                    },
                    Settle,
                ],
            ]
            .concat(),
        ),
        (
            "stored-what-was-not-sent",
            true,
            stalling,
            [vec![usual.clone()], work.clone(), vec![Stored { seq: Number::More { by: 1 } }, Settle]].concat(),
        ),
        (
            "applied-what-was-not-sent",
            true,
            stalling,
            [
                vec![usual.clone()],
                work.clone(),
                vec![
                    Applied {
                        mark: MarkPick::Any { fill: Number::More { by: 9 }, seq: Number::More { by: 99 }, digest: 1 },
                    },
                    Turn { millis: 6000 },
                    Settle,
                ],
            ]
            .concat(),
        ),
        (
            "applied-a-later-fill",
            true,
            stalling,
            [
                vec![usual.clone()],
                work.clone(),
                vec![
                    StoredAll,
                    Turn { millis: 6000 },
                    Settle,
                    StoredAll,
                    Settle,
                    Applied { mark: MarkPick::Fill { back: 0, fill: Number::More { by: 1 } } },
                    Settle,
                ],
            ]
            .concat(),
        ),
        (
            "welcome-beyond",
            true,
            stalling,
            [
                work.clone(),
                vec![
                    welcome(
                        false,
                        &MarkPick::Seq { back: 0, seq: Number::Huge { below: 0 } },
                        std::slice::from_ref(&known),
                    ),
                    Settle,
                ],
            ]
            .concat(),
        ),
        (
            "parted",
            true,
            stalling,
            [work.clone(), vec![welcome(false, &known, &[MarkPick::Digest { back: 0, digest: 5 }]), Settle]].concat(),
        ),
        (
            "goes-alone-and-comes-back",
            true,
            going_on,
            [
                vec![usual.clone()],
                work.clone(),
                vec![StoredAll, Disconnect],
                change.clone(),
                vec![Deadline, Deadline, Settle, WelcomeAt { back: 0, lag: 0, whole: true }, Settle, StoredAll],
                vec![Settle, Pong, Turn { millis: 1000 }, Pong, Turn { millis: 100 }, Settle],
            ]
            .concat(),
        ),
        (
            "alone-over-two-fills",
            true,
            going_on,
            [vec![usual.clone()], work.clone(), vec![StoredAll, Disconnect], alone.clone(), resync.clone()].concat(),
        ),
        (
            "alone-map-late",
            true,
            going_on,
            [
                vec![usual.clone()],
                work.clone(),
                vec![StoredAll, Disconnect, Deadline, Deadline, Settle, Sync, Turn { millis: 1 }, Flush { count: 200 }],
                vec![CompleteAll, Turn { millis: 1 }, CompleteAll, Turn { millis: 1 }],
                vec![WelcomeAt { back: 0, lag: 0, whole: true }, record(9), Turn { millis: 1 }, CompleteAll],
                vec![Turn { millis: 1 }, Send { count: 9 }, CompleteAll, Turn { millis: 1 }, Settle],
            ]
            .concat(),
        ),
        (
            "back-at-an-older-boundary",
            true,
            going_on,
            [
                vec![usual.clone()],
                work.clone(),
                vec![StoredAll, Disconnect],
                alone.clone(),
                vec![WelcomeAt { back: 250, lag: 0, whole: true }, Settle, SettledThere],
                resync.clone(),
            ]
            .concat(),
        ),
        (
            "back-while-a-write-is-slow",
            true,
            stalling,
            vec![
                WelcomeAt { back: 0, lag: 0, whole: true },
                record(1),
                Turn { millis: 1 },
                Send { count: 9 },
                StoredAll,
                WelcomeKnown { back: 1, lag: 0, whole: true },
                CompleteAll,
                Turn { millis: 1 },
                Settle,
            ],
        ),
        (
            "applied-before-it-begins-anew",
            true,
            stalling,
            vec![
                WelcomeKnown { back: 0, lag: 0, whole: true },
                record(1),
                Sync,
                Settle,
                SettledThere,
                Turn { millis: 1 },
                Applied { mark: known.clone() },
                StoredAll,
                Settle,
            ],
        ),
        (
            "stores-nothing",
            true,
            going_on,
            [
                vec![
                    record(1),
                    WelcomeAt { back: 0, lag: 0, whole: true },
                    record(2),
                    Turn { millis: 1 },
                    Send { count: 9 },
                ],
                vec![Pong, Turn { millis: 4000 }, Pong, Turn { millis: 4000 }, Settle, Pong, Turn { millis: 4000 }],
                (0..20).flat_map(|_| [Pong, Turn { millis: 4000 }]).collect(),
                vec![Settle],
            ]
            .concat(),
        ),
        (
            "settled-elsewhere",
            true,
            going_on,
            vec![
                WelcomeKnown { back: 0, lag: 0, whole: true },
                Settle,
                Settled { mark: MarkPick::Known { back: 0 } },
                Turn { millis: 1 },
                WelcomeKnown { back: 1, lag: 0, whole: false },
                SettledThere,
                Settle,
                Settled { mark: MarkPick::Zero },
                Settle,
            ],
        ),
        (
            "resync-of-what-differs",
            true,
            stalling,
            [vec![WelcomeKnown { back: 0, lag: 0, whole: true }, Settle, SettledThere], resync.clone(), switch.clone()]
                .concat(),
        ),
        (
            "resync-while-clients-write",
            true,
            stalling,
            [
                vec![WelcomeKnown { back: 0, lag: 0, whole: true }, Settle, SettledThere, Settle],
                vec![record(1), Turn { millis: 1 }, Sums { which: 0, equal: 0, unknown: false }, StoredAll, Settle],
                vec![record(2), Turn { millis: 1 }, Sums { which: 0, equal: 0, unknown: false }, StoredAll, Settle],
                vec![record(3), Turn { millis: 1 }, Sums { which: 0, equal: 0, unknown: false }, StoredAll, Settle],
                vec![record(4), Turn { millis: 1 }, Sums { which: 0, equal: 0x55, unknown: false }, StoredAll, Settle],
                resync.clone(),
            ]
            .concat(),
        ),
        (
            "resync-of-an-unreadable-volume",
            true,
            stalling,
            vec![
                WelcomeKnown { back: 0, lag: 0, whole: true },
                Settle,
                SettledThere,
                Settle,
                Copy { count: 8 },
                Unreadable { which: 0 },
                Settle,
                Sums { which: 0, equal: 0, unknown: true },
                Settle,
            ],
        ),
        (
            "verify",
            true,
            stalling,
            [
                vec![usual.clone(), Settle, Verify { repair: false }, Verify { repair: true }, Settle],
                vec![Sums { which: 1, equal: 0xf0, unknown: false }, Sums { which: 0, equal: 0xff, unknown: false }],
                answers.clone(),
                vec![Verify { repair: true }, Settle],
                answers.clone(),
                vec![Settle, StoredAll, Settle],
            ]
            .concat(),
        ),
        (
            "verify-of-what-is-not-known",
            true,
            stalling,
            vec![
                usual.clone(),
                Verify { repair: true },
                Settle,
                Sums { which: 0, equal: 0, unknown: true },
                Settle,
                Verify { repair: false },
                Settle,
                Disconnect,
                Settle,
            ],
        ),
        (
            "fails",
            true,
            failing,
            [
                vec![usual.clone(), record(1), Turn { millis: 1 }, Disconnect, record(2), Turn { millis: 1 }],
                vec![record(3), Turn { millis: 30000 }, record(4), Settle],
                vec![WelcomeAt { back: 0, lag: 0, whole: true }, Settle, StoredAll, Settle, record(5), Settle],
            ]
            .concat(),
        ),
        (
            "fails-until-it-may-go-alone",
            true,
            failing,
            vec![
                record(1),
                Turn { millis: 1 },
                Turn { millis: 30000 },
                Policy { kind: 0 },
                record(2),
                Settle,
                Policy { kind: 1 },
                record(3),
                Settle,
                Timeout { seconds: 0 },
                Policy { kind: 2 },
                Turn { millis: 2000 },
                Settle,
            ],
        ),
        (
            "silent",
            true,
            going_on,
            [
                vec![usual.clone(), record(1), Settle, Deadline, Send { count: 1 }, Deadline, Pong, Deadline],
                vec![Deadline, Deadline, Deadline, Deadline, Deadline, Settle, Deadline, Deadline, record(2), Settle],
            ]
            .concat(),
        ),
        (
            "flapping",
            true,
            going_on,
            [flap.clone(), flap.clone(), flap.clone(), flap.clone(), vec![MemoryLow, Settle]].concat(),
        ),
        (
            "fenced-while-it-begins-anew",
            true,
            stalling,
            vec![
                welcome(true, &MarkPick::Zero, &[]),
                record(1),
                Fenced { epoch: Number::More { by: 1 } },
                Turn { millis: 1 },
                CompleteAll,
                Settle,
            ],
        ),
    ];
    for (name, mirrored, policy, events) in cases {
        for (flush, suffix) in [(false, ""), (true, "-flush")] {
            let (whole, dirty) = (name != "first-sync", if name == "first-sync" { u8::MAX } else { 3 });
            let play = SourcePlay {
                flush,
                mirrored,
                whole,
                alone: false,
                policy,
                timeout: 4,
                volumes: 2,
                blocks: 700,
                clean: 4,
                dirty,
                known: 2,
                events: list(&events),
            };
            write("core_events", &format!("source-{name}{suffix}"), &Play::Source { play })?;
        }
    }
    Ok(())
}

fn destinations() -> std::io::Result<()> {
    use DestinationEvent::*;
    let record = |kind, block| SentRecord { kind, volume: 0, flags: 0, block, length: 9000 };
    let frame = |flags, kinds: &[u8]| Frame {
        next_fill: false,
        flags,
        records: List(kinds.iter().map(|kind| record(*kind, u16::from(*kind) * 7)).collect()),
        edits: list(&[]),
    };
    let edited = |field, value| Frame {
        next_fill: false,
        flags: 1,
        records: list(&[record(0, 1)]),
        edits: list(&[FrameEdit { field, value }]),
    };
    let next = Frame { next_fill: true, flags: 1, records: list(&[record(0, 3)]), edits: list(&[]) };
    let meet = vec![Connect { hello: destination::Connect::Itself }, ResumeHere];
    let stream = |flags| {
        vec![
            frame(flags, &[0]),
            frame(flags, &[0, 1, 2]),
            Store { count: 1 },
            frame(flags, &[0, 0]),
            Store { count: 4 },
            CompleteAll,
            Turn,
            CompleteAll,
            Turn,
        ]
    };
    let apply = vec![
        SyncHere { whole: true },
        Turn,
        Apply { count: 3 },
        Complete { which: 1 },
        CompleteAll,
        Turn,
        CompleteAll,
        Turn,
        CompleteAll,
    ];
    let again = vec![Disconnect, Settle, Connect { hello: destination::Connect::Itself }];
    let back = |back| Resume { common: MarkPick::Known { back } };
    let begin = vec![meet[0].clone(), Restart { at: MarkPick::Zero }];
    // The source comes back from afar.
    let anew = [again.clone(), vec![SettleHere, Settle, RestartBehind { fills: 3 }, Settle]].concat();
    let questions = vec![
        Ask { id: 1, volume: 0, block: 0, length: Number::Any { n: 40 << 10 } },
        Ping { answered: Number::Same, alone: true },
        Answer,
        Turn,
        Answer,
    ];
    let whole = vec![SyncHere { whole: true }, Settle];
    let partial = vec![SyncHere { whole: false }, Settle];
    let flushes = vec![frame(2, &[3]), Store { count: 1 }, CompleteAll];
    let mut cases: Vec<(&str, Vec<DestinationEvent>)> = vec![
        ("always", [meet.clone(), stream(1), apply.clone()].concat()),
        ("flush", [meet.clone(), stream(0), stream(2), apply.clone()].concat()),
        (
            "two-fills",
            [
                meet.clone(),
                stream(1),
                apply.clone(),
                vec![next.clone()],
                stream(1),
                apply.clone(),
                vec![next.clone(), Settle],
            ]
            .concat(),
        ),
        ("next-fill-too-early", [meet.clone(), stream(1), vec![next.clone(), Settle]].concat()),
        ("from-scratch", [begin.clone(), stream(1), apply.clone()].concat()),
        (
            "from-scratch-at-the-end-of-numbers",
            vec![
                meet[0].clone(),
                Restart {
                    at: MarkPick::Any { fill: Number::Huge { below: 0 }, seq: Number::Huge { below: 0 }, digest: 1 },
                },
                frame(1, &[0]),
                Settle,
            ],
        ),
        ("dropped", [meet.clone(), stream(1), again.clone(), vec![back(1)], stream(1), apply.clone()].concat()),
        ("dropped-all", [meet.clone(), stream(1), again.clone(), vec![back(3)], stream(1), apply.clone()].concat()),
        (
            "dropped-two-fills",
            [
                meet.clone(),
                stream(1),
                apply.clone(),
                vec![next.clone(), Settle],
                again.clone(),
                vec![back(1)],
                stream(1),
            ]
            .concat(),
        ),
        (
            "dropped-sealed",
            [meet.clone(), stream(1), vec![SyncHere { whole: false }], again.clone(), vec![back(2), Settle]].concat(),
        ),
        (
            "sealed-too-early",
            [
                meet.clone(),
                flushes.clone(),
                vec![
                    frame(0, &[0]),
                    Store { count: 1 },
                    SyncHere { whole: true },
                    Turn,
                    CompleteAll,
                    Turn,
                    frame(0, &[0]),
                    Settle,
                ],
            ]
            .concat(),
        ),
        ("only-flushes", [meet.clone(), flushes.clone(), flushes.clone(), apply.clone(), vec![Settle]].concat()),
        (
            "signalled-twice",
            [
                meet.clone(),
                stream(1),
                apply.clone(),
                vec![Sync { last: MarkPick::Known { back: 0 }, whole: false }, Settle],
            ]
            .concat(),
        ),
        (
            "cut-in-the-middle",
            [
                meet.clone(),
                vec![frame(1, &[0]), Store { count: 1 }, frame(1, &[0]), Disconnect, CompleteAll],
                meet.clone(),
                stream(1),
            ]
            .concat(),
        ),
        (
            "promoted",
            [
                meet.clone(),
                stream(1),
                vec![Promote, Turn, CompleteAll, Connect { hello: destination::Connect::Itself }, Settle],
            ]
            .concat(),
        ),
        (
            "promoted-while-storing",
            [meet.clone(), vec![frame(0, &[0]), Store { count: 1 }, Promote, Turn, Settle]].concat(),
        ),
        ("promoted-empty", vec![Promote, Settle]),
        (
            "resync",
            [
                meet.clone(),
                stream(1),
                anew.clone(),
                stream(1),
                questions.clone(),
                partial.clone(),
                vec![next.clone()],
                stream(1),
                questions.clone(),
                whole.clone(),
                vec![next.clone()],
                stream(1),
                partial.clone(),
            ]
            .concat(),
        ),
        (
            "resync-twice",
            [
                meet.clone(),
                anew.clone(),
                stream(1),
                partial.clone(),
                vec![next.clone()],
                stream(1),
                anew.clone(),
                stream(1),
                whole.clone(),
                anew.clone(),
            ]
            .concat(),
        ),
        (
            "resync-cut-while-settling",
            [meet.clone(), stream(1), again.clone(), vec![SettleHere, Turn], again.clone(), vec![SettleHere, Settle]]
                .concat(),
        ),
        (
            "resync-promoted",
            [meet.clone(), stream(1), anew.clone(), stream(1), partial.clone(), vec![Promote, Turn, Settle]].concat(),
        ),
        (
            "resync-without-room",
            [
                meet.clone(),
                anew.clone(),
                stream(1),
                partial.clone(),
                vec![next.clone()],
                stream(1),
                partial.clone(),
                again.clone(),
            ]
            .concat(),
        ),
        (
            "resync-best-effort",
            [
                meet.clone(),
                anew.clone(),
                stream(1),
                partial.clone(),
                vec![next.clone()],
                stream(1),
                partial.clone(),
                anew.clone(),
                stream(1),
                whole.clone(),
            ]
            .concat(),
        ),
    ];
    let hellos = {
        use destination::Connect::*;
        [
            Epoch { epoch: Number::Less { by: 1 } },
            Epoch { epoch: Number::More { by: 1 } },
            Other,
            HalfBytes { bytes: Number::More { by: 1 } },
            Volumes { count: 1 },
            VolumeBytes { bytes: Number::Less { by: 1 } },
        ]
    };
    cases.push(("refusals", hellos.into_iter().map(|hello| Connect { hello }).collect()));
    let fields = {
        use FrameField::*;
        [Source, Epoch, Fill, Position, First, Committed, Previous, Volume, Offset, Length]
    };
    let edits = fields.into_iter().flat_map(|field| {
        let values = [Number::More { by: 1 }, Number::Huge { below: 0 }].map(|value| edited(field.clone(), value));
        [values.to_vec(), vec![frame(1, &[0]), Settle], meet.clone()].concat()
    });
    cases.push(("odd-headers", [meet.clone(), edits.collect()].concat()));
    for (name, events) in cases {
        let clean = if name.starts_with("from-scratch") { 0 } else { 4 };
        let staging_blocks = if name == "resync-without-room" || name == "resync-best-effort" { 15 } else { 255 };
        let best_effort = name == "resync-best-effort";
        let (volumes, blocks, half_blocks) = (1, 99, 60);
        let events = List(events);
        let whole = !name.starts_with("from-scratch");
        let play = DestinationPlay { volumes, blocks, half_blocks, clean, whole, staging_blocks, best_effort, events };
        write("core_events", &format!("destination-{name}"), &Play::Destination { play })?;
    }
    Ok(())
}
