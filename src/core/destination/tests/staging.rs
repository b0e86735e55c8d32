//! The staging log's bounds, what is asked of the contents, and pings.

use super::super::super::index::{Found, Segment};
use super::super::*;
use super::world::*;
use crate::format::ping::{OnDisconnect, Ping, Standing};
use crate::format::superblock::Role;
use crate::format::wire::Signal;
use crate::limits::{DRAIN_BYTES, MAX_COPY_WINDOWS};

/// In step, and then begun anew behind record 500.
fn restarted(plan: StagingPlan) -> World {
    let mut world = in_step(plan);
    again(&mut world, far(20, 500));
    world
}

fn again(world: &mut World, at: Mark) {
    world.core.handle_disconnected();
    world.run().unwrap();
    let common = *world.connect().boundaries.last().unwrap();
    world.signal(Signal::Settle { common }).unwrap();
    world.run().unwrap();
    world.last = at;
    world.signal(Signal::Restart { at }).unwrap();
    world.run().unwrap();
}

fn fill(world: &mut World, fill: u64, frames: usize, whole: bool) {
    for block in 0..frames {
        world.stored(fill, block, fill as u8).unwrap();
    }
    world.sync(whole);
    world.run().unwrap();
}

#[test]
fn without_room_the_source_is_cut_off_and_the_old_image_kept() {
    let mut world = restarted(StagingPlan { limit_bytes: 5 * BLOCK, best_effort: false });
    let (old, base) = (world.disks.image.clone(), world.core.base());
    fill(&mut world, 21, 2, false);
    fill(&mut world, 22, 1, false);
    let reason = world.cut_off.clone().unwrap();
    for word in ["holds 16384 bytes", "limit of 20480", "staging_size", "best_effort", "record 4"] {
        assert!(reason.contains(word), "{reason}");
    }
    let refused = world.core.welcome(&superblock(Role::Source)).unwrap();
    assert_eq!((refused.verdict, &refused.reason), (Verdict::Refused, &reason));
    assert!(world.core.promotable() && world.disks.image == old);
    // More room, and on it goes.
    let plan = StagingPlan { limit_bytes: 6 * BLOCK, ..PLAN };
    let (last, volume) = (world.last, world.volume.clone());
    let disks = world.disks.clone();
    world.promote();
    assert_eq!((world.promoted, world.disks.image), (base, old));
    let mut world = World::start(disks, plan).unwrap();
    world.volume = volume;
    world.connect();
    world.signal(Signal::Resume { common: last }).unwrap();
    world.sync(true);
    world.run().unwrap();
    assert_eq!((world.phase(), world.disks.image, world.cut_off), (Phase::Direct, world.volume, None));
}

#[test]
fn without_room_a_best_effort_goes_on_and_is_not_promotable() {
    for limit_blocks in [0, 3, 5] {
        let mut world = restarted(StagingPlan { limit_bytes: limit_blocks * BLOCK, best_effort: true });
        fill(&mut world, 21, 2, false);
        fill(&mut world, 22, 1, false);
        assert!(!world.core.promotable() && world.cut_off.is_none() && world.phase() == Phase::Direct);
        assert_eq!((&world.disks.image, world.disks.state().clean), (&world.volume, world.last));
        let again = World::start(world.disks.clone(), PLAN).unwrap();
        assert!(!again.core.promotable() && again.core.base().is_none());
        fill(&mut world, 23, 1, true);
        assert!(world.core.promotable());
        assert_eq!(world.disks.image, world.volume);
    }
}

#[test]
fn a_full_file_system_counts_like_the_limit() {
    let mut world = restarted(PLAN);
    fill(&mut world, 21, 2, false);
    world.full = true;
    fill(&mut world, 22, 1, false);
    assert!(
        world.cut_off.as_ref().is_some_and(|reason| reason.contains("no room for 8192 bytes")),
        "{:?}",
        world.cut_off
    );
    assert!(world.core.promotable());
    let mut world = restarted(StagingPlan { best_effort: true, ..PLAN });
    fill(&mut world, 21, 2, false);
    world.full = true;
    fill(&mut world, 22, 1, true);
    assert_eq!((world.phase(), &world.disks.image), (Phase::Direct, &world.volume));
    // A restart finds no room, either.
    let mut world = restarted(PLAN);
    fill(&mut world, 21, 2, false);
    world.full = true;
    again(&mut world, far(40, 900));
    assert!(world.cut_off.is_some() && world.core.promotable());
    let (base, old) = (world.core.base(), world.disks.image.clone());
    assert_eq!(World::failover(world.disks.clone()), (base.unwrap(), old.clone()));
    world.promote();
    assert_eq!((world.promoted, world.disks.image), (base, old));
    let mut world = restarted(StagingPlan { best_effort: true, ..PLAN });
    fill(&mut world, 21, 2, false);
    world.full = true;
    again(&mut world, far(40, 900));
    fill(&mut world, 41, 1, true);
    assert_eq!((world.phase(), &world.disks.image), (Phase::Direct, &world.volume));
}

/// A log that is longer than a segment is drained in several, and fills go behind its end as long as much is left.
#[test]
fn a_long_log_is_drained_segment_by_segment() {
    let limit = DRAIN_BYTES + 8 * HALF;
    let mut world = restarted(StagingPlan { limit_bytes: limit, best_effort: false });
    let mut number = 20;
    while world.core.superblock().staging.tail <= DRAIN_BYTES {
        number += 1;
        fill(&mut world, number, 128, false);
    }
    assert_eq!(world.phase(), Phase::Staging);
    for block in 0..128 {
        world.write(number + 1, block, 200);
        assert!(world.step().unwrap());
    }
    world.until(|world| world.core.stored() == world.last);
    world.sync(true);
    let behind = world.core.superblock().staging.tail + 256 * BLOCK;
    world.until(|world| world.disks.state().staging.phase == Phase::Draining);
    assert_eq!(world.disks.state().staging.tail, behind);
    world.write(number + 2, 3, 201);
    world.until(|world| world.core.stored() == world.last);
    world.sync(false);
    let mut heads = std::collections::BTreeSet::new();
    while world.step().unwrap() {
        let staging = world.disks.state().staging;
        heads.insert(staging.head);
        assert!(world.core.promotable() && staging.tail - staging.head <= limit);
    }
    assert!(heads.len() >= 3, "{heads:?}");
    assert_eq!((world.phase(), &world.disks.image), (Phase::Direct, &world.volume));
}

fn ask(world: &mut World, id: u64, offset: u64, length: u32) -> Result<(), String> {
    world.signal(Signal::Ask { id, volume: 0, offset, length })
}

/// What a question finds, block by block: a byte, or that it isn't known.
fn answer(world: &mut World) -> Option<(u64, Vec<Option<u8>>)> {
    let mut segments: Vec<Segment> = Vec::new();
    let ask = world.core.next_ask(&mut segments)?;
    let mut found = Vec::new();
    for segment in &segments {
        for at in (segment.offset..segment.offset + segment.length).step_by(BLOCK as usize) {
            found.push(match segment.found {
                Found::Memory(place) => world.byte(Place(place.0 + at - segment.offset)),
                Found::Zeros => 0,
                Found::Device => world.disks.image[(at / BLOCK) as usize],
            });
        }
    }
    assert_eq!(found.len(), ask.count());
    assert!(world.core.handle_summed());
    Some((ask.id, (0..ask.count()).map(|number| ask.knows(number).then_some(found[number])).collect()))
}

#[test]
fn a_question_is_answered_from_memory_and_image_but_not_from_the_log() {
    let mut world = restarted(PLAN);
    fill(&mut world, 21, 1, false);
    world.stored(22, 2, 77).unwrap();
    // A frame that came before the question isn't stored yet.
    world.write(22, 100, 78);
    ask(&mut world, 5, 0, 18 * BLOCK as u32).unwrap();
    assert_eq!(answer(&mut world), None);
    world.run().unwrap();
    let (id, blocks) = answer(&mut world).unwrap();
    // The log touches the first grain, of 16 blocks; a half has block 2; the rest is the image's.
    let mut expected = vec![None; 16];
    expected[2] = Some(77);
    expected.extend([Some(0), Some(0)]);
    assert_eq!((id, blocks), (5, expected));
    ask(&mut world, 6, 100 * BLOCK, 100).unwrap();
    assert_eq!(answer(&mut world), Some((6, vec![Some(78)])));
    // As after a start of this side, which reads the log.
    let mut again = World::start(world.disks.clone(), PLAN).unwrap();
    let common = *again.connect().boundaries.last().unwrap();
    again.signal(Signal::Resume { common }).unwrap();
    ask(&mut again, 7, 0, 3 * BLOCK as u32).unwrap();
    assert_eq!(answer(&mut again), Some((7, vec![None, None, Some(77)])));
    // And when all is on the image, all is known.
    world.sync(true);
    world.run().unwrap();
    ask(&mut world, 8, 0, 4 * BLOCK as u32).unwrap();
    assert_eq!(answer(&mut world), Some((8, vec![Some(21), Some(11), Some(77), Some(13)])));
}

#[test]
fn questions_have_their_bounds() {
    let mut world = restarted(PLAN);
    let reason = ask(&mut world, 1, BLOCKS as u64 * BLOCK - BLOCK, 2 * BLOCK as u32).unwrap_err();
    assert!(reason.contains("beyond its volume"), "{reason}");
    for id in 0..MAX_COPY_WINDOWS as u64 {
        ask(&mut world, id, 0, 4096).unwrap();
    }
    assert!(ask(&mut world, 99, 0, 4096).unwrap_err().contains("questions at a time"));
    let mut segments = Vec::new();
    assert!(world.core.next_ask(&mut segments).is_some());
    // Nobody is there to be told, and nobody is welcomed before it is over.
    world.core.handle_disconnected();
    assert!(world.core.next_ask(&mut segments).is_none());
    assert!(world.core.welcome(&superblock(Role::Source)).is_err());
    assert!(!world.core.handle_summed());
    world.connect();
    assert!(ask(&mut world, 1, 0, 4096).unwrap_err().contains("before it resumed"));
}

#[test]
fn a_ping_is_answered_at_any_time() {
    let mut world = restarted(PLAN);
    world.stored(21, 1, 1).unwrap();
    let ping = Signal::Ping(Ping {
        answered: Seq(77),
        standing: Standing::Alone,
        on_disconnect: OnDisconnect::Continue,
        timeout_ms: 5000,
        echo: 0,
    });
    let mut pings = 0;
    let mut say = |world: &mut World| {
        world.reported();
        world.signal(ping).unwrap();
        world.step().unwrap();
        pings += 1;
        assert!(world.reported().contains(&Report::Pong { stamp: 0 }), "ping {pings}");
        assert_eq!((world.core.heard().answered(), world.core.heard().alone()), (Seq(77), true));
    };
    say(&mut world);
    world.core.handle_disconnected();
    world.run().unwrap();
    let common = *world.connect().boundaries.last().unwrap();
    say(&mut world);
    world.signal(Signal::Settle { common }).unwrap();
    say(&mut world);
    world.run().unwrap();
    say(&mut world);
    world.last = far(40, 900);
    world.signal(Signal::Restart { at: world.last }).unwrap();
    say(&mut world);
}
