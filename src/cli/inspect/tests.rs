use super::*;
use crate::format::checksum::crc32c;
use crate::format::frame::{Header, Kind};
use crate::format::ids::{Digest, Epoch, Fill, Id, Mark};
use crate::format::kept::Kept;
use crate::format::superblock::{Role, Superblock, Volume};
use crate::limits::{BLOCK_BYTES, JOURNAL_DATA_OFFSET};
use proptest::prelude::*;

const HALF: u64 = 2 << 20;

fn superblock() -> Superblock {
    let volume = Volume { name: "vol0".into(), size_bytes: 1 << 20, block_bytes: 512 };
    let first = Superblock::first(Role::Source, Id([1; 16]), "alpha", HALF, Epoch(1), vec![volume]);
    Superblock { clean: Mark { fill: Fill(4), seq: Seq(10), digest: Digest(9) }, ..first }
}

/// Three frames of fill 5, a write each, behind record 10.
fn frames() -> Vec<u8> {
    let (mut bytes, mut end) = (Vec::new(), superblock().clean);
    for n in 0..3_u64 {
        let payload = [n as u8 + 1; BLOCK_BYTES];
        let (offset, length, checksum) = (n * 4096, BLOCK_BYTES as u32, crc32c(&payload));
        let record = Record { volume: 0, kind: Kind::Write, flags: 0, offset, length, checksum };
        let header = Header {
            flags: 0,
            source: Id([1; 16]),
            epoch: Epoch(1),
            incarnation: 1,
            fill: Fill(5),
            position: n * 8192,
            first: end.seq.next(),
            committed: end.seq,
            stable_here: end.seq,
            previous: end.digest,
            payload_bytes: 0,
            count: 0,
        };
        let mut block = [0; BLOCK_BYTES];
        let digest = header.encode([record].iter(), &mut block);
        end = Mark { fill: Fill(5), seq: header.first, digest };
        bytes.extend_from_slice(&block);
        bytes.extend_from_slice(&payload);
    }
    bytes
}

const HALF_AT: usize = (JOURNAL_DATA_OFFSET + HALF) as usize;

fn journal() -> Vec<u8> {
    let mut bytes = vec![0; HALF_AT];
    bytes[..BLOCK_BYTES].copy_from_slice(&*Superblock { generation: 2, ..superblock() }.encode());
    bytes[BLOCK_BYTES..2 * BLOCK_BYTES].copy_from_slice(&*superblock().encode());
    bytes.extend(frames());
    bytes
}

fn kept() -> Vec<u8> {
    let kept = Kept {
        superblock: superblock(),
        discarded_by: Epoch(2),
        mark: superblock().clean,
        exact: true,
        common: Seq(10),
        kept_unix_s: 1,
        contents_bytes: 0,
        journal_bytes: frames().len() as u64,
    };
    let [first, second] = kept.encode();
    [&first[..], &second[..], &frames()].concat()
}

/// The lines of a file with these bytes, and how many places are damaged.
fn listed(bytes: &[u8]) -> anyhow::Result<(Vec<Value>, u64)> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), bytes)?;
    let mut out = Vec::new();
    let damage = list(&input::open(file.path())?, true, None, &mut out)?;
    let lines = std::str::from_utf8(&out)?.lines().map(serde_json::from_str);
    let lines = lines.collect::<Result<_, _>>()?;
    list(&input::open(file.path())?, false, Some(&("vol0".into(), 4096)), &mut Vec::new())?;
    Ok((lines, damage))
}

fn records(lines: &[Value]) -> Vec<(&str, bool)> {
    let records = lines.iter().filter(|line| line["type"] == "record");
    records.map(|line| (line["record"].as_str().unwrap(), line["whole"] == true)).collect()
}

#[test]
fn a_journal_and_a_kept_file_are_listed() {
    for (bytes, what) in [(journal(), "a source's journal"), (kept(), "what a fenced source discarded")] {
        let (lines, damage) = listed(&bytes).unwrap();
        assert_eq!((lines[0]["what"].as_str(), lines[0]["source"].as_str(), damage), (Some(what), Some("alpha"), 0));
        assert_eq!(records(&lines), [("11", true), ("12", true), ("13", true)]);
    }
    let (lines, damage) = listed(&frames()).unwrap();
    assert_eq!((records(&lines).len(), damage), (3, 0), "a destination's journal file");
    assert!(listed(b"something else").unwrap_err().to_string().contains("can't be looked into"));
}

#[test]
fn damage_is_named_with_its_place() {
    let half = HALF_AT as u64;
    for (start, bytes, last_counts) in [(half, journal(), false), (8192, kept(), true)] {
        let damaged = |at: u64| {
            let mut bytes = bytes.clone();
            bytes[(start + at) as usize] ^= 1;
            listed(&bytes).unwrap()
        };
        let place =
            |lines: &[Value]| lines.iter().find(|line| line["type"] == "damage").map(|line| line["at"].as_u64());
        let (lines, damage) = damaged(4096 + 100);
        assert_eq!((damage, place(&lines)), (1, Some(Some(start + 4096))));
        assert_eq!(records(&lines), [("11", false), ("12", true), ("13", true)]);
        let (lines, damage) = damaged(8192 + 100);
        assert_eq!((damage, place(&lines)), (1, Some(Some(start + 8192))), "{lines:#?}");
        assert_eq!(records(&lines), [("11", true), ("13", true)]);
        // No header speaks for the last frame of a journal: a crash may have torn it.
        let (lines, damage) = damaged(5 * 4096);
        assert_eq!(
            (damage > 0, lines.iter().filter(|line| line["type"] == "note").count()),
            if last_counts { (true, 0) } else { (false, 2) }
        );
    }
    let whole = kept();
    assert!(listed(&whole[..whole.len() - 1]).unwrap().1 > 0, "cut short");
    assert!(listed(&[&whole[..], &[0]].concat()).unwrap().1 > 0, "too long");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nothing panics, whatever the bytes are.
    #[test]
    fn any_bytes_are_listed_or_refused(
        which in 0..3, seed in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..12), cut in 0_usize..40_000,
    ) {
        let mut bytes = [journal(), kept(), frames()][which as usize].clone();
        let start = if which == 0 && cut % 2 == 0 { HALF_AT } else { 0 };
        for (at, byte) in seed {
            if let Some(place) = bytes.get_mut(start + usize::from(at) % 24_576) {
                *place = byte;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        let _ = listed(&bytes);
    }
}
