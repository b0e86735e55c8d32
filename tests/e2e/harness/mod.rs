//! What the tests share: daemons as processes, their configurations, clients, and waiting with a deadline.

mod chance;
mod client;
mod config;
mod daemon;
mod faulty_disk;
mod faulty_mirror;
mod files;
mod ledger;
mod load;
mod mirror;
mod promoted_copy;
mod proxy;
mod root;
mod tool;
mod wait;
mod witness;

pub use chance::Chance;
pub use client::{Client, Endpoint, Stream, flag, kind, request};
pub use config::{DestinationConfig, SourceConfig, free_port};
pub use daemon::{Daemon, Finished, binary, finish, refused, verb};
pub use faulty_disk::{Effect, Fault, FaultyDisk, Operation, fuse_or_skip, hash};
pub use faulty_mirror::{FaultyMirror, SUPERBLOCKS, VOLUME, cut};
pub use files::{allocated, assert_same, create_file, fill_pattern, pattern};
pub use ledger::{Image, Ledger};
pub use load::{Habits, Load};
pub use mirror::{Mirror, Plan};
pub use promoted_copy::PromotedCopy;
pub use proxy::{Proxy, Toward};
pub use root::{LoopDevice, Mount, is_root, root_or_skip};
pub use tool::{python, run};
pub use wait::{eventually, wait_until};
pub use witness::{Answered, Witness};

/// Bytes in a kibibyte.
pub const KIB: u64 = 1024;
/// Bytes in a mebibyte.
pub const MIB: u64 = 1024 * KIB;

/// Asserts that a message speaks of each of these things, whatever its wording and case.
#[track_caller]
pub fn assert_says(message: &str, nouns: &[&str]) {
    let folded = message.to_lowercase();
    for noun in nouns {
        assert!(
            noun.split('|').any(|choice| folded.contains(&choice.to_lowercase())),
            "the message should speak of {noun:?}:\n{message}"
        );
    }
}
