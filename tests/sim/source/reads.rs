//! Reads of clients and of windows: from memory at once, from the device when it answers.

use super::{Op, SourceNode, VOLUMES};
use crate::content::{SECTOR, Word};
use crate::context::Context;
use crate::model::Model;
use crate::rare::Rare;
use nbd_mirror::core::index::{Found, Segment};

/// A range that is being read: what came from memory, and what the device has still to give.
#[derive(Debug)]
pub(super) struct Reading {
    pub volume: u16,
    pub start: usize,
    pub words: Vec<Word>,
    pub segments: Vec<Segment>,
}

/// A client's read, with what the model said when it began.
#[derive(Debug)]
pub(super) struct ClientRead {
    pub reading: Reading,
    pub then: Vec<Word>,
    pub moment: usize,
}

impl SourceNode {
    /// What is in memory is taken at once, what is on the device is read later.
    pub(super) fn begin_read(&self, volume: u16, offset: u64, length: u64) -> Reading {
        let core = self.core.as_ref().expect("a source that is up");
        let mut segments = Vec::new();
        core.read(volume, offset..offset + length, &mut segments);
        let mut words = Vec::with_capacity(length as usize / SECTOR);
        for segment in &segments {
            match segment.found {
                Found::Memory(place) => self.arena.read(place, segment.length, &mut words),
                Found::Zeros | Found::Device => words.resize(words.len() + segment.length as usize / SECTOR, 0),
            }
        }
        Reading { volume, start: offset as usize / SECTOR, words, segments }
    }

    pub(super) fn end_read(&self, reading: &mut Reading) {
        let device = self.io.disks[VOLUMES + usize::from(reading.volume)].words();
        for segment in reading.segments.iter().filter(|segment| segment.found == Found::Device) {
            let (from, count) = (segment.offset as usize / SECTOR, segment.length as usize / SECTOR);
            let at = from - reading.start;
            reading.words[at..at + count].copy_from_slice(&device[from..from + count]);
        }
    }

    /// A client reads; what it gets is checked when the device has answered.
    pub fn read(&mut self, volume: u16, offset: u64, length: u64, model: &Model, cx: &mut Context) {
        let reading = self.begin_read(volume, offset, length);
        let then = model.now[usize::from(volume)][reading.start..reading.start + reading.words.len()].to_vec();
        let device = reading.segments.iter().any(|segment| segment.found == Found::Device);
        let read = ClientRead { reading, then, moment: model.moment() };
        if !device {
            return self.check_read(read, model, cx);
        }
        let flushing = self.core.as_ref().is_some_and(|core| core.flushes_under_way() > 0);
        cx.met.count_if(flushing, Rare::ReadDuringFlush);
        let free = self.reads.iter().position(Option::is_none).unwrap_or_else(|| {
            self.reads.push(None);
            self.reads.len() - 1
        });
        self.reads[free] = Some(read);
        self.io.read(Op::Read(free));
    }

    pub(super) fn check_read(&self, mut read: ClientRead, model: &Model, cx: &Context) {
        self.end_read(&mut read.reading);
        let Reading { volume, start, words, .. } = &read.reading;
        for (index, (word, then)) in words.iter().zip(&read.then).enumerate() {
            let right = word == then || model.allows(*word, *then, read.moment, usize::from(*volume), start + index);
            assert!(right, "a read of sector {} of volume {volume} isn't what was answered last", start + index);
        }
        cx.reads.set(cx.reads.get() + 1);
    }
}
