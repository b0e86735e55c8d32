//! A source's start: the journal is opened or made, what it holds is recovered, and the engine's thread begins.

use super::super::clients::Clients;
use super::super::command::{Commands, Counters, LinkState, MAX_COMMANDS, SourceCommand};
use super::super::disk::{Disk, random_id};
use super::super::held::Held;
use super::super::memory::{Memory, Pool};
use super::super::ring::Ring;
use super::peer::PEER_BYTES;
use super::report::Report;
use super::{Engine, EngineError, Sender, journal_offset, map_offset};
use crate::core::dirty::{self, Dirty};
use crate::core::half::{Entry, Ticket};
use crate::core::policy::Policy;
use crate::core::recovery::copies::{Init, Reading};
use crate::core::recovery::source_start::{Action, Fence, Found, Shape as Fit};
use crate::core::recovery::{self, Halves as _};
use crate::core::source::{FrameId, Shape, Source};
use crate::core::{Durability, Place};
use crate::format::frame::{Header, padded};
use crate::format::ids::{Epoch, Mark};
use crate::format::superblock::{Role, Superblock, Volume as VolumeFacts, encode_claim};
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES, MAX_CLIENTS, READ_MEMORY_BYTES, RECEIVE_MEMORY_BYTES};
use anyhow::Context as _;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{oneshot, watch};

/// How much of a disk must be zero for it to count as blank, in bytes: every common file system leaves traces there.
const BLANK_BYTES: u64 = 1 << 20;

/// A volume, opened.
#[derive(Debug)]
pub struct Volume {
    /// The NBD export's name.
    pub name: String,
    /// Its disk.
    pub disk: Disk,
}

/// What a source is to be.
#[derive(Debug)]
pub struct Plan {
    /// The source's name.
    pub name: String,
    /// How strong an answered write is.
    pub durability: Durability,
    /// Whether there is a destination.
    pub mirrored: bool,
    /// What becomes of writes while the destination is away.
    pub policy: Policy,
    /// Bytes that one bit of the dirty bitmap of a journal that is made now stands for.
    pub grain_bytes: u32,
    /// Age at which a half is switched though it isn't full.
    pub max_age: Duration,
    /// The journal's file or device.
    pub journal: PathBuf,
    /// Bytes of both halves together.
    pub journal_bytes: u64,
    /// The volumes, in the order of the configuration.
    pub volumes: Vec<Volume>,
    /// Where a journal that is made now begins.
    pub birth: Birth,
    /// Whether a journal may be made over foreign content.
    pub init: bool,
}

/// Where a source begins.
#[derive(Debug)]
pub enum Birth {
    /// With volumes of which no destination knows anything.
    First,
    /// With a promote: its order goes on behind the last record that the promoted destination held.
    Promote(Box<Promoted>),
}

/// A promoted destination, as far as the source that takes its place needs to know it.
#[derive(Debug)]
pub struct Promoted {
    /// Its state.
    pub state: Superblock,
    /// Its journal files.
    pub files: [PathBuf; 2],
    /// The same, where it was promoted just now.
    pub held: Option<Held>,
    /// Whether the old source handed over, with nothing under way, and is going to be the destination: writes wait for it
    /// then, for the policy's timeout.
    pub handed_over: bool,
    /// Whether somebody else may write to the images without a word here: then nothing is known of what differs.
    pub unwatched: bool,
}

impl Promoted {
    /// The last boundary that was held.
    pub fn at(&self) -> Mark {
        self.state.known.last().copied().unwrap_or(self.state.clean)
    }
}

impl Birth {
    /// The epoch that a journal is of.
    fn epoch(&self) -> Epoch {
        match self {
            Birth::First => Epoch(1),
            Birth::Promote(promoted) => promoted.state.epoch,
        }
    }
}

/// A running engine.
#[derive(Debug)]
pub struct Handle {
    /// For commands.
    pub commands: Sender,
    /// The connection to the destination as the engine sees it.
    pub link: watch::Receiver<LinkState>,
    /// Completes when the engine has ended.
    pub ended: oneshot::Receiver<Result<(), EngineError>>,
}

/// Starts an engine; returns when it serves, or says why it can't. Blocks while the journal is made or read.
pub fn spawn(plan: Plan) -> anyhow::Result<Handle> {
    let (sender, commands) = crossbeam_channel::bounded(MAX_COMMANDS);
    let wake = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).context("no eventfd can be made")?);
    let (link, link_seen) = watch::channel(LinkState::Down("not connected yet".into()));
    let (ended_sender, ended) = oneshot::channel();
    let (ready_sender, ready) = crossbeam_channel::bounded(1);
    let handle = Handle { commands: Commands::new(sender, wake.clone()), link: link_seen, ended };
    let name = plan.name.clone();
    let body = move || match prepare(plan, commands, wake, link) {
        Ok(engine) => {
            // The receiver waits right below.
            let _ = ready_sender.send(Ok(()));
            let _ = ended_sender.send(engine.run());
        }
        Err(error) => drop(ready_sender.send(Err(error))),
    };
    std::thread::Builder::new().name(format!("engine {name}")).spawn(body).context("no thread can be started")?;
    ready.recv().context("the engine's thread ended before it was ready")??;
    Ok(handle)
}

fn prepare(
    plan: Plan,
    commands: crossbeam_channel::Receiver<SourceCommand>,
    wake: Arc<EventFd>,
    link: watch::Sender<LinkState>,
) -> anyhow::Result<Engine> {
    let (mut journal, mut superblock) = open_journal(&plan)?;
    journal.choose_way();
    let half_bytes = superblock.half_bytes;
    // What a promote left unapplied is in the pool as well, until it is on the images.
    // A journal that was just made has nothing of its own yet, so it takes its own halves' place.
    let inherits = matches!(&plan.birth, Birth::Promote(promoted) if promoted.at() == superblock.clean);
    let inherited_place = Place(if superblock.incarnation == 0 { 0 } else { 2 * half_bytes });
    let inherited_bytes = if inherits { inherited_place.0 as usize } else { 0 };
    let pool_bytes = 2 * half_bytes as usize + inherited_bytes + RECEIVE_MEMORY_BYTES;
    let client_place = Place(pool_bytes as u64);
    let peer_memory = Place(client_place.0 + Clients::bytes(MAX_CLIENTS, READ_MEMORY_BYTES) as u64);
    let superblock_memory = Place(peer_memory.0 + PEER_BYTES as u64);
    let map_memory = Place(superblock_memory.0 + BLOCK_BYTES as u64);
    let zeros = Place(map_memory.0 + dirty::MAX_WRITE_BYTES as u64);
    let bytes = zeros.0 as usize + CHUNK_BYTES;
    let memory =
        Arc::new(Memory::map(bytes).with_context(|| format!("no {bytes} bytes of memory for the journal's halves"))?);
    let ring = Ring::new(memory.clone())?;

    // What a killed daemon wrote may still be in the disk's cache only; what is found counts as stored.
    journal.sync()?;
    // In one that was just made no frame is of this source: a promote doesn't wait until it is read.
    for half in (0..2).filter(|_| superblock.incarnation > 0) {
        journal.load(&memory, Place(half * half_bytes), journal_offset(half_bytes, half as usize, 0), half_bytes)?;
    }
    // SAFETY: nothing is under way yet.
    let halves = [0, 1].map(|half| unsafe { memory.bytes(Place(half * half_bytes), half_bytes as usize) });
    let recovered = recovery::recover_source(&halves, superblock.source, superblock.clean)
        .map_err(|damage| journal.error(&damage))?;
    if recovered.end.seq > superblock.clean.seq {
        tracing::info!("recovered {} to {} from the journal", superblock.clean, recovered.end);
    }
    superblock.unwatched |= matches!(&plan.birth, Birth::Promote(promoted) if promoted.unwatched);
    superblock.incarnation += 1;
    for _copy in 0..2 {
        superblock.generation += 1;
        journal.store_block(&superblock.encode(), superblock.copy_offset())?;
    }
    // Only now: while one copy alone says that a half is clean, nothing in it may change.
    for (half, position) in recovered.loose_ends(half_bytes) {
        journal.store_block(&[0; BLOCK_BYTES], journal_offset(half_bytes, half, position))?;
    }

    let mut used = Vec::new();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let shape = Shape {
        durability: plan.durability,
        mirrored: plan.mirrored,
        policy: plan.policy,
        max_age: plan.max_age,
        started_unix_s: now.as_secs(),
    };
    if matches!(&plan.birth, Birth::Promote(promoted) if promoted.unwatched) {
        store_map(&journal, &superblock, true)?;
    }
    let dirty = load_map(&journal, &superblock)?;
    let begun = superblock.clean;
    let mut core = Source::recover(shape, superblock, dirty, recovered, |id, position| {
        frame_in_memory(&halves, Place(0), id, position, &mut used)
    });
    if let Birth::Promote(promoted) = &plan.birth
        && promoted.at() == begun
    {
        inherit(promoted, &memory, inherited_place, &mut core, &mut used)?;
    }
    if core.fenced() {
        let epoch = core.superblock().fenced_by;
        tracing::error!(
            "source {} was fenced: another side was promoted in epoch {epoch} and has the data now. No client is served here",
            plan.name
        );
        link.send_replace(LinkState::Fenced(epoch));
    }
    let sizes = core.superblock().sizes();
    journal.map_persistent(journal_bytes(half_bytes, &sizes, core.superblock().grain_bytes));
    Ok(Engine {
        core,
        durability: plan.durability,
        ring,
        pool: Pool::with(Place(0), pool_bytes / CHUNK_BYTES, used.into_iter()),
        memory,
        clients: Clients::new(client_place, MAX_CLIENTS, READ_MEMORY_BYTES),
        peer: None,
        peer_memory,
        next_peer: None,
        hand_over: None,
        journal,
        superblock_memory,
        map_memory,
        zeros,
        half_bytes,
        volumes: plan.volumes.into_iter().map(|volume| volume.disk).collect(),
        commands,
        wake,
        link,
        syncs: Vec::new(),
        sync_count: 0,
        report: Report::default(),
        copies: Vec::new(),
        stopping: None,
        counters: Counters::default(),
        started: Instant::now(),
        effects: Vec::new(),
        pieces: Vec::new(),
        abandoned: Vec::new(),
        segments: Vec::new(),
    })
}

/// A frame that was found in halves that are in memory from `base` on: where its header is, and its records.
fn frame_in_memory(
    halves: &[&[u8]; 2],
    base: Place,
    id: FrameId,
    position: u64,
    used: &mut Vec<(Place, u64)>,
) -> (Place, Vec<Entry>) {
    let half = id.fill.half();
    let header_place = Place(base.0 + (half * halves[0].len()) as u64 + position);
    used.push((header_place, BLOCK_BYTES as u64));
    let header = halves.block(half, position).and_then(|block| Some((Header::parse(block).ok()?, block)));
    let payload = Place(header_place.0 + BLOCK_BYTES as u64);
    let records = header.map(|(header, block)| recovery::records(&header, block, payload)).unwrap_or_default();
    let with_payload = records.iter().filter(|(record, _)| record.payload_bytes() > 0);
    used.extend(with_payload.map(|(record, place)| (*place, padded(record.payload_bytes()) as u64)));
    let entry = |(record, place)| Entry { record, place, ticket: Ticket::NONE };
    (header_place, records.into_iter().map(entry).collect())
}

/// Takes over the fills that the promoted destination had stored and not applied.
fn inherit(
    promoted: &Promoted,
    memory: &Memory,
    base: Place,
    core: &mut Source,
    used: &mut Vec<(Place, u64)>,
) -> anyhow::Result<()> {
    let (state, at) = (&promoted.state, promoted.at());
    if state.clean == at {
        return Ok(());
    }
    let half_bytes = state.half_bytes;
    let place = |half: u64| Place(base.0 + half * half_bytes);
    // SAFETY: nothing is under way yet.
    let halves = || [0, 1].map(|half| unsafe { memory.bytes(place(half), half_bytes as usize) });
    let recover = || recovery::recover(&halves(), state.source, state.clean, state.whole);
    let held = promoted.held.as_ref().and_then(|held| {
        (0..2).for_each(|half| held.copy(half as usize, memory, place(half)));
        recover().ok().filter(|recovered| recovered.end == at)
    });
    let recovered = match held {
        Some(recovered) => recovered,
        None => {
            for (half, path) in (0..).zip(&promoted.files) {
                Disk::open("journal file", path)?.load(memory, place(half), 0, half_bytes)?;
            }
            recover()?
        }
    };
    let halves = halves();
    if recovered.end != at {
        anyhow::bail!(
            "the journal files {} and {} end at {}, but {at} was promoted: they were changed, or are damaged",
            promoted.files[0].display(),
            promoted.files[1].display(),
            recovered.end
        );
    }
    tracing::info!("source {}: {} to {at} go to the images behind", state.name, state.clean);
    core.inherit(&recovered, |id, position| frame_in_memory(&halves, base, id, position, used));
    Ok(())
}

/// Opens the journal and checks that it is this source's, or makes it.
fn open_journal(plan: &Plan) -> anyhow::Result<(Disk, Superblock)> {
    let journal = Disk::open_or_create("journal", &plan.journal)?;
    match judge(plan, &journal)? {
        Some(superblock) => Ok((journal, superblock)),
        None => make_journal(plan, journal),
    }
}

/// Opens a journal that is there, and says what a start would make of it. Changes nothing.
///
/// # Errors
/// What would keep a start from it; that somebody has it isn't waited for.
pub fn look(plan: &Plan) -> anyhow::Result<(Disk, Option<Superblock>)> {
    let mut journal = Disk::open_now("journal", &plan.journal)?;
    journal.choose_way();
    let superblock = judge(plan, &journal)?;
    Ok((journal, superblock))
}

/// What an open journal says of itself; `None` where one is to be made, over whatever is there. Changes nothing.
fn judge(plan: &Plan, journal: &Disk) -> anyhow::Result<Option<Superblock>> {
    let (blocks, blank) = journal.first_blocks(BLANK_BYTES)?;
    let read = Reading::of(Role::Source, [&blocks[0], &blocks[1]], blank);
    if let Birth::Promote(promoted) = &plan.birth
        && read
            .newest
            .as_ref()
            .is_some_and(|of| of.lineage == promoted.state.lineage && of.epoch < promoted.state.epoch)
    {
        // That of an earlier promote, whose source has been a destination since.
        return Ok(None);
    }
    let misfit = read.newest.as_ref().and_then(|superblock| check_journal(plan, superblock).err());
    let fenced = read.newest.as_ref().is_some_and(|superblock| superblock.fenced_by.0 != 0);
    let found = Found {
        copies: read.copies,
        owner: read.owner(&plan.name),
        init: Init::of(plan.init),
        shape: if misfit.is_some() { Fit::Other } else { Fit::Same },
        fence: if fenced { Fence::Fenced } else { Fence::Free },
    };
    let (ours, trouble) = (&plan.name, &read.trouble);
    let theirs = read.name.as_deref().unwrap_or_default();
    let refusal = match (found.decide().action, read.newest) {
        (Action::Recover | Action::RecoverFenced, Some(superblock)) => {
            if !trouble.is_empty() {
                tracing::warn!("journal {}: {trouble}; the other copy counts", plan.journal.display());
            }
            return Ok(Some(superblock));
        }
        (Action::Make | Action::Recover | Action::RecoverFenced, _) => return Ok(None),
        (Action::RefuseOwner, _) => format!(
            "belongs to source \"{theirs}\", not to \"{ours}\". Name another journal, or give --init to make a new one over \
             it: what \"{theirs}\" hasn't flushed from it is lost then"
        ),
        (Action::RefuseShape, _) => misfit.unwrap_or_default(),
        (Action::RefuseForeign, _) => {
            format!("holds something else ({trouble}). Name another file or device, or give --init to overwrite it")
        }
        (Action::RefuseOverwritten, _) => format!(
            "belongs to source \"{ours}\", but one of its superblock's two copies was overwritten by something else \
             ({trouble}). If nothing else uses this file or device, give --init: the other copy counts then"
        ),
        (Action::RefuseSplit, _) => format!(
            "has two superblock copies that contradict each other ({trouble}). Promote the destination if there is one; or \
             give --init to make a new journal over it: what wasn't flushed from it is lost then"
        ),
        (Action::RefuseDamaged, _) => format!(
            "is damaged: neither copy of its superblock can be read ({trouble}). Promote the destination if there is one; \
             or give --init to make a new journal over it: what wasn't flushed from it is lost then"
        ),
        (Action::RefuseVersion, _) => format!(
            "was used by another version of nbd-mirror ({trouble}). Run that version; or give --init to make a new journal \
             over it: what wasn't flushed from it is lost then"
        ),
    };
    anyhow::bail!(journal.error(&refusal))
}

/// Makes a new journal over whatever is there.
fn make_journal(plan: &Plan, mut journal: Disk) -> anyhow::Result<(Disk, Superblock)> {
    let half_bytes = plan.journal_bytes / 2;
    let sizes: Vec<u64> = plan.volumes.iter().map(|volume| volume.disk.size_bytes).collect();
    tracing::info!("making the journal {} ({} bytes)", plan.journal.display(), plan.journal_bytes);
    // First the claim: a start after a crash must not take what is torn, or an older journal's copy, for a journal. It
    // may be gone when the file has been written to its length.
    let claim = encode_claim(&plan.name);
    journal.store_block(&claim, 0)?;
    let bytes = journal_bytes(half_bytes, &sizes, plan.grain_bytes);
    // A promote finds it as the first contact made it, and has no time to write all of it.
    if matches!(plan.birth, Birth::First) || journal.size_bytes < bytes {
        journal.preallocate(bytes)?;
        journal.store_block(&claim, 0)?;
    }
    let id = random_id().context("no random identity for the source")?;
    let volumes = plan.volumes.iter().map(facts).collect();
    let first = Superblock::first(Role::Source, id, &plan.name, half_bytes, plan.birth.epoch(), volumes);
    let first = Superblock { grain_bytes: plan.grain_bytes, ..first };
    let first = match &plan.birth {
        Birth::First => first,
        // Whoever holds just what was promoted lacks nothing but what is marked from now on. The old source may hold more, or
        // less: it says so when it comes back as the destination.
        Birth::Promote(promoted) => Superblock {
            lineage: promoted.state.lineage,
            clean: promoted.at(),
            known: vec![promoted.at()],
            alone: !promoted.handed_over,
            unwatched: promoted.unwatched,
            ..first
        },
    };
    let all = match &plan.birth {
        // No destination has anything yet.
        Birth::First => true,
        Birth::Promote(promoted) => promoted.unwatched,
    };
    store_map(&journal, &first, all)?;
    // Both copies, the one over the claim last and as the newer one: should it be torn, it is the next to be written.
    let superblock = Superblock { generation: 2, ..first.clone() };
    for version in [&first, &superblock] {
        journal.store_block(&version.encode(), version.copy_offset())?;
    }
    Ok((journal, superblock))
}

/// Bytes of a whole journal: the superblocks, both halves, and the dirty bitmap of volumes of these sizes.
pub fn journal_bytes(half_bytes: u64, sizes: &[u64], grain_bytes: u32) -> u64 {
    map_offset(half_bytes) + dirty::stored_bytes(sizes, grain_bytes)
}

/// Writes a dirty bitmap in which everything is marked, or nothing.
fn store_map(journal: &Disk, superblock: &Superblock, all: bool) -> anyhow::Result<()> {
    let mut dirty = Dirty::unstored(superblock.source, &superblock.sizes(), superblock.grain_bytes);
    if all {
        dirty.fill();
    }
    let mut bytes = Vec::new();
    while let Some(at) = dirty.next_write(&mut bytes) {
        journal.store(&bytes, map_offset(superblock.half_bytes) + at)?;
    }
    Ok(())
}

/// Reads the dirty bitmap.
fn load_map(journal: &Disk, superblock: &Superblock) -> anyhow::Result<Dirty> {
    let sizes = superblock.sizes();
    let bytes = dirty::stored_bytes(&sizes, superblock.grain_bytes);
    let memory = Memory::map(bytes as usize).context("no memory for the dirty bitmap")?;
    journal.load(&memory, Place(0), map_offset(superblock.half_bytes), bytes)?;
    // SAFETY: the mapping is new, and nobody else knows it.
    let stored = unsafe { memory.bytes(Place(0), bytes as usize) };
    let (dirty, unreadable) = Dirty::parse(superblock.source, &sizes, superblock.grain_bytes, stored);
    if unreadable > 0 {
        tracing::warn!(
            "journal {}: {unreadable} sectors of its dirty bitmap can't be read; what they stand for counts as dirty, and is \
             compared",
            journal.path().display()
        );
    }
    Ok(dirty)
}

fn facts(volume: &Volume) -> VolumeFacts {
    let (size_bytes, block_bytes) = (volume.disk.size_bytes, volume.disk.block_bytes);
    VolumeFacts { name: volume.name.clone(), size_bytes, block_bytes }
}

/// Whether a journal of ours fits the configuration.
fn check_journal(plan: &Plan, superblock: &Superblock) -> Result<(), String> {
    if superblock.half_bytes * 2 != plan.journal_bytes {
        return Err(format!(
            "was made with size = {}, the configuration says {}; set it back (its size can't be changed yet)",
            superblock.half_bytes * 2,
            plan.journal_bytes
        ));
    }
    let names = |volumes: &mut dyn Iterator<Item = String>| volumes.collect::<Vec<_>>().join(", ");
    let known = names(&mut superblock.volumes.iter().map(|volume| volume.name.clone()));
    let configured = names(&mut plan.volumes.iter().map(|volume| volume.name.clone()));
    if known != configured {
        return Err(format!("was made for the volumes {known} (in this order), the configuration has {configured}"));
    }
    for (known, volume) in superblock.volumes.iter().zip(&plan.volumes) {
        if known.size_bytes != volume.disk.size_bytes {
            return Err(format!(
                "was made for {} with {} bytes, but {} has {} bytes now",
                known.name,
                known.size_bytes,
                volume.disk.path().display(),
                volume.disk.size_bytes
            ));
        }
    }
    Ok(())
}
