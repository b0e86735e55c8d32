//! Where earlier runs of a source ended is where a destination may have parted from it.

use super::*;
use crate::core::recovery::Found;
use crate::format::frame::Header;

/// Frames of three runs in two fills.
#[test]
fn a_hello_asks_for_where_earlier_runs_ended_and_nothing_else_is_resumed_at() {
    let found = |number: u64, incarnation: u64, fill: u64, position: u64| {
        let header = Header {
            flags: 0,
            source: Id([1; 16]),
            epoch: Epoch(1),
            incarnation,
            fill: Fill(fill),
            position,
            first: Seq(number),
            committed: Seq(0),
            stable_here: Seq(0),
            previous: Digest(number),
            payload_bytes: 0,
            count: 1,
        };
        Found { header, mark: Mark { fill: Fill(fill), seq: Seq(number), digest: Digest(number + 1) } }
    };
    let first = vec![found(1, 1, 1, 0), found(2, 1, 1, 4096), found(3, 2, 1, 8192)];
    let second = vec![found(4, 2, 2, 0), found(5, 3, 2, 4096)];
    let marks: Vec<Mark> = first.iter().chain(&second).map(|found| found.mark).collect();
    let recovered = Recovered { first, second, end: marks[4], stale: vec![] };
    let mut rig = Rig::of(shape(Durability::Flush, true), superblock(), recovered);
    assert_eq!(rig.core.hello().known, [Mark::default(), marks[1], marks[3], marks[4]]);
    let newer = Mark { seq: Seq(9), digest: Digest(99), ..marks[4] };
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
