//! A source introduces itself: what its destination answers.
//!
//! The same answer whether an engine receives or the images are served already.

use super::table::{fact, table};
use crate::format::superblock::{Superblock, Volume};
use crate::format::wire::{Verdict, Welcome};
use Action::*;

fact! {
    /// Whether it is the source whose history is stored here.
    Identity, "identity" {
        Same = "the source mirrored here",
        Other = "another, or its journal was made anew",
    }
}

fact! {
    /// Whether a promote has begun here.
    Taken, "a promote" {
        No = "never",
        Yes = "begun or done",
    }
}

fact! {
    /// The source's epoch against ours.
    Epochs, "the source's epoch" {
        Older = "older",
        Same = "the same",
        Newer = "newer",
    }
}

fact! {
    /// Whether the source says that it was fenced.
    Fence, "the source" {
        Free = "isn't fenced",
        Fenced = "is fenced",
    }
}

fact! {
    /// The size of its journal's halves against ours, and its volumes.
    Shape, "halves and volumes" {
        Same = "as here",
        Halves = "other halves",
        Volumes = "other volumes",
    }
}

fact! {
    /// Whether the last connection is over, and all it left is stable.
    Last, "the last connection" {
        Over = "over",
        UnderWay = "still under way",
    }
}

fact! {
    /// What is done.
    Action, "the answer" {
        Greet = "welcome",
        Later = "none yet",
        Fencing = "fenced",
        RefuseIdentity = "refused: another journal",
        RefusePromoted = "refused: another journal, promoted",
        RefuseNewer = "refused: newer epoch",
        RefuseFenced = "refused: fenced already",
        RefuseHalves = "refused: other halves",
        RefuseVolumes = "refused: other volumes",
    }
}

table! {
    identity: Identity,
    taken: Taken,
    epochs: Epochs,
    fence: Fence,
    shape: Shape,
    last: Last,
    => Action
}

/// What most rows ask for.
const fn mirrored(action: Action, why: &'static str) -> Row {
    Row { identity: &[Identity::Same], taken: &[Taken::No], epochs: &[Epochs::Same], ..Row::then(action, why) }
}

/// The table.
pub const TABLE: &[Row] = &[
    Row {
        identity: &[Identity::Other],
        taken: &[Taken::No],
        ..Row::then(RefuseIdentity, "its records don't continue what is stored here, whatever its name and epoch")
    },
    Row {
        identity: &[Identity::Other],
        taken: &[Taken::Yes],
        ..Row::then(
            RefusePromoted,
            "it gets no write answered, but isn't the one that the promote fenced: its own records stay usable",
        )
    },
    Row {
        identity: &[Identity::Same],
        taken: &[Taken::Yes],
        epochs: &[Epochs::Older, Epochs::Same],
        ..Row::then(Fencing, "another side has the data now, or is about to")
    },
    Row {
        identity: &[Identity::Same],
        taken: &[Taken::No],
        epochs: &[Epochs::Older],
        ..Row::then(Fencing, "a promote raised the epoch, and a crash came before it was complete")
    },
    Row {
        identity: &[Identity::Same],
        epochs: &[Epochs::Newer],
        ..Row::then(RefuseNewer, "what is here is of the past: it may neither fence nor continue")
    },
    Row {
        fence: &[Fence::Fenced],
        ..mirrored(RefuseFenced, "a promote that fenced it was cut off before its epoch was durable here")
    },
    Row {
        fence: &[Fence::Free],
        shape: &[Shape::Halves],
        ..mirrored(RefuseHalves, "frames stand at the source's positions")
    },
    Row {
        fence: &[Fence::Free],
        shape: &[Shape::Volumes],
        ..mirrored(RefuseVolumes, "the images are of other volumes")
    },
    Row {
        fence: &[Fence::Free],
        shape: &[Shape::Same],
        last: &[Last::UnderWay],
        ..mirrored(Later, "what a welcome names counts as acknowledged: all of it must be stable")
    },
    Row {
        fence: &[Fence::Free],
        shape: &[Shape::Same],
        last: &[Last::Over],
        ..mirrored(Greet, "it is the source, in this epoch")
    },
];

/// How a hello is answered.
#[derive(Debug)]
pub enum Answer {
    /// Welcome; the caller names what it holds.
    Welcome,
    /// Not now, for this reason; ask again.
    Later(&'static str),
    /// With this.
    Refuse(Box<Welcome>),
}

/// What to answer. `taken`: a promote has begun or is done; `under_way`: the last connection isn't over.
pub fn answer(ours: &Superblock, hello: &Superblock, taken: bool, under_way: bool) -> Answer {
    let found = Found {
        identity: if hello.source == ours.source { Identity::Same } else { Identity::Other },
        taken: if taken { Taken::Yes } else { Taken::No },
        epochs: match hello.epoch.cmp(&ours.epoch) {
            std::cmp::Ordering::Less => Epochs::Older,
            std::cmp::Ordering::Equal => Epochs::Same,
            std::cmp::Ordering::Greater => Epochs::Newer,
        },
        fence: if hello.fenced_by.0 == 0 { Fence::Free } else { Fence::Fenced },
        shape: shape(ours, hello),
        last: if under_way { Last::UnderWay } else { Last::Over },
    };
    let (name, epoch) = (&ours.name, ours.epoch);
    let copied_again = "If the source's volumes are right, stop the destination and remove its folder of this source: \
                        everything is copied again";
    let (verdict, reason) = match found.decide().action {
        Greet => return Answer::Welcome,
        Later => return Answer::Later("the last connection's writes are still under way"),
        Fencing => (Verdict::Fenced, format!("source {name} is fenced: the destination was promoted in epoch {epoch}")),
        RefuseIdentity => (
            Verdict::Refused,
            format!(
                "this destination mirrors source {name} with another journal (identity {}, {} bytes a half; the source's \
                 is {}, {} bytes a half). {copied_again}",
                ours.source, ours.half_bytes, hello.source, hello.half_bytes
            ),
        ),
        RefusePromoted => (
            Verdict::Refused,
            format!(
                "this destination mirrored source {name} with another journal (identity {}, the source's is {}), and its \
                 images were promoted in epoch {epoch}: what was written to them since is only here. When that is no \
                 longer needed, stop the destination and remove its folder of this source",
                ours.source, hello.source
            ),
        ),
        RefuseNewer => (
            Verdict::Refused,
            format!(
                "the source lives in epoch {}, this destination in {epoch}, so it is out of date. {copied_again}",
                hello.epoch
            ),
        ),
        RefuseFenced => (
            Verdict::Refused,
            format!(
                "source {name} was fenced by epoch {}, this destination is in epoch {epoch}: a promote was cut off. \
                 Promote again",
                hello.fenced_by
            ),
        ),
        RefuseHalves => (
            Verdict::Refused,
            format!(
                "the source's journal has {} bytes a half, its mirror here {}. {copied_again}",
                hello.half_bytes, ours.half_bytes
            ),
        ),
        RefuseVolumes => (
            Verdict::Refused,
            format!(
                "the source has the volumes {}, its mirror here is of {}",
                list(&hello.volumes),
                list(&ours.volumes)
            ),
        ),
    };
    Answer::Refuse(Box::new(Welcome::refuse(verdict, epoch, reason)))
}

fn shape(ours: &Superblock, hello: &Superblock) -> Shape {
    let same = |(theirs, known): (&Volume, &Volume)| theirs.name == known.name && theirs.size_bytes == known.size_bytes;
    if hello.half_bytes != ours.half_bytes {
        Shape::Halves
    } else if hello.volumes.len() != ours.volumes.len() || !hello.volumes.iter().zip(&ours.volumes).all(same) {
        Shape::Volumes
    } else {
        Shape::Same
    }
}

fn list(volumes: &[Volume]) -> String {
    volumes.iter().map(|v| format!("{} ({} bytes)", v.name, v.size_bytes)).collect::<Vec<_>>().join(", ")
}
