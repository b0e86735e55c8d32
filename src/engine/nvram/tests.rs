//! A log on an ordinary file, and a folder of a source beside it.

use super::super::destination::Folder;
use super::*;
use crate::core::recovery::logged::FREED;
use crate::format::checksum;
use crate::format::frame::{Header, Kind, Record};
use crate::format::ids::{Epoch, Fill, Id, Mark, Seq};
use crate::format::nvram::SlotHead;
use crate::format::superblock::{Role, Superblock, Volume};
use crate::limits::{BLOCK_BYTES, MIN_HALF_BYTES, MIN_NVRAM_BYTES};
use std::os::unix::fs::FileExt as _;

const SOURCE: Id = Id([1; 16]);

struct Rig {
    folder: tempfile::TempDir,
    wanted: Wanted,
}

impl Rig {
    fn new() -> Rig {
        // Not in memory: the files are opened with O_DIRECT.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
        let path = folder.path().join("log");
        std::fs::create_dir(folder.path().join("journals")).unwrap();
        Rig { folder, wanted: Wanted { path, size_bytes: MIN_NVRAM_BYTES } }
    }

    fn journals(&self) -> PathBuf {
        self.folder.path().join("journals")
    }

    fn open(&self, sources: usize) -> anyhow::Result<Option<Arc<Log>>> {
        open(Some(&self.wanted), &self.journals(), sources, false)
    }

    fn error(&self, sources: usize) -> String {
        format!("{:#}", self.open(sources).unwrap_err())
    }

    /// A source's folder, with nothing in its journal files.
    fn source(&self) {
        let volumes = vec![Volume { name: "vol0".into(), size_bytes: 1 << 20, block_bytes: 512 }];
        let hello = Superblock::first(Role::Source, SOURCE, "alpha", MIN_HALF_BYTES, Epoch(1), volumes);
        Folder::create(&self.journals().join("alpha"), &hello).unwrap();
    }

    fn journal_file(&self, half: usize, at: u64, bytes: usize) -> Vec<u8> {
        let file = std::fs::File::open(self.journals().join(format!("alpha/fill-{half}.journal"))).unwrap();
        let mut found = vec![0; bytes];
        file.read_exact_at(&mut found, at).unwrap();
        found
    }
}

/// Frames of one trim each, one behind the other.
fn frames(fill: Fill, mut position: u64, mut before: Mark, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        let record = Record { volume: 0, kind: Kind::Trim, flags: 0, offset: 4096, length: 4096, checksum: 0 };
        let header = Header {
            flags: 0,
            source: SOURCE,
            epoch: Epoch(1),
            incarnation: 1,
            fill,
            position,
            first: before.seq.next(),
            committed: Seq(0),
            stable_here: Seq(0),
            previous: before.digest,
            payload_bytes: 0,
            count: 1,
        };
        let mut block = [0; BLOCK_BYTES];
        header.encode([record].iter(), &mut block);
        bytes.extend_from_slice(&block);
        before = Mark { fill, seq: header.first, digest: checksum::digest(&block) };
        position += BLOCK_BYTES as u64;
    }
    bytes
}

fn fill_slot(log: &Log, slot: u32, head: SlotHead, frames: &[u8]) {
    let at = log.head().slot_offset(slot);
    log.disk().store(&[&head.encode()[..], frames].concat(), at).unwrap();
}

fn slot_bytes(log: &Log, slot: u32) -> Vec<u8> {
    let mut bytes = vec![0; log.head().slot_bytes as usize];
    std::fs::File::open(log.disk().path()).unwrap().read_exact_at(&mut bytes, log.head().slot_offset(slot)).unwrap();
    bytes
}

#[test]
fn each_source_has_slots_that_no_other_takes() {
    let rig = Rig::new();
    let log = rig.open(2).unwrap().unwrap();
    // 15 of them fit: 3 for each, and 9 for both.
    assert_eq!(log.own_bytes(), 3 * NVRAM_SLOT_BYTES);
    let (busy, quiet) = (log.share(0), log.share(1));
    let taken: Vec<u32> = std::iter::from_fn(|| busy.take()).collect();
    assert_eq!(taken.len(), 12, "{taken:?}");
    let left: Vec<u32> = std::iter::from_fn(|| quiet.take()).collect();
    assert_eq!(left, [3, 4, 5]);
    // Whoever gives a slot back, it goes where it belongs.
    quiet.give(0);
    assert_eq!((quiet.take(), busy.take(), busy.take()), (None, Some(0), None));
    busy.give(14);
    assert_eq!(quiet.take(), Some(14));
}

#[test]
fn what_a_log_holds_goes_to_the_journal_files_once() {
    let rig = Rig::new();
    rig.source();
    let log = rig.open(1).unwrap().unwrap();
    let id = log.head().id;
    let start = Mark::default();
    let first = frames(Fill(1), 0, start, 3);
    let after =
        Mark { fill: Fill(1), seq: Seq(3), digest: checksum::digest(first[2 * BLOCK_BYTES..].first_chunk().unwrap()) };
    let second = frames(Fill(2), 0, after, 2);
    fill_slot(&log, 5, SlotHead { log: id, source: SOURCE, fill: Fill(1), start: 0, before: start }, &first);
    // Its second frame is torn; one behind it is whole, and would follow a second one.
    let mut torn = [&second[..], &first[..BLOCK_BYTES]].concat();
    torn[BLOCK_BYTES + 100] ^= 1;
    fill_slot(&log, 2, SlotHead { log: id, source: SOURCE, fill: Fill(2), start: 0, before: after }, &torn);
    // Of a source that has no folder; of another log; and a head that is torn.
    let stranger = SlotHead { log: id, source: Id([9; 16]), fill: Fill(1), start: 0, before: start };
    fill_slot(&log, 7, stranger, &first);
    fill_slot(&log, 8, SlotHead { log: Id([4; 16]), source: SOURCE, ..stranger }, &frames(Fill(1), 0, start, 1));
    log.disk().store(&first[..BLOCK_BYTES], log.head().slot_offset(9) + FREED.end - BLOCK_BYTES as u64).unwrap();
    drop(log);
    assert!(rig.error(1).contains("slot 7 holds frames of source 0909"), "{}", rig.error(1));
    // A copy of the folder under another name isn't taken for it.
    let copy = rig.journals().join("aardvark");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(rig.journals().join("alpha/state"), copy.join("state")).unwrap();
    let log = open(Some(&rig.wanted), &rig.journals(), 1, true).unwrap().unwrap();
    assert_eq!(log.head().id, id, "it is the same log");
    assert_eq!(rig.journal_file(1, 0, first.len()), first);
    assert_eq!(rig.journal_file(0, 0, BLOCK_BYTES), second[..BLOCK_BYTES]);
    assert_eq!(
        rig.journal_file(0, BLOCK_BYTES as u64, 2 * BLOCK_BYTES),
        vec![0; 2 * BLOCK_BYTES],
        "what is torn isn't"
    );
    for slot in [2, 5, 7, 8, 9] {
        assert!(slot_bytes(&log, slot).iter().all(|byte| *byte == 0), "slot {slot} isn't void");
    }
}

#[test]
fn a_log_that_is_given_up_is_emptied_first() {
    let rig = Rig::new();
    rig.source();
    let frame = frames(Fill(1), 0, Mark::default(), 1);
    let fill = |log: &Log| {
        let head = SlotHead { log: log.head().id, source: SOURCE, fill: Fill(1), start: 0, before: Mark::default() };
        fill_slot(log, 0, head, &frame);
    };
    fill(&rig.open(1).unwrap().unwrap());
    // Another one is configured.
    let other = Rig { wanted: Wanted { path: rig.folder.path().join("other"), ..rig.wanted.clone() }, ..rig };
    let log = other.open(1).unwrap().unwrap();
    assert_eq!(other.journal_file(1, 0, BLOCK_BYTES), frame);
    std::fs::write(other.journals().join("alpha/fill-1.journal"), vec![0; MIN_HALF_BYTES as usize]).unwrap();
    fill(&log);
    drop(log);
    // And then none.
    assert!(open(None, &other.journals(), 1, false).unwrap().is_none());
    assert_eq!(other.journal_file(1, 0, BLOCK_BYTES), frame);
    assert!(!other.journals().join("nvram").exists());
    assert!(open(None, &other.journals(), 1, false).unwrap().is_none());
    other.open(1).unwrap().unwrap();
}

#[test]
fn a_log_of_another_size_is_made_anew() {
    let mut rig = Rig::new();
    let before = rig.open(1).unwrap().unwrap().head().id;
    rig.wanted.size_bytes *= 2;
    let log = rig.open(1).unwrap().unwrap();
    assert!(log.head().id != before && log.head().slots == 31, "{:?}", log.head());
}

#[test]
fn what_is_missing_or_of_others_is_refused_with_the_remedy() {
    let rig = Rig::new();
    std::fs::write(&rig.wanted.path, vec![7; 1 << 20]).unwrap();
    assert!(rig.error(1).contains("holds something else") && rig.error(1).contains("--init"), "{}", rig.error(1));
    std::fs::remove_file(&rig.wanted.path).unwrap();
    assert!(rig.error(5).contains("is too small: 5 sources need at least"), "{}", rig.error(5));
    std::fs::remove_file(&rig.wanted.path).unwrap();
    let log = rig.open(1).unwrap().unwrap();
    assert!(rig.error(1).contains("is in use"), "{}", rig.error(1));
    let head = SlotHead { log: log.head().id, source: SOURCE, fill: Fill(1), start: 0, before: Mark::default() };
    fill_slot(&log, 0, head, &frames(Fill(1), 0, Mark::default(), 1));
    drop(log);
    // Another destination comes across it.
    let other = Rig::new();
    let stolen = Rig { wanted: rig.wanted.clone(), ..other };
    let error = stolen.error(1);
    assert!(error.contains("is the log of another destination") && error.contains("something in 1 slots"), "{error}");
    assert!(open(Some(&stolen.wanted), &stolen.journals(), 1, true).is_err(), "not even --init overwrites it");
    // Its own destination doesn't find it any more, or something else in its place.
    let aside = rig.folder.path().join("aside");
    std::fs::rename(&rig.wanted.path, &aside).unwrap();
    let error = rig.error(1);
    assert!(error.contains("there is no such file") && error.contains("promote nothing before"), "{error}");
    let new = Wanted { path: rig.wanted.path.clone(), ..rig.wanted.clone() };
    make(&new, 1, false).unwrap();
    assert!(rig.error(1).contains("promote nothing before"), "{}", rig.error(1));
    // It is found where the configuration says, by its identity.
    rig.source();
    let moved = Wanted { path: aside.clone(), ..rig.wanted.clone() };
    let log = open(Some(&moved), &rig.journals(), 1, false).unwrap().unwrap();
    assert_eq!(log.disk().path(), aside);
    drop(log);
    let note = std::fs::read_to_string(rig.journals().join("nvram")).unwrap();
    assert!(note.ends_with("/aside\n"), "{note}");
}

/// Its own source fails by itself.
#[test]
fn a_folder_that_cannot_be_read_is_in_nobody_elses_way() {
    let rig = Rig::new();
    rig.source();
    let beta = rig.journals().join("beta");
    std::fs::create_dir(&beta).unwrap();
    std::fs::write(beta.join("state"), vec![7; 2 * BLOCK_BYTES]).unwrap();
    let frame = frames(Fill(1), 0, Mark::default(), 1);
    let of =
        |log: &Log, source| SlotHead { log: log.head().id, source, fill: Fill(1), start: 0, before: Mark::default() };
    let log = rig.open(2).unwrap().unwrap();
    fill_slot(&log, 0, of(&log, SOURCE), &frame);
    drop(log);
    let log = rig.open(2).unwrap().unwrap();
    assert_eq!(rig.journal_file(1, 0, BLOCK_BYTES), frame);
    // Some of the frames may be of that one.
    fill_slot(&log, 0, of(&log, Id([9; 16])), &frame);
    drop(log);
    let error = rig.error(2);
    assert!(error.contains("no folder here that can be read") && error.contains("beta/state"), "{error}");
    open(Some(&rig.wanted), &rig.journals(), 2, true).unwrap().unwrap();
}

#[test]
fn a_state_that_is_older_than_the_log_is_refused() {
    let rig = Rig::new();
    rig.source();
    let log = rig.open(1).unwrap().unwrap();
    let head = SlotHead { log: log.head().id, source: SOURCE, fill: Fill(3), start: 0, before: Mark::default() };
    fill_slot(&log, 0, head, &frames(Fill(3), 0, Mark::default(), 1));
    drop(log);
    assert!(rig.error(1).contains("whose state is at fill 0"), "{}", rig.error(1));
    assert_eq!(rig.journal_file(1, 0, BLOCK_BYTES), vec![0; BLOCK_BYTES]);
}

#[test]
fn a_log_in_the_place_of_the_note_is_refused() {
    let mut rig = Rig::new();
    for name in ["nvram", "nvram.new"] {
        rig.wanted.path = rig.journals().join(name);
        assert!(rig.error(1).contains("name another"), "{}", rig.error(1));
        assert!(!rig.wanted.path.exists());
    }
}
