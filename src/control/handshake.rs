//! The first words of both sides over a replication connection, before the engines take it over.

use crate::core::dirty::{self, Dirty};
use crate::core::grains::Grains;
use crate::format::block::{Block, BlockError};
use crate::format::ids::{Epoch, Id};
use crate::format::superblock::{Role, Superblock, Volume};
use crate::format::wire::{self, HELLO, LACKS, WELCOME, Welcome};
use crate::limits::{BLOCK_BYTES, MIN_HALF_BYTES};
use anyhow::{Context as _, bail};
use nix::sys::socket::{setsockopt, sockopt};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the other side may take for its first words.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a destination may take to make its journal files at the first contact.
const WELCOME_LIMIT: Duration = Duration::from_secs(60);
/// Unacknowledged data for this long means that the other side is gone.
const DEAD_AFTER_MS: u32 = 15_000;

/// No delay for small messages, and a peer that vanished without a word is noticed.
pub fn prepare(stream: &TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &5)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &2)?;
    setsockopt(stream, sockopt::TcpKeepCount, &5)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &DEAD_AFTER_MS)?;
    Ok(())
}

/// The bare socket, blocking, for an engine.
pub fn into_owned_fd(stream: TcpStream) -> anyhow::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

/// Introduces this source at a destination, and returns what it says: its welcome, and before that what it may lack.
pub async fn introduce(stream: &mut TcpStream, source: &Superblock) -> anyhow::Result<(Welcome, Option<Box<Grains>>)> {
    stream.write_all(&*wire::encode_hello(source)).await.context("the destination closed the connection")?;
    let mut block = receive(stream, &[WELCOME, LACKS], WELCOME_LIMIT).await?;
    let mut lacks = None;
    if block[..8] == LACKS {
        wire::decode_lacks(&block).map_err(|error| not_ours(&error))?;
        let (sizes, grain_bytes) = (source.sizes(), source.grain_bytes);
        let mut bytes = vec![0; dirty::stored_bytes(&sizes, grain_bytes) as usize];
        timeout(LIMIT, stream.read_exact(&mut bytes)).await.context("it says nothing more")??;
        let (dirty, unreadable) = Dirty::parse(source.source, &sizes, grain_bytes, &bytes);
        if unreadable > 0 {
            tracing::warn!(
                "{unreadable} sectors of what the destination may lack can't be read: all they stand for is compared"
            );
        }
        lacks = Some(Box::new(dirty.grains().clone()));
        block = receive(stream, &[WELCOME], WELCOME_LIMIT).await?;
    }
    Ok((Welcome::decode(&block).map_err(|error| not_ours(&error))?, lacks))
}

/// What a check introduces itself as: no source can be called so. Its only volume bears the name of the source that it asks
/// about, and it is always refused, without a reason where that source is known.
const CHECK: &str = ".check";

/// Asks a destination whether it knows a source, and takes nothing from anybody. Returns why it would be refused.
pub async fn check(stream: &mut TcpStream, source: &str) -> anyhow::Result<Option<String>> {
    let volume = Volume { name: source.to_owned(), size_bytes: BLOCK_BYTES as u64, block_bytes: BLOCK_BYTES as u32 };
    let hello = Superblock::first(Role::Source, Id::default(), CHECK, MIN_HALF_BYTES, Epoch(1), vec![volume]);
    let (welcome, _) = introduce(stream, &hello).await?;
    Ok(Some(welcome.reason).filter(|reason| !reason.is_empty()))
}

/// The source that is asked about, where this is the hello of a check.
pub fn asked_by_check(hello: &Superblock) -> Option<&str> {
    hello.volumes.first().filter(|_| hello.name == CHECK).map(|volume| volume.name.as_str())
}

/// Says what this side may lack, before the engine answers the hello.
pub async fn tell_lacks(stream: &mut TcpStream, map: &[u8]) -> anyhow::Result<()> {
    stream.write_all(&*wire::encode_lacks()).await.context("the source closed the connection")?;
    timeout(LIMIT, stream.write_all(map)).await.context("the source doesn't listen")??;
    Ok(())
}

/// Receives the introduction of a source.
pub async fn receive_hello(stream: &mut TcpStream) -> anyhow::Result<Result<Superblock, BlockError>> {
    Ok(wire::decode_hello(&*receive(stream, &[HELLO], LIMIT).await?))
}

/// Answers a hello without an engine.
pub async fn answer(stream: &mut TcpStream, welcome: &Welcome) -> anyhow::Result<()> {
    stream.write_all(&*welcome.encode()).await.context("the source closed the connection")
}

/// Receives a block; the magic is looked at as soon as it is there, for another program may never send a whole one.
async fn receive(stream: &mut TcpStream, magics: &[[u8; 8]], limit: Duration) -> anyhow::Result<Box<Block>> {
    let mut block = Box::new([0; BLOCK_BYTES]);
    let whole = async {
        stream.read_exact(&mut block[..8]).await.context("it closed the connection before it introduced itself")?;
        if !magics.iter().any(|magic| block[..8] == *magic) {
            let mut first = [0; 8];
            first.copy_from_slice(&block[..8]);
            bail!(not_ours(&BlockError::Magic(first)));
        }
        stream
            .read_exact(&mut block[8..])
            .await
            .context("it closed the connection in the middle of its first words")?;
        Ok(())
    };
    match timeout(limit, whole).await {
        Ok(outcome) => outcome.map(|()| block),
        Err(_) => bail!("it said nothing for {} s: it may not be nbd-mirror, or not this version", limit.as_secs()),
    }
}

/// The other side speaks something else.
pub fn not_ours(error: &BlockError) -> anyhow::Error {
    match error {
        BlockError::Version(version) => anyhow::anyhow!(
            "it speaks version {version} of the replication protocol, this program version {}: run the same version on both sides",
            crate::format::block::VERSION
        ),
        BlockError::Magic(_) => anyhow::anyhow!("it isn't an nbd-mirror: {error}. Check the address and the port"),
        other => anyhow::anyhow!("its first words are damaged: {other}"),
    }
}
