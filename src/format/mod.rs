//! Layouts of bytes: frames, superblocks, replication messages and the NBD protocol.
//!
//! Everything is little-endian (NBD itself is big-endian), of fixed layout and carries a checksum;
//! docs/format.md shows the same tables. Nothing here reads or writes anything.

pub mod block;
pub mod checksum;
pub mod frame;
pub mod ids;
pub mod kept;
pub mod map;
pub mod nbd;
pub mod nvram;
pub mod ping;
pub mod superblock;
pub mod wire;
