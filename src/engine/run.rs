//! A run of a flush, an apply or a drain goes to its device.

use super::disk::Disk;
use super::ring::Ring;
use super::zeroing::Zeroing;
use crate::core::Place;
use crate::core::flush::FlushOp;
use crate::core::index::Action;

/// Starts it: `written` names its write of the pieces, `zeroed` its zeroing. `zeros` is a chunk of zeros.
pub fn start<T: Copy>(
    op: FlushOp,
    ring: &mut Ring<T>,
    disk: &Disk,
    pieces: &[(Place, u64)],
    zeros: Place,
    written: T,
    zeroed: fn(Zeroing) -> T,
) {
    match op.run.action {
        Action::Write => ring.write(written, disk.target(), op.run.offset, pieces, false),
        Action::Zero { no_hole } => {
            let zeroing = Zeroing { volume: op.volume, offset: op.run.offset, length: op.run.length, no_hole };
            zeroing.start(ring, zeroed, disk, zeros);
        }
    }
}
