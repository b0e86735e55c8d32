//! A source that takes a promoted destination's place, of which two fills weren't applied.

use super::*;

/// The last boundary that was held.
const HELD: Mark = Mark { fill: Fill(6), seq: Seq(12), digest: Digest(12) };
/// What wasn't applied: a fill and a place on the volume for each frame of one write, from record 9 on.
const LEFT: [(u64, u64); 4] = [(5, 0), (5, 4096), (6, 4096), (6, 8192)];

fn left() -> Recovered {
    let (first, second) =
        (vec![stored(1, 5, 0, 9), stored(1, 5, 1, 10)], vec![stored(1, 6, 0, 11), stored(1, 6, 1, 12)]);
    Recovered { first, second, end: HELD, stale: Vec::new() }
}

/// Where the header of a fill's frame is; its payload is behind it.
fn header(fill: u64, index: usize) -> Place {
    Place((fill << 48) + index as u64 * 8192)
}

fn payload(fill: u64, index: usize) -> Place {
    Place(header(fill, index).0 + 4096)
}

fn entry(fill: u64, index: usize, offset: u64) -> (Place, Vec<Entry>) {
    let record = Record { volume: 0, kind: Kind::Write, flags: 0, offset, length: 4096, checksum: 0 };
    (header(fill, index), vec![Entry { record, place: payload(fill, index), ticket: Ticket::NONE }])
}

/// A start of it, with what its own journal holds: frames of fill 7, each a write of the volume's second block.
fn heir(state: Superblock, own: usize) -> Rig {
    let first: Vec<_> = (0..own).map(|index| stored(1, 7, index as u64, 13 + index as u64)).collect();
    let end = first.last().map_or(HELD, |frame| frame.mark);
    let own = Recovered { first, end, ..Recovered::default() };
    let shape = shape(Durability::Always, false);
    let mut core = Source::recover(shape, state, clean_map(), own, |id, _| entry(7, id.index, 4096));
    core.inherit(&left(), |id, position| {
        assert_eq!(position, id.index as u64 * 8192);
        let offsets = LEFT.iter().filter(|(fill, _)| Fill(*fill) == id.fill);
        entry(id.fill.0, id.index, offsets.map(|(_, offset)| *offset).nth(id.index).unwrap())
    });
    Rig { core, effects: Vec::new(), blocks: Blocks(1 << 40), now: NOW, tickets: 0, pings: Vec::new() }
}

fn state() -> Superblock {
    Superblock { clean: HELD, known: vec![HELD], epoch: Epoch(2), alone: true, ..superblock() }
}

impl Rig {
    fn read(&self) -> Vec<Found> {
        let mut segments = Vec::new();
        (0..4).for_each(|block| self.core.read(0, block * 4096..(block + 1) * 4096, &mut segments));
        assert_eq!(segments.len(), 4, "{segments:?}");
        segments.into_iter().map(|segment| segment.found).collect()
    }

    /// Hands out all that may be flushed now: where each run goes, and from where in memory.
    fn ops(&mut self) -> Vec<(u64, Vec<Place>)> {
        let (mut ops, mut pieces) = (Vec::new(), Vec::new());
        while let Some(op) = self.core.next_flush(&mut pieces) {
            ops.push((op.run.offset, pieces.drain(..).map(|(place, _)| place).collect()));
        }
        ops
    }

    /// All that is under way on the volume is complete, and stable; what came of it.
    fn flushed(&mut self) -> Vec<Effect> {
        (0..self.core.flushes_under_way()).for_each(|_| self.core.handle_flush_written());
        let effects = self.turn();
        assert!(matches!(effects[..], [Effect::SyncVolume(0)]), "{effects:?}");
        assert_eq!(self.ops(), [], "the volume isn't synced");
        self.core.handle_volume_synced(0);
        self.turn()
    }

    /// One write of an own frame, stored.
    fn own(&mut self, offset: u64) {
        self.record(Kind::Write, 0, offset, 4096);
        self.frames().into_iter().for_each(|id| self.written(id));
        assert_eq!(self.answers(), [self.tickets - 1]);
    }
}

/// What releases the memory of these frames.
fn released(effects: &[Effect], fill: u64) -> bool {
    let all = [0, 1].iter().flat_map(|index| [header(fill, *index), payload(fill, *index)]);
    let all: Vec<_> = all.map(|place| (place, 4096)).collect();
    let release = |effect: &Effect| if let Effect::Release(at, bytes) = effect { Some((*at, *bytes)) } else { None };
    let mut found: Vec<_> = effects.iter().filter_map(release).collect();
    found.sort_by_key(|(place, _)| place.0);
    found == all
}

#[test]
fn the_newest_is_read_and_what_was_left_goes_to_the_images_in_order() {
    let mut rig = heir(state(), 0);
    let left = [payload(5, 0), payload(6, 0), payload(6, 1)].map(Found::Memory);
    assert_eq!((rig.read(), rig.core.inherited()), ([&left[..], &[Found::Device]].concat(), 2));
    // Answered at once, although nothing is on the images.
    rig.own(8192);
    rig.own(12288);
    assert_eq!(rig.read(), [left[0], left[1], Found::Memory(Place(0)), Found::Memory(Place(1 << 20))]);
    assert_eq!(rig.ops(), [(0, vec![payload(5, 0), payload(5, 1)])], "the older fill first, and as it was");
    let effects = rig.flushed();
    assert!(released(&effects, 5) && rig.core.inherited() == 1, "{effects:?}");
    assert_eq!(rig.read()[..2], [Found::Device, left[1]], "the images have it");
    assert_eq!(rig.ops(), [(4096, vec![payload(6, 0), payload(6, 1)])]);
    let effects = rig.flushed();
    assert!(released(&effects, 6) && rig.core.inherited() == 0, "{effects:?}");
    assert_eq!(rig.read()[..3], [Found::Device, Found::Device, Found::Memory(Place(0))]);
    // They were never its own: none is sent, and nothing of it is clean yet.
    assert!(rig.core.superblock().clean == HELD && rig.core.next_to_send().is_none());
}

#[test]
fn an_own_fill_and_a_sync_wait_for_what_was_left() {
    let mut rig = heir(state(), 0);
    rig.own(0);
    rig.core.handle_sync(7);
    assert!(matches!(rig.turn()[..], [Effect::Switched(_)]));
    assert_eq!(rig.ops(), [(0, vec![payload(5, 0), payload(5, 1)])]);
    rig.flushed();
    assert_eq!(rig.ops(), [(4096, vec![payload(6, 0), payload(6, 1)])]);
    rig.flushed();
    assert_eq!(rig.core.superblock().clean, HELD);
    assert_eq!(rig.ops(), [(0, vec![Place(0)])], "only now");
    let effects = rig.flushed();
    assert!(matches!(effects[..], [Effect::WriteMap(..)]), "it is alone: {effects:?}");
    rig.core.handle_map_written();
    assert!(rig.flush());
    rig.superblock_written();
    let effects = rig.turn();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::SyncDone(7))), "{effects:?}");
    // A start finds something clean, and with it that nothing is left.
    assert!(rig.core.superblock().clean.seq > HELD.seq);
    // With nothing of its own a sync waits as well.
    let mut rig = heir(state(), 0);
    rig.core.handle_sync(8);
    assert_eq!(rig.ops().len(), 1);
    assert!(!rig.flushed().iter().any(|effect| matches!(effect, Effect::SyncDone(_))));
    assert_eq!(rig.ops().len(), 1);
    assert!(rig.flushed().iter().any(|effect| matches!(effect, Effect::SyncDone(8))));
}

/// However far a run came: as long as nothing of its own is clean, the next one takes the same over, below its own.
#[test]
fn a_start_takes_over_again() {
    let mut rig = heir(state(), 0);
    rig.own(4096);
    for _ in 0..2 {
        assert_eq!(rig.ops().len(), 1);
        rig.flushed();
    }
    rig.core.handle_sync(1);
    rig.turn();
    assert_eq!(rig.ops().len(), 1, "its own is on its way to the images");
    assert_eq!((rig.core.superblock().clean, &rig.core.superblock().known), (HELD, &vec![HELD]));
    let state = rig.core.superblock().clone();
    let mut rig = heir(state, 2);
    assert_eq!(rig.core.last(), Seq(14));
    let read = [payload(5, 0), payload(7, 1), payload(6, 1)].map(Found::Memory);
    assert_eq!(rig.read()[..3], read);
    rig.turn();
    for (fill, offset) in [(5, 0), (6, 4096)] {
        assert_eq!(rig.ops(), [(offset, vec![payload(fill, 0), payload(fill, 1)])]);
        assert!(released(&rig.flushed(), fill));
    }
    assert_eq!(rig.read()[..3], [Found::Device, read[1], Found::Device]);
    assert_eq!(rig.ops(), [(4096, vec![payload(7, 1)])], "and on top what went there before");
}

/// A fill of records that write nothing, and one end of the order without a frame.
#[test]
fn a_fill_with_nothing_to_write_is_done_at_once() {
    let mut rig = heir(state(), 0);
    let empty = Recovered { second: Vec::new(), ..left() };
    rig.core.inherited.clear();
    let flush = Record { volume: 0, kind: Kind::Flush, flags: 0, offset: 0, length: 0, checksum: 0 };
    rig.core.inherit(&empty, |id, _| {
        (header(5, id.index), vec![Entry { record: flush, place: Place(0), ticket: Ticket::NONE }])
    });
    assert_eq!((rig.core.inherited(), rig.ops()), (1, vec![]));
    let effects = rig.turn();
    assert!(matches!(effects[..], [Effect::Release(..), Effect::Release(..)]), "{effects:?}");
    assert_eq!(rig.core.inherited(), 0);
}
