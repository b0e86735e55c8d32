//! A TCP forwarder between source and destination: a slow link, and one that can be cut.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::free_port;

#[derive(Default)]
struct Shared {
    /// Bytes a second in each direction of each connection; 0 is without limit.
    rate: AtomicU64,
    ended: AtomicBool,
    /// Which byte of the next piece that goes to the target is to be damaged, plus one; 0 is none.
    flip: AtomicUsize,
    connections: Mutex<Vec<TcpStream>>,
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
        let shared = Arc::new(Shared { rate: AtomicU64::new(rate), ..Shared::default() });
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

    /// Damages one bit of the next piece of data that goes to the target, around this byte of it.
    pub fn flip_a_bit(&self, at: usize) {
        self.shared.flip.store(at + 1, Ordering::Relaxed);
    }

    /// Cuts all connections wherever they are; new ones are served.
    pub fn cut(&self) {
        for stream in self.shared.connections.lock().unwrap().drain(..) {
            // One that its ends closed already is cut well enough.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.cut();
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream, target: SocketAddr) {
    // A destination that is down looks to the source like a connection that closes at once.
    let Ok(server) = TcpStream::connect(target) else {
        return;
    };
    client.set_nonblocking(false).expect("make a proxied stream blocking");
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("set TCP_NODELAY");
        shared.connections.lock().unwrap().push(stream.try_clone().expect("clone a stream"));
    }
    let back = (server.try_clone().expect("clone a stream"), client.try_clone().expect("clone a stream"));
    for (from, to, damages) in [(client, server, true), (back.0, back.1, false)] {
        let shared = Arc::clone(shared);
        thread::spawn(move || forward(&shared, from, to, damages));
    }
}

fn forward(shared: &Shared, mut from: TcpStream, mut to: TcpStream, damages: bool) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let started = Instant::now();
        let len = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(len) => len,
        };
        let flip = if damages { shared.flip.swap(0, Ordering::Relaxed) } else { 0 };
        if flip > 0 {
            buffer[(flip - 1) % len] ^= 0x10;
        }
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
        let rate = shared.rate.load(Ordering::Relaxed);
        if rate > 0 {
            // Pacing, not waiting for anything: this is what a slow link does.
            let due = Duration::from_secs_f64(len as f64 / rate as f64);
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
