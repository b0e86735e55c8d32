//! Where earlier runs of a source ended is where a destination may have parted from it.

use super::*;
use crate::limits::MAX_KNOWN_MARKS;

/// Frames of two runs, of which the first one's end was torn off.
#[test]
fn a_hello_asks_for_where_earlier_runs_ended_and_nothing_else_is_resumed_at() {
    let first = vec![stored(1, 1, 0, 1), stored(1, 1, 1, 2)];
    let second = vec![stored(2, 2, 0, 3), stored(2, 2, 1, 4)];
    let marks: Vec<Mark> = first.iter().chain(&second).map(|frame| frame.mark).collect();
    let recovered = Recovered { first, second, end: marks[3], stale: vec![] };
    let gone = |number: u64| Mark { fill: Fill(0), seq: Seq(0), digest: Digest(1000 + number) };
    let known = (0..MAX_KNOWN_MARKS as u64).map(gone).collect();
    let mut rig = Rig::of(shape(Durability::Flush, true), Superblock { known, ..superblock() }, recovered);
    let asked = rig.core.hello().known;
    assert_eq!(asked[..4], [Mark::default(), marks[1], marks[3], gone(MAX_KNOWN_MARKS as u64 - 1)]);
    assert_eq!(asked.len(), MAX_KNOWN_MARKS);
    let newer = Mark { seq: Seq(9), digest: Digest(99), ..marks[3] };
    for (common, resumes) in [(marks[0], false), (marks[2], false), (marks[1], true), (marks[3], true)] {
        let welcome = Welcome { boundaries: vec![common, newer], ..greeting(&rig, common) };
        rig.core.handle_welcome(&welcome, &mut rig.effects);
        let closed = std::mem::take(&mut rig.effects);
        let vague =
            closed.iter().any(|effect| matches!(effect, Effect::ClosePeer(why) if why.contains("can't be told")));
        assert_eq!(vague, !resumes, "{common}: {closed:?}");
        rig.core.handle_link_down(&mut rig.effects);
        rig.effects.clear();
    }
    // The newest of what it holds: nothing is dropped.
    let welcome = greeting(&rig, marks[2]);
    rig.core.handle_welcome(&welcome, &mut rig.effects);
    assert!(rig.effects.iter().all(|effect| !matches!(effect, Effect::ClosePeer(_))), "{:?}", rig.effects);
}

/// It was written past while all was clean: a destination of before is compared, and one that has got something since is
/// being compared already.
#[test]
fn a_source_that_was_written_past_goes_on_with_a_resync_that_was_cut_off() {
    let unwatched = || Superblock { unwatched: true, whole: false, ..superblock() };
    let mut rig = Rig::of(shape(Durability::Always, true), unwatched(), Recovered::default());
    let clean = rig.core.superblock().clean;
    rig.welcome(clean);
    assert_eq!(rig.signals(), [Signal::Settle { common: clean }], "it is compared");
    rig.write();
    assert_eq!(rig.frames().len(), 1);
    let sent = rig.core.halves()[1].frames[0].mark;
    rig.core.handle_link_down(&mut rig.effects);
    rig.effects.clear();
    let welcome = Welcome { boundaries: vec![clean, sent], ..greeting(&rig, sent) };
    rig.core.handle_welcome(&welcome, &mut rig.effects);
    assert!(rig.effects.iter().all(|effect| !matches!(effect, Effect::ClosePeer(_))), "{:?}", rig.effects);
    assert_eq!(rig.signals(), [Signal::Resume { common: sent }]);
    assert!(rig.core.superblock().unwatched, "it isn't whole yet");
    rig.core.handle_link_down(&mut rig.effects);
    rig.core.handle_welcome(&Welcome { whole: true, ..welcome }, &mut rig.effects);
    assert!(!rig.core.superblock().unwatched && rig.core.superblock().whole);
}
