//! Reads of the images while they are mirrored.

use super::super::super::index::Found;
use super::super::*;
use super::world::*;
use crate::format::wire::Signal;

/// All that a reader sees, with the view.
fn seen(world: &World) -> Result<(View, Contents), Unreadable> {
    let mut segments = Vec::new();
    let view = world.core.read(0, 0..BLOCKS as u64 * BLOCK, &mut segments)?;
    let mut contents = Contents::new();
    for segment in segments {
        for at in (0..segment.length).step_by(BLOCK as usize) {
            contents.push(match segment.found {
                Found::Memory(place) => world.byte(Place(place.0 + at)),
                Found::Zeros => 0,
                Found::Device => world.disks.image[((segment.offset + at) / BLOCK) as usize],
            });
        }
    }
    Ok((view, contents))
}

fn blocks(range: Range<u64>) -> Range<u64> {
    range.start * BLOCK..range.end * BLOCK
}

#[test]
fn the_view_moves_with_each_signal_and_stays_whole_while_fills_are_applied() {
    let mut world = in_step(PLAN);
    let before = world.volume.clone();
    world.stored(2, 1, 21).unwrap();
    world.stored(2, 7, 27).unwrap();
    assert_eq!(seen(&world).unwrap().1, before, "what isn't signalled isn't seen");
    world.sync(false);
    let (view, contents) = seen(&world).unwrap();
    assert_eq!((view.mark, &contents), (world.last, &world.volume), "what is signalled is, at once");
    // Another fill begins while this one is applied, step by step.
    let (signalled, volume) = (world.last, world.volume.clone());
    world.write(3, 1, 31);
    while world.step().unwrap() {
        let (view, contents) = seen(&world).unwrap();
        assert_eq!((view.mark, &contents), (signalled, &volume));
    }
    assert_eq!(world.disks.image, volume);
    world.sync(false);
    assert_eq!(seen(&world).unwrap(), (world.core.view().unwrap(), world.volume.clone()));
}

#[test]
fn what_a_later_fill_writes_meanwhile_is_read_again() {
    let mut world = in_step(PLAN);
    let (view, _) = seen(&world).unwrap();
    world.stored(2, 5, 25).unwrap();
    world.stored(2, 50, 26).unwrap();
    world.sync(false);
    assert!(world.core.still_holds(view, 0, &[blocks(0..256)]), "nothing was written yet");
    world.until(|world| world.core.applies_under_way() > 0);
    assert!(!world.core.still_holds(view, 0, &[blocks(4..6)]), "the old bytes, the new ones, or half of both");
    assert!(world.core.still_holds(view, 0, &[blocks(0..5), blocks(6..50)]), "elsewhere nothing has changed");
    let (again, _) = seen(&world).unwrap();
    assert!(world.core.still_holds(again, 0, &[blocks(0..256)]));
    world.run().unwrap();
    assert!(!world.core.still_holds(view, 0, &[blocks(6..9)]), "nobody knows any more what was written");
    assert!(world.core.still_holds(again, 0, &[blocks(0..256)]));
}

/// A start finds a fill that may be on the image in part.
#[test]
fn after_a_start_the_source_must_say_whether_what_is_found_is_complete() {
    let mut world = in_step(PLAN);
    world.stored(2, 1, 21).unwrap();
    world.stored(2, 20, 22).unwrap();
    world.sync(false);
    world.until(|world| world.core.applies_under_way() > 0);
    let (last, volume) = (world.last, world.volume.clone());
    let mut world = World::start(world.cut(true), PLAN).unwrap();
    assert_eq!(seen(&world), Err(Unreadable::Unsure));
    world.connect();
    world.signal(Signal::Resume { common: last }).unwrap();
    world.run().unwrap();
    assert_eq!(seen(&world), Err(Unreadable::Unsure));
    world.signal(Signal::Sync { last, whole: false }).unwrap();
    assert_eq!(seen(&world).unwrap().1, volume, "complete: image and fill together");
}

#[test]
fn a_fill_that_is_cut_or_goes_on_was_never_complete() {
    let start = |upto: usize| {
        let mut world = in_step(PLAN);
        let volume = world.volume.clone();
        let marks = [world.stored(2, 1, 21).unwrap(), world.stored(2, 2, 22).unwrap()];
        let position = world.position;
        let mut world = World::start(world.cut(true), PLAN).unwrap();
        world.connect();
        assert_eq!(seen(&world), Err(Unreadable::Unsure));
        world.signal(Signal::Resume { common: marks[upto] }).unwrap();
        world.run().unwrap();
        (world.last, world.position) = (marks[upto], position);
        (world, volume)
    };
    let (world, volume) = start(0);
    assert_eq!(seen(&world).unwrap().1, volume, "the source has less of it");
    let (mut world, volume) = start(1);
    assert_eq!(seen(&world), Err(Unreadable::Unsure));
    world.write(2, 3, 23);
    assert_eq!(seen(&world).unwrap().1, volume, "the source adds to it");
}

#[test]
fn while_a_resync_is_staged_the_base_is_seen_and_nothing_while_it_is_drained() {
    let mut world = in_step(PLAN);
    let (old, before) = (world.volume.clone(), seen(&world).unwrap().0);
    world.core.handle_disconnected();
    world.run().unwrap();
    let common = *world.connect().boundaries.last().unwrap();
    world.signal(Signal::Settle { common }).unwrap();
    world.run().unwrap();
    world.last = far(20, 500);
    world.signal(Signal::Restart { at: world.last }).unwrap();
    world.run().unwrap();
    assert!(!world.core.still_holds(before, 0, &[]), "fills' numbers begin anew");
    for (fill, whole) in [(21, false), (22, true)] {
        world.stored(fill, 9, fill as u8).unwrap();
        let (view, contents) = seen(&world).unwrap();
        assert_eq!((view.mark, &contents), (common, &old));
        world.sync(whole);
        world.until(|world| world.core.superblock().clean == world.last);
    }
    let mut drained = 0;
    while world.phase() == Phase::Draining {
        assert_eq!(seen(&world), Err(Unreadable::Draining));
        drained += 1;
        world.step().unwrap();
    }
    assert!(drained > 0);
    assert_eq!(seen(&world).unwrap().1[9], 22);
    world.core.handle_disconnected();
    world.core.handle_promote(&mut world.effects);
    assert_eq!(seen(&world), Err(Unreadable::Promoting));
}
