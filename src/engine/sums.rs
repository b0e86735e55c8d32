//! The checksums by which both sides compare a block before it is sent: 128 bits of BLAKE3, for two blocks that are taken
//! for equal must be.

use crate::format::wire::Sum;
use crate::limits::SUM_GRAIN_BYTES;
use std::sync::OnceLock;

/// The checksum of a block.
pub fn of(bytes: &[u8]) -> Sum {
    let hash = blake3::hash(bytes);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// The checksum of so many zeros, at most [`SUM_GRAIN_BYTES`].
pub fn of_zeros(bytes: usize) -> Sum {
    static WHOLE: OnceLock<Sum> = OnceLock::new();
    const ZEROS: [u8; SUM_GRAIN_BYTES as usize] = [0; SUM_GRAIN_BYTES as usize];
    if bytes == ZEROS.len() { *WHOLE.get_or_init(|| of(&ZEROS)) } else { of(&ZEROS[..bytes]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // The specification's test vector for no input.
        assert_eq!(of(b"")[..4], [0xaf, 0x13, 0x49, 0xb9]);
        assert_eq!(of_zeros(4096), of(&[0; 4096]));
        assert_eq!(of_zeros(512), of(&[0; 512]));
    }
}
