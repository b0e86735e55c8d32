//! Any sequence of events into either core, as an engine could hand them over: operations complete in any order, but
//! only those that were started; clients ask for what they may ask for; the peer says whatever it likes.

pub mod destination;
mod files;
mod memory;
pub mod source;

use super::structured::Encode;
use arbitrary::{Arbitrary, Unstructured};
use destination::DestinationPlay;
use source::SourcePlay;

structured! {
    /// One side, and what happens to it.
    enum Play {
        Source { play: SourcePlay },
        Destination { play: DestinationPlay },
    }
}

/// Runs one side.
pub fn run(data: &[u8]) {
    match Play::arbitrary(&mut Unstructured::new(data)) {
        Ok(Play::Source { play }) => source::run(&play),
        Ok(Play::Destination { play }) => destination::run(&play),
        Err(_) => {}
    }
}
