//! The two checksums: CRC-32C over headers and payloads, CRC-64/NVME for the chained digest.

use super::ids::Digest;
use crate::limits::BLOCK_BYTES;

/// CRC-32C (Castagnoli) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The digest after a frame. The header block holds the digest before it, so hashing the block alone chains them.
pub fn digest(header: &[u8; BLOCK_BYTES]) -> Digest {
    Digest(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // RFC 3720, B.4, and the check value of CRC-64/NVME in the NVM Express specification.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, b"123456789"), 0xAE8B_1486_0A79_9888);
    }
}
