//! The configuration of both daemons: TOML files with exactly the keys that README.md lists.
//!
//! Reading one only parses and checks it: nothing here opens a device or a socket. What a single
//! value can get wrong (a size, an address, a name, a misspelt key) is refused while parsing, so
//! that the error shows the line; what only several values together can get wrong, or what this
//! version doesn't do, is refused by `validate`, which names the key and the remedy.

mod destination;
mod source;
mod values;

pub use destination::{DestinationConfig, ImageConfig, MirroredSource, ResyncStaging};
pub use source::{
    DestinationAddress, Durability, JournalConfig, OnDisconnect, SourceConfig, StandbyConfig, VolumeConfig,
};
pub use values::{HostPort, ListenAddress, check_timeout, format_bytes, format_duration, parse_timeout};

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits;
use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Most volumes of one source: they share its journal and its memory.
pub const MAX_VOLUMES: usize = limits::MAX_VOLUMES;
/// Longest name of a source or a volume, in bytes.
pub const MAX_NAME_LEN_BYTES: usize = limits::MAX_NAME_BYTES;
/// Smallest journal, both halves together, in bytes.
pub const MIN_JOURNAL_BYTES: u64 = 2 * limits::MIN_HALF_BYTES;
/// Largest journal, both halves together, in bytes: both halves are in memory too.
pub const MAX_JOURNAL_BYTES: u64 = 2 * limits::MAX_HALF_BYTES;
/// A journal's size is a multiple of this, in bytes.
pub const JOURNAL_UNIT_BYTES: u64 = 2 << 20;
/// Smallest staging log at a destination, in bytes: the smallest half of a journal fits into it.
pub const MIN_STAGING_BYTES: u64 = limits::MIN_HALF_BYTES;
/// Shortest time after which a destination may count as away: it is asked for a sign of life every quarter of it.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// Longest time after which a destination may count as away.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Longest path of a Unix socket, in bytes: the kernel's `sun_path` less its final zero (unix(7)).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Either daemon's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// A source's.
    Source(Box<SourceConfig>),
    /// A destination's.
    Destination(Box<DestinationConfig>),
}

impl Config {
    /// Reads and checks a file. Whose it is is told by `is_destination`, or else by its keys: only a destination has a
    /// `journal_dir` of its own.
    ///
    /// # Errors
    /// As those of the two.
    pub fn load(path: &Path, is_destination: Option<bool>) -> anyhow::Result<Config> {
        let tells = || read::<toml::Table>(path).map(|keys| keys.contains_key("journal_dir"));
        Ok(if is_destination.map_or_else(tells, Ok)? {
            Config::Destination(Box::new(DestinationConfig::load(path)?))
        } else {
            Config::Source(Box::new(SourceConfig::load(path)?))
        })
    }
}

/// Section `[nbd]`: where NBD clients connect.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdConfig {
    /// Addresses to listen on, `"unix:/path"` or `"tcp:host:port"`; at least one.
    pub listen: Vec<ListenAddress>,
}

/// Section `[admin]`: where `status`, `promote` and the other verbs reach the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Path of the Unix socket, made by the daemon with mode 0600.
    #[serde(deserialize_with = "values::socket_path")]
    pub socket: PathBuf,
}

/// Section `[metrics]`: where Prometheus fetches `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// TCP address to listen on, `"host:port"`.
    pub listen: HostPort,
}

/// Checks a source's or volume's name: 1 to 64 characters of `A-Z a-z 0-9 . _ -`, no dot in front.
///
/// Names become NBD export names and parts of file names, hence the narrow set.
///
/// # Errors
/// The rule that the name breaks, as one sentence.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME_LEN_BYTES {
        return Err(format!("a name has 1 to {MAX_NAME_LEN_BYTES} characters, not {}", name.len()));
    }
    if let Some(bad) = name.chars().find(|&c| !allowed(c)) {
        return Err(format!("name {name:?} holds {bad:?}: only letters, digits, '.', '_' and '-' are allowed"));
    }
    if name.starts_with('.') {
        return Err(format!("name {name:?} starts with a dot"));
    }
    Ok(())
}

/// Reads the file and parses it; errors name the file, and the line where there is one.
fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("can't read the configuration {}", path.display()))?;
    parse(&text).with_context(|| format!("in the configuration {}", path.display()))
}

/// Parses TOML text into a configuration; the error shows line, column and the known keys.
fn parse<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    toml::from_str(text).map_err(|e| anyhow::anyhow!("{}", e.to_string().trim_end()))
}

/// Refuses the second of two equal values; `key` names where they stand.
fn refuse_twice<T: Eq + Hash + Display>(key: &str, values: impl IntoIterator<Item = T>) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for value in values {
        if seen.contains(&value) {
            bail!("{key}: {value} is named twice; each may be named once");
        }
        seen.insert(value);
    }
    Ok(())
}

/// Checks the number of volumes that one source has.
fn check_volume_count(key: &str, count: usize) -> anyhow::Result<()> {
    match count {
        0 => bail!("no [[{key}]] section: a source needs at least one volume"),
        1..=MAX_VOLUMES => Ok(()),
        _ => bail!("{count} [[{key}]] sections: one source has at most {MAX_VOLUMES} volumes"),
    }
}

/// Checks the sockets of one daemon: at least one NBD address, and no address used twice.
fn check_sockets(nbd: Option<&NbdConfig>, admin: &AdminConfig) -> anyhow::Result<()> {
    let Some(nbd) = nbd else { return Ok(()) };
    if nbd.listen.is_empty() {
        bail!("nbd.listen is empty: name an address, e.g. \"tcp:127.0.0.1:10809\"");
    }
    refuse_twice("nbd.listen", &nbd.listen)?;
    let admin_path = ListenAddress::Unix(admin.socket.clone());
    if nbd.listen.contains(&admin_path) {
        bail!("admin.socket and nbd.listen both name {admin_path}: choose two paths");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
