//! The handshake: the greeting, options with their data, and the replies to them.
//!
//! NBD protocol, sections "Newstyle negotiation", "Fixed newstyle negotiation" and "Values", "Handshake phase".

use super::identity::Identity;
use super::{ExportShape, MAX_PAYLOAD_BYTES};
use zerocopy::network_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable};

/// The server's first magic, "NBDMAGIC".
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// The magic of the greeting and of each option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The magic of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flag and client flag: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag and client flag: no 124 zeros at the end of an EXPORT_NAME's reply.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

// Transmission flags.

/// NBD_FLAG_HAS_FLAGS, always set.
pub const FLAG_HAS_FLAGS: u16 = 1 << 0;
/// NBD_FLAG_READ_ONLY.
pub const FLAG_READ_ONLY: u16 = 1 << 1;
/// NBD_FLAG_SEND_FLUSH.
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// NBD_FLAG_SEND_FUA.
pub const FLAG_SEND_FUA: u16 = 1 << 3;
/// NBD_FLAG_SEND_TRIM.
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
/// NBD_FLAG_SEND_WRITE_ZEROES.
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// NBD_FLAG_SEND_DF.
pub const FLAG_SEND_DF: u16 = 1 << 7;
/// NBD_FLAG_CAN_MULTI_CONN.
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// NBD_FLAG_SEND_CACHE.
pub const FLAG_SEND_CACHE: u16 = 1 << 10;

// Option types.

/// NBD_OPT_EXPORT_NAME.
pub const OPT_EXPORT_NAME: u32 = 1;
/// NBD_OPT_ABORT.
pub const OPT_ABORT: u32 = 2;
/// NBD_OPT_LIST.
pub const OPT_LIST: u32 = 3;
/// NBD_OPT_STARTTLS.
pub const OPT_STARTTLS: u32 = 5;
/// NBD_OPT_INFO.
pub const OPT_INFO: u32 = 6;
/// NBD_OPT_GO.
pub const OPT_GO: u32 = 7;
/// NBD_OPT_STRUCTURED_REPLY.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// NBD_OPT_LIST_META_CONTEXT.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// NBD_OPT_SET_META_CONTEXT.
pub const OPT_SET_META_CONTEXT: u32 = 10;

// Option reply types.

/// NBD_REP_ACK.
pub const REP_ACK: u32 = 1;
/// NBD_REP_SERVER.
pub const REP_SERVER: u32 = 2;
/// NBD_REP_INFO.
pub const REP_INFO: u32 = 3;
/// NBD_REP_META_CONTEXT.
pub const REP_META_CONTEXT: u32 = 4;
/// NBD_REP_ERR_UNSUP.
pub const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// NBD_REP_ERR_INVALID.
pub const REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// NBD_REP_ERR_UNKNOWN.
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;

// Information types of INFO and GO.

/// NBD_INFO_EXPORT.
pub const INFO_EXPORT: u16 = 0;
/// NBD_INFO_NAME.
pub const INFO_NAME: u16 = 1;
/// NBD_INFO_DESCRIPTION.
pub const INFO_DESCRIPTION: u16 = 2;
/// NBD_INFO_BLOCK_SIZE.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// The only metadata context there is.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The bytes of the server's greeting.
pub const GREETING_BYTES: usize = 18;
/// The bytes of the client's flags.
pub const CLIENT_FLAGS_BYTES: usize = 4;
/// The bytes of an option before its data.
pub const OPTION_HEADER_BYTES: usize = 16;
/// The longest string of the protocol, in bytes (section "Conventions").
pub const MAX_STRING_BYTES: usize = 4096;

/// The preferred block size, in bytes, where the minimum isn't larger.
const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// The reserved zeros at the end of an EXPORT_NAME's reply.
const RESERVED_BYTES: usize = 124;

/// The server's first bytes: fixed newstyle, and the zeros may be left out.
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    bytes
}

#[derive(FromBytes, Immutable)]
#[repr(C)]
struct OptionLayout {
    magic: U64,
    option: U32,
    length: U32,
}

/// An option, before its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// One of `OPT_*`, or a number that this server doesn't know.
    pub option: u32,
    /// The bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Reads a header. The error is the magic that stands where [`OPTION_MAGIC`] should.
    pub fn parse(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<OptionHeader, u64> {
        let layout: OptionLayout = zerocopy::transmute!(*bytes);
        match layout.magic.get() {
            OPTION_MAGIC => Ok(OptionHeader { option: layout.option.get(), length: layout.length.get() }),
            other => Err(other),
        }
    }
}

/// What is wrong with an option's data: told to the client with ERR_INVALID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The data of an INFO or a GO.
#[derive(Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export's name; empty for the default export.
    pub name: &'a str,
    /// The `INFO_*` that the client asks for, known here or not.
    pub kinds: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// Reads the data of an INFO or a GO.
    pub fn parse(mut data: &'a [u8]) -> Result<InfoRequest<'a>, Malformed> {
        let name = take_string(&mut data)?;
        let count = u16::from_be_bytes(take(&mut data)?);
        if data.len() != 2 * usize::from(count) {
            return Err(Malformed("the count of information requests does not match the option's length"));
        }
        let (kinds, _) = data.as_chunks::<2>();
        Ok(InfoRequest { name, kinds: kinds.iter().map(|kind| u16::from_be_bytes(*kind)).collect() })
    }
}

/// The data of a LIST_META_CONTEXT or a SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub struct ContextRequest<'a> {
    /// The export's name; empty for the default export.
    pub name: &'a str,
    /// The queries for contexts.
    pub queries: Vec<&'a str>,
}

impl<'a> ContextRequest<'a> {
    /// Reads the data of a LIST_META_CONTEXT or a SET_META_CONTEXT.
    pub fn parse(mut data: &'a [u8]) -> Result<ContextRequest<'a>, Malformed> {
        let name = take_string(&mut data)?;
        let count = u32::from_be_bytes(take(&mut data)?);
        // Nothing is reserved for the client's count: each query takes 4 bytes of data, so the data ends a false count.
        let queries = (0..count).map(|_| take_string(&mut data)).collect::<Result<_, _>>()?;
        if !data.is_empty() {
            return Err(Malformed("bytes follow the last query"));
        }
        Ok(ContextRequest { name, queries })
    }

    /// Whether `base:allocation` is meant in a SET_META_CONTEXT, which takes exact names.
    pub fn selects_base_allocation(&self) -> bool {
        self.queries.contains(&BASE_ALLOCATION)
    }

    /// Whether `base:allocation` is meant in a LIST_META_CONTEXT: also by no query at all, and by its whole namespace.
    pub fn lists_base_allocation(&self) -> bool {
        self.queries.is_empty() || self.selects_base_allocation() || self.queries.contains(&"base:")
    }
}

fn take<const N: usize>(data: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (head, tail) = data.split_first_chunk().ok_or(Malformed("the option's data ends too early"))?;
    *data = tail;
    Ok(*head)
}

fn take_string<'a>(data: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let length = u32::from_be_bytes(take(data)?) as usize;
    if length > MAX_STRING_BYTES {
        return Err(Malformed("a string is longer than 4096 bytes"));
    }
    let (head, tail) = data.split_at_checked(length).ok_or(Malformed("a string is longer than the option's data"))?;
    *data = tail;
    std::str::from_utf8(head).map_err(|_| Malformed("a string is not UTF-8"))
}

/// The transmission flags of an export.
///
/// A read-only export doesn't offer the commands that it would refuse.
pub fn transmission_flags(shape: &ExportShape, structured: bool) -> u16 {
    let always = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_SEND_CACHE | FLAG_CAN_MULTI_CONN;
    let writing = if shape.read_only { FLAG_READ_ONLY } else { FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES };
    let structure = if structured { FLAG_SEND_DF } else { 0 };
    always | writing | structure
}

/// The reply to a granted EXPORT_NAME, which ends the handshake.
pub fn export_name_reply(shape: &ExportShape, structured: bool, no_zeroes: bool) -> Vec<u8> {
    let mut reply = shape.size_bytes.to_be_bytes().to_vec();
    reply.extend(transmission_flags(shape, structured).to_be_bytes());
    if !no_zeroes {
        reply.extend([0; RESERVED_BYTES]);
    }
    reply
}

/// Gathers the replies to one option, so that they leave in one write.
#[derive(Debug)]
pub struct Replies {
    option: u32,
    bytes: Vec<u8>,
}

impl Replies {
    /// No replies yet to `option`.
    pub fn to(option: u32) -> Replies {
        Replies { option, bytes: Vec::new() }
    }

    /// The replies so far, as they are sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Ends a successful option.
    pub fn ack(&mut self) {
        self.push(REP_ACK, &[]);
    }

    /// An error, one of `REP_ERR_*`, with a message for people, cut at the protocol's longest string.
    pub fn error(&mut self, kind: u32, message: &str) {
        let mut end = message.len().min(MAX_STRING_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        self.push(kind, &[&message.as_bytes()[..end]]);
    }

    /// The name of an export, in answer to LIST.
    pub fn server(&mut self, name: &str) {
        self.push(REP_SERVER, &[&(name.len() as u32).to_be_bytes(), name.as_bytes()]);
    }

    /// An export's size in bytes and its transmission flags.
    pub fn info_export(&mut self, shape: &ExportShape, structured: bool) {
        let flags = transmission_flags(shape, structured);
        self.push(REP_INFO, &[&INFO_EXPORT.to_be_bytes(), &shape.size_bytes.to_be_bytes(), &flags.to_be_bytes()]);
    }

    /// An export's own name, which tells a client what the default export is.
    pub fn info_name(&mut self, name: &str) {
        self.push(REP_INFO, &[&INFO_NAME.to_be_bytes(), name.as_bytes()]);
    }

    /// An export's description: who it is.
    pub fn info_description(&mut self, identity: &Identity) {
        self.push(REP_INFO, &[&INFO_DESCRIPTION.to_be_bytes(), identity.to_string().as_bytes()]);
    }

    /// An export's minimum, preferred and maximum block size.
    pub fn info_block_size(&mut self, shape: &ExportShape) {
        let preferred_bytes = PREFERRED_BLOCK_BYTES.max(shape.block_bytes);
        self.push(
            REP_INFO,
            &[
                &INFO_BLOCK_SIZE.to_be_bytes(),
                &shape.block_bytes.to_be_bytes(),
                &preferred_bytes.to_be_bytes(),
                &MAX_PAYLOAD_BYTES.to_be_bytes(),
            ],
        );
    }

    /// `base:allocation` under an id: 0 where it is only listed.
    pub fn base_allocation(&mut self, id: u32) {
        self.push(REP_META_CONTEXT, &[&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()]);
    }

    fn push(&mut self, kind: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.bytes.extend(self.option.to_be_bytes());
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend((length as u32).to_be_bytes());
        self.bytes.extend(parts.concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHAPE: ExportShape = ExportShape { size_bytes: 1 << 20, block_bytes: 512, read_only: false };

    #[test]
    fn the_greeting_has_the_protocols_bytes() {
        assert_eq!(&greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
    }

    #[test]
    fn an_options_header_is_read() {
        assert_eq!(
            OptionHeader::parse(b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06"),
            Ok(OptionHeader { option: OPT_GO, length: 6 })
        );
        assert_eq!(OptionHeader::parse(b"GET / HTTP/1.1\r\n"), Err(u64::from_be_bytes(*b"GET / HT")));
    }

    #[test]
    fn replies_have_the_protocols_bytes() {
        let mut replies = Replies::to(OPT_GO);
        replies.info_export(&SHAPE, true);
        replies.info_block_size(&SHAPE);
        replies.ack();
        let magic = b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07";
        let expected = [
            &magic[..],
            b"\x00\x00\x00\x03\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x05\xed",
            magic,
            b"\x00\x00\x00\x03\x00\x00\x00\x0e\x00\x03\x00\x00\x02\x00\x00\x00\x10\x00\x02\x00\x00\x00",
            magic,
            b"\x00\x00\x00\x01\x00\x00\x00\x00",
        ];
        assert_eq!(replies.as_bytes(), expected.concat());
    }

    #[test]
    fn a_read_only_export_offers_no_writing() {
        let read_only = ExportShape { read_only: true, ..SHAPE };
        assert_eq!(transmission_flags(&read_only, false), 0b101_0000_1111);
        assert_eq!(transmission_flags(&SHAPE, false), 0b101_0110_1101);
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let mut replies = Replies::to(OPT_GO);
        replies.error(REP_ERR_UNKNOWN, &format!("x{}", "é".repeat(4000)));
        let message = &replies.as_bytes()[20..];
        assert_eq!(message.len(), 4095);
        assert!(std::str::from_utf8(message).is_ok());
    }

    #[test]
    fn information_requests_are_read() {
        let parsed = InfoRequest::parse(b"\x00\x00\x00\x01v\x00\x02\x00\x01\x00\x03").unwrap();
        assert_eq!(parsed, InfoRequest { name: "v", kinds: vec![INFO_NAME, INFO_BLOCK_SIZE] });
        for bad in [
            &b""[..],
            b"\x00\x00\x00\x01",
            b"\x00\x00\x00\x01v\x00",
            b"\x00\x00\x00\x01v\x00\x01",
            b"\x00\x00\x00\x01v\x00\x00\x00",
            b"\x00\x00\x00\x01\xff\x00\x00",
            b"\xff\xff\xff\xffv\x00\x00",
        ] {
            assert!(InfoRequest::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn context_requests_are_read() {
        let one = |query: &str| {
            let length = [0, 0, 0, query.len() as u8];
            [b"\x00\x00\x00\x01v\x00\x00\x00\x01", &length[..], query.as_bytes()].concat()
        };
        for (query, listed, selected) in
            [("base:allocation", true, true), ("base:", true, false), ("qemu:dirty-bitmap:x", false, false)]
        {
            let data = one(query);
            let parsed = ContextRequest::parse(&data).unwrap();
            assert_eq!(parsed.lists_base_allocation(), listed, "{query}");
            assert_eq!(parsed.selects_base_allocation(), selected, "{query}");
        }
        let none = ContextRequest::parse(b"\x00\x00\x00\x00\x00\x00\x00\x00").unwrap();
        assert!(none.lists_base_allocation() && !none.selects_base_allocation());
        assert!(ContextRequest::parse(b"\x00\x00\x00\x00\xff\xff\xff\xff").is_err());
        assert!(ContextRequest::parse(b"\x00\x00\x00\x00\x00\x00\x00\x00x").is_err());
    }

    proptest! {
        #[test]
        fn parsers_survive_any_bytes(data: Vec<u8>) {
            let _ = InfoRequest::parse(&data);
            if let Ok(request) = ContextRequest::parse(&data) {
                prop_assert!(request.queries.len() <= data.len() / 4);
            }
        }
    }
}
