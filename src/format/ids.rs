//! Numbers that must not be mixed up: sequence numbers, fills, epochs, digests.

use std::fmt;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The number that follows.
            pub fn next(self) -> $name {
                $name(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Place of a record in its source's write order; the first record is 1.
    Seq
);
number!(
    /// One filling of a half of the journal; the first fill is 1. Fill n lives in half n mod 2.
    Fill
);
number!(
    /// Raised by each promote; a peer with an older epoch is fenced. The first epoch is 1.
    Epoch
);

impl Fill {
    /// The half, 0 or 1, in which this fill lives, on both sides.
    pub fn half(self) -> usize {
        (self.0 % 2) as usize
    }
}

/// CRC-64 chained over the header blocks of all frames so far: equal digests mean an equal history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest(pub u64);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A random identity of 128 bits: of a source's data, or of one journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Id(pub [u8; 16]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A frame boundary in the write order: every record up to `seq` is in fill `fill` or before it, and `digest` is the chain there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The fill that holds the last frame.
    pub fill: Fill,
    /// The last record.
    pub seq: Seq,
    /// The chained digest after the last frame.
    pub digest: Digest,
}

impl Mark {
    /// Its fill and its record, which are counted.
    pub fn numbers(self) -> [u64; 2] {
        [self.fill.0, self.seq.0]
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} (fill {}, digest {})", self.seq, self.fill, self.digest)
    }
}

/// [`Mark`] as stored: 24 bytes.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawMark {
    fill: U64,
    seq: U64,
    digest: U64,
}

impl From<Mark> for RawMark {
    fn from(mark: Mark) -> RawMark {
        RawMark { fill: mark.fill.0.into(), seq: mark.seq.0.into(), digest: mark.digest.0.into() }
    }
}

impl From<RawMark> for Mark {
    fn from(raw: RawMark) -> Mark {
        Mark { fill: Fill(raw.fill.get()), seq: Seq(raw.seq.get()), digest: Digest(raw.digest.get()) }
    }
}
