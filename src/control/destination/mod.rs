//! The destination daemon: one mirror for each configured source, the port that sources connect to, and the NBD
//! exports of images: read-only ones while they are mirrored, and promoted ones.

mod mirror;
mod offline;

use super::admin::{self, Answer, Handler, Request};
use super::config::DestinationConfig;
use super::exports::{self, Exports};
use super::signals::Signals;
use super::{handshake, listen, metrics, notify, seat, status};
use crate::engine::disk::make_folder;
use crate::engine::nvram::{self, Log};
use crate::format::ids::Epoch;
use crate::format::wire::{Verdict, Welcome};
use anyhow::{Context as _, bail};
use mirror::Mirror;
pub use offline::promote as promote_offline;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Runs a destination until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting. A single source that fails while it runs is reported in its status and doesn't
/// stop the others.
pub async fn run(config: DestinationConfig, init: bool) -> anyhow::Result<()> {
    run_until(config, init, &mut Signals::catch()?).await
}

/// Runs a destination until a signal comes.
pub(super) async fn run_until(config: DestinationConfig, init: bool, signals: &mut Signals) -> anyhow::Result<()> {
    // The engines start at the first contact; that would be late to learn that none can.
    crate::engine::ring::probe()?;
    make_folder(&config.journal_dir)
        .with_context(|| format!("journal_dir {} can't be made", config.journal_dir.display()))?;
    let exports = Exports::default();
    let mut mirrors = Vec::new();
    let plan = mirror::staging_plan(&config);
    let log = open_log(&config, init).await?;
    for (number, source) in config.sources.iter().enumerate() {
        let share = log.as_ref().map(|log| log.share(number));
        let mirror = Mirror::start(
            source,
            mirror::Node { admin: config.admin.clone(), unwatched: false, live: config.nbd.is_some(), share },
            &config.journal_dir,
            plan,
            exports.clone(),
            init,
        );
        mirrors.push(mirror.await?);
    }
    let daemon = Arc::new(Daemon { mirrors, log, complaint: Mutex::default() });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(accept(listen::bind_tcp(&config.listen).await?, daemon.clone()));
    for address in config.nbd.iter().flat_map(|nbd| &nbd.listen) {
        tasks.spawn(exports::serve(listen::bind(address).await?, exports.clone()));
    }
    tasks.spawn(admin::serve(admin::bind(&config.admin.socket)?, daemon.clone()));
    if let Some(config) = &config.metrics {
        let listener = listen::bind_tcp(&config.listen).await?;
        tasks.spawn(metrics::serve(listener, status::renderer("destination", daemon.clone())));
    }
    notify::ready();
    tracing::info!("destination for {} sources listens on {}", config.sources.len(), config.listen);
    let signal = signals.stop().await;
    tracing::info!("stopping: {signal}");
    notify::stopping();
    for mirror in &daemon.mirrors {
        mirror.stop().await;
    }
    Ok(())
}

/// The shared log, if there is to be one; what it holds, or one that was used before, is put into the journal files.
async fn open_log(config: &DestinationConfig, init: bool) -> anyhow::Result<Option<Arc<Log>>> {
    let path = config.nvram.clone();
    let wanted = path.map(|path| nvram::Wanted { path, size_bytes: config.nvram_size_bytes });
    let (journal_dir, sources) = (config.journal_dir.clone(), config.sources.len());
    tokio::task::spawn_blocking(move || nvram::open(wanted.as_ref(), &journal_dir, sources, init)).await?
}

/// Accepts sources for good, each in a task of its own.
async fn accept(listener: TcpListener, daemon: Arc<Daemon>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (daemon, address) = (daemon.clone(), peer.to_string());
                tokio::spawn(async move {
                    if let Err(error) = daemon.meet(stream, address.clone()).await {
                        daemon.complain(&address, format!("{error:#}"));
                    }
                });
            }
            Err(error) => {
                tracing::warn!("a source couldn't be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct Daemon {
    mirrors: Vec<Arc<Mirror>>,
    log: Option<Arc<Log>>,
    complaint: Mutex<String>,
}

impl Daemon {
    async fn meet(&self, mut stream: TcpStream, address: String) -> anyhow::Result<()> {
        handshake::prepare(&stream)?;
        let refuse = |reason: String| Welcome::refuse(Verdict::Refused, Epoch(0), reason);
        let hello = match handshake::receive_hello(&mut stream).await? {
            Ok(hello) => hello,
            Err(error) => {
                let error = handshake::not_ours(&error);
                handshake::answer(&mut stream, &refuse(error.to_string())).await?;
                return Err(error);
            }
        };
        let checked = handshake::asked_by_check(&hello);
        let name = checked.unwrap_or(&hello.name);
        let Some(mirror) = self.mirrors.iter().find(|mirror| mirror.name() == name) else {
            let reason = format!(
                "this destination knows no source \"{name}\", only {}; add it to the destination's configuration",
                self.names()
            );
            handshake::answer(&mut stream, &refuse(reason.clone())).await?;
            bail!(reason);
        };
        if checked.is_some() {
            return handshake::answer(&mut stream, &refuse(String::new())).await;
        }
        mirror.meet(stream, hello, address).await
    }

    /// Logs why a connection was closed; a source that tries again and again is told of once.
    fn complain(&self, address: &str, reason: String) {
        let mut last = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == reason {
            tracing::debug!("a connection from {address} was closed: {reason}");
        } else {
            tracing::warn!("a connection from {address} was closed: {reason}");
            *last = reason;
        }
    }

    /// The mirror of that name, or the only one.
    fn mirror(&self, source: Option<&str>) -> anyhow::Result<&Arc<Mirror>> {
        match (source, &self.mirrors[..]) {
            (None, [only]) => Ok(only),
            (None, _) => bail!("name the source: this destination has {}", self.names()),
            (Some(source), mirrors) => mirrors
                .iter()
                .find(|mirror| mirror.name() == source)
                .with_context(|| format!("this destination knows no source \"{source}\", only {}", self.names())),
        }
    }

    fn names(&self) -> String {
        self.mirrors.iter().map(|mirror| mirror.name()).collect::<Vec<_>>().join(", ")
    }
}

/// The shared log, for the status.
fn describe_log(log: &Log) -> Value {
    json!({
        "path": log.disk().path(), "size_bytes": log.head().log_bytes(), "slot_bytes": log.head().slot_bytes,
        "own_bytes": log.own_bytes(), "store": status::store(&log.disk().how_stored()),
    })
}

impl Handler for Daemon {
    fn handle(&self, request: Request) -> Answer<'_> {
        Box::pin(async move {
            match request {
                Request::Status => {
                    let mut sources = Vec::new();
                    for mirror in &self.mirrors {
                        sources.push(mirror.status().await);
                    }
                    let log = self.log.as_ref().map(|log| describe_log(log));
                    Ok(json!({
                        "role": "destination", "resident": status::resident(), "nvram": log, "sources": sources,
                    }))
                }
                Request::Sync => seat::sync(&self.mirror(None)?.serving().await?).await,
                Request::Set { on_disconnect, timeout_ms } => {
                    seat::set(&self.mirror(None)?.serving().await?, on_disconnect, timeout_ms).await
                }
                Request::Verify { .. } => bail!("this is a destination: verify is for the source's admin socket"),
                Request::Switchover { source } => self.mirror(source.as_deref())?.switchover().await,
                Request::Rejoin { source, discard } => self.mirror(source.as_deref())?.rejoin(discard).await,
                Request::Promote { source, force, check } => {
                    let Some(mirror) = self.mirrors.iter().find(|mirror| mirror.name() == source) else {
                        bail!("this destination knows no source \"{source}\", only {}", self.names());
                    };
                    mirror.promote(force, check).await
                }
            }
        })
    }
}
