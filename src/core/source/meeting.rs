//! How the source goes on with a destination that answered its hello.
//!
//! Within an epoch the source is the authority. On connecting, the destination names the last frames it holds; the
//! newest that this source knows is the common one. Where its journal still reaches back to it, everything after it is
//! sent again. Where it doesn't, but the dirty bitmap does, the order begins anew and a resync follows.
//!
//! The destination drops what it holds beyond the common frame, so that must be the last one that both have: what was
//! answered as stable may be before it. Not all that it holds fits into a welcome. But the two part only where a crash took
//! something from the source, which is where one of its runs ended; so the hello asks for those boundaries.

use super::super::grains::Grains;
use super::super::half::State;
use super::super::recovery::Found;
use super::super::recovery::welcome::{self as meeting, Action, Applied, Fence, Held, Here, There};
use super::link::{First, LOST, Link};
use super::{Effect, Source};
use crate::canary::{Bug, sings};
use crate::format::ids::{Mark, Seq};
use crate::format::superblock::Superblock;
use crate::format::wire::{Signal, Welcome};
use crate::limits::MAX_KNOWN_MARKS;
use std::cmp::Ordering;

/// The remedy where the two have parted.
const REMEDY: &str = "If this source's volumes are right, remove the destination's folder of this source, and everything \
                      is copied again";

/// Where runs of this source ended, by the frames that a start has found. There are two at the most: what a start finds in
/// a half is sealed, and the next run goes on in the other.
pub(super) fn ends_of_runs<'a>(frames: impl Iterator<Item = &'a Found>) -> Vec<Mark> {
    let mut ends: Vec<(u64, Mark)> = Vec::new();
    for Found { header, mark } in frames {
        match ends.last_mut() {
            Some((run, end)) if *run == header.incarnation => *end = *mark,
            _ => ends.push((header.incarnation, *mark)),
        }
    }
    ends.into_iter().map(|(_, end)| end).collect()
}

impl Source {
    /// Whether a destination's welcome may be handled now: not while a half is being called clean, for the destination
    /// may be at a frame in it.
    pub fn ready_to_meet(&self) -> bool {
        self.retiring.is_none() && !self.map_writing && !self.halves.iter().any(|half| half.retiring)
    }

    /// A destination answered our hello.
    pub fn handle_welcome(&mut self, welcome: &Welcome, effects: &mut Vec<Effect>) {
        self.handle_welcome_of(welcome, None, effects);
    }

    /// A destination answered our hello, which was the source before and was fenced by the promote that made this one.
    /// `lacks`: where it may differ from what was promoted.
    pub fn handle_welcome_of(&mut self, welcome: &Welcome, lacks: Option<&Grains>, effects: &mut Vec<Effect>) {
        let newest_of =
            |known: &dyn Fn(Mark) -> bool| welcome.boundaries.iter().rev().find(|mark| known(**mark)).copied();
        let common = newest_of(&|mark| self.knows(mark));
        let known = newest_of(&|mark| self.superblock.known.contains(&mark));
        // The journal says nothing of what was written past it: it is compared, as behind a boundary long gone. Nobody wrote
        // past it before all of it was clean; so whoever is beyond that is being brought what differs already.
        let since = common.is_some_and(|mark| mark.seq > self.superblock.clean.seq);
        let (common, known) =
            if self.superblock.unwatched && !since { (None, known.or(common)) } else { (common, known) };
        let newest = welcome.boundaries.last().copied().unwrap_or(welcome.applied);
        let last_common =
            |mark: &Mark| *mark == newest || sings(Bug::ForgetRuns) || self.parts_at().any(|end| end == *mark);
        // Only some boundaries are remembered. A destination between two of them would have to drop what it may have been
        // told to be stable on both sides, and it refuses that, rightly; so it is compared as a whole.
        let known = known.filter(|mark| *mark == newest || newest.seq >= self.superblock.clean.seq);
        let found = meeting::Found {
            verdict: welcome.verdict.into(),
            epochs: match welcome.epoch.cmp(&self.superblock.epoch) {
                Ordering::Less => meeting::Epochs::Older,
                Ordering::Equal => meeting::Epochs::Same,
                Ordering::Greater => meeting::Epochs::Newer,
            },
            fence: if self.fenced() { Fence::Fenced } else { Fence::Free },
            held: match (common, known) {
                _ if welcome.fresh => Held::Nothing,
                (Some(common), _) if last_common(&common) => Held::Common,
                (Some(_), _) => Held::Vague,
                (None, Some(_)) => Held::Known,
                (None, None) if newest.seq > self.last.seq => Held::Ahead,
                (None, None) if newest.seq < self.superblock.clean.seq => Held::Older,
                (None, None) => Held::Forked,
            },
            applied: self.compare_applied(welcome.applied),
            there: if welcome.whole { There::Whole } else { There::Partial },
            here: if self.superblock.whole { Here::Whole } else { Here::Partial },
        };
        let (epoch, ours) = (welcome.epoch, self.superblock.epoch);
        let (clean, last) = (self.superblock.clean, self.last);
        let reach = format!("it has {clean} to {last}");
        let action = found.decide().action;
        if action != Action::GiveUp && action != Action::StayFenced {
            self.hand_over_refused();
        }
        if matches!(action, Action::ResumeCopy | Action::Resync) && !welcome.whole {
            // Before anything is told to it; a restart waits until the marks are stored.
            lacks.into_iter().for_each(|lacks| self.dirty.mark_all(lacks));
        }
        let close = match action {
            Action::StayFenced => return self.handle_fenced(epoch, effects),
            Action::StartOver => {
                self.mark_all();
                return self.begin_anew(effects);
            }
            Action::Resync => return self.settle(known.unwrap_or(newest), effects),
            Action::ResyncAll => {
                self.mark_all();
                return self.settle(known.unwrap_or(newest), effects);
            }
            Action::Resume | Action::ResumeCopy | Action::ResumeCopyAgain => {
                return self.resume(action, common.unwrap_or(clean), found.applied, welcome, effects);
            }
            Action::GiveUp => welcome.reason.clone(),
            Action::CloseOlder => {
                format!("the destination lives in epoch {epoch}, this source in {ours}: it is out of date. {REMEDY}")
            }
            Action::CloseFenced => {
                format!("this source was fenced: another side was promoted in epoch {}", self.superblock.fenced_by)
            }
            Action::PartedAhead => format!(
                "the destination holds {newest}, but this source's journal ends at {last}: the two have parted, and the \
                 destination may hold answered writes that are lost here. Promote it; or, if this source's volumes are \
                 right all the same, remove the destination's folder of this source, and everything is copied again"
            ),
            Action::PartedForked => format!(
                "the destination holds {newest}, which isn't in this source's journal ({reach}): the two have parted. {REMEDY}"
            ),
            Action::CloseVague => format!(
                "the destination holds {newest}, which isn't in this source's journal ({reach}), and where the two have \
                 parted can't be told: it doesn't name what it was asked for, as if it were of an older version. {REMEDY}"
            ),
            Action::PartedApplied => format!(
                "the destination applied {}, which this source never called complete ({reach}): the two have parted. \
                 {REMEDY}",
                welcome.applied
            ),
        };
        effects.push(Effect::ClosePeer(close));
    }

    /// What a destination applied, against what it was told to.
    fn compare_applied(&self, applied: Mark) -> Applied {
        let same = |ours: Mark| (ours.seq, ours.digest) == (applied.seq, applied.digest);
        let clean = self.superblock.clean;
        let half = &self.halves[applied.fill.half()];
        match applied.fill.cmp(&clean.fill) {
            // Complete before that fill went on here: the order began anew at its end, or it was settled in the middle.
            _ if applied.seq < clean.seq => Applied::Behind,
            Ordering::Less => Applied::Behind,
            Ordering::Equal if same(clean) => Applied::Fits,
            Ordering::Greater if half.fill == applied.fill && half.state >= State::Sealed && same(half.last) => {
                Applied::Fits
            }
            _ => Applied::Other,
        }
    }

    /// What this source says of itself. In the place of the boundaries beyond its journal it has those that it asks for:
    /// those at which the two may have parted, and the newest ones of the former.
    pub fn hello(&self) -> Superblock {
        let mut known: Vec<Mark> = self.parts_at().collect();
        if !sings(Bug::ForgetRuns) {
            let beyond = self.superblock.known.iter().rev().filter(|mark| !known.contains(mark)).copied();
            let beyond: Vec<Mark> = beyond.take(MAX_KNOWN_MARKS - known.len()).collect();
            known.extend(beyond);
        }
        Superblock { known, ..self.superblock.clone() }
    }

    /// Boundaries at which a destination may have parted from this source.
    fn parts_at(&self) -> impl Iterator<Item = Mark> {
        let asked = if sings(Bug::ForgetRuns) { &[] } else { &self.ends[..] };
        [self.superblock.clean].into_iter().chain(asked.iter().copied())
    }

    /// Whether a boundary is one that the journal reaches back to.
    fn knows(&self, mark: Mark) -> bool {
        let same = |ours: Mark| ours.seq == mark.seq && ours.digest == mark.digest;
        let live = self.halves.iter().filter(|half| half.state != State::Clean);
        same(self.superblock.clean)
            || live
                .flat_map(|half| half.frames.binary_search_by_key(&mark.seq, |f| f.mark.seq).map(|i| &half.frames[i]))
                .any(|frame| same(frame.mark))
    }

    /// The destination goes on from a common boundary.
    fn resume(&mut self, action: Action, common: Mark, applied: Applied, welcome: &Welcome, effects: &mut Vec<Effect>) {
        let clean = self.superblock.clean;
        if action == Action::ResumeCopyAgain {
            self.mark_all();
            self.forget_whole();
        }
        // What it had applied it may have lost: then it is told again.
        let has = welcome.applied;
        for half in self.halves.iter_mut().filter(|half| half.last.seq > has.seq || half.fill > has.fill) {
            half.applied = false;
        }
        self.handle_applied(welcome.applied, effects);
        // This source went on without it for a while, or it has lost a state: it holds that fill, but no signal follows
        // for what is clean here.
        let again = (applied == Applied::Behind).then_some(Signal::Sync { last: clean, whole: welcome.whole });
        self.link_up(First::Signal(Signal::Resume { common }), again, common.seq, welcome.applied.fill);
        self.acked = common.seq;
        if welcome.whole {
            // It holds exactly what was here at that boundary, and the journal has what came behind.
            self.dirty.clear();
            self.superblock.known.clear();
            if self.superblock.unwatched {
                self.superblock.unwatched = false;
                self.superblock_dirty = true;
            }
            if !self.superblock.whole {
                self.superblock.whole = true;
                self.superblock_dirty = true;
                self.whole_from = None;
                effects.push(Effect::Resync(super::Resync::Whole));
            }
        } else if self.whole_from.is_none() {
            self.start_copy(action == Action::ResumeCopyAgain, effects);
        }
        self.clock_met();
    }

    /// The order will begin anew, once the destination has applied what it holds.
    fn settle(&mut self, common: Mark, effects: &mut Vec<Effect>) {
        self.drop_copy(LOST, effects);
        // Whatever it had, it goes back to that boundary: what it acknowledged beyond counts for nothing any more.
        self.acked = self.acked.min(common.seq);
        self.forget_progress();
        self.link = Link::Settling { common, told: false };
        self.clock_met();
    }

    /// The order begins anew at this source's clean mark; what is dirty follows.
    pub(super) fn begin_anew(&mut self, effects: &mut Vec<Effect>) {
        if self.superblock.whole {
            self.note_lack();
        }
        self.forget_whole();
        let clean = self.superblock.clean;
        let all = self.dirty.grains().bytes() >= self.superblock.sizes().iter().sum();
        self.link_up(First::Restart, None, Seq(0), clean.fill);
        self.acked = clean.seq;
        self.start_copy(all, effects);
        self.clock_met();
    }

    /// The destination's copy isn't whole, and no fill makes it so before all that is dirty is copied.
    fn forget_whole(&mut self) {
        self.superblock.whole = false;
        self.superblock_dirty = true;
        self.copier = None;
        self.halves.iter_mut().for_each(|half| half.whole = false);
        self.forget_progress();
    }

    /// Nothing counts any more of what the destination was found to hold or to have applied.
    fn forget_progress(&mut self) {
        self.equal.clear();
        self.whole_from = None;
        for half in &mut self.halves {
            half.applied = false;
            half.copied.clear();
        }
    }
}
