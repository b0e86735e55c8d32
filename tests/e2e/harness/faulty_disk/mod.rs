//! A disk that fails on command: a file system that the test process itself serves, by FUSE.
//!
//! Files live in memory, behind a volatile write cache ([`contents`]). Faults are rules over single operations
//! ([`fault`]), switched at run time. [`FaultyDisk::power_cut`] takes what wasn't synced, by a seed; names that were
//! made in a folder can be lost until that folder was synced.
//!
//! What the kernel makes of RWF_DSYNC is a write followed by a sync of the file, and that sync doesn't say what it is
//! for. A real disk that is told to write one range through ("force unit access") may keep all others in its cache.
//! So for ranges that the program only ever writes so ([`FaultyDisk::force_alone`]), a sync by a thread that has just
//! written there covers that write only: the kernel carries out both halves of a forced write on one thread, one right
//! after the other. (It takes files served by FUSE for ones that never block, so io_uring's operations on them run one
//! by one on the engine's own thread: of forced writes, one at a time is under way. Other writes pile up in the cache.)

mod contents;
mod fault;
mod node;
mod serve;

pub use fault::{Effect, Fault, Operation};

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use contents::Fate;
use nix::mount::{MntFlags, umount2};
use node::Tree;
use tempfile::TempDir;

use super::{root_or_skip, wait_until};

/// Nothing is held longer than this, so that no failing test leaves a daemon that can't be killed.
const HOLD_LIMIT: Duration = Duration::from_secs(25);

/// Whether a test that needs this can go on: it needs root, and a kernel with FUSE.
#[track_caller]
pub fn fuse_or_skip() -> bool {
    if !root_or_skip("a file system of its own, by FUSE") {
        return false;
    }
    let there = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !there {
        eprintln!("LEFT OUT: /dev/fuse can't be opened (modprobe fuse; in a container: --device /dev/fuse)");
    }
    there
}

/// Spreads a seed over all bits.
pub fn hash(seed: u64) -> u64 {
    let mut hash = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

/// The disk's state, as its server and the test share it.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether short transfers reach the daemon; the kernel then drops RWF_DSYNC.
    direct: bool,
}

struct State {
    tree: Tree,
    faults: Vec<Fault>,
    /// The power has failed; the cut is still to come. Disks on one supply share it.
    power_failed: Arc<AtomicBool>,
    /// Counts power cuts: what was opened before the last one is dead.
    boot: u64,
    writes: u64,
    forced: Vec<(&'static str, Range<u64>)>,
    capacity_pages: u64,
}

impl State {
    fn frozen(&self) -> bool {
        self.power_failed.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until the power cut that this boot ends with.
    fn hold(&self, boot: u64) {
        let deadline = Instant::now() + HOLD_LIMIT;
        let mut state = self.lock();
        while state.boot == boot && state.frozen() && Instant::now() < deadline {
            let waited = self.changed.wait_timeout(state, Duration::from_millis(500));
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

/// A mounted disk. Declare it before the daemons that use it, so that it goes after them.
pub struct FaultyDisk {
    shared: Arc<Shared>,
    point: TempDir,
    session: Option<fuser::BackgroundSession>,
}

impl FaultyDisk {
    /// Mounts an empty disk.
    #[track_caller]
    pub fn mount() -> FaultyDisk {
        FaultyDisk::mount_with(false, Arc::default())
    }

    /// Mounts an empty disk whose power fails together with this one's.
    #[track_caller]
    pub fn mount_beside(&self) -> FaultyDisk {
        FaultyDisk::mount_with(false, Arc::clone(&self.shared.lock().power_failed))
    }

    /// Mounts a disk whose short transfers reach the daemon. The kernel then forces no write through to it, so it is
    /// no disk to cut the power of.
    #[track_caller]
    pub fn mount_direct() -> FaultyDisk {
        FaultyDisk::mount_with(true, Arc::default())
    }

    #[track_caller]
    fn mount_with(direct: bool, power_failed: Arc<AtomicBool>) -> FaultyDisk {
        let state = State {
            tree: Tree::new(),
            faults: Vec::new(),
            power_failed,
            boot: 0,
            writes: 0,
            forced: Vec::new(),
            capacity_pages: u64::MAX,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), direct });
        let point = tempfile::Builder::new().prefix("nbd-mirror-disk-").tempdir().expect("make a mount point");
        let mut config = fuser::Config::default();
        config.mount_options.push(fuser::MountOption::FSName("faulty-disk".to_owned()));
        let server = serve::Server(Arc::clone(&shared));
        let session = fuser::spawn_mount(server, point.path(), &config)
            .unwrap_or_else(|error| panic!("mount {} by FUSE: {error}", point.path().display()));
        FaultyDisk { shared, point, session: Some(session) }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.point.path()
    }

    /// Adds a fault; what is returned counts its hits.
    pub fn inject(&self, fault: Fault) -> Fault {
        self.shared.lock().faults.push(fault.clone());
        fault
    }

    /// Takes all faults back.
    pub fn heal(&self) {
        self.shared.lock().faults.clear();
    }

    /// Bytes that fit on it from now on.
    pub fn set_capacity(&self, bytes: u64) {
        self.shared.lock().capacity_pages = bytes / contents::PAGE;
    }

    /// A forced write into this range of a file makes only itself stable. True only for what is never written in
    /// another way.
    pub fn force_alone(&self, file: &'static str, range: Range<u64>) {
        self.shared.lock().forced.push((file, range));
    }

    /// Everything on it is stable, as after a long time.
    pub fn settle(&self) {
        self.shared.lock().tree.settle();
    }

    /// The power fails: nothing gets onto the disk any more, and nothing is answered. To be followed by the end of
    /// the daemon, and [`FaultyDisk::power_cut`].
    pub fn freeze(&self) {
        self.shared.lock().power_failed.store(true, Ordering::SeqCst);
    }

    /// Waits until a fault of [`Effect::PowerFails`] has struck.
    #[track_caller]
    pub fn wait_until_frozen(&self) {
        wait_until("the power fails at the chosen operation", Duration::from_secs(30), || self.is_frozen());
    }

    /// Whether the power has failed.
    pub fn is_frozen(&self) -> bool {
        self.shared.lock().frozen()
    }

    /// The power comes back: what no sync covered is lost, kept or torn, as the seed has it. Whoever has a file open
    /// from before has a dead one. Returns how many writes weren't kept whole.
    pub fn power_cut(&self, seed: u64) -> usize {
        // How bad it is differs from cut to cut: all is lost, nearly nothing, or anything between.
        let (lost, torn) =
            [(100, 0), (50, 0), (10, 0), (0, 100), (30, 30), (5, 5), (80, 10)][(hash(seed) % 7) as usize];
        self.cut(seed, |write| {
            let dice = hash(seed ^ write << 20);
            match dice % 100 {
                chance if chance < lost => Fate::Lost,
                chance if chance < lost + torn => Fate::Torn(hash(dice)),
                _ => Fate::Kept,
            }
        })
    }

    /// A power cut that takes all that no sync covered.
    pub fn lose_unsynced(&self) -> usize {
        self.cut(0, |_| Fate::Lost)
    }

    fn cut(&self, seed: u64, fate: impl Fn(u64) -> Fate) -> usize {
        let mut state = self.shared.lock();
        state.power_failed.store(false, Ordering::SeqCst);
        state.boot += 1;
        let lost = state.tree.cut(fate, seed);
        drop(state);
        self.shared.changed.notify_all();
        lost
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.heal();
        self.shared.lock().power_failed.store(false, Ordering::SeqCst);
        self.shared.changed.notify_all();
        // Detached: it goes even while something still holds a file open.
        if let Err(error) = umount2(self.point.path(), MntFlags::MNT_DETACH) {
            eprintln!("could not unmount {}: {error}", self.point.path().display());
        }
        drop(self.session.take());
    }
}
