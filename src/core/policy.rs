//! What becomes of writes while the destination is away.

pub use crate::format::ping::OnDisconnect;
use std::time::Duration;

/// The policy, which can be changed while the source runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What happens in the end.
    pub on_disconnect: OnDisconnect,
    /// How long the destination may be away, or silent, before it happens.
    pub timeout: Duration,
}

/// How a source stands towards its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A write is answered when both have it.
    Together,
    /// There is no connection; writes wait.
    Waiting,
    /// There has been no connection for too long: writes get an error.
    Failing,
    /// Writes are answered when this source has them.
    Alone,
}
