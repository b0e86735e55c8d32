//! The NBD handshake, the server's side: from the greeting to the client's choice of an export.
//!
//! NBD protocol, section "Fixed newstyle negotiation". `docs/nbd-protocol.md` states how each odd case is answered.
//!
//! Whoever calls [`negotiate`] hands the raw socket on to the engine afterwards, so not one byte beyond the handshake
//! may be taken from it: everything is read in exact lengths, and nothing is buffered.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::format::nbd::identity::Identity;
use crate::format::nbd::options::*;
use crate::format::nbd::{ExportShape, META_BASE_ALLOCATION_ID, Negotiated};

#[cfg(test)]
mod tests;

/// The time for a whole handshake: a client sends what it sends without waiting for a human.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Options that a client may send. A handshake takes five; a client may ask for each export's information besides.
const MAX_OPTIONS: usize = 1000;
/// Longest data of one option, in bytes: many times what a good client sends.
const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Characters of an unknown export's name that are repeated in a message, which ends up in a log.
const MAX_SHOWN_CHARS: usize = 64;

/// What is offered to a client under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The name that a client asks for.
    pub name: String,
    /// Its size and what it permits.
    pub shape: ExportShape,
    /// Which volume it is, told to who asks for a description.
    pub identity: Identity,
    /// Why nobody may have it now.
    pub refusal: Option<String>,
}

/// Why a handshake failed. The connection is to be closed: what follows on it can't be told apart from garbage.
#[derive(Debug, thiserror::Error)]
pub enum NegotiationError {
    /// The client was too slow, or did not read its replies.
    #[error("the client did not finish the NBD handshake within {0:?}")]
    Timeout(Duration),
    /// The socket failed, or the client closed it within a message.
    #[error("cannot {doing}")]
    Io {
        /// What was being done, to follow "cannot".
        doing: &'static str,
        /// The socket's error; `UnexpectedEof` where the client closed it.
        source: io::Error,
    },
    /// The client's flags lack fixed newstyle.
    #[error("the client does not speak fixed newstyle NBD (its flags are {0:#x}): use a client that does")]
    NotFixedNewstyle(u32),
    /// The client's flags have bits that were not offered to it.
    #[error("the client set NBD flags that were not offered: {0:#x}")]
    UnknownFlags(u32),
    /// Something else stands where an option should start.
    #[error("no NBD option starts with {0:#018x}: the client speaks another protocol, or lost its place")]
    BadMagic(u64),
    /// An option's data is longer than any that makes sense.
    #[error("NBD option {option} has {length} bytes of data, more than {MAX_OPTION_BYTES}")]
    OptionTooLong {
        /// The option's number.
        option: u32,
        /// The bytes of data that it announced.
        length: u32,
    },
    /// The client goes on sending options instead of choosing an export.
    #[error("the client sent more than {MAX_OPTIONS} NBD options")]
    TooManyOptions,
    /// An EXPORT_NAME, to which there is no reply that says no.
    #[error("{0}")]
    UnknownExport(String),
}

/// Leads a client through the handshake. None: it left without choosing an export, which is no error.
///
/// It takes 10 seconds at most. At an error, `stream` is to be closed.
pub async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    exports: &[Export],
) -> Result<Option<Negotiated>, NegotiationError> {
    negotiate_within(stream, exports, HANDSHAKE_LIMIT).await
}

async fn negotiate_within<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    exports: &[Export],
    limit: Duration,
) -> Result<Option<Negotiated>, NegotiationError> {
    match timeout(limit, handshake(stream, exports)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(NegotiationError::Timeout(limit)),
    }
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    exports: &[Export],
) -> Result<Option<Negotiated>, NegotiationError> {
    send(stream, &greeting(), "send the NBD greeting").await?;
    let Some(flags) = receive::<CLIENT_FLAGS_BYTES, S>(stream, "read the client's NBD flags").await? else {
        return Ok(None);
    };
    let mut session = Session::new(exports, u32::from_be_bytes(flags))?;

    let mut options = 0;
    while let Some(header) = receive::<OPTION_HEADER_BYTES, S>(stream, "read an NBD option").await? {
        let OptionHeader { option, length } = OptionHeader::parse(&header).map_err(NegotiationError::BadMagic)?;
        options += 1;
        if options > MAX_OPTIONS {
            return Err(NegotiationError::TooManyOptions);
        }
        if length > MAX_OPTION_BYTES {
            return Err(NegotiationError::OptionTooLong { option, length });
        }
        let mut data = vec![0; length as usize];
        stream
            .read_exact(&mut data)
            .await
            .map_err(|source| NegotiationError::Io { doing: "read an NBD option's data", source })?;

        let (reply, next) = session.answer(option, &data)?;
        let sent = send(stream, &reply, "send the reply to an NBD option").await;
        match next {
            // The client may close without waiting for this reply (section "Terminating the handshake phase").
            Next::Leave => return Ok(None),
            Next::Transmit(negotiated) => return sent.map(|()| Some(negotiated)),
            Next::Option => sent?,
        }
    }
    Ok(None)
}

async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    bytes: &[u8],
    doing: &'static str,
) -> Result<(), NegotiationError> {
    let sent = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    sent.await.map_err(|source| NegotiationError::Io { doing, source })
}

/// Reads `N` bytes. None: the stream ends before the first of them, where a client may well leave.
async fn receive<const N: usize, S: AsyncRead + Unpin>(
    stream: &mut S,
    doing: &'static str,
) -> Result<Option<[u8; N]>, NegotiationError> {
    let mut bytes = [0; N];
    let received = async {
        let first = stream.read(&mut bytes).await?;
        if first == 0 {
            return Ok(None);
        }
        stream.read_exact(&mut bytes[first..]).await?;
        Ok(Some(bytes))
    };
    received.await.map_err(|source| NegotiationError::Io { doing, source })
}

/// What comes after the reply to an option.
enum Next {
    Option,
    Transmit(Negotiated),
    Leave,
}

/// A handshake's state between two options. It answers options and knows nothing of sockets.
struct Session<'a> {
    exports: &'a [Export],
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was set; it counts only if that export is chosen.
    context_export: Option<usize>,
}

impl<'a> Session<'a> {
    fn new(exports: &'a [Export], flags: u32) -> Result<Session<'a>, NegotiationError> {
        if flags & u32::from(FLAG_FIXED_NEWSTYLE) == 0 {
            return Err(NegotiationError::NotFixedNewstyle(flags));
        }
        let unknown = flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        if unknown != 0 {
            return Err(NegotiationError::UnknownFlags(unknown));
        }
        let no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        Ok(Session { exports, no_zeroes, structured: false, context_export: None })
    }

    /// The bytes that answer an option, and what comes next.
    fn answer(&mut self, option: u32, data: &[u8]) -> Result<(Vec<u8>, Next), NegotiationError> {
        let mut replies = Replies::to(option);
        let mut next = Next::Option;
        let done = match option {
            OPT_EXPORT_NAME => return self.export_name(data),
            OPT_ABORT => {
                replies.ack();
                next = Next::Leave;
                Ok(())
            }
            OPT_LIST => self.list(data, &mut replies),
            OPT_STRUCTURED_REPLY => self.structured_reply(data, &mut replies),
            OPT_INFO => self.info(data, &mut replies).map(|_| ()),
            OPT_GO => self.info(data, &mut replies).map(|export| next = Next::Transmit(self.negotiated(export))),
            OPT_LIST_META_CONTEXT => self.list_contexts(data, &mut replies),
            OPT_SET_META_CONTEXT => self.set_contexts(data, &mut replies),
            _ => Err(Refusal { kind: REP_ERR_UNSUP, message: format!("option {option} is not supported") }),
        };
        if let Err(Refusal { kind, message }) = done {
            replies.error(kind, &message);
        }
        Ok((replies.as_bytes().to_vec(), next))
    }

    fn export_name(&self, data: &[u8]) -> Result<(Vec<u8>, Next), NegotiationError> {
        let name = String::from_utf8_lossy(data);
        let export = self.choose(&name).map_err(|refusal| NegotiationError::UnknownExport(refusal.message))?;
        let reply = export_name_reply(&self.exports[export].shape, self.structured, self.no_zeroes);
        Ok((reply, Next::Transmit(self.negotiated(export))))
    }

    fn list(&self, data: &[u8], replies: &mut Replies) -> Result<(), Refusal> {
        no_data(data)?;
        for export in self.exports {
            replies.server(&export.name);
        }
        replies.ack();
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8], replies: &mut Replies) -> Result<(), Refusal> {
        no_data(data)?;
        self.structured = true;
        replies.ack();
        Ok(())
    }

    /// Answers an INFO or a GO, and returns the export.
    fn info(&self, data: &[u8], replies: &mut Replies) -> Result<usize, Refusal> {
        let request = InfoRequest::parse(data)?;
        let index = self.choose(request.name)?;
        let export = &self.exports[index];
        replies.info_export(&export.shape, self.structured);
        if request.kinds.contains(&INFO_NAME) {
            replies.info_name(&export.name);
        }
        if request.kinds.contains(&INFO_DESCRIPTION) {
            replies.info_description(&export.identity);
        }
        // Unasked, too: a client that ignores it loses nothing, and one that forgot to ask learns what to keep to.
        replies.info_block_size(&export.shape);
        replies.ack();
        Ok(index)
    }

    fn list_contexts(&self, data: &[u8], replies: &mut Replies) -> Result<(), Refusal> {
        let (_, request) = self.context_request(data)?;
        if request.lists_base_allocation() {
            replies.base_allocation(0);
        }
        replies.ack();
        Ok(())
    }

    fn set_contexts(&mut self, data: &[u8], replies: &mut Replies) -> Result<(), Refusal> {
        // A failed option unsets, too: the client must not find a context in use that it did not see granted.
        self.context_export = None;
        let (export, request) = self.context_request(data)?;
        if request.selects_base_allocation() {
            self.context_export = Some(export);
            replies.base_allocation(META_BASE_ALLOCATION_ID);
        }
        replies.ack();
        Ok(())
    }

    fn context_request<'d>(&self, data: &'d [u8]) -> Result<(usize, ContextRequest<'d>), Refusal> {
        if !self.structured {
            let message = "metadata contexts need structured replies, which come first".to_owned();
            return Err(Refusal { kind: REP_ERR_INVALID, message });
        }
        let request = ContextRequest::parse(data)?;
        Ok((self.find(request.name)?, request))
    }

    /// The export of that name, or with an empty name the only one that there is.
    fn find(&self, name: &str) -> Result<usize, Refusal> {
        if let Some(index) = self.exports.iter().position(|export| export.name == name) {
            return Ok(index);
        }
        if name.is_empty() && self.exports.len() == 1 {
            return Ok(0);
        }
        let names: Vec<String> = self.exports.iter().map(|export| format!("{:?}", export.name)).collect();
        let there_are = if names.is_empty() { "there are none".to_owned() } else { names.join(", ") };
        let name: String = name.chars().take(MAX_SHOWN_CHARS).collect();
        Err(Refusal { kind: REP_ERR_UNKNOWN, message: format!("no export is named {name:?}; exports: {there_are}") })
    }

    /// The export of that name, if it can be had now.
    fn choose(&self, name: &str) -> Result<usize, Refusal> {
        let index = self.find(name)?;
        let Export { name, refusal, .. } = &self.exports[index];
        match refusal {
            None => Ok(index),
            Some(reason) => Err(Refusal {
                kind: REP_ERR_UNKNOWN,
                message: format!("export {name:?} can't be served now: {reason}"),
            }),
        }
    }

    fn negotiated(&self, export: usize) -> Negotiated {
        Negotiated { export, structured: self.structured, base_allocation: self.context_export == Some(export) }
    }
}

/// An option that is answered with an error, after which the handshake goes on.
struct Refusal {
    /// One of `REP_ERR_*`.
    kind: u32,
    message: String,
}

impl From<Malformed> for Refusal {
    fn from(Malformed(message): Malformed) -> Refusal {
        Refusal { kind: REP_ERR_INVALID, message: message.to_owned() }
    }
}

fn no_data(data: &[u8]) -> Result<(), Refusal> {
    if data.is_empty() { Ok(()) } else { Err(Malformed("this option takes no data").into()) }
}
