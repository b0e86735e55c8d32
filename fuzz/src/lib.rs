//! The harnesses: each takes any bytes, does with them what a peer, a client or a disk could make the program do,
//! and panics where a promise is broken.
//!
//! They know nothing of libFuzzer: `targets/` binds them to it, and `tests/fuzz_seeds.rs` of the program includes this
//! very file to run every checked-in seed once.

#[macro_use]
pub mod structured;

pub mod core_events;
pub mod journal_recovery;
pub mod nbd_negotiation;
pub mod nbd_requests;
pub mod pick;
pub mod replication;

/// A target's harness.
pub type Harness = fn(&[u8]);

/// All targets, by the names of their seeds' folders.
pub const TARGETS: [(&str, Harness); 5] = [
    ("core_events", core_events::run),
    ("journal_recovery", journal_recovery::run),
    ("nbd_negotiation", nbd_negotiation::run),
    ("nbd_requests", nbd_requests::run),
    ("replication", replication::run),
];
