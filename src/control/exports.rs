//! The NBD side of a daemon: which exports there are, and which engine serves each.

use super::listen::{Listener, Stream};
use super::negotiate::{Export, negotiate};
use crate::engine::command::{Commands, DestinationCommand, SourceCommand, Unavailable};
use crate::engine::destination::Unreadable;
use crate::format::nbd::identity::Identity;
use crate::format::nbd::{ExportShape, Negotiated};
use anyhow::Context as _;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// An export and the engine that serves it.
#[derive(Debug, Clone)]
pub struct Served {
    /// Its name.
    pub name: String,
    /// Its size and blocks.
    pub shape: ExportShape,
    /// Which volume it is, in which epoch.
    pub identity: Identity,
    /// The engine.
    pub server: Server,
    /// Which of the engine's volumes it is.
    pub volume: usize,
}

/// An engine that serves clients.
#[derive(Debug, Clone)]
pub enum Server {
    /// A source's.
    Source(Commands<SourceCommand>),
    /// A destination's, which lets its images be read while nothing is in the way.
    Image(Commands<DestinationCommand>, watch::Receiver<Option<Unreadable>>),
}

impl Server {
    /// Why it would take no client now.
    fn refusal(&self) -> Option<String> {
        match self {
            Server::Source(_) => None,
            Server::Image(_, refusal) => refusal.borrow().map(|reason| reason.to_string()),
        }
    }

    fn take(&self, socket: OwnedFd, negotiated: Negotiated) -> Result<(), Unavailable> {
        match self {
            Server::Source(commands) => commands.send(SourceCommand::Client(socket, negotiated)),
            Server::Image(commands, _) => commands.send(DestinationCommand::Client(socket, negotiated)),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    served: Vec<Served>,
    closed: bool,
}

/// The exports of one daemon. Cheap to clone: all clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Exports(Arc<Mutex<State>>);

impl Exports {
    /// Adds an export; under `SOURCE/NAME` where the name is taken already. Returns the name it got.
    pub fn add(&self, source: &str, mut export: Served) -> String {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.served.iter().any(|served| served.name == export.name) {
            export.name = format!("{source}/{}", export.name);
        }
        let name = export.name.clone();
        state.served.push(export);
        name
    }

    /// Takes exports away again.
    pub fn remove(&self, names: &[String]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.served.retain(|served| !names.contains(&served.name));
    }

    /// From now on connections are closed without a word: a client that gets no refusal tries the next server.
    pub fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }

    fn snapshot(&self) -> Option<Vec<Served>> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!state.closed).then(|| state.served.clone())
    }
}

/// Accepts clients for good, each negotiated with in a task of its own.
pub async fn serve(listener: Listener, exports: Exports) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let exports = exports.clone();
                tokio::spawn(async move {
                    if let Err(error) = admit(stream, exports).await {
                        tracing::warn!("NBD client at {peer}: {error:#}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("an NBD client couldn't be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn admit(mut stream: Stream, exports: Exports) -> anyhow::Result<()> {
    let Some(served) = exports.snapshot() else { return Ok(()) };
    let offer = |served: &Served| Export {
        name: served.name.clone(),
        shape: served.shape,
        identity: served.identity,
        refusal: served.server.refusal(),
    };
    let offered: Vec<Export> = served.iter().map(offer).collect();
    let Some(negotiated) = negotiate(&mut stream, &offered).await? else { return Ok(()) };
    let served = served.get(negotiated.export).context("the negotiated export doesn't exist")?;
    let socket = stream.into_owned_fd()?;
    let negotiated = Negotiated { export: served.volume, ..negotiated };
    served.server.take(socket, negotiated).context("the client can't be served")
}
