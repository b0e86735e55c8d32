//! What a source says of itself while it is connected: how it stands, and what becomes of writes without its destination.
//!
//! By the last of these words a destination judges what a promote may lack; `core/recovery/warrant.rs` tells how.

use super::block::BlockError;
use super::ids::Seq;

/// What a source does when its destination has been away for its timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum OnDisconnect {
    /// It goes on alone, and tracks what changes.
    Continue = 0,
    /// Writes wait.
    Stall = 1,
    /// Writes get an error.
    Fail = 2,
}

impl OnDisconnect {
    /// Reads its number.
    pub fn of(number: u16) -> Result<OnDisconnect, BlockError> {
        match number {
            0 => Ok(OnDisconnect::Continue),
            1 => Ok(OnDisconnect::Stall),
            2 => Ok(OnDisconnect::Fail),
            _ => Err(BlockError::Field("policy")),
        }
    }
}

/// How a source stands towards its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// It answers what both have, but promises nothing.
    Loose = 0,
    /// It answers writes alone.
    Alone = 1,
    /// It answers what both have; so it will be until it has met the destination again, or its policy's timeout has run
    /// from now on. Of another policy than `continue`, time changes nothing. A restart neither.
    Bound = 2,
    /// It ends. It answers nothing any more before it has met the destination again.
    Ended = 3,
}

impl Standing {
    /// Reads its number.
    pub fn of(number: u8) -> Result<Standing, BlockError> {
        match number {
            0 => Ok(Standing::Loose),
            1 => Ok(Standing::Alone),
            2 => Ok(Standing::Bound),
            3 => Ok(Standing::Ended),
            _ => Err(BlockError::Field("standing")),
        }
    }
}

/// A ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// The last record that was answered to a client, or may have been before the last start.
    pub answered: Seq,
    /// How it stands.
    pub standing: Standing,
    /// The policy that holds.
    pub on_disconnect: OnDisconnect,
    /// Its timeout, in milliseconds; more than fits is said as the most.
    pub timeout_ms: u32,
    /// The stamp of the last pong that was heard over this connection, 0 if none was: this was said after it.
    pub echo: u64,
}

#[cfg(test)]
mod tests {
    use super::super::wire::Signal;
    use super::*;

    #[test]
    fn a_ping_comes_back_as_it_was_said() {
        use {OnDisconnect::*, Standing::*};
        for standing in [Loose, Alone, Bound, Ended] {
            for on_disconnect in [Continue, Stall, Fail] {
                let ping = Ping { answered: Seq(6), standing, on_disconnect, timeout_ms: u32::MAX, echo: 9 };
                assert_eq!(Signal::decode(&Signal::Ping(ping).encode()), Ok(Signal::Ping(ping)));
            }
        }
        assert_eq!(
            (Standing::of(4), OnDisconnect::of(3)),
            (Err(BlockError::Field("standing")), Err(BlockError::Field("policy")))
        );
    }
}
