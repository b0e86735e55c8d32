//! A source's configuration: its journal, its volumes and its destination.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::core::policy;
use crate::limits::{BLOCK_BYTES, GRAIN_BYTES, MAX_GRAIN_BYTES};

use super::{
    AdminConfig, HostPort, JOURNAL_UNIT_BYTES, MAX_JOURNAL_BYTES, MIN_JOURNAL_BYTES, MetricsConfig, NbdConfig,
    check_sockets, check_volume_count, format_bytes, refuse_twice, values,
};

/// Everything that `nbd-mirror source --config FILE` reads from the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// The source's name, which the destination's configuration repeats.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// When a write counts as stored.
    #[serde(default)]
    pub durability: Durability,
    /// What becomes of writes while the destination is away.
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
    /// How long the destination may be silent before it counts as away.
    #[serde(default = "default_timeout", deserialize_with = "values::timeout")]
    pub timeout: Duration,
    /// Section `[journal]`.
    pub journal: JournalConfig,
    /// Sections `[[volume]]`, 1 to 32 of them; they form one consistency group.
    #[serde(rename = "volume", default)]
    pub volumes: Vec<VolumeConfig>,
    /// Section `[nbd]`.
    pub nbd: NbdConfig,
    /// Section `[destination]`; without it the source runs alone.
    pub destination: Option<DestinationAddress>,
    /// Section `[standby]`: what makes this node the destination once the other side was promoted; without it, it can't be.
    pub standby: Option<StandbyConfig>,
    /// Section `[admin]`.
    pub admin: AdminConfig,
    /// Section `[metrics]`; without it no metrics are served.
    pub metrics: Option<MetricsConfig>,
}

/// Section `[standby]` of a source.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandbyConfig {
    /// Where the new source connects, `"host:port"`: what the other side's configuration calls its peer.
    pub listen: HostPort,
    /// Folder of the journal files, as a destination's.
    #[serde(deserialize_with = "values::path")]
    pub journal_dir: PathBuf,
}

/// When a write counts as stored: promise P1 in ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A write is answered when both sides have it on stable storage.
    #[default]
    Always,
    /// The export has a volatile cache: a FLUSH or FUA makes both sides store what it covers.
    Flush,
}

impl From<Durability> for crate::core::Durability {
    fn from(configured: Durability) -> Self {
        match configured {
            Durability::Always => Self::Always,
            Durability::Flush => Self::Flush,
        }
    }
}

impl Durability {
    /// The word that the configuration and the status use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Flush => "flush",
        }
    }
}

/// What becomes of writes while the destination is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// After the timeout they are answered without it, and what changes is tracked.
    #[default]
    Continue,
    /// They wait until it is back.
    Stall,
    /// After the timeout they get EIO.
    Fail,
}

impl OnDisconnect {
    /// All there are, in the order in which they are documented.
    pub const ALL: [Self; 3] = [Self::Continue, Self::Stall, Self::Fail];

    /// The word that the configuration, `set` and the status use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Continue => "continue",
            Self::Stall => "stall",
            Self::Fail => "fail",
        }
    }
}

impl From<OnDisconnect> for policy::OnDisconnect {
    fn from(configured: OnDisconnect) -> Self {
        match configured {
            OnDisconnect::Continue => Self::Continue,
            OnDisconnect::Stall => Self::Stall,
            OnDisconnect::Fail => Self::Fail,
        }
    }
}

impl From<policy::OnDisconnect> for OnDisconnect {
    fn from(held: policy::OnDisconnect) -> Self {
        match held {
            policy::OnDisconnect::Continue => Self::Continue,
            policy::OnDisconnect::Stall => Self::Stall,
            policy::OnDisconnect::Fail => Self::Fail,
        }
    }
}

/// Section `[journal]` of a source.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalConfig {
    /// A regular file, made when missing, or a block device.
    #[serde(deserialize_with = "values::path")]
    pub path: PathBuf,
    /// Key `size`: both halves together, in bytes; 16 MiB to 64 GiB, a multiple of 2 MiB.
    #[serde(rename = "size", default = "default_size_bytes", deserialize_with = "values::size_bytes")]
    pub size_bytes: u64,
    /// A half that is not empty and older than this is switched.
    #[serde(default = "default_max_age", deserialize_with = "values::positive_duration")]
    pub max_age: Duration,
    /// Key `grain`: bytes of a volume that one bit of the dirty bitmap stands for; a power of two, 4 KiB to 1 MiB.
    #[serde(rename = "grain", default = "default_grain_bytes", deserialize_with = "values::size_bytes")]
    pub grain_bytes: u64,
}

/// One section `[[volume]]` of a source.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// The NBD export's name.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// The block device or regular file that is exported.
    #[serde(deserialize_with = "values::path")]
    pub device: PathBuf,
}

/// Section `[destination]` of a source.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestinationAddress {
    /// Where the destination listens, `"host:port"`.
    pub address: HostPort,
}

pub(super) fn default_timeout() -> Duration {
    Duration::from_secs(5)
}

fn default_size_bytes() -> u64 {
    256 << 20
}

fn default_grain_bytes() -> u64 {
    GRAIN_BYTES.into()
}

fn default_max_age() -> Duration {
    Duration::from_secs(10)
}

impl SourceConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// A file that can't be read, a value or key that is wrong (with its line), or values that
    /// [`SourceConfig::validate`] refuses; each names the file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let config: Self = super::read(path)?;
        config.validate().with_context(|| format!("in the configuration {}", path.display()))?;
        Ok(config)
    }

    /// Parses TOML text without [`SourceConfig::validate`].
    ///
    /// # Errors
    /// A value or key that is wrong, with its line.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        super::parse(text)
    }

    /// Checks what no single value shows, and refuses what this version doesn't do.
    ///
    /// # Errors
    /// The first key that is wrong, with the remedy.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.journal.validate()?;
        check_volume_count("volume", self.volumes.len())?;
        refuse_twice("volume.name", self.volumes.iter().map(|v| &v.name))?;
        refuse_twice("volume.device", self.volumes.iter().map(|v| v.device.display().to_string()))?;
        if let Some(volume) = self.volumes.iter().find(|v| v.device == self.journal.path) {
            bail!(
                "journal.path and the device of volume {:?} are both {}: the journal needs its own",
                volume.name,
                self.journal.path.display()
            );
        }
        check_sockets(Some(&self.nbd), &self.admin)
    }
}

impl JournalConfig {
    fn validate(&self) -> anyhow::Result<()> {
        let size = self.size_bytes;
        if !(MIN_JOURNAL_BYTES..=MAX_JOURNAL_BYTES).contains(&size) {
            bail!(
                "journal.size is {}: it must be from {} to {}",
                format_bytes(size),
                format_bytes(MIN_JOURNAL_BYTES),
                format_bytes(MAX_JOURNAL_BYTES)
            );
        }
        if !size.is_multiple_of(JOURNAL_UNIT_BYTES) {
            bail!(
                "journal.size is {size} bytes: it must be a multiple of {}, e.g. {} bytes",
                format_bytes(JOURNAL_UNIT_BYTES),
                size - size % JOURNAL_UNIT_BYTES
            );
        }
        let (grain, allowed) = (self.grain_bytes, BLOCK_BYTES as u64..=MAX_GRAIN_BYTES.into());
        if !grain.is_power_of_two() || !allowed.contains(&grain) {
            bail!(
                "journal.grain is {}: it must be a power of two from {} to {}, e.g. \"64KiB\"",
                format_bytes(grain),
                format_bytes(*allowed.start()),
                format_bytes(*allowed.end())
            );
        }
        Ok(())
    }
}
