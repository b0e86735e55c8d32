//! What a stamped workload wrote, what was answered, and whether a device or an image holds it.
//!
//! Every block that is written carries its volume, its number, a version that counts up per block, and a checksum;
//! a version may be zeros instead. The ledger, which lies in no process that is killed, remembers when each version
//! was sent and answered, on one clock that counts events over all volumes. From that follow the things that a copy
//! of the data has to show after any crash:
//!
//! - *nothing answered is lost* (promise P1): a block holds the last version that had to survive, or a later sent one;
//! - *no gap* (promise P2): where a version is there, every write that was answered before that version was even
//!   sent is there as well, on all volumes;
//! - *no overtaking* (P2 again): a source takes the writes of one connection in the order in which they are sent; so
//!   where one is there, those before it are, answered or not. Besides these two orders, nobody outside knows of any;
//! - *nothing comes back*: what was seen to be lost after a crash ([`Ledger::settle`]) stays so.
//!
//! Zeros don't say which version they are. They pass for the oldest one that breaks no rule: the rules get weaker by
//! that, and never wrong.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::{Client, Endpoint};

/// Bytes of a stamped block.
pub const BLOCK: usize = 4096;
const MAGIC: u64 = 0x7374_616d_7065_6421;
const NEVER: u64 = u64::MAX;

/// When one version of a block was sent and answered, and what is known of it besides.
#[derive(Clone, Copy)]
struct Sent {
    connection: u64,
    sent: u64,
    answered: u64,
    zeros: bool,
    /// A crash took it, as it might: it must not be seen any more.
    gone: bool,
}

/// What a block was found to hold.
#[derive(Clone, Copy)]
enum Held {
    Zeros,
    Version(usize),
}

/// Bytes of one read of a check.
const CHUNK: usize = 1 << 20;

/// The record of a workload over one or more volumes.
pub struct Ledger {
    clock: AtomicU64,
    connections: AtomicU64,
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

    fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        match self {
            Image::File(file) => {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, offset as u64).expect("read blocks of a file");
                bytes
            }
            Image::Export(client) => client.lock().unwrap().read(offset as u64, len).expect("read blocks of an export"),
        }
    }
}

/// The last version that was answered before a time; 0 where there is none.
fn answered_before(versions: &[Sent], time: u64) -> usize {
    versions.iter().rposition(|write| write.answered < time).map_or(0, |last| last + 1)
}

/// The oldest version from `least` on whose content is zeros; version 0 is the block that was never written.
fn zeros_from(versions: &[Sent], least: usize) -> Option<usize> {
    let zeros = |version: usize| version == 0 || (versions[version - 1].zeros && !versions[version - 1].gone);
    (least..=versions.len()).find(|&version| zeros(version))
}

impl Ledger {
    /// An empty ledger. With `answered_is_durable`, each answered write has to survive; without it, only what a
    /// completed flush covers.
    pub fn new(volumes: usize, blocks_per_volume: usize, answered_is_durable: bool) -> Ledger {
        Ledger {
            clock: AtomicU64::new(1),
            connections: AtomicU64::new(0),
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

    /// The time now, on the ledger's clock: what was answered before this call was answered before it.
    pub fn now(&self) -> u64 {
        self.tick()
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn versions(&self, volume: usize, block: usize) -> MutexGuard<'_, Vec<Sent>> {
        self.versions[volume * self.blocks_per_volume + block].lock().unwrap()
    }

    /// A number for a new connection.
    pub fn connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes the next version of a block, to be sent at once over a connection of its own.
    pub fn next(&self, volume: usize, block: usize) -> Write {
        self.next_over(self.connection(), volume, block)
    }

    /// Makes the next version of a block, to be sent at once over a connection.
    pub fn next_over(&self, connection: u64, volume: usize, block: usize) -> Write {
        let version = self.send(connection, volume, block, false);
        Write { version, bytes: stamp(volume, block, version) }
    }

    /// Makes zeros the next version of a block, to be sent at once over a connection; returns its number.
    pub fn next_zeros_over(&self, connection: u64, volume: usize, block: usize) -> usize {
        self.send(connection, volume, block, true)
    }

    fn send(&self, connection: u64, volume: usize, block: usize, zeros: bool) -> usize {
        let mut versions = self.versions(volume, block);
        versions.push(Sent { connection, sent: self.tick(), answered: NEVER, zeros, gone: false });
        versions.len()
    }

    /// The version that a read of this block that is sent now has to see at least.
    pub fn answered_version(&self, volume: usize, block: usize) -> usize {
        answered_before(&self.versions(volume, block), NEVER)
    }

    /// Judges what a read of one block returned while others wrote; `least` was taken when it was sent.
    pub fn check_read(&self, volume: usize, block: usize, least: usize, bytes: &[u8]) -> Result<(), String> {
        let held = read_stamp(bytes, volume, block)?;
        let versions = self.versions(volume, block);
        let wrong = match held {
            Held::Zeros => zeros_from(&versions, least).is_none(),
            Held::Version(version) => !(least..=versions.len()).contains(&version) || versions[version - 1].gone,
        };
        let found = if let Held::Version(version) = held { version.to_string() } else { "zeros".to_owned() };
        if wrong { Err(format!("a read saw {found}, but version {least} was answered before it")) } else { Ok(()) }
    }

    /// Notes that a write was answered.
    pub fn note_answer(&self, volume: usize, block: usize, version: usize) {
        self.versions(volume, block)[version - 1].answered = self.tick();
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

    /// Checks what the server of the volumes shows after a crash, and takes it for the truth from now on: what was
    /// seen has to stay, what wasn't may not come back, and the workload can go on from there. Call it while nothing
    /// is being written.
    #[track_caller]
    pub fn settle(&self, what: &str, images: &[Image]) {
        self.settle_as_of(NEVER, what, images);
    }

    /// The same for a copy that may lack what was answered from `time` on, as one does that was left alone since.
    #[track_caller]
    pub fn settle_as_of(&self, time: u64, what: &str, images: &[Image]) {
        for (versions, found) in self.versions.iter().zip(self.check_as_of(time, what, images)) {
            let mut versions = versions.lock().unwrap();
            for write in &mut versions[found..] {
                write.answered = NEVER;
                write.gone = true;
            }
            if let Some(write) = found.checked_sub(1).map(|at| &mut versions[at])
                && write.answered == NEVER
            {
                write.answered = self.tick();
            }
        }
    }

    /// Checks copies of all volumes, and returns the version that each block holds. Call it while nothing is being
    /// written, or at least nothing is answered.
    #[track_caller]
    pub fn check(&self, what: &str, images: &[Image]) -> Vec<usize> {
        self.check_as_of(NEVER, what, images)
    }

    /// The same for copies that may lack what was answered from `time` on. They must hold all before, and a prefix of the
    /// order all the same.
    #[track_caller]
    pub fn check_as_of(&self, time: u64, what: &str, images: &[Image]) -> Vec<usize> {
        let versions: Vec<Vec<Sent>> = self.versions.iter().map(|versions| versions.lock().unwrap().clone()).collect();
        assert_eq!(versions.len(), images.len() * self.blocks_per_volume, "one image for each volume");
        let place =
            |at: usize| format!("volume {}, block {}", at / self.blocks_per_volume, at % self.blocks_per_volume);
        let held: Vec<Held> =
            images.iter().enumerate().flat_map(|(volume, image)| self.read_volume(what, volume, image)).collect();
        for (at, held) in held.iter().enumerate() {
            if let Held::Version(version) = *held {
                let sent = versions[at].len();
                let place = place(at);
                assert!(version <= sent, "{what}: {place} holds version {version}, but only {sent} were sent");
                let gone = versions[at][version - 1].gone;
                assert!(!gone, "{what}: UNDEAD: {place} holds version {version}, which an earlier crash had taken");
            }
        }
        let mut rules = Rules::new(self.durable.load(Ordering::SeqCst).min(time));
        // Each look can show that zeros must be newer than was thought, so it goes on until nothing changes.
        loop {
            let found: Vec<usize> = (0..held.len())
                .map(|at| {
                    rules.judge(&versions[at], held[at]).unwrap_or_else(|why| panic!("{what}: {}: {why}", place(at)))
                })
                .collect();
            let mut changed = false;
            for (versions, &found) in versions.iter().zip(&found) {
                changed |= found > 0 && rules.learn(&versions[found - 1]);
            }
            if !changed {
                return found;
            }
        }
    }

    /// When the newest of these versions was sent, one for each block, as a check returns them.
    pub fn newest(&self, found: &[usize]) -> u64 {
        let sent = |(versions, found): (&Mutex<Vec<Sent>>, &usize)| {
            found.checked_sub(1).map_or(0, |at| versions.lock().unwrap()[at].sent)
        };
        self.versions.iter().zip(found).map(sent).max().unwrap_or(0)
    }

    #[track_caller]
    fn read_volume(&self, what: &str, volume: usize, image: &Image) -> Vec<Held> {
        let mut held = Vec::with_capacity(self.blocks_per_volume);
        let len = self.blocks_per_volume * BLOCK;
        for offset in (0..len).step_by(CHUNK) {
            for bytes in image.read(offset, CHUNK.min(len - offset)).chunks_exact(BLOCK) {
                let block = held.len();
                let stamp = read_stamp(bytes, volume, block);
                held.push(stamp.unwrap_or_else(|why| panic!("{what}: volume {volume}, block {block}: {why}")));
            }
        }
        held
    }
}

/// What a copy has to hold, given what was found in it so far.
struct Rules {
    durable: u64,
    /// When the newest of all writes was sent that are there.
    newest: u64,
    /// The same for the writes of each connection.
    newest_over: HashMap<u64, u64>,
}

impl Rules {
    fn new(durable: u64) -> Rules {
        Rules { durable, newest: 0, newest_over: HashMap::new() }
    }

    /// A write is there; whether that says anything new.
    fn learn(&mut self, write: &Sent) -> bool {
        let newest_over = self.newest_over.entry(write.connection).or_default();
        let changed = write.sent > *newest_over;
        *newest_over = write.sent.max(*newest_over);
        self.newest = write.sent.max(self.newest);
        changed
    }

    /// The version that a block must have, by what it holds; or which rule that breaks.
    fn judge(&self, versions: &[Sent], held: Held) -> Result<usize, String> {
        let overtaken = |write: &Sent| {
            !write.gone && self.newest_over.get(&write.connection).is_some_and(|&newest| write.sent < newest)
        };
        let lost = (answered_before(versions, self.durable), "LOST", "was answered");
        let gap = (answered_before(versions, self.newest), "GAP", "was answered before a write that is there was sent");
        let order = versions.iter().rposition(overtaken).map_or(0, |last| last + 1);
        let order = (order, "ORDER", "was sent before a write that is there, over the same connection");
        let mut found = 0;
        for (least, rule, why) in [lost, gap, order] {
            let (version, shown) = match held {
                Held::Version(version) => {
                    (Some(version).filter(|&version| version >= least), format!("version {version}"))
                }
                Held::Zeros => (zeros_from(versions, least), "zeros".to_owned()),
            };
            found = version.ok_or_else(|| format!("{rule}: it holds {shown}, but version {least} {why}"))?.max(found);
        }
        Ok(found)
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

/// What a block holds, or what is wrong with it.
fn read_stamp(bytes: &[u8], volume: usize, block: usize) -> Result<Held, String> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(Held::Zeros);
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
    if word(0) != MAGIC || word(BLOCK / 8 - 1) != checksum(&bytes[..BLOCK - 8]) {
        return Err(format!("torn or foreign content, starting {:02x?}", &bytes[..32]));
    }
    if (word(1), word(2)) != (volume as u64, block as u64) {
        return Err(format!("holds volume {}, block {}", word(1), word(2)));
    }
    match word(3) as usize {
        0 => Err("holds version 0, which nobody sends".to_owned()),
        version => Ok(Held::Version(version)),
    }
}

/// FNV-1a over 64-bit words: independent of the program's own checksum.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(0xcbf2_9ce4_8422_2325, |sum, chunk| {
        (sum ^ u64::from_le_bytes(chunk.try_into().unwrap())).wrapping_mul(0x100_0000_01b3)
    })
}
