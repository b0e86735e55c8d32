//! Both cores start from the same recovered journal, meet, and bring all of it to their devices.

use super::image::{Journal, SOURCE, VOLUME_BYTES};
use nbd_mirror::core::destination::{self, Destination, StagingPlan};
use nbd_mirror::core::dirty::Dirty;
use nbd_mirror::core::half::{Entry, Ticket};
use nbd_mirror::core::policy::{OnDisconnect, Policy};
use nbd_mirror::core::recovery::{self, Recovered, staged::Scan};
use nbd_mirror::core::source::{self, Headers, Send, Shape, Source};
use nbd_mirror::core::{Durability, Place};
use nbd_mirror::format::block::Block;
use nbd_mirror::format::frame::{Header, Record};
use nbd_mirror::format::ids::{Epoch, Fill, Mark};
use nbd_mirror::format::superblock::{Role, Superblock, Volume};
use nbd_mirror::format::wire::{Report, Signal, Verdict};
use nbd_mirror::limits::{BLOCK_BYTES, GRAIN_BYTES};
use std::time::Duration;

/// Rounds in which two sides that have everything must be done.
const ROUNDS: usize = 64;

struct Memory(u64);

impl Headers for Memory {
    fn store(&mut self, _: &Block) -> Place {
        self.0 += BLOCK_BYTES as u64;
        Place(self.0)
    }
}

fn superblock(journal: &Journal, role: Role, whole: bool) -> Superblock {
    let volume = |name: &str| Volume { name: name.into(), size_bytes: VOLUME_BYTES, block_bytes: 512 };
    let volumes = vec![volume("vol0"), volume("vol1")];
    let first = Superblock::first(role, SOURCE, "alpha", journal.half_bytes, Epoch(1), volumes);
    Superblock { generation: 2, incarnation: 2, clean: journal.clean, whole, ..first }
}

/// A frame's records, each with its place: its position in its half.
fn records(journal: &Journal, fill: Fill, position: u64) -> Vec<(Record, Place)> {
    let half = &journal.halves[fill.half()][position as usize..];
    let block = half.first_chunk().expect("a block");
    let header = Header::parse(block).expect("a header");
    recovery::records(&header, block, Place(half_at(fill).0 + position + BLOCK_BYTES as u64))
}

fn half_at(fill: Fill) -> Place {
    Place((fill.half() as u64) << 32)
}

/// Runs both sides; `whole` tells whether the image was a copy before.
pub fn settle(journal: &Journal, recovered: Recovered, whole: bool) {
    let end = recovered.end;
    let again = super::recover(journal, whole).expect("it was recovered before");
    let state = superblock(journal, Role::Destination, whole);
    let touched = Scan::new(&state).finish().expect("there is no log");
    let plan = StagingPlan { limit_bytes: 0, best_effort: false };
    let mut destination = Destination::recover(state, plan, touched, again, |found| {
        records(journal, found.header.fill, found.header.position)
    });
    assert_eq!(destination.stored(), end);
    let shape = Shape {
        durability: Durability::Flush,
        mirrored: true,
        policy: Policy { on_disconnect: OnDisconnect::Stall, timeout: Duration::from_secs(5) },
        max_age: Duration::from_secs(10),
        started_unix_s: 0,
    };
    let dirty = Dirty::clean(SOURCE, &[VOLUME_BYTES; 2], GRAIN_BYTES);
    let mut source =
        Source::recover(shape, superblock(journal, Role::Source, true), dirty, recovered, |id, position| {
            let entry = |(record, place)| Entry { record, place, ticket: Ticket::NONE };
            (Place(position), records(journal, id.fill, position).into_iter().map(entry).collect())
        });
    assert_eq!(source.last(), end.seq);
    let mut segments = Vec::new();
    source.read(0, 0..VOLUME_BYTES, &mut segments);
    assert_eq!(segments.iter().map(|segment| segment.length).sum::<u64>(), VOLUME_BYTES);

    let welcome = destination.welcome(source.superblock()).expect("nothing is under way");
    assert_eq!(welcome.verdict, Verdict::Welcome);
    destination.handle_connected(Duration::ZERO);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    source.handle_welcome(&welcome, &mut ours);
    let mut memory = Memory(1 << 40);
    for _ in 0..ROUNDS {
        source.handle_turn(Duration::ZERO, &mut memory, &mut ours);
        destination.handle_turn(&mut theirs);
        pump(journal, &mut source, &mut destination, &mut ours, &mut theirs);
    }
    assert_eq!(source.committed(), end.seq);
    assert_eq!((source.superblock().clean, destination.superblock().clean), (end, end));
}

/// Everything that is asked for happens at once.
fn pump(
    journal: &Journal,
    source: &mut Source,
    destination: &mut Destination,
    ours: &mut Vec<source::Effect>,
    theirs: &mut Vec<destination::Effect>,
) {
    let mut rescan = |before: Mark, until: Mark| {
        let halves = [&journal.halves[0][..], &journal.halves[1]];
        recovery::rescan(&halves, SOURCE, before, until, half_at(until.fill))
    };
    let mut reports = Vec::new();
    for effect in std::mem::take(ours) {
        match effect {
            source::Effect::WriteSuperblock(..) => source.handle_superblock_written(ours),
            source::Effect::SyncJournal => source.handle_journal_synced(),
            source::Effect::SyncVolume(volume) => source.handle_volume_synced(volume),
            source::Effect::WriteMap(..) => source.handle_map_written(),
            source::Effect::Release(..) | source::Effect::Switched(_) => {}
            source::Effect::Mode(_) | source::Effect::Resync(_) => {}
            other => panic!("nothing calls for {other:?}"),
        }
    }
    for effect in std::mem::take(theirs) {
        match effect {
            destination::Effect::Report(report) => reports.push(report),
            destination::Effect::WriteState(..) => destination.handle_state_written(theirs),
            destination::Effect::SyncFile(_) => destination.handle_file_synced(theirs),
            destination::Effect::SyncImage(volume) => destination.handle_image_synced(volume),
            destination::Effect::Applied(_) => {}
            other => panic!("nothing calls for {other:?}"),
        }
    }
    for report in reports {
        assert!(matches!(report, Report::Stored(_) | Report::Applied(_) | Report::Pong { .. }), "{report:?}");
        source.handle_report(report, ours);
    }
    while let Some(send) = source.next_to_send() {
        let Send::Block(block) = send else { panic!("the destination has every frame") };
        let signal = Signal::decode(&block).expect("a signal");
        destination.handle_signal(Duration::ZERO, signal, &mut rescan, theirs).expect("both hold the same");
    }
    let mut pieces = Vec::new();
    while source.next_flush(&mut pieces).is_some() {
        source.handle_flush_written();
    }
    while destination.next_apply(&mut pieces).is_some() {
        destination.handle_applied();
    }
}
