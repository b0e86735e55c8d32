//! nbd-mirror: synchronous mirroring of block devices, in userspace, over NBD.
//!
//! Dependencies point one way: `format` ← `core` ← `engine` ← `control` ← `cli`; `attach` stands beside `control`.
//! ARCHITECTURE.md tells what each is for.

pub mod attach;
pub mod canary;
pub mod cli;
pub mod control;
pub mod core;
pub mod engine;
pub mod format;
pub mod limits;
