//! Ranges become zeros: by a discard or a zeroing of the device where it has them, else by writing.

use super::disk::Disk;
use super::ring::Ring;
use crate::core::Place;
use crate::limits::CHUNK_BYTES;
use std::io;

/// Chunks of zeros that one write carries.
const CHUNKS: u64 = 256;

/// A range that is being zeroed.
#[derive(Debug, Clone, Copy)]
pub struct Zeroing {
    /// The volume.
    pub volume: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Whether the range must stay allocated.
    pub no_hole: bool,
}

impl Zeroing {
    /// Starts it, or the first part of it. `zeros` is a chunk of zeros.
    pub fn start<T: Copy>(self, ring: &mut Ring<T>, token: fn(Zeroing) -> T, disk: &Disk, zeros: Place) {
        if disk.can_zero {
            let punch = disk.can_punch && !self.no_hole;
            let mode = if punch { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
            return ring.allocate(
                token(self),
                disk.target(),
                mode | libc::FALLOC_FL_KEEP_SIZE,
                self.offset,
                self.length,
            );
        }
        let chunk = CHUNK_BYTES as u64;
        let bytes = self.length.min(CHUNKS * chunk);
        let mut pieces: Vec<(Place, u64)> = (0..bytes / chunk).map(|_| (zeros, chunk)).collect();
        if !bytes.is_multiple_of(chunk) {
            pieces.push((zeros, bytes % chunk));
        }
        ring.write(token(self), disk.target(), self.offset, &pieces, false);
    }

    /// What is left to be started after a completion; `None`: it is done.
    pub fn next(self, disk: &mut Disk, outcome: io::Result<usize>) -> io::Result<Option<Zeroing>> {
        match outcome {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) && disk.can_punch && !self.no_hole => {
                disk.can_punch = false;
                Ok(Some(self))
            }
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) && disk.can_zero => {
                tracing::info!("{} can't zero ranges by itself; zeros are written", disk.path().display());
                disk.can_zero = false;
                Ok(Some(self))
            }
            Err(error) => Err(error),
            // A fallocate moves no bytes, and is whole.
            Ok(0) => Ok(None),
            Ok(bytes) => {
                let (offset, length) = (self.offset + bytes as u64, self.length - bytes as u64);
                Ok((length > 0).then_some(Zeroing { offset, length, ..self }))
            }
        }
    }
}
