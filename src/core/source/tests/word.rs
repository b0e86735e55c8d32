//! What the destination is told of how its source stands, and what binds it.

use super::*;
use crate::format::ping::Standing;

const TIMEOUT: Duration = Duration::from_secs(5);

fn rig(on_disconnect: OnDisconnect) -> Rig {
    let shape = Shape { policy: Policy { on_disconnect, timeout: TIMEOUT }, ..shape(Durability::Always, true) };
    let mut rig = Rig::of(shape, superblock(), Recovered::default());
    rig.welcome(Mark::default());
    rig.turn();
    rig
}

impl Rig {
    /// What it pings now, if it does.
    fn word(&mut self) -> Option<Ping> {
        self.turn();
        self.signals();
        self.pings.pop()
    }

    fn stands(&mut self) -> Option<Standing> {
        self.word().map(|ping| ping.standing)
    }

    fn pong(&mut self, stamp: u64) {
        self.core.handle_report(Report::Pong { stamp }, &mut self.effects);
    }

    fn policy(&mut self, on_disconnect: OnDisconnect) {
        self.core.handle_policy(Policy { on_disconnect, timeout: TIMEOUT });
    }

    fn parted_for(&mut self, time: Duration) -> Mode {
        self.core.handle_link_down(&mut self.effects);
        self.turn();
        self.now += time;
        self.turn();
        self.core.mode()
    }
}

#[test]
fn it_says_how_it_stands_at_once_and_when_that_changes() {
    let mut rig = rig(OnDisconnect::Continue);
    let word = rig.word().unwrap();
    assert_eq!((word.standing, word.timeout_ms, word.echo), (Standing::Bound, 5000, 0));
    rig.pong(77);
    assert_eq!(rig.word(), None);
    rig.now += TIMEOUT / 4;
    assert_eq!(rig.word().unwrap().echo, 77);
    rig.pong(88);
    rig.policy(OnDisconnect::Stall);
    let word = rig.word().unwrap();
    assert_eq!((word.standing, word.on_disconnect), (Standing::Bound, OnDisconnect::Stall));
    rig.core.handle_timeout(TIMEOUT * 2);
    assert_eq!(rig.word().unwrap().timeout_ms, 10_000);
    // Over another connection what was heard over this one says nothing.
    rig.core.handle_link_down(&mut rig.effects);
    rig.welcome(Mark::default());
    assert_eq!(rig.word().unwrap().echo, 0);
}

#[test]
fn what_was_found_at_the_start_counts_as_answered() {
    let mut rig = rig(OnDisconnect::Continue);
    rig.core.clock.word.find(Seq(9));
    assert_eq!(rig.word().unwrap().answered, Seq(9));
}

#[test]
fn nothing_is_promised_that_a_start_after_a_crash_would_not_keep() {
    let alone = Superblock { alone: true, ..superblock() };
    let never = Superblock { whole: false, ..superblock() };
    for (superblock, standing) in [(alone, Standing::Loose), (never, Standing::Loose)] {
        let policy = Policy { on_disconnect: OnDisconnect::Stall, timeout: TIMEOUT };
        let shape = Shape { policy, ..shape(Durability::Always, true) };
        let mut rig = Rig::of(shape, superblock, Recovered::default());
        rig.welcome(Mark::default());
        assert_eq!(rig.stands(), Some(standing));
    }
}

#[test]
fn a_policy_that_the_destination_did_not_hear_of_binds_until_the_operator_says_so() {
    // Stall was heard of; what came behind may be lost.
    let mut parted = rig(OnDisconnect::Stall);
    assert_eq!(parted.stands(), Some(Standing::Bound));
    parted.pong(1);
    parted.policy(OnDisconnect::Continue);
    assert!(parted.word().is_some());
    assert_eq!(parted.parted_for(TIMEOUT * 10), Mode::Waiting);
    assert!(parted.core.held_back() && parted.core.next_deadline().is_none());
    parted.policy(OnDisconnect::Continue);
    parted.turn();
    assert_eq!(parted.core.mode(), Mode::Alone);
    // One pong is for the ping before.
    let mut told = rig(OnDisconnect::Stall);
    assert!(told.word().is_some());
    told.policy(OnDisconnect::Continue);
    assert!(told.word().is_some());
    told.pong(1);
    assert_eq!(told.parted_for(TIMEOUT * 10), Mode::Waiting);
    let mut told = rig(OnDisconnect::Stall);
    assert!(told.word().is_some());
    told.policy(OnDisconnect::Continue);
    assert!(told.word().is_some());
    told.pong(1);
    told.pong(2);
    assert_eq!(told.parted_for(TIMEOUT), Mode::Alone);
}

#[test]
fn a_timeout_that_was_said_counts_though_it_is_made_shorter() {
    let mut rig = rig(OnDisconnect::Continue);
    assert!(rig.word().is_some());
    rig.core.handle_timeout(Duration::from_secs(1));
    assert_eq!(rig.parted_for(TIMEOUT - Duration::from_millis(1)), Mode::Waiting);
    assert_eq!(rig.core.next_deadline(), Some(rig.now + Duration::from_millis(1)));
    rig.now += Duration::from_millis(1);
    rig.turn();
    assert_eq!(rig.core.mode(), Mode::Alone);
}

#[test]
fn the_last_word_is_that_it_ends() {
    let mut rig = rig(OnDisconnect::Continue);
    assert!(rig.word().is_some());
    rig.pong(1);
    assert!(rig.core.handle_end() && !rig.core.has_ended());
    assert_eq!(rig.stands(), Some(Standing::Ended));
    assert!(!rig.core.has_ended() && rig.core.next_to_send().is_none());
    rig.pong(2);
    assert!(rig.core.has_ended());
    // However long it takes: nothing is answered alone any more.
    assert_eq!(rig.parted_for(TIMEOUT * 10), Mode::Waiting);
    // One that is alone has no such word to say.
    let mut alone = self::rig(OnDisconnect::Continue);
    assert_eq!(alone.parted_for(TIMEOUT), Mode::Alone);
    assert!(!alone.core.handle_end() && alone.core.has_ended());
}
