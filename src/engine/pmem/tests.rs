//! What is stored is what was given, wherever it lies; and what isn't persistent memory is refused with the reason.

use super::super::disk::Disk;
use super::super::store::How;
use super::*;
use std::os::unix::fs::FileExt as _;

const BYTES: u64 = 8192;

/// A file of other bytes than any that is stored.
fn file() -> (tempfile::NamedTempFile, Vec<u8>) {
    let (file, bytes) = (tempfile::NamedTempFile::new().unwrap(), vec![0xee; BYTES as usize]);
    file.as_file().write_all_at(&bytes, 0).unwrap();
    (file, bytes)
}

#[test]
#[cfg(target_arch = "x86_64")]
fn every_byte_is_stored_at_every_alignment_and_no_other_one() {
    let given: Vec<u8> = (0..BYTES).map(|n| (n % 191) as u8).collect();
    for stores in Stores::each() {
        let (file, mut expected) = file();
        let mut mapping = Mapping::unproved(file.as_file(), BYTES);
        mapping.stores = stores;
        let mut found = expected.clone();
        for at in 0..70 {
            for (n, length) in [0, 1, 7, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 200, 1000].into_iter().enumerate() {
                // What is copied isn't aligned either.
                let from = (at * 7 + n) % 64;
                // In two pieces, which lie one behind the other.
                let pieces = [&given[from..from + length], &given[from + 1..][..length / 2]];
                let stored = mapping.store(at as u64, pieces.into_iter()).unwrap();
                assert_eq!(stored, length + length / 2);
                expected[at..at + length].copy_from_slice(pieces[0]);
                expected[at + length..at + stored].copy_from_slice(pieces[1]);
                file.as_file().read_exact_at(&mut found, 0).unwrap();
                assert!(found == expected, "{length} bytes at {at}, by {stores:?}");
            }
        }
    }
}

#[test]
fn nothing_is_stored_behind_the_end() {
    let (file, expected) = file();
    let mapping = Mapping::unproved(file.as_file(), BYTES);
    for offset in [BYTES, BYTES - 511, u64::MAX - 100, u64::MAX] {
        let error = mapping.store(offset, [&[1; 512][..]].into_iter()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(std::fs::read(file.path()).unwrap(), expected);
    assert_eq!(mapping.store(BYTES - 512, [&[1; 512][..]].into_iter()).unwrap(), 512);
}

#[test]
fn an_ordinary_file_is_refused_and_written_by_direct_io() {
    let (file, _) = file();
    let refused = Mapping::new(file.as_file(), BYTES).unwrap_err();
    assert!(refused.contains("isn't on persistent memory"), "{refused}");

    let mut disk = Disk::open("journal", file.path()).unwrap();
    disk.map_persistent(BYTES);
    let store = disk.how_stored();
    assert!(store.how == How::Dsync && store.why.contains(&refused), "{store:?}");
    assert!(disk.target().mapping.is_none());
}

/// A store to a hole would wait for the file system, and one behind the end would end the process.
#[test]
fn a_file_that_was_not_preallocated_is_not_mapped() {
    let (file, _) = file();
    for (length, wanted, reason) in [(BYTES, BYTES + 1, "8192 of 8193 bytes"), (1 << 20, 1 << 20, "a hole at byte")] {
        file.as_file().set_len(length).unwrap();
        let mut disk = Disk::open("journal", file.path()).unwrap();
        disk.map_persistent(wanted);
        let why = disk.how_stored().why;
        assert!(why.contains(reason), "{why}");
    }
}
