//! Keeps a source connected to its destination.
//!
//! What becomes of writes meanwhile is the engine's to decide and to log; here only the connection is spoken of.

mod damper;

use super::config::HostPort;
use super::handshake;
use crate::engine::command::{Commands, LinkState, SourceCommand};
use crate::format::wire::Verdict;
use anyhow::Context as _;
use damper::{Damper, Voice};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Pauses between attempts: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A connection that lasted for less is no reason to try again at once.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// Why there is no connection at the moment; empty while there is one.
#[derive(Debug, Clone, Default)]
pub struct Reason(Arc<Mutex<String>>);

impl Reason {
    /// The reason now.
    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets it, and says whether it is another one than before.
    fn set(&self, reason: &str) -> bool {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let other = *current != reason;
        reason.clone_into(&mut current);
        other
    }
}

/// Tells of the connection, in the log and in the reason that status shows.
struct Teller<'a> {
    address: &'a HostPort,
    reason: Reason,
    damper: Damper,
}

impl Teller<'_> {
    fn connected(&mut self) {
        self.reason.set("");
        let address = self.address;
        match self.damper.connected() {
            Voice::Loud => tracing::info!("connected to the destination at {address}"),
            Voice::Quiet => tracing::debug!("connected to the destination at {address}"),
        }
    }

    fn lost(&mut self, why: &str) {
        self.reason.set(why);
        let address = self.address;
        match self.damper.lost(Instant::now(), why) {
            Voice::Loud => tracing::warn!("the connection to the destination at {address} was lost: {why}"),
            Voice::Quiet => tracing::debug!("the connection to the destination at {address} was lost: {why}"),
        }
    }

    /// The same failure again and again is told of once.
    fn failed(&mut self, why: &str) {
        if !self.reason.set(why) {
            return;
        }
        let address = self.address;
        match self.damper.failed(Instant::now(), why) {
            Voice::Loud => tracing::warn!("no connection to the destination at {address}: {why}; trying again"),
            Voice::Quiet => tracing::debug!("no connection to the destination at {address}: {why}; trying again"),
        }
    }

    fn sum_up(&mut self) {
        if let Some(summary) = self.damper.sum_up(Instant::now()) {
            let now = if self.reason.get().is_empty() { "up" } else { "down" };
            tracing::warn!("the connection to the destination at {} {summary}. It is {now}", self.address);
        }
    }
}

/// Connects, and connects again whenever the connection is lost, until the source is fenced.
pub async fn keep(
    address: HostPort,
    commands: Commands<SourceCommand>,
    mut link: watch::Receiver<LinkState>,
    reason: Reason,
) {
    let mut teller = Teller { address: &address, reason, damper: Damper::default() };
    let mut pause = PAUSE.0;
    let mut up_since = None;
    loop {
        teller.sum_up();
        let state = link.borrow_and_update().clone();
        match state {
            LinkState::Fenced(_) => return,
            LinkState::Up => {
                let since = *up_since.get_or_insert_with(Instant::now);
                let changed = match teller.damper.deadline() {
                    Some(deadline) => match timeout_at(deadline, link.changed()).await {
                        Ok(changed) => changed,
                        // Time to sum up.
                        Err(_) => continue,
                    },
                    None => link.changed().await,
                };
                if changed.is_err() {
                    return;
                }
                let LinkState::Down(why) = link.borrow().clone() else { continue };
                up_since = None;
                teller.lost(&why);
                if since.elapsed() >= SHORT_LIVED {
                    pause = PAUSE.0;
                    continue;
                }
            }
            LinkState::Down(_) => match connect(&address, &commands).await {
                Ok(()) => {
                    // The engine takes the connection over; it says so, or why not, by the link's state.
                    if !matches!(timeout(CONNECT_LIMIT, link.changed()).await, Ok(Ok(()))) {
                        continue;
                    }
                    let state = link.borrow().clone();
                    match state {
                        LinkState::Up => {
                            teller.connected();
                            continue;
                        }
                        LinkState::Fenced(_) => return,
                        // It was over at once, for this reason.
                        LinkState::Down(why) => teller.failed(&why),
                    }
                }
                Err(error) => teller.failed(&format!("{error:#}")),
            },
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
    let (welcome, lacks) = handshake::introduce(&mut stream, &hello).await?;
    if welcome.verdict == Verdict::Refused {
        anyhow::bail!("refused: {}", welcome.reason);
    }
    let socket = handshake::into_owned_fd(stream)?;
    commands.send(SourceCommand::Peer(socket, Box::new(welcome), lacks))?;
    Ok(())
}

#[cfg(test)]
mod tests;
