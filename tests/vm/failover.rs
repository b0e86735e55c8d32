//! The source is lost while an ext4 of its volume is mounted; the destination is promoted, and the device goes there.
//!
//! Nobody unmounts anything: the application's fsync takes a moment longer, and that is all it sees.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::ext4::Ext4;
use crate::guest::assert_in_guest;
use crate::harness::{MIB, Mirror, Plan, eventually};
use crate::kernel_log::KernelLog;
use crate::records::Records;
use crate::times::Times;

/// How long the application may be without an answer before it hangs.
pub const HANG: Duration = Duration::from_secs(180);
/// Records before a failover, and behind it.
pub const RECORDS: usize = 40;
const ROUNDS: usize = 10;

/// A mirror with an ext4 on a device that follows it, and the loop on that.
pub struct Mounted {
    pub records: Records,
    pub ext4: Ext4,
    pub agent: Agent,
    pub mirror: Mirror,
    log: KernelLog,
}

impl Mounted {
    /// Everything is there, and the loop runs.
    #[track_caller]
    pub fn start(prepare: impl FnOnce(&mut Plan)) -> Mounted {
        assert_in_guest();
        let log = KernelLog::from_now();
        let mut plan = Plan::new(&[96 * MIB]);
        // Longer than any pause that an emulated machine makes by itself.
        plan.source.timeout = "30s".to_owned();
        prepare(&mut plan);
        let mirror = plan.start();
        mirror.source.wait_for_first_copy();
        let (source, destination) = (mirror.plan.source.unix(), mirror.plan.destination.unix());
        let agent = Agent::attach(&[&source, &destination], "vol0", mirror.plan.dir.path());
        let ext4 = Ext4::make(&agent.device, &mirror.plan.path("mnt"));
        let records = Records::start(&ext4.path.join("records"));
        records.wait_for(RECORDS, HANG);
        mirror.source.wait_for_state("mirroring");
        Mounted { records, ext4, agent, mirror, log }
    }

    /// Where the promoted images are served.
    pub fn destination(&self) -> PathBuf {
        self.mirror.plan.destination.unix()
    }

    /// Promotes, waits until the loop goes on, and returns when the promote, the device and the next fsync were there.
    #[track_caller]
    pub fn fail_over(&self, force: bool) -> [Instant; 3] {
        // What the source answered at last is still on its way up from the kernel.
        thread::sleep(Duration::from_millis(50));
        let (acknowledged, logged) = (self.records.count(), self.agent.logged());
        let destination = &self.mirror.destination;
        // A source that was killed just now may still count as connected.
        eventually("the promote goes", HANG, || {
            let promote = destination.promote("alpha", force);
            let too_early = !promote.status.success() && promote.stderr.contains("connected");
            (!too_early).then(|| promote.success())
        });
        let promoted = Instant::now();
        let moved = self.agent.wait_until_at(&self.destination(), logged);
        self.records.wait_for(RECORDS, HANG);
        let next = self.records.acknowledged_at(acknowledged).expect("the record behind the failover");
        [promoted, moved, next]
    }

    /// Ends it all: each record must be there, also in a file system that is mounted anew, and nothing harmed.
    #[track_caller]
    pub fn end(self) -> Mirror {
        let written = self.records.end();
        let (device, point) = (self.agent.device.clone(), self.ext4.path.clone());
        self.ext4.unmount_clean();
        let ext4 = Ext4::mount(&device, &point, "");
        written.check(&ext4.path);
        ext4.unmount_clean();
        self.log.assert_harmless();
        self.agent.detach();
        self.mirror
    }
}

const STEPS: [&str; 3] =
    ["to the promote's end", "to the device read at the destination", "to the next completed fsync"];

#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn an_ext4_stays_mounted_while_its_source_is_killed() {
    let mut times = Times::new("The source is killed", &STEPS);
    for _ in 0..ROUNDS {
        let mut mounted = Mounted::start(|_| {});
        let killed = Instant::now();
        mounted.mirror.source.kill();
        times.add(killed, &mounted.fail_over(false));
        mounted.end();
    }
    times.write("failover-killed.md");
}

/// A source that hangs keeps its sockets open, and the kernel waits for it for ever unless somebody ends that. When it
/// goes on it must learn that it is fenced, and answer nothing.
#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn an_ext4_stays_mounted_while_its_source_hangs() {
    let mut times = Times::new("The source hangs", &STEPS);
    for _ in 0..3 {
        let mounted = Mounted::start(|_| {});
        let frozen = Instant::now();
        mounted.mirror.source.freeze();
        times.add(frozen, &mounted.fail_over(true));
        mounted.mirror.source.thaw();
        mounted.mirror.source.wait_for_state("fenced");
        mounted.mirror.source.wait_for_log(&["fenced"]);
        mounted.records.wait_for(RECORDS, HANG);
        // The agent, too, comes to ask who it is, and goes again.
        mounted.mirror.source.wait_for_status_of("a fenced source has no clients", |status| status["clients"] == 0);
        mounted.end();
    }
    times.write("failover-hung.md");
}

/// Nothing moves: writes wait for the timeout, then the source goes on alone; later it has its destination back.
#[test]
#[ignore = "needs a virtual machine: make test-vm"]
fn an_ext4_stays_mounted_while_its_destination_is_killed() {
    let mut times = Times::new("The destination is killed, with a timeout of 2 s", &["to the next completed fsync"]);
    for _ in 0..2 {
        let mut mounted = Mounted::start(|plan| {
            plan.source.on_disconnect = "continue".to_owned();
            plan.source.timeout = "2s".to_owned();
        });
        let killed = Instant::now();
        mounted.mirror.destination.kill();
        thread::sleep(Duration::from_millis(50));
        let acknowledged = mounted.records.count();
        mounted.records.wait_for(RECORDS, HANG);
        times.add(killed, &[mounted.records.acknowledged_at(acknowledged).expect("the record behind the outage")]);
        mounted.mirror.source.wait_for_state("degraded");
        mounted.mirror.destination.restart();
        mounted.mirror.source.wait_for_state("mirroring");
        mounted.records.wait_for(RECORDS, HANG);
        mounted.end().assert_in_step();
    }
    times.write("failover-destination.md");
}
