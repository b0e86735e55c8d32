//! Requests of the transmission phase.
//!
//! Parsing and checking are apart because an erroneous WRITE still carries its payload: the reader first takes
//! the request's bytes, then the payload if [`RawRequest::carries_payload`], and answers [`check`]'s error after that.

use super::{Errno, ExportShape, MAX_PAYLOAD_BYTES, Negotiated};
use zerocopy::network_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The bytes of a request's header. NBD protocol, section "Request message" (the compact form).
pub const REQUEST_BYTES: usize = 28;
/// The magic that each request starts with.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;

// NBD protocol, section "Request types".

/// NBD_CMD_READ.
pub const CMD_READ: u16 = 0;
/// NBD_CMD_WRITE.
pub const CMD_WRITE: u16 = 1;
/// NBD_CMD_DISC.
pub const CMD_DISC: u16 = 2;
/// NBD_CMD_FLUSH.
pub const CMD_FLUSH: u16 = 3;
/// NBD_CMD_TRIM.
pub const CMD_TRIM: u16 = 4;
/// NBD_CMD_CACHE.
pub const CMD_CACHE: u16 = 5;
/// NBD_CMD_WRITE_ZEROES.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// NBD_CMD_BLOCK_STATUS.
pub const CMD_BLOCK_STATUS: u16 = 7;

// NBD protocol, section "Command flags".

/// NBD_CMD_FLAG_FUA: valid on every command, and ignored on those that write nothing.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// NBD_CMD_FLAG_NO_HOLE: a WRITE_ZEROES has to leave the range allocated.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// NBD_CMD_FLAG_DF: a READ has to be answered in one content chunk.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// NBD_CMD_FLAG_REQ_ONE: a BLOCK_STATUS asks for one extent.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RequestLayout {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

/// A request's header as the client sent it, its magic verified and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRequest {
    /// `CMD_FLAG_*` bits.
    pub flags: u16,
    /// One of `CMD_*`, or a number that this server doesn't know.
    pub command: u16,
    /// The client's name for the request, repeated in its reply.
    pub cookie: u64,
    /// In bytes from the export's start.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
}

impl RawRequest {
    /// Reads a header. None: the magic is wrong, so the stream can't be followed any more and has to be closed.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<RawRequest> {
        let layout: RequestLayout = zerocopy::transmute!(*bytes);
        (layout.magic.get() == REQUEST_MAGIC).then(|| RawRequest {
            flags: layout.flags.get(),
            command: layout.command.get(),
            cookie: layout.cookie.get(),
            offset: layout.offset.get(),
            length: layout.length.get(),
        })
    }

    /// The header as a client sends it.
    pub fn to_bytes(&self) -> [u8; REQUEST_BYTES] {
        zerocopy::transmute!(RequestLayout {
            magic: REQUEST_MAGIC.into(),
            flags: self.flags.into(),
            command: self.command.into(),
            cookie: self.cookie.into(),
            offset: self.offset.into(),
            length: self.length.into(),
        })
    }

    /// Whether its reply carries data, and with structured replies comes in chunks, errors included.
    pub fn wants_data(&self) -> bool {
        matches!(self.command, CMD_READ | CMD_BLOCK_STATUS)
    }

    /// Whether `length` bytes follow the header: of a WRITE, also where [`check`] finds the request in error.
    pub fn carries_payload(&self) -> bool {
        self.command == CMD_WRITE
    }
}

/// A request that passed [`check`]: offsets and lengths in bytes, inside the export, aligned, and never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are explained once, above and at the variants")]
pub enum Command {
    /// At most [`MAX_PAYLOAD_BYTES`].
    Read { offset: u64, length: u32 },
    /// At most [`MAX_PAYLOAD_BYTES`]; with `fua`, answered when the data is on stable storage.
    Write { offset: u64, length: u32, fua: bool },
    /// Everything answered before it goes to stable storage.
    Flush,
    /// The range's content may go.
    Trim { offset: u64, length: u32, fua: bool },
    /// The range reads as zeros; with `no_hole` it also stays allocated.
    WriteZeroes { offset: u64, length: u32, fua: bool, no_hole: bool },
    /// Advice that the range is read soon.
    Cache { offset: u64, length: u32 },
    /// Asks for the allocation of the range; with `req_one` for its first extent only.
    BlockStatus { offset: u64, length: u32, req_one: bool },
    /// The client leaves: pending requests are finished, and there is no reply.
    Disconnect,
}

/// Makes a command of a request, or the error that the request is answered with.
///
/// | error | where |
/// |---|---|
/// | `Inval` | unknown command; a flag that doesn't belong to the command; BLOCK_STATUS without `base:allocation` |
/// | `Perm` | WRITE, TRIM, WRITE_ZEROES on a read-only export |
/// | `Inval` | a FLUSH with an offset or a length; an empty, misaligned or out of range request otherwise |
/// | `Overflow` | a READ longer than [`MAX_PAYLOAD_BYTES`], structured replies negotiated |
/// | `Inval` | the same without structured replies; a WRITE longer than that |
///
/// The first that applies wins. DISC is never in error, for it has no reply.
///
/// The protocol recommends ENOSPC for a WRITE beyond the end (section "Error values"); `Inval` is used for every
/// command alike, so that ENOSPC always means that storage ran out. It leaves the meaning of an empty request to the
/// server (section "Request types"); nothing sensible can be meant by one, so it is refused.
pub fn check(raw: &RawRequest, export: &ExportShape, negotiated: &Negotiated) -> Result<Command, Errno> {
    if raw.command == CMD_DISC {
        return Ok(Command::Disconnect);
    }
    let (own_flags, writes) = match raw.command {
        CMD_READ if negotiated.structured => (CMD_FLAG_DF, false),
        CMD_READ | CMD_FLUSH | CMD_CACHE => (0, false),
        CMD_WRITE | CMD_TRIM => (0, true),
        CMD_WRITE_ZEROES => (CMD_FLAG_NO_HOLE, true),
        CMD_BLOCK_STATUS if negotiated.structured && negotiated.base_allocation => (CMD_FLAG_REQ_ONE, false),
        _ => return Err(Errno::Inval),
    };
    if raw.flags & !(CMD_FLAG_FUA | own_flags) != 0 {
        return Err(Errno::Inval);
    }
    if writes && export.read_only {
        return Err(Errno::Perm);
    }
    let (offset, length) = (raw.offset, raw.length);
    if raw.command == CMD_FLUSH {
        return if offset == 0 && length == 0 { Ok(Command::Flush) } else { Err(Errno::Inval) };
    }

    let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= export.size_bytes);
    let aligned = offset.is_multiple_of(u64::from(export.block_bytes)) && length.is_multiple_of(export.block_bytes);
    if length == 0 || !inside || !aligned {
        return Err(Errno::Inval);
    }
    let too_large = length > MAX_PAYLOAD_BYTES;
    let fua = raw.flags & CMD_FLAG_FUA != 0;
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
        CMD_BLOCK_STATUS => Ok(Command::BlockStatus { offset, length, req_one: raw.flags & CMD_FLAG_REQ_ONE != 0 }),
        _ => Err(Errno::Inval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXPORT: ExportShape = ExportShape { size_bytes: 8 << 30, block_bytes: 512, read_only: false };
    const SIMPLE: Negotiated = Negotiated { export: 0, structured: false, base_allocation: false };
    const FULL: Negotiated = Negotiated { export: 0, structured: true, base_allocation: true };

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> RawRequest {
        RawRequest { flags, command, cookie: 7, offset, length }
    }

    #[test]
    fn a_request_is_read_from_the_bytes_of_the_protocol() {
        let bytes = [
            0x25, 0x60, 0x95, 0x13, // magic
            0x00, 0x01, 0x00, 0x06, // FUA, WRITE_ZEROES
            1, 2, 3, 4, 5, 6, 7, 8, // cookie
            0, 0, 0, 1, 0, 0, 2, 0, // offset
            0, 0, 0x10, 0, // length
        ];
        let raw = RawRequest::parse(&bytes).unwrap();
        let expected =
            RawRequest { flags: 1, command: 6, cookie: 0x0102_0304_0506_0708, offset: 0x1_0000_0200, length: 4096 };
        assert_eq!(raw, expected);
        assert_eq!(raw.to_bytes(), bytes);
        let mut damaged = bytes;
        damaged[3] ^= 1;
        assert_eq!(RawRequest::parse(&damaged), None);
    }

    #[test]
    fn good_requests_become_commands() {
        let (offset, length) = (512, 1024);
        let cases = [
            (request(CMD_READ, 0, offset, length), Command::Read { offset, length }),
            (request(CMD_READ, CMD_FLAG_DF | CMD_FLAG_FUA, offset, length), Command::Read { offset, length }),
            (request(CMD_WRITE, 0, offset, length), Command::Write { offset, length, fua: false }),
            (request(CMD_WRITE, CMD_FLAG_FUA, offset, length), Command::Write { offset, length, fua: true }),
            (request(CMD_FLUSH, CMD_FLAG_FUA, 0, 0), Command::Flush),
            (request(CMD_TRIM, CMD_FLAG_FUA, offset, length), Command::Trim { offset, length, fua: true }),
            (
                request(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, offset, length),
                Command::WriteZeroes { offset, length, fua: false, no_hole: true },
            ),
            (request(CMD_CACHE, 0, offset, length), Command::Cache { offset, length }),
            (
                request(CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, offset, length),
                Command::BlockStatus { offset, length, req_one: true },
            ),
            (request(CMD_DISC, 0xffff, 1, 1), Command::Disconnect),
        ];
        for (raw, command) in cases {
            assert_eq!(check(&raw, &EXPORT, &FULL), Ok(command), "{raw:?}");
        }
    }

    #[test]
    fn bad_requests_get_the_protocols_error() {
        let ranged = [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS];
        for command in ranged {
            for (offset, length) in [
                (0, 0),
                (1, 512),
                (512, 100),
                (EXPORT.size_bytes - 512, 1024),
                (EXPORT.size_bytes, 512),
                (u64::MAX - 511, 1024),
            ] {
                let raw = request(command, 0, offset, length);
                assert_eq!(check(&raw, &EXPORT, &FULL), Err(Errno::Inval), "{raw:?}");
            }
            let raw = request(command, 1 << 4, 0, 512);
            assert_eq!(check(&raw, &EXPORT, &FULL), Err(Errno::Inval), "{raw:?}");
        }
        for raw in [
            request(CMD_FLUSH, 0, 512, 0),
            request(CMD_FLUSH, 0, 0, 512),
            request(8, 0, 0, 512),
            request(u16::MAX, 0, 0, 512),
            request(CMD_WRITE, CMD_FLAG_NO_HOLE, 0, 512),
            request(CMD_TRIM, CMD_FLAG_REQ_ONE, 0, 512),
            request(CMD_READ, CMD_FLAG_REQ_ONE, 0, 512),
        ] {
            assert_eq!(check(&raw, &EXPORT, &FULL), Err(Errno::Inval), "{raw:?}");
        }
    }

    #[test]
    fn the_handshake_decides_what_is_allowed() {
        let df = request(CMD_READ, CMD_FLAG_DF, 0, 512);
        assert_eq!(check(&df, &EXPORT, &SIMPLE), Err(Errno::Inval));
        let status = request(CMD_BLOCK_STATUS, 0, 0, 512);
        assert_eq!(check(&status, &EXPORT, &SIMPLE), Err(Errno::Inval));
        let without_context = Negotiated { base_allocation: false, ..FULL };
        assert_eq!(check(&status, &EXPORT, &without_context), Err(Errno::Inval));
        let without_structure = Negotiated { structured: false, ..FULL };
        assert_eq!(check(&status, &EXPORT, &without_structure), Err(Errno::Inval));
    }

    #[test]
    fn only_payloads_have_a_limit() {
        let most = request(CMD_READ, 0, 0, MAX_PAYLOAD_BYTES);
        assert!(check(&most, &EXPORT, &SIMPLE).is_ok());
        let more = MAX_PAYLOAD_BYTES + 512;
        assert_eq!(check(&request(CMD_READ, 0, 0, more), &EXPORT, &FULL), Err(Errno::Overflow));
        assert_eq!(check(&request(CMD_READ, 0, 0, more), &EXPORT, &SIMPLE), Err(Errno::Inval));
        assert_eq!(check(&request(CMD_WRITE, 0, 0, more), &EXPORT, &FULL), Err(Errno::Inval));
        for command in [CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE, CMD_BLOCK_STATUS] {
            assert!(check(&request(command, 0, 0, u32::MAX - 511), &EXPORT, &FULL).is_ok());
        }
    }

    #[test]
    fn a_read_only_export_is_not_written() {
        let export = ExportShape { read_only: true, ..EXPORT };
        for command in [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
            assert_eq!(check(&request(command, 0, 0, 512), &export, &FULL), Err(Errno::Perm));
        }
        assert_eq!(check(&request(CMD_FLUSH, 0, 0, 0), &export, &FULL), Ok(Command::Flush));
        assert!(check(&request(CMD_READ, 0, 0, 512), &export, &FULL).is_ok());
    }

    #[test]
    fn the_payload_of_a_bad_write_still_follows() {
        let raw = request(CMD_WRITE, 0xffff, u64::MAX, 100);
        assert!(check(&raw, &EXPORT, &FULL).is_err() && raw.carries_payload());
        assert!(!request(CMD_READ, 0, 0, 512).carries_payload());
    }

    proptest! {
        #[test]
        fn whatever_passes_is_inside_and_aligned(
            command in 0u16..10, flags in 0u16..32, block in 0u64..20, blocks in 0u32..20, skew in 0u32..2,
            read_only: bool, structured: bool, base_allocation: bool,
        ) {
            let export = ExportShape { size_bytes: 16 * 512, block_bytes: 512, read_only };
            let negotiated = Negotiated { export: 0, structured, base_allocation };
            let raw = request(command, flags, block * 512, blocks * 512 + skew);
            match check(&raw, &export, &negotiated) {
                Ok(Command::Flush) => prop_assert!(raw.offset == 0 && raw.length == 0),
                Ok(Command::Disconnect) | Err(_) => {}
                Ok(_) => prop_assert!(blocks > 0 && skew == 0 && block + u64::from(blocks) <= 16),
            }
        }
    }
}
