//! Volume and image files: making, filling and comparing them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Makes a sparse file of `len` bytes.
pub fn create_file(path: &Path, len: u64) {
    let file = File::create(path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
    file.set_len(len).expect("set a file's length");
}

/// Bytes that tell their place and `seed`, and hold no zeros in a row.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Writes a pattern into a file, at an offset.
pub fn fill_pattern(path: &Path, seed: u64, offset: u64, len: usize) {
    let file = OpenOptions::new().write(true).open(path).expect("open a file to fill");
    file.write_all_at(&pattern(seed, len), offset).expect("fill a file");
    file.sync_all().expect("sync a filled file");
}

/// The bytes that a file really takes on its disk.
pub fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).expect("look at a file").blocks() * 512
}

/// Asserts that the first `len` bytes of two files are the same; a difference is named by its place.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path, len: u64) {
    const CHUNK: usize = 1 << 20;
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    let (a, b) = (open(left), open(right));
    let (mut a_bytes, mut b_bytes) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    while offset < len {
        let step = CHUNK.min((len - offset) as usize);
        a.read_exact_at(&mut a_bytes[..step], offset).expect("read the left file");
        b.read_exact_at(&mut b_bytes[..step], offset).expect("read the right file");
        if let Some(at) = (0..step).find(|&at| a_bytes[at] != b_bytes[at]) {
            panic!("{} and {} differ first at byte {}", left.display(), right.display(), offset + at as u64);
        }
        offset += step as u64;
    }
}
