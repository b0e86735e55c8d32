//! Layouts of bytes: frames, superblocks, replication messages and the NBD protocol.

pub mod nbd;
