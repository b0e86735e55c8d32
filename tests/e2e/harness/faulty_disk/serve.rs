//! Serves a faulty disk to the kernel.

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::libc;

use super::contents::{Contents, PAGE};
use super::node::Kind;
use super::{Effect, Operation, Shared, State};

/// Nothing may be cached: a power cut changes everything behind the kernel's back.
const NO_CACHE: Duration = Duration::ZERO;

pub struct Server(pub Arc<Shared>);

/// An operation that isn't answered before this.
enum Later {
    Slow(Duration),
    PowerCut(u64),
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Carries out an operation and answers it; late ones on a thread of their own, so that others overtake them.
    fn carry_out<T: Send + 'static>(
        &self,
        met: Met,
        work: impl FnOnce(&mut State, bool) -> Result<T, Errno> + Send + 'static,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let shared = Arc::clone(&self.0);
        match met {
            Met::Go { short } => answer(work(&mut shared.lock(), short)),
            Met::Failed(error) => answer(Err(error)),
            Met::Late(Later::Slow(time)) => drop(thread::spawn(move || {
                thread::sleep(time);
                let mut state = shared.lock();
                let done = if state.frozen() { Err(Errno::EIO) } else { work(&mut state, false) };
                drop(state);
                answer(done);
            })),
            Met::Late(Later::PowerCut(boot)) => drop(thread::spawn(move || {
                shared.hold(boot);
                answer(Err(Errno::EIO));
            })),
        }
    }
}

/// What an operation meets.
enum Met {
    Go { short: bool },
    Failed(Errno),
    Late(Later),
}

impl State {
    /// What an operation on an open file meets; one in whose middle the power fails leaves its data to chance.
    fn meet(&mut self, on: Operation, node: INodeNo, opened: FileHandle, offset: u64, length: u64) -> (Met, bool) {
        if opened.0 != self.boot {
            return (Met::Failed(Errno::EIO), false);
        }
        if self.frozen() && on != Operation::Read {
            return (Met::Late(Later::PowerCut(self.boot)), false);
        }
        let Some(path) = self.tree.node(node.0).map(|node| node.path.clone()) else {
            return (Met::Failed(Errno::ENOENT), false);
        };
        let touched = offset..offset.saturating_add(length);
        let effect = self.faults.iter_mut().find_map(|fault| fault.meet(on, &path, touched.clone()));
        match effect {
            None => (Met::Go { short: false }, false),
            Some(Effect::Short) => (Met::Go { short: true }, false),
            Some(Effect::Error(error)) => (Met::Failed(Errno::from_i32(error as i32)), false),
            Some(Effect::Slow(time)) => (Met::Late(Later::Slow(time)), false),
            Some(Effect::PowerFails) => {
                self.power_failed.store(true, Ordering::SeqCst);
                (Met::Late(Later::PowerCut(self.boot)), true)
            }
        }
    }

    fn next_write(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    /// Whether so many more pages fit.
    fn fits(&self, more: u64) -> bool {
        more == 0 || self.tree.pages() + more <= self.capacity_pages
    }

    fn attributes(&mut self, number: u64) -> Option<FileAttr> {
        let (kind, size, blocks, perm) = match &self.tree.node(number)?.kind {
            Kind::Folder(_) => (FileType::Directory, 0, 0, 0o755),
            Kind::File(contents) => (FileType::RegularFile, contents.len(), contents.pages() * PAGE / 512, 0o644),
        };
        let time: SystemTime = UNIX_EPOCH;
        Some(FileAttr {
            ino: INodeNo(number),
            size,
            blocks,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        })
    }

    fn make(&mut self, parent: INodeNo, name: &OsStr, kind: Kind) -> Result<FileAttr, Errno> {
        if self.frozen() {
            return Err(Errno::EIO);
        }
        let number = match self.tree.find(parent.0, name) {
            Some(_) => return Err(Errno::EEXIST),
            None => self.tree.make(parent.0, name, kind).ok_or(Errno::ENOTDIR)?,
        };
        self.attributes(number).ok_or(Errno::ENOENT)
    }

    fn write(&mut self, node: u64, thread: u32, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let missing = self.tree.file(node).ok_or(Errno::EISDIR)?.pages_missing(offset, data.len() as u64);
        if !self.fits(missing) {
            return Err(Errno::ENOSPC);
        }
        let write = self.next_write();
        self.tree.file(node).ok_or(Errno::EISDIR)?.write(write, thread, offset, data);
        Ok(data.len() as u32)
    }

    fn allocate(&mut self, node: u64, thread: u32, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
        let zero = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        let missing = self.tree.file(node).ok_or(Errno::EISDIR)?.pages_missing(offset, length);
        if !zero && !self.fits(missing) {
            return Err(Errno::ENOSPC);
        }
        let write = self.next_write();
        let file = self.tree.file(node).ok_or(Errno::EISDIR)?;
        match zero {
            true => file.zero(write, thread, offset, length, mode & libc::FALLOC_FL_PUNCH_HOLE != 0),
            false => file.allocate(offset, length),
        }
        Ok(())
    }

    fn sync(&mut self, node: u64, thread: u32, data_only: bool) -> Result<(), Errno> {
        let path = self.tree.node(node).map(|node| node.path.clone()).unwrap_or_default();
        let forced = self.forced.iter().find(|(file, _)| data_only && path.ends_with(file));
        let forced = forced.map_or(0..0, |(_, range)| range.clone());
        self.tree.file(node).ok_or(Errno::EISDIR)?.sync(thread, forced);
        Ok(())
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // As large as a write of the program gets; the kernel may allow less.
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.lock();
        let number = state.tree.find(parent.0, name);
        match number.and_then(|number| state.attributes(number)) {
            Some(attributes) => reply.entry(&NO_CACHE, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.lock().attributes(ino.0) {
            Some(attributes) => reply.attr(&NO_CACHE, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.lock();
        if let (Some(size), Some(file)) = (size, state.tree.file(ino.0)) {
            file.resize(size);
        }
        match state.attributes(ino.0) {
            Some(attributes) => reply.attr(&NO_CACHE, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        match self.lock().make(parent, name, Kind::Folder(Default::default())) {
            Ok(attributes) => reply.entry(&NO_CACHE, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, flags: i32, reply: ReplyCreate) {
        let mut state = self.lock();
        match state.make(parent, name, Kind::File(Contents::default())) {
            Ok(attributes) => {
                let flags = self.open_flags(flags);
                reply.created(&NO_CACHE, &attributes, Generation(0), FileHandle(state.boot), flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.lock().boot), self.open_flags(flags.0));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        opened: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (met, _) = self.lock().meet(Operation::Read, ino, opened, offset, size.into());
        let work = move |state: &mut State, short: bool| {
            let length = if short { size.min(PAGE as u32) } else { size };
            let file = state.tree.file(ino.0).ok_or(Errno::EISDIR)?;
            Ok(file.read(offset, length as usize).to_vec())
        };
        self.carry_out(met, work, |done| match done {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        opened: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (thread, data) = (request.pid(), data.to_vec());
        let mut state = self.lock();
        let (met, in_the_middle) = state.meet(Operation::Write, ino, opened, offset, data.len() as u64);
        if in_the_middle {
            // It may have arrived, wholly or partly; no answer says so.
            let _ = state.write(ino.0, thread, offset, &data);
        }
        drop(state);
        let work = move |state: &mut State, short: bool| {
            let length = if short { data.len().min(PAGE as usize) } else { data.len() };
            state.write(ino.0, thread, offset, &data[..length])
        };
        self.carry_out(met, work, |done| match done {
            Ok(bytes) => reply.written(bytes),
            Err(error) => reply.error(error),
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        opened: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let thread = request.pid();
        let (met, _) = self.lock().meet(Operation::Write, ino, opened, offset, length);
        let work = move |state: &mut State, _: bool| state.allocate(ino.0, thread, offset, length, mode);
        self.carry_out(met, work, |done| empty(reply, done));
    }

    fn fsync(&self, request: &Request, ino: INodeNo, opened: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let thread = request.pid();
        let (met, _) = self.lock().meet(Operation::Sync, ino, opened, 0, u64::MAX);
        let work = move |state: &mut State, _: bool| state.sync(ino.0, thread, data_only);
        self.carry_out(met, work, |done| empty(reply, done));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.lock();
        if state.frozen() {
            return reply.error(Errno::EIO);
        }
        state.tree.sync_folder(ino.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut state = self.lock();
        let Some(entries) = state.tree.folder(ino.0) else { return reply.error(Errno::ENOTDIR) };
        let entries: Vec<_> = entries.iter().map(|(name, entry)| (name.clone(), entry.node)).collect();
        for (at, (name, node)) in entries.into_iter().enumerate().skip(offset as usize) {
            let kind = if state.tree.folder(node).is_some() { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(node), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = parent == newparent && self.lock().tree.rename(parent.0, name, newname);
        empty(reply, if renamed { Ok(()) } else { Err(Errno::ENOSYS) });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.lock().tree.remove(parent.0, name);
        empty(reply, removed.map(drop).ok_or(Errno::ENOENT));
    }
}

impl Server {
    /// The program's own files are opened with O_DIRECT. For all others, the kernel keeps no pages.
    fn open_flags(&self, flags: i32) -> FopenFlags {
        match flags & libc::O_DIRECT == 0 || self.0.direct {
            true => FopenFlags::FOPEN_DIRECT_IO,
            false => FopenFlags::empty(),
        }
    }
}

fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}
