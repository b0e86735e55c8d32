//! What a destination held in memory of its journal files when it was promoted: whoever serves its images needs just that,
//! and reading it from the files would take as long as their disk does.

use super::memory::Memory;
use crate::core::Place;
use std::sync::Arc;

/// Both journal files as far as they were stored, in the memory of an engine that has ended.
#[derive(Debug)]
pub struct Held {
    memory: Arc<Memory>,
    stored: [(Place, u64); 2],
}

impl Held {
    /// Takes them over: where each of them begins, and how many bytes of it were stored. Nothing may be under way in this
    /// memory any more, and nobody else use it.
    pub fn new(memory: Arc<Memory>, stored: [(Place, u64); 2]) -> Held {
        Held { memory, stored }
    }

    /// Copies one of the files to where nobody else is yet.
    pub fn copy(&self, half: usize, to: &Memory, place: Place) {
        let (from, bytes) = self.stored[half];
        // SAFETY: nothing is under way in the one, and nobody but the caller knows the other.
        unsafe { to.bytes_mut(place, bytes as usize).copy_from_slice(self.memory.bytes(from, bytes as usize)) }
    }
}
