//! A source and a destination as real processes, on files in one folder.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use serde_json::Value;

use super::folder::Folder;
use super::workload::Export;

/// The source's name.
pub const SOURCE: &str = "alpha";
/// Names of its volumes.
pub const VOLUMES: [&str; 2] = ["vol0", "vol1"];
/// Size of each volume, in MiB.
pub const VOLUME_MIB: u64 = 128;

/// How long a daemon may take until it does what is expected of it.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one `status` or `promote` may take.
const VERB_TIMEOUT: Duration = Duration::from_secs(10);
/// How long `promote` is repeated while the destination has not yet noticed the source's death.
const PROMOTE_RETRY: Duration = Duration::from_secs(2);
/// Pause between two looks at a process or a status.
const POLL: Duration = Duration::from_millis(20);
/// Lines of each log that a failure shows.
const LOG_LINES: usize = 15;

/// Both daemons and their files. Dropping it kills them, then removes the folder if it is temporary.
pub struct Cluster {
    source: Daemon,
    destination: Daemon,
    folder: Folder,
}

impl Cluster {
    /// Makes volumes, images and configurations, and starts both daemons.
    ///
    /// # Errors
    /// Files that can't be made, or a program that can't be started.
    pub fn start(folder: Folder) -> anyhow::Result<Self> {
        for volume in VOLUMES {
            for kind in ["volume", "image"] {
                let path = folder.join(&format!("{volume}.{kind}"));
                File::create_new(&path)
                    .and_then(|file| file.set_len(VOLUME_MIB << 20))
                    .with_context(|| format!("can't make {}", path.display()))?;
            }
        }
        let address = free_address().context("can't find a free TCP port on 127.0.0.1")?;
        let destination = destination_config(&folder, &address)?;
        let destination = Daemon::start(&folder, "destination", &destination)?;
        let source = source_config(&folder, &address)?;
        let source = Daemon::start(&folder, "source", &source)?;
        Ok(Self { source, destination, folder })
    }

    /// Waits until the source mirrors.
    ///
    /// # Errors
    /// A daemon that ended, or that isn't there in time; or `go_on`'s error.
    pub fn wait_mirroring(&mut self, go_on: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            go_on()?;
            self.destination.check_alive()?;
            self.source.check_alive()?;
            let seen = match self.source.status() {
                Ok(status) => match status["state"].as_str() {
                    Some("mirroring") => return Ok(()),
                    state => format!("its state is {:?}", state.unwrap_or("unknown")),
                },
                Err(e) => format!("{e:#}"),
            };
            if Instant::now() > deadline {
                bail!("the source doesn't mirror after {START_TIMEOUT:?}: {seen}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends the source with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// A source that had ended before.
    pub fn kill_source(&mut self) -> anyhow::Result<()> {
        self.source.check_alive()?;
        self.source.kill();
        Ok(())
    }

    /// Promotes the images at the destination, and returns what `promote` printed.
    ///
    /// # Errors
    /// A refusal that lasts.
    pub fn promote(&mut self) -> anyhow::Result<String> {
        let deadline = Instant::now() + PROMOTE_RETRY;
        loop {
            self.destination.check_alive()?;
            match self.destination.verb("promote", &[SOURCE]) {
                Ok(printed) => return Ok(printed),
                Err(e) if Instant::now() > deadline => return Err(e),
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// The volumes as the source exports them.
    pub fn volumes(&self) -> Vec<Export> {
        self.exports("source")
    }

    /// The images as the destination exports them once promoted.
    pub fn images(&self) -> Vec<Export> {
        self.exports("destination")
    }

    fn exports(&self, role: &str) -> Vec<Export> {
        let export = |(volume, name): (u64, &str)| Export {
            volume,
            name: name.to_owned(),
            socket: nbd_socket(&self.folder, role),
            size_bytes: VOLUME_MIB << 20,
        };
        (0..).zip(VOLUMES).map(export).collect()
    }

    /// The last lines of both logs, to be shown with a failure.
    pub fn logs(&self) -> String {
        format!("{}\n{}", self.destination.log_tail(), self.source.log_tail())
    }
}

/// One running daemon; dropping it kills it.
struct Daemon {
    role: &'static str,
    child: Child,
    admin: PathBuf,
    log: PathBuf,
}

impl Daemon {
    fn start(folder: &Folder, role: &'static str, config: &str) -> anyhow::Result<Self> {
        let config_path = folder.join(&format!("{role}.toml"));
        fs::write(&config_path, config).with_context(|| format!("can't write {}", config_path.display()))?;
        let log = folder.join(&format!("{role}.log"));
        let stderr = File::create(&log).with_context(|| format!("can't make {}", log.display()))?;
        let child = own_binary()?
            .arg(role)
            .arg("--config")
            .arg(&config_path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("can't start the {role}"))?;
        Ok(Self { role, child, admin: admin_socket(folder, role), log })
    }

    fn check_alive(&mut self) -> anyhow::Result<()> {
        let role = self.role;
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!("the {role} has ended by itself ({status})"),
            Err(e) => Err(e).with_context(|| format!("can't see whether the {role} runs")),
        }
    }

    fn kill(&mut self) {
        // Both fail only when it is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn status(&self) -> anyhow::Result<Value> {
        let printed = self.verb("status", &["--json"])?;
        serde_json::from_str(&printed).with_context(|| format!("`status --json` of the {} is no JSON", self.role))
    }

    /// Runs `nbd-mirror VERB --admin … ARGUMENTS` and returns what it printed.
    fn verb(&self, verb: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = own_binary()?;
        command.arg(verb).arg("--admin").arg(&self.admin);
        run(command.args(arguments)).with_context(|| format!("`{verb}` at the {}", self.role))
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        let body = match tail {
            [] => "    (empty)".to_owned(),
            tail => format!("    {}", tail.join("\n    ")),
        };
        format!("last lines of the {}'s log:\n{body}", self.role)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// This very program, to be run again with another verb.
fn own_binary() -> anyhow::Result<Command> {
    let path = std::env::current_exe().context("can't find this program's own file")?;
    Ok(Command::new(path))
}

/// Runs a short command to its end, at most [`VERB_TIMEOUT`], and returns its standard output.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + VERB_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("no answer after {VERB_TIMEOUT:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    // Read only now: what these verbs print is smaller than a pipe holds.
    let mut text = String::new();
    if status.success() {
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut text)?;
        }
        return Ok(text);
    }
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut text)?;
    }
    Err(anyhow!("{} ({status})", text.trim_end()))
}

/// An address on loopback that nobody listens on at this moment.
fn free_address() -> std::io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn nbd_socket(folder: &Folder, role: &str) -> PathBuf {
    folder.join(&format!("{role}.nbd"))
}

fn admin_socket(folder: &Folder, role: &str) -> PathBuf {
    folder.join(&format!("{role}.admin"))
}

fn source_config(folder: &Folder, address: &str) -> anyhow::Result<String> {
    let mut config = format!(
        "name = {SOURCE:?}\n\
         durability = \"always\"\n\
         on_disconnect = \"stall\"\n\
         [journal]\n\
         path = {}\n\
         size = \"64MiB\"\n\
         max_age = \"1s\"\n\
         [destination]\n\
         address = {address:?}\n\
         {}",
        quoted(&folder.join("journal"))?,
        sockets(folder, "source")?,
    );
    for volume in VOLUMES {
        let device = quoted(&folder.join(&format!("{volume}.volume")))?;
        config += &format!("[[volume]]\nname = {volume:?}\ndevice = {device}\n");
    }
    Ok(config)
}

fn destination_config(folder: &Folder, address: &str) -> anyhow::Result<String> {
    let mut config = format!(
        "listen = {address:?}\n\
         journal_dir = {}\n\
         {}\
         [[source]]\n\
         name = {SOURCE:?}\n",
        quoted(&folder.join("journals"))?,
        sockets(folder, "destination")?,
    );
    for volume in VOLUMES {
        let image = quoted(&folder.join(&format!("{volume}.image")))?;
        config += &format!("[[source.volume]]\nname = {volume:?}\nimage = {image}\n");
    }
    Ok(config)
}

/// The sections `[nbd]` and `[admin]` of either role.
fn sockets(folder: &Folder, role: &str) -> anyhow::Result<String> {
    let mut listen = std::ffi::OsString::from("unix:");
    listen.push(nbd_socket(folder, role));
    Ok(format!("[nbd]\nlisten = [{}]\n[admin]\nsocket = {}\n", quoted(&listen)?, quoted(&admin_socket(folder, role))?,))
}

/// A path as a TOML string.
fn quoted(path: &(impl AsRef<OsStr> + ?Sized)) -> anyhow::Result<String> {
    let text = path
        .as_ref()
        .to_str()
        .with_context(|| format!("{} is not UTF-8: name another folder with --dir", Path::new(path).display()))?;
    Ok(toml::Value::from(text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_configurations_are_toml_whatever_the_folder_is_called() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::open(Some(parent.path().join("a \"b\" \\ c"))).unwrap();
        for config in
            [source_config(&folder, "127.0.0.1:1").unwrap(), destination_config(&folder, "127.0.0.1:1").unwrap()]
        {
            config.parse::<toml::Table>().unwrap();
        }
    }
}
