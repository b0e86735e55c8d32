//! Roles change hands in any order, again and again, while clients write: switchovers, failovers with a rejoin, and crashes
//! of either side or of both. At each change of hands every answered write has to be there.
//!
//! What happens in which order is decided by a seed. `NBD_MIRROR_SOAK=100` makes so many changes instead of a few,
//! `NBD_MIRROR_SOAK_SEED` others than the usual ones.

use std::sync::Arc;

use crate::harness::{Chance, Daemon, Endpoint, Habits, Ledger, Load, Mirror};
use crate::kills::number;
use crate::swap::{plan, served};

const VOLUMES: [&str; 2] = ["vol0", "vol1"];
/// Answered writes before a change of hands, and behind it.
const WRITES: u64 = 200;

/// Both sides, of which one serves at a time.
struct Pair {
    mirror: Mirror,
    ledger: Arc<Ledger>,
    /// 0: the one that began as the source.
    serves: usize,
    seed: u64,
}

impl Pair {
    fn side(&mut self, side: usize) -> &mut Daemon {
        if side == 0 { &mut self.mirror.source } else { &mut self.mirror.destination }
    }

    fn end(&self, side: usize) -> Endpoint {
        if side == 0 { self.mirror.unix() } else { self.mirror.promoted() }
    }

    fn standby(&self) -> usize {
        1 - self.serves
    }

    fn load(&self) -> Load {
        let exports = VOLUMES.map(|name| (self.end(self.serves), name.to_owned()));
        let habits = Habits { seed: self.seed, largest: 4, mixed: true, ..Habits::PLAIN };
        let load = Load::with(&self.ledger, &exports, 2, habits);
        load.wait_for_answers(WRITES);
        load
    }

    #[track_caller]
    fn wait_until_in_step(&mut self) {
        let serves = self.serves;
        self.side(serves).wait_until_in_step();
    }

    #[track_caller]
    fn assert_nothing_lost(&self, what: &str) {
        self.ledger.settle(what, &served(&self.end(self.serves)));
    }

    fn switch_over(&mut self) {
        let load = self.load();
        let (from, to) = (self.serves, self.standby());
        self.side(from).verb(&["switchover"]).success();
        load.stop();
        self.serves = to;
        self.assert_nothing_lost("after a switchover");
    }

    fn fail_over(&mut self) {
        let load = self.load();
        let (lost, to) = (self.serves, self.standby());
        self.side(lost).kill();
        load.stop();
        self.side(to).verb(&["promote", "--force", "alpha"]).success();
        self.serves = to;
        self.assert_nothing_lost("after a failover");
        let load = self.load();
        self.side(lost).restart();
        self.side(lost).wait_for_serving("it is fenced", |serving| serving["state"] == "fenced");
        // What was in flight may be only there.
        self.side(lost).verb(&["rejoin", "--discard"]).success();
        self.wait_until_in_step();
        load.wait_for_answers(WRITES);
        load.stop();
    }

    /// These sides crash together and come back. Nothing changes hands.
    fn crash(&mut self, sides: &[usize]) {
        let load = self.load();
        for side in sides {
            self.side(*side).kill();
        }
        for side in sides {
            self.side(*side).restart();
        }
        load.wait_for_answers(WRITES);
        load.stop();
        self.assert_nothing_lost("after a crash");
    }
}

#[test]
fn roles_change_hands_in_any_order_and_nothing_answered_is_lost() {
    let seed = number("NBD_MIRROR_SOAK_SEED").unwrap_or(1);
    let mut plan = plan();
    // Nobody goes on alone because this machine is busy: what is answered is on both sides.
    plan.source.timeout = "10s".to_owned();
    let mirror = plan.start();
    mirror.assert_in_step();
    let mut pair = Pair { mirror, ledger: Arc::new(Ledger::new(2, 2048, true)), serves: 0, seed };
    let mut chance = Chance::new(&[seed]);
    for round in 0..number("NBD_MIRROR_SOAK").unwrap_or(8) {
        pair.seed = chance.next();
        let (serves, standby) = (pair.serves, pair.standby());
        let change = chance.below(6);
        eprintln!("round {round}: side {serves} serves, change {change}");
        match change {
            0 | 1 => pair.switch_over(),
            2 | 3 => pair.fail_over(),
            4 => pair.crash(&[if chance.one_in(2) { serves } else { standby }]),
            _ => pair.crash(&[serves, standby]),
        }
        pair.wait_until_in_step();
    }
    // Each side has it all.
    pair.switch_over();
    pair.wait_until_in_step();
    pair.switch_over();
}
