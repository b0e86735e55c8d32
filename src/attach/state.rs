//! What an agent must know after its own restart, and what others may know of it: a small file for each device.
//!
//! The highest epoch is in it before the device goes there: after that no older server may ever be taken, whatever
//! happens to the agent. A lock beside it keeps a second agent away.

use super::devices::Device;
use anyhow::{Context as _, anyhow};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How a device fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It was read from its server.
    Attached,
    /// Its server is lost, and its requests wait for another.
    Waiting,
}

impl Standing {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Attached => "attached",
            Standing::Waiting => "waiting",
        }
    }
}

/// What is kept of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `/dev/nbdN`.
    pub device: String,
    /// The volume, as a UUID.
    pub volume: String,
    /// The highest epoch seen of it.
    pub epoch: u64,
    /// The device's size in bytes.
    pub size_bytes: u64,
    /// The device's logical block size in bytes.
    pub block_bytes: u32,
    /// The first server's NBD flags; null where they aren't known any more.
    pub flags: Option<u16>,
    /// Where the volume may be served.
    pub uris: Vec<String>,
    /// Where the device goes, or went last.
    pub uri: Option<String>,
    /// How it fares.
    pub state: Standing,
    /// Since when, in seconds since 1970.
    pub since_unix_s: u64,
    /// The agent's process.
    pub pid: u32,
}

/// The folder of the state files.
#[derive(Debug, Clone)]
pub struct StateDir(pub PathBuf);

/// A device's agent, as seen from outside.
#[derive(Debug, Clone)]
pub struct Listed {
    /// What it has written.
    pub state: State,
    /// Whether it runs.
    pub runs: bool,
}

impl StateDir {
    fn file(&self, device: Device, kind: &str) -> PathBuf {
        self.0.join(format!("attach-{}.{kind}", device.name()))
    }

    /// Makes the folder, and this process the device's agent. Fails where there is another.
    pub fn claim(&self, device: Device) -> anyhow::Result<Claim> {
        fs::create_dir_all(&self.0).with_context(|| format!("can't make {}", self.0.display()))?;
        let path = self.file(device, "lock");
        let shown = path.display().to_string();
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("can't open {shown}"))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => {
                let pid = self.read(device).ok().flatten().map_or(String::new(), |state| format!(" ({})", state.pid));
                anyhow!("{device} has an agent already{pid}")
            }
            error => anyhow!("can't lock {shown}: {error}"),
        })?;
        Ok(Claim { path: self.file(device, "json"), _lock: lock })
    }

    /// Whether an agent runs.
    fn is_claimed(&self, device: Device) -> bool {
        let Ok(file) = File::open(self.file(device, "lock")) else { return false };
        matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, nix::errno::Errno::EWOULDBLOCK)))
    }

    /// What is kept of a device, if there is anything.
    pub fn read(&self, device: Device) -> anyhow::Result<Option<State>> {
        let path = self.file(device, "json");
        match fs::read(&path) {
            Ok(bytes) => {
                let state = serde_json::from_slice(&bytes);
                state.map(Some).with_context(|| format!("{} isn't understood", path.display()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
        }
    }

    /// Tells the device's agent to end, which notices that its file is gone. Returns whether there is none any more.
    pub fn dismiss(&self, device: Device) -> anyhow::Result<bool> {
        remove(&self.file(device, "json"))?;
        Ok(!self.is_claimed(device))
    }

    /// All devices of which something is kept, by their numbers.
    pub fn list(&self) -> anyhow::Result<Vec<Listed>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("can't read {}", self.0.display())),
        };
        let device = |entry: fs::DirEntry| {
            entry.file_name().to_str()?.strip_prefix("attach-")?.strip_suffix(".json")?.parse::<Device>().ok()
        };
        let mut devices: Vec<Device> = entries.flatten().filter_map(device).collect();
        devices.sort_by_key(|device| device.0);
        let mut listed = Vec::new();
        for device in devices {
            // One that was detached meanwhile is left out.
            if let Some(state) = self.read(device)? {
                listed.push(Listed { state, runs: self.is_claimed(device) });
            }
        }
        Ok(listed)
    }
}

/// The right to be a device's agent, for as long as it lives.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Claim {
    /// Stores the state, all of it or nothing.
    pub fn store(&self, state: &State) -> anyhow::Result<()> {
        let new = self.path.with_extension("json.new");
        let stored = || -> anyhow::Result<()> {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o644).open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(state)?)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            let folder = self.path.parent().map(File::open).transpose()?;
            folder.map_or(Ok(()), |folder| folder.sync_all())?;
            Ok(())
        };
        stored().with_context(|| format!("can't store {}", self.path.display()))
    }

    /// Whether somebody has taken the state away: the device was detached.
    pub fn is_dismissed(&self) -> bool {
        matches!(fs::symlink_metadata(&self.path), Err(error) if error.kind() == ErrorKind::NotFound)
    }

    /// Takes the state away.
    pub fn remove(&self) -> anyhow::Result<()> {
        remove(&self.path)
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            device: "/dev/nbd3".into(),
            volume: "67e55044-10b1-426f-9247-bb680e5fe0c8".into(),
            epoch: 2,
            size_bytes: 1 << 30,
            block_bytes: 4096,
            flags: Some(0x16d),
            uris: vec!["nbd://a/vol0".into(), "nbd://b/vol0".into()],
            uri: None,
            state: Standing::Waiting,
            since_unix_s: 1_767_582_764,
            pid: std::process::id(),
        }
    }

    #[test]
    fn what_is_stored_is_read_and_listed_until_it_is_dismissed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = StateDir(dir.path().join("deeper"));
        let device = Device(3);
        assert!(folder.list().unwrap().is_empty() && folder.read(device).unwrap().is_none());
        let claim = folder.claim(device).unwrap();
        claim.store(&state()).unwrap();
        assert_eq!(folder.read(device).unwrap(), Some(state()));
        let second = folder.claim(device).unwrap_err().to_string();
        assert!(
            second.contains("has an agent already") && second.contains(&std::process::id().to_string()),
            "{second}"
        );
        let listed = folder.list().unwrap();
        assert!(listed.len() == 1 && listed[0].runs, "{listed:?}");
        assert!(!claim.is_dismissed());
        assert!(!folder.dismiss(device).unwrap(), "the agent still runs");
        assert!(claim.is_dismissed());
        drop(claim);
        assert!(folder.dismiss(device).unwrap());
        assert!(folder.list().unwrap().is_empty());
        folder.claim(device).unwrap();
    }

    #[test]
    fn the_agent_may_be_gone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = StateDir(dir.path().into());
        folder.claim(Device(3)).unwrap().store(&state()).unwrap();
        assert!(!folder.list().unwrap()[0].runs);
        fs::write(dir.path().join("attach-nbd4.json"), "{").unwrap();
        assert!(folder.list().unwrap_err().to_string().contains("attach-nbd4.json isn't understood"));
    }
}
