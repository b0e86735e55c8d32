//! Without the destination, and together again.

use super::*;
use crate::limits::COPY_WINDOW_BYTES;

const TIMEOUT: Duration = Duration::from_secs(5);

fn with_policy(on_disconnect: OnDisconnect) -> Shape {
    Shape { policy: Policy { on_disconnect, timeout: TIMEOUT }, ..shape(Durability::Always, true) }
}

fn rig(on_disconnect: OnDisconnect) -> Rig {
    let mut rig = Rig::of(with_policy(on_disconnect), superblock(), Recovered::default());
    rig.welcome(Mark::default());
    rig.turn();
    rig.signals();
    rig
}

impl Rig {
    fn later(&mut self, by: Duration) -> Vec<Effect> {
        self.now += by;
        let effects = self.turn();
        if effects.iter().any(|effect| matches!(effect, Effect::WriteSuperblock(..))) {
            self.superblock_written();
        }
        effects
    }

    fn parted(&mut self) {
        self.core.handle_link_down(&mut self.effects);
        self.later(Duration::ZERO);
        self.later(TIMEOUT);
    }

    /// Writes and flushes until the open fill is clean; the blocks of the dirty bitmap that were written.
    fn retire(&mut self) -> usize {
        self.core.handle_sync(9);
        let (mut maps, mut idle) = (0, 0);
        while idle < 3 {
            let mut effects = self.turn();
            while self.core.next_flush(&mut Vec::new()).is_some() {
                self.core.handle_flush_written();
            }
            idle += usize::from(effects.is_empty());
            for effect in effects.drain(..) {
                match effect {
                    Effect::SyncVolume(volume) => self.core.handle_volume_synced(volume),
                    Effect::WriteMap(..) => {
                        maps += 1;
                        assert_eq!(self.core.superblock().clean.fill.0 + 1, self.core.open_fill().0 - 1);
                        self.core.handle_map_written();
                    }
                    Effect::WriteSuperblock(..) => self.superblock_written(),
                    Effect::WriteFrame(id) => self.written(id),
                    _ => {}
                }
            }
        }
        maps
    }

    fn write_alone(&mut self, offset: u64) {
        self.record(Kind::Write, 0, offset, 4096);
        for id in self.frames() {
            self.written(id);
        }
        assert_eq!(self.answers(), [self.tickets - 1]);
    }
}

#[test]
fn it_goes_alone_after_the_timeout_and_says_since_when() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.write();
    let id = rig.frames()[0];
    rig.written(id);
    rig.core.handle_link_down(&mut rig.effects);
    assert!(rig.turn().is_empty());
    assert_eq!((rig.core.mode(), rig.core.next_deadline()), (Mode::Waiting, Some(NOW + TIMEOUT)));
    let effects = rig.later(TIMEOUT);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Answer(Ticket(0)))));
    let superblock = rig.core.superblock();
    assert!(superblock.alone && superblock.lacking_since_unix_s == 1_000_100, "{superblock:?}");
    assert_eq!(rig.core.mode(), Mode::Alone);
    rig.write_alone(4096);
}

#[test]
fn what_changes_while_it_is_alone_is_marked_before_a_half_is_clean() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.store();
    while rig.core.next_to_send().is_some() {}
    rig.parted();
    rig.write_alone(200 << 10);
    assert_eq!(rig.retire(), 1);
    assert_eq!(rig.core.superblock().clean.seq, Seq(2));
    assert_eq!(rig.core.dirty_bytes(), 2 * u64::from(GRAIN_BYTES), "the record that was on both sides as well");
    let known = &rig.core.superblock().known;
    assert_eq!(known.iter().map(|mark| mark.seq).collect::<Vec<_>>(), [Seq(0), Seq(1)], "the second was never sent");
    rig.write_alone(0);
    assert_eq!(rig.retire(), 0, "marked already");
}

#[test]
fn a_destination_that_the_journal_no_longer_reaches_settles_and_gets_what_is_dirty() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.store();
    while rig.core.next_to_send().is_some() {}
    rig.parted();
    rig.write_alone(200 << 10);
    rig.retire();
    let known = rig.core.superblock().known[1];
    rig.welcome(known);
    assert_eq!(rig.signals(), [Signal::Settle { common: known }]);
    rig.write_alone(300 << 10);
    assert_eq!(rig.core.mode(), Mode::Alone, "clients don't wait for the settling");
    rig.core.handle_report(Report::Settled(known), &mut rig.effects);
    assert!(rig.signals().is_empty(), "that the copy isn't whole must be durable first");
    rig.later(Duration::ZERO);
    let at = rig.core.superblock().clean;
    assert_eq!(rig.signals(), [Signal::Restart { at }]);
    assert!(!rig.core.superblock().whole && rig.core.copier().unwrap().tally().total_bytes == 128 << 10);
    rig.acked(3);
    // Both grains, of which one is equal.
    for (offset, equal) in [(0, true), (192 << 10, false)] {
        let (number, window) = rig.core.next_copy().unwrap();
        assert_eq!(window.offset, offset);
        let entry = Entry {
            record: Record { volume: 0, kind: Kind::Trim, flags: RECORD_COPY, offset, length: 4096, checksum: 0 },
            place: Place(0),
            ticket: Ticket::NONE,
        };
        let (entries, differing) = if equal { (vec![], vec![]) } else { (vec![entry], vec![(offset, 4096)]) };
        rig.core.handle_copied(number, entries, differing, &mut rig.effects);
        for id in rig.frames() {
            rig.written(id);
        }
        rig.acked(rig.core.last().0);
    }
    for _ in 0..3 {
        for id in rig.frames() {
            rig.written(id);
        }
        rig.acked(rig.core.last().0);
    }
    let last = rig.core.halves().iter().map(|half| half.last).max_by_key(|mark| mark.seq).unwrap();
    let signals = rig.signals();
    assert_eq!(signals.last(), Some(&Signal::Sync { last, whole: true }), "{signals:?}");
    assert_eq!(rig.core.dirty_bytes(), 128 << 10, "until it is applied");
    rig.core.handle_report(Report::Applied(last), &mut rig.effects);
    rig.retire();
    let superblock = rig.core.superblock();
    assert!(superblock.whole && superblock.known.is_empty() && rig.core.dirty_bytes() == 0, "{superblock:?}");
}

#[test]
fn a_destination_at_a_boundary_that_nobody_remembers_is_compared_as_a_whole() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.store();
    while rig.core.next_to_send().is_some() {}
    rig.parted();
    rig.write_alone(0);
    rig.retire();
    let theirs = Mark { fill: Fill(1), seq: Seq(1), digest: Digest(99) };
    rig.welcome(theirs);
    assert_eq!(rig.signals(), [Signal::Settle { common: theirs }]);
    assert_eq!(rig.core.dirty_bytes(), 1 << 20);
    rig.core.handle_report(Report::Settled(theirs), &mut rig.effects);
    let effects = rig.later(Duration::ZERO);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::WriteMap(..))));
    assert!(rig.signals().is_empty(), "that all is dirty must be durable first");
    rig.core.handle_map_written();
    rig.later(Duration::ZERO);
    assert!(matches!(rig.signals()[..], [Signal::Restart { .. }]));
}

#[test]
fn a_short_absence_costs_nothing_but_what_was_missed() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.store();
    while rig.core.next_to_send().is_some() {}
    rig.parted();
    let common = rig.core.halves()[1].last;
    rig.write_alone(8192);
    rig.welcome(common);
    rig.later(Duration::ZERO);
    let mut sent = Vec::new();
    while let Some(send) = rig.core.next_to_send() {
        sent.push(send);
    }
    assert!(matches!(sent.remove(0), Send::Block(ping) if matches!(Signal::decode(&ping), Ok(Signal::Ping(_)))));
    let [Send::Block(_), Send::Frame(FrameId { index: 1, .. })] = sent[..] else { panic!() };
    assert_eq!((rig.core.dirty_bytes(), rig.core.superblock().whole), (0, true));
    // Acknowledgements count again when it has caught up and the connection has held, and that is durable.
    rig.acked(2);
    rig.later(Duration::from_millis(900));
    assert_eq!(rig.core.mode(), Mode::Alone);
    rig.now += Duration::from_millis(100);
    let effects = rig.turn();
    assert!(matches!(effects[..], [Effect::WriteSuperblock(..)]));
    assert_eq!(rig.core.mode(), Mode::Alone);
    rig.superblock_written();
    rig.turn();
    assert_eq!((rig.core.mode(), rig.core.superblock().lacking_since_unix_s), (Mode::Together, 0));
}

#[test]
fn each_parting_makes_it_wait_longer_before_it_trusts_the_connection() {
    let mut rig = rig(OnDisconnect::Continue);
    for hold in [1, 4, 16, 64, 64] {
        rig.parted();
        assert_eq!(rig.core.mode(), Mode::Alone);
        rig.welcome(Mark::default());
        rig.later(Duration::ZERO);
        rig.signals();
        rig.later(Duration::from_secs(hold) - Duration::from_millis(1));
        rig.core.handle_report(Report::Pong { stamp: 0 }, &mut rig.effects);
        rig.later(Duration::ZERO);
        assert_eq!(rig.core.mode(), Mode::Alone, "{hold}");
        rig.later(Duration::from_millis(1));
        rig.later(Duration::ZERO);
        assert_eq!(rig.core.mode(), Mode::Together, "{hold}");
    }
    // What is long ago is forgiven.
    rig.now += Duration::from_secs(700);
    rig.core.handle_report(Report::Pong { stamp: 0 }, &mut rig.effects);
    rig.turn();
    rig.parted();
    rig.welcome(Mark::default());
    rig.later(Duration::ZERO);
    rig.signals();
    rig.later(Duration::from_secs(1));
    rig.later(Duration::ZERO);
    assert_eq!(rig.core.mode(), Mode::Together);
}

#[test]
fn a_silent_destination_is_gone() {
    let mut rig = rig(OnDisconnect::Stall);
    rig.now += TIMEOUT / 4;
    rig.turn();
    rig.pings.clear();
    assert!(rig.signals().is_empty() && rig.pings.len() == 1);
    rig.core.handle_report(Report::Pong { stamp: 0 }, &mut rig.effects);
    rig.turn();
    rig.now += TIMEOUT - Duration::from_millis(1);
    assert!(rig.turn().is_empty());
    rig.now += Duration::from_millis(1);
    let effects = rig.turn();
    let [Effect::ClosePeer(reason)] = &effects[..] else { panic!() };
    assert!(reason.contains("silent for 5.0 s"), "{reason}");
}

#[test]
fn writes_fail_after_the_timeout_where_that_is_the_policy() {
    let mut rig = rig(OnDisconnect::Fail);
    rig.write();
    let id = rig.frames()[0];
    rig.written(id);
    rig.core.handle_link_down(&mut rig.effects);
    rig.write();
    rig.turn();
    rig.write();
    rig.now += TIMEOUT;
    let effects = rig.turn();
    let failed = effects.iter().filter(|effect| matches!(effect, Effect::Fail(_))).count();
    assert_eq!((failed, rig.core.failing(), rig.core.mode()), (3, true, Mode::Failing));
    assert!(!rig.core.superblock().alone);
    // Those that have a place in the order keep it, and are answered once only.
    rig.welcome(Mark::default());
    rig.turn();
    assert_eq!(rig.core.mode(), Mode::Failing, "it has to prove that it stores something");
    rig.acked(1);
    rig.turn();
    assert_eq!((rig.core.failing(), rig.core.mode()), (false, Mode::Together));
    let written: Vec<FrameId> = rig.core.flights.iter().filter(|f| !f.written).map(|f| f.id).collect();
    written.into_iter().for_each(|id| rig.written(id));
    rig.acked(rig.core.last().0);
    assert!(rig.answers().is_empty());
}

#[test]
fn a_source_that_waited_at_its_start_does_not_go_alone_when_its_destination_comes() {
    let mut rig = Rig::of(with_policy(OnDisconnect::Continue), superblock(), Recovered::default());
    rig.write();
    rig.turn();
    rig.later(TIMEOUT * 10);
    assert!(rig.core.held_back());
    rig.welcome(Mark::default());
    rig.turn();
    assert_eq!((rig.core.mode(), rig.core.held_back()), (Mode::Together, false));
    // But for no longer than any other one that proves nothing.
    rig.core.handle_report(Report::Pong { stamp: 0 }, &mut rig.effects);
    rig.later(TIMEOUT);
    assert_eq!(rig.core.mode(), Mode::Alone);
}

#[test]
fn a_source_that_was_in_step_waits_at_its_start_until_somebody_says_otherwise() {
    let mut rig = Rig::of(with_policy(OnDisconnect::Continue), superblock(), Recovered::default());
    rig.turn();
    rig.later(TIMEOUT * 10);
    assert!(rig.core.held_back() && rig.core.mode() == Mode::Waiting && rig.core.next_deadline().is_none());
    rig.core.handle_timeout(TIMEOUT * 2);
    rig.later(TIMEOUT * 10);
    assert!(rig.core.held_back() && rig.core.mode() == Mode::Waiting, "another timeout releases nothing");
    rig.core.handle_policy(Policy { on_disconnect: OnDisconnect::Continue, timeout: TIMEOUT });
    rig.later(Duration::ZERO);
    assert_eq!((rig.core.mode(), rig.core.held_back()), (Mode::Alone, false));
    // One that was alone goes on at once, one that never had a destination after the timeout.
    let alone = Superblock { alone: true, ..superblock() };
    let rig = Rig::of(with_policy(OnDisconnect::Continue), alone, Recovered::default());
    assert_eq!(rig.core.mode(), Mode::Alone);
    let never = Superblock { whole: false, ..superblock() };
    let mut rig = Rig::of(with_policy(OnDisconnect::Continue), never, Recovered::default());
    rig.turn();
    rig.later(TIMEOUT);
    assert_eq!((rig.core.mode(), rig.core.superblock().lacking_since_unix_s), (Mode::Alone, 0));
}

#[test]
fn a_verify_counts_what_differs_and_is_over_when_the_connection_is() {
    let mut rig = rig(OnDisconnect::Stall);
    assert!(rig.core.handle_verify(false).is_ok() && rig.core.handle_verify(true).is_err());
    let (number, window) = rig.core.next_copy().unwrap();
    assert_eq!((window.length, window.asked), (COPY_WINDOW_BYTES, true));
    rig.core.handle_copied(number, Vec::new(), vec![(4096, 8192)], &mut rig.effects);
    let effects = rig.turn();
    let [Effect::Verified(Ok(tally))] = &effects[..] else { panic!() };
    assert_eq!((&tally.ranges[..], tally.done_bytes, tally.sent_bytes), (&[(0, 4096, 8192)][..], 1 << 20, 0));
    assert!(rig.core.handle_verify(false).is_ok());
    rig.core.handle_link_down(&mut rig.effects);
    assert!(matches!(rig.turn()[..], [Effect::Verified(Err(_))]));
    assert!(rig.core.handle_verify(false).unwrap_err().contains("no connection"));
}

#[test]
fn a_destination_that_takes_connections_and_stores_nothing_is_as_good_as_away() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.write();
    let id = rig.frames()[0];
    rig.written(id);
    for _ in 0..6 {
        rig.core.handle_link_down(&mut rig.effects);
        rig.later(Duration::from_millis(500));
        rig.welcome(Mark::default());
        rig.later(Duration::from_millis(500));
        rig.core.handle_report(Report::Pong { stamp: 0 }, &mut rig.effects);
    }
    assert_eq!((rig.core.mode(), rig.core.committed()), (Mode::Alone, Seq(1)));
}

#[test]
fn what_a_destination_vouches_for_is_remembered() {
    let mut rig = rig(OnDisconnect::Continue);
    for _ in 0..3 {
        rig.store();
    }
    while rig.core.next_to_send().is_some() {}
    rig.parted();
    for n in 0..100 {
        rig.write_alone(n * 4096);
    }
    // All of it may have been sent.
    rig.core.sent = rig.core.last();
    rig.retire();
    let known: Vec<u64> = rig.core.superblock().known.iter().map(|mark| mark.seq.0).collect();
    assert!(known.contains(&3) && known.contains(&103) && known.is_sorted(), "{known:?}");
}

#[test]
fn what_was_applied_counts_for_nothing_once_the_destination_goes_back() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.store();
    rig.core.handle_sync(1);
    rig.turn();
    let last = rig.core.halves()[1].last;
    rig.core.handle_report(Report::Applied(last), &mut rig.effects);
    assert!(rig.core.halves()[1].applied);
    rig.core.handle_link_down(&mut rig.effects);
    // Restored from before.
    rig.core.superblock.clean = Mark { seq: Seq(1), ..Mark::default() };
    rig.welcome(Mark { fill: Fill(0), seq: Seq(0), digest: Digest(9) });
    assert!(matches!(rig.core.link, Link::Settling { .. }) && !rig.core.halves()[1].applied);
}

#[test]
fn frames_wait_for_a_half_that_is_free_here_but_not_there() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.store();
    while rig.core.next_to_send().is_some() {}
    rig.parted();
    rig.retire();
    rig.write_alone(8192);
    let clean = rig.core.superblock().clean;
    rig.welcome(clean);
    rig.later(Duration::ZERO);
    rig.core.handle_sync(1);
    rig.turn();
    rig.write_alone(0);
    let frames = |rig: &mut Rig| {
        let sent = std::iter::from_fn(|| rig.core.next_to_send());
        sent.filter(|send| matches!(send, Send::Frame(_))).count()
    };
    assert_eq!(frames(&mut rig), 1, "of the second fill");
    rig.acked(2);
    rig.turn();
    assert_eq!(frames(&mut rig), 0, "the third one's half holds the first, which isn't applied there");
    rig.core.handle_report(Report::Applied(clean), &mut rig.effects);
    assert_eq!(frames(&mut rig), 1);
}

#[test]
fn a_destination_between_two_known_boundaries_needs_drop_nothing() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.store();
    while rig.core.next_to_send().is_some() {}
    rig.parted();
    rig.write_alone(0);
    rig.write_alone(0);
    rig.retire();
    let known = rig.core.superblock().known[1];
    let newest = Mark { fill: Fill(1), seq: Seq(2), digest: Digest(99) };
    let boundaries = vec![known, newest];
    let welcome = Welcome { whole: true, boundaries, ..Welcome::refuse(Verdict::Welcome, Epoch(1), "") };
    rig.core.handle_welcome(&welcome, &mut rig.effects);
    assert_eq!(rig.signals(), [Signal::Settle { common: newest }]);
    assert_eq!(rig.core.dirty_bytes(), 1 << 20, "all is compared");
}

#[test]
fn a_sync_ends_though_what_waited_for_it_got_errors() {
    let mut rig = rig(OnDisconnect::Fail);
    rig.parted();
    assert!(rig.core.failing());
    rig.write();
    rig.core.handle_sync(3);
    let effects = rig.turn();
    assert!(matches!(effects[..], [Effect::Fail(_), Effect::Release(..), Effect::SyncDone(3)]), "{effects:?}");
}
