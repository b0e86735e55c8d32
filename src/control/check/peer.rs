//! How far away the destination is: the time of a connect, which is the network's, and of a hello, which is answered by the
//! destination daemon.

use super::super::config::HostPort;
use super::super::handshake;
use super::micros;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How often it is asked.
const TRIES: usize = 11;
/// How long a connect, or an answer, may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What came of asking a destination.
#[derive(Debug, Default)]
pub(super) struct Met {
    connects: Vec<Duration>,
    answers: Vec<Duration>,
    /// Whether a destination answered.
    pub(super) answered: bool,
    /// Why it can't be reached, or why it would refuse this source.
    pub(super) trouble: Option<String>,
}

/// Asks a destination whether it knows this source, some times over.
pub(super) async fn meet(address: &HostPort, source: &str) -> Met {
    let mut met = Met::default();
    for _try in 0..TRIES {
        if let Err(error) = met.ask(address, source).await {
            met.trouble = Some(format!("{error:#}"));
            met.answered = false;
        }
        if met.trouble.is_some() {
            break;
        }
    }
    met
}

impl Met {
    async fn ask(&mut self, address: &HostPort, source: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        let connect = TcpStream::connect((address.host.as_str(), address.port));
        let mut stream = timeout(LIMIT, connect).await.map_err(|_| silent())??;
        let connected = Instant::now();
        handshake::prepare(&stream)?;
        self.trouble = timeout(LIMIT, handshake::check(&mut stream, source)).await.map_err(|_| silent())??;
        self.answered = true;
        self.connects.push(connected - began);
        self.answers.push(connected.elapsed());
        Ok(())
    }

    pub(super) fn to_json(&self, address: &HostPort) -> Value {
        json!({
            "address": address.to_string(), "tries": self.answers.len(), "connect_us": median(&self.connects),
            "answer_us": median(&self.answers), "trouble": self.trouble,
        })
    }
}

fn silent() -> anyhow::Error {
    anyhow::anyhow!("nothing is heard from it for {} s", LIMIT.as_secs())
}

fn median(times: &[Duration]) -> Option<u64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().map(micros)
}

/// Whether an address is this machine's own, which no network is between. One that can't be resolved isn't.
pub(super) async fn is_local(address: &HostPort) -> bool {
    let found = tokio::net::lookup_host((address.host.as_str(), address.port)).await;
    found.is_ok_and(|mut found| found.all(|address| address.ip().is_loopback()))
}
