//! Frames go to the shared log, and from there to the journal files.

use super::*;
use crate::limits::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Three frames fit into a slot.
const SLOT: u64 = 4 * BLOCK;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.core.nvram = Some(Nvram::new(SLOT));
    rig
}

impl Rig {
    /// A frame arrives and is stored; says where.
    fn stored_by(&mut self, fill: u64) -> StoreOp {
        self.frame(fill);
        let op = self.core.next_store().unwrap();
        self.core.handle_stored(op, &mut self.effects);
        op
    }

    /// What a turn asks for, of the log.
    fn wanted(&mut self) -> (Vec<usize>, Vec<u32>) {
        self.core.handle_turn(&mut self.effects);
        let (mut syncs, mut freed) = (Vec::new(), Vec::new());
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::SyncMoved(half) => syncs.push(half),
                Effect::FreeSlot(slot) => freed.push(slot),
                _ => {}
            }
        }
        (syncs, freed)
    }

    /// All moves, the sync, and the slots that come back.
    fn emptied(&mut self) -> Vec<u32> {
        self.wanted();
        while let Some(op) = self.core.next_move() {
            self.core.handle_moved(op);
        }
        let (syncs, _) = self.wanted();
        let mut freed = Vec::new();
        for _ in syncs {
            self.core.handle_moved_synced(&mut self.effects);
            freed.extend(self.wanted().1);
        }
        freed
    }
}

fn place(op: StoreOp) -> Option<(u32, u64, bool)> {
    op.log.map(|place| (place.slot, place.at, place.begins.is_some()))
}

#[test]
fn a_frame_in_the_log_is_acknowledged_and_moved_behind() {
    let mut rig = rig();
    rig.core.handle_slot(7);
    assert!(!rig.core.wants_slot());
    let first = rig.stored_by(1);
    assert_eq!(
        (place(first), first.stable, rig.reports()),
        (Some((7, BLOCK, true)), true, vec![Report::Stored(Seq(1))])
    );
    assert_eq!(first.log.unwrap().begins, Some((Fill(1), Mark::default())));
    assert!(rig.core.wants_slot());
    rig.core.handle_slot(8);
    assert_eq!(place(rig.stored_by(1)), Some((7, 2 * BLOCK, false)));
    rig.stored_by(1);
    assert_eq!((rig.wanted(), rig.core.next_move()), ((vec![], vec![]), None), "more may come into this slot");
    let before = rig.last;
    let fourth = rig.stored_by(1);
    assert_eq!((place(fourth), fourth.log.unwrap().begins), (Some((8, BLOCK, true)), Some((Fill(1), before))));
    let op = rig.core.next_move().unwrap();
    assert_eq!(op, MoveOp { slot: 7, half: 1, start: 0, end: 3 * BLOCK });
    assert_eq!((rig.core.next_move(), rig.core.logged_bytes()), (None, 4 * BLOCK));
    // There is no slot in reserve: the sync doesn't wait for more.
    assert_eq!(rig.wanted(), (vec![], vec![]), "it isn't written yet");
    rig.core.handle_moved(op);
    assert_eq!(rig.wanted(), (vec![1], vec![]));
    rig.core.handle_moved_synced(&mut rig.effects);
    assert_eq!(rig.wanted(), (vec![], vec![7]));
    rig.core.handle_slot_freed(7);
    assert_eq!((rig.core.logged_bytes(), rig.core.halves[1].logged), (BLOCK, 1));
}

#[test]
fn a_log_without_room_is_passed() {
    let mut rig = rig();
    rig.flags = FLAG_SYNC;
    rig.core.handle_slot(7);
    for _ in 0..3 {
        assert!(rig.stored_by(1).log.is_some());
    }
    assert_eq!(rig.reports().last(), Some(&Report::Stored(Seq(3))), "what is in the log needs no sync");
    let past = rig.stored_by(1);
    assert_eq!((past.log, past.stable, rig.reports()), (None, false, vec![]));
    // What comes behind it may be in the log again, and is as good as it only when both are stable.
    rig.core.handle_slot(8);
    let behind = rig.stored_by(1);
    assert_eq!((place(behind), rig.reports()), (Some((8, BLOCK, true)), vec![]));
    rig.core.handle_turn(&mut rig.effects);
    assert!(rig.effects.iter().any(|effect| matches!(effect, Effect::SyncFile(1))), "{:?}", rig.effects);
    rig.effects.clear();
    rig.core.handle_file_synced(&mut rig.effects);
    assert_eq!(rig.reports(), [Report::Stored(Seq(5))]);
}

#[test]
fn a_frame_that_no_slot_holds_goes_past() {
    let mut rig = rig();
    rig.core.nvram = Some(Nvram::new(BLOCK));
    rig.core.handle_slot(7);
    assert_eq!(rig.stored_by(1).log, None);
    assert_eq!(rig.core.take_slot_back(), Some(7));
}

#[test]
fn a_fill_is_applied_when_the_log_is_done_with_it() {
    let mut rig = rig();
    for slot in [7, 8] {
        rig.core.handle_slot(slot);
        rig.stored_by(slot as u64 - 6);
    }
    rig.signal(Signal::Sync { last: rig.last, whole: true }).unwrap();
    rig.apply();
    assert_eq!((rig.core.superblock().clean.fill, rig.core.promotable()), (Fill(0), false));
    assert_eq!(rig.emptied(), [7, 8]);
    rig.apply();
    assert_eq!(rig.core.superblock().clean.fill, Fill(0), "they aren't void yet");
    rig.core.handle_slot_freed(7);
    rig.core.handle_slot_freed(8);
    rig.apply();
    assert_eq!(rig.core.superblock().clean.fill, Fill(2));
}

#[test]
fn a_source_that_comes_back_finds_the_log_empty() {
    let mut rig = rig();
    rig.core.handle_slot(7);
    let mark = rig.stored(1);
    rig.core.handle_disconnected();
    let hello = superblock(Role::Source);
    assert!(rig.core.welcome(&hello).is_err());
    assert_eq!(rig.emptied(), [7]);
    assert!(rig.core.welcome(&hello).is_err(), "it isn't void yet");
    rig.core.handle_slot_freed(7);
    assert_eq!(rig.core.welcome(&hello).unwrap().boundaries.last(), Some(&mark));
    assert!(!rig.core.wants_slot(), "nobody is connected");
}

#[test]
fn a_promote_waits_until_all_is_in_the_journal_files() {
    let mut rig = rig();
    rig.core.handle_slot(7);
    rig.stored(1);
    rig.core.handle_disconnected();
    rig.core.handle_promote(&mut rig.effects);
    rig.state_written();
    assert_eq!(rig.emptied(), [7]);
    assert!(!rig.core.superblock().promoted);
    rig.core.handle_slot_freed(7);
    rig.core.handle_turn(&mut rig.effects);
    assert!(rig.core.superblock().promoted);
}
