//! A source that comes back when its journal no longer reaches back to what is held here.

use super::super::super::recovery;
use super::super::*;
use super::world::*;
use crate::format::wire::Signal;

/// The connection went, and the source comes back from afar; it goes on behind `at`.
fn restarted(world: &mut World, at: Mark) -> Result<(), Cut> {
    world.core.handle_disconnected();
    world.run()?;
    let welcome = world.connect();
    let common = *welcome.boundaries.last().unwrap();
    world.reported();
    world.signal(Signal::Settle { common }).unwrap();
    world.run()?;
    assert_eq!(world.reported(), [Report::Settled(common)]);
    world.last = at;
    world.signal(Signal::Restart { at }).unwrap();
    world.run()
}

/// A resync that is being staged, with a fill in the log.
fn staging(plan: StagingPlan) -> World {
    let mut world = in_step(plan);
    restarted(&mut world, far(20, 500)).unwrap();
    world.stored(21, 1, 50).unwrap();
    world.stored(21, 40, 51).unwrap();
    world.sync(false);
    world.run().unwrap();
    world
}

#[test]
fn a_source_from_afar_is_told_when_all_is_settled() {
    let mut world = in_step(PLAN);
    let kept = world.stored(2, 7, 70).unwrap();
    let volume = world.volume.clone();
    world.stored(2, 8, 80).unwrap();
    world.core.handle_disconnected();
    assert!(!world.connect().boundaries.is_empty());
    world.reported();
    world.signal(Signal::Settle { common: kept }).unwrap();
    let sync = Signal::Sync { last: kept, whole: true };
    assert!(world.signal(sync).unwrap_err().contains("before it resumed"));
    world.until(|world| world.core.halves().iter().all(|half| half.state == State::Clean));
    world.run().unwrap();
    assert_eq!(world.reported(), [Report::Settled(kept)], "and no word of what was applied for that");
    assert_eq!((&world.disks.image, world.disks.state().clean), (&volume, kept));
    // What was dropped is void: nothing of it comes back.
    let again = World::start(world.disks.clone(), PLAN).unwrap();
    assert_eq!(again.core.stored(), kept);
    let twice = world.signal(Signal::Settle { common: kept }).unwrap_err();
    let resume = world.signal(Signal::Resume { common: kept }).unwrap_err();
    assert!(twice.contains("after it said") && resume.contains("resumes twice"), "{twice}; {resume}");
}

#[test]
fn a_restart_needs_that_all_is_settled() {
    let mut world = in_step(PLAN);
    world.core.handle_disconnected();
    world.connect();
    let refused = |world: &mut World, at| world.signal(Signal::Restart { at }).unwrap_err();
    assert!(refused(&mut world, far(9, 90)).contains("is stored here"));
    let mut world = in_step(PLAN);
    world.core.handle_disconnected();
    world.connect();
    world.signal(Signal::Settle { common: world.last }).unwrap();
    world.signal(Signal::Restart { at: far(9, 90) }).unwrap_err();
}

#[test]
fn the_old_image_stays_until_the_new_one_is_whole() {
    let mut world = in_step(PLAN);
    let (old, base) = (world.volume.clone(), world.core.stored());
    restarted(&mut world, far(20, 500)).unwrap();
    assert_eq!((world.phase(), world.core.base()), (Phase::Staging, Some(base)));
    assert!(world.core.promotable() && !world.core.superblock().whole);
    for fill in 21..24 {
        world.stored(fill, fill as usize, fill as u8).unwrap();
        world.stored(fill, 2, fill as u8).unwrap();
        world.reported();
        world.sync(false);
        world.run().unwrap();
        assert_eq!(world.reported(), [Report::Applied(world.last)]);
        assert_eq!((&world.disks.image, world.phase()), (&old, Phase::Staging));
    }
    assert_eq!(world.core.superblock().staging.tail, 12 * BLOCK);
    world.stored(24, 3, 33).unwrap();
    world.sync(true);
    while world.step().unwrap() {
        assert!(world.core.promotable());
    }
    assert_eq!((world.phase(), world.core.base()), (Phase::Direct, None));
    assert_eq!((&world.disks.image, world.disks.state().staging), (&world.volume, Staging::default()));
    assert!(world.disks.state().whole && world.disks.log.iter().all(|byte| *byte == 0), "its room is given back");
    // And on it goes, straight to the image; another resync begins the log anew.
    world.stored(25, 4, 44).unwrap();
    world.sync(false);
    world.run().unwrap();
    assert_eq!(world.disks.image, world.volume);
    restarted(&mut world, far(40, 900)).unwrap();
    world.stored(41, 5, 55).unwrap();
    world.sync(true);
    world.run().unwrap();
    assert_eq!(world.disks.image, world.volume);
}

/// However slow the disk of the state is: nothing goes to the images before it says so, and no later than it says so.
#[test]
fn the_old_image_is_not_touched_before_the_new_one_counts() {
    let mut world = staging(PLAN);
    let old = world.disks.image.clone();
    world.stored(22, 1, 60).unwrap();
    world.sync(true);
    world.hold = Hold::States;
    world.run().unwrap();
    assert_eq!((world.phase(), world.disks.state().staging.phase), (Phase::Draining, Phase::Staging));
    assert!(world.core.promotable() && world.disks.image == old);
    world.hold = Hold::Nothing;
    world.run().unwrap();
    assert_eq!(world.disks.image, world.volume);
    // And where the images go on without being promotable, that is durable first.
    let mut world = staging(StagingPlan { limit_bytes: 5 * BLOCK, best_effort: true });
    world.stored(22, 1, 60).unwrap();
    world.hold = Hold::States;
    world.sync(false);
    world.run().unwrap();
    assert!(!world.core.promotable() && world.disks.image == old);
    assert_eq!(world.disks.state().staging.phase, Phase::Staging);
}

/// What is dropped must be void before the fill before it is called clean: else, after a crash, it would follow.
#[test]
fn nothing_is_settled_before_what_is_dropped_is_erased() {
    let mut world = in_step(PLAN);
    let kept = world.stored(2, 7, 70).unwrap();
    world.sync(true);
    world.core.handle_disconnected();
    world.run().unwrap();
    world.connect();
    world.signal(Signal::Resume { common: kept }).unwrap();
    world.stored(3, 8, 80).unwrap();
    world.core.handle_disconnected();
    world.run().unwrap();
    world.connect();
    world.reported();
    world.signal(Signal::Settle { common: kept }).unwrap();
    world.hold = Hold::Erases;
    world.run().unwrap();
    assert_eq!(world.reported(), []);
    world.hold = Hold::Nothing;
    world.run().unwrap();
    assert_eq!(world.reported(), [Report::Settled(kept)]);
    assert_eq!(World::start(world.disks, PLAN).unwrap().core.stored(), kept);
}

/// The same places of the log's file are used again: not while they are being given back.
#[test]
fn a_log_that_is_being_emptied_takes_nothing() {
    let mut world = staging(PLAN);
    world.stored(22, 1, 60).unwrap();
    world.hold = Hold::Frees;
    world.sync(true);
    world.run().unwrap();
    restarted(&mut world, far(40, 900)).unwrap();
    world.stored(41, 2, 61).unwrap();
    world.sync(false);
    world.run().unwrap();
    assert_eq!(
        (world.phase(), world.core.appends_under_way(), world.core.superblock().staging.tail),
        (Phase::Staging, 0, 0)
    );
    world.hold = Hold::Nothing;
    world.run().unwrap();
    assert_eq!(world.core.superblock().staging.tail, 2 * BLOCK);
    assert!(World::start(world.disks, PLAN).is_ok());
}

/// A client's fill comes behind the one that completes the resync, before that is on the image.
#[test]
fn fills_behind_a_whole_resync_keep_their_order() {
    let mut world = staging(PLAN);
    world.stored(22, 1, 60).unwrap();
    world.sync(true);
    world.until(|world| world.disks.state().staging.phase == Phase::Draining);
    world.write(23, 1, 61);
    world.until(|world| world.core.stored() == world.last);
    world.sync(false);
    world.run().unwrap();
    assert_eq!((world.phase(), world.disks.image[1]), (Phase::Direct, 61));
    assert_eq!(world.disks.image, world.volume);
}

#[test]
fn a_promote_serves_what_is_promotable() {
    // While a resync is staged: the old image, whatever came of the new one.
    for behind in 0..3 {
        let mut world = staging(PLAN);
        let (old, base) = (world.disks.image.clone(), world.core.base().unwrap());
        (0..behind).for_each(|_| assert!(world.stored(22, 9, 90).unwrap() != base));
        assert_eq!((world.promote(), world.promoted), (old, Some(base)));
        assert!(world.disks.state().whole);
    }
    // While a whole one is drained: all of it, and what is stored behind it.
    let mut world = staging(PLAN);
    world.stored(22, 1, 60).unwrap();
    world.sync(true);
    world.until(|world| world.phase() == Phase::Draining && world.core.drains_under_way() > 0);
    world.write(23, 1, 61);
    world.until(|world| world.core.stored() == world.last);
    let last = world.last;
    assert_eq!((world.promote(), world.promoted), (world.volume.clone(), Some(last)));
    // In the middle of settling: all that is stored.
    let mut world = in_step(PLAN);
    let last = world.stored(2, 7, 70).unwrap();
    world.core.handle_disconnected();
    world.connect();
    world.signal(Signal::Settle { common: last }).unwrap();
    world.step().unwrap();
    assert_eq!((world.promote(), world.promoted), (world.volume.clone(), Some(last)));
    // When the restart isn't durable: the image is the same before and after.
    let mut world = in_step(PLAN);
    let (old, last) = (world.volume.clone(), world.last);
    world.core.handle_disconnected();
    world.connect();
    world.signal(Signal::Settle { common: last }).unwrap();
    world.run().unwrap();
    world.signal(Signal::Restart { at: far(20, 500) }).unwrap();
    assert_eq!((world.promote(), world.promoted), (old, Some(last)));
}

/// Two complete fills are stored, and not on the image, or only in part.
#[test]
fn a_promote_leaves_its_fills_to_whoever_serves() {
    for steps in 0..9 {
        let mut world = in_step(PLAN);
        let applied = world.last;
        for block in [7, 2] {
            world.write(2, block, 70 + block as u8);
        }
        world.until(|world| world.core.stored() == world.last);
        world.sync(true);
        world.write(3, 2, 80);
        (0..steps).for_each(|_| assert!(world.step().is_ok()));
        if world.core.stored() != world.last {
            // What isn't handed to a file when the connection goes was never held.
            world.core.handle_disconnected();
            (world.last, world.volume[2]) = (world.core.stored(), 72);
        }
        let (last, image) = (world.last, world.disks.image.clone());
        assert_eq!((world.promote(), world.promoted), (world.volume.clone(), Some(last)), "{steps}");
        // None is applied from then on, but for what was under way; and a start finds the same.
        assert!(steps > 0 || (world.disks.image == image && world.disks.state().clean == applied));
        let again = World::start(world.disks.clone(), PLAN).unwrap();
        assert_eq!((again.core.stored(), again.core.superblock().known.clone()), (last, vec![last]));
    }
}

#[test]
fn a_promote_in_the_middle_of_an_append_serves_the_old_image() {
    let mut world = staging(PLAN);
    let (old, base) = (world.disks.image.clone(), world.core.base());
    world.stored(22, 1, 60).unwrap();
    world.sync(true);
    world.step().unwrap();
    assert!(world.core.appends_under_way() > 0 || world.phase() == Phase::Staging);
    assert_eq!((world.promote(), world.promoted), (old, base));
}

#[test]
fn a_connection_lost_while_it_settles_is_no_harm() {
    let mut world = in_step(PLAN);
    let last = world.stored(2, 7, 70).unwrap();
    for steps in 0..4 {
        world.core.handle_disconnected();
        world.until(|world| world.core.welcome(&superblock(crate::format::superblock::Role::Source)).is_ok());
        let welcome = world.connect();
        assert_eq!(welcome.boundaries.last(), Some(&last));
        world.reported();
        world.signal(Signal::Settle { common: last }).unwrap();
        (0..steps).for_each(|_| assert!(world.step().is_ok()));
    }
    world.run().unwrap();
    assert_eq!(world.reported(), [Report::Settled(last)]);
    assert_eq!(world.disks.image, world.volume);
}

/// The source goes on alone again in the middle of the resync, and so far that the order begins anew once more.
#[test]
fn a_restart_in_the_middle_of_a_resync_is_a_block_of_the_log() {
    let mut world = staging(PLAN);
    let (old, base) = (world.disks.image.clone(), world.core.base());
    // A fill that is only begun is settled into the log.
    world.stored(22, 60, 66).unwrap();
    restarted(&mut world, far(40, 900)).unwrap();
    assert_eq!((world.phase(), world.core.base(), &world.disks.image), (Phase::Staging, base, &old));
    let staging = world.disks.state().staging;
    assert_eq!((staging.tail, world.disks.state().clean), (7 * BLOCK, far(40, 900)));
    world.stored(41, 2, 77).unwrap();
    world.sync(false);
    world.run().unwrap();
    // A third time, without a frame in between; and a restart of this side finds its way through all of it.
    restarted(&mut world, far(60, 1200)).unwrap();
    restarted(&mut world, far(60, 1200)).unwrap();
    let volume = world.volume.clone();
    let mut world = World::start(world.disks, PLAN).unwrap();
    world.volume = volume;
    assert_eq!((world.core.stored(), world.core.base()), (far(60, 1200), base));
    world.connect();
    world.signal(Signal::Resume { common: far(60, 1200) }).unwrap();
    world.stored(61, 3, 88).unwrap();
    world.sync(true);
    world.run().unwrap();
    assert_eq!((world.phase(), world.disks.image), (Phase::Direct, world.volume));
}

/// What a source writes, and what a failover may find at any moment: the old image, or the new one whole.
fn play(world: &mut World) -> Result<(), Cut> {
    restarted(world, far(20, 500))?;
    world.stored(21, 1, 50)?;
    world.stored(21, 40, 51)?;
    world.sync(false);
    world.run()?;
    world.stored(22, 2, 52)?;
    restarted(world, far(40, 900))?;
    world.stored(41, 3, 53)?;
    world.stored(41, 40, 54)?;
    world.sync(true);
    world.run()?;
    world.stored(42, 1, 55)?;
    world.sync(false);
    world.run()
}

#[test]
fn power_may_fail_anywhere() {
    let (mut cuts, mut old_images, mut new_images) = (0, 0, 0);
    for first in [true, false] {
        for left in 0.. {
            let mut world = in_step(PLAN);
            let (old, base) = (world.volume.clone(), world.last);
            world.left = left;
            let Err(Cut) = play(&mut world) else { break };
            cuts += 1;
            let volume = world.volume.clone();
            let acknowledged = world.reports.iter().filter_map(|report| match report {
                Report::Stored(seq) => Some(*seq),
                Report::Applied(mark) => Some(mark.seq),
                _ => None,
            });
            let acknowledged = acknowledged.max();
            let disks = world.cut(first);
            let again = World::start(disks.clone(), PLAN).unwrap();
            assert!(again.core.promotable(), "{left}");
            if let Some(seq) = acknowledged {
                assert!(again.core.stored().seq >= seq, "{left}: {seq} was acknowledged");
            }
            let (promoted, image) = World::failover(disks.clone());
            if promoted == base {
                assert_eq!(image, old, "{left}");
                old_images += 1;
            } else {
                // All that was stored, over what the resync brought; the last record may have been on its way.
                assert!(promoted.fill.0 >= 41, "{left}: {promoted}");
                let mut without = volume.clone();
                without[1] = 50;
                assert!(image == volume || image == without, "{left}");
                new_images += 1;
            }
            // Without a failover the source comes back, and in the end all is right.
            let mut world = World::start(disks, PLAN).unwrap();
            world.run().unwrap();
            restarted(&mut world, far(80, 2000)).unwrap();
            world.volume = volume;
            for block in [1, 2, 3, 40] {
                world.stored(81, block, 99).unwrap();
            }
            world.sync(true);
            world.run().unwrap();
            assert_eq!((&world.disks.image, world.phase()), (&world.volume, Phase::Direct), "{left}");
        }
    }
    assert!(cuts > 60 && old_images > 30 && new_images > 25, "{cuts} {old_images} {new_images}");
}

#[test]
fn a_damaged_log_is_not_applied() {
    for at in [BLOCK + 9, 100, 2 * BLOCK + 40] {
        let mut world = staging(PLAN);
        world.disks.log[at as usize] ^= 1;
        let damage = World::start(world.disks, PLAN).map(|_| ()).unwrap_err();
        let frame = at / (2 * BLOCK) * 2 * BLOCK;
        assert!(damage.contains(&format!("byte {frame}:")), "{damage}");
    }
    let world = staging(PLAN);
    let mut state = world.disks.state();
    state.clean.digest.0 ^= 1;
    let mut scan = recovery::staged::Scan::new(&state);
    scan.take(&recovery::staged::Bytes { start: 0, bytes: &world.disks.log[..4 * BLOCK as usize] }).unwrap();
    assert!(scan.finish().unwrap_err().reason.contains("the state says"));
}
