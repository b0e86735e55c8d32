//! A mirror each of whose sides has all its files on a disk that fails on command.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Daemon, FaultyDisk, MIB, Mirror, Plan, create_file};

/// The daemons go before their disks.
pub struct FaultyMirror {
    pub mirror: Mirror,
    /// The source's journal and volumes.
    pub near: FaultyDisk,
    /// The destination's journal_dir and images.
    pub far: FaultyDisk,
}

/// Bytes of each volume.
pub const VOLUME: u64 = 8 * MIB;
/// What a journal starts with, in bytes: both copies of the superblock.
pub const SUPERBLOCKS: u64 = 64 << 10;

impl FaultyMirror {
    /// What such a mirror is to look like: volumes of 8 MiB, short fills, everything on the two disks.
    /// `nvram`: frames go to a log first, which is on the destination's disk as well.
    pub fn plan(durability: &str, volumes: usize, near: &FaultyDisk, far: &FaultyDisk, nvram: bool) -> Plan {
        let mut plan = Plan::new(&vec![VOLUME; volumes]);
        plan.source.durability = durability.to_owned();
        plan.source.journal_size = "16MiB".to_owned();
        plan.source.max_age = "100ms".to_owned();
        plan.source.journal = near.path().join("alpha.journal");
        plan.destination.journal_dir = far.path().join("journals");
        plan.destination.nvram = nvram.then(|| far.path().join("nvram.log"));
        for at in 0..volumes {
            plan.source.volumes[at].1 = near.path().join(format!("vol{at}.volume"));
            plan.destination.sources[0].1[at].1 = far.path().join(format!("vol{at}.image"));
            create_file(plan.volume(at), VOLUME);
            create_file(plan.image(at), VOLUME);
        }
        force(durability, near, far, nvram);
        near.settle();
        far.settle();
        plan
    }

    /// A mirror in step.
    #[track_caller]
    pub fn start(durability: &str, volumes: usize) -> FaultyMirror {
        FaultyMirror::start_on(FaultyDisk::mount(), FaultyDisk::mount(), durability, volumes, false)
    }

    /// A mirror in step, on disks that are there.
    #[track_caller]
    pub fn start_on(near: FaultyDisk, far: FaultyDisk, durability: &str, volumes: usize, nvram: bool) -> FaultyMirror {
        let mirror = FaultyMirror::plan(durability, volumes, &near, &far, nvram).start();
        mirror.assert_in_step();
        FaultyMirror { mirror, near, far }
    }

    /// Ends the source in the moment in which its disk's power fails; returns how many writes weren't kept whole.
    #[track_caller]
    pub fn cut_source(&mut self, seed: u64) -> usize {
        cut(&mut self.mirror.source, &self.near, seed)
    }

    /// Ends the destination in the moment in which its disk's power fails.
    #[track_caller]
    pub fn cut_destination(&mut self, seed: u64) -> usize {
        cut(&mut self.mirror.destination, &self.far, seed)
    }

    /// Ends both at once.
    #[track_caller]
    pub fn cut_both(&mut self, seed: u64) -> usize {
        let disks = [&self.near, &self.far];
        disks.iter().for_each(|disk| disk.freeze());
        signal(&self.mirror.source);
        signal(&self.mirror.destination);
        let lost = self.near.power_cut(seed) + self.far.power_cut(seed ^ 1 << 32);
        self.mirror.source.kill();
        self.mirror.destination.kill();
        lost
    }
}

/// First the disk stops, then the daemon: what it says in between it can only know from before.
#[track_caller]
pub fn cut(daemon: &mut Daemon, disk: &FaultyDisk, seed: u64) -> usize {
    disk.freeze();
    signal(daemon);
    // The kernel lets it go only when the disk has answered what was under way.
    let lost = disk.power_cut(seed);
    daemon.kill();
    lost
}

#[track_caller]
fn signal(daemon: &Daemon) {
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGKILL).expect("kill a daemon");
}

/// What each side writes by forced writes only.
fn force(durability: &str, near: &FaultyDisk, far: &FaultyDisk, nvram: bool) {
    far.force_alone("/state", 0..u64::MAX);
    let always = durability == "always";
    near.force_alone("/alpha.journal", 0..if always { u64::MAX } else { SUPERBLOCKS });
    // What comes from a log into the journal files is synced there.
    far.force_alone(if always && !nvram { ".journal" } else { "/promoted.journal" }, 0..u64::MAX);
}
