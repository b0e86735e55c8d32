//! A source comes back as the destination of the one that was promoted: whether it can tell what differs.

use super::table::{fact, table};
use Action::*;

fact! {
    /// Where the boundary at which the other side was promoted lies in this source's history.
    Boundary, "the other side was promoted at" {
        InHalves = "a boundary in our journal",
        Clean = "our clean mark",
        Known = "a boundary that our dirty bitmap reaches back to",
        Ahead = "a record that is newer than our journal",
        Elsewhere = "something else",
    }
}

fact! {
    /// Whether this source knew its destination's copy to be whole.
    Copy, "its copy was whole, as we know" {
        Whole = "yes",
        Partial = "no",
    }
}

fact! {
    /// What may differ.
    Action, "what may differ" {
        Halves = "what our journal holds",
        HalvesAndDirty = "what our journal holds and what is dirty",
        Everything = "everything",
    }
}

table! {
    boundary: Boundary,
    copy: Copy,
    => Action
}

/// The table.
pub const TABLE: &[Row] = &[
    Row {
        boundary: &[Boundary::InHalves, Boundary::Clean],
        copy: &[Copy::Whole],
        ..Row::then(Halves, "it holds all that is clean here, and the journal has what came behind")
    },
    Row {
        boundary: &[Boundary::Known],
        copy: &[Copy::Whole],
        ..Row::then(HalvesAndDirty, "what came behind it is in the journal, or was marked before it left the journal")
    },
    Row {
        boundary: &[Boundary::InHalves, Boundary::Clean, Boundary::Known],
        copy: &[Copy::Partial],
        ..Row::then(
            Everything,
            "a resync was under way: marks were taken away for what it brought, and a promote may have dropped that",
        )
    },
    Row {
        boundary: &[Boundary::Ahead],
        ..Row::then(Everything, "what it holds beyond was lost here, and nothing tells where that belongs")
    },
    Row {
        boundary: &[Boundary::Elsewhere],
        ..Row::then(Everything, "it isn't in this source's history, or is older than all that is remembered")
    },
];
