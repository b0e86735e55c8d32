//! What the two copies of a superblock say together. Both sides begin with it.

use super::table::fact;
use crate::format::block::{Block, BlockError};
use crate::format::superblock::{self, Role, Superblock};

fact! {
    /// The two copies.
    Copies, "superblock copies" {
        Both = "both whole",
        One = "one whole, the other torn, damaged or zero",
        Overwritten = "one whole, something else in the other's place",
        Split = "both whole, but not of one history",
        Damaged = "none whole, at least one was ours",
        Version = "one of another version",
        Claimed = "claimed: being made",
        Blank = "none: missing or blank",
        Foreign = "none: something else is there",
    }
}

fact! {
    /// Whose name they bear; where they bear none it doesn't matter.
    Owner, "name" {
        Ours = "this source's",
        Another = "another's",
    }
}

fact! {
    /// Whether foreign content may be overwritten.
    Init, "`--init`" {
        Not = "no",
        Given = "yes",
    }
}

impl Init {
    /// As it is given.
    pub fn of(given: bool) -> Init {
        if given { Init::Given } else { Init::Not }
    }
}

/// Both copies, read.
#[derive(Debug)]
pub struct Reading {
    /// What they are together.
    pub copies: Copies,
    /// The one that counts.
    pub newest: Option<Superblock>,
    /// Whose they are, as far as they tell.
    pub name: Option<String>,
    /// What is wrong with which copy, in words; empty where nothing is.
    pub trouble: String,
}

impl Reading {
    /// Reads both copies. `blank`: everything around them is zero, too, as far as it counts.
    pub fn of(role: Role, blocks: [&Block; 2], blank: bool) -> Reading {
        let none = |copies, name: Option<String>, trouble| Reading { copies, newest: None, name, trouble };
        if let Some(name) = superblock::claimed_by(blocks[0]) {
            return none(Copies::Claimed, Some(name), String::new());
        }
        let zero = blocks.map(|block| block.iter().all(|byte| *byte == 0));
        let decoded = blocks.map(|block| Superblock::decode(role, block));
        let trouble = trouble(&decoded, zero);
        let is = |wanted: fn(&BlockError) -> bool| decoded.iter().flat_map(|copy| copy.as_ref().err()).any(wanted);
        if is(|error| matches!(error, BlockError::Version(_))) {
            // Whatever the other one says: this one may be newer.
            return none(Copies::Version, None, trouble);
        }
        let elsewhere = (0..2).any(|n| !zero[n] && matches!(decoded[n], Err(BlockError::Magic(_))));
        let ours = is(|error| !matches!(error, BlockError::Magic(_)));
        let copies = match &decoded {
            [Ok(a), Ok(b)] => {
                let one_history = a.source == b.source && a.name == b.name;
                if !one_history || (a.generation == b.generation && a != b) {
                    let of = |s: &Superblock| {
                        format!("version {} of source \"{}\" (identity {})", s.generation, s.name, s.source)
                    };
                    return none(Copies::Split, None, format!("{} and {}", of(a), of(b)));
                }
                Copies::Both
            }
            [Ok(_), Err(_)] | [Err(_), Ok(_)] if elsewhere => Copies::Overwritten,
            [Ok(_), Err(_)] | [Err(_), Ok(_)] => Copies::One,
            [Err(_), Err(_)] if ours => Copies::Damaged,
            [Err(_), Err(_)] if blank && !elsewhere => Copies::Blank,
            [Err(_), Err(_)] => Copies::Foreign,
        };
        let newest = Superblock::newest(role, blocks).ok();
        let name = newest.as_ref().map(|superblock| superblock.name.clone());
        Reading { copies, newest, name, trouble }
    }

    /// Whether they bear this name.
    pub fn owner(&self, name: &str) -> Owner {
        if self.name.as_deref() == Some(name) { Owner::Ours } else { Owner::Another }
    }
}

fn trouble(decoded: &[Result<Superblock, BlockError>; 2], zero: [bool; 2]) -> String {
    let said = |n: usize| match &decoded[n] {
        Ok(_) => None,
        Err(_) if zero[n] => Some(format!("copy {n} is blank")),
        Err(error) => Some(format!("copy {n}: {error}")),
    };
    (0..2).filter_map(said).collect::<Vec<_>>().join("; ")
}
