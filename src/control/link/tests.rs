//! Keeping a connection, against a destination that is only a listener and an engine that is only a channel.

use super::*;
use crate::format::ids::{Epoch, Id};
use crate::format::superblock::{Role, Superblock, Volume};
use crate::format::wire::Welcome;
use crossbeam_channel::Receiver;
use nix::sys::eventfd::EventFd;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    listener: TcpListener,
    engine: Receiver<SourceCommand>,
    link: watch::Sender<LinkState>,
    reason: Reason,
    keeper: JoinHandle<()>,
}

async fn start() -> Rig {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("has an address").to_string().parse().expect("an address");
    let (sender, engine) = crossbeam_channel::bounded(16);
    let commands = Commands::new(sender, Arc::new(EventFd::new().expect("an eventfd")));
    let (link, seen) = watch::channel(LinkState::Down("not connected yet".into()));
    let reason = Reason::default();
    let keeper = tokio::spawn(keep(address, commands, seen, reason.clone()));
    Rig { listener, engine, link, reason, keeper }
}

impl Rig {
    /// The next command; the keeper runs on the same thread, so it isn't blocked for.
    async fn command(&self) -> SourceCommand {
        timeout(PATIENCE, async {
            loop {
                if let Ok(command) = self.engine.try_recv() {
                    return command;
                }
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("the engine is asked")
    }

    /// Lets it introduce itself once, and answers with this.
    async fn meet(&self, welcome: &Welcome) {
        let (mut stream, _) = timeout(PATIENCE, self.listener.accept()).await.expect("it connects").expect("accepts");
        let SourceCommand::Hello(ask) = self.command().await else { panic!("it asks for a hello") };
        let volume = Volume { name: "vol0".into(), size_bytes: 1 << 20, block_bytes: 512 };
        let superblock = Superblock::first(Role::Source, Id::default(), "alpha", 8 << 20, Epoch(1), vec![volume]);
        ask.send(superblock).expect("it waits for the hello");
        handshake::receive_hello(&mut stream).await.expect("a hello").expect("that is whole");
        handshake::answer(&mut stream, welcome).await.expect("answers");
    }

    async fn wait_for_reason(&self, piece: &str) {
        let said = async {
            while !self.reason.get().contains(piece) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, said).await.unwrap_or_else(|_| panic!("{piece:?} isn't in {:?}", self.reason.get()));
    }
}

fn welcome() -> Welcome {
    Welcome { verdict: Verdict::Welcome, ..Welcome::refuse(Verdict::Refused, Epoch(1), "") }
}

#[tokio::test]
async fn a_refusal_is_the_reason_and_it_tries_again() {
    let rig = start().await;
    for reason in ["the staging log is full: raise staging_size", "the destination failed: no disk"] {
        rig.meet(&Welcome::refuse(Verdict::Refused, Epoch(1), reason)).await;
        rig.wait_for_reason(&format!("refused: {reason}")).await;
    }
}

#[tokio::test]
async fn a_lost_connection_is_made_again_until_the_source_is_fenced() {
    let rig = start().await;
    for flap in 0..5 {
        let began = Instant::now();
        rig.meet(&welcome()).await;
        assert!(matches!(rig.command().await, SourceCommand::Peer(..)), "the engine gets the connection");
        assert!(began.elapsed() < PAUSE.1, "it is made again at once, also the {flap}th time");
        rig.link.send_replace(LinkState::Up);
        rig.wait_for_reason("").await;
        // The keeper sees that it is up before it is down again.
        sleep(Duration::from_millis(20)).await;
        assert_eq!(rig.reason.get(), "");
        rig.link.send_replace(LinkState::Down("cut".into()));
        rig.wait_for_reason("cut").await;
    }
    rig.meet(&welcome()).await;
    rig.link.send_replace(LinkState::Fenced(Epoch(2)));
    timeout(PATIENCE, rig.keeper).await.expect("it ends").expect("without a panic");
}
