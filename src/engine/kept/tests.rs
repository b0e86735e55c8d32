use super::*;
use crate::format::frame::verify_payload;
use crate::format::ids::{Epoch, Id};
use crate::format::superblock::{Role, Superblock, Volume};

const SIZES: [u64; 2] = [1 << 20, (2 << 20) - 512];
const GRAIN: u32 = 64 << 10;

fn kept() -> Kept {
    let volume = |(n, size_bytes)| Volume { name: format!("vol{n}"), size_bytes, block_bytes: 512 };
    let volumes = SIZES.into_iter().enumerate().map(volume).collect();
    let first = Superblock::first(Role::Source, Id([3; 16]), "alpha", 8 << 20, Epoch(1), volumes);
    let mark = Mark { fill: Fill(2), seq: Seq(40), digest: Digest(5) };
    Kept {
        superblock: Superblock { grain_bytes: GRAIN, incarnation: 2, ..first },
        discarded_by: Epoch(2),
        mark,
        exact: true,
        common: mark.seq,
        kept_unix_s: 1_700_000_000,
        contents_bytes: 0,
        journal_bytes: 0,
    }
}

/// A folder with two volumes, of which the second holds bytes that tell their place.
struct Folder {
    dir: tempfile::TempDir,
    volumes: Vec<Disk>,
    bytes: Vec<u8>,
}

impl Folder {
    fn new() -> Folder {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let bytes: Vec<u8> = (0..SIZES[1]).map(|at| (at / 512 % 251) as u8 + 1).collect();
        std::fs::write(dir.path().join("0"), vec![0; SIZES[0] as usize]).expect("a volume");
        std::fs::write(dir.path().join("1"), &bytes).expect("a volume");
        let open = |name| Disk::open("volume", &dir.path().join(name)).expect("a volume");
        Folder { volumes: vec![open("0"), open("1")], bytes, dir }
    }

    fn write(&self, dirty: &Grains, frames: &[&[u8]]) -> Result<Option<Summary>, KeptError> {
        let disks: Vec<&Disk> = self.volumes.iter().collect();
        let (kept, mut seen) = (kept(), 0);
        let path = self.dir.path().join(file_name(&kept));
        let frames = frames.iter().copied();
        let written = write(&path, &kept, dirty, &disks, frames, &mut |done, total| {
            assert!(done > seen && done <= total);
            seen = done;
        });
        let part = self.dir.path().join("discarded-by-epoch-2.journal.part");
        assert!(!part.exists());
        written
    }
}

/// Frames from a byte on: headers, each with what follows it.
fn frames(bytes: &[u8]) -> Vec<(Header, Block, &[u8])> {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while let Some((block, behind)) = rest.split_first_chunk() {
        let header = Header::parse(block).expect("a header");
        let (payload, behind) = behind.split_at(header.payload_bytes as usize);
        verify_payload(&header, block, |at| crc32c(&payload[at])).expect("whole payloads");
        found.push((header, *block, payload));
        rest = behind;
    }
    found
}

#[test]
fn contents_and_frames_are_in_the_file_as_they_were() {
    let folder = Folder::new();
    let mut dirty = Grains::none(&SIZES, GRAIN);
    dirty.insert(0, 0..1);
    dirty.insert(1, 0..300 << 10);
    dirty.insert(1, SIZES[1] - 1..SIZES[1]);
    let journal = [vec![1; 8192], vec![2; 4096]];
    let summary = folder.write(&dirty, &[&journal[0], &journal[1]]).unwrap().unwrap();
    assert!(!summary.earlier && summary.path.ends_with("discarded-by-epoch-2.journal"));
    let bytes = std::fs::read(&summary.path).unwrap();
    assert_eq!(find(&summary.path).unwrap(), Some(summary.kept.clone()));
    assert_eq!((bytes.len() as u64, summary.kept.journal_bytes), (summary.kept.file_bytes(), 12288));
    let journal_at = (FRAMES_OFFSET + summary.kept.contents_bytes) as usize;
    assert_eq!(bytes[journal_at..], journal.concat());
    let mut held = Grains::none(&SIZES, GRAIN);
    let mut last = Mark::default();
    for (header, block, payload) in frames(&bytes[FRAMES_OFFSET as usize..journal_at]) {
        assert_eq!((header.first, header.previous, header.fill), (last.seq.next(), last.digest, Fill(0)));
        last = Mark { fill: Fill(0), seq: header.last(), digest: crate::format::checksum::digest(&block) };
        let mut at = 0;
        for record in header.records(&block) {
            assert_eq!(record.flags, RECORD_COPY);
            assert_eq!(record.kind, if record.volume == 0 { Kind::WriteZeroes } else { Kind::Write });
            let range = record.offset as usize..record.end() as usize;
            if record.volume == 1 {
                assert_eq!(payload[at..at + record.payload_bytes()], folder.bytes[range]);
            }
            at += padded(record.payload_bytes());
            held.insert(record.volume, record.offset..record.end());
        }
    }
    assert_eq!(held, dirty, "exactly what is dirty");
}

#[test]
fn many_records_become_many_frames() {
    let folder = Folder::new();
    let summary = folder.write(&Grains::all(&SIZES, GRAIN), &[]).unwrap().unwrap();
    let bytes = std::fs::read(&summary.path).unwrap();
    let found = frames(&bytes[FRAMES_OFFSET as usize..]);
    assert_eq!(found.iter().map(|(header, ..)| header.count).sum::<u16>(), 8 + 16);
    assert_eq!(found.len(), 2, "1 MiB of payload each");
}

#[test]
fn nothing_makes_no_file_and_what_was_kept_is_never_written_over() {
    let folder = Folder::new();
    let none = Grains::none(&SIZES, GRAIN);
    assert_eq!(folder.write(&none, &[]).unwrap(), None);
    assert_eq!(std::fs::read_dir(folder.dir.path()).unwrap().count(), 2);
    let first = folder.write(&none, &[&[1; 4096]]).unwrap().unwrap();
    // A run that was cut off behind it comes again: what it would keep now has been changed meanwhile.
    let again = folder.write(&Grains::all(&SIZES, GRAIN), &[]).unwrap().unwrap();
    assert_eq!((again.earlier, again.kept), (true, first.kept));
    let kept = kept();
    let disks: Vec<&Disk> = folder.volumes.iter().collect();
    let other = Kept { mark: Mark::default(), ..kept };
    let error = write(&first.path, &other, &none, &disks, [&[1; 4096][..]], &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("move it away"), "{error}");
    std::fs::write(&first.path, [7; 8192]).unwrap();
    let error = folder.write(&none, &[&[1; 4096]]).unwrap_err();
    assert!(error.to_string().contains("isn't a file of discarded records"), "{error}");
}

#[test]
fn a_full_disk_is_told_with_its_remedy() {
    let full = Path::new("/dev/full");
    let error = Writer::make(full, Path::new("kept"), kept(), 1 << 20, &mut |_, _| {}).err().unwrap();
    for word in ["no room", "up to 1048576 bytes", "another folder", "nothing was discarded"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    let folder = Folder::new();
    let missing = folder.dir.path().join("missing/kept");
    let error = write(&missing, &kept(), &Grains::all(&SIZES, GRAIN), &[], [], &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("can't be made"), "{error}");
}
