//! The source engine's memory, without its bytes: what is handed out, and each header block.

use nbd_mirror::core::Place;
use nbd_mirror::core::source::Headers;
use nbd_mirror::format::block::Block;
use nbd_mirror::format::frame::padded;
use nbd_mirror::limits::BLOCK_BYTES;
use std::collections::BTreeMap;

/// What is handed out: by its place, its bytes and its contents where it is a header.
#[derive(Debug, Default)]
pub struct Memory {
    next: u64,
    taken: BTreeMap<u64, (u64, Option<Box<Block>>)>,
}

impl Memory {
    /// Memory for a payload; what is taken in a row lies in a row.
    pub fn take(&mut self, bytes: usize) -> Place {
        self.add(padded(bytes) as u64, None)
    }

    fn add(&mut self, bytes: u64, block: Option<Box<Block>>) -> Place {
        let place = self.next;
        self.next += bytes;
        self.taken.insert(place, (bytes, block));
        Place(place)
    }

    /// Gives back what was taken.
    pub fn release(&mut self, place: Place, bytes: u64) {
        let (taken, _) = self.taken.remove(&place.0).expect("memory was given back twice");
        assert_eq!(taken, bytes, "another size was given back than was taken");
    }

    /// The header block at a place.
    pub fn header(&self, place: Place) -> &Block {
        self.taken.get(&place.0).and_then(|(_, block)| block.as_deref()).expect("no header is there")
    }

    /// Demands that nothing of a range was given back.
    pub fn assert_taken(&self, place: Place, bytes: u64) {
        let (mut at, end) = (place.0, place.0 + bytes);
        while at < end {
            let found = self.taken.range(..=at).next_back().map(|(start, (bytes, _))| start + bytes);
            at = found.filter(|end| *end > at).unwrap_or_else(|| panic!("memory in use was given back"));
        }
    }

    /// How much is taken, in pieces.
    pub fn pieces(&self) -> usize {
        self.taken.len()
    }
}

impl Headers for Memory {
    fn store(&mut self, block: &Block) -> Place {
        self.add(BLOCK_BYTES as u64, Some(Box::new(*block)))
    }
}
