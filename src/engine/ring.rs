//! io_uring operations that own what they need until they are complete.
//!
//! Every operation's memory is in the engine's [`Memory`], of which the ring holds a reference; its list of pieces is
//! in a slot of the ring. Writes, reads of files and sends are carried to their end: what the kernel did only partly
//! is submitted again.
//!
//! A write or sync of a file that is mapped as persistent memory is over at once, without the kernel: the next wait hands
//! it out.

use super::memory::Memory;
use super::pmem::Mapping;
use super::store::How;
use crate::core::Place;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries of the submission queue; more wait in a list of our own.
const ENTRIES: u32 = 512;
/// A copy of so many bytes takes longer than the system call that first hands over what is queued.
const LONG_COPY_BYTES: u64 = 32 << 10;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[error("io_uring can't be used: {cause}. {remedy}")]
pub struct RingError {
    cause: io::Error,
    remedy: &'static str,
}

/// Says whether io_uring can be used at all, before anything depends on it.
pub fn probe() -> Result<(), RingError> {
    build(1).map(drop)
}

fn build(entries: u32) -> Result<IoUring, RingError> {
    let build = |modern: bool| {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries * 4).dontfork();
        if modern {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        builder.build(entries)
    };
    let uring = match build(true) {
        // Before Linux 6.1.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
        other => other,
    };
    uring.map_err(|cause| {
        let remedy = match cause.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                "It is switched off for this process: set kernel.io_uring_disabled to 0 with sysctl, or allow \
                 io_uring_setup in the container's seccomp profile"
            }
            Some(libc::ENOSYS) => {
                "This kernel has none, or a sandbox hides it: use Linux 5.15 or later with CONFIG_IO_URING"
            }
            Some(libc::ENOMEM) => "Too little memory may be locked: raise the limit (ulimit -l, LimitMEMLOCK=)",
            _ => "See io_uring_setup(2)",
        };
        RingError { cause, remedy }
    })
}

/// A file, as operations on it are given to the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its descriptor.
    pub fd: RawFd,
    /// Whether the kernel may carry an operation out while it is submitted, however long that takes. It is told then to
    /// use one of its own threads.
    pub may_block: bool,
    /// How a write that has to be stable is made so by the kernel.
    pub how: How,
    /// Where it is persistent memory: writes and syncs go there. Reads go through the file.
    pub mapping: Option<&'a Mapping>,
}

impl Target<'_> {
    /// One that nobody ever waits for.
    fn prompt(fd: RawFd) -> Self {
        Target { fd, may_block: false, how: How::Dsync, mapping: None }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Receive,
    Send,
    Write { offset: u64, stable: bool },
    Read { offset: u64 },
    Sync,
    Allocate { mode: i32, offset: u64, length: u64 },
    Wake,
}

struct Slot<T> {
    token: Option<T>,
    kind: Kind,
    fd: RawFd,
    may_block: bool,
    how: How,
    pieces: Vec<libc::iovec>,
    /// Pieces before this one are done with.
    at: usize,
    header: Box<libc::msghdr>,
    done: usize,
    counter: Box<u64>,
}

/// Whether a submission that failed so works later.
fn passes(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

/// A ring whose operations are named by tokens of type `T`.
pub struct Ring<T> {
    uring: IoUring,
    memory: Arc<Memory>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    backlog: VecDeque<Entry>,
    /// Operations that were over at once, in their order.
    over: Vec<(T, io::Result<usize>)>,
}

impl<T: Copy> Ring<T> {
    /// Makes a ring for the calling thread, which must be the one that uses it.
    pub fn new(memory: Arc<Memory>) -> Result<Ring<T>, RingError> {
        let uring = build(ENTRIES)?;
        Ok(Ring { uring, memory, slots: Vec::new(), free: Vec::new(), backlog: VecDeque::new(), over: Vec::new() })
    }

    /// Receives into the pieces, in order; completes with the bytes of one receive (0: end of stream).
    pub fn receive(&mut self, token: T, fd: RawFd, pieces: &[(Place, u64)]) {
        self.start(token, Kind::Receive, Target::prompt(fd), pieces);
    }

    /// Sends all of the pieces.
    pub fn send(&mut self, token: T, fd: RawFd, pieces: &[(Place, u64)]) {
        self.start(token, Kind::Send, Target::prompt(fd), pieces);
    }

    /// Writes all of the pieces from `offset` on; `stable`: completes when they are on stable storage.
    pub fn write(&mut self, token: T, file: Target, offset: u64, pieces: &[(Place, u64)], stable: bool) {
        let Some(mapping) = file.mapping else {
            return self.start(token, Kind::Write { offset, stable }, file, pieces);
        };
        if pieces.iter().map(|(_, bytes)| bytes).sum::<u64>() >= LONG_COPY_BYTES {
            // What fails here stays queued, and fails again in the next wait.
            let _ = self.submit_queued();
        }
        // SAFETY: as for a write by the kernel, the caller leaves the pieces alone until this is complete.
        let pieces = pieces.iter().map(|(place, bytes)| unsafe { self.memory.bytes(*place, *bytes as usize) });
        let stored = mapping.store(offset, pieces);
        self.over.push((token, stored));
    }

    /// Fills all of the pieces from `offset` on.
    pub fn read(&mut self, token: T, file: Target, offset: u64, pieces: &[(Place, u64)]) {
        self.start(token, Kind::Read { offset }, file, pieces);
    }

    /// Makes everything written to the file stable.
    pub fn sync(&mut self, token: T, file: Target) {
        let Some(mapping) = file.mapping else { return self.start(token, Kind::Sync, file, &[]) };
        mapping.fence();
        self.over.push((token, Ok(0)));
    }

    /// `fallocate` with this mode.
    pub fn allocate(&mut self, token: T, file: Target, mode: i32, offset: u64, length: u64) {
        self.start(token, Kind::Allocate { mode, offset, length }, file, &[]);
    }

    /// Completes once when the eventfd was written to.
    pub fn wake_on(&mut self, token: T, fd: RawFd) {
        self.start(token, Kind::Wake, Target::prompt(fd), &[]);
    }

    fn start(&mut self, token: T, kind: Kind, target: Target<'_>, pieces: &[(Place, u64)]) {
        let index = self.free.pop().unwrap_or_else(|| {
            // SAFETY: an all-zero msghdr is a valid one: no name, no pieces, no control data.
            let header = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
            self.slots.push(Slot {
                token: None,
                kind,
                fd: target.fd,
                may_block: target.may_block,
                how: target.how,
                pieces: Vec::new(),
                at: 0,
                header,
                done: 0,
                counter: Box::new(0),
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        (slot.token, slot.kind, slot.at, slot.done) = (Some(token), kind, 0, 0);
        (slot.fd, slot.may_block, slot.how) = (target.fd, target.may_block, target.how);
        slot.pieces.clear();
        for (place, bytes) in pieces {
            let iov_base = self.memory.address(*place, *bytes as usize).cast();
            slot.pieces.push(libc::iovec { iov_base, iov_len: *bytes as usize });
        }
        self.submit(index);
    }

    /// Queues what is left of a slot's operation.
    fn submit(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let fd = types::Fd(slot.fd);
        let left = &mut slot.pieces[slot.at..];
        let (first, count) = (left.as_mut_ptr(), left.len() as u32);
        let single =
            left.first().filter(|_| count == 1).map(|piece| (piece.iov_base.cast::<u8>(), piece.iov_len as u32));
        slot.header.msg_iov = first;
        slot.header.msg_iovlen = count as usize;
        let done = slot.done as u64;
        let entry = match (slot.kind, single) {
            (Kind::Receive, Some((at, bytes))) => opcode::Recv::new(fd, at, bytes).build(),
            (Kind::Receive, None) => opcode::RecvMsg::new(fd, &mut *slot.header).build(),
            (Kind::Send, Some((at, bytes))) => {
                opcode::Send::new(fd, at, bytes).flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build()
            }
            (Kind::Send, None) => {
                let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
                opcode::SendMsg::new(fd, &*slot.header).flags(flags).build()
            }
            (Kind::Write { offset, stable }, single) => {
                let flags = if stable && slot.how != How::Direct { libc::RWF_DSYNC } else { 0 };
                match single {
                    Some((at, bytes)) => {
                        opcode::Write::new(fd, at, bytes).offset(offset + done).rw_flags(flags).build()
                    }
                    None => opcode::Writev::new(fd, first, count).offset(offset + done).rw_flags(flags).build(),
                }
            }
            (Kind::Read { offset }, Some((at, bytes))) => {
                opcode::Read::new(fd, at, bytes).offset(offset + done).build()
            }
            (Kind::Read { offset }, None) => opcode::Readv::new(fd, first, count).offset(offset + done).build(),
            // What is complete is stable: there is nothing to sync.
            (Kind::Sync, _) if slot.how == How::Direct => opcode::Nop::new().build(),
            (Kind::Sync, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            (Kind::Allocate { mode, offset, length }, _) => {
                opcode::Fallocate::new(fd, length).offset(offset).mode(mode).build()
            }
            (Kind::Wake, _) => opcode::Read::new(fd, (&raw mut *slot.counter).cast(), 8).build(),
        };
        let flags = if slot.may_block { Flags::ASYNC } else { Flags::empty() };
        self.backlog.push_back(entry.flags(flags).user_data(index.into()));
    }

    /// Moves the backlog into the submission queue as far as it has room.
    fn fill_queue(&mut self) {
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the entry's memory is in `self.memory` or in its slot. The mapping lives as long as the ring; the
            // slot (its pieces, header and counter are heap memory that doesn't move with it) isn't reused before
            // the completion was taken; the descriptor is kept open by the caller until then.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Hands the kernel what is queued, as far as the submission queue has no room for it.
    fn submit_backlog(&mut self) -> io::Result<()> {
        self.fill_queue();
        while !self.backlog.is_empty() {
            match self.uring.submit() {
                Err(error) if !passes(&error) => return Err(error),
                // Completions must be taken before more fits.
                Err(_) => break,
                Ok(_) => self.fill_queue(),
            }
        }
        Ok(())
    }

    /// Hands the kernel all that is queued, without waiting.
    fn submit_queued(&mut self) -> io::Result<()> {
        self.submit_backlog()?;
        if !self.uring.submission().is_empty() {
            self.uring.submit()?;
        }
        Ok(())
    }

    /// Submits what is queued, waits for at least one completion or the timeout, and puts the finished operations
    /// into `finished`: their token and the bytes they moved.
    ///
    /// Where operations were over at once, it neither submits nor waits: that is for the next one.
    pub fn wait(&mut self, timeout: Option<Duration>, finished: &mut Vec<(T, io::Result<usize>)>) -> io::Result<()> {
        if !self.over.is_empty() {
            finished.append(&mut self.over);
            self.take_completions(finished);
            return Ok(());
        }
        self.submit_backlog()?;
        let entered = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                self.uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timespec))
            }
        };
        match entered {
            Err(error) if error.raw_os_error() != Some(libc::ETIME) && !passes(&error) => return Err(error),
            _ => {}
        }
        self.take_completions(finished);
        Ok(())
    }

    /// Takes what the kernel has completed.
    fn take_completions(&mut self, finished: &mut Vec<(T, io::Result<usize>)>) {
        loop {
            let next = self.uring.completion().next();
            let Some(completion) = next else { return };
            let (index, result) = (completion.user_data() as u32, completion.result());
            if let Some(outcome) = self.carry_on(index, result) {
                let slot = &mut self.slots[index as usize];
                if let Some(token) = slot.token.take() {
                    finished.push((token, outcome));
                }
                self.free.push(index);
            }
        }
    }

    /// Waits until nothing is under way any more, 30 s at the most. For an engine's end: what completes is of no
    /// interest, but its memory must not go before, and what changes a disk must be over. A sync is neither.
    pub fn drain(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut finished = Vec::new();
        let waits_for = |slot: &Slot<T>| slot.token.is_some() && !matches!(slot.kind, Kind::Sync | Kind::Wake);
        while self.slots.iter().any(waits_for) && Instant::now() < deadline {
            if self.wait(Some(Duration::from_millis(100)), &mut finished).is_err() {
                break;
            }
            finished.clear();
        }
    }

    /// Takes a completion; `None` where the rest was submitted again.
    fn carry_on(&mut self, index: u32, result: i32) -> Option<io::Result<usize>> {
        let slot = &mut self.slots[index as usize];
        if matches!(-result, libc::EINTR | libc::EAGAIN) {
            self.submit(index);
            return None;
        }
        if result < 0 {
            return Some(Err(io::Error::from_raw_os_error(-result)));
        }
        let mut moved = result as usize;
        slot.done += moved;
        if matches!(slot.kind, Kind::Receive | Kind::Sync | Kind::Allocate { .. } | Kind::Wake) {
            return Some(Ok(slot.done));
        }
        while let Some(piece) = slot.pieces.get_mut(slot.at) {
            if moved < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(moved);
                piece.iov_len -= moved;
                break;
            }
            moved -= piece.iov_len;
            slot.at += 1;
        }
        if slot.at == slot.pieces.len() {
            return Some(Ok(slot.done));
        }
        if result == 0 {
            return Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "nothing more could be moved")));
        }
        self.submit(index);
        None
    }
}

impl<T> Ring<T> {
    /// Whether the kernel may still read or write the mapping.
    fn under_way_in_memory(&self) -> bool {
        let uses = |kind| matches!(kind, Kind::Receive | Kind::Send | Kind::Write { .. } | Kind::Read { .. });
        self.slots.iter().any(|slot| slot.token.is_some() && uses(slot.kind))
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // What the kernel may still use is kept for good rather than freed: the slots, of which the wake-up is in one, and
        // the mapping, where the engine didn't see the end of all that is under way in it.
        if self.under_way_in_memory() {
            std::mem::forget(self.memory.clone());
        }
        if self.slots.iter().any(|slot| slot.token.is_some()) {
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BLOCK_BYTES;
    use nix::sys::eventfd::EventFd;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;

    /// A ring with a wake-up under way, and its mapping.
    fn ring(wake: &EventFd) -> (Ring<u8>, Arc<Memory>) {
        let memory = Arc::new(Memory::map(BLOCK_BYTES).unwrap());
        let mut ring = Ring::new(memory.clone()).unwrap();
        ring.wake_on(0, wake.as_raw_fd());
        (ring, memory)
    }

    #[test]
    fn an_ended_ring_gives_its_memory_back_unless_something_is_under_way_in_it() {
        let wake = EventFd::new().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        for receiving in [false, true] {
            let (mut ring, memory) = ring(&wake);
            if receiving {
                ring.receive(1, near.as_raw_fd(), &[(Place(0), BLOCK_BYTES as u64)]);
            }
            ring.wait(Some(Duration::from_millis(1)), &mut Vec::new()).unwrap();
            let left = Arc::downgrade(&memory);
            drop((ring, memory));
            assert_eq!(left.upgrade().is_some(), receiving);
        }
    }

    #[test]
    fn where_writes_are_stable_a_sync_asks_nobody() {
        let wake = EventFd::new().unwrap();
        let (mut ring, _memory) = ring(&wake);
        // A socket can't be synced, so the kernel tells whether it was asked.
        let (near, _far) = UnixStream::pair().unwrap();
        for (how, asked) in [(How::Direct, false), (How::Dsync, true)] {
            ring.sync(1, Target { fd: near.as_raw_fd(), may_block: false, how, mapping: None });
            let mut finished = Vec::new();
            while finished.is_empty() {
                ring.wait(None, &mut finished).unwrap();
            }
            assert_eq!(finished[0].1.is_err(), asked, "{how:?}");
        }
    }

    /// A ring, and a file of 16 blocks that it takes for persistent memory.
    fn mapped() -> (Ring<u8>, tempfile::NamedTempFile, Mapping) {
        let (file, bytes) = (tempfile::NamedTempFile::new().unwrap(), 16 * BLOCK_BYTES);
        file.as_file().set_len(bytes as u64).unwrap();
        let mapping = Mapping::unproved(file.as_file(), bytes as u64);
        (Ring::new(Arc::new(Memory::map(bytes).unwrap())).unwrap(), file, mapping)
    }

    fn target<'a>(file: &tempfile::NamedTempFile, mapping: &'a Mapping) -> Target<'a> {
        Target { fd: file.as_file().as_raw_fd(), may_block: false, how: How::Dsync, mapping: Some(mapping) }
    }

    #[test]
    fn what_is_over_at_once_comes_in_order_and_the_kernels_completions_with_it() {
        let (mut ring, file, mapping) = mapped();
        let (wake, mut finished) = (EventFd::new().unwrap(), Vec::new());
        // SAFETY: nothing is under way yet.
        unsafe { ring.memory.bytes_mut(Place(0), 512) }.fill(7);
        ring.wake_on(9, wake.as_raw_fd());
        ring.wait(Some(Duration::from_millis(1)), &mut finished).unwrap();
        assert!(finished.is_empty());
        wake.write(1).unwrap();
        let to = target(&file, &mapping);
        ring.write(1, to, 4096, &[(Place(0), 512), (Place(0), 512)], true);
        ring.write(2, to, 0, &[(Place(4096), 512)], true);
        ring.sync(3, to);
        ring.write(4, to, u64::MAX, &[(Place(0), 512)], true);
        ring.wait(None, &mut finished).unwrap();
        let seen: Vec<_> = finished.iter().map(|(token, outcome)| (*token, outcome.as_ref().ok().copied())).collect();
        assert_eq!(seen[..4], [(1, Some(1024)), (2, Some(512)), (3, Some(0)), (4, None)]);
        assert_eq!(std::fs::read(file.path()).unwrap()[4096..5632], [vec![7; 1024], vec![0; 512]].concat());
        // The kernel's comes once, with them or behind.
        if seen.len() == 4 {
            ring.wait(Some(Duration::from_secs(10)), &mut finished).unwrap();
        }
        assert_eq!(finished.len(), 5);
        assert_eq!((finished[4].0, finished[4].1.as_ref().ok()), (9, Some(&8)));
        // An engine's end doesn't wait for what is over.
        ring.write(5, to, 0, &[(Place(0), 512)], true);
        ring.drain();
    }

    #[test]
    fn a_long_copy_lets_what_is_queued_go_first() {
        use std::io::Read as _;
        let (mut ring, file, mapping) = mapped();
        let (near, mut far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        for (bytes, goes_first) in [(LONG_COPY_BYTES - 512, false), (LONG_COPY_BYTES, true)] {
            ring.send(1, near.as_raw_fd(), &[(Place(0), 512)]);
            ring.write(2, target(&file, &mapping), 0, &[(Place(0), bytes)], true);
            let mut buffer = [0; 512];
            assert_eq!(far.read(&mut buffer).is_ok(), goes_first, "{bytes} bytes");
            let mut finished = Vec::new();
            while finished.len() < 2 {
                ring.wait(Some(Duration::from_secs(10)), &mut finished).unwrap();
            }
            assert_eq!(far.read(&mut buffer).is_ok(), !goes_first, "{bytes} bytes");
        }
    }
}
