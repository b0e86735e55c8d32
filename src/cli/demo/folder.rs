//! The folder that the demo works in.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};

use crate::control::config::MAX_SOCKET_PATH_BYTES;

/// Longest name that the demo gives a socket.
const LONGEST_SOCKET: &str = "destination.admin";

/// An empty folder; a temporary one is removed when this is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    /// Takes the folder `dir`, made when missing, or makes a temporary one.
    ///
    /// # Errors
    /// A folder that can't be made, isn't empty, or whose path is too long for a socket in it.
    pub fn open(dir: Option<PathBuf>) -> anyhow::Result<Self> {
        let temporary = dir.is_none();
        let path = match dir {
            Some(dir) => std::path::absolute(&dir).with_context(|| format!("can't resolve {}", dir.display()))?,
            None => unique_path(),
        };
        let length = path.join(LONGEST_SOCKET).as_os_str().as_bytes().len();
        if length > MAX_SOCKET_PATH_BYTES {
            bail!(
                "the path {} is too long for a Unix socket in it ({length} bytes with the socket's \
                 name, Linux allows {MAX_SOCKET_PATH_BYTES}): name a shorter one with --dir",
                path.display()
            );
        }
        let made = DirBuilder::new().mode(0o700).create(&path);
        match made {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists && !temporary => refuse_used(&path)?,
            Err(e) => {
                return Err(e)
                    .with_context(|| format!("can't make the folder {}: name one with --dir", path.display()));
            }
        }
        Ok(Self { path, temporary })
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if the folder is removed at the end.
    pub fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// Path of a file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary
            && let Err(e) = fs::remove_dir_all(&self.path)
        {
            eprintln!("can't remove {}: {e}", self.path.display());
        }
    }
}

/// A folder that holds something may be somebody's: the demo neither mixes with it nor removes it.
fn refuse_used(path: &Path) -> anyhow::Result<()> {
    let mut entries = fs::read_dir(path).with_context(|| format!("can't read the folder {}", path.display()))?;
    if entries.next().is_some() {
        bail!("the folder {} isn't empty: empty it, or name another one with --dir", path.display());
    }
    Ok(())
}

/// A path below the system's folder for temporary files that nobody else uses.
fn unique_path() -> PathBuf {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = since_epoch.map_or(0, |d| d.subsec_nanos());
    let name = format!("nbd-mirror-demo-{}-{nanos:08x}", std::process::id());
    std::env::temp_dir().join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_folder_goes_and_a_named_one_stays() {
        let folder = Folder::open(None).unwrap();
        let path = folder.path().to_owned();
        fs::write(folder.join("file"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());

        let parent = tempfile::tempdir().unwrap();
        let named = parent.path().join("named");
        drop(Folder::open(Some(named.clone())).unwrap());
        assert!(named.exists());
    }

    #[test]
    fn a_used_or_too_long_folder_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("file"), "x").unwrap();
        let used = Folder::open(Some(parent.path().to_owned())).unwrap_err();
        assert!(used.to_string().contains("isn't empty"), "{used}");
        assert!(parent.path().join("file").exists());

        let long = Folder::open(Some(parent.path().join("x".repeat(100)))).unwrap_err();
        assert!(long.to_string().contains("--dir"), "{long}");
    }
}
