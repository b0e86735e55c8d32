//! The floor of a mirrored 4 KiB write: the same messages through the same kinds of sockets, and nothing else.
//!
//! `pingpong SECONDS` is the client and starts two more processes, a source and a destination. A request with 4 KiB goes
//! to the source over a Unix socket, from there as a frame (a header block and the payload) to the destination over TCP
//! on the loopback interface; a report comes back, and the client gets its reply. All three use blocking sockets, one
//! system call a message: nothing is parsed, checked or stored. Prints a line of JSON: what remains is what a mirror
//! between processes costs when its storage costs nothing.

use nbd_mirror::format::nbd::{REQUEST_BYTES, SIMPLE_REPLY_BYTES};
use nbd_mirror::format::wire::REPORT_BYTES;
use nbd_mirror::limits::BLOCK_BYTES;
use std::env;
use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const REQUEST: usize = REQUEST_BYTES + BLOCK_BYTES;
const FRAME: usize = BLOCK_BYTES + BLOCK_BYTES;
/// Not counted: until caches, sockets and processes have settled.
const WARM_UP: Duration = Duration::from_millis(200);

fn main() -> io::Result<()> {
    let usage = || Error::new(ErrorKind::InvalidInput, "usage: pingpong SECONDS");
    match env::args().nth(1).ok_or_else(usage)?.as_str() {
        "source" => source(),
        "destination" => destination(),
        seconds => client(Duration::try_from_secs_f64(seconds.parse().map_err(|_| usage())?).map_err(|_| usage())?),
    }
}

/// Asks again and again, and prints what it took.
fn client(time: Duration) -> io::Result<()> {
    let (mut near, far) = UnixStream::pair()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sending = TcpStream::connect(listener.local_addr()?)?;
    let (receiving, _) = listener.accept()?;
    for socket in [&sending, &receiving] {
        socket.set_nodelay(true)?;
    }
    let mut children = [
        start("source", far.into(), OwnedFd::from(sending).into())?,
        start("destination", OwnedFd::from(receiving), Stdio::null())?,
    ];
    let request = [0x55; REQUEST];
    let mut reply = [0; SIMPLE_REPLY_BYTES];
    let mut ask = |until: Instant, taken: &mut Vec<Duration>| -> io::Result<()> {
        let mut before = Instant::now();
        while taken.is_empty() || before < until {
            near.write_all(&request)?;
            near.read_exact(&mut reply)?;
            let now = Instant::now();
            taken.push(now - before);
            before = now;
        }
        Ok(())
    };
    ask(Instant::now() + WARM_UP, &mut Vec::new())?;
    let mut taken = Vec::new();
    let start = Instant::now();
    ask(start + time, &mut taken)?;
    let runtime = start.elapsed().as_secs_f64();
    // Both end when their socket does.
    drop(near);
    for child in &mut children {
        child.wait()?;
    }
    taken.sort_unstable();
    let us = |at: usize| taken[at].as_secs_f64() * 1e6;
    let (requests, mean_us) = (taken.len(), runtime * 1e6 / taken.len() as f64);
    println!(
        r#"{{"requests":{requests},"runtime_s":{runtime:.3},"iops":{:.1},"mean_us":{mean_us:.2},"p50_us":{:.2},"p99_us":{:.2}}}"#,
        requests as f64 / runtime,
        us(requests / 2),
        us(requests * 99 / 100),
    );
    Ok(())
}

/// Passes each request on as a frame, and the destination's report back as a reply.
fn source() -> io::Result<()> {
    let (mut client, mut peer) = (UnixStream::from(handed(&io::stdin())?), TcpStream::from(handed(&io::stdout())?));
    let (mut request, mut report) = ([0; REQUEST], [0; REPORT_BYTES]);
    while more(&mut client, &mut request)? {
        peer.write_all(&[0x55; FRAME])?;
        peer.read_exact(&mut report)?;
        client.write_all(&[0x55; SIMPLE_REPLY_BYTES])?;
    }
    Ok(())
}

/// Reports each frame.
fn destination() -> io::Result<()> {
    let mut peer = TcpStream::from(handed(&io::stdin())?);
    let mut frame = [0; FRAME];
    while more(&mut peer, &mut frame)? {
        peer.write_all(&[0x55; REPORT_BYTES])?;
    }
    Ok(())
}

/// Starts this program as one of the others, with its sockets.
fn start(role: &str, input: OwnedFd, output: Stdio) -> io::Result<Child> {
    Command::new(env::current_exe()?).arg(role).stdin(input).stdout(output).spawn()
}

/// The socket that a process was given as its input or output.
fn handed(stream: &impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

/// Reads a whole message; false at the stream's end.
fn more(from: &mut impl Read, message: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(message) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| true),
    }
}
