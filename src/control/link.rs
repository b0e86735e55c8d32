//! Keeps a source connected to its destination.

use super::config::HostPort;
use super::handshake;
use crate::engine::command::{Commands, LinkState, SourceCommand};
use crate::format::wire::Verdict;
use anyhow::Context as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

/// Pauses between attempts: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no connection at the moment; empty while there is one.
#[derive(Debug, Clone, Default)]
pub struct Reason(Arc<Mutex<String>>);

impl Reason {
    /// The reason now.
    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets it, and logs it where it is another one than before.
    fn set(&self, address: &HostPort, reason: String) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != reason && !reason.is_empty() {
            tracing::warn!("no connection to the destination at {address}: {reason}. Writes wait; trying again");
        }
        *current = reason;
    }
}

/// Connects, and connects again whenever the connection is lost, until the source is fenced.
pub async fn keep(
    address: HostPort,
    commands: Commands<SourceCommand>,
    mut link: watch::Receiver<LinkState>,
    reason: Reason,
) {
    let mut pause = PAUSE.0;
    loop {
        let state = link.borrow_and_update().clone();
        match state {
            LinkState::Fenced(_) => return,
            LinkState::Up => {
                if link.changed().await.is_err() {
                    return;
                }
                if let LinkState::Down(why) = &*link.borrow() {
                    reason.set(&address, why.clone());
                }
                continue;
            }
            LinkState::Down(_) => {}
        }
        match connect(&address, &commands).await {
            Ok(()) => {
                // The engine takes the connection over; it says so, or why not, by the link's state.
                if !matches!(timeout(CONNECT_LIMIT, link.changed()).await, Ok(Ok(()))) {
                    continue;
                }
                match &*link.borrow() {
                    LinkState::Up => {
                        tracing::info!("connected to the destination at {address}");
                        reason.set(&address, String::new());
                        pause = PAUSE.0;
                        continue;
                    }
                    LinkState::Fenced(_) => return,
                    // It was over at once, for this reason.
                    LinkState::Down(why) => reason.set(&address, why.clone()),
                }
            }
            Err(error) => reason.set(&address, format!("{error:#}")),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn connect(address: &HostPort, commands: &Commands<SourceCommand>) -> anyhow::Result<()> {
    let connecting = TcpStream::connect((address.host.as_str(), address.port));
    let mut stream = timeout(CONNECT_LIMIT, connecting).await.context("connecting took too long")??;
    handshake::prepare(&stream)?;
    let (ask, hello) = oneshot::channel();
    commands.send(SourceCommand::Hello(ask))?;
    let hello = hello.await.context("the engine has ended")?;
    let welcome = handshake::introduce(&mut stream, &hello).await?;
    if welcome.verdict == Verdict::Refused {
        anyhow::bail!("refused: {}", welcome.reason);
    }
    let socket = handshake::into_owned_fd(stream)?;
    commands.send(SourceCommand::Peer(socket, Box::new(welcome)))?;
    Ok(())
}
