//! Windows of a resync or a verify: read, compared with the destination's checksums, and handed to the core as records.

use super::reads::Reading;
use super::{Op, SourceNode};
use crate::content::{BLOCK, SECTOR, crc, sum};
use crate::context::Context;
use crate::rare::Rare;
use nbd_mirror::core::Place;
use nbd_mirror::core::copy::{Purpose, Window};
use nbd_mirror::core::half::{Entry, Ticket};
use nbd_mirror::core::source::Source;
use nbd_mirror::format::frame::{Kind, RECORD_COPY, Record};
use nbd_mirror::format::wire::Sum;
use nbd_mirror::limits::{BLOCK_BYTES, CHUNK_BYTES, SUM_GRAIN_BYTES};
use std::ops::Range;

/// What is done with a part of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Equal,
    Zero,
    Data,
}

/// A window on its way: it needs what was read, and the destination's answer where it was asked for.
#[derive(Debug)]
pub(super) struct Copying {
    pub number: usize,
    pub window: Window,
    pub reading: Reading,
    pub read: bool,
    pub sums: Option<Vec<Sum>>,
    /// The connection over which it was asked for is gone.
    pub dropped: bool,
}

impl SourceNode {
    /// The destination's answer to a question.
    pub(super) fn answered(&mut self, id: u64, sums: Vec<Sum>, cx: &mut Context) {
        let asked = |copying: &&mut Copying| copying.number as u64 == id && !copying.dropped && copying.window.asked;
        let copying = self.copying.iter_mut().find(asked).expect("an answer to a question that wasn't asked");
        assert_eq!(sums.len() as u64, copying.window.length.div_ceil(SUM_GRAIN_BYTES), "an answer's length");
        assert!(copying.sums.is_none(), "a question is answered twice");
        let unknown = sums.contains(&Sum::default());
        cx.met.count_if(unknown, Rare::SumUnknown);
        self.verify_unknown |= unknown;
        copying.sums = Some(sums);
        self.copy_part_done(id as usize, cx);
    }

    pub(super) fn pump_copies(&mut self, cx: &mut Context) -> bool {
        let mut started = false;
        while let Some((number, window)) = self.core.as_mut().and_then(Source::next_copy) {
            let reading = self.begin_read(window.volume, window.offset, window.length);
            let number_and_offset = (number, window.offset);
            cx.met.count_if(self.windows.contains(&number_and_offset), Rare::WindowReadAgain);
            cx.met.count_if(!window.asked, Rare::WindowUnasked);
            self.windows.push(number_and_offset);
            self.copying.push(Copying { number, window, reading, read: false, sums: None, dropped: false });
            self.io.read(Op::Copy(number));
            started = true;
        }
        started
    }

    /// A window that is read, and answered for where it was asked for, is compared: what differs becomes records.
    pub(super) fn copy_part_done(&mut self, number: usize, cx: &mut Context) {
        let ready = |copying: &Copying| {
            let answered = !copying.window.asked || copying.sums.is_some() || copying.dropped;
            copying.number == number && copying.read && answered
        };
        let Some(at) = self.copying.iter().position(ready) else { return };
        let Copying { window, mut reading, sums, dropped, .. } = self.copying.swap_remove(at);
        if dropped {
            return cx.met.count(Rare::WindowOfAnEarlierCopy);
        }
        self.end_read(&mut reading);
        let core = self.core.as_ref().expect("a source that is up");
        let resync = core.copier().is_some_and(|copier| copier.purpose() == Purpose::Resync);
        let send = core.copier().is_some_and(|copier| copier.purpose() != Purpose::Verify { repair: false });
        let (mut entries, mut differing): (Vec<Entry>, Vec<(u64, u64)>) = (Vec::new(), Vec::new());
        for (index, piece) in reading.words.chunks(CHUNK_BYTES / SECTOR).enumerate() {
            // Runs of blocks that are alike: equal on both sides, zeros, or data.
            let mut runs: Vec<(Part, Range<usize>)> = Vec::new();
            for (block, words) in piece.chunks(BLOCK).enumerate() {
                let number = index * (CHUNK_BYTES / BLOCK_BYTES) + block;
                let part = match &sums {
                    Some(theirs) if theirs[number] == sum(words) => Part::Equal,
                    _ if words.iter().all(|word| *word == 0) => Part::Zero,
                    _ => Part::Data,
                };
                let (from, to) = (block * BLOCK, block * BLOCK + words.len());
                match runs.last_mut() {
                    Some((last, run)) if *last == part => run.end = to,
                    _ => runs.push((part, from..to)),
                }
            }
            for (part, run) in runs {
                let offset = window.offset + (index * CHUNK_BYTES + run.start * SECTOR) as u64;
                let length = (run.len() * SECTOR) as u64;
                if part == Part::Equal {
                    cx.met.count_if(resync, Rare::BlocksEqual);
                    continue;
                }
                match differing.last_mut() {
                    Some((start, bytes)) if *start + *bytes == offset => *bytes += length,
                    _ => differing.push((offset, length)),
                }
                if !send {
                    continue;
                }
                let zero = part == Part::Zero;
                let words = &piece[run];
                let record = Record {
                    volume: window.volume,
                    kind: if zero { Kind::Trim } else { Kind::Write },
                    flags: RECORD_COPY,
                    offset,
                    length: length as u32,
                    checksum: if zero { 0 } else { crc(words) },
                };
                let place = if zero { Place(0) } else { self.arena.store(words) };
                entries.push(Entry { record, place, ticket: Ticket::NONE });
            }
        }
        let core = self.core.as_mut().expect("a source that is up");
        core.handle_copied(number, entries, differing, &mut self.effects);
    }
}
