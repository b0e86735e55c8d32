//! What is found: errors, with which a daemon wouldn't start, and warnings, with which a promise wouldn't hold.

use super::super::config::{HostPort, format_bytes};
use super::disk::{Looked, Part};
use crate::engine::filesystem::Home;
use crate::engine::promise::Shared;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Messages: their remedies are in them.
    pub(super) errors: Vec<Value>,
    /// `what` in one word, `text`, `remedy`.
    pub(super) warnings: Vec<Value>,
}

impl Findings {
    pub(super) fn error(&mut self, error: &anyhow::Error) {
        self.errors.push(format!("{error:#}").into());
    }

    fn warn(&mut self, what: &str, text: String, remedy: &str) {
        self.warnings.push(json!({ "what": what, "text": text, "remedy": remedy }));
    }

    /// What the ground under a file promises.
    pub(super) fn ground(&mut self, looked: &Looked) {
        let Some(ground) = &looked.ground else { return };
        let (words, path) = (looked.words(), looked.path.display());
        let system = ground.system.map_or("", |system| system.name);
        let device = ground.device.as_ref();
        match (ground.system.map(|system| system.home), device) {
            (Some(Home::Memory), _) => self.warn(
                "volatile",
                format!("{words} ({path}) is on {system}, in memory: a reboot or a power cut takes all of it"),
                "put it on a disk",
            ),
            (_, Ok(device)) if device.volatile => self.warn(
                "volatile",
                format!("{words} ({path}) is on {}, in memory: a reboot or a power cut takes all of it", device.name),
                "put it on a disk",
            ),
            (Some(Home::Far), _) => self.warn(
                "far",
                format!(
                    "{words} ({path}) is on {system}: whether and when what is written there is stable is up to another \
                     machine or program, and writes wait for that one"
                ),
                "put it on a disk of this machine",
            ),
            (_, Err(why)) => self.warn(
                "unknown_cache",
                format!("whether what is written to {words} ({path}, on {system}) is ever stable isn't known: {why}"),
                "put it on a block device, or on ext4 or xfs over one; or make sure that the disks below keep what they \
                 have taken, or obey flushes",
            ),
            (_, Ok(device)) if device.cache.is_none() => self.warn(
                "unknown_cache",
                format!("{words} ({path}) is on {}, of which it isn't known whether it has a volatile cache", device.name),
                "make sure that the disk keeps what it has taken, or obeys flushes",
            ),
            (_, Ok(_)) => {}
        }
    }

    /// Files of a journal that have holes: the room for them may be gone when it is needed.
    pub(super) fn sparse(&mut self, journal: &Looked, files: &[PathBuf]) {
        if !journal.ours {
            return;
        }
        for path in files {
            let Some(missing) = missing_bytes(path) else { continue };
            self.warn(
                "sparse",
                format!(
                    "{} has no room of its own for {} of its {}: when the file system is full, it stops, and until then \
                     its first writes are slower",
                    path.display(),
                    format_bytes(missing.0),
                    format_bytes(missing.1)
                ),
                &format!("stop the daemon, and: cp --sparse=never {0} {0}.whole && mv {0}.whole {0}", path.display()),
            );
        }
    }

    /// Two that have a disk in common, if they have, and what comes of it.
    fn shared(&mut self, one: &Looked, other: &Looked, effect: &str, remedy: &str) {
        let (Some(ours), Some(theirs)) = (&one.ground, &other.ground) else { return };
        let (what, on) = match ours.shared(theirs) {
            None => return,
            Some(Shared::FileSystem) => ("same_file_system", "on one file system".to_owned()),
            Some(Shared::Disks(disks)) => ("same_disk", format!("both on {}", disks.join(", "))),
        };
        self.warn(what, format!("{} and {} are {on}: {effect}", one.words(), other.words()), remedy);
    }

    pub(super) fn unreachable(&mut self, address: &HostPort, why: &str) {
        self.warn(
            "unreachable",
            format!("the destination at {address} can't be reached: {why}"),
            "start it, or check destination.address and the network",
        );
    }

    pub(super) fn refused(&mut self, address: &HostPort, why: &str) {
        self.warn("refused", format!("the destination at {address} would refuse this source: {why}"), "as it says");
    }
}

/// How many bytes of a file have no blocks, and how many it has; `None` where all have.
fn missing_bytes(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let missing = file.len().saturating_sub(file.blocks() * 512);
    (missing > 0).then_some((missing, file.len()))
}

/// Journals and what they protect should have no disk in common.
pub(super) fn sharing(findings: &mut Findings, looked: &[Looked]) {
    let logs = || looked.iter().filter(|looked| looked.part.is_log());
    for (log, other) in
        logs().flat_map(|log| looked.iter().filter(|other| !other.part.is_log()).map(move |other| (log, other)))
    {
        let kind = if other.part == Part::Image { "applied" } else { "flushed" };
        let slow = format!("while a half is {kind}, answers wait for the same disk, and what breaks it takes both");
        findings.shared(log, other, &slow, "put the journal on a disk of its own");
    }
}

/// A log gains nothing on the disk of what it is to be faster than.
pub(super) fn log_sharing(findings: &mut Findings, log: &Looked, others: &[Looked]) {
    for other in others.iter().filter(|other| other.part == Part::JournalFiles) {
        findings.shared(
            log,
            other,
            "each frame is written to it twice, and nothing is faster",
            "put the log on non-volatile memory, or leave it out",
        );
    }
}

/// What goes over a network can be read and written by whoever is in between.
pub(super) fn network(findings: &mut Findings, what: &str, address: &HostPort, local: bool) {
    if !local {
        findings.warn(
            "no_tls",
            format!("{what} {address} is neither encrypted nor authenticated: there is no TLS yet"),
            "use a network that nobody else reaches, or a tunnel (WireGuard, IPsec)",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::block_device::{BlockDevice, Cache};
    use crate::engine::filesystem::FileSystem;
    use crate::engine::promise::Ground;

    fn ground(number: u64, system: Option<(&'static str, Home)>, disk: Result<&str, &str>) -> Ground {
        let device = |name: &str| BlockDevice {
            name: name.into(),
            cache: Some(Cache::WriteBack),
            fua: false,
            dax: false,
            rotational: false,
            volatile: name.starts_with("zram"),
            disks: [name.to_owned()].into(),
        };
        let system = system.map(|(name, home)| FileSystem { name, home });
        Ground { system, device: disk.map(device).map_err(str::to_owned), number }
    }

    fn looked(part: Part, name: &str, ground: Ground) -> Looked {
        Looked { ground: Some(ground), ..Looked::at(part, name, Path::new("/nonexistent/file")) }
    }

    fn kinds(findings: &Findings) -> Vec<&str> {
        findings.warnings.iter().map(|warning| warning["what"].as_str().expect("a word")).collect()
    }

    #[test]
    fn each_ground_that_promises_nothing_is_told() {
        let (here, far, memory) = (Home::Here, Home::Far, Home::Memory);
        let unsure = |mut ground: Ground| {
            ground.device = ground.device.map(|device| BlockDevice { cache: None, ..device });
            ground
        };
        for (ground, expected) in [
            (ground(1, Some(("ext4", here)), Ok("sda")), vec![]),
            (ground(1, None, Ok("sda")), vec![]),
            (ground(1, Some(("tmpfs", memory)), Err("none")), vec!["volatile"]),
            (ground(1, Some(("ext4", here)), Ok("zram0")), vec!["volatile"]),
            (ground(1, None, Ok("zram0")), vec!["volatile"]),
            (ground(1, Some(("nfs", far)), Err("none")), vec!["far"]),
            (ground(1, Some(("overlay", here)), Err("none")), vec!["unknown_cache"]),
            (unsure(ground(1, None, Ok("sda"))), vec!["unknown_cache"]),
        ] {
            let mut findings = Findings::default();
            findings.ground(&looked(Part::Journal, "alpha", ground.clone()));
            assert_eq!(kinds(&findings), expected, "{ground:?}");
        }
    }

    #[test]
    fn only_journals_want_a_disk_of_their_own() {
        let ext4 = Some(("ext4", Home::Here));
        let (sda, sdb) = (|| ground(1, ext4, Ok("sda")), || ground(2, ext4, Ok("sdb")));
        let device = || ground(9, None, Ok("sda"));
        for (parts, expected) in [
            (vec![(Part::Journal, sdb()), (Part::Volume, sda()), (Part::Volume, sda())], vec![]),
            (vec![(Part::Journal, sda()), (Part::Volume, sda())], vec!["same_file_system"]),
            (vec![(Part::Journal, sda()), (Part::Volume, device())], vec!["same_disk"]),
            (vec![(Part::JournalFiles, sda()), (Part::Image, device()), (Part::Image, sdb())], vec!["same_disk"]),
        ] {
            let all: Vec<Looked> = parts.into_iter().map(|(part, ground)| looked(part, "x", ground)).collect();
            let mut findings = Findings::default();
            sharing(&mut findings, &all);
            assert_eq!(kinds(&findings), expected, "{all:?}");
        }
    }

    #[test]
    fn a_log_wants_another_disk_than_the_journal_files() {
        let ext4 = Some(("ext4", Home::Here));
        let log = |name: &str, number| looked(Part::NvramLog, "", ground(number, ext4, Ok(name)));
        let others = [
            looked(Part::JournalFiles, "alpha", ground(1, ext4, Ok("sda"))),
            looked(Part::Image, "vol0", ground(2, ext4, Ok("sdb"))),
        ];
        for (log, expected) in
            [(log("sda", 1), vec!["same_file_system"]), (log("sda", 3), vec!["same_disk"]), (log("pmem0", 3), vec![])]
        {
            let mut findings = Findings::default();
            log_sharing(&mut findings, &log, &others);
            assert_eq!(kinds(&findings), expected, "{log:?}");
        }
    }

    #[test]
    fn a_network_is_told_of_and_this_machine_is_not() {
        let address: HostPort = "10.0.0.2:10808".parse().expect("an address");
        let mut findings = Findings::default();
        network(&mut findings, "replication to", &address, true);
        assert_eq!(kinds(&findings), [""; 0]);
        network(&mut findings, "replication to", &address, false);
        assert_eq!(kinds(&findings), ["no_tls"]);
    }
}
