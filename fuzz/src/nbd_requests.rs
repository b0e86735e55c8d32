//! NBD requests of the transmission phase, and the replies to them.
//!
//! The check is held against the rules of docs/nbd-protocol.md, written down here a second time; the replies are read
//! back as a client reads them.

use super::structured::{Encode, List};
use arbitrary::{Arbitrary, Unstructured};
use nbd_mirror::format::nbd::*;

structured! {
    /// An export, what was agreed on, and what a client then sends.
    struct Session {
        block_log: u8,
        blocks: u64,
        read_only: bool,
        structured: bool,
        base_allocation: bool,
        requests: List<Sent>,
    }

    /// One request.
    enum Sent {
        /// Seen from the export: its first block, or its last, and a little to either side.
        Near { command: u8, flags: u8, from_end: bool, blocks: u16, skew: u8, length_blocks: u16, length_skew: u8 },
        Any { command: u16, flags: u16, offset: u64, length: u32 },
        Raw { bytes: [u8; 28] },
    }
}

impl Encode for [u8; 28] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self);
    }
}

const COOKIE: u64 = 0x0102_0304_0506_0708;

/// Runs one session.
pub fn run(data: &[u8]) {
    let Ok(session) = Session::arbitrary(&mut Unstructured::new(data)) else { return };
    let block_bytes = 1u32 << (session.block_log % 32);
    // A whole number of blocks, as an export's size always is.
    let size_bytes = session.blocks.wrapping_mul(block_bytes.into());
    let export = ExportShape { size_bytes, block_bytes, read_only: session.read_only };
    let negotiated = Negotiated { export: 0, structured: session.structured, base_allocation: session.base_allocation };
    for sent in &session.requests.0 {
        let bytes = sent.bytes(&export);
        let Some(raw) = RawRequest::parse(&bytes) else {
            assert_ne!(bytes[..4], REQUEST_MAGIC.to_be_bytes());
            continue;
        };
        assert_eq!(raw.to_bytes(), bytes);
        assert_eq!(raw.carries_payload(), raw.command == CMD_WRITE);
        let outcome = check(&raw, &export, &negotiated);
        assert_eq!(outcome, expected(&raw, &export, &negotiated), "{raw:?} {export:?} {negotiated:?}");
        reply(&raw, outcome, &negotiated);
    }
}

impl Sent {
    fn bytes(&self, export: &ExportShape) -> [u8; REQUEST_BYTES] {
        let raw = match *self {
            Sent::Raw { bytes } => return bytes,
            Sent::Any { command, flags, offset, length } => {
                RawRequest { flags, command, cookie: COOKIE, offset, length }
            }
            Sent::Near { command, flags, from_end, blocks, skew, length_blocks, length_skew } => {
                let away = (u64::from(blocks) * u64::from(export.block_bytes)).wrapping_add(skew.into());
                let offset = if from_end { export.size_bytes.wrapping_sub(away) } else { away };
                let length = u32::from(length_blocks).wrapping_mul(export.block_bytes).wrapping_add(length_skew.into());
                RawRequest { flags: flags.into(), command: command.into(), cookie: COOKIE, offset, length }
            }
        };
        raw.to_bytes()
    }
}

/// What docs/nbd-protocol.md says.
fn expected(raw: &RawRequest, export: &ExportShape, negotiated: &Negotiated) -> Result<Command, Errno> {
    let (offset, length, fua) = (raw.offset, raw.length, raw.flags & CMD_FLAG_FUA != 0);
    let may = |allowed: u16| raw.flags & !(allowed | CMD_FLAG_FUA) == 0;
    let permitted = match raw.command {
        CMD_DISC => return Ok(Command::Disconnect),
        CMD_READ => may(if negotiated.structured { CMD_FLAG_DF } else { 0 }),
        CMD_BLOCK_STATUS => negotiated.structured && negotiated.base_allocation && may(CMD_FLAG_REQ_ONE),
        CMD_WRITE_ZEROES => may(CMD_FLAG_NO_HOLE),
        CMD_WRITE | CMD_TRIM | CMD_FLUSH | CMD_CACHE => may(0),
        _ => false,
    };
    let writes = [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES].contains(&raw.command);
    if !permitted {
        return Err(Errno::Inval);
    }
    if writes && export.read_only {
        return Err(Errno::Perm);
    }
    if raw.command == CMD_FLUSH {
        return if (offset, length) == (0, 0) { Ok(Command::Flush) } else { Err(Errno::Inval) };
    }
    // In wider numbers nothing overflows.
    let (start, end, block) =
        (u128::from(offset), u128::from(offset) + u128::from(length), u128::from(export.block_bytes));
    if length == 0 || end > u128::from(export.size_bytes) || start % block != 0 || end % block != 0 {
        return Err(Errno::Inval);
    }
    let too_large = length > MAX_PAYLOAD_BYTES;
    match raw.command {
        CMD_READ if too_large && negotiated.structured => Err(Errno::Overflow),
        CMD_READ | CMD_WRITE if too_large => Err(Errno::Inval),
        CMD_READ => Ok(Command::Read { offset, length }),
        CMD_WRITE => Ok(Command::Write { offset, length, fua }),
        CMD_TRIM => Ok(Command::Trim { offset, length, fua }),
        CMD_CACHE => Ok(Command::Cache { offset, length }),
        CMD_WRITE_ZEROES => {
            Ok(Command::WriteZeroes { offset, length, fua, no_hole: raw.flags & CMD_FLAG_NO_HOLE != 0 })
        }
        _ => Ok(Command::BlockStatus { offset, length, req_one: raw.flags & CMD_FLAG_REQ_ONE != 0 }),
    }
}

/// Encodes the reply as the engine does, and reads it back.
fn reply(raw: &RawRequest, outcome: Result<Command, Errno>, negotiated: &Negotiated) {
    let chunked = negotiated.structured && raw.wants_data();
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    match outcome {
        Err(error) if chunked => {
            let chunk = error_chunk(error, raw.cookie);
            let (flags, kind, payload) = read_chunk(&chunk, raw.cookie, None);
            assert_eq!((flags, kind), (CHUNK_DONE, CHUNK_ERROR));
            assert_eq!((number(&payload[..4]), number(&payload[4..])), (error as u64, 0));
        }
        Err(error) => {
            let reply = simple_reply(Some(error), raw.cookie);
            assert_eq!(number(&reply[..4]), u64::from(SIMPLE_REPLY_MAGIC));
            assert_eq!((number(&reply[4..8]), number(&reply[8..])), (error as u64, raw.cookie));
            assert_ne!(number(&reply[4..8]), 0);
        }
        Ok(Command::Read { offset, length }) if chunked => {
            let head = data_chunk_header(CHUNK_DONE, raw.cookie, offset, length);
            let (flags, kind, payload) = read_chunk(&head, raw.cookie, Some(length));
            assert_eq!((flags, kind, number(payload)), (CHUNK_DONE, CHUNK_OFFSET_DATA, offset));
            let hole = hole_chunk(0, raw.cookie, offset, length);
            let (_, kind, payload) = read_chunk(&hole, raw.cookie, None);
            assert_eq!(kind, CHUNK_OFFSET_HOLE);
            assert_eq!((number(&payload[..8]), number(&payload[8..])), (offset, length.into()));
        }
        Ok(Command::BlockStatus { length, .. }) => {
            let halves = [length.div_ceil(2), length / 2];
            let extents: Vec<_> =
                halves.into_iter().filter(|bytes| *bytes > 0).map(|bytes| (bytes, STATE_ZERO)).collect();
            let mut out = vec![7];
            push_block_status(&mut out, raw.cookie, &extents);
            let (flags, kind, payload) = read_chunk(&out[1..], raw.cookie, None);
            assert_eq!((flags, kind, payload.len()), (CHUNK_DONE, CHUNK_BLOCK_STATUS, 4 + 8 * extents.len()));
            let sum: u64 = payload[4..].chunks(8).map(|extent| number(&extent[..4])).sum();
            assert_eq!((number(&payload[..4]), sum), (u64::from(META_BASE_ALLOCATION_ID), u64::from(length)));
        }
        Ok(_) => {
            let reply = simple_reply(None, raw.cookie);
            assert_eq!((number(&reply[..8]), number(&reply[8..])), (u64::from(SIMPLE_REPLY_MAGIC) << 32, raw.cookie));
            let chunk = chunk_header(CHUNK_DONE, CHUNK_NONE, raw.cookie, 0);
            assert_eq!(read_chunk(&chunk, raw.cookie, None), (CHUNK_DONE, CHUNK_NONE, &[][..]));
        }
    }
}

/// A chunk's flags, kind and payload; of data that is sent behind it `data` bytes are announced besides.
fn read_chunk(bytes: &[u8], cookie: u64, data: Option<u32>) -> (u16, u16, &[u8]) {
    let (header, payload) = bytes.split_at(CHUNK_HEADER_BYTES);
    assert_eq!(header[..4], CHUNK_MAGIC.to_be_bytes());
    assert_eq!(header[8..16], cookie.to_be_bytes());
    assert_eq!(header[16..], (payload.len() as u32 + data.unwrap_or(0)).to_be_bytes());
    let short = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    (short(4), short(6), payload)
}
