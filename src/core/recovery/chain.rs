//! Where the chain of frames ends, on either side: at a crash's tear, or at damage.

use super::table::{fact, table};
use Action::*;

fact! {
    /// Frames that follow the clean mark without a gap.
    Frames, "frames after the clean mark" {
        None = "none",
        One = "of one fill",
        Two = "of two fills",
    }
}

fact! {
    /// What valid headers anywhere in the two fills say was once stable on both sides.
    Word, "committed, by any header's word" {
        Held = "all of it found",
        Missing = "more than is found",
    }
}

fact! {
    /// Whether a header of ours is of a later fill than the two that can follow the clean mark.
    Later, "a frame of a later fill" {
        No = "no",
        Yes = "yes",
    }
}

fact! {
    /// Whether the headers' words hold for this very journal.
    Vouched, "the word counts" {
        Yes = "yes: a source, or an image that is whole",
        No = "no: an image that isn't whole",
    }
}

fact! {
    /// What is done.
    Action, "what is done" {
        Nothing = "go on from the clean mark",
        Adopt = "take the frames, drop what is behind",
        LostRecords = "refuse: records are lost",
        LostSuperblock = "refuse: a superblock is lost",
    }
}

table! {
    frames: Frames,
    word: Word,
    later: Later,
    vouched: Vouched,
    => Action
}

/// The table.
pub const TABLE: &[Row] = &[
    Row {
        frames: &[Frames::None],
        word: &[Word::Held],
        later: &[Later::No],
        vouched: &[Vouched::Yes],
        ..Row::then(Nothing, "all is clean, or the first frame was torn before anybody counted on it")
    },
    Row {
        frames: &[Frames::One, Frames::Two],
        word: &[Word::Held],
        later: &[Later::No],
        vouched: &[Vouched::Yes],
        ..Row::then(Adopt, "the chain ends where the last write ended, or where a crash tore it")
    },
    Row {
        word: &[Word::Missing],
        later: &[Later::No],
        vouched: &[Vouched::Yes],
        ..Row::then(LostRecords, "a crash can't tear what was stable: the medium has lost it")
    },
    Row {
        later: &[Later::Yes],
        vouched: &[Vouched::Yes],
        ..Row::then(
            LostSuperblock,
            "a half is filled anew only when the superblock that calls it clean is durable: the medium has lost that one",
        )
    },
    Row {
        frames: &[Frames::None],
        vouched: &[Vouched::No],
        ..Row::then(
            Nothing,
            "frames of an earlier destination speak of what that one had; such an image can't be promoted",
        )
    },
    Row {
        frames: &[Frames::One, Frames::Two],
        vouched: &[Vouched::No],
        ..Row::then(Adopt, "what follows is right, and the source sends again what is missing")
    },
];
