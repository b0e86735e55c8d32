//! The file `nvram` in a destination's journal_dir: which log it uses.

use super::super::disk::Disk;
use crate::format::ids::Id;
use crate::format::nvram::LogHead;
use crate::limits::BLOCK_BYTES;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Which log a destination uses.
#[derive(Debug, PartialEq, Eq)]
pub struct Note {
    /// Where it is.
    pub path: PathBuf,
    /// Its identity.
    pub id: Id,
}

fn place(journal_dir: &Path) -> PathBuf {
    journal_dir.join("nvram")
}

impl Note {
    /// Whether that is where notes are.
    pub fn is_at(path: &Path, journal_dir: &Path) -> bool {
        let here = path.parent().is_some_and(|folder| super::same(folder, journal_dir));
        here && path.file_name().is_some_and(|name| name == "nvram" || name == "nvram.new")
    }

    /// What was noted, if anything was: a line with the log's identity, and one with its path.
    pub fn read(journal_dir: &Path) -> anyhow::Result<Option<Note>> {
        let place = place(journal_dir);
        let bytes = match std::fs::read(&place) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("{} can't be read", place.display()))?,
        };
        let note = Note::parse(&bytes).with_context(|| {
            format!(
                "{} doesn't say which NVRAM log was used. It has two lines, the log's identity and its path: restore it",
                place.display()
            )
        })?;
        Ok(Some(note))
    }

    fn parse(bytes: &[u8]) -> Option<Note> {
        let (id, path) = bytes.strip_suffix(b"\n")?.split_at_checked(32)?;
        let digits = std::str::from_utf8(id).ok()?;
        let number = u128::from_str_radix(digits, 16).ok()?;
        let path = path.strip_prefix(b"\n").filter(|path| !path.is_empty())?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
        Some(Note { path, id: Id(number.to_be_bytes()) })
    }

    /// The path as it was given, for that may name a device that gets another number with each boot.
    pub fn absolute(&self) -> PathBuf {
        std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone())
    }

    /// Notes it, durably.
    pub fn write(&self, journal_dir: &Path) -> anyhow::Result<()> {
        let (place, new) = (place(journal_dir), journal_dir.join("nvram.new"));
        let path = self.absolute();
        let written = || {
            let mut file = File::create(&new)?;
            file.write_all(format!("{}\n", self.id).as_bytes())?;
            file.write_all(path.as_os_str().as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&new, &place)?;
            File::open(journal_dir)?.sync_all()
        };
        written().with_context(|| format!("{} can't be written", place.display()))
    }

    /// No log is used any more.
    pub fn remove(journal_dir: &Path) -> anyhow::Result<()> {
        let place = place(journal_dir);
        std::fs::remove_file(&place)
            .and_then(|()| File::open(journal_dir)?.sync_all())
            .with_context(|| format!("{} can't be removed", place.display()))
    }

    /// Opens the very log that was noted: where the configuration says, if it is there, or where it was.
    pub fn find(&self, wanted: Option<&Path>) -> anyhow::Result<(Disk, LogHead)> {
        let elsewhere = wanted.filter(|wanted| *wanted != self.path && wanted.exists());
        match elsewhere.map(|path| self.open(path)) {
            Some(Ok(found)) => Ok(found),
            Some(Err(_)) | None => self.open(&self.path),
        }
    }

    fn open(&self, path: &Path) -> anyhow::Result<(Disk, LogHead)> {
        let remedy = "What was acknowledged last may be in this log alone: give it back. If it is lost, remove the file \
                      `nvram` in journal_dir, and promote nothing before the sources have connected again";
        let disk = Disk::open("NVRAM log", path).context(remedy)?;
        // What a killed daemon wrote may still be in the disk's cache only.
        disk.sync()?;
        let (blocks, _) = disk.first_blocks(2 * BLOCK_BYTES as u64)?;
        let head = match LogHead::decode(&blocks[0]) {
            Ok(head) if head.id == self.id && head.log_bytes() <= disk.size_bytes => head,
            Ok(head) => bail!("{}. {remedy}", disk.error(&format!("is log {}, not {}", head.id, self.id))),
            Err(error) => bail!("{}. {remedy}", disk.error(&format!("isn't the log that was used ({error})"))),
        };
        Ok((disk, head))
    }
}
