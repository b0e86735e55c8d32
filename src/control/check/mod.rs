//! A check before a start: what a configuration names is looked at as the daemon would, without changing it, what decides
//! how long a write takes is measured, and what would break a promise is told with its remedy.
//!
//! Locks are taken as a daemon takes them, and let go of at the end. What a running daemon has is looked at from outside
//! and not measured.

mod disk;
mod finding;
mod peer;

use super::admin::{self, CallError, Request};
use super::config::{Config, DestinationConfig, HostPort, ListenAddress, NbdConfig, SourceConfig};
use super::{listen, source, status};
use crate::engine::destination::Folder;
use crate::engine::latency::{self, FILE_BYTES, Latency};
use crate::engine::nvram;
use crate::engine::source::{self as engine, Volume, journal_bytes};
use crate::limits::BLOCK_BYTES;
use disk::{Looked, Opened, Part};
use finding::Findings;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Checks what a daemon of this configuration would find. The errors and warnings are in the answer.
///
/// # Errors
/// A daemon that can't be asked.
pub async fn run(config: &Config) -> anyhow::Result<Value> {
    let mut check = Check { report: json!({}), findings: Findings::default(), running: None };
    if let Err(error) = crate::engine::ring::probe() {
        check.findings.error(&error.into());
    }
    match config {
        Config::Source(config) => check.source(config).await?,
        Config::Destination(config) => check.destination(config).await?,
    }
    let (mut report, findings) = (check.report, check.findings);
    report["errors"] = findings.errors.into();
    report["warnings"] = findings.warnings.into();
    Ok(report)
}

struct Check {
    report: Value,
    findings: Findings,
    /// The status of the daemon that runs by this configuration.
    running: Option<Value>,
}

impl Check {
    /// Finds out whether a daemon runs.
    async fn ask(&mut self, socket: &Path) -> anyhow::Result<()> {
        match admin::call(socket, &Request::Status).await {
            Ok(status) => self.running = Some(status),
            Err(error) if matches!(error.downcast_ref(), Some(CallError::Unreachable(_))) => {}
            Err(error) => return Err(error),
        }
        self.report["running"] = self.running.is_some().into();
        Ok(())
    }

    async fn source(&mut self, config: &SourceConfig) -> anyhow::Result<()> {
        self.ask(&config.admin.socket).await?;
        if let Some(standby) = self.standby(config) {
            return self.destination_asked(&standby).await;
        }
        self.report["role"] = "source".into();
        self.report["name"] = config.name.as_str().into();
        let mut looked = Vec::new();
        let mut volumes = Vec::new();
        for volume in &config.volumes {
            let (part, opened) = self.look(Part::Volume, &volume.name, &volume.device);
            looked.push(part);
            volumes.extend(opened.map(|disk| Volume { name: volume.name.clone(), disk }));
        }
        let journal = self.journal(config, volumes)?;
        looked.insert(0, journal);
        finding::sharing(&mut self.findings, &looked);
        self.show(&looked);
        if let Some(destination) = &config.destination {
            let address = &destination.address;
            finding::network(&mut self.findings, "replication to", address, peer::is_local(address).await);
            let met = peer::meet(address, &config.name).await;
            match &met.trouble {
                Some(why) if !met.answered => self.findings.unreachable(address, why),
                Some(why) => self.findings.refused(address, why),
                None => {}
            }
            self.report["peer"] = met.to_json(address);
        }
        let metrics = config.metrics.as_ref().map(|metrics| &metrics.listen);
        self.listens(&[], Some(&config.nbd), metrics, &config.admin.socket).await;
        Ok(())
    }

    /// What a source runs as, once it has become a destination.
    fn standby(&self, config: &SourceConfig) -> Option<DestinationConfig> {
        let standby = DestinationConfig::of_source(config)?;
        let became = match &self.running {
            Some(status) => status["role"] == "destination",
            None => {
                Folder::look(&standby.journal_dir.join(&config.name), &config.name).is_ok_and(|found| found.is_some())
            }
        };
        became.then_some(standby)
    }

    /// Looks at a source's journal, and measures it. `volumes`: those that could be opened.
    fn journal(&mut self, config: &SourceConfig, volumes: Vec<Volume>) -> anyhow::Result<Looked> {
        let path = &config.journal.path;
        let mut journal = Looked::at(Part::Journal, &config.name, path);
        self.findings.ground(&journal);
        let measured = if !path.exists() {
            if journal.ground.is_none() {
                let folder = path.parent().unwrap_or(path).display();
                self.findings
                    .error(&anyhow::anyhow!("the journal {} can't be made: {folder} isn't a folder", path.display()));
                Err("there is no folder to measure in".to_owned())
            } else {
                self.measure_beside(&mut journal, path.parent().unwrap_or(Path::new(".")))
            }
        } else if volumes.len() < config.volumes.len() {
            // Whether it fits the volumes can't be said without them; whether somebody has it can.
            journal.in_use = self.look(Part::Journal, &config.name, path).0.in_use;
            Err((if journal.in_use { disk::IN_USE } else { "not all volumes could be opened" }).to_owned())
        } else {
            let found = source::plan(config, volumes, false).and_then(|plan| engine::look(&plan));
            match found {
                Ok((mut disk, Some(superblock))) => {
                    let bytes = journal_bytes(superblock.half_bytes, &superblock.sizes(), superblock.grain_bytes);
                    disk.map_persistent(bytes);
                    (journal.ours, journal.bytes) = (true, Some(bytes));
                    journal.store = Some(status::store(&disk.how_stored()));
                    self.measured(latency::of_superblock(&disk, &superblock), path, None)
                }
                Ok((disk, None)) if disk.is_device => {
                    Err("it is made at the first start; a device is measured then".into())
                }
                Ok((_, None)) => self.measure_beside(&mut journal, path.parent().unwrap_or(Path::new("."))),
                Err(error) => Err(self.missed(&mut journal, &error)),
            }
        };
        self.report["latency"] = or_why(measured);
        // One that a daemon has is its own.
        if let Some(status) = &self.running {
            journal.ours = true;
            journal.store = said(&status["journal"]["store"]);
        }
        self.findings.sparse(&journal, std::slice::from_ref(path));
        Ok(journal)
    }

    async fn destination(&mut self, config: &DestinationConfig) -> anyhow::Result<()> {
        self.ask(&config.admin.socket).await?;
        self.destination_asked(config).await
    }

    async fn destination_asked(&mut self, config: &DestinationConfig) -> anyhow::Result<()> {
        self.report["role"] = "destination".into();
        let mut looked = Vec::new();
        // An answer waits for the log, if there is one.
        let log = config.nvram.as_ref().map(|path| self.log(path, config));
        let (log, on_log) = log.unzip();
        let mut measured = Err(None);
        for source in &config.sources {
            let folder = config.journal_dir.join(&source.name);
            let mut journals = Looked::at(Part::JournalFiles, &source.name, &folder);
            self.findings.ground(&journals);
            match Folder::look(&folder, &source.name) {
                Ok(Some((mut disk, superblock))) => {
                    journals.ours = true;
                    disk.map_persistent(disk.size_bytes);
                    journals.store = Some(status::store(&disk.how_stored()));
                    if measured.is_err() && on_log.is_none() {
                        let outcome = latency::of_superblock(&disk, &superblock);
                        measured = self.measured(outcome, disk.path(), None).map_err(Some);
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    let why = self.missed(&mut journals, &error);
                    measured = measured.map_err(|before| before.or(Some(why)));
                }
            }
            if let Some(status) = &self.running {
                journals.ours = true;
                let sources = status["sources"].as_array().into_iter().flatten();
                let of_it = sources.filter(|one| one["name"] == source.name.as_str());
                journals.store = of_it.filter_map(|one| said(&one["journal"]["store"])).next();
            }
            let mut files = Folder::journal_files(&folder).to_vec();
            files.push(Folder::promoted_journal(&folder));
            self.findings.sparse(&journals, &files);
            let mut group = vec![journals];
            for volume in &source.volumes {
                group.push(self.look(Part::Image, &volume.name, &volume.image).0);
            }
            finding::sharing(&mut self.findings, &group);
            looked.append(&mut group);
        }
        let measured = on_log.unwrap_or_else(|| match (measured, looked.first_mut()) {
            // Nothing was received yet, and nobody has anything.
            (Err(None), Some(journals)) => self.measure_beside(journals, &disk::nearest(&config.journal_dir)),
            (measured, _) => measured.map_err(Option::unwrap_or_default),
        });
        self.report["latency"] = or_why(measured);
        if let Some(log) = log {
            finding::log_sharing(&mut self.findings, &log, &looked);
            looked.insert(0, log);
        }
        self.show(&looked);
        let address = &config.listen;
        finding::network(&mut self.findings, "replication at", address, peer::is_local(address).await);
        let metrics = config.metrics.as_ref().map(|metrics| &metrics.listen);
        self.listens(&[&config.listen], config.nbd.as_ref(), metrics, &config.admin.socket).await;
        Ok(())
    }

    /// Looks at the log that all sources share, and measures where it is.
    fn log(&mut self, path: &Path, config: &DestinationConfig) -> (Looked, Result<Value, String>) {
        let mut log = Looked::at(Part::NvramLog, "", path);
        self.findings.ground(&log);
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut is_device = false;
        if log.exists {
            match disk::open(Part::NvramLog, path) {
                Opened::Free(disk) => {
                    is_device = disk.is_device;
                    log.bytes = Some(disk.size_bytes);
                    log.ours =
                        disk.first_blocks(2 * BLOCK_BYTES as u64).is_ok_and(|(blocks, _)| nvram::is_log(&blocks[0]));
                }
                Opened::Not(error) => {
                    let why = self.missed(&mut log, &error);
                    log.store = self.running.as_ref().and_then(|status| said(&status["nvram"]["store"]));
                    return (log, Err(why));
                }
            }
        }
        let (has, needs) = (log.bytes.filter(|_| is_device), nvram::needed_bytes(config.sources.len()));
        if has.unwrap_or(config.nvram_size_bytes).min(config.nvram_size_bytes) < needs {
            let path = path.display();
            self.findings.error(&anyhow::anyhow!(
                "the NVRAM log {path} is too small: {} sources need at least {needs} bytes (nvram_size)",
                config.sources.len()
            ));
        }
        self.findings.sparse(&log, std::slice::from_ref(&log.path));
        let measured = if is_device {
            Err("what is on a device isn't written to".to_owned())
        } else {
            self.measure_beside(&mut log, folder)
        };
        (log, measured)
    }

    /// Opens what has to be there, as a daemon does.
    fn look(&mut self, part: Part, name: &str, path: &Path) -> (Looked, Option<crate::engine::disk::Disk>) {
        let mut looked = Looked::at(part, name, path);
        if part != Part::Journal {
            self.findings.ground(&looked);
        }
        match disk::open(part, path) {
            Opened::Free(disk) => {
                looked.bytes = Some(disk.size_bytes);
                (looked, Some(disk))
            }
            Opened::Not(error) => {
                self.missed(&mut looked, &error);
                (looked, None)
            }
        }
    }

    /// Something couldn't be opened: an error, unless it is the running daemon that has it. Returns why it isn't measured.
    fn missed(&mut self, looked: &mut Looked, error: &anyhow::Error) -> String {
        looked.in_use = disk::in_use(error);
        if !looked.in_use || self.running.is_none() {
            self.findings.error(error);
        }
        (if looked.in_use { disk::IN_USE } else { "it couldn't be opened" }).to_owned()
    }

    /// Measures on a file that is made for that, and removed.
    fn measure_beside(&mut self, looked: &mut Looked, folder: &Path) -> Result<Value, String> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        match latency::of_new_file(folder) {
            Ok((latency, path, store)) => {
                looked.store = Some(status::store(&store));
                self.measured(Ok(latency), &path, Some(FILE_BYTES))
            }
            Err(error) => self.measured(Err(error), folder, None),
        }
    }

    fn measured(&mut self, outcome: anyhow::Result<Latency>, on: &Path, made: Option<u64>) -> Result<Value, String> {
        match outcome {
            Ok(latency) => Ok(json!({
                "on": on, "made_bytes": made, "writes": latency.writes,
                "median_us": micros(latency.median), "p99_us": micros(latency.p99), "why_not": null,
            })),
            Err(error) => {
                self.findings.error(&error);
                Err("it failed".into())
            }
        }
    }

    fn show(&mut self, looked: &[Looked]) {
        self.report["files"] = looked.iter().map(Looked::to_json).collect();
    }

    /// Whether what is listened on is free; a running daemon has it.
    async fn listens(&mut self, more: &[&HostPort], nbd: Option<&NbdConfig>, metrics: Option<&HostPort>, admin: &Path) {
        let tcp = |address: &HostPort| ListenAddress::Tcp(address.clone());
        let mut all: Vec<ListenAddress> = more.iter().map(|address| tcp(address)).collect();
        all.extend(nbd.into_iter().flat_map(|nbd| nbd.listen.clone()));
        all.extend(metrics.map(tcp));
        all.push(ListenAddress::Unix(PathBuf::from(admin)));
        let mut shown = Vec::new();
        for address in all {
            let free = if self.running.is_some() { None } else { Some(listen::probe(&address).await) };
            shown.push(json!({ "address": address.to_string(), "free": free.as_ref().map(Result::is_ok) }));
            if let Some(Err(error)) = free {
                self.findings.error(&error);
            }
        }
        self.report["listens"] = shown.into();
    }
}

/// What a running daemon says, if it says it.
fn said(value: &Value) -> Option<Value> {
    (!value.is_null()).then(|| value.clone())
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn or_why(measured: Result<Value, String>) -> Value {
    measured.unwrap_or_else(|why| json!({ "why_not": why }))
}
