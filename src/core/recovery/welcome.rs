//! A destination answered: how the source goes on with it.
//!
//! Within an epoch the source is the authority; but what it can't explain it doesn't overwrite.

use super::table::{fact, table};
use crate::format::wire;
use Action::*;

fact! {
    /// The destination's verdict.
    Verdict, "verdict" {
        Welcome = "welcome",
        Fenced = "fenced",
        Refused = "refused",
    }
}

impl From<wire::Verdict> for Verdict {
    fn from(verdict: wire::Verdict) -> Verdict {
        match verdict {
            wire::Verdict::Welcome => Verdict::Welcome,
            wire::Verdict::Fenced => Verdict::Fenced,
            wire::Verdict::Refused => Verdict::Refused,
        }
    }
}

fact! {
    /// The destination's epoch against ours.
    Epochs, "its epoch" {
        Older = "older",
        Same = "the same",
        Newer = "newer",
    }
}

fact! {
    /// Whether this source was fenced meanwhile.
    Fence, "this source" {
        Free = "isn't fenced",
        Fenced = "is fenced",
    }
}

fact! {
    /// What the destination holds, against the source's journal.
    Held, "it holds" {
        Nothing = "nothing",
        Common = "the last boundary of our journal that it can have",
        Vague = "a boundary in our journal, but perhaps a later one as well",
        Known = "a boundary that our dirty bitmap reaches back to",
        Older = "only what is older than either",
        Ahead = "only what is newer than our journal",
        Forked = "another history",
    }
}

fact! {
    /// The last fill that it applied, against the source's clean mark and halves.
    Applied, "it applied" {
        Fits = "up to our clean mark, or a sealed fill of ours",
        Behind = "less than our clean mark",
        Other = "what we never signalled",
    }
}

fact! {
    /// Whether the destination says that its image is a whole copy.
    There, "image whole, it says" {
        Whole = "yes",
        Partial = "no",
    }
}

fact! {
    /// Whether the source believes so.
    Here, "image whole, we say" {
        Whole = "yes",
        Partial = "no",
    }
}

fact! {
    /// What is done.
    Action, "what is done" {
        GiveUp = "close: it says why",
        StayFenced = "fence this source for good",
        CloseOlder = "close: older epoch",
        CloseFenced = "close: fenced",
        CloseVague = "close: parted, where isn't known",
        StartOver = "start over, copy all",
        Resume = "resume, nothing to copy",
        ResumeCopy = "resume, go on copying",
        ResumeCopyAgain = "resume, copy all again",
        Resync = "settle, begin anew, copy what is dirty",
        ResyncAll = "settle, begin anew, compare all",
        PartedAhead = "close: parted, it is ahead",
        PartedForked = "close: parted",
        PartedApplied = "close: parted, in what is applied",
    }
}

table! {
    verdict: Verdict,
    epochs: Epochs,
    fence: Fence,
    held: Held,
    applied: Applied,
    there: There,
    here: Here,
    => Action
}

/// A welcome that counts.
const fn welcomed(action: Action, why: &'static str) -> Row {
    Row { verdict: &[Verdict::Welcome], epochs: &[Epochs::Same], fence: &[Fence::Free], ..Row::then(action, why) }
}

/// A welcome with a common boundary.
const fn common(action: Action, why: &'static str) -> Row {
    Row { held: &[Held::Common], ..welcomed(action, why) }
}

/// The table.
pub const TABLE: &[Row] = &[
    Row { verdict: &[Verdict::Refused], ..Row::then(GiveUp, "another attempt may find it otherwise") },
    Row {
        verdict: &[Verdict::Fenced],
        epochs: &[Epochs::Same, Epochs::Newer],
        ..Row::then(StayFenced, "another side was promoted")
    },
    Row {
        verdict: &[Verdict::Welcome],
        epochs: &[Epochs::Newer],
        ..Row::then(StayFenced, "a newer epoch fences, whatever else is said")
    },
    Row {
        verdict: &[Verdict::Welcome, Verdict::Fenced],
        epochs: &[Epochs::Older],
        ..Row::then(CloseOlder, "the past neither fences nor acknowledges")
    },
    Row {
        fence: &[Fence::Fenced],
        ..welcomed(CloseFenced, "it was fenced after its hello: nothing may be answered any more")
    },
    Row {
        held: &[Held::Nothing],
        ..welcomed(StartOver, "it is new, or lost all; whatever we knew of its image is void")
    },
    Row {
        held: &[Held::Known],
        applied: &[Applied::Fits, Applied::Behind],
        there: &[There::Whole],
        ..welcomed(Resync, "all that came behind that boundary is in the journal or marked as dirty")
    },
    Row {
        held: &[Held::Known],
        applied: &[Applied::Fits, Applied::Behind],
        there: &[There::Partial],
        here: &[Here::Partial],
        ..welcomed(Resync, "what wasn't copied yet is still marked")
    },
    Row {
        held: &[Held::Known],
        applied: &[Applied::Fits, Applied::Behind],
        there: &[There::Partial],
        here: &[Here::Whole],
        ..welcomed(ResyncAll, "it has forgotten that its image is whole, and so perhaps what it holds")
    },
    Row {
        held: &[Held::Older],
        applied: &[Applied::Fits, Applied::Behind],
        ..welcomed(
            ResyncAll,
            "it is of this history, or of one that this source outran: nothing newer is there to lose",
        )
    },
    Row {
        held: &[Held::Known, Held::Older],
        applied: &[Applied::Other],
        ..welcomed(PartedApplied, "an image can't take back what it holds")
    },
    Row {
        held: &[Held::Ahead],
        ..welcomed(PartedAhead, "it holds what this journal has lost: nobody may drop that unasked")
    },
    Row { held: &[Held::Vague], ..welcomed(CloseVague, "it would drop what both may have called stable") },
    Row { held: &[Held::Forked], ..welcomed(PartedForked, "the same numbers stand for other records") },
    Row { applied: &[Applied::Other], ..common(PartedApplied, "an image can't take back what it holds") },
    Row {
        applied: &[Applied::Fits, Applied::Behind],
        there: &[There::Whole],
        ..common(
            Resume,
            "its image is whole and it knows best; what is beyond the boundary was never answered and is dropped",
        )
    },
    Row {
        applied: &[Applied::Fits, Applied::Behind],
        there: &[There::Partial],
        here: &[Here::Partial],
        ..common(ResumeCopy, "what wasn't copied yet is still marked")
    },
    Row {
        applied: &[Applied::Fits, Applied::Behind],
        there: &[There::Partial],
        here: &[Here::Whole],
        ..common(ResumeCopyAgain, "it has forgotten that its image is whole, and so perhaps what it holds")
    },
];
