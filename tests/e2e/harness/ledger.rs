//! What a stamped workload wrote, what was answered, and whether a device or an image holds it.
//!
//! Every block that is written carries its volume, its number, a version that counts up per block, and a checksum.
//! The ledger remembers when each version was sent and answered, on one clock that counts events. From that follow
//! the two things that a copy of the data has to show after any crash:
//!
//! - *nothing answered is lost* (promise P1): a block holds the last version that had to survive, or a later sent one;
//! - *no gap* (promise P2): where a version is there, every write that was answered before that version was even
//!   sent is there as well, on all volumes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Client, Endpoint};

/// Bytes of a stamped block.
pub const BLOCK: usize = 4096;
const MAGIC: u64 = 0x7374_616d_7065_6421;
const NEVER: u64 = u64::MAX;

/// When one version of a block was sent and answered.
#[derive(Clone, Copy)]
struct Sent {
    sent: u64,
    answered: u64,
}

/// The record of a workload over one or more volumes.
pub struct Ledger {
    clock: AtomicU64,
    /// Writes answered before this time have to survive a crash.
    durable: AtomicU64,
    answered: AtomicU64,
    blocks_per_volume: usize,
    versions: Vec<Mutex<Vec<Sent>>>,
}

/// Something that blocks can be read from.
pub enum Image {
    File(File),
    Export(Box<Mutex<Client>>),
}

impl Image {
    pub fn file(path: &Path) -> Image {
        Image::File(File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display())))
    }

    pub fn export(endpoint: &Endpoint, name: &str) -> Image {
        let client = Client::go(endpoint, name).unwrap_or_else(|error| panic!("open export {name}: {error}"));
        Image::Export(Box::new(Mutex::new(client)))
    }

    fn read(&self, block: usize) -> Vec<u8> {
        let offset = (block * BLOCK) as u64;
        match self {
            Image::File(file) => {
                let mut bytes = vec![0; BLOCK];
                file.read_exact_at(&mut bytes, offset).expect("read a block of a file");
                bytes
            }
            Image::Export(client) => client.lock().unwrap().read(offset, BLOCK).expect("read a block of an export"),
        }
    }
}

impl Ledger {
    /// An empty ledger. With `answered_is_durable`, each answered write has to survive; without it, only what a
    /// completed flush covers.
    pub fn new(volumes: usize, blocks_per_volume: usize, answered_is_durable: bool) -> Ledger {
        Ledger {
            clock: AtomicU64::new(1),
            durable: AtomicU64::new(if answered_is_durable { NEVER } else { 0 }),
            answered: AtomicU64::new(0),
            blocks_per_volume,
            versions: (0..volumes * blocks_per_volume).map(|_| Mutex::default()).collect(),
        }
    }

    pub fn blocks_per_volume(&self) -> usize {
        self.blocks_per_volume
    }

    /// How many writes were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Makes the next version of a block, to be sent at once.
    pub fn next(&self, volume: usize, block: usize) -> Write {
        let mut versions = self.versions[volume * self.blocks_per_volume + block].lock().unwrap();
        versions.push(Sent { sent: self.tick(), answered: NEVER });
        let version = versions.len();
        Write { version, bytes: stamp(volume, block, version) }
    }

    /// Notes that a write was answered.
    pub fn note_answer(&self, volume: usize, block: usize, version: usize) {
        let mut versions = self.versions[volume * self.blocks_per_volume + block].lock().unwrap();
        versions[version - 1].answered = self.tick();
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// The time to keep while a flush is under way; see [`Ledger::note_flush`].
    pub fn flush_started(&self) -> u64 {
        self.tick()
    }

    /// Notes that a flush which was sent at `started` is complete.
    pub fn note_flush(&self, started: u64) {
        self.durable.fetch_max(started, Ordering::SeqCst);
    }

    /// Checks copies of all volumes after a crash, and forgets the answers to writes that the crash was allowed to
    /// lose, so that the workload can go on from what is there. Call it while nothing is being written.
    #[track_caller]
    pub fn settle(&self, what: &str, images: &[Image]) {
        for (versions, found) in self.versions.iter().zip(self.check(what, images)) {
            for write in &mut versions.lock().unwrap()[found..] {
                write.answered = NEVER;
            }
        }
    }

    /// Checks copies of all volumes, and returns the version that each block holds. Call it while nothing is being
    /// written.
    #[track_caller]
    pub fn check(&self, what: &str, images: &[Image]) -> Vec<usize> {
        let versions: Vec<Vec<Sent>> = self.versions.iter().map(|versions| versions.lock().unwrap().clone()).collect();
        assert_eq!(versions.len(), images.len() * self.blocks_per_volume, "one image for each volume");
        let found: Vec<usize> = (0..versions.len())
            .map(|at| {
                let (volume, block) = (at / self.blocks_per_volume, at % self.blocks_per_volume);
                let version = read_stamp(&images[volume].read(block), volume, block)
                    .unwrap_or_else(|why| panic!("{what}: volume {volume}, block {block}: {why}"));
                assert!(
                    version <= versions[at].len(),
                    "{what}: volume {volume}, block {block} holds version {version}, but only {} were sent",
                    versions[at].len()
                );
                version
            })
            .collect();
        let newest = (0..found.len()).filter(|&at| found[at] > 0).map(|at| versions[at][found[at] - 1].sent);
        let durable = self.durable.load(Ordering::SeqCst);
        let prefix = newest.max().unwrap_or(0);
        for (at, sent) in versions.iter().enumerate() {
            let (volume, block) = (at / self.blocks_per_volume, at % self.blocks_per_volume);
            let held_before =
                |time: u64| sent.iter().rposition(|write| write.answered < time).map_or(0, |last| last + 1);
            assert!(
                found[at] >= held_before(durable),
                "{what}: LOST: volume {volume}, block {block} holds version {}, but version {} was answered",
                found[at],
                held_before(durable)
            );
            assert!(
                found[at] >= held_before(prefix),
                "{what}: GAP: volume {volume}, block {block} holds version {}, but version {} was answered before a \
                 write that is there was sent",
                found[at],
                held_before(prefix)
            );
        }
        found
    }
}

/// One stamped write.
pub struct Write {
    pub version: usize,
    pub bytes: Vec<u8>,
}

fn stamp(volume: usize, block: usize, version: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    for word in [MAGIC, volume as u64, block as u64, version as u64] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let seed = (volume as u64) << 56 ^ (block as u64) << 28 ^ version as u64;
    bytes.extend_from_slice(&super::pattern(seed, BLOCK - 40));
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// The version that a block holds: 0 for one never written.
fn read_stamp(bytes: &[u8], volume: usize, block: usize) -> Result<usize, String> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(0);
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
    if word(0) != MAGIC || word(BLOCK / 8 - 1) != checksum(&bytes[..BLOCK - 8]) {
        return Err(format!("torn or foreign content, starting {:02x?}", &bytes[..32]));
    }
    if (word(1), word(2)) != (volume as u64, block as u64) {
        return Err(format!("holds volume {}, block {}", word(1), word(2)));
    }
    Ok(word(3) as usize)
}

/// FNV-1a over 64-bit words: independent of the program's own checksum.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(0xcbf2_9ce4_8422_2325, |sum, chunk| {
        (sum ^ u64::from_le_bytes(chunk.try_into().unwrap())).wrapping_mul(0x100_0000_01b3)
    })
}
