use super::*;
use crate::core::index::Found;
use crate::core::policy::OnDisconnect;
use crate::core::recovery::Found as Stored;
use crate::format::frame::{FLAG_STABLE, Header, Kind, RECORD_COPY, RECORD_FUA, Record};
use crate::format::ids::{Digest, Id};
use crate::format::ping::Ping;
use crate::format::superblock::{Role, Volume};
use crate::format::wire::{Report, Signal, Verdict, Welcome};
use crate::limits::GRAIN_BYTES;

mod apart;
mod inherited;
mod runs;
mod word;

const NOW: Duration = Duration::from_secs(100);

/// A frame of one block that a start has found: the run that made it, and its only record.
fn stored(run: u64, fill: u64, index: u64, seq: u64) -> Stored {
    let header = Header {
        flags: FLAG_STABLE,
        source: Id([1; 16]),
        epoch: Epoch(1),
        incarnation: run,
        fill: Fill(fill),
        position: index * 8192,
        first: Seq(seq),
        committed: Seq(0),
        stable_here: Seq(0),
        previous: Digest(seq - 1),
        payload_bytes: 4096,
        count: 1,
    };
    Stored { header, mark: Mark { fill: Fill(fill), seq: Seq(seq), digest: Digest(seq) } }
}

/// Header blocks get a place each, far from the payloads'.
struct Blocks(u64);

impl Headers for Blocks {
    fn store(&mut self, _: &Block) -> Place {
        self.0 += 1 << 20;
        Place(self.0)
    }
}

/// A source whose disks do what they are told at once, where the test wants it.
struct Rig {
    core: Source,
    effects: Vec<Effect>,
    blocks: Blocks,
    now: Duration,
    tickets: u32,
    pings: Vec<Ping>,
}

const SIZES: [u64; 1] = [1 << 20];

fn superblock() -> Superblock {
    let volume = Volume { name: "vol0".into(), size_bytes: SIZES[0], block_bytes: 512 };
    Superblock {
        generation: 2,
        incarnation: 1,
        whole: true,
        ..Superblock::first(Role::Source, Id([1; 16]), "alpha", 1 << 20, Epoch(1), vec![volume])
    }
}

fn shape(durability: Durability, mirrored: bool) -> Shape {
    let policy = Policy { on_disconnect: OnDisconnect::Stall, timeout: Duration::from_secs(1000) };
    Shape { durability, mirrored, policy, max_age: Duration::from_secs(10), started_unix_s: 1_000_000 }
}

fn clean_map() -> Dirty {
    Dirty::clean(Id([1; 16]), &SIZES, GRAIN_BYTES)
}

impl Rig {
    fn new(durability: Durability, mirrored: bool) -> Rig {
        Rig::of(shape(durability, mirrored), superblock(), Recovered::default())
    }

    fn of(shape: Shape, superblock: Superblock, recovered: Recovered) -> Rig {
        let core = Source::recover(shape, superblock, clean_map(), recovered, |_, _| (Place(0), Vec::new()));
        Rig { core, effects: Vec::new(), blocks: Blocks(1 << 40), now: NOW, tickets: 0, pings: Vec::new() }
    }

    fn connected(durability: Durability) -> Rig {
        let mut rig = Rig::new(durability, true);
        rig.welcome(Mark::default());
        rig
    }

    fn welcome(&mut self, common: Mark) {
        let whole = self.core.superblock().whole;
        let boundaries = vec![common];
        let welcome = Welcome { whole, boundaries, ..Welcome::refuse(Verdict::Welcome, Epoch(1), "") };
        self.core.handle_welcome(&welcome, &mut self.effects);
    }

    fn record(&mut self, kind: Kind, flags: u8, offset: u64, length: u32) {
        let record = Record { volume: 0, kind, flags, offset, length, checksum: 0 };
        let place = Place(u64::from(self.tickets) << 20);
        self.core.handle_record(Entry { record, place, ticket: Ticket(self.tickets) });
        self.tickets += 1;
    }

    fn write(&mut self) {
        self.record(Kind::Write, 0, 0, 4096);
    }

    /// Both copies are durable, the second one written when the first was.
    fn superblock_written(&mut self) {
        self.core.handle_superblock_written(&mut self.effects);
        let second = self.effects.iter().any(|effect| matches!(effect, Effect::WriteSuperblock(..)));
        assert!(second, "a copy is left as it was");
        self.effects.retain(|effect| !matches!(effect, Effect::WriteSuperblock(..)));
        self.core.handle_superblock_written(&mut self.effects);
    }

    fn turn(&mut self) -> Vec<Effect> {
        let mut effects = self.turn_with_log();
        effects.retain(|effect| !matches!(effect, Effect::Mode(_) | Effect::Resync(_)));
        effects
    }

    fn turn_with_log(&mut self) -> Vec<Effect> {
        self.core.handle_turn(self.now, &mut self.blocks, &mut self.effects);
        std::mem::take(&mut self.effects)
    }

    /// A turn's frames.
    fn frames(&mut self) -> Vec<FrameId> {
        let frame = |effect: &Effect| if let Effect::WriteFrame(id) = effect { Some(*id) } else { None };
        self.turn().iter().filter_map(frame).collect()
    }

    fn answers(&mut self) -> Vec<u32> {
        let answer = |effect: &Effect| if let Effect::Answer(ticket) = effect { Some(ticket.0) } else { None };
        self.turn().iter().filter_map(answer).collect()
    }

    fn acked(&mut self, seq: u64) {
        self.core.handle_report(Report::Stored(Seq(seq)), &mut self.effects);
    }

    fn written(&mut self, id: FrameId) {
        self.core.handle_frame_written(id);
    }

    /// One write, stored on both sides.
    fn store(&mut self) {
        self.write();
        for id in self.frames() {
            self.written(id);
        }
        self.acked(self.core.last().0);
        assert_eq!(self.answers(), [self.tickets - 1]);
    }

    /// Flushes all that may be flushed, up to the superblock; true when one is to be written.
    fn flush(&mut self) -> bool {
        let mut superblock = false;
        for _ in 0..4 {
            while self.core.next_flush(&mut Vec::new()).is_some() {
                self.core.handle_flush_written();
            }
            for effect in self.turn() {
                match effect {
                    Effect::SyncVolume(volume) => self.core.handle_volume_synced(volume),
                    Effect::WriteSuperblock(..) => superblock = true,
                    Effect::WriteMap(..) => self.core.handle_map_written(),
                    _ => {}
                }
            }
        }
        superblock
    }

    fn signals(&mut self) -> Vec<Signal> {
        let mut signals = Vec::new();
        while let Some(send) = self.core.next_to_send() {
            if let Send::Block(block) = send {
                let signal = Signal::decode(&block).unwrap();
                if let Signal::Ping(ping) = signal {
                    self.pings.push(ping);
                } else {
                    signals.push(signal);
                }
            }
        }
        signals
    }
}

#[test]
fn an_idle_source_frames_one_record_and_a_busy_one_gathers() {
    let mut rig = Rig::connected(Durability::Always);
    rig.write();
    let first = rig.frames();
    assert_eq!(first.len(), 1);
    (0..3).for_each(|_| rig.write());
    assert_eq!(rig.frames(), []);
    rig.written(first[0]);
    rig.acked(1);
    let second = rig.frames();
    assert_eq!(rig.core.frame_pieces(second[0], &mut Vec::new()).unwrap().entries, 1..4);
}

#[test]
fn answers_wait_for_both_sides_and_for_all_before() {
    let mut rig = Rig::connected(Durability::Always);
    rig.write();
    let first = rig.frames()[0];
    (0..8).for_each(|_| rig.write());
    let second = rig.frames()[0];
    rig.acked(9);
    rig.written(second);
    assert!(rig.answers().is_empty(), "the first isn't written");
    let mut found = Vec::new();
    rig.core.read(0, 0..4096, &mut found);
    assert_eq!(found[0].found, Found::Device, "what isn't committed isn't read");
    rig.written(first);
    assert_eq!(rig.answers(), (0..9).collect::<Vec<_>>());
    rig.core.read(0, 0..4096, &mut found);
    assert_eq!(found[1].found, Found::Memory(Place(8 << 20)));
}

#[test]
fn a_forced_write_waits_for_the_journal_sync() {
    let mut rig = Rig::connected(Durability::Flush);
    rig.store();
    rig.record(Kind::Write, RECORD_FUA, 0, 4096);
    let id = rig.frames()[0];
    rig.acked(2);
    rig.written(id);
    let effects = rig.turn();
    assert!(matches!(effects[..], [Effect::SyncJournal]), "{effects:?}");
    rig.core.handle_journal_synced();
    assert_eq!(rig.answers(), [1]);
}

#[test]
fn a_half_is_clean_after_flush_apply_and_superblock() {
    let mut rig = Rig::connected(Durability::Always);
    rig.store();
    rig.core.handle_sync(7);
    assert!(matches!(rig.turn()[..], [Effect::Switched(_)]));
    let last = rig.core.halves()[1].last;
    let resume = Signal::Resume { common: Mark::default() };
    assert_eq!(rig.signals(), [resume, Signal::Sync { last, whole: true }]);
    assert!(!rig.flush());
    assert_eq!(rig.core.halves()[1].state, State::Flushed);
    rig.core.handle_report(Report::Applied(last), &mut rig.effects);
    assert!(rig.flush());
    assert_eq!((rig.core.halves()[1].state, rig.core.verified()), (State::Flushed, Seq(1)));
    rig.superblock_written();
    let effects = rig.turn();
    assert!(matches!(effects[..], [Effect::Release(..), Effect::Release(..), Effect::SyncDone(7)]), "{effects:?}");
    assert_eq!(rig.core.halves()[1].state, State::Clean);
}

#[test]
fn the_sync_signal_waits_until_the_destination_holds_the_fill() {
    let mut rig = Rig::connected(Durability::Always);
    rig.store();
    rig.core.handle_sync(1);
    rig.turn();
    rig.core.handle_link_down(&mut rig.effects);
    // It comes back without what it had acknowledged.
    rig.welcome(Mark::default());
    rig.turn();
    assert_eq!(rig.signals().len(), 1, "resume, and no sync signal");
    rig.acked(1);
    assert!(matches!(rig.signals()[..], [Signal::Sync { .. }]));
}

#[test]
fn writes_wait_while_both_halves_are_in_use() {
    let mut rig = Rig::new(Durability::Always, false);
    let mut answered = 0;
    for _ in 0..400 {
        rig.write();
        for id in rig.frames() {
            rig.written(id);
        }
        answered += rig.answers().len();
    }
    assert!(answered > 100 && answered < 400, "{answered}");
    assert!(rig.core.waiting() > 0 && rig.core.halves().iter().all(|half| half.state > State::Open));
    assert!(rig.flush());
    assert_eq!(rig.frames(), [], "the superblock isn't durable");
    // The second half was flushed meanwhile, so another superblock follows.
    rig.core.handle_superblock_written(&mut rig.effects);
    rig.superblock_written();
    assert!(!rig.frames().is_empty(), "the half that became clean takes them");
}

#[test]
fn an_old_half_switches_where_it_can_be_stored() {
    let mut rig = Rig::connected(Durability::Always);
    rig.store();
    assert_eq!(rig.core.next_deadline(), Some(NOW + Duration::from_secs(10)));
    rig.core.handle_link_down(&mut rig.effects);
    assert_eq!(rig.core.next_deadline(), None, "a switch would only waste the half");
    rig.now += Duration::from_secs(10);
    assert!(rig.turn().is_empty());
    rig.welcome(rig.core.halves()[1].last);
    assert!(matches!(rig.turn()[..], [Effect::Switched(_)]));
}

#[test]
fn a_fenced_source_makes_no_frame() {
    let mut rig = Rig::connected(Durability::Always);
    let welcome = Welcome::refuse(Verdict::Fenced, Epoch(2), "");
    rig.core.handle_welcome(&welcome, &mut rig.effects);
    rig.write();
    let effects = rig.turn();
    assert!(matches!(effects[..], [Effect::WriteSuperblock(..), Effect::Fenced(Epoch(2))]), "{effects:?}");
    assert_eq!(rig.core.superblock().fenced_by, Epoch(2));
}

#[test]
fn a_destination_with_another_history_is_turned_away() {
    let mut rig = Rig::new(Durability::Always, true);
    rig.welcome(Mark { fill: Fill(1), seq: Seq(3), digest: Digest(4) });
    let effects = rig.turn();
    let [Effect::ClosePeer(reason)] = &effects[..] else { panic!("{effects:?}") };
    assert!(reason.contains("parted") && rig.core.next_to_send().is_none(), "{reason}");
}

#[test]
fn a_fresh_destination_gets_a_copy_and_the_fill_that_makes_it_whole() {
    let mut rig = Rig::new(Durability::Always, true);
    let fresh = Welcome { fresh: true, ..Welcome::refuse(Verdict::Welcome, Epoch(1), "") };
    rig.core.handle_welcome(&fresh, &mut rig.effects);
    let effects = rig.turn();
    assert!(matches!(effects[..], [Effect::WriteMap(..)]), "no superblock says so before");
    assert!(rig.signals().is_empty(), "that all is dirty must be durable first");
    rig.core.handle_map_written();
    assert!(matches!(rig.turn()[..], [Effect::WriteSuperblock(..)]));
    assert!(rig.signals().is_empty(), "and that the image isn't whole");
    rig.superblock_written();
    assert!(matches!(rig.signals()[..], [Signal::Restart { .. }]));
    let (number, window) = rig.core.next_copy().unwrap();
    assert_eq!((window.offset, window.length, window.asked), (0, 1 << 20, true));
    assert!(matches!(rig.signals()[..], [Signal::Ask { volume: 0, offset: 0, length: 0x10_0000, .. }]));
    let record = Record { volume: 0, kind: Kind::Trim, flags: RECORD_COPY, offset: 0, length: 1 << 20, checksum: 0 };
    let entry = Entry { record, place: Place(0), ticket: Ticket::NONE };
    rig.core.handle_copied(number, vec![entry], vec![(0, 1 << 20)], &mut rig.effects);
    let id = rig.frames()[0];
    rig.written(id);
    assert!(rig.core.copier().is_some());
    rig.acked(1);
    let end = rig.frames();
    assert!(rig.core.copier().is_none() && end.len() == 1, "one more record says that all is copied");
    rig.written(end[0]);
    rig.acked(2);
    rig.turn();
    assert!(matches!(rig.signals()[..], [Signal::Sync { whole: true, .. }]));
    assert!(rig.core.next_flush(&mut Vec::new()).is_none(), "the volume has these bytes already");
}

#[test]
fn only_the_end_of_a_complete_fill_can_be_applied() {
    let mut rig = Rig::connected(Durability::Always);
    rig.store();
    rig.write();
    rig.frames();
    let open = rig.core.halves()[1].last;
    for mark in [
        open,
        Mark { fill: Fill(2), ..open },
        Mark { fill: Fill(9), seq: Seq(99), digest: Digest(1) },
        Mark { fill: Fill(1), seq: Seq(99), ..open },
    ] {
        rig.core.handle_report(Report::Applied(mark), &mut rig.effects);
        assert!(matches!(rig.effects[..], [Effect::ClosePeer(_)]), "{mark}: {:?}", rig.effects);
        rig.effects.clear();
    }
    // Clean already, or so it says: no acknowledgement either.
    rig.core.handle_report(Report::Applied(Mark { seq: Seq(99), ..Mark::default() }), &mut rig.effects);
    assert_eq!((rig.core.acked(), rig.core.committed()), (Seq(1), Seq(1)));
}

#[test]
fn only_a_higher_epoch_fences() {
    let mut rig = Rig::connected(Durability::Always);
    for epoch in [0, 1] {
        rig.core.handle_report(Report::Fenced(Epoch(epoch)), &mut rig.effects);
        rig.core.handle_welcome(&Welcome::refuse(Verdict::Fenced, Epoch(epoch), ""), &mut rig.effects);
        assert!(matches!(rig.effects[..], [Effect::ClosePeer(_), Effect::ClosePeer(_)]), "{:?}", rig.effects);
        rig.effects.clear();
    }
    assert!(!rig.core.fenced());
    rig.core.handle_report(Report::Fenced(Epoch(2)), &mut rig.effects);
    assert!(rig.core.fenced());
}

/// What a destination says that goes on, where nothing is wrong.
fn greeting(rig: &Rig, common: Mark) -> Welcome {
    let (epoch, whole) = (rig.core.superblock().epoch, rig.core.superblock().whole);
    Welcome { whole, boundaries: vec![common], ..Welcome::refuse(Verdict::Welcome, epoch, "") }
}

/// A source that was told that the image is whole, and whose sealed fill says so.
fn sealed_and_whole() -> Rig {
    let mut rig = Rig::connected(Durability::Always);
    rig.store();
    rig.core.handle_sync(1);
    rig.turn();
    rig.core.handle_link_down(&mut rig.effects);
    assert!(rig.core.halves()[1].whole);
    rig
}

#[test]
fn a_destination_that_forgot_that_its_image_is_whole_is_not_told_so_before_all_is_copied() {
    let mut rig = sealed_and_whole();
    let welcome = Welcome { whole: false, ..greeting(&rig, rig.core.halves()[1].last) };
    rig.core.handle_welcome(&welcome, &mut rig.effects);
    assert_eq!(rig.core.copier().unwrap().tally().total_bytes, 1 << 20, "the copy starts over");
    rig.turn();
    let signals = rig.signals();
    let [Signal::Resume { .. }, Signal::Sync { whole: false, .. }] = signals[..] else { panic!("{signals:?}") };
    // Nor does a copy that was complete before count.
    assert!(!rig.core.halves().iter().any(|half| half.whole) && !rig.core.superblock().whole);
}

#[test]
fn a_destination_that_applied_what_was_never_signalled_gets_nothing_answered() {
    let mut rig = Rig::connected(Durability::Always);
    rig.write();
    let id = rig.frames()[0];
    rig.written(id);
    rig.core.handle_link_down(&mut rig.effects);
    let last = rig.core.halves()[1].last;
    // The fill is open here, so no sync signal ever named it.
    let welcome = Welcome { applied: last, ..greeting(&rig, last) };
    rig.core.handle_welcome(&welcome, &mut rig.effects);
    let effects = rig.turn();
    let [Effect::ClosePeer(reason)] = &effects[..] else { panic!("{effects:?}") };
    assert!(reason.contains("parted") && reason.contains("applied"), "{reason}");
    assert!(rig.core.next_to_send().is_none() && rig.core.committed() == Seq(0));
}

#[test]
fn a_destination_behind_the_clean_mark_is_given_its_sync_signal_again() {
    let clean = Mark { fill: Fill(4), seq: Seq(9), digest: Digest(7) };
    let superblock = Superblock { clean, ..superblock() };
    let recovered = Recovered { end: clean, ..Recovered::default() };
    let mut rig = Rig::of(shape(Durability::Always, true), superblock, recovered);
    let applied = Mark { fill: Fill(3), seq: Seq(5), digest: Digest(6) };
    let welcome = Welcome { applied, ..greeting(&rig, clean) };
    rig.core.handle_welcome(&welcome, &mut rig.effects);
    let signals = rig.signals();
    assert!(
        matches!(signals[..], [Signal::Resume { common, .. }, Signal::Sync { last, .. }] if common == clean && last == clean),
        "{signals:?}"
    );
    // One that is where it should be gets the resume only.
    rig.core.handle_link_down(&mut rig.effects);
    let welcome = Welcome { applied: clean, ..greeting(&rig, clean) };
    rig.core.handle_welcome(&welcome, &mut rig.effects);
    assert_eq!(rig.signals().len(), 1);
}

#[test]
fn only_an_epoch_that_is_not_of_the_past_fences_or_acknowledges() {
    for verdict in [Verdict::Fenced, Verdict::Welcome] {
        let mut rig = Rig::new(Durability::Always, true);
        rig.core.superblock.epoch = Epoch(3);
        let welcome = Welcome { verdict, epoch: Epoch(2), ..greeting(&rig, Mark::default()) };
        rig.core.handle_welcome(&welcome, &mut rig.effects);
        let effects = rig.turn();
        let [Effect::ClosePeer(reason)] = &effects[..] else { panic!("{effects:?}") };
        assert!(reason.contains("epoch 2") && !rig.core.fenced(), "{reason}");
    }
}

#[test]
fn a_fenced_source_answers_nothing_that_a_late_welcome_acknowledges() {
    let mut rig = Rig::connected(Durability::Always);
    rig.write();
    let id = rig.frames()[0];
    rig.written(id);
    let welcome = greeting(&rig, rig.core.halves()[1].last);
    rig.core.handle_report(Report::Fenced(Epoch(2)), &mut rig.effects);
    rig.effects.clear();
    rig.core.handle_welcome(&welcome, &mut rig.effects);
    let [Effect::ClosePeer(reason)] = &rig.effects[..] else { panic!("{:?}", rig.effects) };
    assert!(reason.contains("fenced"), "{reason}");
}

#[test]
fn how_the_two_have_parted_is_said() {
    let clean = Mark { fill: Fill(4), seq: Seq(9), digest: Digest(7) };
    for (seq, word) in [(20, "lost here"), (9, "isn't in this source's journal")] {
        let mut rig = Rig::new(Durability::Always, true);
        (rig.core.superblock.clean, rig.core.last) = (clean, clean);
        let theirs = Mark { fill: Fill(4), seq: Seq(seq), digest: Digest(1) };
        let welcome = Welcome { applied: clean, ..greeting(&rig, theirs) };
        rig.core.handle_welcome(&welcome, &mut rig.effects);
        let [Effect::ClosePeer(reason)] = &rig.effects[..] else { panic!("{:?}", rig.effects) };
        assert!(reason.contains("parted") && reason.contains(word), "{reason}");
    }
}
