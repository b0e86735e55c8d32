//! One world under one seed: sources and their mirrors, a life with faults, then peace.

use crate::content::Vault;
use crate::context::Context;
use crate::pair::{Event, Pair};
use crate::rare::{Met, Rare};
use crate::rng::Rng;
use crate::source::VOLUMES;
use nbd_mirror::core::half::State;
use nbd_mirror::core::policy::Mode;
use nbd_mirror::format::superblock::Staging;
use std::cell::Cell;
use std::time::Duration;

/// Events of a life with faults.
const LIFE: u64 = 2000;
/// Events of each pair within which a healed world must have converged.
const PATIENCE: u64 = 40_000;

pub struct World {
    pub cx: Context,
    pub pairs: Vec<Pair>,
    pub events: u64,
    /// Events that a pair needed to come into step after the last fault, at most.
    pub healing: u64,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> World {
        let mut cx = Context {
            rng: Rng::new(seed),
            vault: Vault::default(),
            met: Met::none(),
            now: Duration::ZERO,
            wire_rot: 0,
            rotten_frames: 0,
            words: 1,
            reads: Cell::new(0),
            trace,
        };
        cx.wire_rot = cx.rng.pick(&[0, 0, 0, 5]);
        let count = cx.rng.pick(&[1, 1, 1, 2, 3]);
        let pairs = (0..count).map(|number| Pair::new(number, &mut cx)).collect();
        World { cx, pairs, events: 0, healing: 0 }
    }

    /// Lives with faults, then heals everything and demands that it comes into step.
    pub fn run(&mut self) {
        if self.cx.rng.chance(500) {
            self.grow_up();
        }
        let life = self.events + self.cx.rng.pick(&[LIFE, LIFE, LIFE, 3 * LIFE]);
        while self.events < life {
            let number = self.cx.rng.below(self.pairs.len());
            self.step(number, false);
        }
        self.heal();
        let shorts =
            self.pairs.iter().map(|pair| pair.source.io.short_writes + pair.mirror.io.short_writes).sum::<u64>();
        self.cx.met.count_if(shorts > 0, Rare::ShortWrite);
    }

    /// The first sync ends before the first fault: what comes later is a resync.
    fn grow_up(&mut self) {
        for number in 0..self.pairs.len() {
            let start = self.events;
            while !self.settled(number) && self.events - start < PATIENCE {
                self.step(number, true);
            }
        }
    }

    /// One thing happens to one of the pairs.
    fn step(&mut self, number: usize, calm: bool) {
        let event = self.pairs[number].choose(calm, &mut self.cx);
        if self.cx.trace {
            eprintln!("{:6} {number} {:16} | {}", self.events, format!("{event:?}"), self.pairs[number].describe());
        }
        self.events += self.pairs[number].happen(event, calm, &mut self.cx) as u64;
        if event == Event::CrashMirror && self.cx.rng.chance(500) {
            // The machine, not only this source's engine on it.
            for other in (0..self.pairs.len()).filter(|other| *other != number) {
                if !self.pairs[other].mirror.down() {
                    self.pairs[other].crash_mirror(crate::disk::Crash::Power, &mut self.cx);
                }
            }
        }
    }

    /// No more faults: each pair must come to an end, and both sides to hold the same.
    fn heal(&mut self) {
        self.cx.wire_rot = 0;
        for number in 0..self.pairs.len() {
            let (mut token, start) = (None, self.events);
            while !self.settled(number) || token.is_none() {
                // A sync is asked for as soon as the source is up; a second one would be given to another fill.
                if token.is_none() && self.pairs[number].source.core.is_some() {
                    token = Some(self.pairs[number].sync(&mut self.cx));
                }
                self.pairs[number].give_room(&mut self.cx);
                if self.pairs[number].promoting() && self.pairs[number].promoted.is_none() {
                    self.promote_again(number);
                }
                self.step(number, true);
                let late = self.events - start > PATIENCE;
                assert!(!late, "no end after {PATIENCE} events without a fault: {}", self.pairs[number].describe());
            }
            self.healing = self.healing.max(self.events - start);
            self.check_end(number, token.expect("asked above"));
            if self.pairs[number].promoted.is_none() && self.cx.rng.chance(100) {
                self.verify(number);
            }
        }
    }

    /// Both sides are compared by the very means of the program.
    fn verify(&mut self, number: usize) {
        let (before, start) = (self.pairs[number].source.verified, self.events);
        while self.pairs[number].source.verified == before {
            let under_way = self.pairs[number].source.core.as_ref().is_some_and(|core| core.copier().is_some());
            if !under_way {
                self.pairs[number].verify(false, &mut self.cx);
            }
            self.step(number, true);
            assert!(self.events - start < PATIENCE, "a verify has no end: {}", self.pairs[number].describe());
        }
    }

    fn promote_again(&mut self, number: usize) {
        let pair = &mut self.pairs[number];
        if pair.mirror.core.as_ref().is_some_and(|core| core.promotable()) {
            pair.happen(Event::Promote, true, &mut self.cx);
        }
    }

    fn settled(&self, number: usize) -> bool {
        let pair = &self.pairs[number];
        let (Some(source), Some(mirror)) = (&pair.source.core, &pair.mirror.core) else { return false };
        if let Some((node, _)) = &pair.promoted {
            let Some(core) = &node.core else { return false };
            return pair.source.fenced() && node.io.idle() && pair.source.io.idle() && core.waiting() == 0;
        }
        let quiet = pair.source.io.idle() && pair.mirror.io.idle();
        let delivered = pair.link.to_source.is_empty() && pair.link.to_destination.is_empty();
        let clean = source.halves().iter().all(|half| half.state == State::Clean);
        let state = mirror.superblock();
        let there = state.whole && state.staging == Staging::default() && !pair.promoting();
        let here = source.superblock().whole && source.copier().is_none() && source.dirty_bytes() == 0;
        let in_step = source.mode() == Mode::Together && there && here;
        quiet && delivered && clean && source.waiting() == 0 && in_step
    }

    fn check_end(&mut self, number: usize, token: u64) {
        let pair = &mut self.pairs[number];
        if let Some((node, model)) = &mut pair.promoted {
            let core = node.core.as_ref().expect("it has settled");
            assert_eq!(core.committed(), core.last(), "the promoted source leaves records unanswered");
            let end = model.end();
            let state = model.state(end);
            assert!(state == model.now, "the promoted source has records that nobody was told of");
            for volume in 0..state.len() as u16 {
                let bytes = (state[usize::from(volume)].len() * crate::content::SECTOR) as u64;
                node.read(volume, 0, bytes, model, &mut self.cx);
                while !node.io.idle() {
                    node.step(Default::default(), model, &mut self.cx).expect("a disk without faults");
                }
            }
            return;
        }
        let (source, mirror) = (pair.source.core.as_ref(), pair.mirror.core.as_ref());
        let (source, mirror) = (source.expect("it has settled"), mirror.expect("it has settled"));
        assert!(pair.source.syncs_done.contains(&token), "the sync never ended");
        assert_eq!(source.superblock().clean, mirror.superblock().clean);
        assert_eq!(pair.source.memory(), 0, "memory wasn't released");
        pair.model.check(source.superblock().clean.digest, false);
        pair.model.all_seen();
        let state = pair.model.state(source.superblock().clean.digest);
        for (volume, expected) in state.iter().enumerate() {
            assert!(pair.model.now[volume] == *expected, "answers and frames differ on volume {volume}");
            assert!(pair.source.io.disks[VOLUMES + volume].stable() == expected, "volume {volume} isn't the model");
            assert!(pair.mirror.io.disks[VOLUMES + volume].stable() == expected, "image {volume} isn't the model");
        }
    }
}
