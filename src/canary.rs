//! Known bugs that the simulator must find, each behind a switch that exists in its own builds only.
//!
//! A simulator that finds nothing may be right, or blind. So the core is broken on purpose, one bug at a time, and a
//! test demands that the simulator notices. Without the feature `canary` they are off at compile time, and nothing of
//! this is in the program.

/// A known bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The source answers what its destination hasn't stored.
    AnswerBeforePeer,
    /// Payload isn't checked, neither when it is received nor at a recovery.
    SkipChecksum,
    /// The destination applies the records of a write to its journal in the wrong order.
    ApplyOutOfOrder,
    /// A promote doesn't raise the epoch, and once restarted the destination welcomes its old source.
    ForgetEpoch,
    /// The source reuses a half that the destination hasn't applied.
    ReuseHalfEarly,
    /// The destination acknowledges what must be stable before it is.
    AcknowledgeUnsynced,
    /// What a destination drops stays in its journal file.
    KeepDropped,
    /// The source doesn't ask for the boundaries at which its earlier runs ended, and takes any common one for the last.
    ForgetRuns,
    /// The superblock is always written to the same place.
    OneSuperblock,
    /// The destination applies a fill before its journal file is stable.
    ApplyVolatile,
    /// The first sync doesn't look at what clients write meanwhile.
    CopyStale,
    /// A flush is called done before the volumes are synced.
    SkipVolumeSync,
    /// What a source writes while it is alone isn't marked in the dirty bitmap.
    ForgetDirty,
    /// The superblock calls a half clean before the dirty bitmap is stored.
    CleanBeforeMap,
    /// The destination puts a resync onto its images as it comes.
    SkipStaging,
    /// The destination drains its staging log behind the fills that came later.
    DrainLate,
    /// The destination drains its staging log before it is durable that the images aren't promotable by themselves any more.
    DrainEarly,
    /// The state counts on what was appended to the staging log before that is synced.
    AppendUnsynced,
    /// Frames are stored before it is durable that the order began anew.
    RestartVolatile,
    /// A source that ended in step goes on alone after a start, though its destination may have been promoted.
    AloneAfterStart,
    /// The destination counts a source's timeout from when its word arrives.
    LeaseFromReceipt,
    /// A source that is told to go on alone does so before its destination knows of it.
    ForgetWord,
    /// A promoted image's reads look past what isn't applied yet.
    PastInherited,
    /// What is served of a promoted image is flushed before what the promote left unapplied.
    FlushBeforeInherited,
    /// Live reads go past the index to the device while a fill is being applied.
    LiveFromDevice,
    /// What a live read got from the image counts, though a later fill was written there meanwhile.
    LiveUnchecked,
    /// Live reads go on after a start that can't know which fills are complete.
    LiveAfterStart,
    /// A slot of the shared log is given back before its frames are stable in the journal file.
    FreeUnsynced,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 28] = [
        Bug::AnswerBeforePeer,
        Bug::SkipChecksum,
        Bug::ApplyOutOfOrder,
        Bug::ForgetEpoch,
        Bug::ReuseHalfEarly,
        Bug::AcknowledgeUnsynced,
        Bug::KeepDropped,
        Bug::ForgetRuns,
        Bug::OneSuperblock,
        Bug::ApplyVolatile,
        Bug::CopyStale,
        Bug::SkipVolumeSync,
        Bug::ForgetDirty,
        Bug::CleanBeforeMap,
        Bug::SkipStaging,
        Bug::DrainLate,
        Bug::DrainEarly,
        Bug::AppendUnsynced,
        Bug::RestartVolatile,
        Bug::AloneAfterStart,
        Bug::LeaseFromReceipt,
        Bug::ForgetWord,
        Bug::PastInherited,
        Bug::FlushBeforeInherited,
        Bug::LiveFromDevice,
        Bug::LiveUnchecked,
        Bug::LiveAfterStart,
        Bug::FreeUnsynced,
    ];
}

/// Whether this bug is switched on, for this test.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub(crate) const fn sings(_: Bug) -> bool {
    false
}

#[cfg(feature = "canary")]
thread_local! {
    static SINGING: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether this bug is switched on, for this test.
#[cfg(feature = "canary")]
pub(crate) fn sings(bug: Bug) -> bool {
    SINGING.get() == Some(bug)
}

/// Switches a bug on, or all off, for whatever the calling thread runs from now on.
#[cfg(feature = "canary")]
pub fn switch(bug: Option<Bug>) {
    SINGING.set(bug);
}
