//! The byte tables of docs/format.md: without gaps, as long as they say, and true of what the program encodes.

use std::collections::HashMap;
use std::path::Path;

use nbd_mirror::format::frame::{FLAG_SYNC, Header, Kind, RECORD_FUA, Record};
use nbd_mirror::format::ids::{Digest, Epoch, Fill, Id, Mark, Seq};
use nbd_mirror::format::kept::{FRAMES_OFFSET, Kept};
use nbd_mirror::format::map;
use nbd_mirror::format::nvram::{LogHead, SLOTS_OFFSET, SlotHead};
use nbd_mirror::format::ping::{OnDisconnect, Ping, Standing};
use nbd_mirror::format::superblock::{Phase, Role, Staging, Superblock, Volume, encode_claim};
use nbd_mirror::format::wire::{Fork, REPORT_BYTES, Report, Signal, Sum, Verdict, Welcome, encode_hello, encode_lacks};
use nbd_mirror::limits::{
    BLOCK_BYTES, COPY_WINDOW_BYTES, JOURNAL_DATA_OFFSET, MAX_BOUNDARIES, MAX_COPY_WINDOWS, MAX_FRAME_PAYLOAD_BYTES,
    MAX_GRAIN_BYTES, MAX_KNOWN_MARKS, MAX_RECORDS_PER_FRAME, MAX_SUMS, MAX_VOLUMES, SUM_GRAIN_BYTES,
};

/// One table: where each of its fields is, and how long the whole is, in bytes.
struct Table {
    fields: HashMap<String, (usize, usize)>,
    bytes: usize,
}

impl Table {
    /// A field's bytes.
    fn raw<'a>(&self, bytes: &'a [u8], field: &str) -> &'a [u8] {
        let (offset, size) = *self.fields.get(field).unwrap_or_else(|| panic!("the table has no field {field}"));
        &bytes[offset..offset + size]
    }

    /// A field as a number.
    fn number(&self, bytes: &[u8], field: &str) -> u64 {
        let raw = self.raw(bytes, field);
        assert!(raw.len() <= 8, "{field} is no number");
        raw.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A field as text, without the zeros behind it.
    fn text(&self, bytes: &[u8], field: &str) -> String {
        String::from_utf8(self.raw(bytes, field).to_vec()).unwrap().trim_end_matches('\0').to_owned()
    }

    /// Entry `n` of an array of tables like `entry`.
    fn entry<'a>(&self, bytes: &'a [u8], field: &str, entry: &Table, n: usize) -> &'a [u8] {
        &self.raw(bytes, field)[n * entry.bytes..(n + 1) * entry.bytes]
    }

    /// Panics where a byte that no field says anything of isn't zero.
    fn assert_rest_is_zero(&self, bytes: &[u8]) {
        for (field, (offset, size)) in &self.fields {
            if ["reserved", "rest", "padding"].contains(&field.as_str()) {
                assert!(bytes[*offset..offset + size].iter().all(|byte| *byte == 0), "{field} at {offset}");
            }
        }
    }
}

fn document() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md")).unwrap()
}

/// Every table with offsets, by its heading. Panics where one has a gap or another length than its heading says.
fn tables() -> HashMap<String, Table> {
    let mut tables = HashMap::new();
    for section in document().split("\n### ").skip(1) {
        let (heading, body) = section.split_once('\n').unwrap();
        let (name, bytes) = heading.split_once(" (").unwrap();
        let bytes: usize = bytes.strip_suffix(" bytes)").unwrap().parse().unwrap();
        let (mut fields, mut end) = (HashMap::new(), 0);
        let rows = body.lines().skip_while(|line| *line != "| offset | size | field | meaning |").skip(2);
        for row in rows.take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let (offset, size): (usize, usize) = (cells[1].parse().unwrap(), cells[2].parse().unwrap());
            assert_eq!(offset, end, "{name}: {} doesn't follow the field before it", cells[3]);
            end = offset + size;
            fields.insert(cells[3].to_owned(), (offset, size));
        }
        assert_eq!(end, bytes, "{name}: the fields' sum");
        tables.insert(name.to_owned(), Table { fields, bytes });
    }
    tables
}

/// A mark that can't be mistaken for another.
fn mark(n: u64) -> Mark {
    Mark { fill: Fill(n), seq: Seq(n + 1), digest: Digest(n + 2) }
}

fn assert_mark(tables: &HashMap<String, Table>, bytes: &[u8], n: u64) {
    let table = &tables["Mark"];
    let found = ["fill", "seq", "digest"].map(|field| table.number(bytes, field));
    assert_eq!(found, [n, n + 1, n + 2]);
}

fn assert_preamble(tables: &HashMap<String, Table>, block: &[u8], magic: &str, flags: u64) {
    let table = &tables["Preamble"];
    assert_eq!(table.raw(block, "magic"), magic.as_bytes());
    assert!(document().contains(&format!("| `{magic}` |")), "{magic} isn't in the list of magics");
    assert_eq!((table.number(block, "version"), table.number(block, "flags")), (3, flags));
    assert_checksum(table, block);
}

/// That its field `checksum` is that of all its bytes, the field's own taken as zero.
fn assert_checksum(table: &Table, bytes: &[u8]) {
    let mut copy = bytes.to_vec();
    let (offset, size) = table.fields["checksum"];
    copy[offset..offset + size].fill(0);
    assert_eq!(table.number(bytes, "checksum"), u64::from(nbd_mirror::format::checksum::crc32c(&copy)));
}

/// That a table of kinds has this row.
fn assert_listed(number: u64, name: &str) {
    assert!(document().contains(&format!("\n| {number} | {name} |")), "{name} isn't listed as {number}");
}

#[test]
fn the_superblock_is_as_documented() {
    let tables = tables();
    let volume =
        |n: usize| Volume { name: format!("volume {n}"), size_bytes: 1000 + n as u64, block_bytes: 2000 + n as u32 };
    let superblock = Superblock {
        role: Role::Source,
        generation: 101,
        source: Id(*b"0123456789abcdef"),
        lineage: Id(*b"fedcba9876543210"),
        name: "alpha".into(),
        half_bytes: 8 << 20,
        epoch: Epoch(102),
        fenced_by: Epoch(103),
        incarnation: 104,
        clean: mark(105),
        whole: true,
        promoted: false,
        alone: false,
        unwatched: false,
        lacking_since_unix_s: 201,
        grain_bytes: 1 << 16,
        known: (0..MAX_KNOWN_MARKS as u64).map(|n| mark(2000 + n)).collect(),
        staging: Staging {
            phase: Phase::Draining,
            head: 202 * BLOCK_BYTES as u64,
            tail: 203 * BLOCK_BYTES as u64,
            before: mark(204),
            base: mark(207),
        },
        volumes: (0..MAX_VOLUMES).map(volume).collect(),
    };
    let (table, entry, known) = (&tables["Superblock"], &tables["Volume entry"], &tables["Mark"]);
    assert_eq!((table.bytes, table.fields["volumes"].1), (BLOCK_BYTES, MAX_VOLUMES * entry.bytes));
    assert_eq!(table.fields["known"].1, MAX_KNOWN_MARKS * known.bytes);
    let block = superblock.encode();
    table.assert_rest_is_zero(&*block);
    assert_preamble(&tables, &*block, "NBDMSRCE", 1);
    assert_preamble(&tables, &*encode_hello(&superblock), "NBDMHELO", 1);
    let promoted = Superblock { role: Role::Destination, whole: false, promoted: true, ..superblock.clone() };
    assert_preamble(&tables, &*promoted.encode(), "NBDMDEST", 2);
    let alone = Superblock { whole: false, alone: true, ..superblock.clone() };
    assert_preamble(&tables, &*alone.encode(), "NBDMSRCE", 4);
    let unwatched = Superblock { whole: false, unwatched: true, ..superblock.clone() };
    assert_preamble(&tables, &*unwatched.encode(), "NBDMSRCE", 8);
    for (flag, name) in [(1, "whole"), (2, "promoted"), (4, "alone"), (8, "unwatched")] {
        assert_listed(flag, name);
    }
    for (phase, said) in
        [(Phase::Direct, "0 = direct: "), (Phase::Staging, "; 1 = staging: "), (Phase::Draining, "; 2 = draining: ")]
    {
        let staging = Staging { phase, ..superblock.staging };
        let number = table.number(&*Superblock { staging, ..superblock.clone() }.encode(), "phase");
        assert!(document().contains(said) && said.contains(&number.to_string()), "{phase:?} is {number}");
    }
    assert_eq!(table.raw(&*block, "source"), b"0123456789abcdef");
    assert_eq!(table.raw(&*block, "lineage"), b"fedcba9876543210");
    assert_eq!(table.text(&*block, "name"), "alpha");
    for (field, expected) in [
        ("generation", 101),
        ("half_bytes", 8 << 20),
        ("epoch", 102),
        ("fenced_by", 103),
        ("incarnation", 104),
        ("volume_count", MAX_VOLUMES as u64),
        ("known_count", MAX_KNOWN_MARKS as u64),
        ("phase", 2),
        ("grain_bytes", 1 << 16),
        ("lacking_since", 201),
        ("staging_head", 202 * BLOCK_BYTES as u64),
        ("staging_tail", 203 * BLOCK_BYTES as u64),
    ] {
        assert_eq!(table.number(&*block, field), expected, "{field}");
    }
    for (field, n) in [("clean", 105), ("staging_before", 204), ("staging_base", 207)] {
        assert_mark(&tables, table.raw(&*block, field), n);
    }
    for n in [0, MAX_KNOWN_MARKS - 1] {
        assert_mark(&tables, table.entry(&*block, "known", known, n), 2000 + n as u64);
    }
    for n in [0, MAX_VOLUMES - 1] {
        let raw = table.entry(&*block, "volumes", entry, n);
        assert_eq!(entry.text(raw, "name"), format!("volume {n}"));
        let found = ["size_bytes", "block_bytes"].map(|field| entry.number(raw, field));
        assert_eq!(found, [1000, 2000].map(|base| base + n as u64));
        entry.assert_rest_is_zero(raw);
    }
}

#[test]
fn the_dirty_bitmap_is_as_documented() {
    let tables = tables();
    let table = &tables["Map sector"];
    let (offset, bytes) = table.fields["bits"];
    assert_eq!((table.bytes, 8 * bytes as u64), (map::SECTOR_BYTES, map::SECTOR_BITS));
    assert!(document().contains(&format!("| {} bits: ", map::SECTOR_BITS)));
    for bit in [0, 1, 7, 8, 64, 1000, map::SECTOR_BITS as usize - 1] {
        let mut words = [0; map::SECTOR_WORDS];
        words[bit / 64] = 1 << (bit % 64);
        let mut sector = [0; map::SECTOR_BYTES];
        map::encode(101, Id(*b"0123456789abcdef"), &words, &mut sector);
        assert_eq!((table.number(&sector, "number"), table.raw(&sector, "source")), (101, b"01234567".as_slice()));
        assert_checksum(table, &sector);
        let set = |bit: usize| sector[offset + bit / 8] & (1 << (bit % 8)) != 0;
        assert!((0..8 * bytes).all(|other| set(other) == (other == bit)), "bit {bit}");
    }
    // Each volume begins with a sector of its own, and whole blocks are stored.
    let volume = map::SECTOR_BITS * 4096;
    let stored = |sizes: &[u64]| nbd_mirror::core::dirty::stored_bytes(sizes, 4096) as usize / BLOCK_BYTES;
    assert_eq!((stored(&[8 * volume]), stored(&[7 * volume, 4096]), stored(&[8 * volume, 4096])), (1, 1, 2));
}

#[test]
fn the_claim_is_as_documented() {
    let tables = tables();
    let claim = encode_claim("alpha");
    assert_preamble(&tables, &*claim, "NBDMCLAM", 0);
    let (table, (rest, _)) = (&tables["Claim"], tables["Claim"].fields["rest"]);
    assert_eq!((table.bytes, table.text(&*claim, "name")), (BLOCK_BYTES, "alpha".to_owned()));
    assert!(rest <= 512 && claim[rest..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_frame_is_as_documented() {
    let tables = tables();
    let record = |n: usize| Record {
        volume: 7,
        kind: Kind::WriteZeroes,
        flags: RECORD_FUA,
        offset: 1000 + n as u64,
        length: 2000 + n as u32,
        checksum: 3000 + n as u32,
    };
    let write = Record { kind: Kind::Write, length: 5000, ..record(0) };
    let records: Vec<Record> = std::iter::once(write).chain((1..MAX_RECORDS_PER_FRAME).map(record)).collect();
    let header = Header {
        flags: FLAG_SYNC,
        source: Id(*b"0123456789abcdef"),
        epoch: Epoch(101),
        incarnation: 102,
        fill: Fill(103),
        position: 104,
        first: Seq(105),
        committed: Seq(106),
        stable_here: Seq(108),
        previous: Digest(107),
        payload_bytes: 0,
        count: 0,
    };
    let mut block = [0; BLOCK_BYTES];
    header.encode(records.iter(), &mut block);
    let (table, entry) = (&tables["Frame header block"], &tables["Record descriptor"]);
    assert_eq!((table.bytes, table.fields["records"].1), (BLOCK_BYTES, MAX_RECORDS_PER_FRAME * entry.bytes));
    assert_preamble(&tables, &block, "NBDMFRAM", 2);
    table.assert_rest_is_zero(&block);
    assert_eq!(table.raw(&block, "source"), b"0123456789abcdef");
    for (field, expected) in [
        ("epoch", 101),
        ("incarnation", 102),
        ("fill", 103),
        ("position", 104),
        ("first", 105),
        ("committed", 106),
        ("stable_here", 108),
        ("previous", 107),
        ("payload_bytes", 2 * BLOCK_BYTES as u64),
        ("count", MAX_RECORDS_PER_FRAME as u64),
    ] {
        assert_eq!(table.number(&block, field), expected, "{field}");
    }
    for n in [1, MAX_RECORDS_PER_FRAME - 1] {
        let raw = table.entry(&block, "records", entry, n);
        let found = ["offset", "length", "checksum"].map(|field| entry.number(raw, field));
        assert_eq!(found, [1000, 2000, 3000].map(|base| base + n as u64));
        assert_eq!(["volume", "kind", "flags"].map(|field| entry.number(raw, field)), [7, 3, 4]);
    }
}

#[test]
fn the_kept_file_is_as_documented() {
    let tables = tables();
    let volume = Volume { name: "vol0".into(), size_bytes: 1 << 20, block_bytes: 512 };
    let source = Id(*b"0123456789abcdef");
    let kept = Kept {
        superblock: Superblock::first(Role::Source, source, "alpha", 8 << 20, Epoch(1), vec![volume]),
        discarded_by: Epoch(101),
        mark: mark(102),
        exact: true,
        common: Seq(105),
        kept_unix_s: 106,
        contents_bytes: 107 * BLOCK_BYTES as u64,
        journal_bytes: 108 * BLOCK_BYTES as u64,
    };
    let [head, superblock] = kept.encode();
    let table = &tables["Kept head"];
    assert_eq!((table.bytes, FRAMES_OFFSET), (BLOCK_BYTES, 8192));
    assert_preamble(&tables, &*head, "NBDMKEPT", 1);
    assert_preamble(&tables, &*Kept { exact: false, ..kept.clone() }.encode()[0], "NBDMKEPT", 0);
    assert_preamble(&tables, &*superblock, "NBDMKSUP", 0);
    assert_eq!(tables["Superblock"].text(&*superblock, "name"), "alpha");
    table.assert_rest_is_zero(&*head);
    assert_eq!(table.raw(&*head, "source"), b"0123456789abcdef");
    assert_mark(&tables, table.raw(&*head, "mark"), 102);
    let found = ["discarded_by", "kept_at", "contents_bytes", "journal_bytes", "common"];
    let blocks = |n: u64| n * BLOCK_BYTES as u64;
    assert_eq!(found.map(|field| table.number(&*head, field)), [101, 106, blocks(107), blocks(108), 105]);
}

#[test]
fn the_shared_log_is_as_documented() {
    let tables = tables();
    let (log, source) = (Id(*b"0123456789abcdef"), Id(*b"fedcba9876543210"));
    let head = LogHead { id: log, slot_bytes: 101 * BLOCK_BYTES as u64, slots: 102 };
    assert_eq!(head.slot_offset(0), 65536);
    assert_eq!(SLOTS_OFFSET, 65536);
    let (block, table) = (head.encode(), &tables["Log head"]);
    assert_eq!(table.bytes, BLOCK_BYTES);
    assert_preamble(&tables, &*block, "NBDMNVLG", 0);
    table.assert_rest_is_zero(&*block);
    assert_eq!(table.raw(&*block, "id"), log.0);
    let found = ["slot_bytes", "slots"].map(|field| table.number(&*block, field));
    assert_eq!(found, [101 * BLOCK_BYTES as u64, 102]);
    let slot = SlotHead { log, source, fill: Fill(103), start: 104 * BLOCK_BYTES as u64, before: mark(105) };
    let (block, table) = (slot.encode(), &tables["Slot head"]);
    assert_eq!(table.bytes, BLOCK_BYTES);
    assert_preamble(&tables, &*block, "NBDMNVSL", 0);
    table.assert_rest_is_zero(&*block);
    assert_eq!((table.raw(&*block, "log"), table.raw(&*block, "source")), (&log.0[..], &source.0[..]));
    assert_mark(&tables, table.raw(&*block, "before"), 105);
    assert_eq!(["fill", "start"].map(|field| table.number(&*block, field)), [103, 104 * BLOCK_BYTES as u64]);
}

#[test]
fn the_connection_is_as_documented() {
    let tables = tables();
    let welcome = Welcome {
        verdict: Verdict::Refused,
        epoch: Epoch(101),
        whole: true,
        phase: Phase::Staging,
        promotable: true,
        base: mark(107),
        fresh: false,
        applied: mark(102),
        boundaries: (0..MAX_BOUNDARIES as u64).map(|n| mark(1000 + n)).collect(),
        fork: Some(Fork { at: mark(110), source: Id(*b"0123456789abcdef") }),
        reason: "because".into(),
    };
    let (table, entry) = (&tables["Welcome"], &tables["Mark"]);
    assert_eq!((table.bytes, table.fields["boundaries"].1), (BLOCK_BYTES, MAX_BOUNDARIES * entry.bytes));
    let block = welcome.encode();
    assert_preamble(&tables, &*block, "NBDMWELC", 0);
    table.assert_rest_is_zero(&*block);
    let found = ["verdict", "whole", "fresh", "boundary_count", "reason_bytes", "phase", "promotable", "epoch"];
    let found = found.map(|field| table.number(&*block, field));
    assert_eq!(found, [2, 1, 0, MAX_BOUNDARIES as u64, 7, 1, 1, 101]);
    let fresh = Welcome { whole: false, promotable: false, fresh: true, ..welcome.clone() }.encode();
    assert_eq!(["whole", "promotable", "fresh"].map(|field| table.number(&*fresh, field)), [0, 0, 1]);
    assert_eq!(table.text(&*block, "reason"), "because");
    assert_mark(&tables, table.raw(&*block, "applied"), 102);
    assert_mark(&tables, table.raw(&*block, "base"), 107);
    assert_eq!(table.number(&*block, "forked"), 1);
    assert_mark(&tables, table.raw(&*block, "fork_at"), 110);
    assert_eq!(table.raw(&*block, "fork_source"), b"0123456789abcdef");
    assert_preamble(&tables, &*encode_lacks(), "NBDMLACK", 0);
    let last = MAX_BOUNDARIES - 1;
    assert_mark(&tables, table.entry(&*block, "boundaries", entry, last), 1000 + last as u64);
}

#[test]
fn the_signals_are_as_documented() {
    let tables = tables();
    let table = &tables["Signal"];
    assert_eq!(table.bytes, BLOCK_BYTES);
    let nothing = Mark::default();
    let (standing, on_disconnect) = (Standing::Bound, OnDisconnect::Stall);
    let ping = Ping { answered: Seq(105), standing, on_disconnect, timeout_ms: 107, echo: 108 };
    let pinged = Mark { seq: Seq(105), ..nothing };
    // Each with its kind, name, flag and mark, and what else it says.
    let signals = [
        (Signal::Resume { common: mark(101) }, 1, "resume", 0, mark(101), [0; 4]),
        (Signal::Sync { last: mark(102), whole: true }, 2, "sync", 1, mark(102), [0; 4]),
        (Signal::Settle { common: mark(103) }, 3, "settle", 0, mark(103), [0; 4]),
        (Signal::Restart { at: mark(104) }, 4, "restart", 0, mark(104), [0; 4]),
        (Signal::Ping(ping), 5, "ping", 2, pinged, [108, 1, 0, 107]),
        (Signal::TakeOver { at: mark(109) }, 7, "take over", 0, mark(109), [0; 4]),
        (Signal::Ask { id: 106, volume: 7, offset: 8192, length: 108 }, 6, "ask", 0, nothing, [106, 7, 8192, 108]),
    ];
    for (signal, kind, name, flag, expected, rest) in signals {
        let block = signal.encode();
        assert_preamble(&tables, &*block, "NBDMSIGN", 0);
        table.assert_rest_is_zero(&*block);
        assert_listed(kind, name);
        assert_eq!((table.number(&*block, "kind"), table.number(&*block, "flag")), (kind, flag), "{signal:?}");
        let raw = table.raw(&*block, "mark");
        let found = ["fill", "seq", "digest"].map(|field| tables["Mark"].number(raw, field));
        assert_eq!(found, [expected.fill.0, expected.seq.0, expected.digest.0], "{signal:?}");
        assert_eq!(["id", "volume", "offset", "length"].map(|field| table.number(&*block, field)), rest, "{signal:?}");
    }
}

#[test]
fn the_reports_are_as_documented() {
    let tables = tables();
    let table = &tables["Report"];
    assert_eq!(table.bytes, REPORT_BYTES);
    let reports = [
        (Report::Stored(Seq(105)), "stored", [1, 0, 105, 0]),
        (Report::Applied(mark(106)), "applied", [2, 106, 107, 108]),
        (Report::Fenced(Epoch(109)), "fenced", [3, 0, 109, 0]),
        (Report::Settled(mark(110)), "settled", [4, 110, 111, 112]),
        (Report::Pong { stamp: 112 }, "pong", [5, 0, 112, 0]),
        (Report::Sums { id: 113, count: 14 }, "sums", [6, 14, 113, 0]),
    ];
    for (report, name, expected) in reports {
        let bytes = report.encode();
        assert_eq!(table.raw(&bytes, "magic"), b"NBDR");
        assert_listed(expected[0], name);
        assert_eq!(["kind", "fill", "number", "digest"].map(|field| table.number(&bytes, field)), expected);
        assert_checksum(table, &bytes);
        table.assert_rest_is_zero(&bytes);
    }
}

#[test]
fn the_sums_are_as_documented() {
    assert!(document().contains("| BLAKE3, its first 16 bytes | 4096 bytes of the volume;"));
    assert_eq!((size_of::<Sum>(), SUM_GRAIN_BYTES), (16, 4096));
    let block = [7; 4096];
    assert_eq!(nbd_mirror::engine::sums::of(&block)[..], blake3::hash(&block).as_bytes()[..16]);
}

#[test]
fn the_bounds_in_the_text_are_the_programs() {
    let text = document();
    assert_eq!(nbd_mirror::format::block::VERSION, 3);
    assert!(text.contains("| version | 3. |") && text.contains("This page is of version 3."));
    assert!(text.contains(&format!("| {JOURNAL_DATA_OFFSET} | half 0")));
    let sizes = [100 << 30];
    let journal = nbd_mirror::engine::source::journal_bytes(8 << 20, &sizes, 65536);
    assert_eq!(journal, (64 << 10) + (16 << 20) + nbd_mirror::core::dirty::stored_bytes(&sizes, 65536));
    for (bound, said) in [
        (MAX_VOLUMES, "1 to 32."),
        (MAX_RECORDS_PER_FRAME, "Number of records, 1 to 124."),
        (MAX_FRAME_PAYLOAD_BYTES >> 20, "at most 1 MiB."),
        (MAX_BOUNDARIES, "0 to 64."),
        (MAX_KNOWN_MARKS, "Source: 0 to 40."),
        (MAX_GRAIN_BYTES as usize, "a power of two, 4096 to 1048576."),
        (COPY_WINDOW_BYTES as usize >> 20, "Ask: bytes, 1 to 1 MiB."),
        (MAX_COPY_WINDOWS, "Not more than 8 *asks*"),
        (MAX_SUMS, "how many checksums follow, at most 256"),
        (nbd_mirror::limits::CHUNK_BYTES >> 10, "1 byte to 128 KiB"),
        (nbd_mirror::limits::MIN_HALF_BYTES as usize >> 20, "8 MiB to"),
        (nbd_mirror::limits::MAX_HALF_BYTES as usize >> 30, "to 32 GiB, whole blocks."),
    ] {
        assert!(text.contains(said) && said.contains(&bound.to_string()), "{said}: the program says {bound}");
    }
}
