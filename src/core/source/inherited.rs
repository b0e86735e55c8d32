//! Fills that the destination held when it was promoted, and hadn't applied yet.
//!
//! A promote doesn't wait for an apply: the images are served at once, by a source whose order goes on behind the last
//! record that was held. What isn't on the images is looked up in these fills, below the source's own halves, and goes to
//! the images behind, before anything of the source's own does. They need no word of their own when they are done: a
//! source of which something is clean has flushed a fill of its own, and so them before. Until then a start takes them
//! over again, and flushes them again, which brings the same bytes to the same places: what a newer fill had put there is
//! in that fill still.

use super::super::Place;
use super::super::flush::{self, Step};
use super::super::half::{Entry, Frame, Half, State};
use super::super::recovery::Recovered;
use super::{Effect, FrameId, Source};
use crate::canary::{Bug, sings};
use crate::format::ids::Seq;

impl Source {
    /// Takes over what was found at the promoted destination. `places` is as for [`Source::recover`]; none of these frames is
    /// ever sent, or written to the journal.
    pub fn inherit(&mut self, recovered: &Recovered, mut places: impl FnMut(FrameId, u64) -> (Place, Vec<Entry>)) {
        for found in [&recovered.first, &recovered.second] {
            let Some(fill) = found.first().map(|frame| frame.header.fill) else { continue };
            let mut half = Half::clean(fill, self.superblock.volumes.len());
            half.state = State::Flushing;
            for (index, frame) in found.iter().enumerate() {
                let position = frame.header.position;
                let (header, entries) = places(FrameId { fill, index }, position);
                let start = half.entries.len();
                // The images need what a resync brought as well.
                entries.iter().for_each(|entry| half.index.insert(&entry.record, entry.place));
                half.entries.extend(entries);
                let (first, bytes) = (frame.header.first, frame.header.frame_bytes());
                let entries = start..half.entries.len();
                half.frames.push(Frame { position, header, entries, first, mark: frame.mark, bytes, sync: false });
                half.last = frame.mark;
                half.end = position + bytes;
            }
            self.inherited.push_back(half);
        }
    }

    /// Fills of the promoted destination that aren't on the images yet.
    pub fn inherited(&self) -> usize {
        self.inherited.len()
    }

    /// The last record before them.
    pub fn before_inherited(&self) -> Option<Seq> {
        let first = self.inherited.front()?.frames.first()?.first;
        Some(Seq(first.0 - 1))
    }

    /// Moves them on, one after the other, and gives their memory back.
    pub(super) fn advance_inherited(&mut self, effects: &mut Vec<Effect>) {
        while let Some(half) = self.inherited.front_mut() {
            match half.flusher.step(&half.index) {
                Step::Sync(volumes) => {
                    effects.extend(flush::volumes(volumes).map(Effect::SyncVolume));
                    return;
                }
                Step::Writing | Step::Syncing => return,
                Step::Done => {
                    half.release(effects);
                    self.inherited.pop_front();
                }
            }
        }
    }

    /// The fill whose writes to the volumes are next.
    pub(super) fn flushing(&self) -> &Half {
        let own = &self.halves[self.superblock.clean.fill.next().half()];
        let first = if own_first(own) { None } else { self.inherited.front() };
        first.unwrap_or(own)
    }

    /// The same, to be changed.
    pub(super) fn flushing_mut(&mut self) -> &mut Half {
        let own = &mut self.halves[self.superblock.clean.fill.next().half()];
        let first = if own_first(own) { None } else { self.inherited.front_mut() };
        first.unwrap_or(own)
    }
}

/// Never, but for the canary.
fn own_first(own: &Half) -> bool {
    sings(Bug::FlushBeforeInherited) && own.state == State::Flushing
}

impl Half {
    /// Gives back the memory of its frames.
    pub(super) fn release(&self, effects: &mut Vec<Effect>) {
        for frame in &self.frames {
            effects.push(Effect::Release(frame.header, crate::limits::BLOCK_BYTES as u64));
        }
        super::frames::release(&self.entries, effects);
    }
}
