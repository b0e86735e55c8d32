//! What a process asks of the system for itself, where no safe call exists.

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// To administer devices.
pub const CAP_SYS_ADMIN: u32 = 21;
/// To lock memory without a limit.
const CAP_IPC_LOCK: u32 = 14;

/// Not yet in libc, by `linux/prctl.h`.
const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;

/// Where the kernel is told whom to end when there is no memory left, and what spares a process until last but one:
/// -1000 would be never, also where it is this one that takes all of it.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
const SPARED: i32 = -900;

/// Whether all memory was locked; there is one process to ask about.
static LOCKED: AtomicBool = AtomicBool::new(false);

/// How far this process is safe from waiting for the disk that it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residence {
    /// Nothing of it that was ever touched goes away from memory.
    pub locked: bool,
    /// Memory that it needs is found without writing to a disk.
    pub io_flusher: bool,
    /// Others are ended before it when there is no memory left.
    pub spared: bool,
}

/// Keeps this process alive and in memory when that is short, and lets its allocations never wait for a block device: the
/// device might wait for it.
///
/// For whoever serves a disk that this machine itself may write to, when it is short of memory. What isn't permitted is
/// left out, with a word in the log. What is mapped later is locked as it is touched: stacks and pools cost what is used
/// of them.
///
/// Without a right to lock all of it, nothing is locked: each later mapping would count, and fail at the limit.
///
/// Threads inherit the second half of it, those of io_uring too. So call it before there is any.
pub fn stay_resident() {
    lock_memory();
    if !spared()
        && let Err(error) = std::fs::write(OOM_SCORE, SPARED.to_string())
    {
        tracing::info!("this process may be ended when there is no memory left ({error}): set OOMScoreAdjust={SPARED}");
    }
    // SAFETY: a plain flag of this thread; no memory is involved.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0 {
        let error = io::Error::last_os_error();
        tracing::info!("memory for this process may wait for disks ({error}): give it CAP_SYS_RESOURCE");
    }
}

/// Asks what [`stay_resident`] has come to, for this thread.
pub fn residence() -> Residence {
    // SAFETY: it only reads a flag of this thread.
    let io_flusher = unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) } == 1;
    Residence { locked: LOCKED.load(Ordering::Relaxed), io_flusher, spared: spared() }
}

fn spared() -> bool {
    let score = std::fs::read_to_string(OOM_SCORE).unwrap_or_default();
    score.trim().parse::<i32>().is_ok_and(|score| score <= SPARED)
}

fn lock_memory() {
    // Not yet in nix: what is never touched needn't be there.
    const MCL_ONFAULT: i32 = 4;
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | MlockAllFlags::from_bits_retain(MCL_ONFAULT);
    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    let locked = if unlimited || has_capability(CAP_IPC_LOCK) { mlockall(flags) } else { Err(Errno::EPERM) };
    LOCKED.store(locked.is_ok(), Ordering::Relaxed);
    if let Err(error) = locked {
        tracing::info!("this process may be swapped out ({error}): set LimitMEMLOCK=infinity");
    }
}

/// Whether this process has the capability of this number, by `linux/capability.h`.
pub fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default();
    set & (1 << number) != 0
}

/// Takes over descriptors that systemd handed to this process, as [`sd_notify::listen_fds_with_names`] tells them.
///
/// Only for the beginning of a process, and only once: whoever asks owns them from then on.
pub fn inherited_descriptors() -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: std::sync::Once = std::sync::Once::new();
    let mut descriptors = Ok(Vec::new());
    TAKEN.call_once(|| {
        descriptors = sd_notify::listen_fds_with_names().map(|found| found.map(|(fd, name)| (own(fd), name)).collect());
    });
    descriptors
}

fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: systemd opened it for this process, by its id, and nobody else takes it: the only caller runs once.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Lets a netlink socket receive what is sent to a group.
pub fn join_netlink_group(socket: &OwnedFd, group: u32) -> io::Result<()> {
    // SAFETY: the value is a plain number that outlives the call, and its size is given.
    let joined = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if joined == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
