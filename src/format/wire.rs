//! The replication protocol: what source and destination say besides frames.
//!
//! From source to destination everything comes in whole blocks of 4096 bytes, so that frames stay aligned in the
//! memory they are received into: [`Superblock`] as hello, then [`Signal`]s between frames. From destination to
//! source: one [`Welcome`] block, then [`Report`]s of 64 bytes, of which one kind is followed by checksums.
//!
//! ```text
//! source                                destination
//!   hello (its superblock)  ─────────▶
//!                           ◀─────────  welcome (or a refusal with its reason): last frames it holds
//!   resume (the last common frame) ──▶  drops what comes after it
//!   frames, sync signals    ─────────▶
//!                           ◀─────────  stored up to record n, applied fill n
//!   ping, now and then      ─────────▶
//!                           ◀─────────  pong
//!   ask (a range)           ─────────▶
//!                           ◀─────────  sums: a checksum for each block of it
//! ```
//!
//! Where the source's journal no longer reaches back to the last common frame, the order begins anew, and a resync by
//! changed blocks follows:
//!
//! ```text
//!   settle (the last common frame) ──▶  drops what comes after it, applies the rest
//!                           ◀─────────  settled
//!   restart (a frame of the source) ─▶  goes on from there, though it doesn't hold what lies between
//! ```

use super::block::{self, Block, BlockError};
use super::checksum::crc32c;
use super::ids::{Digest, Epoch, Fill, Id, Mark, RawMark, Seq};
use super::ping::{OnDisconnect, Ping, Standing};
use super::superblock::{Phase, Role, Superblock};
use crate::limits::{BLOCK_BYTES, COPY_WINDOW_BYTES, MAX_BOUNDARIES, MAX_SUMS, MAX_VOLUMES, SUM_GRAIN_BYTES};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Magic of a hello: a source's superblock in another envelope.
pub const HELLO: [u8; 8] = *b"NBDMHELO";
/// Magic of a welcome.
pub const WELCOME: [u8; 8] = *b"NBDMWELC";
/// Magic of a signal.
pub const SIGNAL: [u8; 8] = *b"NBDMSIGN";

/// Magic of the block that announces what the destination may lack: the blocks of a dirty bitmap of the source's volumes
/// follow it, and then the welcome.
pub const LACKS: [u8; 8] = *b"NBDMLACK";

/// Encodes the announcement of what is lacked.
pub fn encode_lacks() -> Box<Block> {
    let mut block = Box::new([0; BLOCK_BYTES]);
    block::seal(&mut block, LACKS, 0);
    block
}

/// Checks one.
pub fn decode_lacks(block: &Block) -> Result<(), BlockError> {
    block::open(block, LACKS).map(|_| ())
}

/// Encodes a hello.
pub fn encode_hello(source: &Superblock) -> Box<Block> {
    source.encode_as(HELLO)
}

/// Decodes a hello.
pub fn decode_hello(block: &Block) -> Result<Superblock, BlockError> {
    Superblock::decode_as(Role::Source, HELLO, block)
}

/// How a destination answers a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Verdict {
    /// Go on.
    Welcome = 0,
    /// A promote raised the epoch: this source must never answer a write again.
    Fenced = 1,
    /// Not now or not like this; the text says why. Trying again later is fine.
    Refused = 2,
}

/// A destination's answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Whether to go on.
    pub verdict: Verdict,
    /// The destination's epoch.
    pub epoch: Epoch,
    /// Whether what it holds is a whole copy as of its last frame.
    pub whole: bool,
    /// Where complete fills go at the moment.
    pub phase: Phase,
    /// Whether a promote at this moment would give a consistent image.
    pub promotable: bool,
    /// The last record of that consistent image, where it is an earlier state than the one of the last frame.
    pub base: Mark,
    /// Whether the destination holds nothing of this source yet.
    pub fresh: bool,
    /// The last fill applied.
    pub applied: Mark,
    /// The last frames it holds, oldest first, at most [`MAX_BOUNDARIES`].
    pub boundaries: Vec<Mark>,
    /// Where the order went on without the source, and as whose: said to one that is fenced, once the promote is complete.
    pub fork: Option<Fork>,
    /// Reason of a refusal.
    pub reason: String,
}

/// Where a promote began an order of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The last boundary of the old order that counts.
    pub at: Mark,
    /// The identity of the source that goes on from there.
    pub source: Id,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawWelcome {
    preamble: [u8; 16],
    verdict: U16,
    whole: u8,
    fresh: u8,
    boundary_count: U16,
    reason_bytes: U16,
    phase: u8,
    promotable: u8,
    forked: u8,
    reserved: [u8; 5],
    epoch: U64,
    applied: RawMark,
    base: RawMark,
    boundaries: [RawMark; MAX_BOUNDARIES],
    reason: [u8; 512],
    fork_at: RawMark,
    fork_source: Id,
}

const WELCOME_USED: usize = size_of::<RawWelcome>();
const _: () = assert!(WELCOME_USED <= BLOCK_BYTES);

impl Welcome {
    /// A refusal with its reason.
    pub fn refuse(verdict: Verdict, epoch: Epoch, reason: impl Into<String>) -> Welcome {
        Welcome {
            verdict,
            epoch,
            whole: false,
            phase: Phase::Direct,
            promotable: false,
            base: Mark::default(),
            fresh: false,
            applied: Mark::default(),
            boundaries: Vec::new(),
            fork: None,
            reason: reason.into(),
        }
    }

    /// Encodes it; a reason longer than 512 bytes is cut.
    pub fn encode(&self) -> Box<Block> {
        let mut boundaries = [RawMark::default(); MAX_BOUNDARIES];
        for (raw, mark) in boundaries.iter_mut().zip(&self.boundaries) {
            *raw = (*mark).into();
        }
        let cut = (0..=self.reason.len().min(512)).rev().find(|at| self.reason.is_char_boundary(*at)).unwrap_or(0);
        let mut reason = [0; 512];
        reason[..cut].copy_from_slice(&self.reason.as_bytes()[..cut]);
        let raw = RawWelcome {
            preamble: [0; 16],
            verdict: (self.verdict as u16).into(),
            whole: self.whole.into(),
            fresh: self.fresh.into(),
            boundary_count: (self.boundaries.len().min(MAX_BOUNDARIES) as u16).into(),
            reason_bytes: (cut as u16).into(),
            phase: self.phase as u8,
            promotable: self.promotable.into(),
            forked: self.fork.is_some().into(),
            reserved: [0; 5],
            epoch: self.epoch.0.into(),
            applied: self.applied.into(),
            base: self.base.into(),
            boundaries,
            reason,
            fork_at: self.fork.map(|fork| fork.at).unwrap_or_default().into(),
            fork_source: self.fork.map_or(Id([0; 16]), |fork| fork.source),
        };
        let mut block = Box::new([0; BLOCK_BYTES]);
        block[..WELCOME_USED].copy_from_slice(raw.as_bytes());
        block::seal(&mut block, WELCOME, 0);
        block
    }

    /// Checks and decodes a block.
    pub fn decode(block: &Block) -> Result<Welcome, BlockError> {
        block::open(block, WELCOME)?;
        let raw = RawWelcome::ref_from_bytes(&block[..WELCOME_USED]).map_err(|_| BlockError::Field("length"))?;
        let verdict = match raw.verdict.get() {
            0 => Verdict::Welcome,
            1 => Verdict::Fenced,
            2 => Verdict::Refused,
            _ => return Err(BlockError::Field("verdict")),
        };
        let boundaries =
            raw.boundaries.get(..raw.boundary_count.get().into()).ok_or(BlockError::Field("boundaries"))?;
        let applied: Mark = raw.applied.into();
        let boundaries: Vec<Mark> = boundaries.iter().map(|mark| (*mark).into()).collect();
        let base: Mark = raw.base.into();
        block::countable([raw.epoch.get()].into_iter().chain(applied.numbers()).chain(base.numbers()))?;
        block::countable(boundaries.iter().flat_map(|mark| mark.numbers()))?;
        let fork_at: Mark = raw.fork_at.into();
        block::countable(fork_at.numbers())?;
        let fork = (raw.forked != 0).then_some(Fork { at: fork_at, source: raw.fork_source });
        let reason = raw.reason.get(..raw.reason_bytes.get().into()).ok_or(BlockError::Field("reason"))?;
        Ok(Welcome {
            verdict,
            epoch: Epoch(raw.epoch.get()),
            whole: raw.whole != 0,
            phase: Phase::of(raw.phase)?,
            promotable: raw.promotable != 0,
            base,
            fresh: raw.fresh != 0,
            applied,
            boundaries,
            fork,
            reason: String::from_utf8_lossy(reason).into_owned(),
        })
    }
}

/// What a source says between frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Go on behind this frame, the last that both have; what the destination holds beyond it is dropped.
    Resume {
        /// The common frame.
        common: Mark,
    },
    /// The sync signal: this fill is complete up to the mark, apply it.
    Sync {
        /// The fill's last frame.
        last: Mark,
        /// Whether the destination holds a whole copy once this fill is applied.
        whole: bool,
    },
    /// The order will begin anew: drop what is held beyond this frame, apply the rest, and say [`Report::Settled`].
    Settle {
        /// The common frame.
        common: Mark,
    },
    /// The order begins anew behind this frame, which the destination doesn't hold; records that make up for it follow,
    /// and until a sync signal says `whole` what it holds is no whole copy. After [`Report::Settled`], or as the first
    /// word to a destination that holds nothing.
    Restart {
        /// The frame.
        at: Mark,
    },
    /// Are you there? To be answered by [`Report::Pong`].
    Ping(Ping),
    /// The source hands over: it answers nothing behind this frame, and all up to it is answered. The destination is to be
    /// promoted there.
    TakeOver {
        /// The last frame.
        at: Mark,
    },
    /// What are the checksums of this range, behind all frames sent so far? To be answered by [`Report::Sums`].
    Ask {
        /// Names the question.
        id: u64,
        /// Index of the volume.
        volume: u16,
        /// First byte, a multiple of [`SUM_GRAIN_BYTES`].
        offset: u64,
        /// Bytes, at most [`COPY_WINDOW_BYTES`].
        length: u32,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSignal {
    preamble: [u8; 16],
    kind: u8,
    flag: u8,
    volume: U16,
    length: U32,
    mark: RawMark,
    offset: U64,
    id: U64,
}

const SIGNAL_USED: usize = size_of::<RawSignal>();

impl Signal {
    /// Encodes it into a block.
    pub fn encode(&self) -> Box<Block> {
        let mut raw = RawSignal {
            preamble: [0; 16],
            kind: 0,
            flag: 0,
            volume: 0.into(),
            length: 0.into(),
            mark: RawMark::default(),
            offset: 0.into(),
            id: 0.into(),
        };
        match *self {
            Signal::Resume { common } => (raw.kind, raw.mark) = (1, common.into()),
            Signal::Sync { last, whole } => (raw.kind, raw.flag, raw.mark) = (2, whole.into(), last.into()),
            Signal::Settle { common } => (raw.kind, raw.mark) = (3, common.into()),
            Signal::Restart { at } => (raw.kind, raw.mark) = (4, at.into()),
            Signal::Ping(Ping { answered, standing, on_disconnect, timeout_ms, echo }) => {
                (raw.kind, raw.flag, raw.mark) = (5, standing as u8, Mark { seq: answered, ..Mark::default() }.into());
                (raw.volume, raw.length, raw.id) = ((on_disconnect as u16).into(), timeout_ms.into(), echo.into());
            }
            Signal::TakeOver { at } => (raw.kind, raw.mark) = (7, at.into()),
            Signal::Ask { id, volume, offset, length } => {
                (raw.kind, raw.id, raw.volume) = (6, id.into(), volume.into());
                (raw.offset, raw.length) = (offset.into(), length.into());
            }
        }
        let mut block = Box::new([0; BLOCK_BYTES]);
        block[..SIGNAL_USED].copy_from_slice(raw.as_bytes());
        block::seal(&mut block, SIGNAL, 0);
        block
    }

    /// Checks and decodes a block.
    pub fn decode(block: &Block) -> Result<Signal, BlockError> {
        block::open(block, SIGNAL)?;
        let raw = RawSignal::ref_from_bytes(&block[..SIGNAL_USED]).map_err(|_| BlockError::Field("length"))?;
        let mark: Mark = raw.mark.into();
        block::countable(mark.numbers())?;
        match raw.kind {
            1 => Ok(Signal::Resume { common: mark }),
            2 => Ok(Signal::Sync { last: mark, whole: raw.flag != 0 }),
            3 => Ok(Signal::Settle { common: mark }),
            4 => Ok(Signal::Restart { at: mark }),
            7 => Ok(Signal::TakeOver { at: mark }),
            5 => Ok(Signal::Ping(Ping {
                answered: mark.seq,
                standing: Standing::of(raw.flag)?,
                on_disconnect: OnDisconnect::of(raw.volume.get())?,
                timeout_ms: raw.length.get(),
                echo: raw.id.get(),
            })),
            6 => {
                let (offset, length) = (raw.offset.get(), raw.length.get());
                let fits = offset.is_multiple_of(SUM_GRAIN_BYTES) && offset.checked_add(length.into()).is_some();
                if usize::from(raw.volume.get()) >= MAX_VOLUMES
                    || length == 0
                    || u64::from(length) > COPY_WINDOW_BYTES
                    || !fits
                {
                    return Err(BlockError::Field("range asked for"));
                }
                Ok(Signal::Ask { id: raw.id.get(), volume: raw.volume.get(), offset, length })
            }
            _ => Err(BlockError::Field("signal")),
        }
    }
}

/// The checksum of one block of [`SUM_GRAIN_BYTES`]: 128 bits of BLAKE3. Zero says nothing: the block counts as different.
pub type Sum = [u8; 16];

/// Bytes of a report.
pub const REPORT_BYTES: usize = 64;

/// What a destination says once a source has resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Every record up to this one is stored (on stable storage, where the frames asked for it).
    Stored(Seq),
    /// This fill is applied, and its digest was the source's.
    Applied(Mark),
    /// A promote raised the epoch.
    Fenced(Epoch),
    /// All that is held, up to this frame, is applied: the order may begin anew.
    Settled(Mark),
    /// The answer to a ping, with when it was given: in milliseconds by the destination's clock, to be echoed.
    Pong {
        /// That moment; 0 says nothing.
        stamp: u64,
    },
    /// The answer to a question; so many [`Sum`]s follow, one for each [`SUM_GRAIN_BYTES`] of the range asked for.
    Sums {
        /// Which question.
        id: u64,
        /// How many, at most [`MAX_SUMS`].
        count: usize,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawReport {
    magic: [u8; 4],
    checksum: U32,
    kind: u8,
    reserved: [u8; 7],
    fill: U64,
    number: U64,
    digest: U64,
    padding: [u8; 24],
}

const _: () = assert!(size_of::<RawReport>() == REPORT_BYTES);
const REPORT_MAGIC: [u8; 4] = *b"NBDR";

impl Report {
    /// Encodes it.
    pub fn encode(&self) -> [u8; REPORT_BYTES] {
        let (kind, mark) = match *self {
            Report::Stored(seq) => (1, Mark { seq, ..Mark::default() }),
            Report::Applied(mark) => (2, mark),
            Report::Fenced(epoch) => (3, Mark { seq: Seq(epoch.0), ..Mark::default() }),
            Report::Settled(mark) => (4, mark),
            Report::Pong { stamp } => (5, Mark { seq: Seq(stamp), ..Mark::default() }),
            Report::Sums { id, count } => (6, Mark { fill: Fill(count as u64), seq: Seq(id), ..Mark::default() }),
        };
        let mut raw = RawReport {
            magic: REPORT_MAGIC,
            checksum: 0.into(),
            kind,
            reserved: [0; 7],
            fill: mark.fill.0.into(),
            number: mark.seq.0.into(),
            digest: mark.digest.0.into(),
            padding: [0; 24],
        };
        raw.checksum = crc32c(raw.as_bytes()).into();
        let mut bytes = [0; REPORT_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Checks and decodes it.
    pub fn decode(bytes: &[u8; REPORT_BYTES]) -> Result<Report, BlockError> {
        let mut raw = RawReport::read_from_bytes(bytes).map_err(|_| BlockError::Field("length"))?;
        if raw.magic != REPORT_MAGIC {
            return Err(BlockError::Field("report magic"));
        }
        let stored = std::mem::replace(&mut raw.checksum, 0.into()).get();
        let computed = crc32c(raw.as_bytes());
        if stored != computed {
            return Err(BlockError::Checksum { stored, computed });
        }
        let seq = Seq(raw.number.get());
        block::countable([raw.fill.get(), seq.0])?;
        let mark = Mark { fill: Fill(raw.fill.get()), seq, digest: Digest(raw.digest.get()) };
        match raw.kind {
            1 => Ok(Report::Stored(seq)),
            2 => Ok(Report::Applied(mark)),
            3 => Ok(Report::Fenced(Epoch(seq.0))),
            4 => Ok(Report::Settled(mark)),
            5 => Ok(Report::Pong { stamp: seq.0 }),
            6 if mark.fill.0 as usize <= MAX_SUMS => Ok(Report::Sums { id: seq.0, count: mark.fill.0 as usize }),
            6 => Err(BlockError::Field("number of checksums")),
            _ => Err(BlockError::Field("report kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(n: u64) -> Mark {
        Mark { fill: Fill(n), seq: Seq(n * 10), digest: Digest(n * 100) }
    }

    #[test]
    fn numbers_that_nobody_counted_up_to_are_refused() {
        let number = Err(BlockError::Field("number"));
        for bad in [Mark { fill: Fill(u64::MAX), ..mark(1) }, Mark { seq: Seq(block::MAX_NUMBER), ..mark(1) }] {
            assert_eq!(Signal::decode(&Signal::Resume { common: bad }.encode()), number);
            assert_eq!(Signal::decode(&Signal::Sync { last: bad, whole: true }.encode()), number);
            assert_eq!(Report::decode(&Report::Applied(bad).encode()), Err(BlockError::Field("number")));
            let welcome = Welcome::refuse(Verdict::Welcome, Epoch(1), "");
            let applied = Welcome { applied: bad, ..welcome.clone() };
            let boundaries = Welcome { boundaries: vec![mark(1), bad], ..welcome };
            assert!(Welcome::decode(&applied.encode()).is_err() && Welcome::decode(&boundaries.encode()).is_err());
        }
        assert!(Welcome::decode(&Welcome::refuse(Verdict::Fenced, Epoch(u64::MAX), "").encode()).is_err());
        assert!(Report::decode(&Report::Stored(Seq(u64::MAX)).encode()).is_err());
        assert!(Report::decode(&Report::Fenced(Epoch(u64::MAX)).encode()).is_err());
    }

    #[test]
    fn round_trips() {
        let welcome = Welcome {
            verdict: Verdict::Welcome,
            epoch: Epoch(3),
            whole: true,
            phase: Phase::Draining,
            promotable: true,
            base: mark(7),
            fresh: false,
            applied: mark(1),
            boundaries: (0..MAX_BOUNDARIES as u64).map(mark).collect(),
            fork: Some(Fork { at: mark(8), source: Id([9; 16]) }),
            reason: "ä".repeat(300),
        };
        let decoded = Welcome::decode(&welcome.encode()).unwrap();
        assert_eq!(decoded, Welcome { reason: "ä".repeat(256), ..welcome });
        for signal in [
            Signal::Resume { common: mark(2) },
            Signal::Settle { common: mark(4) },
            Signal::TakeOver { at: mark(6) },
            Signal::Restart { at: mark(5) },
            Signal::Ask { id: 7, volume: 31, offset: 1 << 40, length: 1 << 20 },
            Signal::Sync { last: mark(3), whole: false },
            Signal::Sync { last: mark(3), whole: true },
        ] {
            assert_eq!(Signal::decode(&signal.encode()), Ok(signal));
        }
        let beyond = Signal::Ask { id: 7, volume: 1, offset: 4096, length: (1 << 20) + 1 };
        let askew = Signal::Ask { id: 7, volume: 1, offset: 4097, length: 1 };
        for bad in [beyond, askew] {
            assert_eq!(Signal::decode(&bad.encode()), Err(BlockError::Field("range asked for")));
        }
        for report in [
            Report::Stored(Seq(7)),
            Report::Applied(mark(4)),
            Report::Fenced(Epoch(9)),
            Report::Settled(mark(5)),
            Report::Pong { stamp: 6 },
            Report::Sums { id: 8, count: MAX_SUMS },
        ] {
            let mut bytes = report.encode();
            assert_eq!(Report::decode(&bytes), Ok(report));
            for bit in 0..REPORT_BYTES * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Report::decode(&bytes).is_err(), "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
