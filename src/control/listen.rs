//! Listening sockets, Unix or TCP, and the connections they accept.
//!
//! A Unix socket's file outlives a killed daemon, so binding replaces a file that nobody answers
//! behind, and only that: a live daemon's socket or a foreign file is an error.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

use super::config::{HostPort, ListenAddress};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 128;

/// A bound address; a Unix socket's file is removed when it is dropped.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket and its file.
    Unix(UnixListener, SocketFile),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// One accepted connection.
#[derive(Debug)]
pub enum Stream {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP, with TCP_NODELAY set.
    Tcp(TcpStream),
}

/// Removes a Unix socket's file when dropped, unless another socket stands there by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file that was made.
    identity: (u64, u64),
}

/// Binds an NBD address. A Unix socket's mode is 0666 less the process's umask.
///
/// # Errors
/// An address that is in use or not this host's, or a path that can't hold a socket.
pub async fn bind(address: &ListenAddress) -> anyhow::Result<Listener> {
    match address {
        ListenAddress::Unix(path) => {
            let listener = bind_unix(path, 0o666)?;
            let file = SocketFile::of(path)?;
            Ok(Listener::Unix(listener, file))
        }
        ListenAddress::Tcp(address) => bind_tcp(address).await.map(Listener::Tcp),
    }
}

/// Binds a TCP address.
///
/// # Errors
/// A name that can't be resolved, or an address that is in use or not this host's.
pub async fn bind_tcp(address: &HostPort) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind((address.host.as_str(), address.port)).await;
    bound.with_context(|| format!("can't listen on tcp:{address}"))
}

/// Binds a Unix socket with the given mode (less the umask), replacing a file nobody answers behind.
///
/// # Errors
/// A live socket or a foreign file at the path, or a folder that is missing or not writable.
pub fn bind_unix(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    remove_stale(path)?;
    let bound = || -> io::Result<UnixListener> {
        let socket = UnixSocket::new_stream()?;
        // Linux gives the file the mode of the socket's own inode, so the file never
        // exists with a wider mode, as it would with a chmod after the bind.
        File::from(socket.as_fd().try_clone_to_owned()?).set_permissions(Permissions::from_mode(mode))?;
        socket.bind(path)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::NotFound => ": its folder is missing: make it, or choose another path",
            ErrorKind::PermissionDenied => ": its folder isn't writable for this user",
            _ => "",
        };
        anyhow::Error::new(error).context(format!("can't listen on unix:{}{remedy}", path.display()))
    })
}

/// Says whether an address could be bound, without binding it for anyone to connect to.
///
/// # Errors
/// As [`bind`]'s.
pub async fn probe(address: &ListenAddress) -> anyhow::Result<()> {
    match address {
        ListenAddress::Unix(path) => {
            left_over(path)?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !folder.is_dir() {
                bail!("can't listen on {address}: its folder is missing: make it, or choose another path");
            }
            Ok(())
        }
        ListenAddress::Tcp(host) => {
            let bound = async {
                let mut found = tokio::net::lookup_host((host.host.as_str(), host.port)).await?;
                let address = found.next().ok_or_else(|| io::Error::other("the name has no address"))?;
                let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                socket.set_reuseaddr(true)?;
                // Nobody gets through to a socket that doesn't listen.
                socket.bind(address)
            };
            bound.await.with_context(|| format!("can't listen on {address}"))
        }
    }
}

/// Removes a socket file that refuses connections: its daemon is gone.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    if left_over(path)? {
        std::fs::remove_file(path).with_context(|| format!("can't remove the left-over socket {}", path.display()))?;
    }
    Ok(())
}

/// Whether a socket file is there behind which nobody answers. Anything else that is there is an error.
fn left_over(path: &Path) -> anyhow::Result<bool> {
    let shown = path.display();
    let metadata = match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        other => other.with_context(|| format!("can't look at {shown}"))?,
    };
    if !metadata.file_type().is_socket() {
        bail!("can't listen on unix:{shown}: a file that is no socket is there: choose another path");
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            bail!("can't listen on unix:{shown}: another process serves it: stop that one, or choose another path")
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(error).with_context(|| format!("can't tell whether {shown} is in use")),
    }
}

impl SocketFile {
    /// Takes charge of the socket file at `path`.
    ///
    /// # Errors
    /// The file can't be looked at.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let metadata =
            path.symlink_metadata().with_context(|| format!("can't look at the socket {}", path.display()))?;
        Ok(Self { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = self.path.symlink_metadata().is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if !ours {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("can't remove the socket {}: {error}", self.path.display());
        }
    }
}

impl Listener {
    /// Waits for the next connection; gives it and the peer's address, for the log.
    ///
    /// # Errors
    /// The kernel's: out of descriptors or memory. The listener stays usable.
    pub async fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Self::Unix(listener, file) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), format!("unix:{}", file.path.display())))
            }
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
        }
    }

    /// The address that is bound; for TCP port 0 the port that the kernel chose.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Unix(_, file) => Ok(ListenAddress::Unix(file.path.clone())),
            Self::Tcp(listener) => listener
                .local_addr()
                .map(|address| ListenAddress::Tcp(HostPort { host: address.ip().to_string(), port: address.port() })),
        }
    }
}

impl Stream {
    /// Leaves tokio: the bare socket, for the engine.
    ///
    /// It is set to blocking, since io_uring answers EAGAIN on a non-blocking socket where it
    /// should wait for data.
    ///
    /// # Errors
    /// The kernel's.
    pub fn into_owned_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(stream) => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                Ok(stream.into())
            }
            Self::Tcp(stream) => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                Ok(stream.into())
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn bind_text(text: &str) -> Listener {
        let address: ListenAddress = text.parse().expect("a valid address");
        bind(&address).await.expect("binds")
    }

    #[tokio::test]
    async fn a_unix_socket_carries_bytes_and_its_file_goes_with_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("nbd");
        let listener = bind_text(&format!("unix:{}", path.display())).await;
        let mut client = UnixStream::connect(&path).await.expect("connects");
        let (mut stream, _) = listener.accept().await.expect("accepts");
        client.write_all(b"ping").await.expect("writes");
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.expect("reads");
        assert_eq!(&bytes, b"ping");
        drop(listener);
        assert!(!path.exists(), "the file is removed");
    }

    #[tokio::test]
    async fn a_tcp_stream_has_nodelay_and_becomes_a_blocking_descriptor() {
        let listener = bind_text("tcp:127.0.0.1:0").await;
        let ListenAddress::Tcp(address) = listener.local_address().expect("has an address") else {
            panic!("a TCP listener has a TCP address");
        };
        let connect = TcpStream::connect((address.host.as_str(), address.port));
        let (client, accepted) = tokio::join!(connect, listener.accept());
        let (stream, peer) = accepted.expect("accepts");
        assert!(peer.starts_with("127.0.0.1:"), "{peer}");
        let Stream::Tcp(tcp) = &stream else {
            panic!("a TCP listener gives TCP streams");
        };
        assert!(tcp.nodelay().expect("has the option"));
        let mut server = std::net::TcpStream::from(stream.into_owned_fd().expect("gives it"));
        let mut client = client.expect("connects").into_std().expect("leaves tokio");
        // On a non-blocking socket this read would fail at once, and the thread with it.
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4];
            server.read_exact(&mut bytes).map(|()| bytes)
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        client.write_all(b"data").expect("writes");
        let bytes = reader.join().expect("no panic").expect("the read waits");
        assert_eq!(&bytes, b"data");
    }

    #[tokio::test]
    async fn a_left_over_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("nbd");
        let left_over = std::os::unix::net::UnixListener::bind(&path).expect("binds");
        let error = bind_unix(&path, 0o666).expect_err("it is live");
        assert!(format!("{error:#}").contains("another process serves it"), "{error:#}");
        drop(left_over);
        assert!(path.exists(), "the file is left over");
        let _listener = bind_unix(&path, 0o666).expect("replaces it");
        UnixStream::connect(&path).await.expect("connects to the new one");
    }

    #[tokio::test]
    async fn a_foreign_file_is_kept_and_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").expect("writes");
        let error = format!("{:#}", bind_unix(&path, 0o666).expect_err("is refused"));
        assert!(error.contains("precious") && error.contains("no socket"), "{error}");
        assert_eq!(std::fs::read(&path).expect("reads"), b"data");
        let missing = dir.path().join("missing/nbd");
        let error = format!("{:#}", bind_unix(&missing, 0o666).expect_err("is refused"));
        assert!(error.contains("folder is missing"), "{error}");
    }

    #[tokio::test]
    async fn another_daemons_socket_is_not_removed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("nbd");
        let first = bind_text(&format!("unix:{}", path.display())).await;
        // Kept under another name, so that its inode can't be given to the second socket.
        std::fs::rename(&path, dir.path().join("moved")).expect("renames");
        let _second = bind_text(&format!("unix:{}", path.display())).await;
        drop(first);
        assert!(path.exists(), "the second's file is kept");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let listener = bind_text("tcp:127.0.0.1:0").await;
        let address = listener.local_address().expect("has an address");
        let error = format!("{:#}", bind(&address).await.expect_err("is in use"));
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
