//! States that only a rare path reaches. Each is counted, and a run over many seeds must have reached all.

macro_rules! rare {
    ($($(#[doc = $text:literal])* $name:ident,)*) => {
        /// A state or event worth knowing that it was met.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Rare { $($(#[doc = $text])* $name,)* }

        impl Rare {
            pub const ALL: &[(Rare, &str)] = &[$((Rare::$name, concat!($($text),*)),)*];
        }
    };
}

rare! {
    /// a source started and found nothing in its journal
    SourceFoundNothing,
    /// a source started and found frames of one fill
    SourceFoundOneFill,
    /// a source started and found frames of two fills
    SourceFoundTwoFills,
    /// a source's journal ended in a torn frame
    SourceTornTail,
    /// a source found one superblock copy torn
    SourceTornSuperblock,
    /// a source crashed while it recovered
    SourceCrashedInRecovery,
    /// a source crashed while a half was being flushed
    SourceCrashedInFlush,
    /// a source handed over, and its destination took over
    TookOver,
    /// a promoted image was served while fills weren't on it yet
    Inherited,
    /// one such crashed while they were brought there
    HeirCrashedInFlush,
    /// a source crashed in the first sync
    SourceCrashedInCopy,
    /// a source lost frames that were answered without the promise to survive
    SourceLostUnpromised,
    /// a source started with the other durability
    SourceChangedDurability,
    /// a destination started and found nothing in its journal files
    DestinationFoundNothing,
    /// a destination started and found frames of one fill
    DestinationFoundOneFill,
    /// a destination started and found frames of two fills
    DestinationFoundTwoFills,
    /// a destination's journal file ended in a torn frame
    DestinationTornTail,
    /// a destination found one copy of its state torn
    DestinationTornState,
    /// a destination crashed while it recovered
    DestinationCrashedInRecovery,
    /// a destination crashed while a fill was being applied: it is applied again
    DestinationCrashedInApply,
    /// a destination's crash in a power cut lost answered frames that were only promised not to survive one
    DestinationLostUnpromised,
    /// both sides crashed at once
    BothCrashed,
    /// clients waited because no half was clean
    NoHalfClean,
    /// clients waited because too much was queued
    Backpressure,
    /// a flush was behind its pace
    FlushLate,
    /// an apply was behind its pace
    ApplyLate,
    /// a destination had frames that its source had lost, and dropped them
    DestinationAhead,
    /// dropped frames began in the middle of a fill
    DestinationDroppedPartOfFill,
    /// a destination said "not now" to a hello
    NotNow,
    /// a sync signal came again for a fill that was applied
    SignalAgain,
    /// a connection was cut in the middle of a frame
    FrameTornOnTheWay,
    /// only one direction of a connection broke
    HalfClosed,
    /// a damaged frame was refused by the destination
    DamageOnTheWay,
    /// a destination's folder was removed, and the first sync began anew
    StartedOver,
    /// a first sync or a resync read a window again because a client wrote to it
    WindowReadAgain,
    /// a window's read ended after its copy had been given up
    WindowOfAnEarlierCopy,
    /// a promote while the source was connected
    PromotedWhileConnected,
    /// a promote with applies to be done
    PromotedWithFills,
    /// a destination crashed before a promote's epoch was durable
    PromoteCrashedBeforeEpoch,
    /// a destination crashed between a promote's epoch and its end
    PromoteCrashedInApply,
    /// a source learned by a report that it is fenced
    FencedByReport,
    /// a source learned by its hello that it is fenced
    FencedByHello,
    /// a fenced source started again
    FencedStartedAgain,
    /// a promoted source crashed and started again
    PromotedStartedAgain,
    /// a disk took only a part of a write at first
    ShortWrite,
    /// a source stopped because a disk failed
    SourceDiskFailed,
    /// a destination stopped because a disk failed
    DestinationDiskFailed,
    /// rot in a source's journal was reported
    SourceRotReported,
    /// rot in a destination's journal file was reported
    DestinationRotReported,
    /// rot in the last frame looked like a torn tail
    RotLooksTorn,
    /// rot in a superblock copy or state copy was survived
    RottenSuperblockSurvived,
    /// a read saw the volume while it was being written
    ReadDuringFlush,
    /// a request of several records
    LargeRequest,
    /// a FLUSH was a record
    FlushRecord,
    /// a source went on alone
    WentAlone,
    /// a source that was alone was in step again
    TogetherAgain,
    /// a source called a half clean that its destination didn't have
    RetiredAlone,
    /// a source crashed while its dirty bitmap was being written
    SourceCrashedInMapWrite,
    /// a source started with a part of its volumes marked as dirty
    StartedDirty,
    /// a source started, and may not go alone
    StartedHeldBack,
    /// a source that was held back was released by another policy
    HeldBackReleased,
    /// a source that was alone went on with its destination from its journal
    ShortCut,
    /// a destination was asked to settle
    Settled,
    /// the order began anew at a destination that held something
    BeganAnew,
    /// everything was compared, for the destination was at a boundary that its source didn't know any more
    ComparedWhole,
    /// a resync found blocks that were equal
    BlocksEqual,
    /// a resync's window was sent unasked
    WindowUnasked,
    /// a block of a question was one that only the staging log has
    SumUnknown,
    /// the connection was lost in a resync
    LinkLostInResync,
    /// a source crashed in a resync
    SourceCrashedInResync,
    /// a destination crashed while it staged a resync
    DestinationCrashedInStaging,
    /// a destination crashed while it settled
    DestinationCrashedInSettling,
    /// a destination crashed while it wrote to its staging log
    DestinationCrashedInAppend,
    /// a destination crashed while its staging log went to the images
    DestinationCrashedInDrain,
    /// a staging log went to the images in more than one segment
    DrainedInSegments,
    /// a fill went into the staging log while that was being drained
    AppendedWhileDraining,
    /// a restart was written into the staging log
    RestartStaged,
    /// a promote while a resync was being staged
    PromotedWhileStaging,
    /// a promote while a whole resync was being drained
    PromotedWhileDraining,
    /// what if there were a promote while a resync is being staged
    GhostWhileStaging,
    /// what if there were a promote while a whole resync is being drained
    GhostWhileDraining,
    /// a staging log took no more, and its source was cut off
    StagingFullStopped,
    /// a staging log took no more, and the old image was given up
    StagingFullGivenUp,
    /// a staging log's file system had no room
    StagingNoRoom,
    /// rot in a staging log was reported
    StagingRotReported,
    /// rot in a dirty bitmap made its sector count as dirty
    MapRotIsDirty,
    /// a write got an error, for the destination was away
    WriteFailed,
    /// a silent destination's connection was closed
    SilentPeer,
    /// a source answered alone after its destination was promoted, before it heard of that
    AnsweredAloneAfterPromote,
    /// a verify found both sides equal
    VerifiedEqual,
    /// a verify had no end, for the connection was lost
    VerifyCutOff,
    /// nothing was missing at a destination without its source, by the source's policy
    WarrantedForGood,
    /// nothing was missing at a destination without its source, for as long as the source's timeout ran
    WarrantedForATime,
    /// an image was read while a fill was being applied to it
    LiveDuringApply,
    /// an image was read while a resync was being staged
    LiveBase,
    /// what a reader got from an image was written meanwhile, and read again
    LiveReadAgain,
    /// frames were stored in the shared log
    StoredInNvram,
    /// frames found no room there
    PastNvram,
    /// a destination started and found frames in the shared log
    FoundInNvram,
    /// a destination crashed while frames were moved from the shared log
    CrashedInMove,
    /// a destination crashed while a slot was given back
    CrashedInFree,
    /// a destination crashed while a start emptied the shared log
    CrashedInEmptying,
    /// a reader was refused, for after its start a destination doesn't know which fills are complete
    LiveUnsure,
}

/// How often each was met.
#[derive(Debug, Clone)]
pub struct Met(Vec<u64>);

impl Met {
    pub fn none() -> Met {
        Met(vec![0; Rare::ALL.len()])
    }

    pub fn count(&mut self, rare: Rare) {
        self.0[rare as usize] += 1;
    }

    pub fn count_if(&mut self, met: bool, rare: Rare) {
        if met {
            self.count(rare);
        }
    }

    pub fn add(&mut self, other: &Met) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, count)| *sum += count);
    }

    /// Each state with its count.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Rare::ALL.iter().map(|(rare, text)| (text.trim(), self.0[*rare as usize]))
    }
}
