//! A fenced source's own blocks and records are written to a file before they are discarded.
//!
//! It promises that what it returns is on stable storage, name and all, and complete: the file is made under another name,
//! and gets its own only then. So whoever finds one under its name may discard what it holds, also after a crash.

use super::disk::{Disk, DiskError};
use super::memory::Memory;
use crate::core::Place;
use crate::core::grains::Grains;
use crate::core::recovery::Found;
use crate::format::block::Block;
use crate::format::checksum::crc32c;
use crate::format::frame::{Header, Kind, RECORD_COPY, Record, padded};
use crate::format::ids::{Digest, Fill, Mark, Seq};
use crate::format::kept::{FRAMES_OFFSET, Kept};
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES, COPY_WINDOW_BYTES, MAX_FRAME_PAYLOAD_BYTES, MAX_RECORDS_PER_FRAME};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Why nothing was kept; nothing may be discarded then.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The file can't be written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do about it.
        cause: String,
    },
    /// A volume can't be read.
    #[error(transparent)]
    Volume(#[from] DiskError),
}

/// What was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Where.
    pub path: PathBuf,
    /// The file's beginning, with the bytes of its parts.
    pub kept: Kept,
    /// Whether an earlier run had kept it already.
    pub earlier: bool,
}

/// The file's name in a folder of the operator's choice.
pub fn file_name(kept: &Kept) -> String {
    format!("discarded-by-epoch-{}.journal", kept.discarded_by)
}

/// A frame's bytes, header and payloads, out of the halves in which it was found.
pub fn raw<'a>(halves: &[&'a [u8]; 2], found: &Found) -> &'a [u8] {
    let at = found.header.position as usize;
    &halves[found.header.fill.half()][at..at + found.header.frame_bytes() as usize]
}

/// Writes it, durably: the contents of `dirty` as the volumes hold them, then `frames` as they are. The lengths in `kept`
/// are filled in. `None` where there is nothing to keep. `progress` gets the bytes that are done, and how many there are
/// at the most.
///
/// One that is there already is left alone: if it is of the same source, epoch and mark, it counts, for the volumes may
/// have been changed since; if it isn't, that is an error.
pub fn write<'a>(
    path: &Path,
    kept: &Kept,
    dirty: &Grains,
    volumes: &[&Disk],
    frames: impl IntoIterator<Item = &'a [u8]>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<Summary>, KeptError> {
    let mut frames = frames.into_iter().peekable();
    if let Some(earlier) = find(path)? {
        let named = |kept: &Kept| (kept.superblock.source, kept.discarded_by, kept.mark);
        if named(&earlier) == named(kept) {
            // The run that gave it its name may not have come to make that stable.
            let fail = |error: io::Error| KeptError::File { path: path.to_owned(), cause: error.to_string() };
            folder_of(path).and_then(|folder| folder.sync_all()).map_err(fail)?;
            return Ok(Some(Summary { path: path.to_owned(), kept: earlier, earlier: true }));
        }
        let cause = "holds what was discarded another time; move it away first, it isn't written over";
        return Err(KeptError::File { path: path.to_owned(), cause: cause.into() });
    }
    if dirty.is_empty() && frames.peek().is_none() {
        return Ok(None);
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = Writer::make(&part, path, kept.clone(), dirty.bytes(), progress).and_then(|mut writer| {
        writer.contents(dirty, volumes)?;
        for frame in frames {
            writer.frame(frame)?;
        }
        writer.finish(&part)
    });
    if written.is_err() {
        // Room may be what is missing; and whatever is wrong with it, the next try begins anew.
        let _ = std::fs::remove_file(&part);
    }
    written.map(Some)
}

/// What a kept file says of itself; `None` where there is no such file.
pub fn find(path: &Path) -> Result<Option<Kept>, KeptError> {
    let fail = |cause: String| KeptError::File { path: path.to_owned(), cause };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| fail(error.to_string()))?,
    };
    let mut blocks = [[0; BLOCK_BYTES]; 2];
    for (block, at) in blocks.iter_mut().zip([0, BLOCK_BYTES as u64]) {
        file.read_exact_at(block, at).map_err(|error| fail(format!("isn't a file of discarded records: {error}")))?;
    }
    let kept = Kept::decode([&blocks[0], &blocks[1]])
        .map_err(|error| fail(format!("isn't a file of discarded records ({error}); move it away first")))?;
    Ok(Some(kept))
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> io::Result<File> {
    File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Writes the file piece by piece.
struct Writer<'a> {
    file: File,
    path: PathBuf,
    kept: Kept,
    /// The boundary behind the last frame of contents.
    last: Mark,
    /// Records of contents that are no frame yet, and their payloads.
    records: Vec<Record>,
    payload: Vec<u8>,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Writer<'a> {
    fn make(
        part: &Path,
        path: &Path,
        kept: Kept,
        dirty_bytes: u64,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Result<Writer<'a>, KeptError> {
        // One that a crash has left is begun anew.
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part);
        let file = opened
            .map_err(|error| KeptError::File { path: part.to_owned(), cause: format!("can't be made: {error}") })?;
        let mut writer = Writer {
            file,
            path: path.to_owned(),
            kept: Kept { contents_bytes: 0, journal_bytes: 0, ..kept },
            last: Mark::default(),
            records: Vec::new(),
            payload: Vec::with_capacity(MAX_FRAME_PAYLOAD_BYTES),
            done: 0,
            total: dirty_bytes,
            progress,
        };
        // Room for the beginning, which is written last.
        writer.put(&[0; FRAMES_OFFSET as usize])?;
        Ok(writer)
    }

    fn error(&self, error: &io::Error) -> KeptError {
        let cause = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                let needed = self.total.saturating_sub(self.done);
                format!(
                    "no room for what is to be kept: up to {needed} bytes more are needed ({error}). Free some, or name \
                     another folder; nothing was discarded"
                )
            }
            _ => format!("can't be written: {error}"),
        };
        KeptError::File { path: self.path.clone(), cause }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), KeptError> {
        self.file.write_all(bytes).map_err(|error| self.error(&error))
    }

    /// The dirty grains' contents. A crash may have cut off a flush, so they may hold a part of what the journal's frames
    /// bring; these come behind, in whole.
    fn contents(&mut self, dirty: &Grains, volumes: &[&Disk]) -> Result<(), KeptError> {
        let window = COPY_WINDOW_BYTES as usize;
        let memory = Memory::map(window).map_err(|error| self.error(&error))?;
        for (volume, disk) in volumes.iter().enumerate() {
            let (volume, mut at) = (volume as u16, 0);
            while let Some(range) = dirty.next(volume, at) {
                if range.end > disk.size_bytes {
                    let cause = format!("has {} bytes; what is to be kept ends at byte {}", disk.size_bytes, range.end);
                    return Err(disk.error(&cause).into());
                }
                let length = (range.end - range.start) as usize;
                // O_DIRECT takes whole blocks; the volume may end before.
                disk.load(&memory, Place(0), range.start, length.next_multiple_of(BLOCK_BYTES) as u64)?;
                // SAFETY: nobody else knows this mapping, and the read into it is complete.
                let bytes = unsafe { memory.bytes(Place(0), length) };
                for (index, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
                    self.chunk(volume, range.start + (index * CHUNK_BYTES) as u64, chunk)?;
                }
                at = range.end;
                self.done += length as u64;
                (self.progress)(self.done, self.total);
            }
        }
        self.seal_contents()
    }

    fn chunk(&mut self, volume: u16, offset: u64, bytes: &[u8]) -> Result<(), KeptError> {
        let zeros = bytes.iter().all(|byte| *byte == 0);
        let payload = if zeros { 0 } else { padded(bytes.len()) };
        if self.records.len() == MAX_RECORDS_PER_FRAME || self.payload.len() + payload > MAX_FRAME_PAYLOAD_BYTES {
            self.seal_contents()?;
        }
        let (kind, checksum) = if zeros { (Kind::WriteZeroes, 0) } else { (Kind::Write, crc32c(bytes)) };
        let length = bytes.len() as u32;
        self.records.push(Record { volume, kind, flags: RECORD_COPY, offset, length, checksum });
        if !zeros {
            self.payload.extend_from_slice(bytes);
            self.payload.resize(padded(self.payload.len()), 0);
        }
        Ok(())
    }

    /// Makes a frame of the records that are waiting. It belongs to no fill; its numbers count within the contents.
    fn seal_contents(&mut self) -> Result<(), KeptError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let superblock = &self.kept.superblock;
        let header = Header {
            flags: 0,
            source: superblock.source,
            epoch: superblock.epoch,
            incarnation: superblock.incarnation,
            fill: Fill(0),
            position: 0,
            first: self.last.seq.next(),
            committed: Seq(0),
            stable_here: Seq(0),
            previous: self.last.digest,
            payload_bytes: 0,
            count: 0,
        };
        let mut block: Block = [0; BLOCK_BYTES];
        let digest: Digest = header.encode(self.records.iter(), &mut block);
        self.last = Mark { fill: Fill(0), seq: Seq(self.last.seq.0 + self.records.len() as u64), digest };
        let payload = std::mem::take(&mut self.payload);
        self.put(&block)?;
        self.put(&payload)?;
        self.kept.contents_bytes += (BLOCK_BYTES + payload.len()) as u64;
        self.payload = payload;
        self.payload.clear();
        self.records.clear();
        Ok(())
    }

    /// A frame of the journal, as it is.
    fn frame(&mut self, bytes: &[u8]) -> Result<(), KeptError> {
        self.put(bytes)?;
        self.kept.journal_bytes += bytes.len() as u64;
        self.done += bytes.len() as u64;
        self.total = self.total.max(self.done);
        (self.progress)(self.done, self.total);
        Ok(())
    }

    /// All of it first, then its beginning, then its name.
    fn finish(self, part: &Path) -> Result<Summary, KeptError> {
        let [first, second] = self.kept.encode();
        let done = self
            .file
            .sync_all()
            .and_then(|()| self.file.write_all_at(&*first, 0))
            .and_then(|()| self.file.write_all_at(&*second, BLOCK_BYTES as u64))
            .and_then(|()| self.file.sync_all())
            .and_then(|()| std::fs::rename(part, &self.path))
            .and_then(|()| folder_of(&self.path)?.sync_all());
        done.map_err(|error| self.error(&error))?;
        Ok(Summary { path: self.path, kept: self.kept, earlier: false })
    }
}

#[cfg(test)]
mod tests;
