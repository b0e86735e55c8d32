//! The agent: keeps a device at its volume's primary, wherever that is served.
//!
//! The order of a switch is what makes it safe. The epoch is stored before the device goes there, so that a restarted
//! agent can't fall back behind it. The old connection is dead before the new one is handed over, for the kernel drops a
//! new one silently where none is dead. And only a block that was read afterwards counts as success.

use super::client::{self, Asked};
use super::devices::Device;
use super::follow::{Answer, Follow};
use super::keep::Kept;
use super::kernel::{Event, Events, Kernel};
use super::state::{Claim, Standing, State};
use super::uri::Uri;
use anyhow::Context as _;
use sd_notify::NotifyState;
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long one server may take to tell who it is.
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(1);
/// How long the others are waited for once a server would do: one of them may have been promoted.
const OTHERS_LIMIT: Duration = Duration::from_millis(250);
/// How long the kernel may take to say that a connection is dead which was ended from here.
const DEATH_LIMIT: Duration = Duration::from_millis(500);
/// Between two lines of the log that say why there is no server.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The agent of one device.
#[derive(Debug)]
pub(super) struct Agent {
    pub device: Device,
    pub kernel: Kernel,
    pub events: Events,
    pub claim: Claim,
    pub state: State,
    pub follow: Follow,
    pub uris: Vec<Uri>,
    pub kept: Kept,
    /// Whether the kernel said that the connection is dead, or there never was one.
    pub dead: bool,
    pub probe: Probe,
    pub ready: bool,
    pub lost_at: Option<Instant>,
    pub logged: Option<(Instant, String)>,
}

impl Agent {
    /// Runs until the device is detached.
    ///
    /// # Errors
    /// The state can't be stored, or the kernel's events can't be read.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        loop {
            if !self.device.is_attached() {
                tracing::info!("{} was detached", self.device);
                return self.claim.remove();
            }
            if self.claim.is_dismissed() {
                tracing::info!("{} is being detached", self.device);
                return Ok(());
            }
            let (servers, answers) = tokio::select! {
                biased;
                event = self.events.next() => {
                    self.take_event(event.context("the kernel's events can't be read")?).await?;
                    continue;
                }
                answers = gather(&self.follow, &self.uris) => answers,
            };
            let (offers, mut connections): (Vec<Answer>, Vec<Option<Asked>>) = answers.into_iter().map(split).unzip();
            let was_connected = self.follow.is_connected();
            let (taken, refusals) = self.follow.handle_answers(&offers);
            let Some(taken) = taken else {
                if !was_connected {
                    let said = servers
                        .iter()
                        .zip(refusals)
                        .filter_map(|(server, refusal)| Some(format!("{}: {}", self.uris.get(*server)?, refusal?)));
                    self.log_waiting(&said.collect::<Vec<_>>().join("; "));
                }
                self.rest().await?;
                continue;
            };
            if was_connected {
                self.lost_at = Some(Instant::now());
            }
            let server = servers.get(taken).copied();
            let connection = connections.get_mut(taken).and_then(Option::take);
            if let (Some(server), Some(connection)) = (server, connection) {
                self.switch(server, connection).await?;
            }
        }
    }

    /// Waits until the servers are to be asked again, or something happens.
    async fn rest(&mut self) -> anyhow::Result<()> {
        let pause = self.follow.pause();
        tokio::select! {
            biased;
            event = self.events.next() => {
                self.take_event(event.context("the kernel's events can't be read")?).await
            }
            () = sleep(pause) => Ok(()),
        }
    }

    async fn take_event(&mut self, event: Event) -> anyhow::Result<()> {
        let lost = match event {
            Event::LinkDead(index) if index == self.device.0 => {
                self.dead = true;
                true
            }
            Event::LinkDead(_) => false,
            // It may have been among those that nobody read.
            Event::Lost => !self.probe.answers(self.device, self.follow.confirm_limit()).await,
        };
        if lost && self.follow.is_connected() {
            let server = self.state.uri.as_deref().unwrap_or("its server");
            tracing::warn!("{}: the connection to {server} is lost; requests wait", self.device);
            self.follow.handle_link_dead();
            self.lost_at = Some(Instant::now());
            self.stand(Standing::Waiting)?;
        }
        Ok(())
    }

    /// Takes the device to a server.
    async fn switch(&mut self, server: usize, connection: Asked) -> anyhow::Result<()> {
        let Some(uri) = self.uris.get(server).cloned() else { return Ok(()) };
        self.state.epoch = self.follow.wanted().epoch.0;
        self.stand(Standing::Waiting)?;
        if let Err(reason) = self.hand_over(&uri, connection).await {
            self.log_waiting(&format!("{uri}: {reason}"));
            self.follow.handle_unconfirmed();
            return self.rest().await;
        }
        self.dead = false;
        self.state.uri = Some(uri.to_string());
        self.follow.handle_confirmed(Some(server));
        self.confirmed()
    }

    /// The device was read: tells so, and stores it.
    pub(super) fn confirmed(&mut self) -> anyhow::Result<()> {
        let server = self.state.uri.clone().unwrap_or_default();
        let after = self.lost_at.take().map(|at| format!(", {} ms after the loss", at.elapsed().as_millis()));
        let after = after.unwrap_or_default();
        tracing::info!("{}: is at {server}, in epoch {}{after}", self.device, self.state.epoch);
        self.logged = None;
        self.stand(Standing::Attached)?;
        if !std::mem::replace(&mut self.ready, true) {
            notify(NotifyState::Ready);
        }
        Ok(())
    }

    async fn hand_over(&mut self, uri: &Uri, connection: Asked) -> Result<(), String> {
        let socket = connection.go(ASK_LIMIT).await.map_err(|error| error.to_string())?;
        self.end_connection().await;
        if !self.dead && self.kept.is_empty() && self.probe.answers(self.device, ASK_LIMIT).await {
            return Err("the old connection is alive, and the kernel replaces dead ones only".into());
        }
        self.probe.forget_what_came();
        let backend = self.state.volume.clone();
        let handed = self.kernel.reconfigure(self.device.0, self.kept.add(socket), &backend);
        handed.map_err(|error| format!("the kernel doesn't take the connection: {error}"))?;
        self.kept.keep_newest();
        let limit = self.follow.confirm_limit();
        if self.probe.answers(self.device, limit).await {
            return Ok(());
        }
        // From now on this one counts as the old one.
        self.dead = false;
        Err(format!("{} can't be read within {limit:?} of its connection to {uri}", self.device))
    }

    /// Sees to it that the old connection is dead, as far as that is in our hands.
    async fn end_connection(&mut self) {
        if self.dead {
            return;
        }
        if self.kept.is_empty() {
            let server = self.state.uri.clone().unwrap_or_default();
            self.log_waiting(&format!(
                "the connection to {server} was made by an agent that is gone, and can't be ended from here. If that server \
                 hangs, end it, or over TCP: ss -K dst HOST dport = PORT"
            ));
        }
        self.kept.shut_down();
        // The kernel says it when it has seen it; its word of this death mustn't be taken for the next one's.
        let died = async {
            while let Ok(event) = self.events.next().await {
                if event == Event::LinkDead(self.device.0) || event == Event::Lost {
                    return;
                }
            }
        };
        self.dead = timeout(DEATH_LIMIT, died).await.is_ok();
    }

    fn stand(&mut self, standing: Standing) -> anyhow::Result<()> {
        if standing != self.state.state || self.state.since_unix_s == 0 {
            self.state.since_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        }
        self.state.state = standing;
        // Not over a state that was taken away: that is how a detach tells us to end.
        if !self.claim.is_dismissed() {
            self.claim.store(&self.state)?;
        }
        let server = self.state.uri.as_deref().unwrap_or("no server");
        let text = match standing {
            Standing::Attached => format!("{} is at {server}, in epoch {}", self.device, self.state.epoch),
            Standing::Waiting => format!("{} waits for a server; it was at {server}", self.device),
        };
        notify(NotifyState::Status(&text));
        Ok(())
    }

    /// Says why there is no server: at once, when the reason changes, and now and then.
    fn log_waiting(&mut self, reason: &str) {
        let said = self.logged.as_ref().is_some_and(|(at, said)| said == reason && at.elapsed() < LOG_INTERVAL);
        if !said {
            tracing::warn!("{}: no server yet: {reason}", self.device);
            self.logged = Some((Instant::now(), reason.to_owned()));
        }
    }
}

/// Reads the device, in a thread of its own: while there is no server, such a read waits like any other.
#[derive(Debug, Default)]
pub(super) struct Probe {
    pending: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Probe {
    /// A read that came back already was answered by whoever was there before.
    fn forget_what_came(&mut self) {
        if let Some(pending) = &mut self.pending
            && !matches!(pending.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        {
            self.pending = None;
        }
    }

    /// Whether the device can be read within a time. A read that waits already will do.
    pub(super) async fn answers(&mut self, device: Device, limit: Duration) -> bool {
        let pending = self.pending.get_or_insert_with(|| {
            let (sender, receiver) = oneshot::channel();
            let read = move || drop(sender.send(device.probe()));
            if let Err(error) = std::thread::Builder::new().name("probe".into()).spawn(read) {
                tracing::warn!("no thread can be started: {error}");
            }
            receiver
        });
        let Ok(came) = timeout(limit, pending).await else { return false };
        self.pending = None;
        match came {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!("{device} can't be read: {error}");
                false
            }
            Err(_) => false,
        }
    }
}

/// Asks those servers that are to be asked now, all at once. Returns who they are, with their answers.
async fn gather(follow: &Follow, uris: &[Uri]) -> (Vec<usize>, Vec<Result<Asked, String>>) {
    let servers = follow.asked();
    let mut asking = JoinSet::new();
    for (place, server) in servers.iter().enumerate() {
        if let Some(uri) = uris.get(*server).cloned() {
            asking.spawn(async move { (place, client::ask(&uri, ASK_LIMIT).await) });
        }
    }
    let mut answers: Vec<Result<Asked, String>> = servers.iter().map(|_| Err("it didn't answer yet".into())).collect();
    let mut deadline = None;
    loop {
        let next = match deadline {
            None => asking.join_next().await,
            Some(at) => tokio::time::timeout_at(at, asking.join_next()).await.unwrap_or(None),
        };
        let Some(Ok((place, asked))) = next else { return (servers, answers) };
        let answer = asked.map_err(|error| error.to_string());
        let offer = answer.as_ref().map(|asked| asked.offer).map_err(String::clone);
        if let Some(slot) = answers.get_mut(place) {
            *slot = answer;
        }
        if follow.settles(&offer) {
            return (servers, answers);
        }
        if deadline.is_none() && follow.would_do(&offer) {
            deadline = Some(tokio::time::Instant::now() + OTHERS_LIMIT);
        }
    }
}

fn split(answer: Result<Asked, String>) -> (Answer, Option<Asked>) {
    match answer {
        Ok(asked) => (Ok(asked.offer), Some(asked)),
        Err(reason) => (Err(reason), None),
    }
}

/// Tells systemd, where it listens.
pub(super) fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("can't notify systemd: {error}");
    }
}
