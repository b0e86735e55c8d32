//! The demo's workload: stamped writes over many connections, and the check of what became of them.
//!
//! Each connection has its own blocks of one volume and one write in flight, so that for every block
//! the versions sent and answered are known exactly when the source dies: what is found later must be
//! the version answered last, or the one that was on its way.

use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nbd::client::{NbdClient, handshake};

use super::stamp::{BLOCK_BYTES, Found, Random, Stamp, inspect};

/// Connections to each volume.
const CONNECTIONS_PER_VOLUME: usize = 4;
/// An answer that takes longer than this fails the demo instead of hanging it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read in one request when an image is checked.
const CHUNK_BYTES: usize = 256 * BLOCK_BYTES;

/// One volume as an NBD server offers it.
#[derive(Debug, Clone)]
pub struct Export {
    /// Index of the volume, part of every stamp.
    pub volume: u64,
    /// The export's name.
    pub name: String,
    /// Unix socket of the server.
    pub socket: PathBuf,
    /// Size that it must have, in bytes; a multiple of [`CHUNK_BYTES`].
    pub size_bytes: u64,
}

/// The writers at work.
pub struct Workload {
    run: u64,
    writers: Vec<JoinHandle<Vec<Versions>>>,
    shared: Arc<Shared>,
}

/// What the writers and the one who watches them share.
#[derive(Debug, Default)]
struct Shared {
    answered: AtomicU64,
    /// Set before the source is killed: from then on a broken connection is no failure.
    cut: AtomicBool,
    /// The first failure before that.
    failure: OnceLock<String>,
}

/// What is known of one block; version 0 is "never written".
#[derive(Debug, Clone, Copy, Default)]
struct Versions {
    sent: u64,
    answered: u64,
}

/// Everything that was sent and answered, for each volume and block.
#[derive(Debug)]
pub struct History {
    run: u64,
    volumes: Vec<Vec<Versions>>,
}

/// What the check of the images found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Writes that were answered.
    pub answered: u64,
    /// Answered writes whose version, or a later one of the same block, is in the image.
    pub found: u64,
    /// Answered writes that are not.
    pub lost: u64,
    /// Blocks that hold what nobody sent: torn, damaged or foreign.
    pub damaged: u64,
}

impl Workload {
    /// Connects to all exports and starts writing.
    ///
    /// # Errors
    /// An export that can't be reached, is read-only or has another size.
    pub fn start(run: u64, exports: &[Export]) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut writers = Vec::new();
        for export in exports {
            for first_block in 0..CONNECTIONS_PER_VOLUME as u64 {
                let writer = Writer {
                    run,
                    volume: export.volume,
                    first_block,
                    blocks: blocks_of(export) / CONNECTIONS_PER_VOLUME as u64,
                    client: connect(export)?,
                    shared: Arc::clone(&shared),
                };
                writers.push(std::thread::spawn(move || writer.write_until_cut()));
            }
        }
        Ok(Self { run, writers, shared })
    }

    /// Writes answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Number of connections that write.
    pub fn connections(&self) -> usize {
        self.writers.len()
    }

    /// Fails if a write has failed although nobody cut the connection.
    ///
    /// # Errors
    /// The first such write, with its cause.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.shared.failure.get() {
            Some(failure) => bail!("{failure}"),
            None => Ok(()),
        }
    }

    /// Tells the writers that the server is about to die.
    pub fn expect_cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
    }

    /// Waits until all connections are broken, and gathers what they sent and saw answered.
    ///
    /// # Errors
    /// A write that failed before [`Workload::expect_cut`].
    pub fn finish(mut self) -> anyhow::Result<History> {
        let mut volumes: Vec<Vec<Versions>> = Vec::new();
        let mut histories = Vec::new();
        for writer in std::mem::take(&mut self.writers) {
            match writer.join() {
                Ok(history) => histories.push(history),
                Err(_) => bail!("a writer of the workload panicked"),
            }
        }
        self.check()?;
        for of_volume in histories.chunks(CONNECTIONS_PER_VOLUME) {
            let blocks = of_volume.first().map_or(0, Vec::len);
            let mut volume = Vec::with_capacity(blocks * CONNECTIONS_PER_VOLUME);
            for i in 0..blocks {
                volume.extend(of_volume.iter().map(|history| history[i]));
            }
            volumes.push(volume);
        }
        Ok(History { run: self.run, volumes })
    }
}

/// One connection: it owns every [`CONNECTIONS_PER_VOLUME`]-th block of a volume.
struct Writer {
    run: u64,
    volume: u64,
    first_block: u64,
    blocks: u64,
    client: NbdClient<Socket>,
    shared: Arc<Shared>,
}

impl Writer {
    fn write_until_cut(mut self) -> Vec<Versions> {
        let mut history = vec![Versions::default(); self.blocks as usize];
        let mut random = Random::new(self.run ^ self.volume << 32 ^ self.first_block);
        let mut block = [0; BLOCK_BYTES];
        loop {
            let own = random.next() % self.blocks;
            let versions = &mut history[own as usize];
            let stamp = Stamp {
                run: self.run,
                volume: self.volume,
                block: self.first_block + own * CONNECTIONS_PER_VOLUME as u64,
                version: versions.answered + 1,
            };
            stamp.fill(&mut block);
            versions.sent = stamp.version;
            if let Err(e) = write_block(&mut self.client, stamp.block, &block) {
                if !self.shared.cut.load(Ordering::SeqCst) {
                    self.shared
                        .failure
                        .get_or_init(|| format!("write of block {} of volume {}: {e}", stamp.block, self.volume));
                }
                return history;
            }
            versions.answered = stamp.version;
            self.shared.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl History {
    /// Reads the whole export and compares each block with what was sent and answered.
    ///
    /// `go_on` is called before each request and may end the check with an error.
    ///
    /// # Errors
    /// An export that can't be read, is read-only or has another size; or `go_on`'s error.
    pub fn check(&self, export: &Export, go_on: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<Verdict> {
        let known = usize::try_from(export.volume)
            .ok()
            .and_then(|volume| self.volumes.get(volume))
            .context("the workload didn't write this volume")?;
        let mut client = connect(export)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut verdict = Verdict::default();
        for (i, versions) in known.chunks(CHUNK_BYTES / BLOCK_BYTES).enumerate() {
            go_on()?;
            client
                .read_exact(&mut chunk)
                .with_context(|| format!("reading export {:?} at {}", export.name, i * CHUNK_BYTES))?;
            let (blocks, _) = chunk.as_chunks::<BLOCK_BYTES>();
            let first_block = (i * (CHUNK_BYTES / BLOCK_BYTES)) as u64;
            for (number, (versions, block)) in (first_block..).zip(versions.iter().zip(blocks)) {
                let stamp = Stamp { run: self.run, volume: export.volume, block: number, version: 0 };
                verdict.add(*versions, stamp, inspect(block));
            }
        }
        Ok(verdict)
    }
}

impl Verdict {
    /// Counts one block: what is known of it, where it stands, and what was found there.
    fn add(&mut self, known: Versions, place: Stamp, found: Found) {
        let version = match found {
            Found::Empty => Some(0),
            Found::Stamped(stamp) => {
                let version = stamp.version;
                (stamp == Stamp { version, ..place } && version <= known.sent).then_some(version)
            }
            Found::Damaged => None,
        };
        // A damaged block has lost every write that it ever held.
        let found = version.unwrap_or(0).min(known.answered);
        self.answered += known.answered;
        self.found += found;
        self.lost += known.answered - found;
        self.damaged += u64::from(version.is_none());
    }

    /// Adds the verdict of another volume.
    pub fn merge(&mut self, other: Self) {
        self.answered += other.answered;
        self.found += other.found;
        self.lost += other.lost;
        self.damaged += other.damaged;
    }
}

/// The two directions of a Unix socket, buffered: the client reads and writes single fields.
pub struct Socket {
    reader: BufReader<UnixStream>,
    writer: BufWriter<UnixStream>,
}

impl Socket {
    fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            reader: BufReader::new(stream.try_clone()?),
            writer: BufWriter::with_capacity(2 * BLOCK_BYTES, stream),
        })
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Connects to an export and checks that it is the writable volume it should be.
///
/// # Errors
/// An export that can't be reached, is read-only or has another size.
pub fn connect(export: &Export) -> anyhow::Result<NbdClient<Socket>> {
    let place = || format!("export {:?} at {}", export.name, export.socket.display());
    let mut socket = Socket::connect(&export.socket).with_context(place)?;
    let offered = handshake(&mut socket, export.name.as_bytes()).with_context(place)?;
    if offered.readonly {
        bail!("{} is read-only", place());
    }
    if offered.size != export.size_bytes {
        bail!("{} has {} bytes instead of {}", place(), offered.size, export.size_bytes);
    }
    Ok(NbdClient::new(socket, &offered))
}

fn write_block(client: &mut NbdClient<Socket>, number: u64, block: &[u8; BLOCK_BYTES]) -> io::Result<()> {
    client.seek(SeekFrom::Start(number * BLOCK_BYTES as u64))?;
    client.write_all(block)
}

fn blocks_of(export: &Export) -> u64 {
    export.size_bytes / BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests;
