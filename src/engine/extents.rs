//! The answer to BLOCK_STATUS: what is known in memory, and the holes of the device.

use super::disk::{Disk, Extent};
use crate::core::index::{Found, Segment};
use crate::format::nbd::{STATE_HOLE, STATE_ZERO, push_block_status};

/// Extents in one reply.
const MAX_EXTENTS: usize = 512;

/// The reply: holes of the device and zeros in memory are zeros, the rest is data. `one`: no more than one extent.
pub fn block_status(cookie: u64, segments: &[Segment], disk: &Disk, one: bool) -> Vec<u8> {
    let mut extents: Vec<(u32, u32)> = Vec::new();
    let mut add = |bytes: u64, state: u32| match extents.last_mut() {
        Some((length, last)) if *last == state => *length += bytes as u32,
        _ => extents.push((bytes as u32, state)),
    };
    let zero = STATE_HOLE | STATE_ZERO;
    // Asking the file system takes a moment for each extent: no more are looked at than go into the reply.
    let mut budget = if one { 2 } else { MAX_EXTENTS };
    for segment in segments {
        budget = budget.saturating_sub(1);
        if budget == 0 {
            break;
        }
        match segment.found {
            Found::Memory(_) => add(segment.length, 0),
            Found::Zeros => add(segment.length, zero),
            Found::Device => {
                let mut at = segment.offset;
                let end = segment.offset + segment.length;
                while at < end && budget > 0 {
                    budget -= 1;
                    let (bytes, state) = match disk.extent(at, end - at) {
                        Extent::Hole(bytes) => (bytes, zero),
                        Extent::Data(bytes) => (bytes, 0),
                    };
                    add(bytes, state);
                    at += bytes;
                }
            }
        }
    }
    extents.truncate(if one { 1 } else { MAX_EXTENTS });
    let mut reply = Vec::new();
    push_block_status(&mut reply, cookie, &extents);
    reply
}
