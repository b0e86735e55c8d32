//! The durable state: written to both copies before anybody builds on it.

use super::{Destination, Durable, Effect, Half};
use crate::format::wire::Report;

impl Destination {
    pub(super) fn write_state(&mut self, effects: &mut Vec<Effect>) {
        self.state_dirty = true;
        if !self.state_writing {
            self.state_dirty = false;
            self.stale_copies = 2;
            self.write_copy(effects);
        }
    }

    /// Both copies get each version, one after the other, before anybody builds on it. So a crash can tear only one, and
    /// one that can't be read any more takes nothing away: neither that a fill was applied nor that a source is fenced.
    fn write_copy(&mut self, effects: &mut Vec<Effect>) {
        self.state_writing = true;
        self.stale_copies -= 1;
        self.superblock.generation += 1;
        effects.push(Effect::WriteState(self.superblock.encode(), self.superblock.copy_offset()));
    }

    /// A copy of the state is durable.
    pub fn handle_state_written(&mut self, effects: &mut Vec<Effect>) {
        self.state_writing = false;
        if self.state_dirty {
            return self.write_state(effects);
        }
        if self.stale_copies > 0 {
            return self.write_copy(effects);
        }
        let before = std::mem::replace(&mut self.durable, Durable::of(&self.superblock));
        if self.restarting.is_none() {
            self.starting_over = false;
        }
        self.free_log(&before.staging, effects);
        let volumes = self.superblock.volumes.len();
        let applied = self.superblock.clean;
        while self.boundaries.front().is_some_and(|(mark, _)| mark.seq < applied.seq) {
            self.boundaries.pop_front();
        }
        for half in self.halves.iter_mut().filter(|half| half.retiring) {
            *half = Half { fill: half.fill, last: half.last, ..Half::clean(volumes) };
            effects.push(Effect::Applied(applied));
            if self.connected && self.resumed {
                effects.push(Effect::Report(Report::Applied(applied)));
            }
        }
        if self.superblock.promoted {
            effects.push(Effect::Promoted(self.stored));
        }
    }
}
