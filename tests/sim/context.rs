//! What everything in a world shares.

use crate::content::Vault;
use crate::rare::Met;
use crate::rng::Rng;
use std::cell::Cell;
use std::time::Duration;

pub struct Context {
    pub rng: Rng,
    pub vault: Vault,
    pub met: Met,
    pub now: Duration,
    /// Damage on the way to a destination, per mille of the frames.
    pub wire_rot: u64,
    /// Frames that were damaged on the way.
    pub rotten_frames: u64,
    /// The next sector content that nobody has used.
    pub words: u64,
    /// Reads that were checked.
    pub reads: Cell<u64>,
    pub trace: bool,
}
