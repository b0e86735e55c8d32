//! A promote: what of the writes that the source answered may be missing in the images that it serves.
//!
//! The source's words bind it, by `core/source/word.rs`, also where the last to arrive was long under way: one that is
//! bound answers only what is stored here, until its timeout has run or, by another policy than `continue`, until the
//! two meet again. What it had answered before is held, as the last record that its word names is. So with
//! `continue` the time counts from when the word was said, or earlier: from the last pong of ours that it echoes, or
//! from our welcome. Never from when it arrived, for the source's time may have begun to run while it was under way.
//!
//! What no rule here can know is an operator's order to a source without a connection, `set on_disconnect=continue`: it
//! releases a source from all of this.

use super::table::{fact, table};
use Missing::*;

fact! {
    /// What a promote would serve.
    Image, "a promote serves" {
        Newest = "all that is held",
        Base = "the state from before a resync",
        Partial = "no whole copy",
    }
}

fact! {
    /// What the source said last over the connection that there is, or was last.
    Word, "the source's last word" {
        Never = "none since this daemon started, or since it connected",
        Loose = "connected, without a promise",
        Alone = "alone",
        Bound = "in step",
        Ended = "ended in step",
    }
}

fact! {
    /// Whether what it had answered by then is held.
    Held, "what it had answered" {
        All = "is held",
        Less = "isn't all held",
    }
}

fact! {
    /// The source's policy.
    Policy, "its policy" {
        Waits = "stall or fail",
        GoesOn = "continue",
    }
}

fact! {
    /// Whether its timeout has run since that word was said.
    Lease, "its timeout" {
        Runs = "hasn't run since",
        Over = "may have run since",
    }
}

fact! {
    /// Which answered writes may be missing.
    Missing, "missing" {
        Nothing = "0",
        SinceLacking = "unknown, since it went alone",
        SinceHeard = "unknown, since it was heard last",
        SinceTimeout = "unknown, since its timeout ran",
        SinceStart = "unknown: it wasn't heard",
        NoCopy = "unknown: there is no whole copy",
    }
}

table! {
    image: Image,
    word: Word,
    held: Held,
    policy: Policy,
    lease: Lease,
    => Missing
}

/// A promote serves all that is held.
const fn newest(missing: Missing, why: &'static str) -> Row {
    Row { image: &[Image::Newest], ..Row::then(missing, why) }
}

/// The source is bound, and what it had answered is held.
const fn bound(missing: Missing, why: &'static str) -> Row {
    Row { word: &[Word::Bound], held: &[Held::All], ..newest(missing, why) }
}

/// The table.
pub const TABLE: &[Row] = &[
    Row { image: &[Image::Partial], ..Row::then(NoCopy, "a first sync, or a resync without staging, never ended") },
    Row { image: &[Image::Base], ..Row::then(SinceLacking, "what the resync was to bring is dropped") },
    Row { word: &[Word::Never], ..newest(SinceStart, "nobody here knows what it did meanwhile") },
    Row { word: &[Word::Alone], ..newest(SinceLacking, "it answers what isn't here") },
    Row { word: &[Word::Loose], ..newest(SinceHeard, "it may go alone at any time") },
    Row {
        word: &[Word::Bound, Word::Ended],
        held: &[Held::Less],
        ..newest(SinceLacking, "it answered alone before, and what it answered isn't here yet")
    },
    Row {
        word: &[Word::Ended],
        held: &[Held::All],
        ..newest(Nothing, "it answers nothing any more before the two meet")
    },
    Row {
        policy: &[Policy::Waits],
        ..bound(Nothing, "without this side it answers nothing, unless its operator released it")
    },
    Row {
        policy: &[Policy::GoesOn],
        lease: &[Lease::Runs],
        ..bound(Nothing, "it can't have gone alone yet, unless its operator released it")
    },
    Row { policy: &[Policy::GoesOn], lease: &[Lease::Over], ..bound(SinceTimeout, "it may have gone alone") },
];
