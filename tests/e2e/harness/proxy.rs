//! A TCP forwarder between source and destination: a slow link, one that delays, delivers in crumbs, falls silent,
//! closes one direction only, damages, or is cut in the middle of anything.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{Chance, free_port};

/// Pieces of data that wait for their time in each direction; what comes then stays in the sender's socket.
const PIECES_ON_THE_WAY: usize = 64;

/// A direction of the connections, named by who receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// The side that was connected to: the destination.
    Target,
    /// The side that connected: the source.
    Dialer,
}

#[derive(Default)]
struct Shared {
    /// Bytes a second in each direction of each connection; 0 is without limit.
    rate: AtomicU64,
    ended: AtomicBool,
    /// Which byte of the next piece that goes to the target is to be damaged, plus one; 0 is none.
    flip: AtomicUsize,
    latency_us: AtomicU64,
    jitter_us: AtomicU64,
    /// The largest crumb, in bytes, and how many bytes are still to be delivered so.
    crumb: AtomicUsize,
    crumbled: AtomicI64,
    /// How many bytes reach the target before all is cut; negative is without end.
    fuse: AtomicI64,
    silent: AtomicBool,
    /// Whether nobody is let through.
    closed: AtomicBool,
    /// Bytes that were taken from dialers.
    carried: AtomicU64,
    connections: Mutex<Vec<Arc<Connection>>>,
}

/// Both sockets of a forwarded connection, and which directions were closed by [`Proxy::close_one_way`].
struct Connection {
    dialer: TcpStream,
    target: TcpStream,
    closed_to_target: AtomicBool,
    closed_to_dialer: AtomicBool,
    over: AtomicBool,
}

impl Connection {
    fn ends(&self, toward: Toward) -> (&TcpStream, &TcpStream, &AtomicBool) {
        match toward {
            Toward::Target => (&self.dialer, &self.target, &self.closed_to_target),
            Toward::Dialer => (&self.target, &self.dialer, &self.closed_to_dialer),
        }
    }

    fn cut(&self) {
        self.over.store(true, Ordering::Relaxed);
        // One that its ends closed already is cut well enough.
        let _ = self.dialer.shutdown(Shutdown::Both);
        let _ = self.target.shutdown(Shutdown::Both);
    }
}

/// A listener on loopback that forwards to another one.
pub struct Proxy {
    /// Where to connect instead of the real address.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts forwarding to `target`, at most `rate` bytes a second (0: as fast as it goes).
    pub fn start(target: SocketAddr, rate: u64) -> Proxy {
        let address = free_port();
        let listener = TcpListener::bind(address).expect("listen for the proxy");
        listener.set_nonblocking(true).expect("make the proxy's listener non-blocking");
        let shared = Arc::new(Shared { rate: AtomicU64::new(rate), fuse: AtomicI64::new(-1), ..Shared::default() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            while !accepting.ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => connect(&accepting, client, target),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(2)),
                    Err(error) => panic!("the proxy can't accept: {error}"),
                }
            }
        });
        Proxy { address, shared }
    }

    /// Changes the rate.
    pub fn set_rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }

    /// Delays everything, in both directions, by `latency` and up to `jitter` more. Order is kept.
    pub fn set_delay(&self, latency: Duration, jitter: Duration) {
        self.shared.latency_us.store(latency.as_micros() as u64, Ordering::Relaxed);
        self.shared.jitter_us.store(jitter.as_micros() as u64, Ordering::Relaxed);
    }

    /// Delivers the next `bytes` bytes in crumbs of at most `crumb` bytes.
    pub fn crumble(&self, crumb: usize, bytes: usize) {
        self.shared.crumb.store(crumb, Ordering::Relaxed);
        self.shared.crumbled.store(bytes as i64, Ordering::Relaxed);
    }

    /// Delivers nothing any more, and closes nothing, until told otherwise.
    pub fn set_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    /// Damages one bit of the next piece of data that goes to the target, around this byte of it.
    pub fn flip_a_bit(&self, at: usize) {
        self.shared.flip.store(at + 1, Ordering::Relaxed);
    }

    /// Cuts all connections wherever they are; new ones are served.
    pub fn cut(&self) {
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            connection.cut();
        }
    }

    /// Cuts all connections and lets none be made, as long as it is closed.
    pub fn set_open(&self, open: bool) {
        self.shared.closed.store(!open, Ordering::SeqCst);
        if !open {
            self.cut();
        }
    }

    /// Bytes that went towards the target so far, over all connections.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }

    /// Cuts the connection that brings the target its `bytes`th byte from now on, behind that byte.
    pub fn cut_after(&self, bytes: usize) {
        self.shared.fuse.store(bytes as i64, Ordering::Relaxed);
    }

    /// Closes one direction of all connections: what is sent into it vanishes. The other direction goes on.
    pub fn close_one_way(&self, toward: Toward) {
        for connection in &*self.shared.connections.lock().unwrap() {
            let (_, to, closed) = connection.ends(toward);
            closed.store(true, Ordering::Relaxed);
            // One that its ends closed already is closed well enough.
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    /// Takes back whatever makes the link slow, silent, or about to be cut.
    pub fn calm(&self) {
        self.set_rate(0);
        self.set_delay(Duration::ZERO, Duration::ZERO);
        self.crumble(0, 0);
        self.set_silent(false);
        self.shared.fuse.store(-1, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.calm();
        self.cut();
    }
}

fn connect(shared: &Arc<Shared>, dialer: TcpStream, target: SocketAddr) {
    if shared.closed.load(Ordering::SeqCst) {
        return;
    }
    // A destination that is down looks to the source like a connection that closes at once.
    let Ok(target) = TcpStream::connect(target) else {
        return;
    };
    dialer.set_nonblocking(false).expect("make a proxied stream blocking");
    for stream in [&dialer, &target] {
        stream.set_nodelay(true).expect("set TCP_NODELAY");
    }
    let connection = Arc::new(Connection {
        dialer,
        target,
        closed_to_target: AtomicBool::new(false),
        closed_to_dialer: AtomicBool::new(false),
        over: AtomicBool::new(false),
    });
    let mut connections = shared.connections.lock().unwrap();
    connections.retain(|connection| !connection.over.load(Ordering::Relaxed));
    connections.push(Arc::clone(&connection));
    if shared.closed.load(Ordering::SeqCst) {
        connection.cut();
    }
    drop(connections);
    for toward in [Toward::Target, Toward::Dialer] {
        let (pieces, due) = sync_channel(PIECES_ON_THE_WAY);
        let (reading, reader) = (Arc::clone(shared), Arc::clone(&connection));
        thread::spawn(move || take(&reading, &reader, toward, &pieces));
        let (writing, writer) = (Arc::clone(shared), Arc::clone(&connection));
        thread::spawn(move || {
            deliver(&writing, &writer, toward, &due);
            writer.cut();
        });
    }
}

/// Reads one direction, and gives each piece the time at which it is to arrive.
fn take(shared: &Shared, connection: &Connection, toward: Toward, pieces: &SyncSender<(Instant, Vec<u8>)>) {
    let (mut from, _, _) = connection.ends(toward);
    let mut chance = Chance::new(&[u64::from(from.peer_addr().map_or(0, |address| address.port()))]);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let started = Instant::now();
        let len = match from.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(len) => len,
        };
        if toward == Toward::Target {
            shared.carried.fetch_add(len as u64, Ordering::Relaxed);
        }
        let flip = if toward == Toward::Target { shared.flip.swap(0, Ordering::Relaxed) } else { 0 };
        if flip > 0 {
            buffer[(flip - 1) % len] ^= 0x10;
        }
        let jitter = chance.below(shared.jitter_us.load(Ordering::Relaxed) + 1);
        let delay = Duration::from_micros(shared.latency_us.load(Ordering::Relaxed) + jitter);
        if pieces.send((Instant::now() + delay, buffer[..len].to_vec())).is_err() {
            return;
        }
        let rate = shared.rate.load(Ordering::Relaxed);
        if rate > 0 {
            // Pacing, not waiting for anything: this is what a slow link does.
            let due = Duration::from_secs_f64(len as f64 / rate as f64);
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
}

/// Writes one direction until its end, or until it can't be written any more.
fn deliver(shared: &Shared, connection: &Connection, toward: Toward, due: &Receiver<(Instant, Vec<u8>)>) {
    let (_, mut to, closed) = connection.ends(toward);
    let mut chance = Chance::new(&[u64::from(to.peer_addr().map_or(0, |address| address.port()))]);
    for (time, bytes) in due {
        thread::sleep(time.saturating_duration_since(Instant::now()));
        while shared.silent.load(Ordering::Relaxed) && !connection.over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        let mut rest = &bytes[..];
        if toward == Toward::Target && burns_down(&shared.fuse, rest.len()) {
            let burnt = shared.fuse.swap(-1, Ordering::Relaxed);
            rest = &rest[..(rest.len() as i64 + burnt).clamp(0, rest.len() as i64) as usize];
            let _ = to.write_all(rest);
            return;
        }
        while !rest.is_empty() {
            let mut len = rest.len();
            let crumb = shared.crumb.load(Ordering::Relaxed);
            if crumb > 0 && shared.crumbled.load(Ordering::Relaxed) > 0 {
                len = len.min(1 + chance.below(crumb as u64) as usize);
                shared.crumbled.fetch_sub(len as i64, Ordering::Relaxed);
                // Else the crumbs would arrive as one.
                thread::sleep(Duration::from_micros(chance.below(200)));
            }
            if to.write_all(&rest[..len]).is_err() && !closed.load(Ordering::Relaxed) {
                return;
            }
            rest = &rest[len..];
        }
    }
}

/// Takes a piece's length off a fuse that burns; whether it reached its end in this piece. It is below zero then, by
/// what the piece is too long.
fn burns_down(fuse: &AtomicI64, len: usize) -> bool {
    let before = fuse.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left >= 0).then(|| left - len as i64));
    before.is_ok_and(|left| left < len as i64)
}
