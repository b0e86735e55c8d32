//! Configuration files, written the way an operator would.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

/// First port of the range that tests listen on: below the kernel's ephemeral ports, so that no outgoing
/// connection (a source that redials a destination which is down, above all) ever sits on a listener's port.
const FIRST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;

/// A TCP address on loopback that nothing listens on, and that no other test of this run gets.
pub fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() * 97 % u32::from(PORTS)) as u16;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST_PORT + (start + step) % PORTS;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener.local_addr().expect("address of a bound listener");
        }
    }
}

/// A `source.toml`.
#[derive(Clone)]
pub struct SourceConfig {
    pub dir: PathBuf,
    pub name: String,
    pub durability: String,
    pub on_disconnect: String,
    pub timeout: String,
    pub journal: PathBuf,
    pub journal_size: String,
    pub max_age: String,
    /// Export name and device of each volume.
    pub volumes: Vec<(String, PathBuf)>,
    pub tcp: SocketAddr,
    pub destination: Option<SocketAddr>,
    /// Appended as it is.
    pub extra: String,
}

impl SourceConfig {
    /// A source without volumes or a destination, whose files lie in `dir` and carry its name.
    pub fn new(dir: &Path, name: &str) -> SourceConfig {
        SourceConfig {
            dir: dir.to_owned(),
            name: name.to_owned(),
            durability: "always".to_owned(),
            on_disconnect: "stall".to_owned(),
            timeout: "5s".to_owned(),
            journal: dir.join(format!("{name}.journal")),
            journal_size: "32MiB".to_owned(),
            max_age: "10s".to_owned(),
            volumes: Vec::new(),
            tcp: free_port(),
            destination: None,
            extra: String::new(),
        }
    }

    /// The Unix socket of the source's NBD server.
    pub fn unix(&self) -> PathBuf {
        self.dir.join(format!("{}.nbd", self.name))
    }

    /// The Unix socket for `status` and `sync`.
    pub fn admin(&self) -> PathBuf {
        self.dir.join(format!("{}.admin", self.name))
    }

    /// Writes the file and returns its path.
    pub fn write(&self) -> PathBuf {
        let mut text = format!("name = {:?}\ndurability = {:?}\n", self.name, self.durability);
        let _ = write!(text, "on_disconnect = {:?}\ntimeout = {:?}\n", self.on_disconnect, self.timeout);
        let _ = write!(
            text,
            "[journal]\npath = {:?}\nsize = {:?}\nmax_age = {:?}\n",
            self.journal, self.journal_size, self.max_age
        );
        for (name, device) in &self.volumes {
            let _ = write!(text, "[[volume]]\nname = {name:?}\ndevice = {device:?}\n");
        }
        let unix = format!("unix:{}", self.unix().display());
        let _ = write!(text, "[nbd]\nlisten = [{unix:?}, \"tcp:{}\"]\n", self.tcp);
        if let Some(address) = self.destination {
            let _ = write!(text, "[destination]\naddress = \"{address}\"\n");
        }
        let _ = write!(text, "[admin]\nsocket = {:?}\n", self.admin());
        text.push_str(&self.extra);
        let path = self.dir.join(format!("{}.toml", self.name));
        std::fs::write(&path, text).expect("write a source's configuration");
        path
    }
}

/// A `destination.toml`.
#[derive(Clone)]
pub struct DestinationConfig {
    pub dir: PathBuf,
    /// Distinguishes the files of several destinations in one folder.
    pub name: String,
    pub listen: SocketAddr,
    pub journal_dir: PathBuf,
    pub staging_size: String,
    pub resync_staging: String,
    /// The log that all sources share.
    pub nvram: Option<PathBuf>,
    /// Where promoted images are mirrored to.
    pub peer: Option<SocketAddr>,
    /// Source name, and volume name and image of each of its volumes.
    pub sources: Vec<(String, Vec<(String, PathBuf)>)>,
    /// Appended as it is.
    pub extra: String,
}

impl DestinationConfig {
    /// A destination that serves nobody yet, whose files lie in `dir`.
    pub fn new(dir: &Path) -> DestinationConfig {
        DestinationConfig {
            dir: dir.to_owned(),
            name: "destination".to_owned(),
            listen: free_port(),
            journal_dir: dir.join("journals"),
            staging_size: "1GiB".to_owned(),
            resync_staging: "require".to_owned(),
            nvram: None,
            peer: None,
            sources: Vec::new(),
            extra: String::new(),
        }
    }

    /// The Unix socket of the destination's NBD server.
    pub fn unix(&self) -> PathBuf {
        self.dir.join(format!("{}.nbd", self.name))
    }

    /// The Unix socket for `status` and `promote`.
    pub fn admin(&self) -> PathBuf {
        self.dir.join(format!("{}.admin", self.name))
    }

    /// Writes the file and returns its path.
    pub fn write(&self) -> PathBuf {
        let mut text = format!("listen = \"{}\"\njournal_dir = {:?}\n", self.listen, self.journal_dir);
        let _ = write!(text, "staging_size = {:?}\nresync_staging = {:?}\n", self.staging_size, self.resync_staging);
        if let Some(nvram) = &self.nvram {
            let _ = write!(text, "nvram = {nvram:?}\nnvram_size = \"64MiB\"\n");
        }
        for (source, volumes) in &self.sources {
            let _ = write!(text, "[[source]]\nname = {source:?}\n");
            if let Some(peer) = self.peer {
                let _ = writeln!(text, "peer = \"{peer}\"");
            }
            for (name, image) in volumes {
                let _ = write!(text, "[[source.volume]]\nname = {name:?}\nimage = {image:?}\n");
            }
        }
        let unix = format!("unix:{}", self.unix().display());
        let _ = write!(text, "[nbd]\nlisten = [{unix:?}]\n[admin]\nsocket = {:?}\n", self.admin());
        text.push_str(&self.extra);
        let path = self.dir.join(format!("{}.toml", self.name));
        std::fs::write(&path, text).expect("write a destination's configuration");
        path
    }
}
