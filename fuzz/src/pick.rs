//! Values near the ones that matter: a mutation finds "the last mark, one record later" where it would never find it
//! among all marks.

use super::structured::Encode;
use arbitrary::{Arbitrary, Unstructured};
use nbd_mirror::format::ids::{Digest, Fill, Mark, Seq};

structured! {
    /// A number, seen from another one.
    enum Number {
        Same,
        More { by: u8 },
        Less { by: u8 },
        Small { n: u8 },
        Any { n: u64 },
        Huge { below: u8 },
    }

    /// A mark, seen from the ones there are.
    enum MarkPick {
        Known { back: u8 },
        Fill { back: u8, fill: Number },
        Seq { back: u8, seq: Number },
        Digest { back: u8, digest: u64 },
        Zero,
        Any { fill: Number, seq: Number, digest: u64 },
    }
}

impl Number {
    /// The number, seen from `from`.
    pub fn near(&self, from: u64) -> u64 {
        match *self {
            Number::Same => from,
            Number::More { by } => from.wrapping_add(by.into()),
            Number::Less { by } => from.wrapping_sub(by.into()),
            Number::Small { n } => n.into(),
            Number::Any { n } => n,
            Number::Huge { below } => u64::MAX - u64::from(below),
        }
    }
}

impl MarkPick {
    /// The mark, where `known` are all there are, the newest last.
    pub fn of(&self, known: &[Mark]) -> Mark {
        let back = |back: u8| known.iter().rev().cycle().nth(back.into()).copied().unwrap_or_default();
        match self {
            MarkPick::Known { back: n } => back(*n),
            MarkPick::Fill { back: n, fill } => Mark { fill: Fill(fill.near(back(*n).fill.0)), ..back(*n) },
            MarkPick::Seq { back: n, seq } => Mark { seq: Seq(seq.near(back(*n).seq.0)), ..back(*n) },
            MarkPick::Digest { back: n, digest } => Mark { digest: Digest(*digest), ..back(*n) },
            MarkPick::Zero => Mark::default(),
            MarkPick::Any { fill, seq, digest } => {
                let last = back(0);
                Mark { fill: Fill(fill.near(last.fill.0)), seq: Seq(seq.near(last.seq.0)), digest: Digest(*digest) }
            }
        }
    }
}
