//! A destination's configuration: the sources it serves and the images it keeps for them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::MIN_NVRAM_BYTES;
use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::source::{self, Durability, OnDisconnect, SourceConfig};
use super::{
    AdminConfig, HostPort, MIN_STAGING_BYTES, MetricsConfig, NbdConfig, check_sockets, check_volume_count,
    format_bytes, refuse_twice, values,
};

/// Everything that `nbd-mirror destination --config FILE` reads from the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestinationConfig {
    /// Where sources connect, `"host:port"`.
    pub listen: HostPort,
    /// Folder of the journal files and the state of each source, made when missing.
    #[serde(deserialize_with = "values::path")]
    pub journal_dir: PathBuf,
    /// Key `staging_size`: bytes that the staging log of each source may hold, in which a resync waits until it is
    /// complete; at least [`MIN_STAGING_BYTES`].
    #[serde(rename = "staging_size", default = "default_staging_bytes", deserialize_with = "values::size_bytes")]
    pub staging_size_bytes: u64,
    /// What a resync does that the staging log has no room for.
    #[serde(default)]
    pub resync_staging: ResyncStaging,
    /// Log shared by all sources, in which frames are stored first: a file or a block device on memory or a disk that is
    /// faster than the journal files'.
    #[serde(default, deserialize_with = "values::optional_path")]
    pub nvram: Option<PathBuf>,
    /// Key `nvram_size`: size of the log, in bytes; at least [`MIN_NVRAM_BYTES`]. A smaller device is used whole.
    #[serde(rename = "nvram_size", default = "default_nvram_bytes", deserialize_with = "values::size_bytes")]
    pub nvram_size_bytes: u64,
    /// Sections `[[source]]`, at least one.
    #[serde(rename = "source", default)]
    pub sources: Vec<MirroredSource>,
    /// Section `[nbd]`: where images are served, read-only while they are mirrored; without it none is.
    pub nbd: Option<NbdConfig>,
    /// Section `[admin]`.
    pub admin: AdminConfig,
    /// Section `[metrics]`; without it no metrics are served.
    pub metrics: Option<MetricsConfig>,
}

/// What becomes of a resync that doesn't fit into the staging log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncStaging {
    /// It is refused: the images stay promotable, as they were before it.
    #[default]
    Require,
    /// It goes on, straight to the images, which can't be promoted until it is complete.
    BestEffort,
}

fn default_staging_bytes() -> u64 {
    8 << 30
}

fn default_nvram_bytes() -> u64 {
    1 << 30
}

/// One section `[[source]]` of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirroredSource {
    /// The name that the source's own configuration gives it.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// Where the images are mirrored to once they were promoted: the address in the source's section `[standby]`.
    pub peer: Option<HostPort>,
    /// When a write to promoted images counts as stored.
    #[serde(default)]
    pub durability: Durability,
    /// What becomes of writes to promoted images while the peer is away.
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
    /// How long the peer may be silent before it counts as away.
    #[serde(default = "source::default_timeout", deserialize_with = "values::timeout")]
    pub timeout: Duration,
    /// Sections `[[source.volume]]`, 1 to 32 of them.
    #[serde(rename = "volume", default)]
    pub volumes: Vec<ImageConfig>,
}

/// One section `[[source.volume]]`: a volume and its image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// The volume's name, as in the source's configuration.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// The block device or regular file that mirrors the volume.
    #[serde(deserialize_with = "values::path")]
    pub image: PathBuf,
}

impl DestinationConfig {
    /// The node of a source, in the role of a destination. `None` where its configuration has no section `[standby]`, or no
    /// destination that it could be mirrored from.
    pub fn of_source(source: &SourceConfig) -> Option<DestinationConfig> {
        let (standby, peer) = (source.standby.as_ref()?, source.destination.as_ref()?);
        let volume =
            |volume: &source::VolumeConfig| ImageConfig { name: volume.name.clone(), image: volume.device.clone() };
        let mirrored = MirroredSource {
            name: source.name.clone(),
            peer: Some(peer.address.clone()),
            durability: source.durability,
            on_disconnect: source.on_disconnect,
            timeout: source.timeout,
            volumes: source.volumes.iter().map(volume).collect(),
        };
        Some(DestinationConfig {
            listen: standby.listen.clone(),
            journal_dir: standby.journal_dir.clone(),
            staging_size_bytes: default_staging_bytes(),
            resync_staging: ResyncStaging::default(),
            nvram: None,
            nvram_size_bytes: default_nvram_bytes(),
            sources: vec![mirrored],
            nbd: Some(source.nbd.clone()),
            admin: source.admin.clone(),
            metrics: source.metrics.clone(),
        })
    }

    /// Reads and checks the file.
    ///
    /// # Errors
    /// A file that can't be read, a value or key that is wrong (with its line), or values that
    /// [`DestinationConfig::validate`] refuses; each names the file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let config: Self = super::read(path)?;
        config.validate().with_context(|| format!("in the configuration {}", path.display()))?;
        Ok(config)
    }

    /// Parses TOML text without [`DestinationConfig::validate`].
    ///
    /// # Errors
    /// A value or key that is wrong, with its line.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        super::parse(text)
    }

    /// Whether a resync that doesn't fit into the staging log goes on, at the price that nothing can be promoted meanwhile.
    pub fn best_effort(&self) -> bool {
        self.resync_staging == ResyncStaging::BestEffort
    }

    /// Checks what no single value shows, and refuses what this version doesn't do.
    ///
    /// # Errors
    /// The first key that is wrong, with the remedy.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.nvram_size_bytes < MIN_NVRAM_BYTES {
            bail!(
                "nvram_size is {}: it must be at least {}",
                format_bytes(self.nvram_size_bytes),
                format_bytes(MIN_NVRAM_BYTES)
            );
        }
        if self.staging_size_bytes < MIN_STAGING_BYTES {
            bail!(
                "staging_size is {}: it must be at least {}, and hold what a resync sends",
                format_bytes(self.staging_size_bytes),
                format_bytes(MIN_STAGING_BYTES)
            );
        }
        if self.sources.is_empty() {
            bail!("no [[source]] section: a destination needs at least one source");
        }
        refuse_twice("source.name", self.sources.iter().map(|s| &s.name))?;
        for source in &self.sources {
            let place = || format!("source {:?}", source.name);
            check_volume_count("source.volume", source.volumes.len()).with_context(place)?;
            refuse_twice("source.volume.name", source.volumes.iter().map(|v| &v.name)).with_context(place)?;
        }
        // Across all sources: two sources on one image would destroy each other's mirror.
        let images = self.sources.iter().flat_map(|s| &s.volumes);
        let images = images.map(|v| v.image.display().to_string());
        refuse_twice(
            "source.volume.image, nvram",
            images.chain(self.nvram.iter().map(|path| path.display().to_string())),
        )?;
        check_sockets(self.nbd.as_ref(), &self.admin)
    }
}
