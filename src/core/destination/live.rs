//! What may be read of the images while they are mirrored: the state as of the last sync signal, whole at any moment.
//!
//! That state is the image, overlaid with the complete fills that aren't on it yet, newest first; so it moves on in the
//! moment in which a fill is complete, and what an apply does meanwhile isn't seen. While a resync is staged it is the
//! base, which the image is as it stands.
//!
//! A read takes what is in memory at once. What is the image's takes a while, and a later fill may be written there
//! meanwhile, so [`Destination::still_holds`] says afterwards whether the view that the read began with is what it has
//! read; if not, it is read again from a newer view. Nothing ever waits for a reader.
//!
//! Views never go back. A fill is in a view only once it is stable in its journal file, and such a fill is never dropped.
//! But a start doesn't know which of the fills that it finds were complete, nor whether one of them is on the image in
//! part: until the source has said so nothing is shown.

use super::super::index::{Index, Segment, resolve};
use super::{Destination, Half, State};
use crate::canary::{Bug, sings};
use crate::format::ids::{Fill, Mark};
use crate::format::superblock::Phase;
use std::ops::Range;

/// The state that a read is answered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The boundary up to which it holds everything, and nothing beyond.
    pub mark: Mark,
    era: u64,
}

/// Why nothing consistent can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// There is no whole copy.
    #[error(
        "the image isn't a whole copy yet: the first sync, or a resync that found no room beside the image, isn't complete"
    )]
    NotWhole,
    /// A resync goes from the staging log to the images.
    #[error("a resync is on its way from the staging log to the image")]
    Draining,
    /// Since the start it isn't known which of the fills found are complete.
    #[error(
        "the destination was started, and its source hasn't said yet which of the writes that are stored here belong to the image"
    )]
    Unsure,
    /// It is being promoted, or was.
    #[error("the image is being promoted")]
    Promoting,
}

/// What is remembered for readers.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Counts what makes every earlier view void, whatever it holds.
    era: u64,
    /// The newest fill of which something was handed out to the images, in this era.
    touched: Fill,
    /// The newest fill that the start found. Up to it an open fill may have been complete before.
    found: Fill,
    /// A fill that wasn't complete: the source has added to it, or taken something away.
    open: Fill,
}

impl Live {
    /// What a start has found.
    pub(super) fn found(&mut self, fill: Fill) {
        self.found = self.found.max(fill);
    }

    /// This fill was never complete.
    pub(super) fn open(&mut self, fill: Fill) {
        self.open = fill;
    }

    /// A part of this fill goes to the images now.
    pub(super) fn apply(&mut self, fill: Fill) {
        self.touched = fill;
    }

    /// The images become something else, or the order begins anew, and with it the fills' numbers.
    pub(super) fn begin_anew(&mut self) {
        *self = Live { era: self.era + 1, ..Live::default() };
    }
}

impl Destination {
    /// The state that a read would be answered from now.
    pub fn view(&self) -> Result<View, Unreadable> {
        let (superblock, era) = (&self.superblock, self.live.era);
        if self.promoting || superblock.promoted {
            return Err(Unreadable::Promoting);
        }
        match superblock.staging.phase {
            Phase::Staging => return Ok(View { mark: superblock.staging.base, era }),
            Phase::Draining => return Err(Unreadable::Draining),
            Phase::Direct if !superblock.whole => return Err(Unreadable::NotWhole),
            Phase::Direct => {}
        }
        let unsure = |half: &Half| half.state == State::Open && half.fill <= self.live.found;
        let unsure = |half: &Half| unsure(half) && half.fill != self.live.open && !sings(Bug::LiveAfterStart);
        if self.halves.iter().any(unsure) {
            return Err(Unreadable::Unsure);
        }
        let mark = self.overlays().next_back().map_or(superblock.clean, |half| half.last);
        Ok(View { mark, era })
    }

    /// Complete fills that lie over the images, in order; one whose state is being written is on them as well.
    fn overlays(&self) -> impl DoubleEndedIterator<Item = &Half> {
        let [a, b] = &self.halves;
        let (first, second) = if a.fill <= b.fill { (a, b) } else { (b, a) };
        let direct = self.superblock.staging.phase == Phase::Direct;
        let both = direct && (first.state == State::Clean || first.ready());
        let shown = [(first, direct), (second, both)].into_iter().filter(|(half, shown)| *shown && half.ready());
        shown.map(|(half, _)| half)
    }

    /// Where the bytes of a range are in the view, which is returned. What is in memory must be copied at once.
    pub fn read(&self, volume: u16, range: Range<u64>, out: &mut Vec<Segment>) -> Result<View, Unreadable> {
        let view = self.view()?;
        let shown = self.overlays().filter(|_| !sings(Bug::LiveFromDevice));
        let mut indexes: [Option<&Index>; 2] = [None; 2];
        shown.zip(&mut indexes).for_each(|(half, index)| *index = Some(&half.index));
        match indexes {
            [Some(older), Some(newer)] => resolve(&[newer, older], volume, range, out),
            [Some(only), None] => resolve(&[only], volume, range, out),
            [None, _] => resolve(&[], volume, range, out),
        }
        Ok(view)
    }

    /// Whether what was read from the image, in these ranges and until now, is what this view has there.
    pub fn still_holds(&self, view: View, volume: u16, read: &[Range<u64>]) -> bool {
        if sings(Bug::LiveUnchecked) {
            return true;
        }
        if view.era != self.live.era || self.view().is_err() {
            return false;
        }
        // Later fills that went to the image, or began to, must be there to be looked into, and lie elsewhere.
        (view.mark.fill.0 + 1..=self.live.touched.0).map(Fill).all(|fill| {
            let half = &self.halves[fill.half()];
            let there = half.fill == fill && half.state == State::Sealed;
            there && !read.iter().any(|range| half.index.overlaps(volume, range))
        })
    }
}
