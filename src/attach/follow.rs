//! How a device follows its volume: whom to ask, whom to take, when to try again. Decisions only, without a clock.

use super::choice::{Offer, Refusal, Wanted, best, judge};
use crate::format::ids::Epoch;
use std::time::Duration;

/// Between two looks at the other servers while all is well. It is what a failover costs at most before it is noticed,
/// where the lost server hangs instead of dying.
const POLL: Duration = Duration::from_millis(250);
/// The first pause between two looks while there is no server: a restart takes a moment.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// How long a device that was just connected may take to be read for the first time.
const FIRST_CONFIRM: Duration = Duration::from_secs(1);
/// The longest such time: a server may be slow, and each attempt ends the connection before.
const LONGEST_CONFIRM: Duration = Duration::from_secs(16);

/// A server's answer: what it offers, or why it can't be asked.
pub type Answer = Result<Offer, String>;

/// Where a device stands with its servers, which are known by their place in the list.
#[derive(Debug)]
pub struct Follow {
    wanted: Wanted,
    servers: usize,
    current: Option<usize>,
    connected: bool,
    misses: u32,
    unconfirmed: u32,
}

impl Follow {
    /// A device that isn't connected to any of so many servers.
    pub fn new(wanted: Wanted, servers: usize) -> Follow {
        Follow { wanted, servers, current: None, connected: false, misses: 0, unconfirmed: 0 }
    }

    /// What a server must be.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// The server that the device goes to, or went to last.
    pub fn current(&self) -> Option<usize> {
        self.current
    }

    /// Whether it is connected, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whom to ask now: while all is well the others only, who may have been promoted.
    pub fn asked(&self) -> Vec<usize> {
        (0..self.servers).filter(|server| !self.connected || Some(*server) != self.current).collect()
    }

    /// How long to wait before the servers are asked again.
    pub fn pause(&self) -> Duration {
        if self.connected {
            return POLL;
        }
        FIRST_PAUSE.saturating_mul(1 << self.misses.min(8)).min(LONGEST_PAUSE)
    }

    /// How long the device may take to be read, now that it was given a connection.
    pub fn confirm_limit(&self) -> Duration {
        FIRST_CONFIRM.saturating_mul(1 << self.unconfirmed.min(8)).min(LONGEST_CONFIRM)
    }

    /// Whether an answer settles it without the others': its server was promoted after all that was seen so far.
    pub fn settles(&self, answer: &Answer) -> bool {
        let verdict = answer.as_ref().ok().and_then(|offer| judge(&self.wanted, offer).ok());
        verdict.is_some_and(|epoch| epoch > self.wanted.epoch)
    }

    /// Whether a server could be taken, unless another turns out to be newer.
    pub fn would_do(&self, answer: &Answer) -> bool {
        !self.connected && answer.as_ref().is_ok_and(|offer| judge(&self.wanted, offer).is_ok())
    }

    /// The connection died.
    pub fn handle_link_dead(&mut self) {
        self.connected = false;
        self.misses = 0;
    }

    /// Servers were asked. Returns the one to go to, as an index into the answers, and what is wrong with each.
    ///
    /// A connected device goes only to a server of a higher epoch: its own is out of date then, whatever it says or
    /// doesn't say. From here on nothing older is taken, even if the new one is lost before the device gets there.
    pub fn handle_answers(&mut self, answers: &[Answer]) -> (Option<usize>, Vec<Option<Refusal>>) {
        let verdict = |answer: &Answer| match answer {
            Ok(offer) => judge(&self.wanted, offer),
            Err(reason) => Err(Refusal::Unreachable(reason.clone())),
        };
        let verdicts: Vec<Result<Epoch, Refusal>> = answers.iter().map(verdict).collect();
        let epoch = |index: usize| verdicts.get(index).and_then(|verdict| verdict.as_ref().ok()).copied();
        let taken = best(&verdicts).filter(|&index| !self.connected || epoch(index) > Some(self.wanted.epoch));
        if let Some(epoch) = taken.and_then(epoch) {
            self.wanted.epoch = epoch;
            self.connected = false;
        } else if !self.connected {
            self.misses = self.misses.saturating_add(1);
        }
        (taken, verdicts.into_iter().map(Result::err).collect())
    }

    /// The device was read after it was connected to this server.
    pub fn handle_confirmed(&mut self, server: Option<usize>) {
        self.current = server;
        self.connected = true;
        self.misses = 0;
        self.unconfirmed = 0;
    }

    /// The server can't be gone to, or the device can't be read after it was connected to it.
    pub fn handle_unconfirmed(&mut self) {
        self.connected = false;
        self.misses = self.misses.saturating_add(1);
        self.unconfirmed = self.unconfirmed.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::choice::Device;
    use crate::format::nbd::identity::{Identity, Role, VolumeId};

    const FLAGS: u16 = 0x16d;

    fn serves(epoch: u64) -> Answer {
        let identity = Identity { volume: VolumeId([7; 16]), epoch: Epoch(epoch), role: Role::Primary };
        Ok(Offer {
            identity: Some(identity),
            size_bytes: 1 << 20,
            flags: FLAGS,
            min_block_bytes: 512,
            preferred_block_bytes: 4096,
        })
    }

    fn image(epoch: u64) -> Answer {
        serves(epoch).map(|offer| {
            let identity = offer.identity.map(|identity| Identity { role: Role::Image, ..identity });
            Offer { identity, ..offer }
        })
    }

    fn silent() -> Answer {
        Err("can't connect: Connection refused".into())
    }

    /// A device with two servers, connected to the first one in epoch 1.
    fn connected() -> Follow {
        let device = Device { size_bytes: 1 << 20, block_bytes: 4096, flags: Some(FLAGS) };
        let wanted = Wanted { volume: VolumeId([7; 16]), epoch: Epoch(1), device: Some(device) };
        let mut follow = Follow::new(wanted, 2);
        assert_eq!(follow.handle_answers(&[serves(1), image(1)]).0, Some(0));
        follow.handle_confirmed(Some(0));
        follow
    }

    #[test]
    fn while_all_is_well_only_the_others_are_asked() {
        let mut follow = connected();
        assert_eq!((follow.asked(), follow.pause()), (vec![1], POLL));
        for answer in [silent(), image(1), image(9), serves(1)] {
            assert_eq!(follow.handle_answers(&[answer]).0, None);
            assert!(follow.is_connected());
        }
    }

    #[test]
    fn a_promoted_server_is_taken_though_the_old_one_hangs() {
        let mut follow = connected();
        assert!(follow.settles(&serves(2)) && !follow.settles(&serves(1)));
        assert_eq!(follow.handle_answers(&[serves(2)]).0, Some(0), "the first of those asked");
        assert!(!follow.is_connected());
        follow.handle_confirmed(Some(1));
        assert_eq!((follow.current(), follow.asked()), (Some(1), vec![0]));
        // The old one thaws.
        assert_eq!(follow.handle_answers(&[serves(1)]).0, None);
        assert!(follow.is_connected());
    }

    #[test]
    fn a_dead_server_is_gone_back_to_after_its_restart() {
        let mut follow = connected();
        follow.handle_link_dead();
        assert_eq!(follow.asked(), [0, 1]);
        assert!(follow.would_do(&serves(1)) && !follow.would_do(&image(1)) && !follow.settles(&serves(1)));
        assert_eq!(follow.handle_answers(&[silent(), image(1)]).0, None);
        assert_eq!(follow.handle_answers(&[serves(1), image(1)]).0, Some(0));
        follow.handle_confirmed(Some(0));
        assert!(follow.is_connected());
    }

    #[test]
    fn of_two_that_serve_the_promoted_one_is_taken() {
        let mut follow = connected();
        follow.handle_link_dead();
        assert_eq!(follow.handle_answers(&[serves(1), serves(2)]).0, Some(1));
    }

    #[test]
    fn once_a_newer_one_was_seen_nothing_older_is_taken() {
        let mut follow = connected();
        assert_eq!(follow.handle_answers(&[serves(2)]).0, Some(0));
        // It is lost before the device gets there; the old one answers again.
        follow.handle_unconfirmed();
        let (taken, refusals) = follow.handle_answers(&[serves(1), silent()]);
        assert_eq!(taken, None);
        assert!(matches!(&refusals[0], Some(Refusal::Stale { found: Epoch(1), seen: Epoch(2) })), "{refusals:?}");
        assert_eq!(follow.handle_answers(&[serves(1), serves(2)]).0, Some(1));
    }

    #[test]
    fn pauses_grow_and_end_with_success() {
        let mut follow = connected();
        follow.handle_link_dead();
        assert_eq!(follow.pause(), FIRST_PAUSE);
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            let pause = follow.pause();
            assert!(pause >= last && pause <= LONGEST_PAUSE);
            last = pause;
            follow.handle_answers(&[silent(), silent()]);
        }
        assert_eq!(last, LONGEST_PAUSE);
        assert_eq!(follow.confirm_limit(), FIRST_CONFIRM);
        (0..100).for_each(|_| follow.handle_unconfirmed());
        assert_eq!(follow.confirm_limit(), LONGEST_CONFIRM);
        follow.handle_confirmed(Some(1));
        follow.handle_link_dead();
        assert_eq!((follow.pause(), follow.confirm_limit()), (FIRST_PAUSE, FIRST_CONFIRM));
    }
}
