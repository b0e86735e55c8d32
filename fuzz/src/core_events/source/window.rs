//! Windows of a resync or a verify, as the engine reads them and asks for them.

use super::Driver;
use nbd_mirror::core::Place;
use nbd_mirror::core::copy::{Purpose, Window};
use nbd_mirror::core::half::{Entry, Ticket};
use nbd_mirror::format::frame::{Kind, RECORD_COPY, Record};
use nbd_mirror::format::wire::Report;
use nbd_mirror::limits::{CHUNK_BYTES, SUM_GRAIN_BYTES};

/// A window that is being read, and asked for.
pub struct Reading {
    number: usize,
    window: Window,
    /// The question was sent.
    told: bool,
    /// What the answer said.
    sums: Option<Sums>,
    read: bool,
    failed: bool,
    /// The connection over which it was asked for is gone.
    dropped: bool,
}

/// An answer.
#[derive(Clone, Copy)]
pub struct Sums {
    /// Which of eight blocks in a row are equal, a bit each.
    pub equal: u8,
    /// The destination doesn't know some of them.
    pub unknown: bool,
}

impl Driver {
    /// Starts reads.
    pub fn copy(&mut self, count: usize) {
        for _ in 0..count.max(1) {
            let Some((number, window)) = self.core.next_copy() else { return };
            assert!(self.peer, "a window that nobody is to get");
            assert!(window.length > 0 && window.offset + window.length <= self.volume_bytes);
            let (told, read, failed, dropped) = (false, false, false, false);
            self.readings.push(Reading { number, window, told, sums: None, read, failed, dropped });
            self.ops.push(super::operation::Op::Copy(number));
        }
    }

    /// A question is sent.
    pub fn asked(&mut self, id: u64, volume: u16, offset: u64, length: u32) {
        let is = |reading: &&mut Reading| !reading.dropped && reading.number as u64 == id;
        let reading = self.readings.iter_mut().find(is).expect("what is asked for is being read");
        let window = &reading.window;
        assert!(window.asked && !reading.told);
        assert_eq!((window.volume, window.offset, window.length), (volume, offset, length.into()));
        reading.told = true;
    }

    /// One of the questions is answered.
    pub fn answer(&mut self, which: usize, sums: Sums) {
        let waiting = |reading: &&mut Reading| reading.told && reading.sums.is_none() && !reading.dropped;
        let count = self.readings.iter_mut().filter(waiting).count();
        let Some(nth) = which.checked_rem(count) else { return };
        let reading = self.readings.iter_mut().filter(waiting).nth(nth).expect("they were counted");
        reading.sums = Some(sums);
        let (number, length) = (reading.number, reading.window.length);
        self.finish(number);
        let report = Report::Sums { id: number as u64, count: length.div_ceil(SUM_GRAIN_BYTES) as usize };
        self.report(Report::decode(&report.encode()).expect("a report of ours"));
    }

    /// A read that is under way will fail.
    pub fn fail_read(&mut self, which: usize) {
        let count = self.readings.len();
        if let Some(nth) = which.checked_rem(count) {
            self.readings[nth].failed |= !self.readings[nth].read;
        }
    }

    /// A window's bytes are there.
    pub fn was_read(&mut self, number: usize) {
        let reading = self.readings.iter_mut().find(|reading| reading.number == number && !reading.read);
        reading.expect("it is being read").read = true;
        self.finish(number);
    }

    /// Nobody answers any more.
    pub fn drop_questions(&mut self) {
        self.readings.iter_mut().for_each(|reading| reading.dropped = true);
        self.readings.retain(|reading| !reading.read);
    }

    /// Hands a window over once it is read and answered.
    fn finish(&mut self, number: usize) {
        let done =
            |reading: &Reading| reading.read && (reading.dropped || !reading.window.asked || reading.sums.is_some());
        let Some(at) = self.readings.iter().position(|reading| reading.number == number && done(reading)) else {
            return;
        };
        let reading = self.readings.swap_remove(at);
        if reading.dropped {
            return;
        }
        let purpose = self.core.copier().map(|copier| copier.purpose());
        let verifies = matches!(purpose, Some(Purpose::Verify { .. }));
        if reading.failed || (verifies && reading.sums.is_some_and(|sums| sums.unknown)) {
            return self.core.handle_uncopied("it can't be", &mut self.effects);
        }
        let send = purpose.is_some_and(|purpose| purpose != Purpose::Verify { repair: false });
        let equal = reading.sums.map_or(0, |sums| sums.equal);
        let (entries, differing) = self.compare(&reading.window, equal, send);
        self.core.handle_copied(number, entries, differing, &mut self.effects);
    }

    /// The runs that differ, and the records that hold them: every other one is zeros.
    fn compare(&mut self, window: &Window, equal: u8, send: bool) -> (Vec<Entry>, Vec<(u64, u64)>) {
        let (mut entries, mut differing) = (Vec::new(), Vec::<(u64, u64)>::new());
        let end = window.offset + window.length;
        for (index, offset) in (window.offset..end).step_by(SUM_GRAIN_BYTES as usize).enumerate() {
            let length = (end - offset).min(SUM_GRAIN_BYTES);
            if equal & (1 << (index % 8)) != 0 {
                continue;
            }
            match differing.last_mut() {
                Some((start, bytes)) if *start + *bytes == offset => *bytes += length,
                _ => differing.push((offset, length)),
            }
        }
        let chunks = |(start, bytes): &(u64, u64)| {
            let end = start + bytes;
            (*start..end).step_by(CHUNK_BYTES).map(move |at| (at, (end - at).min(CHUNK_BYTES as u64)))
        };
        for (index, (offset, length)) in differing.iter().flat_map(chunks).enumerate().filter(|_| send) {
            let kind = if index % 2 == 0 { Kind::Write } else { Kind::Trim };
            let place = if kind == Kind::Write { self.memory.take(length as usize) } else { Place(0) };
            let (volume, length) = (window.volume, length as u32);
            let record = Record { volume, kind, flags: RECORD_COPY, offset, length, checksum: 0 };
            entries.push(Entry { record, place, ticket: Ticket::NONE });
        }
        (entries, differing)
    }
}
