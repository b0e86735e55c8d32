//! The server's side of the NBD protocol as bytes: layouts, constants and checks, and nothing that reads or writes.
//!
//! The source of every number is the protocol's text, `doc/proto.md` of the NetworkBlockDevice project; items name
//! the section they come from. All integers are in network byte order. What this server answers in each odd case is
//! stated in `docs/nbd-protocol.md`.
//!
//! - [`options`]: the handshake, from the greeting to the choice of an export.
//! - [`identity`]: what an export tells of its volume.
//! - [`request`]: requests of the transmission phase, and the check that makes a [`Command`] of one.
//! - [`reply`]: simple replies and chunks of structured replies.

pub mod identity;
pub mod options;
pub mod reply;
pub mod request;

pub use reply::*;
pub use request::*;

/// The largest payload of a READ or a WRITE, in bytes, announced as the maximum block size.
///
/// NBD protocol, section "Block size constraints": 32 MiB is what portable clients keep to by default.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;

/// The id under which `base:allocation` is negotiated and its status is reported.
pub const META_BASE_ALLOCATION_ID: u32 = 1;

/// What the protocol has to know of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportShape {
    /// The export's size in bytes, a multiple of `block_bytes`: a shorter tail could not be addressed.
    pub size_bytes: u64,
    /// The minimum block size in bytes, a power of two: offsets and lengths are multiples of it.
    pub block_bytes: u32,
    /// Whether everything that would change the export is refused.
    pub read_only: bool,
}

/// What a client and this server agreed on in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The chosen export, as an index into the exports that were offered.
    pub export: usize,
    /// Whether READ and BLOCK_STATUS are answered in structured replies.
    pub structured: bool,
    /// Whether the client may ask BLOCK_STATUS for `base:allocation`.
    pub base_allocation: bool,
}
