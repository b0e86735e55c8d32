//! A destination's start for one source: whether its folder waits for a first contact, is recovered, served or refused.

use super::copies::{Copies, Init, Owner};
use super::table::{fact, table};
use Action::*;
use Copies::*;
use Init::*;
use Owner::*;

fact! {
    /// Whether the images were promoted.
    Promoted, "promoted" {
        No = "no",
        Yes = "yes",
    }
}

fact! {
    /// What is done.
    Action, "what is done" {
        Wait = "wait for the first contact, then make it",
        Receive = "recover, receive",
        Serve = "serve the images",
        RefuseOwner = "refuse: another source's",
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
    promoted: Promoted,
    => Action
}

/// The table.
pub const TABLE: &[Row] = &[
    Row { copies: &[Blank], ..Row::then(Wait, "the source never came, or the making was cut off at its beginning") },
    Row {
        copies: &[Claimed],
        owner: &[Ours],
        ..Row::then(Wait, "the making was cut off; nothing was received before its claim was gone")
    },
    Row {
        copies: &[Both, One, Overwritten, Claimed],
        owner: &[Another],
        ..Row::then(
            RefuseOwner,
            "a folder bears its source's name, so this one was moved; not even `--init` may void it",
        )
    },
    Row { copies: &[Foreign], init: &[Not], ..Row::then(RefuseForeign, "it may be somebody's data") },
    Row {
        copies: &[Damaged],
        init: &[Not],
        ..Row::then(RefuseDamaged, "what is applied is lost, and whether the images were promoted")
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
    Row {
        copies: &[Foreign, Damaged, Version, Split],
        init: &[Given],
        ..Row::then(Wait, "it may be overwritten: everything is copied again")
    },
    Row {
        copies: &[Overwritten],
        owner: &[Ours],
        init: &[Not],
        ..Row::then(
            RefuseOverwritten,
            "no crash leaves this: somebody may have begun to use the file for something else",
        )
    },
    Row {
        copies: &[Both, One],
        owner: &[Ours],
        promoted: &[Promoted::No],
        ..Row::then(Receive, "the newer whole copy counts")
    },
    Row {
        copies: &[Both, One],
        owner: &[Ours],
        promoted: &[Promoted::Yes],
        ..Row::then(Serve, "the images have had writes of their own since the promote")
    },
    Row {
        copies: &[Overwritten],
        owner: &[Ours],
        init: &[Given],
        promoted: &[Promoted::No],
        ..Row::then(Receive, "the other place may be overwritten, and the whole copy is ours")
    },
    Row {
        copies: &[Overwritten],
        owner: &[Ours],
        init: &[Given],
        promoted: &[Promoted::Yes],
        ..Row::then(Serve, "as with two copies")
    },
];
