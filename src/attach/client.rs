//! The NBD handshake, the client's side: asks a server who it is, and then, on the same connection, for the export.
//!
//! The kernel goes on with the bare socket, so not one byte behind the handshake is read, and nothing is asked for that
//! the kernel doesn't speak: simple replies only.

use super::choice::Offer;
use super::uri::{Address, Uri};
use crate::format::nbd::options::*;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Longest data of a reply, in bytes: many times what a good server sends.
const MAX_REPLY_BYTES: u32 = 64 << 10;
/// Replies to one option: an export has few kinds of information.
const MAX_REPLIES: usize = 64;
/// The bytes of a reply before its data.
const REPLY_HEADER_BYTES: usize = 20;
/// Characters of a server's message that are repeated.
const MAX_SHOWN_CHARS: usize = 200;

/// How long a connection may be idle before the kernel asks whether the other end is there, in seconds.
const KEEPALIVE_IDLE_S: u32 = 5;
/// Between two such questions, in seconds.
const KEEPALIVE_INTERVAL_S: u32 = 2;
/// How long sent bytes may stay unacknowledged before the connection is dead, in milliseconds. It decides little: that a
/// server is lost for good is learned from the one that was promoted. So it may well exceed what a busy server needs.
const USER_TIMEOUT_MS: u32 = 30_000;

/// Why a server can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It took too long.
    #[error("it doesn't answer within {0:?}")]
    Timeout(Duration),
    /// The socket failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The socket's error.
        source: io::Error,
    },
    /// It closed the connection in the handshake, as a server does that is fenced or stopping.
    #[error("it closes the connection: it is fenced, or stopping")]
    Closed,
    /// It speaks something else.
    #[error("it isn't an NBD server: {0}")]
    NotNbd(&'static str),
    /// It says no.
    #[error("it refuses: {0}")]
    Refused(String),
}

/// A connection to a server that told what it has.
#[derive(Debug)]
pub struct Asked {
    stream: Stream,
    export: String,
    /// What it has.
    pub offer: Offer,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Asks the server of a URI for its export, within a time.
pub async fn ask(uri: &Uri, limit: Duration) -> Result<Asked, AskError> {
    let asked = async {
        let mut stream = connect(&uri.address).await?;
        let offer = match &mut stream {
            Stream::Tcp(stream) => introduce(stream, &uri.export).await?,
            Stream::Unix(stream) => introduce(stream, &uri.export).await?,
        };
        Ok(Asked { stream, export: uri.export.clone(), offer })
    };
    timeout(limit, asked).await.unwrap_or(Err(AskError::Timeout(limit)))
}

impl Asked {
    /// Chooses the export. The socket then belongs to the transmission phase.
    ///
    /// What the server has is told again with it; an export that changed in between isn't taken.
    pub async fn go(self, limit: Duration) -> Result<OwnedFd, AskError> {
        let Asked { mut stream, export, offer } = self;
        let gone = async {
            match &mut stream {
                Stream::Tcp(stream) => option(stream, OPT_GO, &export).await,
                Stream::Unix(stream) => option(stream, OPT_GO, &export).await,
            }
        };
        let again = timeout(limit, gone).await.unwrap_or(Err(AskError::Timeout(limit)))?;
        if again != offer {
            return Err(AskError::Refused("its export changed within the handshake".into()));
        }
        let std = match stream {
            Stream::Tcp(stream) => stream.into_std().map(OwnedFd::from),
            Stream::Unix(stream) => stream.into_std().map(OwnedFd::from),
        };
        // The kernel waits in the socket's own calls.
        let blocking = std.and_then(|socket| {
            let flags = nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(&socket, nix::fcntl::F_GETFL)?);
            nix::fcntl::fcntl(&socket, nix::fcntl::F_SETFL(flags - nix::fcntl::OFlag::O_NONBLOCK))?;
            Ok(socket)
        });
        blocking.map_err(|source| AskError::Io { doing: "can't hand the socket over", source })
    }
}

async fn connect(address: &Address) -> Result<Stream, AskError> {
    let connected = async {
        match address {
            Address::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                setsockopt(&stream, sockopt::KeepAlive, &true)?;
                setsockopt(&stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
                setsockopt(&stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
                setsockopt(&stream, sockopt::TcpUserTimeout, &USER_TIMEOUT_MS)?;
                Ok(Stream::Tcp(stream))
            }
        }
    };
    connected.await.map_err(|source| AskError::Io { doing: "can't connect", source })
}

/// From the greeting to the answer to INFO.
async fn introduce<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, export: &str) -> Result<Offer, AskError> {
    let greeting: [u8; GREETING_BYTES] = receive(stream).await?;
    if greeting[..8] != INIT_MAGIC.to_be_bytes() {
        return Err(AskError::NotNbd("it greets with something else"));
    }
    let server = u16::from_be_bytes([greeting[16], greeting[17]]);
    if greeting[8..16] != OPTION_MAGIC.to_be_bytes() || server & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(AskError::NotNbd("it doesn't speak fixed newstyle"));
    }
    send(stream, &u32::from(server & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).to_be_bytes()).await?;
    option(stream, OPT_INFO, export).await
}

/// Sends an INFO or a GO, and reads what the server has.
async fn option<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    option: u32,
    export: &str,
) -> Result<Offer, AskError> {
    let kinds = [INFO_EXPORT, INFO_DESCRIPTION, INFO_BLOCK_SIZE];
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend((kinds.len() as u16).to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    let mut request = OPTION_MAGIC.to_be_bytes().to_vec();
    request.extend(option.to_be_bytes());
    request.extend((data.len() as u32).to_be_bytes());
    request.extend(data);
    send(stream, &request).await?;

    let mut told = Told::default();
    for _ in 0..MAX_REPLIES {
        let header: [u8; REPLY_HEADER_BYTES] = receive(stream).await?;
        let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if header[..8] != OPTION_REPLY_MAGIC.to_be_bytes() || number(8) != option {
            return Err(AskError::NotNbd("what should be a reply is none"));
        }
        let (kind, length) = (number(12), number(16));
        if length > MAX_REPLY_BYTES {
            return Err(AskError::NotNbd("a reply is longer than any good one"));
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await.map_err(broken)?;
        match kind {
            REP_ACK => return told.offer().ok_or(AskError::NotNbd("it doesn't tell the export's size")),
            REP_INFO => told.take(&data),
            error if error & REP_ERR != 0 => {
                let message: String = String::from_utf8_lossy(&data).chars().take(MAX_SHOWN_CHARS).collect();
                let message = if message.is_empty() { format!("NBD error {error:#x}") } else { message };
                return Err(AskError::Refused(message));
            }
            _ => {}
        }
    }
    Err(AskError::NotNbd("its replies have no end"))
}

/// Set in the types of all replies that say no.
const REP_ERR: u32 = 1 << 31;

/// What a server has told so far.
#[derive(Debug, Default)]
struct Told {
    export: Option<(u64, u16)>,
    blocks: Option<(u32, u32)>,
    description: Option<String>,
}

impl Told {
    /// Takes one piece of information. What isn't understood is left out, as the protocol wants it.
    fn take(&mut self, data: &[u8]) {
        let Some((kind, data)) = data.split_first_chunk::<2>() else { return };
        match u16::from_be_bytes(*kind) {
            INFO_EXPORT => {
                if let Some((size, flags)) = data.split_first_chunk::<8>()
                    && let Ok(flags) = flags.try_into()
                {
                    self.export = Some((u64::from_be_bytes(*size), u16::from_be_bytes(flags)));
                }
            }
            INFO_BLOCK_SIZE => {
                if let ([min, preferred, _], []) = data.as_chunks::<4>() {
                    self.blocks = Some((u32::from_be_bytes(*min), u32::from_be_bytes(*preferred)));
                }
            }
            INFO_DESCRIPTION => self.description = String::from_utf8(data.to_vec()).ok(),
            _ => {}
        }
    }

    fn offer(&self) -> Option<Offer> {
        let (size_bytes, flags) = self.export?;
        // Who names no sizes takes any byte, and likes 4096.
        let (min_block_bytes, preferred_block_bytes) = self.blocks.unwrap_or((1, 4096));
        let identity = self.description.as_deref().and_then(|text| text.parse().ok());
        Some(Offer { identity, size_bytes, flags, min_block_bytes, preferred_block_bytes })
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), AskError> {
    stream.write_all(bytes).await.map_err(broken)
}

async fn receive<const N: usize, S: AsyncRead + Unpin>(stream: &mut S) -> Result<[u8; N], AskError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.map_err(broken)?;
    Ok(bytes)
}

fn broken(source: io::Error) -> AskError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => AskError::Closed,
        _ => AskError::Io { doing: "the handshake failed", source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::Epoch;
    use crate::format::nbd::ExportShape;
    use crate::format::nbd::identity::{Identity, Role, VolumeId};
    use proptest::prelude::*;
    use tokio::io::duplex;

    const SHAPE: ExportShape = ExportShape { size_bytes: 1 << 20, block_bytes: 512, read_only: false };

    fn identity() -> Identity {
        Identity { volume: VolumeId([5; 16]), epoch: Epoch(2), role: Role::Primary }
    }

    /// Plays a server that sends all of this at once, and returns what the client makes of it, and what it sent.
    async fn against(server: &[u8]) -> (Result<Offer, AskError>, Vec<u8>) {
        let (mut near, mut far) = duplex(1 << 16);
        far.write_all(server).await.unwrap();
        let asked = introduce(&mut near, "vol0").await;
        drop(near);
        let mut sent = Vec::new();
        far.read_to_end(&mut sent).await.unwrap();
        (asked, sent)
    }

    fn answer(replies: &Replies) -> Vec<u8> {
        [&greeting()[..], replies.as_bytes()].concat()
    }

    #[tokio::test]
    async fn a_server_tells_who_it_is() {
        let mut replies = Replies::to(OPT_INFO);
        replies.info_export(&SHAPE, false);
        replies.info_name("vol0");
        replies.info_description(&identity());
        replies.info_block_size(&SHAPE);
        replies.ack();
        let (asked, sent) = against(&answer(&replies)).await;
        let flags = transmission_flags(&SHAPE, false);
        let expected = Offer {
            identity: Some(identity()),
            size_bytes: 1 << 20,
            flags,
            min_block_bytes: 512,
            preferred_block_bytes: 4096,
        };
        assert_eq!(asked.unwrap(), expected);
        let request = b"\0\0\0\x03IHAVEOPT\0\0\0\x06\0\0\0\x10\0\0\0\x04vol0\0\x03\0\0\0\x02\0\x03";
        assert_eq!(sent, request);
    }

    #[tokio::test]
    async fn one_that_tells_less_is_still_understood() {
        let mut replies = Replies::to(OPT_INFO);
        replies.info_export(&SHAPE, false);
        replies.ack();
        let offer = against(&answer(&replies)).await.0.unwrap();
        assert_eq!((offer.identity, offer.min_block_bytes, offer.preferred_block_bytes), (None, 1, 4096));
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_told_apart() {
        let mut refused = Replies::to(OPT_INFO);
        refused.error(REP_ERR_UNKNOWN, "no export is named \"vol0\"");
        let mut endless = Replies::to(OPT_INFO);
        (0..100).for_each(|_| endless.info_name("x"));
        let mut sizeless = Replies::to(OPT_INFO);
        sizeless.ack();
        for (server, said) in [
            (answer(&refused), "it refuses: no export"),
            (answer(&endless), "no end"),
            (answer(&sizeless), "the export's size"),
            (answer(&Replies::to(OPT_INFO))[..9].to_vec(), ""),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian-2".to_vec(), "isn't an NBD server"),
            ([&b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53"[..], &[0; 136]].concat(), "fixed newstyle"),
            (
                [&greeting()[..], &OPTION_REPLY_MAGIC.to_be_bytes(), &[0, 0, 0, 6, 0, 0, 0, 3, 9, 0, 0, 0]].concat(),
                "longer",
            ),
        ] {
            if said.is_empty() {
                continue;
            }
            let error = against(&server).await.0.expect_err("is refused").to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_information_is_survived(data: Vec<u8>, kind in 0u16..5) {
            let mut told = Told::default();
            told.take(&data);
            told.take(&[&kind.to_be_bytes()[..], &data].concat());
            let _ = told.offer();
        }
    }
}
