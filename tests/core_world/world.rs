//! One world under one seed: a source, a destination, a connection, a client, and everything that can go wrong.

use crate::destination::DestinationNode;
use crate::disk::{Crash, Disk, Rng, SECTOR};
use crate::history::History;
use crate::link::Link;
use crate::source::{SourceNode, Superblocks, remember};
use nbd_mirror::core::Durability;
use nbd_mirror::core::source::Shape;
use nbd_mirror::format::ids::{Epoch, Id, Mark};
use nbd_mirror::format::superblock::{Role, Superblock, Volume};
use nbd_mirror::limits::MAX_FRAME_PAYLOAD_BYTES;
use std::time::Duration;

/// One half, in bytes: far smaller than a real one, so that halves switch often.
const HALF_BYTES: u64 = (MAX_FRAME_PAYLOAD_BYTES + (256 << 10)) as u64;

/// How likely things are in this world: a weight each.
#[derive(Debug)]
pub struct Weights {
    pub source_io: u64,
    pub destination_io: u64,
    pub to_destination: u64,
    pub to_source: u64,
    pub client: u64,
    pub time: u64,
    pub connect: u64,
    pub cut: u64,
    pub source_crash: u64,
    pub destination_crash: u64,
    pub sync: u64,
    pub ghost: u64,
    pub wipe: u64,
}

pub struct World {
    pub rng: Rng,
    pub weights: Weights,
    pub shape: Shape,
    pub known: Superblocks,
    pub history: History,
    pub source: Option<SourceNode>,
    pub destination: Option<DestinationNode>,
    pub link: Link,
    pub now: Duration,
    pub largest: u64,
    /// Power failed at the destination since its last clean moment.
    pub destination_power: bool,
    pub tokens: u64,
    pub trace: bool,
    pub promotes: u32,
}

fn blank(superblock: &Superblock, known: &mut Superblocks, volumes: Vec<Vec<u8>>) -> Vec<Disk> {
    let block = remember(known, superblock);
    let copies = [&block[..], &block[..]].concat();
    let halves = [(); 2].map(|()| vec![0; HALF_BYTES as usize]);
    halves.into_iter().chain([copies]).chain(volumes).map(Disk::new).collect()
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let durability = if rng.chance(500) { Durability::Always } else { Durability::Flush };
        let mut slow = |weight: u64| if rng.chance(250) { weight / 8 + 1 } else { weight };
        let weights = Weights {
            source_io: slow(300),
            destination_io: slow(300),
            to_destination: slow(300),
            to_source: slow(300),
            client: slow(200),
            time: slow(10),
            connect: slow(60),
            cut: slow(4),
            source_crash: slow(3),
            destination_crash: slow(3),
            sync: slow(6),
            ghost: 2,
            wipe: 0,
        };
        let weights = Weights { wipe: u64::from(rng.chance(100)), ..weights };
        let sizes: &[usize] = [&[2560 << 10][..], &[96 << 10], &[1100 << 10, 64 << 10]][rng.below(3) as usize];
        let mut base: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
        if rng.chance(700) {
            for volume in &mut base {
                for _ in 0..6 {
                    let at = rng.below((volume.len() / SECTOR) as u64) as usize * SECTOR;
                    let end = (at + (8 << 10)).min(volume.len());
                    volume[at..end].fill(rng.next() as u8);
                }
            }
        }
        let shape = Shape { durability, mirrored: true, max_age: Duration::from_secs(10) };
        let volume = |(index, bytes): (usize, &Vec<u8>)| Volume {
            name: format!("vol{index}"),
            size_bytes: bytes.len() as u64,
            block_bytes: 512,
            copied_bytes: 0,
        };
        let superblock = Superblock {
            role: Role::Source,
            generation: 2,
            source: Id([5; 16]),
            name: "alpha".into(),
            half_bytes: HALF_BYTES,
            epoch: Epoch(1),
            fenced_by: Epoch(0),
            incarnation: 0,
            clean: Mark::default(),
            whole: false,
            promoted: false,
            volumes: base.iter().enumerate().map(volume).collect(),
        };
        let mut known = Superblocks::new();
        let mut history = History::new(base.clone(), durability == Durability::Always);
        let disks = blank(&superblock, &mut known, base.clone());
        let source = SourceNode::start(shape.clone(), disks, &mut known, &mut history, Crash::Kill);
        let largest = [2, 8, 64, 256][rng.below(4) as usize];
        let mut world = World {
            rng,
            weights,
            shape,
            known,
            history,
            source: Some(source),
            destination: None,
            link: Link::default(),
            now: Duration::ZERO,
            largest,
            destination_power: false,
            tokens: 0,
            trace: std::env::var_os("CORE_WORLD_TRACE").is_some(),
            promotes: 0,
        };
        world.wipe_destination();
        world
    }

    pub fn note(&self, what: &str) {
        if self.trace {
            let source = self.source.as_ref().map(|source| {
                let core = &source.core;
                let halves = core.halves().iter().map(|h| format!("{}:{}", h.fill, h.state.word())).collect::<Vec<_>>();
                format!("last {} committed {} acked {} {halves:?}", core.last(), core.committed(), core.acked())
            });
            let destination = self.destination.as_ref().map(|destination| {
                let core = &destination.core;
                let halves = core.halves().iter().map(|h| format!("{}:{}", h.fill, h.word())).collect::<Vec<_>>();
                format!("stored {} clean {} {halves:?}", core.stored().seq, core.superblock().clean.seq)
            });
            eprintln!("{:24} source: {:60} destination: {}", what, source.unwrap(), destination.unwrap());
        }
    }

    /// The destination's disks are replaced by blank ones, or by such with something else on the images.
    pub fn wipe_destination(&mut self) {
        let ours = self.source.as_ref().unwrap().core.superblock().clone();
        let volumes = ours.volumes.iter().map(|volume| Volume { copied_bytes: 0, ..volume.clone() }).collect();
        let superblock = Superblock {
            role: Role::Destination,
            generation: 2,
            clean: Mark::default(),
            whole: false,
            incarnation: 0,
            volumes,
            ..ours
        };
        let junk = if self.rng.chance(500) { 0 } else { 0xee };
        let images = superblock.volumes.iter().map(|volume| vec![junk; volume.size_bytes as usize]).collect();
        let disks = blank(&superblock, &mut self.known, images);
        self.destination = Some(DestinationNode::start(disks, &mut self.known));
    }

    pub fn crash_source(&mut self, how: Crash) {
        self.note(&format!("source crash {how:?}"));
        let disks = self.source.take().unwrap().crash(how, &mut self.rng);
        self.link.source_died(&mut self.rng);
        let mut source = SourceNode::start(self.shape.clone(), disks, &mut self.known, &mut self.history, how);
        source.turn(self.now, &mut self.link, &mut self.known, &mut self.history);
        self.source = Some(source);
        self.note("source started");
    }

    pub fn crash_destination(&mut self, how: Crash) {
        self.note(&format!("destination crash {how:?}"));
        let disks = self.destination.take().unwrap().crash(how, &mut self.rng);
        self.link.destination_died(&mut self.rng);
        self.destination_power |= how == Crash::Power;
        let mut destination = DestinationNode::start(disks, &mut self.known);
        destination.turn(&mut self.link, &mut self.known);
        self.destination = Some(destination);
        self.note("destination started");
    }
}
