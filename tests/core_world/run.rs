//! What happens in a world, and what must hold.

use crate::destination::DestinationNode;
use crate::disk::{Crash, SECTOR};
use crate::history::payload;
use crate::link::{Link, Message};
use crate::source::VOLUMES;
use crate::world::World;
use nbd_mirror::core::Durability;
use nbd_mirror::core::half::State;
use nbd_mirror::format::frame::{Kind, RECORD_FUA, RECORD_NO_HOLE, Record};
use std::time::Duration;

/// Steps within which a healed world must have converged.
const PATIENCE: u64 = 100_000;

impl World {
    /// Lives through `steps` steps with faults, then heals everything or promotes.
    pub fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step(true);
        }
        if self.rng.chance(500) && self.destination.as_ref().unwrap().core.promotable() {
            self.promote();
        } else {
            self.heal();
        }
    }

    /// One thing happens.
    fn step(&mut self, faults: bool) {
        let w = &self.weights;
        let calm = [w.source_io, w.destination_io, w.to_destination, w.to_source, w.time, w.connect];
        let wild = [w.client, w.cut, w.source_crash, w.destination_crash, w.sync, w.ghost, w.wipe];
        let total: u64 = calm.iter().sum::<u64>() + if faults { wild.iter().sum() } else { 0 };
        let mut left = self.rng.below(total);
        let all = calm.iter().chain(&wild).copied().collect::<Vec<_>>();
        let choice = all.iter().position(|weight| {
            let hit = left < *weight;
            left = left.saturating_sub(*weight);
            hit
        });
        let how = if self.rng.chance(500) { Crash::Kill } else { Crash::Power };
        match choice.unwrap() {
            0 => self.source_io(),
            1 => self.destination_io(),
            2 => self.deliver_to_destination(),
            3 => self.deliver_to_source(),
            4 => self.pass_time(),
            5 => self.connect(),
            6 => self.client(),
            7 => self.link.cut(&mut self.rng),
            8 => self.crash_source(how),
            9 => self.crash_destination(how),
            10 => self.ask_for_sync(),
            11 => self.ghost_promote(how),
            _ => {
                self.note("the destination's folder is removed");
                self.link.destination_died(&mut self.rng);
                self.wipe_destination();
            }
        }
    }

    fn turn_source(&mut self) {
        let source = self.source.as_mut().unwrap();
        source.turn(self.now, &mut self.link, &mut self.known, &mut self.history);
    }

    fn turn_destination(&mut self) {
        self.destination.as_mut().unwrap().turn(&mut self.link, &mut self.known);
    }

    fn source_io(&mut self) {
        if self.source.as_mut().unwrap().complete(&mut self.rng) {
            self.turn_source();
        }
    }

    fn destination_io(&mut self) {
        if self.destination.as_mut().unwrap().complete(&mut self.rng) {
            self.turn_destination();
        }
    }

    fn deliver_to_destination(&mut self) {
        if self.link.to_destination.is_empty() {
            return;
        }
        // Several messages may arrive in one receive.
        for _ in 0..=self.rng.below(4) {
            self.destination.as_mut().unwrap().deliver(&mut self.link);
        }
        self.turn_destination();
        self.note("to destination");
        // There is room for more to be sent.
        self.turn_source();
    }

    fn deliver_to_source(&mut self) {
        for _ in 0..=self.rng.below(3) {
            let Some(message) = self.link.to_source.pop_front() else { break };
            let closed = matches!(message, Message::Closed);
            self.source.as_mut().unwrap().deliver(message);
            if closed {
                self.link.source_up = false;
            }
        }
        self.turn_source();
        self.note("to source");
    }

    /// Timers are the only reason for a turn without an event.
    fn pass_time(&mut self) {
        self.now += Duration::from_secs(self.rng.below(3));
        if self.source.as_ref().unwrap().core.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.turn_source();
        }
    }

    fn connect(&mut self) {
        let core = &self.source.as_ref().unwrap().core;
        if !self.link.source_up && !core.fenced() {
            self.link.connect(core.superblock().clone());
            self.note("connect");
        }
    }

    fn ask_for_sync(&mut self) {
        self.tokens += 1;
        self.source.as_mut().unwrap().core.handle_sync(self.tokens);
        self.turn_source();
    }

    /// A client does one thing, or many at once.
    fn client(&mut self) {
        for _ in 0..[1, 1, 4, 40][self.rng.below(4) as usize] {
            let source = self.source.as_mut().unwrap();
            if !source.core.accepting() || source.core.waiting() > 200 {
                break;
            }
            let volume = self.rng.below(self.history.model.len() as u64) as u16;
            let sectors = (self.history.model[usize::from(volume)].len() / SECTOR) as u64;
            let mut length = 1 + self.rng.below(self.largest.min(sectors));
            let mut offset = self.rng.below(sectors - length + 1);
            if self.rng.chance(500) {
                length = length.next_multiple_of(8).min(sectors);
                offset = (offset / 8 * 8).min(sectors - length);
            }
            let (offset, length) = (offset * SECTOR as u64, length * SECTOR as u64);
            if self.rng.chance(200) {
                let read = source.read(volume, offset, length);
                let model = &self.history.model[usize::from(volume)][offset as usize..(offset + length) as usize];
                assert!(read == model, "a read of {length} bytes at {offset} isn't what was answered last");
                continue;
            }
            let fua = if self.rng.chance(20) { RECORD_FUA } else { 0 };
            let (kind, flags) = match self.rng.below(20) {
                0 => (Kind::Trim, fua),
                1 => (Kind::WriteZeroes, fua | RECORD_NO_HOLE),
                2 if !source.core.flush_is_free() && self.rng.chance(500) => (Kind::Flush, 0),
                _ => (Kind::Write, fua),
            };
            let (offset, length) = if kind == Kind::Flush { (0, 0) } else { (offset, length as u32) };
            let record = Record { volume, kind, flags, offset, length, checksum: 0 };
            let bytes = match kind {
                Kind::Write => payload(self.history.next_request(), offset, length as usize),
                _ => Vec::new(),
            };
            source.request(record, &bytes, &mut self.history);
        }
        self.turn_source();
    }

    /// What if the destination crashed now, and were promoted?
    fn ghost_promote(&mut self, how: Crash) {
        let disks = self.destination.as_ref().unwrap().io.clone().crash(how, &mut self.rng);
        let mut ghost = DestinationNode::start(disks, &mut self.known);
        if ghost.core.promotable() {
            self.promotes += 1;
            let mut nowhere = Link::default();
            ghost.turn(&mut nowhere, &mut self.known);
            ghost.promote(&mut nowhere);
            ghost.turn(&mut nowhere, &mut self.known);
            self.finish_promote(ghost, how);
        }
    }

    /// Lets a promote come to its end, and compares the images.
    fn finish_promote(&mut self, mut node: DestinationNode, how: Crash) {
        let mut nowhere = Link::default();
        while node.promoted.is_none() {
            assert!(node.complete(&mut self.rng), "the promote waits for nothing: {:?}", node.core);
            node.turn(&mut nowhere, &mut self.known);
        }
        let mark = node.promoted.unwrap();
        let power = self.destination_power || how == Crash::Power;
        self.history.check_promises(mark.digest, power, "the promoted destination");
        for (volume, expected) in self.history.state(mark.digest).iter().enumerate() {
            let image = node.io.disks[VOLUMES + volume].stable();
            let differs = image.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "image {volume} isn't the order's prefix up to {mark}");
        }
    }

    /// A real promote, at a random moment and perhaps with crashes in it; afterwards the source gets nothing answered.
    fn promote(&mut self) {
        self.note("promote");
        self.promotes += 1;
        let node = self.destination.as_mut().unwrap();
        node.promote(&mut self.link);
        self.turn_destination();
        for _ in 0..self.rng.below(30) {
            self.destination_io();
            self.source_io();
        }
        let mut how = Crash::Kill;
        if self.rng.chance(300) && self.destination.as_ref().unwrap().promoted.is_none() {
            how = Crash::Power;
            self.crash_destination(how);
            // The operator asks again.
            self.destination.as_mut().unwrap().promote(&mut self.link);
            self.turn_destination();
        }
        while self.destination.as_ref().unwrap().promoted.is_none() {
            assert!(self.destination.as_mut().unwrap().complete(&mut self.rng), "the promote waits for nothing");
            self.turn_destination();
        }
        for step in 0.. {
            assert!(step < PATIENCE, "the source never learns that it was fenced");
            if self.source.as_ref().unwrap().core.fenced() {
                break;
            }
            if self.rng.chance(100) {
                self.client();
            }
            self.step(false);
        }
        for _ in 0..200 {
            self.source_io();
        }
        let node = self.destination.take().unwrap();
        self.finish_promote(node, how);
    }

    /// No more faults: both sides must come to hold the same.
    fn heal(&mut self) {
        self.note("heal");
        self.tokens += 1;
        let token = self.tokens;
        self.source.as_mut().unwrap().core.handle_sync(token);
        self.turn_source();
        for step in 0.. {
            let (source, destination) = (self.source.as_ref().unwrap(), self.destination.as_ref().unwrap());
            let quiet = source.io.idle() && destination.io.idle() && self.link.to_source.is_empty();
            let clean = source.core.halves().iter().all(|half| half.state == State::Clean);
            let whole = destination.core.promotable();
            if quiet && clean && whole && source.core.waiting() == 0 && self.link.to_destination.is_empty() {
                break;
            }
            if step >= PATIENCE {
                eprintln!(
                    "source: {:?} waiting {}",
                    source.core.halves().each_ref().map(|h| (h.fill, h.state, h.applied)),
                    source.core.waiting()
                );
                panic!("no end after {step} steps");
            }
            self.step(false);
        }
        let (source, destination) = (self.source.as_ref().unwrap(), self.destination.as_ref().unwrap());
        assert!(source.syncs_done.contains(&token), "the sync never ended");
        assert_eq!(source.core.superblock().clean, destination.core.superblock().clean);
        assert_eq!(source.allocations(), 0, "memory was not released");
        for (volume, model) in self.history.model.iter().enumerate() {
            assert!(source.read(volume as u16, 0, model.len() as u64) == *model, "volume {volume} reads wrongly");
            assert!(source.io.disks[VOLUMES + volume].stable() == model, "volume {volume} isn't the model");
            assert!(destination.io.disks[VOLUMES + volume].stable() == model, "image {volume} isn't the model");
        }
        let durable = self.shape.durability == Durability::Always;
        self.history.check_promises(source.core.superblock().clean.digest, !durable, "the healed pair");
        self.ghost_promote(Crash::Power);
    }
}
