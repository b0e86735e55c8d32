//! What a connected source says, and what is acknowledged.
//!
//! An acknowledgement names the last record of the contiguous stored prefix. In durability `always` each journal
//! write is stable by itself; with `flush` a frame that asks for it, and all before it, is synced first.

use super::super::Place;
use super::super::recovery::{Rescanned, follows};
use super::heard::stamp;
use super::nvram::Nvram;
use super::{Destination, Effect, Half, Pending, State, StoreOp, Writing};
use crate::canary::{Bug, sings};
use crate::format::frame::{FLAG_STABLE, FLAG_SYNC, Header, Record};
use crate::format::ids::{Digest, Mark, Seq};
use crate::format::superblock::Phase;
use crate::format::wire::{Report, Signal};
use std::time::Duration;

/// Bytes that make another journal write worth its system call while others are under way.
const GATHER_BYTES: u64 = 32 << 10;
/// Journal writes under way at which frames gather even so: there are never more.
pub const MAX_STORES: usize = 4;

impl Destination {
    /// A source was welcomed, at this moment or later.
    pub fn handle_connected(&mut self, now: Duration) {
        (self.connected, self.resumed) = (true, false);
        self.settling = None;
        self.heard.meet(now);
    }

    /// The connection is gone: what was received but isn't being stored is forgotten. A restart goes on to its end, as
    /// frames may have come behind it already; a fill that was sealed to settle stays sealed.
    pub fn handle_disconnected(&mut self) {
        (self.connected, self.resumed) = (false, false);
        self.settling = None;
        self.asks.forget();
        self.pending.truncate(self.handed);
        self.forget_unhanded();
    }

    /// Sets what counts as received back to what was handed to the journal files.
    pub(super) fn forget_unhanded(&mut self) {
        self.received = self.pending.back().map_or(self.stored, |pending| pending.mark);
        for half in &mut self.halves {
            half.received = half.handed;
            if half.state == State::Open && half.handed == 0 {
                half.state = State::Clean;
            }
        }
    }

    /// The source gave a signal. `rescan` finds the frames of a fill that are stored in its half, from the boundary
    /// before it to the given mark. An error closes the connection.
    pub fn handle_signal(
        &mut self,
        now: Duration,
        signal: Signal,
        rescan: &mut dyn FnMut(Mark, Mark) -> Vec<Rescanned>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), String> {
        match signal {
            // Also while it settles or drains: it only says that somebody is there.
            Signal::Ping(ping) => {
                self.heard.take(now, ping);
                effects.push(Effect::Report(Report::Pong { stamp: stamp(now) }));
                Ok(())
            }
            Signal::Resume { common } => self.resume(common, rescan, effects),
            Signal::Settle { common } => self.settle(common, rescan, effects),
            Signal::Restart { at } => self.restart(at, effects),
            Signal::Sync { .. } | Signal::Ask { .. } | Signal::TakeOver { .. } if !self.resumed => {
                Err(self.staging_trouble().unwrap_or_else(|| "the source signals before it resumed".into()))
            }
            Signal::TakeOver { at } => {
                if at != self.stored || self.received != self.stored || self.acked < at.seq {
                    return Err(format!("the source hands over at {at}, but {} is stored here", self.stored));
                }
                if !self.promotable() || self.superblock.staging.phase != Phase::Direct {
                    return Err("the source hands over, but a resync isn't on the images yet: try again later".into());
                }
                effects.push(Effect::TakeOver);
                Ok(())
            }
            Signal::Sync { last, whole } => self.seal(last, whole, effects),
            Signal::Ask { id, volume, offset, length } => self.ask(id, volume, offset, length),
        }
    }

    /// What [`Effect::Erase`] asked for is durable.
    pub fn handle_erased(&mut self) {
        self.erasing -= 1;
    }

    /// Whether a frame with this header may come now; checked before its payload is waited for.
    pub fn admit(&self, header: &Header) -> Result<(), String> {
        let ours = &self.superblock;
        if !self.resumed {
            return Err(self.staging_trouble().unwrap_or_else(|| "a frame before the source resumed".into()));
        }
        if header.epoch != ours.epoch {
            return Err(format!("a frame of epoch {}, this is epoch {}", header.epoch, ours.epoch));
        }
        let half = &self.halves[header.fill.half()];
        let next = header.fill == self.received.fill.next();
        let position = if half.fill == header.fill && half.state == State::Open { half.received } else { 0 };
        let free = match half.state {
            State::Clean => next,
            State::Open => half.fill == header.fill,
            State::Sealed => false,
        };
        let earlier_sealed = !next || self.halves[1 - header.fill.half()].state != State::Open;
        if !free || !earlier_sealed {
            return Err(format!("a frame of fill {} while fill {} isn't done with", header.fill, half.fill));
        }
        follows(header, ours.source, header.fill, position, self.received)?;
        if header.position + header.frame_bytes() > ours.half_bytes {
            return Err(format!("frame at byte {} exceeds the half", header.position));
        }
        Ok(())
    }

    /// A frame that [`Destination::admit`] let in is complete in memory, and its payloads' checksums are right.
    pub fn handle_frame(
        &mut self,
        header: &Header,
        digest: Digest,
        records: Vec<(Record, Place)>,
    ) -> Result<(), String> {
        for (record, _) in &records {
            let volume = self.superblock.volumes.get(usize::from(record.volume));
            if volume.is_none_or(|volume| record.end() > volume.size_bytes) {
                return Err(format!(
                    "a record beyond its volume (volume {}, {} bytes from byte {})",
                    record.volume, record.length, record.offset
                ));
            }
        }
        let half = &mut self.halves[header.fill.half()];
        if half.state == State::Clean {
            let volumes = self.superblock.volumes.len();
            *half = Half { fill: header.fill, state: State::Open, ..Half::clean(volumes) };
        }
        half.received = header.position + header.frame_bytes();
        self.live.open(header.fill);
        self.received = Mark { fill: header.fill, seq: header.last(), digest };
        self.vouched = self.vouched.max(header.committed);
        let end = half.received;
        self.pending.push_back(Pending { mark: self.received, end, flags: header.flags, records });
        Ok(())
    }

    /// The next write to a journal file, when one is due: one for all complete frames that lie side by side.
    pub fn next_store(&mut self) -> Option<StoreOp> {
        let first = self.pending.get(self.handed)?;
        let half = &self.halves[first.mark.fill.half()];
        let gathered = half.received - half.handed;
        let under_way = self.writing.len();
        let waits = self.starting_over && !sings(Bug::RestartVolatile);
        if waits || self.erasing > 0 || (under_way > 0 && (gathered < GATHER_BYTES || under_way >= MAX_STORES)) {
            return None;
        }
        let (fill, start) = (first.mark.fill, half.handed);
        let room = self.nvram.as_mut().and_then(|nvram| nvram.room(fill.half(), start, first.end - start));
        let fits = |pending: &&Pending| pending.mark.fill == fill && pending.end - start <= room.unwrap_or(u64::MAX);
        let (mut count, mut end, mut stable) = (0, start, false);
        for pending in self.pending.iter().skip(self.handed).take_while(fits) {
            count += 1;
            end = pending.end;
            stable |= pending.flags & FLAG_STABLE != 0;
        }
        let before =
            self.handed.checked_sub(1).and_then(|last| self.pending.get(last)).map_or(self.stored, |last| last.mark);
        let place = |nvram: &mut Nvram| nvram.place(fill.half(), start, end, fill, before);
        let log = self.nvram.as_mut().filter(|_| room.is_some()).and_then(place);
        let half = &mut self.halves[fill.half()];
        half.logged += u32::from(log.is_some_and(|place| place.begins.is_some()));
        half.handed = end;
        let op = StoreOp { half: fill.half(), start, end, stable: stable || log.is_some(), log };
        self.handed += count;
        self.writing.push_back(Writing { op, frames: count, done: false });
        Some(op)
    }

    /// A write that [`Destination::next_store`] gave is complete.
    pub fn handle_stored(&mut self, op: StoreOp, effects: &mut Vec<Effect>) {
        if let Some(writing) = self.writing.iter_mut().find(|writing| writing.op == op) {
            writing.done = true;
        }
        while self.writing.front().is_some_and(|writing| writing.done)
            && let Some(done) = self.writing.pop_front()
        {
            self.handed -= done.frames;
            for pending in self.pending.drain(..done.frames) {
                // Acknowledging a stable frame acknowledges all before it, in the other file as well: those of a source
                // that ran with another durability may not be stable yet.
                let behind = pending.flags & FLAG_STABLE != 0 && self.halves.iter().any(|half| half.volatile);
                // In the log it is stable; what was written to the files before may not be.
                let logged = done.op.log.is_some();
                let to_sync =
                    pending.flags & FLAG_SYNC != 0 && (!logged || self.halves.iter().any(|half| half.volatile));
                let half = &mut self.halves[pending.mark.fill.half()];
                pending.records.iter().for_each(|(record, place)| half.index.insert(record, *place));
                if sings(Bug::ApplyOutOfOrder) {
                    pending.records.iter().rev().for_each(|(record, place)| half.index.insert(record, *place));
                }
                half.records += pending.records.len() as u64;
                half.stored = pending.end;
                half.last = pending.mark;
                half.volatile |= !logged && (!done.op.stable || pending.flags & FLAG_SYNC != 0);
                if to_sync || behind {
                    self.unsynced.push_back((self.stored.seq.next(), pending.mark.seq));
                }
                self.stored = pending.mark;
                self.boundaries.push_back((pending.mark, pending.end));
            }
        }
        self.acknowledge(effects);
    }

    /// What was written to the file when the sync was asked for is stable.
    pub fn handle_file_synced(&mut self, effects: &mut Vec<Effect>) {
        if let Some((_, left @ 2..)) = &mut self.syncing {
            *left -= 1;
        } else if let Some((seq, _)) = self.syncing.take() {
            self.synced = self.synced.max(seq);
            self.unsynced.retain(|(_, last)| *last > seq);
            for half in self.halves.iter_mut().filter(|half| half.last.seq <= seq) {
                half.volatile = false;
            }
            if !self.halves.iter().any(|half| half.volatile) {
                self.unsynced.clear();
            }
            self.acknowledge(effects);
        }
    }

    fn acknowledge(&mut self, effects: &mut Vec<Effect>) {
        let unsynced = self.unsynced.front().filter(|_| !sings(Bug::AcknowledgeUnsynced));
        let safe = unsynced.map_or(self.stored.seq, |(first, _)| Seq(first.0 - 1));
        if safe > self.acked {
            self.acked = safe;
            if self.connected && self.resumed {
                effects.push(Effect::Report(Report::Stored(safe)));
            }
        }
    }

    pub(super) fn sync_if_due(&mut self, effects: &mut Vec<Effect>) {
        let sealed = |half: &Half| half.state == State::Sealed && half.volatile && half.stored == half.received;
        let left = |half: &Half| half.state != State::Clean && half.volatile && !self.connected;
        let due = !self.unsynced.is_empty() || self.halves.iter().any(|half| sealed(half) || left(half));
        if self.syncing.is_none() && due {
            // Each sync empties a disk's cache: only files that were written to are worth one.
            let files = (0..2).filter(|half| self.halves[*half].volatile).map(Effect::SyncFile);
            let before = effects.len();
            effects.extend(files);
            self.syncing = Some((self.stored.seq, (effects.len() - before) as u32));
        }
    }

    fn seal(&mut self, last: Mark, whole: bool, effects: &mut Vec<Effect>) -> Result<(), String> {
        let applied = self.superblock.clean;
        if last.fill <= applied.fill {
            if last.fill == applied.fill && (last.seq, last.digest) != (applied.seq, applied.digest) {
                return Err(format!("fill {} ended at {applied} here, at {last} at the source", last.fill));
            }
            // Applied before the connection was lost; the report went with it. What is being written is reported then.
            if !self.state_writing && !self.state_dirty {
                effects.push(Effect::Report(Report::Applied(applied)));
            }
            return Ok(());
        }
        // The source signals only what we acknowledged, so all of it is stored.
        let half = &mut self.halves[last.fill.half()];
        if half.fill != last.fill || half.state == State::Clean || half.last != last {
            return Err(format!("the sync signal is for {last}, but fill {} is at {} here", half.fill, half.last));
        }
        if half.received != half.stored {
            return Err(format!("the sync signal is for {last}, but frames of fill {} came behind it", last.fill));
        }
        self.verified = self.verified.max(last.seq);
        half.state = State::Sealed;
        half.whole = whole;
        // A fill before it is complete as well; a source that went on alone for a while no longer knows its end.
        let before = &mut self.halves[1 - last.fill.half()];
        if before.state == State::Open && before.fill < last.fill {
            before.state = State::Sealed;
        }
        Ok(())
    }
}
