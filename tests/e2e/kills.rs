//! SIGKILL of source and destination at random moments, under a stamped load, in many short rounds; the same over a
//! link that is cut, delayed, silent or delivers in crumbs; rounds in which the source goes on alone while the two are
//! apart; and rounds that end in a promote.
//!
//! No power is cut, so in both durabilities nothing that was answered may ever be lost where the source waits for its
//! destination; and where it doesn't, nothing that was answered before it went alone. What else a copy must show is
//! the ledger's matter (`harness/ledger.rs`).
//!
//! A seed decides whatever is random here, so a failure names its seed and its round. Round n of a seed draws from
//! numbers of its own, but meets what the rounds before it left behind; so a replay begins with the first one.
//!
//! - `NBD_MIRROR_KILLS_SEED=n`: another seed than the usual one.
//! - `NBD_MIRROR_KILLS_ROUNDS=n`: so many rounds in each of these tests.
//! - `NBD_MIRROR_KILLS_TELL=1`: tell each round's story, with its milliseconds, not only that of one that failed.
//! - `NBD_MIRROR_KILLS_KEEP=1`: leave the files of a round that failed where they are, to look into them.

mod apart;
mod blows;
mod copies;
mod link;
mod promotes;
mod trial;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::harness::{Chance, Habits, Ledger, Load, MIB, Mirror, Plan, Proxy};

/// Bytes of a volume, and of its part that is written to.
const SIZE: u64 = 8 * MIB;
const BLOCKS: usize = 1536;
const VOLUMES: usize = 2;

/// A number that the environment gives.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

/// Whether what lies in the temporary folders stays: while a failed test is unwound, if that is wanted.
fn keep() -> bool {
    std::thread::panicking() && number("NBD_MIRROR_KILLS_KEEP") == Some(1)
}

/// What is tested, how long, and by which numbers.
#[derive(Clone, Copy)]
struct Run {
    name: &'static str,
    durability: &'static str,
    seed: u64,
    rounds: u64,
    /// Whether a bad link lies between the two sides.
    bad_link: bool,
    /// Whether the source goes on alone when it has lost its destination for a moment.
    alone: bool,
}

impl Run {
    fn new(name: &'static str, durability: &'static str, bad_link: bool, rounds: u64) -> Run {
        let seed = number("NBD_MIRROR_KILLS_SEED").unwrap_or(20);
        let rounds = number("NBD_MIRROR_KILLS_ROUNDS").unwrap_or(rounds);
        Run { name, durability, seed, rounds, bad_link, alone: false }
    }

    /// Volumes of this size, the smallest halves and a short age: kills meet switches, flushes and applies.
    fn plan(&self, size: u64) -> Plan {
        let mut plan = Plan::new(&[size; VOLUMES]);
        plan.source.durability = self.durability.to_owned();
        plan.source.journal_size = "16MiB".to_owned();
        plan.source.max_age = "100ms".to_owned();
        if self.durability == "always" {
            plan.destination.nvram = Some(plan.path("nvram.log"));
        }
        if self.alone {
            plan.source.on_disconnect = "continue".to_owned();
            plan.source.timeout = "300ms".to_owned();
        }
        plan
    }

    fn round(&self, round: u64) -> Round {
        let name = self.name.bytes().chain(self.durability.bytes()).map(u64::from);
        let parts: Vec<u64> = [self.seed, round].into_iter().chain(name).collect();
        Round { run: *self, round, chance: Chance::new(&parts), start: Instant::now(), story: RefCell::default() }
    }
}

/// One round: its numbers, and what it did so far. A round that fails tells both.
struct Round {
    run: Run,
    round: u64,
    chance: Chance,
    start: Instant,
    story: RefCell<Vec<String>>,
}

impl Round {
    fn tell(&self, what: impl Into<String>) {
        self.story.borrow_mut().push(format!("{} ms: {}", self.start.elapsed().as_millis(), what.into()));
    }

    /// For messages: what was checked, and how to have it again.
    fn what(&self, checked: &str) -> String {
        let Run { name, durability, seed, .. } = self.run;
        format!("{name}, {durability}, seed {seed}, round {}: {checked}", self.round)
    }

    /// The load of this round.
    fn load(&self, site: &Site) -> Load {
        // A load that takes all that there is leaves hardly anything to a resync, which gives way to clients.
        let rest = if self.run.alone { Duration::from_millis(5) } else { Duration::ZERO };
        let habits = Habits { seed: self.chance.clone().next(), largest: 64, mixed: true, rest };
        Load::with(&site.ledger, &site.mirror.exports(), 2, habits)
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed || number("NBD_MIRROR_KILLS_TELL") == Some(1) {
            self.tell(if failed { "it failed" } else { "it ended well" });
            eprintln!("---- {}", self.what(&self.story.borrow().join(", ")));
        }
        if failed {
            let Run { seed, rounds, .. } = self.run;
            eprintln!(
                "---- again: NBD_MIRROR_KILLS_SEED={seed} NBD_MIRROR_KILLS_ROUNDS={}",
                rounds.max(self.round + 1)
            );
        }
    }
}

/// A mirror with its ledger, and the link between its two sides.
struct Site {
    mirror: Mirror,
    ledger: Arc<Ledger>,
    proxy: Option<Arc<Proxy>>,
    /// What was answered before this time of the ledger must survive a promote.
    in_step: u64,
}

impl Site {
    /// Two volumes, mirrored, in step, and never written to.
    #[track_caller]
    fn start(run: &Run) -> Site {
        let site = Site::of(run, run.plan(SIZE));
        site.mirror.assert_in_step();
        site
    }

    /// A mirror as planned, with a link between its two sides.
    #[track_caller]
    fn of(run: &Run, mut plan: Plan) -> Site {
        let proxy = run.bad_link.then(|| Arc::new(Proxy::start(plan.destination.listen, 0)));
        if let Some(proxy) = &proxy {
            plan.source.destination = Some(proxy.address);
        }
        let ledger = Arc::new(Ledger::new(VOLUMES, BLOCKS, true));
        Site { mirror: plan.start(), ledger, proxy, in_step: u64::MAX }
    }

    /// Starts whatever doesn't run.
    #[track_caller]
    fn restart_all(&mut self) {
        self.restart_destination();
        if !self.mirror.source.runs() {
            self.mirror.source.restart();
        }
    }

    /// Starts the destination where it doesn't run: with a log where it had none, without where it had one.
    #[track_caller]
    fn restart_destination(&mut self) {
        if !self.mirror.destination.runs() {
            let log = self.mirror.plan.path("nvram.log");
            let config = &mut self.mirror.plan.destination;
            config.nvram = config.nvram.is_none().then_some(log);
            config.write();
            self.mirror.destination.restart();
        }
    }

    fn calm(&self) {
        if let Some(proxy) = &self.proxy {
            proxy.calm();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.mirror.plan.dir.disable_cleanup(keep());
    }
}

/// Rounds upon rounds on one mirror: it never gets a chance to start afresh.
fn kill_again_and_again(run: &Run) {
    let mut site = Site::start(run);
    for number in 0..run.rounds {
        blows::play(&mut run.round(number), &mut site);
    }
    let end = run.round(run.rounds);
    end.tell("all rounds are played");
    site.mirror.assert_in_step();
    site.ledger.check(&end.what("the images in the end"), &site.mirror.images());
}

#[test]
fn kills_always() {
    kill_again_and_again(&Run::new("kills", "always", false, 10));
}

#[test]
fn kills_flush() {
    kill_again_and_again(&Run::new("kills", "flush", false, 10));
}

#[test]
fn kills_over_a_bad_link_always() {
    kill_again_and_again(&Run::new("kills over a bad link", "always", true, 7));
}

#[test]
fn kills_over_a_bad_link_flush() {
    kill_again_and_again(&Run::new("kills over a bad link", "flush", true, 7));
}

/// Each round has a mirror of its own, for a promote ends it.
fn promote_again_and_again(run: &Run) {
    for number in 0..run.rounds {
        promotes::play(&mut run.round(number), Site::start(run));
    }
}

/// Each round has a mirror of its own, and kills before its image is whole.
fn copy_again_and_again(run: &Run) {
    for number in 0..run.rounds {
        copies::play(&mut run.round(number), copies::begin(run));
    }
}

/// Outages, kills and resyncs, on one mirror.
fn part_again_and_again(run: Run) {
    let run = Run { alone: true, ..run };
    let mut site = Site::start(&run);
    for number in 0..run.rounds {
        apart::play(&mut run.round(number), &mut site);
    }
}

/// Each round has a mirror of its own, which is promoted at some moment of an outage or a resync.
fn part_and_promote_again_and_again(run: Run) {
    let run = Run { alone: true, ..run };
    for number in 0..run.rounds {
        apart::play_to_a_promote(&mut run.round(number), Site::start(&run));
    }
}

#[test]
fn outages_and_kills_always() {
    part_again_and_again(Run::new("outages and kills", "always", true, 7));
}

#[test]
fn outages_and_kills_flush() {
    part_again_and_again(Run::new("outages and kills", "flush", true, 7));
}

#[test]
fn outages_and_promotes_always() {
    part_and_promote_again_and_again(Run::new("outages and promotes", "always", true, 4));
}

#[test]
fn outages_and_promotes_flush() {
    part_and_promote_again_and_again(Run::new("outages and promotes", "flush", true, 4));
}

#[test]
fn promotes_always() {
    promote_again_and_again(&Run::new("promotes", "always", false, 5));
}

#[test]
fn promotes_flush() {
    promote_again_and_again(&Run::new("promotes", "flush", false, 5));
}

#[test]
fn promotes_over_a_bad_link_always() {
    promote_again_and_again(&Run::new("promotes over a bad link", "always", true, 3));
}

#[test]
fn promotes_over_a_bad_link_flush() {
    promote_again_and_again(&Run::new("promotes over a bad link", "flush", true, 3));
}

#[test]
fn kills_during_the_first_sync_always() {
    copy_again_and_again(&Run::new("kills during the first sync", "always", true, 2));
}

#[test]
fn kills_during_the_first_sync_flush() {
    copy_again_and_again(&Run::new("kills during the first sync", "flush", true, 2));
}
