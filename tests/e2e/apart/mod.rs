//! Source and destination lose each other, and find each other again: with the policies, the dirty bitmap, resyncs that
//! are staged, promotes at any moment of all that, and `verify`.
//!
//! Each test has its own mirror with a proxy between its two sides, which takes the link away and counts what it carries.
//! Where a phase has to last for a while, the link is slow; no test depends on how fast anything else is.

mod crashes;
mod first_sync;
mod flapping;
mod outages;
mod policies;
mod promotes;
mod staging;
mod starts;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Client, Habits, Ledger, Load, MIB, Mirror, Plan, Proxy, assert_same, pattern};

/// Bytes of a volume.
const SIZE: u64 = 64 * MIB;
/// Stamped blocks at the beginning of each volume, and their bytes.
const BLOCKS: usize = 512;
const STAMPED: u64 = BLOCKS as u64 * 4096;
/// How long a destination may be away in most of these tests.
const TIMEOUT: Duration = Duration::from_millis(1000);

/// A mirror that can be parted.
struct Apart {
    // Before the proxy, so that the daemons end first.
    mirror: Mirror,
    proxy: Arc<Proxy>,
    ledger: Arc<Ledger>,
    /// How much was logged by the source before the test began.
    logged_before: usize,
}

/// One volume, a journal of the smallest size whose fills aren't old, and a source that goes on alone after [`TIMEOUT`].
fn plan() -> Plan {
    let mut plan = Plan::new(&[SIZE]);
    plan.source.on_disconnect = "continue".to_owned();
    plan.source.timeout = format!("{}ms", TIMEOUT.as_millis());
    plan.source.journal_size = "16MiB".to_owned();
    plan.source.max_age = "200ms".to_owned();
    plan
}

impl Apart {
    /// Both sides, in step.
    #[track_caller]
    fn start(plan: Plan) -> Apart {
        let mut apart = Apart::begin(plan, 0);
        apart.mirror.source.wait_for_state("mirroring");
        apart.logged_before = apart.mirror.source.log().len();
        apart
    }

    /// Both sides, over a link of so many bytes a second (0: no limit).
    #[track_caller]
    fn begin(mut plan: Plan, rate: u64) -> Apart {
        let proxy = Arc::new(Proxy::start(plan.destination.listen, rate));
        plan.source.destination = Some(proxy.address);
        let ledger = Arc::new(Ledger::new(plan.sizes.len(), BLOCKS, true));
        Apart { mirror: plan.start(), proxy, ledger, logged_before: 0 }
    }

    /// A stamped load that leaves room for everything else.
    fn load(&self) -> Load {
        Load::with(&self.ledger, &self.mirror.exports(), 2, Habits::GENTLE)
    }

    /// Takes the link away, and waits until the source is alone. Returns a time of the ledger: all that was answered
    /// before it was answered in step.
    #[track_caller]
    fn part(&self) -> u64 {
        let in_step = self.ledger.now();
        self.proxy.set_open(false);
        self.mirror.source.wait_for_state("degraded");
        in_step
    }

    /// Gives the link back.
    fn join(&self) {
        self.proxy.set_open(true);
    }

    /// Changes so many MiB behind the stamped blocks, by no other bytes than these. In a degraded source, more than the
    /// journal holds is in the dirty bitmap afterwards.
    #[track_caller]
    fn change(&self, seed: u64, mib: u64) {
        let mut client = Client::go(&self.mirror.unix(), "vol0").expect("open the volume");
        for at in 0..mib {
            client.write(STAMPED + at * MIB, &pattern(seed << 32 | at, MIB as usize)).expect("a write");
        }
    }

    /// Waits until the destination collects a resync beside its image.
    #[track_caller]
    fn wait_for_staging(&self) -> Value {
        self.mirror.destination.wait_for_mirror("a resync in the staging log", |mirror| {
            mirror["phase"] == "staging" && mirror["staged_bytes"].as_u64() > Some(0)
        })
    }

    /// Waits until the two are in step; then volumes and images are the same, and `verify` says so.
    #[track_caller]
    fn assert_together(&self) {
        self.mirror.source.wait_for_state("mirroring");
        let mirror =
            self.mirror.destination.wait_for_mirror("fills go to the image", |mirror| mirror["phase"] == "direct");
        assert_eq!((&mirror["promotable"], &mirror["base_record"]), (&true.into(), &Value::Null), "{mirror:#}");
        self.mirror.source.sync();
        for (at, &size) in self.mirror.plan.sizes.iter().enumerate() {
            assert_same(self.mirror.plan.volume(at), self.mirror.plan.image(at), size);
        }
        self.ledger.check("the images", &self.mirror.images());
        let status = self.mirror.source.status();
        assert_eq!(status["state"], "mirroring");
        assert_eq!(status["failover_loses"]["what"], "nothing");
        assert_eq!(status["lacking_bytes"], 0);
        self.mirror.source.verify(&[]).success();
    }

    /// How often the source's log says this, since the two were in step.
    fn logged(&self, words: &str) -> usize {
        self.mirror.source.log()[self.logged_before..].matches(words).count()
    }
}

/// What a resync has to look at, of a status that shows one.
fn total(status: &Value) -> u64 {
    status["resync"]["total_bytes"].as_u64().unwrap_or(0)
}

/// What it has looked at.
fn done(status: &Value) -> u64 {
    status["resync"]["done_bytes"].as_u64().unwrap_or(0)
}
