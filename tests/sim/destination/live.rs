//! Reads of the images while they are mirrored: from memory at once, from the image when it answers.
//!
//! Each must be exactly what the order's frames up to a boundary make of that range, one that the source has signalled,
//! and none before the boundary of an earlier read, whatever happened in between.

use super::{DestinationNode, Op};
use crate::content::{SECTOR, Word};
use crate::context::Context;
use crate::model::Model;
use crate::rare::Rare;
use crate::source::VOLUMES;
use nbd_mirror::core::destination::{Unreadable, View};
use nbd_mirror::core::index::{Found, Segment};
use nbd_mirror::format::ids::Mark;
use nbd_mirror::format::superblock::Phase;

/// A range that is being read.
#[derive(Debug)]
pub(super) struct LiveRead {
    view: View,
    volume: u16,
    offset: u64,
    words: Vec<Word>,
    segments: Vec<Segment>,
}

/// What a client was answered.
#[derive(Debug)]
pub(super) struct Answer {
    mark: Mark,
    volume: usize,
    start: usize,
    words: Vec<Word>,
}

impl DestinationNode {
    /// A client reads somewhere.
    pub fn read_live(&mut self, cx: &mut Context) {
        let Some(core) = &self.core else { return };
        let volumes = &core.superblock().volumes;
        let volume = cx.rng.below(volumes.len());
        let sectors = volumes[volume].size_bytes as usize / SECTOR;
        let largest = cx.rng.pick(&[8, 64, 512]);
        let length = 1 + cx.rng.below(sectors.min(largest));
        let offset = cx.rng.below(sectors - length + 1);
        self.begin_live(volume as u16, (offset * SECTOR) as u64, (length * SECTOR) as u64, cx);
    }

    fn begin_live(&mut self, volume: u16, offset: u64, length: u64, cx: &mut Context) {
        let core = self.core.as_ref().expect("looked at before");
        let mut segments = Vec::new();
        let view = match core.read(volume, offset..offset + length, &mut segments) {
            Ok(view) => view,
            Err(reason) => return cx.met.count_if(reason == Unreadable::Unsure, Rare::LiveUnsure),
        };
        assert!(view.mark.seq >= self.shown.seq, "live reads go back from {} to {}", self.shown, view.mark);
        self.shown = view.mark;
        cx.met.count_if(core.applies_under_way() > 0, Rare::LiveDuringApply);
        cx.met.count_if(core.superblock().staging.phase == Phase::Staging, Rare::LiveBase);
        // What the image has now, and what it has when it answers: a read under way may give either, sector by sector.
        let mut words = Vec::with_capacity(length as usize / SECTOR);
        for segment in &segments {
            let (from, count) = (segment.offset as usize / SECTOR, segment.length as usize / SECTOR);
            match segment.found {
                Found::Memory(place) => self.read_memory(place, segment.length, &mut words),
                Found::Zeros => words.resize(words.len() + count, 0),
                Found::Device => {
                    words.extend_from_slice(&self.io.disks[VOLUMES + usize::from(volume)].words()[from..from + count]);
                }
            }
        }
        let device = segments.iter().any(|segment| segment.found == Found::Device);
        let read = LiveRead { view, volume, offset, words, segments };
        if !device {
            return self.answer_live(read);
        }
        let free = self.live.iter().position(Option::is_none).unwrap_or_else(|| {
            self.live.push(None);
            self.live.len() - 1
        });
        self.live[free] = Some(read);
        self.io.read(Op::Live(free));
    }

    /// The image has answered.
    pub(super) fn end_live(&mut self, number: usize, cx: &mut Context) {
        let mut read = self.live[number].take().expect("a read under way");
        let image = self.io.disks[VOLUMES + usize::from(read.volume)].words();
        let device = read.segments.iter().filter(|segment| segment.found == Found::Device);
        for segment in device.clone() {
            let (from, count) = (segment.offset as usize / SECTOR, segment.length as usize / SECTOR);
            let at = from - read.offset as usize / SECTOR;
            for sector in 0..count {
                if cx.rng.chance(500) {
                    read.words[at + sector] = image[from + sector];
                }
            }
        }
        let ranges: Vec<_> = device.map(|segment| segment.offset..segment.offset + segment.length).collect();
        let core = self.core.as_ref().expect("it is up");
        if core.still_holds(read.view, read.volume, &ranges) {
            return self.answer_live(read);
        }
        cx.met.count(Rare::LiveReadAgain);
        let length = (read.words.len() * SECTOR) as u64;
        self.begin_live(read.volume, read.offset, length, cx);
    }

    fn answer_live(&mut self, read: LiveRead) {
        let LiveRead { view, volume, offset, words, .. } = read;
        let start = offset as usize / SECTOR;
        self.live_answers.push(Answer { mark: view.mark, volume: usize::from(volume), start, words });
    }

    /// Compares what was answered with the model.
    pub fn check_live(&mut self, model: &mut Model, cx: &Context) {
        for Answer { mark, volume, start, words } in self.live_answers.drain(..) {
            let signalled = self.sealed_to_promote || self.signalled.contains(&mark.digest.0);
            assert!(signalled, "a live read is of {mark}, which was never signalled");
            let state = &model.state(mark.digest)[volume][start..start + words.len()];
            let differs = words.iter().zip(state).position(|(a, b)| a != b).map(|at| start + at);
            assert_eq!(differs, None, "a live read of volume {volume} isn't as of {mark}: first sector that differs");
            cx.reads.set(cx.reads.get() + 1);
        }
    }
}
