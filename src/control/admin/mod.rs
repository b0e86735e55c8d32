//! The admin socket: one JSON object a line, requests in and replies out, over a Unix socket.
//!
//! The socket's mode (0600) is its only access control: whoever may open it may promote.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::config::OnDisconnect;
use super::listen::{SocketFile, bind_unix};

/// Longest request line that the daemon reads, in bytes, with its newline.
const MAX_REQUEST_BYTES: u64 = 64 << 10;
/// Longest reply line that a client reads, in bytes: a status of many sources is long.
const MAX_REPLY_BYTES: u64 = 16 << 20;
/// Most connections served at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// Pause after a failed accept: out of descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What can be asked of a daemon, `{"verb":"status"}` and so on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// The daemon's state, at either role.
    Status,
    /// Switch halves now; the reply comes after the destination's apply. At a source.
    Sync,
    /// Change the policy until the source ends; what is left out stays. At a source.
    Set {
        /// What becomes of writes while the destination is away.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on_disconnect: Option<OnDisconnect>,
        /// How long it may be away or silent, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    },
    /// Compare volumes and images; the reply comes at the end. At a source.
    Verify {
        /// Send again what differs.
        #[serde(default)]
        repair: bool,
    },
    /// Swap roles: the destination is promoted with nothing under way, and this side mirrors it. Where the volumes are served.
    Switchover {
        /// The source's name; needed where there are several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// Become the destination of the side that was promoted. At a fenced source.
    Rejoin {
        /// The source's name; needed where there are several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
        /// Give up what only this side has; without it, that is only shown.
        #[serde(default)]
        discard: bool,
    },
    /// Make an image writable. At a destination.
    Promote {
        /// The source's name.
        source: String,
        /// Promote even while that source is connected.
        #[serde(default)]
        force: bool,
        /// Only say what the images would lack.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        check: bool,
    },
}

/// One reply line: `{"ok":true,"data":…}` or `{"ok":false,"error":"…"}`, and `data` where a refusal
/// says more.
#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Why a call brought no data; found by `downcast_ref` on [`call`]'s error.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No daemon answered.
    #[error("{0}")]
    Unreachable(String),
    /// The daemon answered that it didn't do it, and why.
    #[error("{0}")]
    Refused(String),
}

/// A handler's refusal that says more than why: found by `downcast_ref` on its error.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Why.
    pub reason: String,
    /// What else the reply carries.
    pub data: Value,
}

/// A handler's answer in the making.
pub type Answer<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Value>> + Send + 'a>>;

/// Does what the requests ask; an error becomes the reply's `error`, with its whole chain.
pub trait Handler: Send + Sync + 'static {
    /// Handles one request. Requests of several connections run at the same time.
    fn handle(&self, request: Request) -> Answer<'_>;
}

/// Binds the admin socket with mode 0600. [`serve`] removes its file.
///
/// # Errors
/// Another daemon serves the path, a foreign file is there, or the folder is not usable.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    bind_unix(path, 0o600)
}

/// Serves requests until the future is dropped, which also removes the socket's file.
pub async fn serve(listener: UnixListener, handler: Arc<dyn Handler>) {
    let _file = socket_file(&listener);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            unreachable!("the semaphore is never closed");
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, handler).await {
                        tracing::debug!("admin connection ended: {error}");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!("admin socket can't accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The listener's own file, to be removed with it.
fn socket_file(listener: &UnixListener) -> Option<SocketFile> {
    let address = listener.local_addr().ok()?;
    match SocketFile::of(address.as_pathname()?) {
        Ok(file) => Some(file),
        Err(error) => {
            tracing::warn!("the admin socket won't be removed at the end: {error:#}");
            None
        }
    }
}

/// Answers the requests of one connection, one after the other.
async fn converse(stream: UnixStream, handler: Arc<dyn Handler>) -> io::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut input = BufReader::new(input);
    loop {
        let line = match read_line(&mut input, MAX_REQUEST_BYTES).await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                // The rest of the line is unknown: answer, and end the connection.
                return send(&mut output, &refusal(format!("the request is no line: {error}"))).await;
            }
            Err(error) => return Err(error),
        };
        let reply = match serde_json::from_slice(&line) {
            Ok(request) => match handler.handle(request).await {
                Ok(data) => Reply { ok: true, data: Some(data), error: None },
                Err(error) => {
                    let data = error.downcast_ref().map(|refusal: &Refusal| refusal.data.clone());
                    Reply { data, ..refusal(format!("{error:#}")) }
                }
            },
            Err(error) => refusal(format!("the request isn't understood: {error}")),
        };
        send(&mut output, &reply).await?;
    }
}

fn refusal(error: String) -> Reply {
    Reply { ok: false, data: None, error: Some(error) }
}

async fn send(output: &mut (impl tokio::io::AsyncWrite + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    output.write_all(&line).await
}

/// Reads one line of at most `max_bytes`; `None` at the end of the stream.
///
/// A line that is too long or isn't ended is `InvalidData`.
async fn read_line(input: &mut (impl AsyncBufRead + Unpin), max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let length = input.take(max_bytes).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if length as u64 == max_bytes => {
            Err(io::Error::new(ErrorKind::InvalidData, format!("it is longer than {max_bytes} bytes")))
        }
        Some(_) => Err(io::Error::new(ErrorKind::InvalidData, "it ends without a newline")),
    }
}

/// Asks a daemon, and waits for its answer however long it takes.
///
/// # Errors
/// [`CallError`]: no daemon is reached, or it refuses.
pub async fn call(path: &Path, request: &Request) -> anyhow::Result<Value> {
    let stream = UnixStream::connect(path).await.map_err(|error| unreachable_because(path, &error))?;
    let broken = |why: &dyn std::fmt::Display| {
        CallError::Unreachable(format!("the daemon at {} gave no answer: {why}", path.display()))
    };
    let (input, mut output) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    output.write_all(&line).await.map_err(|e| broken(&e))?;
    let line = read_line(&mut BufReader::new(input), MAX_REPLY_BYTES)
        .await
        .map_err(|e| broken(&e))?
        .ok_or_else(|| broken(&"it closed the connection; its log says why"))?;
    let reply: Reply = serde_json::from_slice(&line).map_err(|e| broken(&e))?;
    if reply.ok {
        Ok(reply.data.unwrap_or_default())
    } else {
        let error = reply.error.unwrap_or_else(|| "it gave no reason".into());
        Err(CallError::Refused(error).into())
    }
}

fn unreachable_because(path: &Path, error: &io::Error) -> CallError {
    let shown = path.display();
    CallError::Unreachable(match error.kind() {
        ErrorKind::NotFound => format!("no admin socket {shown}: is the daemon running?"),
        ErrorKind::ConnectionRefused => {
            format!("nobody answers at {shown}: the daemon isn't running")
        }
        ErrorKind::PermissionDenied => {
            format!("no permission for {shown}: run as the daemon's user, or as root")
        }
        _ => format!("can't connect to {shown}: {error}"),
    })
}

#[cfg(test)]
mod tests;
