//! A stamped workload: pipelined writers that reconnect until they are told to stop.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::ledger::BLOCK;
use super::{Client, Endpoint, Ledger, kind, wait_until};

/// Requests in flight on each connection.
const DEPTH: usize = 16;
/// Writes between two flushes.
const WRITES_A_FLUSH: u64 = 40;

/// Running writers. Dropping the load without [`Load::stop`] leaves them to end with their daemons.
pub struct Load {
    ledger: Arc<Ledger>,
    stopping: Arc<AtomicBool>,
    failure: Arc<Mutex<Option<io::Error>>>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `writers` connections for each volume, on disjoint blocks: two writes of one block that are in flight
    /// together would have no order that a test could rely on.
    pub fn start(ledger: &Arc<Ledger>, volumes: &[(Endpoint, String)], writers: usize) -> Load {
        let stopping = Arc::new(AtomicBool::new(false));
        let failure = Arc::new(Mutex::new(None));
        let spawn = |volume: usize, lane: usize| {
            let (endpoint, export) = volumes[volume].clone();
            let (ledger, stopping, failure) = (Arc::clone(ledger), Arc::clone(&stopping), Arc::clone(&failure));
            thread::spawn(move || {
                let mut writer = Writer { ledger, volume, lane, lanes: writers, turn: 0, writes: 0 };
                while !stopping.load(Ordering::Relaxed) {
                    // A server that is down or going down is what these tests are about: dial again. An error
                    // that the server itself replied is not.
                    match writer.session(&endpoint, &export, &stopping) {
                        Err(error) if error.kind() == io::ErrorKind::Other => {
                            *failure.lock().unwrap() = Some(error);
                            return;
                        }
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                        Ok(()) => {}
                    }
                }
            })
        };
        let handles = (0..volumes.len()).flat_map(|volume| (0..writers).map(move |lane| (volume, lane)));
        let writers = handles.map(|(volume, lane)| spawn(volume, lane)).collect();
        Load { ledger: Arc::clone(ledger), stopping, failure, writers }
    }

    /// Waits until `more` further writes were answered.
    #[track_caller]
    pub fn wait_for_answers(&self, more: u64) {
        let goal = self.ledger.answered() + more;
        wait_until(&format!("{more} more answered writes"), Duration::from_secs(30), || {
            self.assert_no_failure();
            self.ledger.answered() >= goal
        });
    }

    #[track_caller]
    fn assert_no_failure(&self) {
        if let Some(error) = &*self.failure.lock().unwrap() {
            panic!("a writer got an error: {error}");
        }
    }

    /// Stops the writers; each waits for the answers to what it has sent, or for its connection's end.
    #[track_caller]
    pub fn stop(mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer.join().expect("a writer must not panic");
        }
        self.assert_no_failure();
    }
}

enum Request {
    Write { block: usize, version: usize },
    Flush { started: u64 },
}

struct Writer {
    ledger: Arc<Ledger>,
    volume: usize,
    lane: usize,
    lanes: usize,
    turn: u64,
    writes: u64,
}

impl Writer {
    /// One connection, from its handshake to its loss or the end of the load.
    fn session(&mut self, endpoint: &Endpoint, export: &str, stopping: &AtomicBool) -> io::Result<()> {
        let mut client = Client::go(endpoint, export)?;
        let mut in_flight: HashMap<u64, Request> = HashMap::new();
        loop {
            while in_flight.len() < DEPTH && !stopping.load(Ordering::Relaxed) {
                let (cookie, request) = self.submit(&mut client, &in_flight)?;
                in_flight.insert(cookie, request);
            }
            if in_flight.is_empty() {
                client.disconnect();
                return Ok(());
            }
            let (cookie, error) = client.answer()?;
            if error != 0 {
                return Err(io::Error::other(format!("NBD error {error}")));
            }
            match in_flight.remove(&cookie) {
                Some(Request::Write { block, version }) => self.ledger.note_answer(self.volume, block, version),
                Some(Request::Flush { started }) => self.ledger.note_flush(started),
                None => {
                    return Err(io::Error::other(format!("an answer to cookie {cookie}, which is not in flight")));
                }
            }
        }
    }

    fn submit(&mut self, client: &mut Client, in_flight: &HashMap<u64, Request>) -> io::Result<(u64, Request)> {
        self.writes += 1;
        if self.writes.is_multiple_of(WRITES_A_FLUSH) {
            let started = self.ledger.flush_started();
            let cookie = client.send(0, kind::FLUSH, 0, 0, &[])?;
            return Ok((cookie, Request::Flush { started }));
        }
        let busy = |block: usize| {
            in_flight.values().any(|request| matches!(request, Request::Write { block: other, .. } if *other == block))
        };
        let mut block = self.pick();
        while busy(block) {
            block = self.pick();
        }
        let write = self.ledger.next(self.volume, block);
        let offset = (block * BLOCK) as u64;
        let cookie = client.send(0, kind::WRITE, offset, BLOCK as u32, &write.bytes)?;
        Ok((cookie, Request::Write { block, version: write.version }))
    }

    /// A block of this lane; some come up far more often than others, as real workloads have it.
    fn pick(&mut self) -> usize {
        self.turn = self.turn.wrapping_add(1);
        let mut hash = (self.turn ^ (self.lane as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
        let per_lane = self.ledger.blocks_per_volume() / self.lanes;
        let range = if hash & 3 == 0 { per_lane } else { (per_lane / 8).max(DEPTH * 2) };
        ((hash >> 8) as usize % range) * self.lanes + self.lane
    }
}
