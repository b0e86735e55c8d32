mod live;
mod nvram;
mod resync;
mod staging;
mod warrant;
mod world;

use super::*;
use crate::core::index::Action;
use crate::core::recovery::{self, staged::Scan};
use crate::format::checksum;
use crate::format::frame::{FLAG_STABLE, FLAG_SYNC, Header, Kind};
use crate::format::ids::{Digest, Epoch, Fill, Id};
use crate::format::superblock::{Role, Volume};
use crate::format::wire::Signal;
use crate::limits::BLOCK_BYTES;
use std::time::Duration;

const HALF: u64 = 64 * BLOCK_BYTES as u64;
const PLAN: StagingPlan = StagingPlan { limit_bytes: 4 * HALF, best_effort: false };

fn superblock(role: Role) -> Superblock {
    let volume = Volume { name: "vol0".into(), size_bytes: 1 << 20, block_bytes: 512 };
    Superblock::first(role, Id([1; 16]), "alpha", HALF, Epoch(1), vec![volume])
}

/// A destination with what a source would say to it, and the memory of its halves.
struct Rig {
    core: Destination,
    effects: Vec<Effect>,
    halves: [Vec<u8>; 2],
    /// The source's last frame and where the next goes.
    last: Mark,
    position: u64,
    flags: u16,
    committed: u64,
}

impl Rig {
    /// Connected and resumed.
    fn new() -> Rig {
        let superblock = superblock(Role::Destination);
        let touched = Scan::new(&superblock).finish().unwrap();
        let core = Destination::recover(superblock, PLAN, touched, recovery::Recovered::default(), |_| Vec::new());
        let halves = [(); 2].map(|()| vec![0; HALF as usize]);
        let last = Mark::default();
        let mut rig = Rig { core, effects: Vec::new(), halves, last, position: 0, flags: FLAG_STABLE, committed: 0 };
        rig.connect();
        rig.signal(Signal::Restart { at: Mark::default() }).unwrap();
        rig.state_written();
        rig
    }

    fn connect(&mut self) -> Welcome {
        let welcome = self.core.welcome(&superblock(Role::Source)).unwrap();
        self.core.handle_connected(Duration::ZERO);
        welcome
    }

    /// The header after the cut was to be made void in the file, and is.
    fn erased(&mut self, half: usize, position: u64) {
        let erased = |effect: &Effect| matches!(effect, Effect::Erase(h, p) if (*h, *p) == (half, position));
        assert!(self.effects.iter().any(erased), "{:?}", self.effects);
        self.core.handle_erased();
    }

    fn state_written(&mut self) {
        for copy in 0..2 {
            let written = self.effects.iter().any(|effect| matches!(effect, Effect::WriteState(..)));
            assert!(written, "copy {copy}: {:?}", self.effects);
            self.effects.clear();
            self.core.handle_state_written(&mut self.effects);
        }
    }

    fn signal(&mut self, signal: Signal) -> Result<(), String> {
        let halves = self.halves.clone();
        let mut rescan = |before: Mark, until: Mark| {
            recovery::rescan(&[&halves[0][..], &halves[1]], Id([1; 16]), before, until, Place(0))
        };
        self.core.handle_signal(Duration::ZERO, signal, &mut rescan, &mut self.effects)
    }

    /// The next frame of a fill, of one trim record; nothing is handed over yet.
    fn header(&mut self, fill: u64) -> (Header, [u8; BLOCK_BYTES], Record) {
        if Fill(fill) != self.last.fill {
            self.position = 0;
        }
        let record = Record { volume: 0, kind: Kind::Trim, flags: 0, offset: 4096, length: 4096, checksum: 0 };
        let header = Header {
            flags: self.flags,
            source: Id([1; 16]),
            epoch: Epoch(1),
            incarnation: 1,
            fill: Fill(fill),
            position: self.position,
            first: self.last.seq.next(),
            committed: Seq(self.committed),
            stable_here: Seq(self.committed),
            previous: self.last.digest,
            payload_bytes: 0,
            count: 1,
        };
        let mut block = [0; BLOCK_BYTES];
        header.encode([record].iter(), &mut block);
        (header, block, record)
    }

    /// The next frame arrives; with the first of a fill goes the sync signal of the one before.
    fn frame(&mut self, fill: u64) -> Mark {
        if self.last.fill.next() == Fill(fill) && fill > 1 {
            self.signal(Signal::Sync { last: self.last, whole: true }).unwrap();
        }
        let (header, block, record) = self.header(fill);
        self.core.admit(&header).unwrap();
        self.halves[header.fill.half()][header.position as usize..][..BLOCK_BYTES].copy_from_slice(&block);
        let digest = checksum::digest(&block);
        self.core.handle_frame(&header, digest, vec![(record, Place(0))]).unwrap();
        self.position += header.frame_bytes();
        self.last = Mark { fill: Fill(fill), seq: header.first, digest };
        self.last
    }

    /// A frame arrives and is stored.
    fn stored(&mut self, fill: u64) -> Mark {
        let mark = self.frame(fill);
        let op = self.core.next_store().unwrap();
        self.core.handle_stored(op, &mut self.effects);
        mark
    }

    fn reports(&mut self) -> Vec<Report> {
        let effects = std::mem::take(&mut self.effects);
        let report = |effect| if let Effect::Report(report) = effect { Some(report) } else { None };
        effects.into_iter().filter_map(report).collect()
    }

    /// Applies what can be applied, to the end.
    fn apply(&mut self) {
        let mut pieces = Vec::new();
        for _ in 0..16 {
            self.core.handle_turn(&mut self.effects);
            while let Some(op) = self.core.next_apply(&mut pieces) {
                assert!(matches!(op.run.action, Action::Zero { .. }));
                self.core.handle_applied();
            }
            let mut written = false;
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::SyncImage(volume) => self.core.handle_image_synced(volume),
                    Effect::SyncFile(_) => self.core.handle_file_synced(&mut self.effects),
                    Effect::WriteState(..) => written = true,
                    other => self.effects.push(other),
                }
            }
            if written {
                self.core.handle_state_written(&mut self.effects);
            }
        }
    }

    fn refused(&self, header: &Header, what: &str) {
        let reason = self.core.admit(header).unwrap_err();
        assert!(reason.contains(what), "{reason}");
    }
}

#[test]
fn a_frame_that_does_not_belong_is_refused() {
    let mut rig = Rig::new();
    rig.stored(1);
    let (good, ..) = rig.header(1);
    rig.core.admit(&good).unwrap();
    rig.refused(&Header { epoch: Epoch(2), ..good }, "a frame of epoch 2, this is epoch 1");
    rig.refused(&Header { source: Id([2; 16]), ..good }, "another source");
    rig.refused(&Header { fill: Fill(2), ..good }, "while fill");
    rig.refused(&Header { fill: Fill(3), ..good }, "while fill");
    rig.refused(&Header { position: 0, ..good }, "for byte 0");
    rig.refused(&Header { previous: Digest(1), ..good }, "follows record 1, not record 1");
    rig.refused(&Header { first: Seq(3), ..good }, "follows record 2, not record 1");
    rig.refused(&Header { payload_bytes: HALF as u32, ..good }, "exceeds the half");
    let record = Record { volume: 0, kind: Kind::Trim, flags: 0, offset: 1 << 20, length: 512, checksum: 0 };
    let reason = rig.core.handle_frame(&good, Digest(1), vec![(record, Place(0))]).unwrap_err();
    assert!(reason.contains("beyond its volume"), "{reason}");
}

#[test]
fn nothing_is_taken_before_the_source_resumed() {
    let mut rig = Rig::new();
    rig.core.handle_disconnected();
    rig.connect();
    let (header, ..) = rig.header(1);
    rig.refused(&header, "before the source resumed");
    let sync = Signal::Sync { last: Mark::default(), whole: true };
    assert!(rig.signal(sync).unwrap_err().contains("before it resumed"));
}

#[test]
fn only_the_contiguous_prefix_is_acknowledged() {
    let mut rig = Rig::new();
    rig.frame(1);
    let first = rig.core.next_store().unwrap();
    assert!(rig.core.next_store().is_none());
    (0..8).for_each(|_| assert!(rig.frame(1).seq > Seq(1)));
    let second = rig.core.next_store().unwrap();
    assert_eq!((second.start, second.end), (first.end, 9 * BLOCK_BYTES as u64), "what gathered is one write");
    rig.core.handle_stored(second, &mut rig.effects);
    assert_eq!(rig.reports(), []);
    rig.core.handle_stored(first, &mut rig.effects);
    assert_eq!(rig.reports(), [Report::Stored(Seq(9))]);
}

#[test]
fn a_frame_that_asks_for_it_is_synced_before_it_is_acknowledged() {
    let mut rig = Rig::new();
    rig.flags = 0;
    rig.stored(1);
    assert_eq!(rig.reports(), [Report::Stored(Seq(1))]);
    rig.flags = FLAG_SYNC;
    rig.stored(1);
    assert_eq!(rig.reports(), []);
    rig.core.handle_turn(&mut rig.effects);
    assert!(matches!(rig.effects[..], [Effect::SyncFile(_)]), "{:?}", rig.effects);
    // This one came too late for the sync that is under way.
    rig.stored(1);
    rig.effects.clear();
    rig.core.handle_file_synced(&mut rig.effects);
    assert_eq!(rig.reports(), [Report::Stored(Seq(2))]);
    rig.core.handle_turn(&mut rig.effects);
    assert!(matches!(rig.effects[..], [Effect::SyncFile(_)]), "{:?}", rig.effects);
}

/// The source takes what a welcome names for acknowledged: so it waits for the sync.
#[test]
fn a_welcome_waits_until_what_it_names_is_stable() {
    let mut rig = Rig::new();
    rig.flags = FLAG_SYNC;
    let mark = rig.stored(1);
    rig.core.handle_disconnected();
    assert!(rig.core.welcome(&superblock(Role::Source)).is_err());
    rig.core.handle_turn(&mut rig.effects);
    rig.core.handle_file_synced(&mut rig.effects);
    assert_eq!(rig.connect().boundaries.last(), Some(&mark));
}

#[test]
fn resuming_drops_what_the_source_does_not_have() {
    let mut rig = Rig::new();
    let marks: Vec<Mark> = (0..3).map(|_| rig.stored(1)).collect();
    rig.core.handle_disconnected();
    assert_eq!(rig.connect().boundaries.last(), Some(&marks[2]));
    rig.signal(Signal::Resume { common: marks[1] }).unwrap();
    rig.erased(1, 2 * BLOCK_BYTES as u64);
    assert_eq!((rig.core.stored(), rig.core.halves()[1].records), (marks[1], 2));
    assert_eq!(rig.core.halves()[1].last, marks[1]);
    (rig.last, rig.position) = (marks[1], 2 * BLOCK_BYTES as u64);
    rig.effects.clear();
    rig.stored(2);
    assert_eq!(rig.reports(), [Report::Stored(Seq(3))]);
    assert!(rig.signal(Signal::Resume { common: marks[1] }).unwrap_err().contains("twice"));
}

#[test]
fn resuming_at_the_end_of_a_fill_drops_the_next() {
    let mut rig = Rig::new();
    let end = rig.stored(1);
    (0..2).for_each(|_| assert!(rig.stored(2) != end));
    rig.core.handle_disconnected();
    rig.connect();
    rig.signal(Signal::Resume { common: end }).unwrap();
    rig.erased(0, 0);
    assert_eq!((rig.core.stored(), rig.core.halves()[0].state), (end, State::Clean));
    rig.last = end;
    rig.effects.clear();
    rig.stored(2);
    assert_eq!(rig.reports(), [Report::Stored(Seq(2))]);
}

/// With durability flush a source may lose any number of frames in a power cut, but no end of a complete fill.
#[test]
fn a_welcome_names_the_end_of_a_fill_however_far_back() {
    let mut rig = Rig::new();
    let end = rig.stored(1);
    assert!(rig.stored(2) != end);
    rig.apply();
    (0..60).for_each(|_| assert!(rig.stored(2) != end));
    rig.core.handle_disconnected();
    let welcome = rig.connect();
    assert!(welcome.boundaries.contains(&end) && welcome.boundaries.len() <= MAX_BOUNDARIES);
    assert!(welcome.boundaries.is_sorted_by_key(|mark| mark.seq));
}

#[test]
fn resuming_at_something_unknown_or_complete_is_refused() {
    let mut rig = Rig::new();
    let first = rig.stored(1);
    let last = rig.stored(1);
    rig.signal(Signal::Sync { last, whole: true }).unwrap();
    rig.core.handle_disconnected();
    rig.connect();
    let unknown = Mark { digest: Digest(7), ..first };
    let reason = rig.signal(Signal::Resume { common: unknown }).unwrap_err();
    assert!(reason.contains("isn't stored here"), "{reason}");
    rig.core.handle_disconnected();
    rig.connect();
    let reason = rig.signal(Signal::Resume { common: first }).unwrap_err();
    assert!(reason.contains("called complete"), "{reason}");
    rig.core.handle_disconnected();
    rig.connect();
    let reason = rig.signal(Signal::Restart { at: first }).unwrap_err();
    assert!(reason.contains("is stored here"), "{reason}");
}

#[test]
fn a_sync_signal_with_another_digest_is_refused_and_a_repeated_one_is_answered() {
    let mut rig = Rig::new();
    let last = rig.stored(1);
    let wrong = Mark { digest: Digest(last.digest.0 ^ 1), ..last };
    assert!(rig.signal(Signal::Sync { last: wrong, whole: true }).is_err());
    assert_eq!(rig.core.verified(), Seq(0));
    rig.signal(Signal::Sync { last, whole: true }).unwrap();
    assert_eq!(rig.core.verified(), last.seq);
    rig.effects.clear();
    rig.apply();
    assert_eq!(rig.reports(), [Report::Applied(last)]);
    assert_eq!(rig.core.superblock().clean, last);
    rig.signal(Signal::Sync { last, whole: true }).unwrap();
    assert_eq!(rig.reports(), [Report::Applied(last)], "the first report may have been lost");
    assert!(rig.signal(Signal::Sync { last: wrong, whole: true }).unwrap_err().contains("ended at"));
}

#[test]
fn only_what_is_stable_is_applied() {
    let mut rig = Rig::new();
    rig.flags = 0;
    let last = rig.stored(1);
    rig.signal(Signal::Sync { last, whole: true }).unwrap();
    rig.effects.clear();
    rig.core.handle_turn(&mut rig.effects);
    assert!(matches!(rig.effects[..], [Effect::SyncFile(_)]), "{:?}", rig.effects);
    assert!(rig.core.next_apply(&mut Vec::new()).is_none());
    rig.core.handle_file_synced(&mut rig.effects);
    assert!(rig.core.next_apply(&mut Vec::new()).is_some());
}

#[test]
fn a_lost_connection_keeps_what_was_handed_to_the_files() {
    let mut rig = Rig::new();
    let handed = rig.frame(1);
    let op = rig.core.next_store().unwrap();
    rig.frame(1);
    rig.core.handle_disconnected();
    assert!(rig.core.welcome(&superblock(Role::Source)).is_err(), "a store is under way");
    rig.core.handle_stored(op, &mut rig.effects);
    assert_eq!(rig.reports(), [], "nobody is there to be told");
    let welcome = rig.connect();
    assert_eq!((welcome.boundaries.last(), rig.core.next_store()), (Some(&handed), None));
    rig.signal(Signal::Resume { common: handed }).unwrap();
    (rig.last, rig.position) = (handed, BLOCK_BYTES as u64);
    rig.stored(1);
    assert_eq!(rig.reports(), [Report::Stored(Seq(2))]);
}

fn promoted(rig: &mut Rig) -> Mark {
    rig.apply();
    let mark =
        rig.effects.iter().find_map(|effect| if let Effect::Promoted(mark) = effect { Some(*mark) } else { None });
    mark.unwrap_or_else(|| panic!("the promote doesn't end: {:?}", rig.core))
}

#[test]
fn a_promote_serves_all_that_is_stored_and_fences_the_source() {
    for fills in [&[][..], &[1], &[1, 1, 2]] {
        let mut rig = Rig::new();
        let last = fills.iter().map(|fill| rig.stored(*fill)).last().unwrap_or_default();
        rig.core.handle_disconnected();
        rig.effects.clear();
        rig.core.handle_promote(&mut rig.effects);
        let [Effect::WriteState(..)] = rig.effects[..] else { panic!("{:?}", rig.effects) };
        assert!(rig.core.next_apply(&mut Vec::new()).is_none(), "whoever serves the image writes to it");
        let welcome = rig.core.welcome(&superblock(Role::Source)).unwrap();
        assert_eq!((welcome.verdict, welcome.epoch), (Verdict::Fenced, Epoch(2)));
        rig.state_written();
        assert_eq!(promoted(&mut rig), last);
        let state = rig.core.superblock();
        // Nothing was applied: the last boundary says how much of the journal files is served.
        assert!(state.promoted && state.known == [last] && state.clean == Mark::default());
    }
}

#[test]
fn a_promote_waits_for_a_store_that_is_under_way() {
    let mut rig = Rig::new();
    let last = rig.frame(1);
    let op = rig.core.next_store().unwrap();
    rig.core.handle_disconnected();
    rig.core.handle_promote(&mut rig.effects);
    rig.state_written();
    rig.apply();
    assert!(!rig.core.superblock().promoted);
    rig.core.handle_stored(op, &mut rig.effects);
    assert_eq!(promoted(&mut rig), last);
}

#[test]
fn a_promote_in_the_middle_of_an_apply() {
    let mut rig = Rig::new();
    rig.stored(1);
    let last = rig.stored(2);
    rig.core.next_apply(&mut Vec::new()).unwrap();
    rig.core.handle_disconnected();
    rig.core.handle_promote(&mut rig.effects);
    rig.state_written();
    rig.core.handle_applied();
    assert_eq!(promoted(&mut rig), last);
}

/// A fill with nothing to write is done with as soon as it is sealed; a frame that is still on its way to its file
/// would then be stored into a half that is clean already.
#[test]
fn a_fill_is_not_complete_while_frames_of_it_are_being_stored() {
    let mut rig = Rig::new();
    let first = rig.stored(1);
    rig.frame(1);
    assert!(rig.signal(Signal::Sync { last: first, whole: true }).unwrap_err().contains("came behind it"));
    let op = rig.core.next_store().unwrap();
    assert!(rig.signal(Signal::Sync { last: first, whole: true }).unwrap_err().contains("came behind it"));
    rig.core.handle_stored(op, &mut rig.effects);
    assert_eq!(rig.signal(Signal::Sync { last: rig.last, whole: true }), Ok(()));
}

/// A source whose journal has lost its end, so that it knows only an older boundary.
#[test]
fn what_a_frame_calls_stable_on_both_sides_is_not_dropped() {
    let mut rig = Rig::new();
    let first = rig.stored(1);
    let second = rig.stored(1);
    rig.committed = second.seq.0;
    let third = rig.stored(1);
    rig.core.handle_disconnected();
    let welcome = rig.connect();
    assert!([first, second, third].iter().all(|mark| welcome.boundaries.contains(mark)));
    let reason = rig.signal(Signal::Resume { common: first }).unwrap_err();
    assert!(reason.contains("lost answered writes") && rig.core.stored() == third, "{reason}");
    rig.core.handle_disconnected();
    rig.connect();
    rig.signal(Signal::Resume { common: second }).unwrap();
    assert_eq!(rig.core.stored(), second, "the third was never answered");
}

/// A run of the source may have ended anywhere in what a power cut left of its cache.
#[test]
fn a_welcome_names_what_the_source_asks_for_if_it_is_held() {
    let mut rig = Rig::new();
    let marks: Vec<Mark> = (0..60).map(|_| rig.stored(1)).collect();
    rig.core.handle_disconnected();
    let other = Mark { digest: Digest(99), ..marks[8] };
    let asked = vec![Mark::default(), marks[2], marks[7], other, marks[59]];
    assert!(!rig.core.welcome(&superblock(Role::Source)).unwrap().boundaries.contains(&marks[7]));
    let hello = Superblock { known: asked.clone(), ..superblock(Role::Source) };
    let named = rig.core.welcome(&hello).unwrap().boundaries;
    let held: Vec<&Mark> = asked.iter().filter(|mark| named.contains(mark)).collect();
    assert_eq!(held, [&Mark::default(), &marks[2], &marks[7], &marks[59]]);
    assert!(named.is_sorted_by_key(|mark| mark.seq) && named.len() <= MAX_BOUNDARIES);
}

#[test]
fn a_welcome_names_what_was_called_stable_however_far_back() {
    let mut rig = Rig::new();
    let marks: Vec<Mark> = (0..63)
        .map(|n| {
            rig.committed = if n > 20 { 20 } else { 0 };
            rig.stored(1)
        })
        .collect();
    rig.core.handle_disconnected();
    let welcome = rig.connect();
    assert!(welcome.boundaries.contains(&marks[19]) && welcome.boundaries.len() <= MAX_BOUNDARIES);
    assert_eq!(marks[19].seq, Seq(20));
}

/// The source was without this destination while it flushed two fills, and knows the end of the second only.
#[test]
fn a_sync_signal_completes_the_fill_before_as_well() {
    let mut rig = Rig::new();
    let first = rig.stored(1);
    let second = rig.stored(2);
    let (fills, core) = ([first, second], &mut rig.core);
    // As after a restart: nobody remembers that the first was signalled.
    core.halves[1].state = State::Open;
    core.handle_disconnected();
    rig.connect();
    rig.signal(Signal::Resume { common: second }).unwrap();
    rig.signal(Signal::Sync { last: second, whole: false }).unwrap();
    rig.effects.clear();
    (0..4).for_each(|_| rig.apply());
    assert_eq!(rig.core.superblock().clean, fills[1]);
    assert_eq!(rig.reports().last(), Some(&Report::Applied(second)));
}

#[test]
fn who_is_refused_and_who_is_fenced() {
    let mut rig = Rig::new();
    rig.stored(1);
    rig.core.handle_disconnected();
    let source = || superblock(Role::Source);
    let other = || Superblock { source: Id([9; 16]), ..source() };
    let fenced = Superblock { fenced_by: Epoch(2), ..source() };
    let newer = Superblock { epoch: Epoch(7), ..source() };
    let large = Superblock { half_bytes: 2 * HALF, ..source() };
    let said = |rig: &Rig, hello: &Superblock| {
        let welcome = rig.core.welcome(hello).unwrap();
        (welcome.verdict, welcome.reason)
    };
    for (hello, word) in [
        (other(), "another journal"),
        (fenced, "Promote again"),
        (newer.clone(), "out of date"),
        (large, "bytes a half"),
    ] {
        let (verdict, reason) = said(&rig, &hello);
        assert!(verdict == Verdict::Refused && reason.contains(word), "{reason}");
    }
    rig.core.handle_promote(&mut rig.effects);
    assert_eq!(said(&rig, &source()).0, Verdict::Fenced);
    // One with another identity isn't the source that the promote fenced, and one of a later epoch can't be fenced.
    let (verdict, reason) = said(&rig, &other());
    assert!(verdict == Verdict::Refused && reason.contains("promoted in epoch 2"), "{reason}");
    assert_eq!(said(&rig, &newer).0, Verdict::Refused);
}

#[test]
fn a_stable_frame_is_not_acknowledged_over_one_that_is_not() {
    // A source that ran with durability `flush` starts again with `always`: the frames in its journal, made before,
    // don't ask for stable storage, the new ones do. An answer under `always` promises all before it.
    let mut rig = Rig::new();
    rig.flags = 0;
    rig.stored(1);
    assert_eq!(rig.reports(), [Report::Stored(Seq(1))]);
    rig.flags = FLAG_STABLE;
    rig.stored(2);
    // The file sync of fill 1 is asked for by its sync signal, and isn't complete.
    rig.core.handle_turn(&mut rig.effects);
    assert!(rig.effects.iter().any(|effect| matches!(effect, Effect::SyncFile(1))));
    assert_eq!(rig.reports(), [], "record 1 may still be lost by a power cut");
    rig.core.handle_file_synced(&mut rig.effects);
    assert_eq!(rig.reports(), [Report::Stored(Seq(2))]);
}
