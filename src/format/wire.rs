//! The replication protocol: what source and destination say besides frames.
//!
//! From source to destination everything comes in whole blocks of 4096 bytes, so that frames stay aligned in the
//! memory they are received into: [`Superblock`] as hello, then [`Signal`]s between frames. From destination to
//! source: one [`Welcome`] block, then [`Report`]s of 64 bytes.
//!
//! ```text
//! source                                destination
//!   hello (its superblock)  ─────────▶
//!                           ◀─────────  welcome (or a refusal with its reason): last frames it holds
//!   resume (the last common frame) ──▶  drops what comes after it
//!   frames, sync signals    ─────────▶
//!                           ◀─────────  stored up to record n, applied fill n
//! ```

use super::block::{self, Block, BlockError};
use super::checksum::crc32c;
use super::ids::{Digest, Epoch, Fill, Mark, RawMark, Seq};
use super::superblock::{Role, Superblock};
use crate::limits::{BLOCK_BYTES, MAX_BOUNDARIES};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Magic of a hello: a source's superblock in another envelope.
pub const HELLO: [u8; 8] = *b"NBDMHELO";
/// Magic of a welcome.
pub const WELCOME: [u8; 8] = *b"NBDMWELC";
/// Magic of a signal.
pub const SIGNAL: [u8; 8] = *b"NBDMSIGN";

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
    /// Whether the image is a whole copy.
    pub whole: bool,
    /// Whether the destination holds nothing of this source yet.
    pub fresh: bool,
    /// The last fill applied.
    pub applied: Mark,
    /// The last frames it holds, oldest first, at most [`MAX_BOUNDARIES`].
    pub boundaries: Vec<Mark>,
    /// Reason of a refusal.
    pub reason: String,
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
    epoch: U64,
    applied: RawMark,
    boundaries: [RawMark; MAX_BOUNDARIES],
    reason: [u8; 512],
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
            fresh: false,
            applied: Mark::default(),
            boundaries: Vec::new(),
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
            epoch: self.epoch.0.into(),
            applied: self.applied.into(),
            boundaries,
            reason,
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
        block::countable([raw.epoch.get()].into_iter().chain(applied.numbers()))?;
        block::countable(boundaries.iter().flat_map(|mark| mark.numbers()))?;
        let reason = raw.reason.get(..raw.reason_bytes.get().into()).ok_or(BlockError::Field("reason"))?;
        Ok(Welcome {
            verdict,
            epoch: Epoch(raw.epoch.get()),
            whole: raw.whole != 0,
            fresh: raw.fresh != 0,
            applied,
            boundaries,
            reason: String::from_utf8_lossy(reason).into_owned(),
        })
    }
}

/// What a source says between frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The last frame that both have; what the destination holds beyond it was never answered and is dropped.
    /// `from_scratch`: the destination holds nothing that counts, and a whole copy of the volumes follows.
    Resume {
        /// The common frame.
        common: Mark,
        /// Whether all that the destination holds is void.
        from_scratch: bool,
    },
    /// The sync signal: this fill is complete up to the mark, apply it.
    Sync {
        /// The fill's last frame.
        last: Mark,
        /// Whether the image is a whole copy once this fill is applied.
        whole: bool,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSignal {
    preamble: [u8; 16],
    kind: u8,
    flag: u8,
    reserved: [u8; 6],
    mark: RawMark,
}

const SIGNAL_USED: usize = size_of::<RawSignal>();

impl Signal {
    /// Encodes it into a block.
    pub fn encode(&self) -> Box<Block> {
        let (kind, flag, mark) = match *self {
            Signal::Resume { common, from_scratch } => (1, from_scratch, common),
            Signal::Sync { last, whole } => (2, whole, last),
        };
        let raw = RawSignal { preamble: [0; 16], kind, flag: flag.into(), reserved: [0; 6], mark: mark.into() };
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
            1 => Ok(Signal::Resume { common: mark, from_scratch: raw.flag != 0 }),
            2 => Ok(Signal::Sync { last: mark, whole: raw.flag != 0 }),
            _ => Err(BlockError::Field("signal")),
        }
    }
}

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
        match raw.kind {
            1 => Ok(Report::Stored(seq)),
            2 => Ok(Report::Applied(Mark { fill: Fill(raw.fill.get()), seq, digest: Digest(raw.digest.get()) })),
            3 => Ok(Report::Fenced(Epoch(seq.0))),
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
            assert_eq!(Signal::decode(&Signal::Resume { common: bad, from_scratch: true }.encode()), number);
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
            fresh: false,
            applied: mark(1),
            boundaries: (0..MAX_BOUNDARIES as u64).map(mark).collect(),
            reason: "ä".repeat(300),
        };
        let decoded = Welcome::decode(&welcome.encode()).unwrap();
        assert_eq!(decoded.boundaries, welcome.boundaries);
        assert_eq!(decoded.reason, "ä".repeat(256));
        for signal in [
            Signal::Resume { common: mark(2), from_scratch: true },
            Signal::Sync { last: mark(3), whole: false },
            Signal::Sync { last: mark(3), whole: true },
        ] {
            assert_eq!(Signal::decode(&signal.encode()), Ok(signal));
        }
        for report in [Report::Stored(Seq(7)), Report::Applied(mark(4)), Report::Fenced(Epoch(9))] {
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
