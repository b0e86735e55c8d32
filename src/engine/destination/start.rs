//! A destination's start for one source: its folder is opened or made, what it holds is recovered, and the engine's
//! thread begins.
//!
//! `journal_dir/SOURCE/` holds `state` (two superblock copies), `fill-0.journal` and `fill-1.journal` (one fill each,
//! of the fill's number mod 2), and `promoted.journal`, the journal of the source that this becomes by a promote. All
//! are preallocated at the first contact, so that neither mirroring nor a promote can fail for lack of space. Beside them
//! is `staging.log`, empty but for resyncs, which takes its space as it needs it.

use super::super::command::{Commands, Counters, DestinationCommand, MAX_COMMANDS};
use super::super::disk::{Disk, make_folder};
use super::super::memory::Memory;
use super::super::nvram::Share;
use super::super::ring::Ring;
use super::super::source::{EngineError, journal_bytes};
use super::live::Live;
use super::receive::{drain_place, half_place, memory_bytes};
use super::{Ended, Engine};
use crate::core::Place;
use crate::core::destination::{Destination, StagingPlan, Unreadable};
use crate::core::grains::Grains;
use crate::core::recovery::copies::{Init, Reading};
use crate::core::recovery::destination_start::{Action, Found, Promoted};
use crate::core::recovery::staged::{Bytes, Scan};
use crate::core::recovery::{self, Halves as _};
use crate::format::ids::Mark;
use crate::format::superblock::{Phase, Role, Superblock, claimed_by, encode_claim};
use crate::limits::{BLOCK_BYTES, MAX_COPY_WINDOWS};
use anyhow::Context as _;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// An image, opened.
#[derive(Debug)]
pub struct Image {
    /// Its volume's name.
    pub name: String,
    /// Its disk.
    pub disk: Disk,
}

/// The folder of one source at its destination.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    state: Disk,
    superblock: Superblock,
}

impl Folder {
    /// Opens a source's folder; `None` where the source never connected.
    pub fn open(path: &Path, name: &str, init: bool) -> anyhow::Result<Option<Folder>> {
        let Some(state) = Folder::open_state(path)? else { return Ok(None) };
        let Some(mut superblock) = Folder::judge(&state, name, init)? else { return Ok(None) };
        // A crash may have come between the two copies: while one alone says that a half is clean, nothing in that
        // half may change, and one alone may not know of a promote.
        for _copy in 0..2 {
            superblock.generation += 1;
            state.store_block(&superblock.encode(), superblock.copy_offset())?;
        }
        Ok(Some(Folder { path: path.to_owned(), state, superblock }))
    }

    /// Opens the state file, if there is one.
    fn open_state(path: &Path) -> anyhow::Result<Option<Disk>> {
        let file = path.join("state");
        if !file.exists() {
            return Ok(None);
        }
        let state = Disk::open("state", &file)?;
        // What a killed daemon had under way can be read, but a power cut may still take it away: nothing may build on
        // it before it is stable.
        state.sync()?;
        Ok(Some(state))
    }

    /// Opens the state of a source's folder, and says what a start would make of it; `None` where nothing was received. Changes
    /// nothing.
    ///
    /// # Errors
    /// What would keep a start from it; that somebody has it isn't waited for.
    pub fn look(path: &Path, name: &str) -> anyhow::Result<Option<(Disk, Superblock)>> {
        let file = path.join("state");
        if !file.exists() {
            return Ok(None);
        }
        let mut state = Disk::open_now("state", &file)?;
        state.choose_way();
        Ok(Folder::judge(&state, name, false)?.map(|superblock| (state, superblock)))
    }

    /// What an open state file says of itself; `None` where nothing was ever received. Changes nothing.
    fn judge(state: &Disk, name: &str, init: bool) -> anyhow::Result<Option<Superblock>> {
        let (blocks, blank) = state.first_blocks(2 * BLOCK_BYTES as u64)?;
        let read = Reading::of(Role::Destination, [&blocks[0], &blocks[1]], blank);
        let promoted = read.newest.as_ref().is_some_and(|superblock| superblock.promoted);
        let found = Found {
            copies: read.copies,
            owner: read.owner(name),
            init: Init::of(init),
            promoted: if promoted { Promoted::Yes } else { Promoted::No },
        };
        let trouble = &read.trouble;
        // Not even a whole state that can't be read any more says that the images weren't promoted.
        let anew = "give --init to begin anew: when the source connects, everything is copied again, over the images. \
                    Don't, if they were promoted";
        let refusal = match (found.decide().action, read.newest) {
            (Action::Receive | Action::Serve, Some(superblock)) => {
                if !trouble.is_empty() {
                    tracing::warn!("state {}: {trouble}; the other copy counts", state.path().display());
                }
                return Ok(Some(superblock));
            }
            (Action::Wait | Action::Receive | Action::Serve, _) => return Ok(None),
            (Action::RefuseOwner, _) => format!(
                "belongs to source \"{}\", not to \"{name}\". Give the folder its source's name back, or move it away",
                read.name.unwrap_or_default()
            ),
            (Action::RefuseForeign, _) => {
                format!("holds something else ({trouble}). Name another journal_dir, or give --init to overwrite it")
            }
            (Action::RefuseOverwritten, _) => format!(
                "one of its two copies was overwritten by something else ({trouble}). If nothing else uses this file, give \
                 --init: the other copy counts then"
            ),
            (Action::RefuseSplit, _) => {
                format!("has two copies that contradict each other ({trouble}). Restore it, or {anew}")
            }
            (Action::RefuseDamaged, _) => {
                format!("is damaged: neither of its two copies can be read ({trouble}). Restore it, or {anew}")
            }
            (Action::RefuseVersion, _) => {
                format!("was used by another version of nbd-mirror ({trouble}). Run that version, or {anew}")
            }
        };
        anyhow::bail!(state.error(&refusal))
    }

    /// Makes the folder for a source that introduces itself for the first time. Takes as long as writing all of it.
    pub fn create(path: &Path, hello: &Superblock) -> anyhow::Result<Folder> {
        make_folder(path).with_context(|| format!("the folder {} can't be made", path.display()))?;
        let claim = encode_claim(&hello.name);
        let mut state = Disk::open_or_create("state", &path.join("state"))?;
        state.preallocate(2 * BLOCK_BYTES as u64)?;
        state.store_block(&claim, 0)?;
        // The files may be left over from a state that is gone: no frame in them may be taken for one of this mirror,
        // and no journal of images that were promoted once for that of the next promote.
        for half in 0..2 {
            let mut file = Disk::open_or_create("journal file", &half_path(path, half))?;
            file.preallocate(hello.half_bytes)?;
            file.store_block(&[0; BLOCK_BYTES], 0)?;
        }
        let mut promoted = Disk::open_or_create("journal", &Folder::promoted_journal(path))?;
        promoted.preallocate(journal_bytes(hello.half_bytes, &hello.sizes(), hello.grain_bytes))?;
        promoted.store_block(&claim, 0)?;
        let volumes = hello.volumes.clone();
        let first =
            Superblock::first(Role::Destination, hello.source, &hello.name, hello.half_bytes, hello.epoch, volumes);
        let first = Superblock { grain_bytes: hello.grain_bytes, lineage: hello.lineage, ..first };
        // Both copies, the one over the claim last and as the newer one: should it be torn, it is the next to be written.
        let superblock = Superblock { generation: 2, ..first.clone() };
        for version in [&first, &superblock] {
            state.store_block(&version.encode(), version.copy_offset())?;
        }
        Ok(Folder { path: path.to_owned(), state, superblock })
    }

    /// What the state says where a source's folder is; `None`: there is none. Waits for whoever has it locked.
    ///
    /// # Errors
    /// Neither copy can be read.
    pub fn state(path: &Path) -> anyhow::Result<Option<Superblock>> {
        let Some(state) = Folder::open_state(path)? else { return Ok(None) };
        let (blocks, blank) = state.first_blocks(2 * BLOCK_BYTES as u64)?;
        match Superblock::newest(Role::Destination, [&blocks[0], &blocks[1]]) {
            Ok(superblock) => Ok(Some(superblock)),
            // Its making was cut off: nothing was ever stored here.
            Err(_) if blank || claimed_by(&blocks[0]).is_some() => Ok(None),
            Err(error) => Err(state.error(&format!("can't be read ({error})")).into()),
        }
    }

    /// Where a promote of what this folder holds went on, if it left fills that weren't on the images: they are there only once
    /// something behind that boundary is clean. Changes nothing, and takes no lock.
    pub fn left_unapplied(path: &Path) -> anyhow::Result<Option<Mark>> {
        let file = path.join("state");
        let mut copies = [[0; BLOCK_BYTES]; 2];
        let read = std::fs::File::open(&file).and_then(|state| {
            copies.iter_mut().zip([0, BLOCK_BYTES as u64]).try_for_each(|(copy, at)| state.read_exact_at(copy, at))
        });
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("{} can't be read", file.display()))?,
        }
        // A claim, or something else: nothing of it was promoted.
        let Ok(state) = Superblock::newest(Role::Destination, [&copies[0], &copies[1]]) else { return Ok(None) };
        Ok(state.known.last().copied().filter(|at| state.promoted && state.clean != *at))
    }

    /// Makes the folder of a source that was fenced, in this state, or takes the one that it was promoted from. What is in its
    /// journal files bears another identity, and counts for nothing; the journal of an earlier promote is made anew by the next.
    pub fn adopt(path: &Path, state: &Superblock) -> anyhow::Result<Folder> {
        Folder::prepare(path, state)?;
        let file = Disk::open_or_create("state", &path.join("state"))?;
        let (blocks, _) = file.first_blocks(2 * BLOCK_BYTES as u64)?;
        let before = Superblock::newest(Role::Destination, [&blocks[0], &blocks[1]]);
        let mut superblock = state.clone();
        superblock.generation = before.map_or(0, |before| before.generation);
        // Over the older copy first: until it is written the other one counts.
        for _copy in 0..2 {
            superblock.generation += 1;
            file.store_block(&superblock.encode(), superblock.copy_offset())?;
        }
        Ok(Folder { path: path.to_owned(), state: file, superblock })
    }

    /// Makes the files of a folder, as far as they aren't there, so that nothing has to be made when it counts.
    pub fn prepare(path: &Path, like: &Superblock) -> anyhow::Result<()> {
        make_folder(path).with_context(|| format!("the folder {} can't be made", path.display()))?;
        let bytes = journal_bytes(like.half_bytes, &like.sizes(), like.grain_bytes);
        let wanted = [(half_path(path, 0), like.half_bytes), (half_path(path, 1), like.half_bytes)];
        let promoted = (Folder::promoted_journal(path), bytes);
        // What is long enough may be in use: by the very source that is about to hand over.
        let short = |file: &Path, bytes: u64| std::fs::metadata(file).map_or(0, |file| file.len()) < bytes;
        for (file, bytes) in wanted.into_iter().chain([promoted.clone()]) {
            if short(&file, bytes) {
                let mut disk = Disk::open_or_create("journal file", &file)?;
                disk.preallocate(bytes)?;
                if file == promoted.0 {
                    disk.store_block(&encode_claim(&like.name), 0)?;
                }
            }
        }
        let state = path.join("state");
        if short(&state, 2 * BLOCK_BYTES as u64) {
            let mut state = Disk::open_or_create("state", &state)?;
            state.preallocate(2 * BLOCK_BYTES as u64)?;
            state.store_block(&encode_claim(&like.name), 0)?;
        }
        Ok(())
    }

    /// What the state says.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The journal of the source that this becomes by a promote.
    pub fn promoted_journal(path: &Path) -> PathBuf {
        path.join("promoted.journal")
    }

    /// The journal files.
    pub fn journal_files(path: &Path) -> [PathBuf; 2] {
        [0, 1].map(|half| half_path(path, half))
    }
}

fn half_path(folder: &Path, half: usize) -> PathBuf {
    folder.join(format!("fill-{half}.journal"))
}

/// A running engine.
#[derive(Debug)]
pub struct Handle {
    /// For commands.
    pub commands: Commands<DestinationCommand>,
    /// Why clients that want to read the images are refused.
    pub refusal: watch::Receiver<Option<Unreadable>>,
    /// Completes when the engine has ended.
    pub ended: oneshot::Receiver<Result<Ended, EngineError>>,
}

/// Starts an engine; returns when it is ready, or says why it can't. Blocks while the journal files are read. `live`:
/// clients may read the images; `share`: the log where frames go first, if there is one.
pub fn spawn(
    folder: Folder,
    images: Vec<Image>,
    plan: StagingPlan,
    live: bool,
    share: Option<Share>,
) -> anyhow::Result<Handle> {
    let (sender, commands) = crossbeam_channel::bounded(MAX_COMMANDS);
    let wake = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).context("no eventfd can be made")?);
    let (ended_sender, ended) = oneshot::channel();
    let (ready_sender, ready) = crossbeam_channel::bounded(1);
    let commands_sender = Commands::new(sender, wake.clone());
    let name = folder.superblock.name.clone();
    let body = move || match prepare(folder, images, plan, live, share, commands, wake) {
        Ok(engine) => {
            // The receiver waits right below.
            let _ = ready_sender.send(Ok(engine.live.refusal()));
            let _ = ended_sender.send(engine.run());
        }
        Err(error) => drop(ready_sender.send(Err(error))),
    };
    std::thread::Builder::new().name(format!("mirror {name}")).spawn(body).context("no thread can be started")?;
    let refusal = ready.recv().context("the engine's thread ended before it was ready")??;
    Ok(Handle { commands: commands_sender, refusal, ended })
}

fn prepare(
    folder: Folder,
    images: Vec<Image>,
    plan: StagingPlan,
    live: bool,
    share: Option<Share>,
    commands: crossbeam_channel::Receiver<DestinationCommand>,
    wake: Arc<EventFd>,
) -> anyhow::Result<Engine> {
    let Folder { path, mut state, superblock } = folder;
    state.choose_way();
    super::receive::check_images(&superblock, &images).map_err(|reason| anyhow::anyhow!(reason))?;
    let half_bytes = superblock.half_bytes;
    let bytes = memory_bytes(half_bytes) + Live::bytes(live);
    let memory =
        Arc::new(Memory::map(bytes).with_context(|| format!("no {bytes} bytes of memory for the journal files"))?);
    let ring = Ring::new(memory.clone())?;
    let mut files = Vec::new();
    for half in 0..2 {
        let mut file = Disk::open("journal file", &half_path(&path, half))?;
        file.choose_way();
        // What a killed daemon wrote may still be in the disk's cache only; what is found counts as stored.
        file.sync()?;
        file.load(&memory, half_place(half_bytes, half), 0, half_bytes)?;
        files.push(file);
    }
    let mut files: [Disk; 2] = files.try_into().map_err(|_| anyhow::anyhow!("two journal files were opened"))?;
    // SAFETY: nothing is under way yet.
    let halves = [0, 1].map(|half| unsafe { memory.bytes(half_place(half_bytes, half), half_bytes as usize) });
    let recovered = recovery::recover(&halves, superblock.source, superblock.clean, superblock.whole)
        .map_err(|damage| anyhow::anyhow!("journal files in {}: {damage}", path.display()))?;
    for (half, position) in recovered.loose_ends(half_bytes) {
        files[half].store_block(&[0; BLOCK_BYTES], position)?;
    }
    let (staging, touched) = open_staging(&path, &superblock, &memory)?;
    let (name, applied) = (superblock.name.clone(), superblock.clean);
    let core = Destination::recover(superblock, plan, touched, recovered, |found| {
        let (half, position) = (found.header.fill.half(), found.header.position);
        let payload = Place(half_place(half_bytes, half).0 + position + BLOCK_BYTES as u64);
        let block = halves.block(half, position);
        block.map(|block| recovery::records(&found.header, block, payload)).unwrap_or_default()
    });
    let core = match &share {
        Some(share) => core.with_nvram(share.log().head().slot_bytes),
        None => core,
    };
    if core.stored().seq > applied.seq {
        tracing::info!("source {name}: recovered {applied} to {} from the journal files", core.stored());
    }
    files.iter_mut().for_each(|file| file.map_persistent(half_bytes));
    state.map_persistent(2 * BLOCK_BYTES as u64);
    Ok(Engine {
        live: Live::new(Place(memory_bytes(half_bytes) as u64), live, &core),
        core,
        ring,
        memory,
        files,
        state,
        staging,
        share,
        slot_heads: 0,
        images,
        sums: [None; MAX_COPY_WINDOWS],
        peer: None,
        next_peer: None,
        reason: None,
        heard_at: None,
        lacking_since_unix_s: 0,
        promote: None,
        promote_begun: false,
        promoted: None,
        handed_over: false,
        commands,
        wake,
        stopping: false,
        counters: Counters::default(),
        effects: Vec::new(),
        pieces: Vec::new(),
        segments: Vec::new(),
    })
}

/// Opens the staging log, or makes an empty one, and reads what counts in it. Nothing is under way in the memory yet.
fn open_staging(folder: &Path, superblock: &Superblock, memory: &Memory) -> anyhow::Result<(Disk, Grains)> {
    let path = folder.join("staging.log");
    let staging = &superblock.staging;
    if staging.phase == Phase::Direct {
        // What it holds was brought to the images, or never counted.
        let log = Disk::open_or_create("staging log", &path)?;
        log.truncate()?;
        // A resync counts on it from its first fill on.
        log.sync_name()?;
        return Ok((log, Scan::new(superblock).finish()?));
    }
    let remedy = match staging.phase {
        Phase::Staging => format!(
            "The images are whole as of record {}, from before a resync. Give the file back; or stop the destination and \
             remove its folder of this source: everything is copied again, and until then the images can't be promoted",
            staging.base.seq
        ),
        Phase::Direct | Phase::Draining => {
            "A part of a resync is only there. Give the file back; or stop the destination \
                                            and remove its folder of this source: everything is copied again"
                .into()
        }
    };
    let scan = || {
        let log = Disk::open("staging log", &path)?;
        // What a killed daemon wrote may still be in the disk's cache only.
        log.sync()?;
        if log.size_bytes < staging.tail {
            anyhow::bail!(log.error(&format!("has {} bytes, the state counts on {}", log.size_bytes, staging.tail)));
        }
        let mut scan = Scan::new(superblock);
        let place = drain_place(superblock.half_bytes);
        while let Some(range) = scan.wants() {
            let bytes = range.end - range.start;
            log.load(memory, place, range.start, bytes)?;
            // SAFETY: nothing is under way yet.
            let bytes = unsafe { memory.bytes(place, bytes as usize) };
            scan.take(&Bytes { start: range.start, bytes }).map_err(|damage| log.error(&damage))?;
        }
        let touched = scan.finish().map_err(|damage| log.error(&damage))?;
        Ok((log, touched))
    };
    scan().map_err(|error: anyhow::Error| error.context(remedy))
}
