//! A stamped workload: pipelined writers that reconnect until they are told to stop.
//!
//! What a writer asks for is decided by the seed of its [`Habits`]; when, by the answers that it gets.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::ledger::BLOCK;
use super::{Chance, Client, Endpoint, Ledger, flag, kind, wait_until};

/// Requests in flight on each connection.
const DEPTH: usize = 16;
/// Requests from one flush to the next.
const REQUESTS_A_FLUSH: u64 = 40;

/// What writers do.
#[derive(Clone, Copy)]
pub struct Habits {
    pub seed: u64,
    /// Blocks of the largest write.
    pub largest: usize,
    /// Whether there are reads, trims, write-zeroes and writes with FUA among the writes.
    pub mixed: bool,
    /// How long each connection rests after each answer.
    pub rest: Duration,
}

impl Habits {
    /// Writes of one block, and flushes.
    pub const PLAIN: Habits = Habits { seed: 0, largest: 1, mixed: false, rest: Duration::ZERO };
    /// The same, but no disk or link is busy with it.
    pub const GENTLE: Habits = Habits { rest: Duration::from_millis(4), ..Habits::PLAIN };
}

/// Running writers. Dropping the load without [`Load::stop`] leaves them to end with their daemons.
pub struct Load {
    ledger: Arc<Ledger>,
    stopping: Arc<AtomicBool>,
    failure: Arc<Mutex<Option<io::Error>>>,
    longest_us: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `writers` connections for each volume, on disjoint blocks: two writes of one block that are in flight
    /// together would have no order that a test could rely on.
    pub fn start(ledger: &Arc<Ledger>, volumes: &[(Endpoint, String)], writers: usize) -> Load {
        Load::with(ledger, volumes, writers, Habits::PLAIN)
    }

    /// Starts writers with these habits.
    pub fn with(ledger: &Arc<Ledger>, volumes: &[(Endpoint, String)], writers: usize, habits: Habits) -> Load {
        let stopping = Arc::new(AtomicBool::new(false));
        let failure = Arc::new(Mutex::new(None));
        let longest_us = Arc::new(AtomicU64::new(0));
        let spawn = |volume: usize, lane: usize| {
            let (endpoint, export) = volumes[volume].clone();
            let (ledger, stopping, failure) = (Arc::clone(ledger), Arc::clone(&stopping), Arc::clone(&failure));
            let longest_us = Arc::clone(&longest_us);
            thread::spawn(move || {
                let chance = Chance::new(&[habits.seed, volume as u64, lane as u64]);
                let blocks = ledger.blocks_per_volume() / writers;
                let lane = lane * blocks..(lane + 1) * blocks;
                let mut writer = Writer { ledger, volume, lane, habits, chance, requests: 0, longest_us };
                while !stopping.load(Ordering::Relaxed) {
                    // A server that is down or going down is what these tests are about: dial again. An error
                    // that the server itself replied is not, and
                    // neither is one that keeps the connection and says nothing: what it still holds of this writer
                    // would have no order with what is sent over another connection.
                    match writer.session(&endpoint, &export, &stopping) {
                        Err(error) if is_failure(&error) => {
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
        Load { ledger: Arc::clone(ledger), stopping, failure, longest_us, writers }
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

    /// The longest that a write, a flush or a read had to wait for its answer so far.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    #[track_caller]
    fn assert_no_failure(&self) {
        if let Some(error) = &*self.failure.lock().unwrap() {
            panic!("a writer got an error, or no answer in time: {error}");
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

fn is_failure(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

enum Request {
    /// Blocks from the first one on, with the version of each.
    Write {
        first: usize,
        versions: Vec<usize>,
    },
    Read {
        block: usize,
        least: usize,
    },
    Flush {
        started: u64,
    },
}

struct Writer {
    ledger: Arc<Ledger>,
    volume: usize,
    /// The blocks that this writer alone writes.
    lane: Range<usize>,
    habits: Habits,
    chance: Chance,
    requests: u64,
    longest_us: Arc<AtomicU64>,
}

impl Writer {
    /// One connection, from its handshake to its loss or the end of the load.
    fn session(&mut self, endpoint: &Endpoint, export: &str, stopping: &AtomicBool) -> io::Result<()> {
        let mut client = Client::go(endpoint, export)?;
        let connection = self.ledger.connection();
        let mut in_flight: HashMap<u64, Request> = HashMap::new();
        let mut sent = HashMap::new();
        loop {
            while in_flight.len() < DEPTH && !stopping.load(Ordering::Relaxed) {
                let (cookie, request) = self.submit(&mut client, connection, &in_flight)?;
                in_flight.insert(cookie, request);
                sent.insert(cookie, Instant::now());
            }
            if in_flight.is_empty() {
                client.disconnect();
                return Ok(());
            }
            let (cookie, error) = client.answer()?;
            if let Some(sent) = sent.remove(&cookie) {
                self.longest_us.fetch_max(sent.elapsed().as_micros() as u64, Ordering::Relaxed);
            }
            if error != 0 {
                return Err(io::Error::other(format!("NBD error {error}")));
            }
            match in_flight.remove(&cookie) {
                Some(Request::Write { first, versions }) => {
                    for (at, version) in versions.into_iter().enumerate() {
                        self.ledger.note_answer(self.volume, first + at, version);
                    }
                }
                Some(Request::Read { block, least }) => {
                    let mut bytes = vec![0; BLOCK];
                    client.stream.read_exact(&mut bytes)?;
                    let judged = self.ledger.check_read(self.volume, block, least, &bytes);
                    judged.map_err(|why| io::Error::other(format!("volume {}, block {block}: {why}", self.volume)))?;
                }
                Some(Request::Flush { started }) => self.ledger.note_flush(started),
                None => {
                    return Err(io::Error::other(format!("an answer to cookie {cookie}, which is not in flight")));
                }
            }
            thread::sleep(self.habits.rest);
        }
    }

    fn submit(
        &mut self,
        client: &mut Client,
        connection: u64,
        in_flight: &HashMap<u64, Request>,
    ) -> io::Result<(u64, Request)> {
        self.requests += 1;
        if self.requests.is_multiple_of(REQUESTS_A_FLUSH) {
            let started = self.ledger.flush_started();
            let cookie = client.send(0, kind::FLUSH, 0, 0, &[])?;
            return Ok((cookie, Request::Flush { started }));
        }
        if self.habits.mixed && self.chance.one_in(8) {
            let block = self.pick(1);
            let least = self.ledger.answered_version(self.volume, block);
            let cookie = client.send(0, kind::READ, (block * BLOCK) as u64, BLOCK as u32, &[])?;
            return Ok((cookie, Request::Read { block, least }));
        }
        let magnitude = self.chance.below(u64::from(self.habits.largest.ilog2()) + 1);
        let mut blocks = 1 + self.chance.below(1 << magnitude) as usize;
        let busy = |first: usize, blocks: usize| {
            in_flight.values().any(|request| {
                matches!(request, Request::Write { first: other, versions }
                    if *other < first + blocks && first < other + versions.len())
            })
        };
        let mut first = self.pick(blocks);
        while busy(first, blocks) {
            blocks = blocks.div_ceil(2);
            first = self.pick(blocks);
        }
        let (offset, len) = ((first * BLOCK) as u64, (blocks * BLOCK) as u32);
        if self.habits.mixed && self.chance.one_in(16) {
            let zero = |block| self.ledger.next_zeros_over(connection, self.volume, block);
            let versions = (first..first + blocks).map(zero).collect();
            let kind = if self.chance.one_in(2) { kind::TRIM } else { kind::WRITE_ZEROES };
            let cookie = client.send(0, kind, offset, len, &[])?;
            return Ok((cookie, Request::Write { first, versions }));
        }
        let (mut versions, mut payload) = (Vec::with_capacity(blocks), Vec::with_capacity(blocks * BLOCK));
        for block in first..first + blocks {
            let write = self.ledger.next_over(connection, self.volume, block);
            versions.push(write.version);
            payload.extend_from_slice(&write.bytes);
        }
        let flags = if self.habits.mixed && self.chance.one_in(16) { flag::FUA } else { 0 };
        let cookie = client.send(flags, kind::WRITE, offset, len, &payload)?;
        Ok((cookie, Request::Write { first, versions }))
    }

    /// Neighbouring blocks of this lane; some come up far more often than others, as real workloads have it.
    fn pick(&mut self, blocks: usize) -> usize {
        let all = self.lane.len();
        let range = if self.chance.one_in(4) { all } else { (all / 8).max(DEPTH * 2) };
        let first = self.lane.start + self.chance.below(range as u64) as usize;
        first.min(self.lane.end - blocks)
    }
}
