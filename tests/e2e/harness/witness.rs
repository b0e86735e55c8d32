//! What a client sees while its server's destination comes and goes: one connection that writes, one that reads, one
//! request at a time, each noted with its time and its outcome.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Client, Endpoint, kind, pattern, wait_until};

/// What both connections ask for.
const LEN: usize = 4096;
/// Between an answer and the next request.
const REST: Duration = Duration::from_millis(3);

/// One request's answer.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub waited: Duration,
    /// The NBD error, 0 where it was done.
    pub error: u32,
}

#[derive(Default)]
struct Seen {
    answers: Vec<Answered>,
    /// When the request was sent that waits for its answer.
    waiting: Option<Instant>,
}

/// The two connections. They must not be lost while it watches.
pub struct Witness {
    stopping: Arc<AtomicBool>,
    writes: Arc<Mutex<Seen>>,
    reads: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    /// Writes and reads these bytes of an export, over and over again.
    pub fn start(endpoint: &Endpoint, export: &str, range: Range<u64>) -> Witness {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut spawn = |kind: u16| {
            let seen = Arc::new(Mutex::new(Seen::default()));
            let mut client = Client::go(endpoint, export).expect("open an export for a witness");
            let (stopping, into, range) = (Arc::clone(&stopping), Arc::clone(&seen), range.clone());
            threads.push(thread::spawn(move || watch(&mut client, kind, range, &into, &stopping)));
            seen
        };
        let (writes, reads) = (spawn(kind::WRITE), spawn(kind::READ));
        Witness { stopping, writes, reads, threads }
    }

    /// Waits until the write that is under way has waited for so long.
    #[track_caller]
    pub fn wait_for_a_wait(&self, limit: Duration) {
        wait_until(&format!("a write that waits for {limit:?}"), Duration::from_secs(60), || {
            lock(&self.writes).waiting.is_some_and(|sent| sent.elapsed() >= limit)
        });
    }

    /// Waits until so many more writes were answered, each with this error, one right after the other.
    #[track_caller]
    pub fn wait_for_writes(&self, more: usize, error: u32) {
        let before = lock(&self.writes).answers.len();
        wait_until(&format!("{more} writes answered with error {error}"), Duration::from_secs(60), || {
            let seen = lock(&self.writes);
            seen.answers[before..].iter().rev().take_while(|answer| answer.error == error).count() >= more
        });
    }

    /// Waits until so many more reads were answered while a write waits all the time.
    #[track_caller]
    pub fn wait_for_reads_beside_a_wait(&self, more: usize) {
        let since = lock(&self.writes).waiting.expect("a write that waits");
        let before = lock(&self.reads).answers.len();
        wait_until(&format!("{more} reads while a write waits"), Duration::from_secs(60), || {
            assert_eq!(lock(&self.writes).waiting, Some(since), "the write should wait");
            lock(&self.reads).answers.len() >= before + more
        });
    }

    /// Ends, and returns all writes and all reads.
    #[track_caller]
    pub fn stop(mut self) -> (Vec<Answered>, Vec<Answered>) {
        self.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a witness must not lose its connection");
        }
        let take = |seen: &Mutex<Seen>| std::mem::take(&mut lock(seen).answers);
        (take(&self.writes), take(&self.reads))
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn watch(client: &mut Client, kind: u16, range: Range<u64>, seen: &Mutex<Seen>, stopping: &AtomicBool) {
    client.stream.set_answer_limit(Duration::from_secs(90)).expect("set an answer limit");
    let payload = if kind == kind::WRITE { pattern(1, LEN) } else { Vec::new() };
    let mut offset = range.start;
    while !stopping.load(Ordering::Relaxed) {
        let sent = Instant::now();
        lock(seen).waiting = Some(sent);
        let error = client.call(0, kind, offset, LEN as u32, &payload).expect("an answer for a witness");
        if kind == kind::READ && error == 0 {
            std::io::Read::read_exact(&mut client.stream, &mut [0; LEN]).expect("the bytes of a read");
        }
        let mut seen = lock(seen);
        seen.waiting = None;
        seen.answers.push(Answered { waited: sent.elapsed(), error });
        drop(seen);
        offset += LEN as u64;
        if offset + LEN as u64 > range.end {
            offset = range.start;
        }
        thread::sleep(REST);
    }
}
