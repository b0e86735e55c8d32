//! By what means a file of ours is written: said in status, in words that scripts compare.

/// By what means, and why so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// By what.
    pub how: How,
    /// Why so, for people.
    pub why: String,
}

/// The means by which a write is stable. The worse come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// By a direct write with RWF_DSYNC.
    Dsync,
    /// By a direct write, and nothing else.
    Direct,
    /// By the processor's stores, but nothing is known to be stable.
    AssumedPersistentMemory,
    /// By the processor's stores: what is stored is stable.
    PersistentMemory,
}

impl How {
    /// As in status.
    pub fn words(self) -> &'static str {
        match self {
            How::Dsync => "dsync",
            How::Direct => "direct",
            How::AssumedPersistentMemory => "assumed persistent memory",
            How::PersistentMemory => "persistent memory",
        }
    }
}

impl Store {
    /// What holds as long as nothing is known: the way that is right everywhere.
    pub fn unknown() -> Store {
        Store { how: How::Dsync, why: "what it stands on wasn't looked at".into() }
    }

    /// What holds for files that are written together: no better than each of them is.
    pub fn weakest(stores: [Store; 3]) -> Store {
        let [first, others @ ..] = stores;
        others.into_iter().fold(first, |weakest, store| if store.how < weakest.how { store } else { weakest })
    }
}
