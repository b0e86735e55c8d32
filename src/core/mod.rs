//! The sans-IO core: what source and destination decide, as plain values.
//!
//! Nothing here knows a socket, a file, a clock, a thread or randomness. Events come in through `handle_*` methods
//! (time is a parameter), what must happen goes out as effects into a list that the caller owns, and work that can
//! be paced is pulled through `next_*` methods. Payload is never seen: only its [`Place`] in the engine's memory.

pub mod copy;
pub mod destination;
pub mod dirty;
pub mod flush;
pub mod grains;
pub mod half;
pub mod index;
pub mod pace;
pub mod policy;
pub mod recovery;
pub mod rejoin;
pub mod source;

/// A byte's position in the engine's memory. What is there is the engine's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

/// How strong an answered write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Stored on stable storage on both sides before the answer.
    Always,
    /// Like a disk with a volatile cache: stable on both sides once a flush or FUA write that covers it is answered.
    Flush,
}
