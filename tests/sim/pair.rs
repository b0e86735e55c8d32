//! A source, its mirror at the destination, what lies between them, and all that can happen to the two.

use crate::client::Habits;
use crate::content::{SECTOR, Word};
use crate::context::Context;
use crate::destination::{DestinationNode, Nvram};
use crate::disk::{Crash, Faults};
use crate::link::{Link, Message};
use crate::model::{Model, Volumes};
use crate::rare::Rare;
use crate::source::{LOG, MAP, NVRAM, SUPERBLOCKS, SourceNode, VOLUMES, disks, newest};
use nbd_mirror::core::Durability;
use nbd_mirror::core::destination::{StagingPlan, State as FillState};
use nbd_mirror::core::policy::{OnDisconnect, Policy};
use nbd_mirror::core::recovery::warrant::{Missing, Policy as Warranted};
use nbd_mirror::core::source::Shape;
use nbd_mirror::format::ids::{Digest, Epoch, Id};
use nbd_mirror::format::superblock::{Phase, Role, Superblock, Volume};
use nbd_mirror::limits::MAX_FRAME_BYTES;
use std::time::Duration;

/// What can happen, in the order of [`Pair::weights`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    SourceDisk,
    MirrorDisk,
    ToDestination,
    ToSource,
    Connect,
    Time,
    StartSource,
    StartMirror,
    PromotedDisk,
    Client,
    PromotedClient,
    Sync,
    Cut,
    HalfClose,
    CrashSource,
    CrashMirror,
    CrashBoth,
    Wipe,
    Promote,
    GhostPromote,
    GhostRot,
    Outage,
    Policy,
    Verify,
    LiveRead,
    HandOver,
}

pub const EVENTS: [Event; 26] = [
    Event::SourceDisk,
    Event::MirrorDisk,
    Event::ToDestination,
    Event::ToSource,
    Event::Connect,
    Event::Time,
    Event::StartSource,
    Event::StartMirror,
    Event::PromotedDisk,
    Event::Client,
    Event::PromotedClient,
    Event::Sync,
    Event::Cut,
    Event::HalfClose,
    Event::CrashSource,
    Event::CrashMirror,
    Event::CrashBoth,
    Event::Wipe,
    Event::Promote,
    Event::GhostPromote,
    Event::GhostRot,
    Event::Outage,
    Event::Policy,
    Event::Verify,
    Event::LiveRead,
    Event::HandOver,
];

/// Events from here on aren't needed for the two to come into step.
const WILD: usize = Event::Client as usize;

pub struct Pair {
    pub source: SourceNode,
    pub mirror: DestinationNode,
    pub model: Model,
    pub promoted: Option<(SourceNode, Model)>,
    pub link: Link,
    pub habits: Habits,
    pub faults: Faults,
    weights: [u64; EVENTS.len()],
    identity: Superblock,
    persistent: Persistent,
    /// The worst that happened to each machine since it last held everything.
    source_down: Crash,
    mirror_lost: bool,
    promoted_down: Crash,
    /// So many events long the two can't reach each other.
    outage: usize,
    /// The operator wants a promote.
    promoting: bool,
    tokens: u64,
}

/// What is on persistent memory.
struct Persistent {
    journal: bool,
    files: bool,
    nvram: bool,
}

impl Persistent {
    fn choose(cx: &mut Context) -> Persistent {
        Persistent { journal: cx.rng.chance(250), files: cx.rng.chance(150), nvram: cx.rng.chance(500) }
    }
}

/// Volumes with something on them, or nothing.
fn volumes(cx: &mut Context) -> Volumes {
    let sizes: &[usize] =
        cx.rng.pick(&[&[192], &[192], &[64, 64, 64], &[64, 64, 64], &[64, 256], &[5120], &[2300, 128], &[64, 20480]]);
    let mut base: Volumes = sizes.iter().map(|size| vec![0; *size]).collect();
    if cx.rng.chance(700) {
        for volume in &mut base {
            for _ in 0..6 {
                let at = cx.rng.below(volume.len());
                let end = (at + 16).min(volume.len());
                volume[at..end].iter_mut().zip(cx.words..).for_each(|(sector, word)| *sector = word);
                cx.words += 16;
            }
        }
    }
    base
}

impl Pair {
    pub fn new(number: u8, cx: &mut Context) -> Pair {
        let durability = cx.rng.pick(&[Durability::Always, Durability::Flush]);
        let base = volumes(cx);
        let facts = |(index, words): (usize, &Vec<Word>)| Volume {
            name: format!("vol{index}"),
            size_bytes: (words.len() * SECTOR) as u64,
            block_bytes: SECTOR as u32,
        };
        let half_bytes = (MAX_FRAME_BYTES + cx.rng.pick(&[0, 64 << 10, 256 << 10])) as u64;
        let (id, name) = (Id([number + 1; 16]), format!("source{number}"));
        let volumes = base.iter().enumerate().map(facts).collect();
        let first = Superblock::first(Role::Source, id, &name, half_bytes, Epoch(1), volumes);
        let identity = Superblock { generation: 2, grain_bytes: cx.rng.pick(&[4096, 64 << 10]), ..first };
        let shape = Shape {
            durability,
            mirrored: true,
            policy: policy(cx),
            max_age: Duration::from_secs(10),
            started_unix_s: 0,
        };
        let source = SourceNode::new(shape, disks(&identity, base.clone(), &mut cx.vault));
        let mut pair = Pair {
            source,
            mirror: DestinationNode::new(Vec::new(), plan(cx), Nvram::none()),
            persistent: Persistent::choose(cx),
            model: Model::new(base, Digest(0)),
            promoted: None,
            link: Link::default(),
            habits: Habits::choose(cx),
            faults: Faults {
                short: cx.rng.pick(&[0, 20]),
                failed: cx.rng.pick(&[0, 0, 0, 2]),
                full: cx.rng.pick(&[0, 0, 50]),
            },
            weights: weights(cx),
            identity,
            source_down: Crash::Kill,
            mirror_lost: false,
            promoted_down: Crash::Kill,
            outage: 0,
            promoting: false,
            tokens: 0,
        };
        pair.source.io.disks[..=MAP].iter_mut().for_each(|disk| disk.persistent = pair.persistent.journal);
        pair.wipe(cx);
        pair
    }

    /// The destination's disks are replaced by blank ones, or by such with something else on the images.
    fn wipe(&mut self, cx: &mut Context) {
        let superblock = Superblock { role: Role::Destination, ..self.identity.clone() };
        let junk = cx.rng.pick(&[0, u64::MAX >> 3]);
        let images = superblock.volumes.iter().map(|volume| vec![junk; volume.size_bytes as usize / SECTOR]).collect();
        let disks = disks(&superblock, images, &mut cx.vault);
        self.mirror = DestinationNode::new(disks, plan(cx), Nvram::choose(cx));
        self.mirror.io.disks[NVRAM].persistent = self.persistent.nvram;
        self.mirror.io.disks[..LOG].iter_mut().for_each(|disk| disk.persistent = self.persistent.files);
        self.mirror_lost = false;
        self.link.destination_died(&mut cx.rng);
    }

    fn possible(&self, event: Event) -> bool {
        let source_up = self.source.core.is_some();
        let mirror_up = self.mirror.core.is_some();
        let fenced = self.source.fenced();
        match event {
            Event::SourceDisk => !self.source.io.idle(),
            Event::MirrorDisk => !self.mirror.io.idle(),
            Event::ToDestination => mirror_up && !self.link.to_destination.is_empty(),
            Event::ToSource => source_up && !self.link.to_source.is_empty(),
            Event::Connect => source_up && mirror_up && !self.link.source_up && !fenced && self.outage == 0,
            Event::Time => true,
            Event::StartSource => self.source.down(),
            Event::StartMirror => self.mirror.down(),
            Event::PromotedDisk => self.promoted.as_ref().is_some_and(|(node, _)| !node.io.idle()),
            Event::Client => source_up,
            Event::PromotedClient => self.promoted.as_ref().is_some_and(|(node, _)| node.core.is_some()),
            Event::Sync => source_up && !fenced,
            Event::Cut | Event::HalfClose => self.link.source_up,
            Event::Outage => source_up && self.outage == 0,
            Event::Policy => source_up,
            Event::Verify => self.link.source_up,
            Event::HandOver => self.link.source_up && self.promoted.is_none() && !self.promoting,
            Event::LiveRead => mirror_up && self.promoted.is_none(),
            Event::CrashSource => !self.source.down(),
            Event::CrashMirror => !self.mirror.down(),
            Event::CrashBoth => !self.mirror.down() && !self.source.down(),
            Event::Wipe => self.promoted.is_none() && !self.promoting,
            Event::Promote => {
                let promotable = self.mirror.core.as_ref().is_some_and(|core| core.promotable());
                promotable && self.promoted.is_none()
            }
            Event::GhostPromote => mirror_up && self.promoted.is_none(),
            Event::GhostRot => true,
        }
    }

    /// What happens next. `calm`: no faults any more, and no clients.
    pub fn choose(&self, calm: bool, cx: &mut Context) -> Event {
        let count = if calm { WILD } else { EVENTS.len() };
        let phase = self.mirror.core.as_ref().map(|core| core.superblock().staging.phase);
        let staging = phase == Some(Phase::Staging);
        let fleeting = phase == Some(Phase::Draining) || self.mirror.appends();
        let mut total = 0;
        let mut until = [0; EVENTS.len()];
        for (index, event) in EVENTS[..count].iter().enumerate() {
            if self.weights[index] > 0 && self.possible(*event) {
                // An operator who wanted a promote asks again after a crash.
                total += match event {
                    Event::Promote if self.promoting => 100,
                    Event::Time if self.outage > 0 => 10 * self.weights[index],
                    // What lasts only a moment is disturbed the more.
                    Event::Promote if phase == Some(Phase::Draining) => 60 * self.weights[index],
                    Event::CrashMirror | Event::Promote | Event::GhostPromote if fleeting => 10 * self.weights[index],
                    Event::CrashSource | Event::Cut if staging => 3 * self.weights[index],
                    _ => self.weights[index],
                };
            }
            until[index] = total;
        }
        let drawn = cx.rng.next() % total;
        EVENTS[until[..count].iter().position(|until| drawn < *until).expect("time can always pass")]
    }

    /// Lets it happen; returns how many events that were.
    pub fn happen(&mut self, event: Event, calm: bool, cx: &mut Context) -> usize {
        let how = if cx.rng.chance(500) { Crash::Kill } else { Crash::Power };
        self.outage = if calm { 0 } else { self.outage.saturating_sub(1) };
        let events = self.happens(event, how, calm, cx);
        self.lay_floor();
        events
    }

    /// While the destination's images take what comes, all that it promised must be on them should a resync begin.
    fn lay_floor(&mut self) {
        let Some(core) = &self.mirror.core else { return };
        // Only where the durable state says so as well.
        if core.superblock().staging.phase != Phase::Staging && !self.mirror.writes_state() {
            self.model.lay_floor(self.mirror_lost && !self.holds_all());
        }
    }

    /// Whether the destination holds all that it promised, and what it may have acknowledged since.
    fn holds_all(&self) -> bool {
        // What is acknowledged may still be on its way to the source.
        let told = self.promoted.is_none() && self.link.to_source.is_empty();
        let core = self.mirror.core.as_ref();
        told && core.is_some_and(|core| {
            core.promotable() && self.model.complete_there(core.base().unwrap_or(core.stored()).digest)
        })
    }

    fn happens(&mut self, event: Event, how: Crash, calm: bool, cx: &mut Context) -> usize {
        match event {
            Event::SourceDisk => return self.source_disk(calm, cx),
            Event::MirrorDisk => return self.mirror_disk(calm, cx),
            Event::ToDestination => return self.deliver_to_destination(cx),
            Event::ToSource => return self.deliver_to_source(cx),
            Event::Connect => {
                let core = self.source.core.as_ref().expect("looked at before");
                self.link.connect(core.hello(), &mut cx.rng);
            }
            Event::Time => {
                let policy = self.source.core.as_ref().map(|core| core.policy());
                let timeout = policy.unwrap_or(self.source.shape.policy).timeout;
                let steps = [Duration::ZERO, timeout / 8, timeout / 8, timeout, Duration::from_secs(2)];
                // Without a fault nothing stands still for long.
                cx.now += if calm { timeout / 8 } else { cx.rng.pick(&steps) };
                self.check_warrant(cx);
                let now = cx.now;
                let due = |node: &SourceNode| node.deadline().is_some_and(|deadline| deadline <= now);
                if due(&self.source) {
                    self.source.turn(&mut self.link, &mut self.model, cx);
                }
                if let Some((node, model)) = self.promoted.as_mut().filter(|(node, _)| due(node)) {
                    node.turn(&mut Link::default(), model, cx);
                }
            }
            Event::StartSource => self.start_source(cx),
            Event::StartMirror => self.start_mirror(cx),
            Event::PromotedDisk => return self.promoted_disk(calm, cx),
            Event::Client => {
                let done = self.habits.act(&mut self.source, &mut self.model, cx);
                self.source.turn(&mut self.link, &mut self.model, cx);
                return done.max(1);
            }
            Event::PromotedClient => {
                let Some((node, model)) = &mut self.promoted else { return 0 };
                let done = self.habits.act(node, model, cx);
                node.turn(&mut Link::default(), model, cx);
                return done.max(1);
            }
            Event::Sync => {
                self.sync(cx);
            }
            Event::Cut => self.link.cut(&mut cx.rng),
            Event::HalfClose => {
                cx.met.count(Rare::HalfClosed);
                self.link.half_close(&mut cx.rng);
            }
            Event::CrashSource => self.crash_source(how, cx),
            Event::CrashMirror => self.crash_mirror(how, cx),
            Event::CrashBoth => {
                cx.met.count(Rare::BothCrashed);
                self.crash_source(how, cx);
                self.crash_mirror(how, cx);
            }
            Event::Wipe => self.wipe(cx),
            Event::Promote => self.promote(cx),
            Event::GhostPromote => {
                self.check_warrant(cx);
                crate::ghost::promote(&self.mirror, how, self.mirror_lost, &mut self.model, cx);
            }
            Event::GhostRot => crate::ghost::rot(self, cx),
            Event::Outage => {
                self.outage = cx.rng.pick(&[50, 200, 600]);
                self.link.cut(&mut cx.rng);
            }
            Event::Policy => {
                let policy = policy(cx);
                if cx.rng.chance(500) {
                    // In the configuration as well.
                    self.source.shape.policy = policy;
                }
                self.source.set_policy(policy, cx);
                self.source.turn(&mut self.link, &mut self.model, cx);
            }
            Event::HandOver => self.hand_over(cx),
            Event::Verify => {
                let repair = cx.rng.chance(300);
                self.verify(repair, cx);
            }
            Event::LiveRead => {
                self.mirror.read_live(cx);
                self.mirror.check_live(&mut self.model, cx);
            }
        }
        1
    }

    /// The source hands over, if that can be now.
    fn hand_over(&mut self, cx: &mut Context) {
        if let Some(core) = &mut self.source.core {
            // Why not is of no interest.
            let _ = core.handle_hand_over();
        }
        self.source.turn(&mut self.link, &mut self.model, cx);
    }

    /// A `sync` command; returns its token.
    pub fn sync(&mut self, cx: &mut Context) -> u64 {
        self.tokens += 1;
        if let Some(core) = &mut self.source.core {
            core.handle_sync(self.tokens);
        }
        self.source.turn(&mut self.link, &mut self.model, cx);
        self.tokens
    }

    /// Compares both sides; false: it can't be now.
    pub fn verify(&mut self, repair: bool, cx: &mut Context) -> bool {
        let begun = self.source.verify(repair);
        self.source.turn(&mut self.link, &mut self.model, cx);
        begun
    }

    fn faults(&self, calm: bool) -> Faults {
        if calm { Faults::default() } else { self.faults }
    }

    fn source_disk(&mut self, calm: bool, cx: &mut Context) -> usize {
        let mut done = 0;
        for _ in 0..=cx.rng.below(3) {
            match self.source.step(self.faults(calm), &mut self.model, cx) {
                Ok(true) => done += 1,
                Ok(false) => {}
                Err(()) => {
                    self.crash_source(Crash::Kill, cx);
                    // A sync that fails may take with it what it should have saved.
                    self.source_down = Crash::Power;
                    return done + 1;
                }
            }
        }
        self.source.turn(&mut self.link, &mut self.model, cx);
        done.max(1)
    }

    fn mirror_disk(&mut self, calm: bool, cx: &mut Context) -> usize {
        let mut done = 0;
        for _ in 0..=cx.rng.below(3) {
            match self.mirror.step(self.faults(calm), cx) {
                Ok(true) => done += 1,
                Ok(false) => {}
                Err(()) => {
                    self.crash_mirror(Crash::Kill, cx);
                    self.mirror_lost = true;
                    return done + 1;
                }
            }
        }
        self.mirror.check_live(&mut self.model, cx);
        self.mirror.turn(&mut self.link, cx);
        self.look_for_promoted(cx);
        done.max(1)
    }

    fn promoted_disk(&mut self, calm: bool, cx: &mut Context) -> usize {
        let faults = self.faults(calm);
        let Some((node, model)) = &mut self.promoted else { return 0 };
        match node.step(faults, model, cx) {
            Ok(_) => node.turn(&mut Link::default(), model, cx),
            Err(()) => {
                self.crash_mirror(Crash::Kill, cx);
                (self.mirror_lost, self.promoted_down) = (true, Crash::Power);
            }
        }
        1
    }

    fn deliver_to_destination(&mut self, cx: &mut Context) -> usize {
        let count = 1 + cx.rng.below(4);
        for _ in 0..count {
            self.mirror.deliver(&mut self.link, cx);
        }
        self.mirror.turn(&mut self.link, cx);
        if std::mem::take(&mut self.mirror.takes_over) {
            self.promote(cx);
        }
        // There is room for more to be sent.
        self.source.turn(&mut self.link, &mut self.model, cx);
        count
    }

    fn deliver_to_source(&mut self, cx: &mut Context) -> usize {
        let count = 1 + cx.rng.below(3);
        for _ in 0..count {
            if matches!(self.link.to_source.front(), Some(Message::Welcome(_))) && !self.source.ready_to_meet() {
                break;
            }
            let Some(message) = self.link.to_source.pop_front() else { break };
            let closed = matches!(message, Message::Closed);
            self.source.deliver(message, cx);
            if closed {
                self.link.closed_by_source();
            }
        }
        self.source.turn(&mut self.link, &mut self.model, cx);
        count
    }

    fn crash_source(&mut self, how: Crash, cx: &mut Context) {
        // What a start that was cut off has found, nobody has seen.
        if self.source.core.is_some() || how == Crash::Power {
            self.source_down = how;
        }
        self.source.crash(how, cx);
        self.link.source_died(&mut cx.rng);
    }

    fn start_source(&mut self, cx: &mut Context) {
        if cx.rng.chance(50) {
            let other = match self.source.shape.durability {
                Durability::Always => Durability::Flush,
                Durability::Flush => Durability::Always,
            };
            self.source.shape.durability = other;
            cx.met.count(Rare::SourceChangedDurability);
        }
        self.source.start(self.source_down, &mut self.model, cx);
    }

    pub fn crash_mirror(&mut self, how: Crash, cx: &mut Context) {
        if let Some(core) = &self.mirror.core {
            if self.holds_all() {
                self.mirror_lost = false;
            }
            let fencing = core.superblock().epoch > self.identity.epoch;
            if self.promoting && self.promoted.is_none() && fencing {
                let state = newest(Role::Destination, self.mirror.io.disks[SUPERBLOCKS].words(), &cx.vault);
                let written = state.is_some_and(|(state, _)| state.epoch > self.identity.epoch);
                cx.met.count(if written { Rare::PromoteCrashedInApply } else { Rare::PromoteCrashedBeforeEpoch });
            }
        }
        self.mirror_lost |= how == Crash::Power;
        self.mirror.crash(how, cx);
        self.link.destination_died(&mut cx.rng);
        if let Some((node, _)) = &mut self.promoted {
            if node.core.is_some() || how == Crash::Power {
                self.promoted_down = how;
            }
            node.crash(how, cx);
        }
    }

    fn start_mirror(&mut self, cx: &mut Context) {
        if cx.rng.chance(200) {
            // The operator has changed the configuration.
            self.mirror.plan = plan(cx);
            self.mirror.nvram.used = cx.rng.chance(500);
        }
        self.mirror.start(cx).unwrap_or_else(|damage| panic!("the destination's journal files: {damage}"));
        if let Some((node, model)) = self.promoted.as_mut().filter(|(node, _)| node.down()) {
            cx.met.count(Rare::PromotedStartedAgain);
            node.start(self.promoted_down, model, cx);
        }
        self.mirror.turn(&mut self.link, cx);
        self.look_for_promoted(cx);
    }

    /// Where nothing is said to be missing, everything is held that was answered, by whomever.
    fn check_warrant(&mut self, cx: &mut Context) {
        let Some(core) = &self.mirror.core else { return };
        let found = core.warrant(cx.now);
        if self.promoting || self.promoted.is_some() || found.decide().action != Missing::Nothing {
            return;
        }
        cx.met.count_if(!core.connected() && found.policy == Warranted::Waits, Rare::WarrantedForGood);
        cx.met.count_if(!core.connected() && found.policy == Warranted::GoesOn, Rare::WarrantedForATime);
        // An operator's order to a source without a connection is what no destination can know.
        assert!(
            self.source.ordered || self.model.complete(core.stored().digest),
            "answered writes are missing: {found:?}"
        );
    }

    fn promote(&mut self, cx: &mut Context) {
        self.check_warrant(cx);
        let Some(core) = &self.mirror.core else { return };
        if core.promotable() {
            cx.met.count_if(core.connected(), Rare::PromotedWhileConnected);
            let phase = core.superblock().staging.phase;
            cx.met.count_if(phase == Phase::Staging && !self.promoting, Rare::PromotedWhileStaging);
            cx.met.count_if(phase == Phase::Draining && !self.promoting, Rare::PromotedWhileDraining);
            cx.met.count_if(core.halves().iter().any(|half| half.state != FillState::Clean), Rare::PromotedWithFills);
            self.promoting = true;
            self.mirror.promote(&mut self.link);
            self.mirror.turn(&mut self.link, cx);
            self.look_for_promoted(cx);
        }
    }

    /// The promote is complete: its image is compared, and served by a source without a destination.
    fn look_for_promoted(&mut self, cx: &mut Context) {
        let (Some(mark), Some(core)) = (self.mirror.promoted, &self.mirror.core) else { return };
        if self.promoted.is_some() {
            return;
        }
        let epoch = core.superblock().epoch;
        let base = self.mirror.serves_base;
        crate::ghost::check_promoted(&self.mirror, mark, base, self.mirror_lost, &mut self.model, cx);
        self.model.fence(mark.digest, self.mirror_lost || base);
        let images: Volumes = self.model.state(mark.digest);
        let (id, lineage) = (Id([200; 16]), self.identity.source);
        let superblock =
            Superblock { source: id, lineage, epoch, clean: mark, known: vec![mark], ..self.identity.clone() };
        let shape = Shape { mirrored: false, ..self.source.shape.clone() };
        let mut node = SourceNode::new(shape, disks(&superblock, images.clone(), &mut cx.vault));
        node.io.disks.splice(VOLUMES.., self.mirror.io.disks[VOLUMES..].iter().cloned());
        node.heir_of = Some(crate::ghost::estate(&self.mirror, &cx.vault));
        let mut model = Model::new(images, mark.digest);
        node.start(Crash::Kill, &mut model, cx);
        self.promoted = Some((node, model));
    }

    /// The operator stops a destination whose staging log takes no more, and gives it more room.
    pub fn give_room(&mut self, cx: &mut Context) {
        if self.mirror.core.as_ref().is_some_and(|core| core.staging_trouble().is_some()) {
            self.crash_mirror(Crash::Kill, cx);
        }
        if self.mirror.down() {
            self.mirror.plan.limit_bytes = 1 << 40;
        }
    }

    /// The epoch in which it all began.
    pub fn epoch(&self) -> Epoch {
        self.identity.epoch
    }

    pub fn promoting(&self) -> bool {
        self.promoting
    }

    /// One line of what both sides are up to.
    pub fn describe(&self) -> String {
        let source = match &self.source.core {
            None if self.source.down() => "down".into(),
            None => "starting".into(),
            Some(core) => {
                let halves = core.halves().each_ref().map(|half| format!("{}:{}", half.fill, half.state.word()));
                let (last, done, acked) = (core.last(), core.committed(), core.acked());
                let (how, mode, dirty) = (self.source.shape.durability, core.mode(), core.dirty_bytes());
                let copying = if core.copier().is_some() { " copying" } else { "" };
                format!(
                    "{how:?} {mode:?} last {last} committed {done} acked {acked} {} {} dirty {dirty}{copying}{}",
                    halves[0],
                    halves[1],
                    if core.superblock().whole { " whole" } else { "" }
                )
            }
        };
        let mirror = match &self.mirror.core {
            None => "down".into(),
            Some(core) => {
                let halves = core.halves().each_ref().map(|half| format!("{}:{}", half.fill, half.word()));
                let superblock = core.superblock();
                format!(
                    "stored {} clean {} epoch {} {} {} {:?} {}..{}{}{}",
                    core.stored().seq,
                    superblock.clean.seq,
                    superblock.epoch,
                    halves[0],
                    halves[1],
                    superblock.staging.phase,
                    superblock.staging.head,
                    superblock.staging.tail,
                    if core.connected() { " connected" } else { "" },
                    if superblock.whole { " whole" } else { "" },
                )
            }
        };
        format!("{source:64} | {mirror}")
    }
}

fn policy(cx: &mut Context) -> Policy {
    let on_disconnect = cx.rng.pick(&[
        OnDisconnect::Continue,
        OnDisconnect::Continue,
        OnDisconnect::Continue,
        OnDisconnect::Stall,
        OnDisconnect::Fail,
    ]);
    Policy { on_disconnect, timeout: Duration::from_millis(cx.rng.pick(&[500, 2000, 5000])) }
}

/// What the staging log may take: nothing, a fill or two, or all there will ever be.
fn plan(cx: &mut Context) -> StagingPlan {
    let limit_bytes = cx.rng.pick(&[0, 1200 << 10, 3 << 20, 1 << 40, 1 << 40, 1 << 40]);
    StagingPlan { limit_bytes, best_effort: cx.rng.chance(500) }
}

/// How likely things are in this world.
fn weights(cx: &mut Context) -> [u64; EVENTS.len()] {
    let mut weights = [0; EVENTS.len()];
    let mut set = |event: Event, weight: u64| weights[event as usize] = weight;
    let slow = |weight: u64, rng: &mut crate::rng::Rng| if rng.chance(250) { weight / 8 + 1 } else { weight };
    let rng = &mut cx.rng;
    set(Event::SourceDisk, slow(300, rng));
    set(Event::MirrorDisk, slow(300, rng));
    set(Event::ToDestination, slow(300, rng));
    set(Event::ToSource, slow(300, rng));
    set(Event::Connect, slow(60, rng));
    set(Event::Time, slow(10, rng));
    set(Event::StartSource, 100);
    set(Event::StartMirror, 100);
    set(Event::PromotedDisk, slow(300, rng));
    set(Event::Client, slow(200, rng));
    set(Event::PromotedClient, slow(100, rng));
    set(Event::Sync, slow(6, rng));
    set(Event::Cut, slow(4, rng));
    set(Event::HalfClose, 1);
    set(Event::CrashSource, slow(3, rng));
    set(Event::CrashMirror, slow(3, rng));
    set(Event::CrashBoth, 1);
    set(Event::Wipe, u64::from(rng.chance(100)));
    set(Event::Promote, u64::from(rng.chance(500)));
    set(Event::GhostPromote, 2);
    set(Event::GhostRot, 1);
    set(Event::Outage, slow(rng.pick(&[0, 2, 8]), rng));
    set(Event::Policy, rng.pick(&[0, 0, 1, 12]));
    set(Event::Verify, rng.pick(&[0, 1]));
    set(Event::HandOver, rng.pick(&[0, 0, 1]));
    set(Event::LiveRead, rng.pick(&[5, 60]));
    weights
}
