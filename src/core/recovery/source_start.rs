//! A source's start: whether its journal is made, recovered or refused.

use super::copies::{Copies, Init, Owner};
use super::table::{fact, table};
use Action::*;
use Copies::*;
use Init::*;
use Owner::*;

fact! {
    /// Sizes and volumes of the journal against the configuration.
    Shape, "made for" {
        Same = "this configuration",
        Other = "another size or other volumes",
    }
}

fact! {
    /// Whether the source that it belongs to was fenced.
    Fence, "fenced" {
        Free = "no",
        Fenced = "yes",
    }
}

fact! {
    /// What is done.
    Action, "what is done" {
        Make = "make a new journal",
        Recover = "recover, serve",
        RecoverFenced = "recover, serve nobody",
        RefuseOwner = "refuse: another source's",
        RefuseShape = "refuse: another configuration's",
        RefuseForeign = "refuse: something else",
        RefuseOverwritten = "refuse: half overwritten",
        RefuseSplit = "refuse: two histories",
        RefuseDamaged = "refuse: damaged",
        RefuseVersion = "refuse: another version's",
    }
}

table! {
    copies: Copies,
    owner: Owner,
    init: Init,
    shape: Shape,
    fence: Fence,
    => Action
}

/// What counts where a superblock can be read.
const WHOLE: &[Copies] = &[Both, One];

/// The table.
pub const TABLE: &[Row] = &[
    Row {
        copies: &[Blank],
        ..Row::then(Make, "the first start, or one that was cut off before the journal was claimed")
    },
    Row {
        copies: &[Claimed],
        owner: &[Ours],
        ..Row::then(Make, "the making was cut off; a journal is used only when its claim is gone")
    },
    Row {
        copies: &[Claimed],
        owner: &[Another],
        init: &[Not],
        ..Row::then(RefuseOwner, "somebody else was making a journal here")
    },
    Row { copies: &[Foreign], init: &[Not], ..Row::then(RefuseForeign, "it may be somebody's data") },
    Row {
        copies: &[Damaged],
        init: &[Not],
        ..Row::then(
            RefuseDamaged,
            "one write tears one copy only: the medium has lost the other, and with both what is clean",
        )
    },
    Row {
        copies: &[Version],
        init: &[Not],
        ..Row::then(RefuseVersion, "the copy that this program can't read may be the newer one")
    },
    Row {
        copies: &[Split],
        init: &[Not],
        ..Row::then(RefuseSplit, "no crash leaves this, and nothing tells which one is right")
    },
    Row { copies: &[Foreign, Damaged, Version, Split], init: &[Given], ..Row::then(Make, "it may be overwritten") },
    Row {
        copies: &[Both, One, Overwritten],
        owner: &[Another],
        init: &[Not],
        ..Row::then(RefuseOwner, "it may hold answered writes that are nowhere else")
    },
    Row {
        copies: &[Both, One, Overwritten, Claimed],
        owner: &[Another],
        init: &[Given],
        ..Row::then(Make, "it may be overwritten")
    },
    Row {
        copies: &[Overwritten],
        owner: &[Ours],
        init: &[Not],
        ..Row::then(
            RefuseOverwritten,
            "no crash leaves this: somebody may have begun to use the place for something else",
        )
    },
    Row {
        copies: WHOLE,
        owner: &[Ours],
        shape: &[Shape::Other],
        ..Row::then(RefuseShape, "its records belong to these volumes, and its halves stand where that size puts them")
    },
    Row {
        copies: WHOLE,
        owner: &[Ours],
        shape: &[Shape::Same],
        fence: &[Fence::Free],
        ..Row::then(Recover, "the newer whole copy counts; `--init` gives no leave to drop what is ours")
    },
    Row {
        copies: WHOLE,
        owner: &[Ours],
        shape: &[Shape::Same],
        fence: &[Fence::Fenced],
        ..Row::then(RecoverFenced, "another side was promoted, and a restart doesn't undo that")
    },
    Row {
        copies: &[Overwritten],
        owner: &[Ours],
        init: &[Given],
        shape: &[Shape::Other],
        ..Row::then(RefuseShape, "as with two copies")
    },
    Row {
        copies: &[Overwritten],
        owner: &[Ours],
        init: &[Given],
        shape: &[Shape::Same],
        fence: &[Fence::Free],
        ..Row::then(Recover, "the other place may be overwritten, and the whole copy is ours")
    },
    Row {
        copies: &[Overwritten],
        owner: &[Ours],
        init: &[Given],
        shape: &[Shape::Same],
        fence: &[Fence::Fenced],
        ..Row::then(RecoverFenced, "as with two copies")
    },
];
