//! A small NBD client that knows which of its requests were answered, and can send nonsense.
//!
//! Foreign clients cover what well-behaved software does. This one exists because none of them shows the order
//! of requests and answers over a crash, and all of them refuse to send what a server must survive.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Command numbers ("NBD protocol, request types").
pub mod kind {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
}

/// Command and transmission flags ("NBD protocol, command flags, transmission flags").
pub mod flag {
    pub const FUA: u16 = 1;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const READ_ONLY: u16 = 1 << 1;
}

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// No test waits longer than this for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Where an NBD server listens.
#[derive(Clone, Debug)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Endpoint {
    /// Connects; answers that take longer than half a minute are errors.
    pub fn connect(&self) -> io::Result<Stream> {
        let stream = match self {
            Endpoint::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        };
        stream.set_answer_limit(ANSWER_LIMIT)?;
        match &stream {
            Stream::Unix(stream) => stream.set_write_timeout(Some(ANSWER_LIMIT))?,
            Stream::Tcp(stream) => stream.set_write_timeout(Some(ANSWER_LIMIT))?,
        }
        Ok(stream)
    }

    /// The NBD URI of one export here.
    pub fn uri(&self, export: &str) -> String {
        match self {
            Endpoint::Unix(path) => unix_uri(path, export),
            Endpoint::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

fn unix_uri(path: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", path.display())
}

/// A connected byte stream of either family.
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Sets how long a read may wait.
    pub fn set_answer_limit(&self, limit: Duration) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_read_timeout(Some(limit)),
            Stream::Tcp(stream) => stream.set_read_timeout(Some(limit)),
        }
    }

    /// Reads until the peer closes; an abortive close counts, a peer that keeps the connection is an error.
    pub fn read_to_close(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.read_to_end(&mut bytes) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(bytes),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(buffer),
            Stream::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection in the transmission phase, with simple replies.
pub struct Client {
    pub stream: Stream,
    /// Bytes of the export.
    pub size: u64,
    /// Transmission flags of the export.
    pub flags: u16,
    cookie: u64,
}

impl Client {
    /// Opens an export by NBD_OPT_GO.
    pub fn go(endpoint: &Endpoint, export: &str) -> io::Result<Client> {
        let mut stream = greet(endpoint)?;
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&[0, 0]);
        send_option(&mut stream, 7, &data)?;
        let (mut size, mut flags) = (0, 0);
        loop {
            let (reply, data) = option_reply(&mut stream)?;
            match reply {
                1 => {
                    return Ok(Client { stream, size, flags, cookie: 0 });
                }
                3 if data.len() == 12 && data[..2] == [0, 0] => {
                    size = u64::from_be_bytes(data[2..10].try_into().unwrap());
                    flags = u16::from_be_bytes(data[10..12].try_into().unwrap());
                }
                3 => {}
                _ => {
                    let message = format!("GO refused with {reply:#x}: {}", String::from_utf8_lossy(&data));
                    return Err(io::Error::new(io::ErrorKind::ConnectionRefused, message));
                }
            }
        }
    }

    /// Opens an export by NBD_OPT_EXPORT_NAME, as clients did before GO existed.
    pub fn export_name(endpoint: &Endpoint, export: &str) -> io::Result<Client> {
        let mut stream = greet(endpoint)?;
        send_option(&mut stream, 1, export.as_bytes())?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        let size = u64::from_be_bytes(answer[..8].try_into().unwrap());
        let flags = u16::from_be_bytes(answer[8..].try_into().unwrap());
        Ok(Client { stream, size, flags, cookie: 0 })
    }

    /// Sends a request without waiting for its answer; returns its cookie.
    pub fn send(&mut self, flags: u16, kind: u16, offset: u64, len: u32, payload: &[u8]) -> io::Result<u64> {
        self.cookie += 1;
        let mut bytes = request(flags, kind, self.cookie, offset, len);
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes)?;
        Ok(self.cookie)
    }

    /// The next answer: its cookie and NBD error number (0: done).
    pub fn answer(&mut self) -> io::Result<(u64, u32)> {
        let mut bytes = [0; 16];
        self.stream.read_exact(&mut bytes)?;
        let magic = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        if magic != REPLY_MAGIC {
            return Err(io::Error::other(format!("a reply with magic {magic:#x}")));
        }
        let error = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        Ok((u64::from_be_bytes(bytes[8..].try_into().unwrap()), error))
    }

    /// One request and its error number; reads are not for here.
    pub fn call(&mut self, flags: u16, kind: u16, offset: u64, len: u32, payload: &[u8]) -> io::Result<u32> {
        let cookie = self.send(flags, kind, offset, len, payload)?;
        let (answered, error) = self.answer()?;
        if answered != cookie {
            return Err(io::Error::other(format!("cookie {cookie} was answered as {answered}")));
        }
        Ok(error)
    }

    /// Writes and demands success.
    pub fn write(&mut self, offset: u64, payload: &[u8]) -> io::Result<()> {
        self.succeed(0, kind::WRITE, offset, payload.len() as u32, payload)
    }

    /// Sends a request other than a read, and demands success.
    pub fn succeed(&mut self, flags: u16, kind: u16, offset: u64, len: u32, payload: &[u8]) -> io::Result<()> {
        match self.call(flags, kind, offset, len, payload)? {
            0 => Ok(()),
            error => Err(io::Error::other(format!("request {kind} at {offset}+{len} got NBD error {error}"))),
        }
    }

    /// Reads, or fails with the NBD error number in the message.
    pub fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        match self.call(0, kind::READ, offset, len as u32, &[])? {
            0 => {
                let mut bytes = vec![0; len];
                self.stream.read_exact(&mut bytes)?;
                Ok(bytes)
            }
            error => Err(io::Error::other(format!("a read at {offset}+{len} got NBD error {error}"))),
        }
    }

    /// Ends the session as the protocol wants it.
    pub fn disconnect(mut self) {
        // The server may be gone already: then there is nothing left to end.
        let _ = self.send(0, kind::DISC, 0, 0, &[]);
    }
}

/// The bytes of a request without its payload ("NBD protocol, request message").
pub fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// Reads the server's greeting and answers it with "fixed newstyle, no zeroes".
fn greet(endpoint: &Endpoint) -> io::Result<Stream> {
    let mut stream = endpoint.connect()?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
        return Err(io::Error::other("no NBD newstyle greeting"));
    }
    stream.write_all(&3u32.to_be_bytes())?;
    Ok(stream)
}

fn send_option(stream: &mut Stream, option: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    stream.write_all(&bytes)
}

fn option_reply(stream: &mut Stream) -> io::Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    if u64::from_be_bytes(header[..8].try_into().unwrap()) != OPTION_REPLY_MAGIC {
        return Err(io::Error::other("an option reply without its magic"));
    }
    let reply = u32::from_be_bytes(header[12..16].try_into().unwrap());
    let mut data = vec![0; u32::from_be_bytes(header[16..].try_into().unwrap()) as usize];
    stream.read_exact(&mut data)?;
    Ok((reply, data))
}
