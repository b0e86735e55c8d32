//! Replies of the transmission phase: simple ones, and the chunks of structured ones.

use super::META_BASE_ALLOCATION_ID;
use zerocopy::network_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// The bytes of a simple reply, to which a READ's data is appended. NBD protocol, section "Simple reply message".
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// The magic that a simple reply starts with.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The bytes of a chunk's header. NBD protocol, section "Structured reply chunk message".
pub const CHUNK_HEADER_BYTES: usize = 20;
/// The magic that a chunk starts with.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// NBD_REPLY_FLAG_DONE: the last chunk of its reply.
pub const CHUNK_DONE: u16 = 1 << 0;

// NBD protocol, section "Structured reply types".

/// NBD_REPLY_TYPE_NONE: no payload; ends a reply, so it goes with [`CHUNK_DONE`].
pub const CHUNK_NONE: u16 = 0;
/// NBD_REPLY_TYPE_OFFSET_DATA: an offset, then the data there.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// NBD_REPLY_TYPE_OFFSET_HOLE: an offset and a length that read as zeros.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// NBD_REPLY_TYPE_BLOCK_STATUS: the id of a context, then extents.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// NBD_REPLY_TYPE_ERROR: an error, and a message's length and text.
pub const CHUNK_ERROR: u16 = (1 << 15) + 1;

/// The bytes of an OFFSET_DATA chunk before its data.
pub const DATA_CHUNK_HEADER_BYTES: usize = CHUNK_HEADER_BYTES + 8;
/// The bytes of an OFFSET_HOLE chunk.
pub const HOLE_CHUNK_BYTES: usize = CHUNK_HEADER_BYTES + 12;
/// The bytes of an ERROR chunk without a message.
pub const ERROR_CHUNK_BYTES: usize = CHUNK_HEADER_BYTES + 6;

// NBD protocol, section "Metadata contexts", `base:allocation`.

/// NBD_STATE_HOLE: the extent is not allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// NBD_STATE_ZERO: the extent reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;

/// An error of the protocol, by its number on the wire. NBD protocol, section "Error values".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    /// The storage failed.
    Io = 5,
    /// Memory ran out.
    NoMem = 12,
    /// The request is malformed, misaligned, out of range or unknown.
    Inval = 22,
    /// The storage is full.
    NoSpc = 28,
    /// The reply would be too large.
    Overflow = 75,
    /// What is asked for can't be done here.
    NotSup = 95,
    /// The server is stopping.
    Shutdown = 108,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SimpleReplyLayout {
    magic: U32,
    error: U32,
    cookie: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ChunkLayout {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

impl ChunkLayout {
    fn new(flags: u16, kind: u16, cookie: u64, length: u32) -> ChunkLayout {
        ChunkLayout {
            magic: CHUNK_MAGIC.into(),
            flags: flags.into(),
            kind: kind.into(),
            cookie: cookie.into(),
            length: length.into(),
        }
    }
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct DataLayout {
    chunk: ChunkLayout,
    offset: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct HoleLayout {
    chunk: ChunkLayout,
    offset: U64,
    length: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ErrorLayout {
    chunk: ChunkLayout,
    error: U32,
    message_length: U16,
}

/// A simple reply. A READ's data follows it where `error` is None.
pub fn simple_reply(error: Option<Errno>, cookie: u64) -> [u8; SIMPLE_REPLY_BYTES] {
    zerocopy::transmute!(SimpleReplyLayout {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: error.map_or(0, |error| error as u32).into(),
        cookie: cookie.into(),
    })
}

/// The header of a chunk: `flags` is 0 or [`CHUNK_DONE`], `length` the bytes of payload that follow.
pub fn chunk_header(flags: u16, kind: u16, cookie: u64, length: u32) -> [u8; CHUNK_HEADER_BYTES] {
    zerocopy::transmute!(ChunkLayout::new(flags, kind, cookie, length))
}

/// An OFFSET_DATA chunk up to its data, of which `length` bytes follow: 1 to [`MAX_PAYLOAD_BYTES`](super::MAX_PAYLOAD_BYTES).
pub fn data_chunk_header(flags: u16, cookie: u64, offset: u64, length: u32) -> [u8; DATA_CHUNK_HEADER_BYTES] {
    zerocopy::transmute!(DataLayout {
        chunk: ChunkLayout::new(flags, CHUNK_OFFSET_DATA, cookie, length.saturating_add(8)),
        offset: offset.into(),
    })
}

/// A whole OFFSET_HOLE chunk: `length` bytes from `offset` on read as zeros. `length` is not 0.
pub fn hole_chunk(flags: u16, cookie: u64, offset: u64, length: u32) -> [u8; HOLE_CHUNK_BYTES] {
    zerocopy::transmute!(HoleLayout {
        chunk: ChunkLayout::new(flags, CHUNK_OFFSET_HOLE, cookie, 12),
        offset: offset.into(),
        length: length.into(),
    })
}

/// A whole ERROR chunk without a message, the last of its reply.
pub fn error_chunk(error: Errno, cookie: u64) -> [u8; ERROR_CHUNK_BYTES] {
    zerocopy::transmute!(ErrorLayout {
        chunk: ChunkLayout::new(CHUNK_DONE, CHUNK_ERROR, cookie, 6),
        error: (error as u32).into(),
        message_length: 0.into(),
    })
}

/// Appends a whole BLOCK_STATUS chunk of `base:allocation` to `out`, the last of its reply.
///
/// `extents` are lengths in bytes and `STATE_*` flags, from the request's offset on. The protocol wants at least
/// one, none of them empty, and not more than the request's length in sum.
pub fn push_block_status(out: &mut Vec<u8>, cookie: u64, extents: &[(u32, u32)]) {
    debug_assert!(!extents.is_empty() && extents.iter().all(|&(length, _)| length > 0));
    // An extent covers at least a byte of a request of 32 bits, but 8 bytes each could still exceed the field.
    let count = extents.len().min((u32::MAX as usize - 4) / 8);
    out.extend(chunk_header(CHUNK_DONE, CHUNK_BLOCK_STATUS, cookie, 4 + 8 * count as u32));
    out.extend(META_BASE_ALLOCATION_ID.to_be_bytes());
    for (length, flags) in &extents[..count] {
        out.extend(length.to_be_bytes());
        out.extend(flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: u64 = 0x0102_0304_0506_0708;

    #[test]
    fn simple_replies_have_the_protocols_bytes() {
        assert_eq!(simple_reply(None, COOKIE), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let numbers = [
            (Errno::Perm, 1),
            (Errno::Io, 5),
            (Errno::NoMem, 12),
            (Errno::Inval, 22),
            (Errno::NoSpc, 28),
            (Errno::Overflow, 75),
            (Errno::NotSup, 95),
            (Errno::Shutdown, 108),
        ];
        for (error, number) in numbers {
            assert_eq!(simple_reply(Some(error), 0)[4..8], [0, 0, 0, number]);
        }
    }

    #[test]
    fn chunks_have_the_protocols_bytes() {
        let header = |done, kind: [u8; 2], length| {
            let mut bytes = vec![0x66, 0x8e, 0x33, 0xef, 0, done, kind[0], kind[1], 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0];
            bytes.push(length);
            bytes
        };
        assert_eq!(chunk_header(CHUNK_DONE, CHUNK_NONE, COOKIE, 0)[..], header(1, [0, 0], 0));

        let data = [header(0, [0, 1], 24), vec![0, 0, 0, 0, 0, 0, 2, 0]].concat();
        assert_eq!(data_chunk_header(0, COOKIE, 512, 16)[..], data);

        let hole = [header(1, [0, 2], 12), vec![0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 16, 0]].concat();
        assert_eq!(hole_chunk(CHUNK_DONE, COOKIE, 512, 4096)[..], hole);

        let error = [header(1, [0x80, 1], 6), vec![0, 0, 0, 22, 0, 0]].concat();
        assert_eq!(error_chunk(Errno::Inval, COOKIE)[..], error);

        let extents = vec![0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0];
        let mut status = vec![0xaa];
        push_block_status(&mut status, COOKIE, &[(4096, STATE_HOLE | STATE_ZERO), (512, 0)]);
        assert_eq!(status, [vec![0xaa], header(1, [0, 5], 20), extents].concat());
    }
}
