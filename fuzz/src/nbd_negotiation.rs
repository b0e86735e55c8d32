//! An NBD client's bytes into the handshake.
//!
//! What holds for any of them: the replies are the protocol's, each option gets exactly one that ends it, not one byte
//! beyond the handshake is taken, and it makes no difference in which pieces the bytes arrive.

use super::structured::{Encode, List};
use arbitrary::{Arbitrary, Unstructured};
use nbd_mirror::control::negotiate::{Export, NegotiationError, negotiate};
use nbd_mirror::format::ids::{Epoch, Id};
use nbd_mirror::format::nbd::identity::{Identity, Role, VolumeId};
use nbd_mirror::format::nbd::options::*;
use nbd_mirror::format::nbd::{ExportShape, Negotiated};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

structured! {
    /// A client: what it is offered, how its bytes arrive, and what they are.
    struct Client {
        exports: u8,
        piece_bytes: u8,
        flags: u32,
        options: List<Sent>,
    }

    /// A part of what it sends.
    enum Sent {
        Option { option: u8, data: List<Part> },
        Header { option: u32, length: u32 },
        Raw { bytes: List<u8> },
    }

    /// A part of an option's data.
    enum Part {
        Bytes { bytes: List<u8> },
        /// A string with its length before it; of one of the exports, a context, or neither.
        Named { name: u8 },
        Text { bytes: List<u8> },
        Count16 { n: u16 },
        Count32 { n: u32 },
        Filler { byte: u8, count: u16 },
    }
}

const NAMES: [&str; 6] = ["vol0", "", "é/ü", "base:allocation", "base:", "nothing of that name"];

/// The exports that the number stands for: none to three.
fn exports(number: u8) -> Vec<Export> {
    let shape = ExportShape { size_bytes: 1 << 20, block_bytes: 512, read_only: false };
    let identity = Identity { volume: VolumeId::of(Id([1; 16]), "vol0"), epoch: Epoch(1), role: Role::Primary };
    let shapes = [
        shape,
        ExportShape { size_bytes: 0, block_bytes: 4096, read_only: true },
        ExportShape { size_bytes: u64::MAX << 16, block_bytes: 1 << 16, read_only: false },
    ];
    NAMES
        .iter()
        .zip(shapes)
        .take(usize::from(number % 4))
        .map(|(name, shape)| Export { name: (*name).into(), shape, identity, refusal: None })
        .collect()
}

impl Client {
    /// The bytes that the client sends.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.flags.to_be_bytes().to_vec();
        for sent in &self.options.0 {
            match sent {
                Sent::Raw { bytes: raw } => bytes.extend(&raw.0),
                Sent::Header { option, length } => header(&mut bytes, *option, *length),
                Sent::Option { option, data } => {
                    let mut body = Vec::new();
                    data.0.iter().for_each(|part| part.append(&mut body));
                    header(&mut bytes, (*option).into(), body.len() as u32);
                    bytes.extend(body);
                }
            }
        }
        bytes
    }
}

fn header(bytes: &mut Vec<u8>, option: u32, length: u32) {
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(length.to_be_bytes());
}

impl Part {
    fn append(&self, body: &mut Vec<u8>) {
        let mut string = |text: &[u8]| {
            body.extend((text.len() as u32).to_be_bytes());
            body.extend(text);
        };
        match self {
            Part::Named { name } => string(NAMES[usize::from(*name) % NAMES.len()].as_bytes()),
            Part::Text { bytes } => string(&bytes.0),
            Part::Bytes { bytes } => body.extend(&bytes.0),
            Part::Count16 { n } => body.extend(n.to_be_bytes()),
            Part::Count32 { n } => body.extend(n.to_be_bytes()),
            Part::Filler { byte, count } => body.resize(body.len() + usize::from(*count), *byte),
        }
    }
}

/// A socket whose client has sent all it will: never waits, and gives its bytes in pieces.
struct Socket<'a> {
    unread: &'a [u8],
    piece_bytes: usize,
    written: Vec<u8>,
}

impl AsyncRead for Socket<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.unread.len().min(buf.remaining()).min(self.piece_bytes);
        let (head, tail) = self.unread.split_at(count);
        buf.put_slice(head);
        self.unread = tail;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(self.piece_bytes);
        self.written.extend(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How a handshake went: its outcome, what was sent, and how much was read.
type Played = (Result<Option<Negotiated>, NegotiationError>, Vec<u8>, usize);

fn play(exports: &[Export], bytes: &[u8], piece_bytes: usize) -> Played {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    let mut socket = Socket { unread: bytes, piece_bytes, written: Vec::new() };
    let outcome = RUNTIME.with(|runtime| runtime.block_on(negotiate(&mut socket, exports)));
    (outcome, socket.written, bytes.len() - socket.unread.len())
}

/// Runs one client.
pub fn run(data: &[u8]) {
    let Ok(client) = Client::arbitrary(&mut Unstructured::new(data)) else { return };
    let (exports, bytes) = (exports(client.exports), client.bytes());
    let (outcome, written, read) = play(&exports, &bytes, usize::MAX);
    let piecemeal = play(&exports, &bytes, 1 + usize::from(client.piece_bytes));
    assert_eq!(format!("{outcome:?}"), format!("{:?}", piecemeal.0));
    assert_eq!((&written, read), (&piecemeal.1, piecemeal.2));

    let ended = check_replies(&written, &bytes[..read]);
    match outcome {
        Ok(Some(negotiated)) => {
            assert!(negotiated.export < exports.len());
            assert!(negotiated.structured || !negotiated.base_allocation);
            assert!(matches!(ended, Some(OPT_GO | OPT_EXPORT_NAME)), "{ended:?}");
            // What comes behind the handshake belongs to the engine.
            let (alone, same, all) = play(&exports, &bytes[..read], usize::MAX);
            assert_eq!((alone.ok().flatten(), same, all), (Some(negotiated), written, read));
        }
        Ok(None) => assert!(ended == Some(OPT_ABORT) || read == bytes.len(), "{ended:?}"),
        Err(error) => assert!(!error.to_string().is_empty() && error.to_string().len() < 4096),
    }
}

/// Takes the replies apart beside the options that they answer; returns the option that ended the handshake.
fn check_replies(written: &[u8], read: &[u8]) -> Option<u32> {
    let (mut written, mut read) = (Taken(written), Taken(read));
    assert_eq!(written.take(GREETING_BYTES), Some(&greeting()[..]));
    let flags = read.number()?;
    while let Some(magic) = read.take(8)
        && magic == OPTION_MAGIC.to_be_bytes()
        && let (Some(option), Some(length)) = (read.number(), read.number())
        && read.take(length as usize).is_some()
    {
        if option == OPT_EXPORT_NAME {
            let zeroes = if flags & u32::from(FLAG_NO_ZEROES) == 0 { 124 } else { 0 };
            let refused = written.0.is_empty();
            assert!(refused || written.0.len() == 10 + zeroes, "{} bytes", written.0.len());
            return (!refused).then_some(option);
        }
        let mut granted = false;
        loop {
            if written.0.is_empty() {
                // Only where the handshake was given up.
                return None;
            }
            assert_eq!(written.take(8), Some(&OPTION_REPLY_MAGIC.to_be_bytes()[..]));
            assert_eq!(written.number(), Some(option));
            let (kind, length) = (written.number().expect("a kind"), written.number().expect("a length"));
            let data = written.take(length as usize).expect("the announced data");
            match kind {
                REP_ACK => granted = true,
                REP_ERR_UNSUP | REP_ERR_INVALID | REP_ERR_UNKNOWN => {
                    assert!(data.len() <= MAX_STRING_BYTES && str::from_utf8(data).is_ok());
                }
                REP_SERVER | REP_INFO | REP_META_CONTEXT => continue,
                other => panic!("no kind of reply: {other:#x}"),
            }
            break;
        }
        if option == OPT_ABORT || (option == OPT_GO && granted) {
            assert!(written.0.is_empty());
            return Some(option);
        }
    }
    assert!(written.0.is_empty(), "a reply to nothing");
    None
}

struct Taken<'a>(&'a [u8]);

impl<'a> Taken<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn number(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes")))
    }
}
