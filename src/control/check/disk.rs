//! One file or device of a configuration: what it stands on, and how it is written.

use super::super::source::whole;
use super::super::status;
use crate::engine::disk::{Disk, DiskError};
use crate::engine::promise::Ground;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Why something isn't measured that a daemon has.
pub(super) const IN_USE: &str = "it is in use";

/// What a file or device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Journal,
    /// The folder of one source at its destination.
    JournalFiles,
    /// The log that all sources of a destination share.
    NvramLog,
    Volume,
    Image,
}

impl Part {
    pub(super) fn word(self) -> &'static str {
        match self {
            Part::Journal => "journal",
            Part::JournalFiles => "journal files",
            Part::NvramLog => "NVRAM log",
            Part::Volume => "volume",
            Part::Image => "image",
        }
    }

    /// Whether each record is written to it at once.
    pub(super) fn is_log(self) -> bool {
        matches!(self, Part::Journal | Part::JournalFiles | Part::NvramLog)
    }
}

/// A file or device, as far as it can be seen.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) part: Part,
    /// The volume's name, or the source's.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// What it stands on, or what it is going to stand on; `None` where there isn't even a folder.
    pub(super) ground: Option<Ground>,
    pub(super) exists: bool,
    /// Whether somebody has it.
    pub(super) in_use: bool,
    /// Whether what is in it is this source's.
    pub(super) ours: bool,
    /// Its size, where it could be opened; of a journal, what is used of it.
    pub(super) bytes: Option<u64>,
    /// How it is written, as `status` says it, where more is known than the ground tells.
    pub(super) store: Option<Value>,
}

impl Looked {
    /// Looks without opening.
    pub(super) fn at(part: Part, name: &str, path: &Path) -> Looked {
        let exists = path.exists();
        // Folders are made; a journal's own must be there.
        let stands = match part {
            Part::JournalFiles => nearest(path),
            _ if exists => path.to_owned(),
            _ => folder(path),
        };
        Looked {
            part,
            name: name.to_owned(),
            path: path.to_owned(),
            ground: Ground::of(&stands).ok(),
            exists,
            in_use: false,
            ours: false,
            bytes: None,
            store: None,
        }
    }

    /// As people call it.
    pub(super) fn words(&self) -> String {
        match self.part {
            Part::Journal => "the journal".to_owned(),
            Part::JournalFiles => format!("the journal files of source {}", self.name),
            Part::NvramLog => "the NVRAM log".to_owned(),
            Part::Volume | Part::Image => format!("{} {}", self.part.word(), self.name),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let ground = self.ground.as_ref();
        let device = ground.and_then(|ground| ground.device.as_ref().ok());
        let store = if self.part.is_log() {
            self.store.clone().or_else(|| ground.map(Ground::store).as_ref().map(status::store))
        } else {
            Some(json!({ "how": "sync", "why": "each half is written, then synced" }))
        };
        json!({
            "part": self.part.word(), "name": self.name, "path": self.path, "exists": self.exists,
            "in_use": self.in_use, "size_bytes": self.bytes,
            "file_system": ground.and_then(|ground| ground.system).map(|system| system.name),
            "device": device.map(|device| &device.name), "disks": device.map(|device| &device.disks),
            "write_cache": device.and_then(|device| device.cache).map(|cache| cache.to_string()),
            "fua": device.map(|device| device.fua), "dax": device.map(|device| device.dax),
            "rotational": device.map(|device| device.rotational), "store": store,
        })
    }
}

fn folder(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// The folder itself, or the first one above it that is there.
pub(super) fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|above| above.is_dir());
    there.unwrap_or(Path::new(".")).to_owned()
}

/// What became of opening something.
pub(super) enum Opened {
    Free(Disk),
    Not(anyhow::Error),
}

/// Opens a file or device as a daemon does, but doesn't wait for who has it.
pub(super) fn open(part: Part, path: &Path) -> Opened {
    let opened = Disk::open_now(part.word(), path).map_err(anyhow::Error::from);
    let opened = if part.is_log() { opened } else { opened.and_then(whole) };
    opened.map_or_else(Opened::Not, Opened::Free)
}

/// Whether it failed for nothing but that somebody has it.
pub(super) fn in_use(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(DiskError::in_use)
}
