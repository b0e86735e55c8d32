//! The byte tables of docs/format.md: without gaps, as long as they say, and true of what the program encodes.

use std::collections::HashMap;
use std::path::Path;

use nbd_mirror::format::frame::{FLAG_SYNC, Header, Kind, RECORD_FUA, Record};
use nbd_mirror::format::ids::{Digest, Epoch, Fill, Id, Mark, Seq};
use nbd_mirror::format::superblock::{Role, Superblock, Volume, encode_claim};
use nbd_mirror::format::wire::{REPORT_BYTES, Report, Signal, Verdict, Welcome, encode_hello};
use nbd_mirror::limits::{
    BLOCK_BYTES, JOURNAL_DATA_OFFSET, MAX_BOUNDARIES, MAX_FRAME_PAYLOAD_BYTES, MAX_RECORDS_PER_FRAME, MAX_VOLUMES,
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
    assert_eq!((table.number(block, "version"), table.number(block, "flags")), (1, flags));
    let mut copy = block.to_vec();
    let (offset, size) = table.fields["checksum"];
    copy[offset..offset + size].fill(0);
    assert_eq!(table.number(block, "checksum"), u64::from(nbd_mirror::format::checksum::crc32c(&copy)));
}

#[test]
fn the_superblock_is_as_documented() {
    let tables = tables();
    let volume = |n: usize| Volume {
        name: format!("volume {n}"),
        size_bytes: 1000 + n as u64,
        block_bytes: 2000 + n as u32,
        copied_bytes: 3000 + n as u64,
    };
    let superblock = Superblock {
        role: Role::Source,
        generation: 101,
        source: Id(*b"0123456789abcdef"),
        name: "alpha".into(),
        half_bytes: 8 << 20,
        epoch: Epoch(102),
        fenced_by: Epoch(103),
        incarnation: 104,
        clean: mark(105),
        whole: true,
        promoted: false,
        volumes: (0..MAX_VOLUMES).map(volume).collect(),
    };
    let (table, entry) = (&tables["Superblock"], &tables["Volume entry"]);
    assert_eq!((table.bytes, table.fields["volumes"].1), (BLOCK_BYTES, MAX_VOLUMES * entry.bytes));
    let block = superblock.encode();
    assert_preamble(&tables, &*block, "NBDMSRCE", 1);
    assert_preamble(&tables, &*encode_hello(&superblock), "NBDMHELO", 1);
    let promoted = Superblock { role: Role::Destination, whole: false, promoted: true, ..superblock.clone() };
    assert_preamble(&tables, &*promoted.encode(), "NBDMDEST", 2);
    assert_eq!(table.raw(&*block, "source"), b"0123456789abcdef");
    assert_eq!(table.text(&*block, "name"), "alpha");
    for (field, expected) in [
        ("generation", 101),
        ("half_bytes", 8 << 20),
        ("epoch", 102),
        ("fenced_by", 103),
        ("incarnation", 104),
        ("volume_count", MAX_VOLUMES as u64),
    ] {
        assert_eq!(table.number(&*block, field), expected, "{field}");
    }
    assert_mark(&tables, table.raw(&*block, "clean"), 105);
    for n in [0, MAX_VOLUMES - 1] {
        let raw = table.entry(&*block, "volumes", entry, n);
        assert_eq!(entry.text(raw, "name"), format!("volume {n}"));
        let found = ["size_bytes", "block_bytes", "copied_bytes"].map(|field| entry.number(raw, field));
        assert_eq!(found, [1000, 2000, 3000].map(|base| base + n as u64));
    }
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
        previous: Digest(107),
        payload_bytes: 0,
        count: 0,
    };
    let mut block = [0; BLOCK_BYTES];
    header.encode(records.iter(), &mut block);
    let (table, entry) = (&tables["Frame header block"], &tables["Record descriptor"]);
    assert_eq!((table.bytes, table.fields["records"].1), (BLOCK_BYTES, MAX_RECORDS_PER_FRAME * entry.bytes));
    assert_preamble(&tables, &block, "NBDMFRAM", 2);
    assert_eq!(table.raw(&block, "source"), b"0123456789abcdef");
    for (field, expected) in [
        ("epoch", 101),
        ("incarnation", 102),
        ("fill", 103),
        ("position", 104),
        ("first", 105),
        ("committed", 106),
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
fn the_connection_is_as_documented() {
    let tables = tables();
    let welcome = Welcome {
        verdict: Verdict::Refused,
        epoch: Epoch(101),
        whole: true,
        fresh: false,
        applied: mark(102),
        boundaries: (0..MAX_BOUNDARIES as u64).map(|n| mark(1000 + n)).collect(),
        reason: "because".into(),
    };
    let (table, entry) = (&tables["Welcome"], &tables["Mark"]);
    assert_eq!((table.bytes, table.fields["boundaries"].1), (BLOCK_BYTES, MAX_BOUNDARIES * entry.bytes));
    let block = welcome.encode();
    assert_preamble(&tables, &*block, "NBDMWELC", 0);
    let found = ["verdict", "whole", "fresh", "boundary_count", "reason_bytes", "epoch"];
    let found = found.map(|field| table.number(&*block, field));
    assert_eq!(found, [2, 1, 0, MAX_BOUNDARIES as u64, 7, 101]);
    let fresh = Welcome { whole: false, fresh: true, ..welcome.clone() }.encode();
    assert_eq!(["whole", "fresh"].map(|field| table.number(&*fresh, field)), [0, 1]);
    assert_eq!(table.text(&*block, "reason"), "because");
    assert_mark(&tables, table.raw(&*block, "applied"), 102);
    let last = MAX_BOUNDARIES - 1;
    assert_mark(&tables, table.entry(&*block, "boundaries", entry, last), 1000 + last as u64);

    let table = &tables["Signal"];
    assert_eq!(table.bytes, BLOCK_BYTES);
    let resume = Signal::Resume { common: mark(103), from_scratch: true };
    let sync = Signal::Sync { last: mark(104), whole: true };
    for (signal, kind, n) in [(resume, 1, 103), (sync, 2, 104)] {
        let block = signal.encode();
        assert_preamble(&tables, &*block, "NBDMSIGN", 0);
        assert_eq!((table.number(&*block, "kind"), table.number(&*block, "flag")), (kind, 1));
        assert_mark(&tables, table.raw(&*block, "mark"), n);
    }

    let table = &tables["Report"];
    assert_eq!(table.bytes, REPORT_BYTES);
    let reports = [
        (Report::Stored(Seq(105)), [1, 0, 105, 0]),
        (Report::Applied(mark(106)), [2, 106, 107, 108]),
        (Report::Fenced(Epoch(109)), [3, 0, 109, 0]),
    ];
    for (report, expected) in reports {
        let bytes = report.encode();
        assert_eq!(table.raw(&bytes, "magic"), b"NBDR");
        assert_eq!(["kind", "fill", "number", "digest"].map(|field| table.number(&bytes, field)), expected);
        let mut copy = bytes;
        let (offset, size) = table.fields["checksum"];
        copy[offset..offset + size].fill(0);
        assert_eq!(table.number(&bytes, "checksum"), u64::from(nbd_mirror::format::checksum::crc32c(&copy)));
    }
}

#[test]
fn the_bounds_in_the_text_are_the_programs() {
    let text = document();
    assert_eq!(nbd_mirror::format::block::VERSION, 1);
    assert!(text.contains(&format!("| {JOURNAL_DATA_OFFSET} | half 0")));
    for (bound, said) in [
        (MAX_VOLUMES, "1 to 32."),
        (MAX_RECORDS_PER_FRAME, "Number of records, 1 to 124."),
        (MAX_FRAME_PAYLOAD_BYTES >> 20, "at most 1 MiB."),
        (MAX_BOUNDARIES, "0 to 64."),
        (nbd_mirror::limits::CHUNK_BYTES >> 10, "1 byte to 128 KiB"),
        (nbd_mirror::limits::MIN_HALF_BYTES as usize >> 20, "8 MiB to"),
        (nbd_mirror::limits::MAX_HALF_BYTES as usize >> 30, "to 32 GiB, whole blocks."),
    ] {
        assert!(text.contains(said) && said.contains(&bound.to_string()), "{said}: the program says {bound}");
    }
}
