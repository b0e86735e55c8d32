//! By what means a file of ours is written: said in status, in words that scripts compare.

/// By what means, and why so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// By what.
    pub how: How,
    /// Why so, for people.
    pub why: String,
}

/// The means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By the processor's stores: what is stored is stable.
    PersistentMemory,
    /// The same, but nothing is known to be stable.
    AssumedPersistentMemory,
    /// By O_DIRECT through the kernel.
    DirectIo,
}

impl How {
    /// As in status.
    pub fn words(self) -> &'static str {
        match self {
            How::PersistentMemory => "persistent memory",
            How::AssumedPersistentMemory => "assumed persistent memory",
            How::DirectIo => "direct io",
        }
    }
}

impl Store {
    /// What holds for files that are written together: persistent memory only where each of them is.
    pub fn weakest(stores: [Store; 3]) -> Store {
        let rank = |store: &Store| match store.how {
            How::DirectIo => 0,
            How::AssumedPersistentMemory => 1,
            How::PersistentMemory => 2,
        };
        let [first, others @ ..] = stores;
        others.into_iter().fold(first, |weakest, store| if rank(&store) < rank(&weakest) { store } else { weakest })
    }
}
