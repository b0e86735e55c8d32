//! The dirty bitmap as stored: sectors of 512 bytes, each with a checksum of its own.
//!
//! No disk tears a sector, so a crash in the middle of a write leaves each one old or new, and never a bit lost. A sector
//! that can't be read counts as all set: blocks that needn't travel are then compared, which costs time and no data.

use super::checksum::crc32c;
use super::ids::Id;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// 64-bit words of bits in a sector.
pub const SECTOR_WORDS: usize = 62;
/// Bits in a sector.
pub const SECTOR_BITS: u64 = SECTOR_WORDS as u64 * 64;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSector {
    checksum: U32,
    number: U32,
    /// The first half of the source's identity: another journal's bitmap may have been here.
    source: [u8; 8],
    words: [[u8; 8]; SECTOR_WORDS],
}

const _: () = assert!(size_of::<RawSector>() == SECTOR_BYTES);

/// Encodes sector `number` of a source's bitmap.
pub fn encode(number: u32, source: Id, words: &[u64], sector: &mut [u8; SECTOR_BYTES]) {
    let mut raw =
        RawSector { checksum: 0.into(), number: number.into(), source: half(source), words: [[0; 8]; SECTOR_WORDS] };
    for (raw, word) in raw.words.iter_mut().zip(words) {
        *raw = word.to_le_bytes();
    }
    raw.checksum = crc32c(raw.as_bytes()).into();
    sector.copy_from_slice(raw.as_bytes());
}

/// Decodes it; `None` where it isn't that very sector, whole.
pub fn decode(number: u32, source: Id, sector: &[u8; SECTOR_BYTES]) -> Option<[u64; SECTOR_WORDS]> {
    let mut raw = RawSector::read_from_bytes(sector).ok()?;
    let stored = std::mem::replace(&mut raw.checksum, 0.into()).get();
    let right = raw.number.get() == number && raw.source == half(source) && crc32c(raw.as_bytes()) == stored;
    right.then(|| raw.words.map(u64::from_le_bytes))
}

fn half(source: Id) -> [u8; 8] {
    source.0.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_each_flipped_bit_is_noticed() {
        let words: Vec<u64> = (0..SECTOR_WORDS as u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
        let mut sector = [0; SECTOR_BYTES];
        encode(7, Id([3; 16]), &words, &mut sector);
        assert_eq!(decode(7, Id([3; 16]), &sector).unwrap().to_vec(), words);
        assert!(decode(8, Id([3; 16]), &sector).is_none() && decode(7, Id([4; 16]), &sector).is_none());
        for bit in 0..SECTOR_BYTES * 8 {
            sector[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(7, Id([3; 16]), &sector).is_none(), "bit {bit}");
            sector[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn golden_bytes() {
        let mut sector = [0; SECTOR_BYTES];
        encode(2, Id([5; 16]), &[1, 0x8000_0000_0000_0000], &mut sector);
        assert_eq!(&sector[4..16], &[2, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5, 5]);
        assert_eq!((sector[16], sector[31], sector[32]), (1, 0x80, 0));
    }
}
