//! A promote serves at once what it holds, however much of it isn't on the images yet, and however slow they are.

use std::time::{Duration, Instant};

use crate::harness::{
    Client, Daemon, Effect, Endpoint, Fault, FaultyDisk, MIB, Mirror, Operation, Plan, PromotedCopy, create_file, flag,
    fuse_or_skip, kind, pattern,
};

/// Bytes of the volume; a write of 1 MiB goes to each of the first [`WRITTEN`] MiB.
const VOLUME: u64 = 256 * MIB;
/// So many fit into both halves of a journal of 256 MiB, however small its frames are.
const WRITTEN: u64 = 240;
/// What the image's disk takes for one of them.
const SLOW: Duration = Duration::from_secs(1);

fn written(at: u64) -> Vec<u8> {
    pattern(at + 1, MIB as usize)
}

/// A mirror both halves of whose journal are full, and not on the image, with its source dead and its destination just
/// started again. The image is on this disk, and slow.
fn full(far: &FaultyDisk) -> Mirror {
    let mut plan = Plan::new(&[VOLUME]);
    plan.source.journal_size = "256MiB".to_owned();
    plan.source.max_age = "1h".to_owned();
    plan.destination.sources[0].1[0].1 = far.path().join("vol0.image");
    create_file(plan.image(0), VOLUME);
    // Whose blocks are larger than an ordinary file's, and an image's mustn't be larger than the volume's.
    plan.source.volumes[0].1 = far.path().join("vol0.volume");
    create_file(&plan.source.volumes[0].1, VOLUME);
    let mut mirror = plan.start();
    mirror.source.wait_for_first_copy();
    mirror.source.sync();
    far.inject(Fault::new(Operation::Write, "vol0.image", Effect::Slow(SLOW)));
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    (0..WRITTEN).for_each(|at| client.write(at * MIB, &written(at)).unwrap());
    mirror.source.kill();
    mirror.destination.kill();
    mirror.destination.restart();
    mirror
}

/// Time from a promote's command until a write is answered behind it.
fn first_answer(destination: &Daemon, exports: &Endpoint) -> Duration {
    let began = Instant::now();
    destination.promote("alpha", true).success();
    first_write(exports);
    began.elapsed()
}

/// Over the end of what isn't applied.
fn first_write(exports: &Endpoint) {
    let mut client = Client::go(exports, "vol0").unwrap();
    client.write(WRITTEN * MIB - 4096, &pattern(1000, 8192)).unwrap();
}

/// All that was answered, before the promote and after it.
#[track_caller]
fn assert_all_there(exports: &Endpoint, what: &str) {
    let mut client = Client::go(exports, "vol0").unwrap();
    for at in 0..WRITTEN {
        let (mut expected, found) = (written(at), client.read(at * MIB, MIB as usize).unwrap());
        match at {
            0 => expected[8192..12_288].copy_from_slice(&pattern(1001, 4096)),
            _ if at == WRITTEN - 1 => expected[MIB as usize - 4096..].copy_from_slice(&pattern(1000, 8192)[..4096]),
            _ => {}
        }
        assert!(found == expected, "{what}: MiB {at}");
    }
    let rest = client.read(WRITTEN * MIB, 8192).unwrap();
    assert!(rest[..4096] == pattern(1000, 8192)[4096..] && rest[4096..] == [0; 4096], "{what}: behind the end");
}

#[test]
fn a_full_journal_and_a_slow_image_make_nobody_wait() {
    if !fuse_or_skip() {
        return;
    }
    let far = FaultyDisk::mount();
    let mut mirror = full(&far);
    let exports = mirror.promoted();
    let took = first_answer(&mirror.destination, &exports);
    let status = mirror.destination.status()["sources"][0].clone();
    eprintln!("{took:?} from the promote to the first answered write, with {WRITTEN} MiB to apply, at {SLOW:?} each");
    assert_eq!((&status["state"], &status["unapplied_fills"]), (&"promoted".into(), &2.into()), "{status:#}");
    assert!(status["applied_record"].as_u64() < status["held_record"].as_u64(), "{status:#}");
    assert!(took < SLOW * WRITTEN as u32 / 10, "{took:?}: it waited for the image");
    let mut client = Client::go(&exports, "vol0").unwrap();
    client.succeed(flag::FUA, kind::WRITE, 8192, 4096, &pattern(1001, 4096)).unwrap();
    assert_all_there(&exports, "while the fills go to the image");
    // In the middle of it, twice: each start takes them over again.
    for _ in 0..2 {
        std::thread::sleep(SLOW * 2);
        mirror.destination.kill();
        mirror.destination.restart();
        let status = mirror.destination.status()["sources"][0].clone();
        assert_eq!(status["unapplied_fills"], 2, "{status:#}");
        assert_all_there(&exports, "after a crash in the middle");
    }
    far.heal();
    let done = |mirror: &serde_json::Value| mirror["unapplied_fills"] == 0;
    let status = mirror.destination.wait_for_mirror("all is on the image", done);
    assert_eq!(status["applied_record"], status["held_record"], "{status:#}");
    assert_all_there(&exports, "from the image");
    mirror.destination.kill();
    mirror.destination.restart();
    assert_all_there(&exports, "after one more start");
}

/// A figure, not a test: `cargo test --release --test e2e -- --ignored --nocapture promote_to_first`.
#[test]
#[ignore = "prints a figure"]
fn promote_to_first_answered_write() {
    let far = FaultyDisk::mount();
    let mut mirror = full(&far);
    mirror.destination.kill();
    let times = (0..10).map(|_| {
        let folder = tempfile::tempdir().unwrap();
        let copy = PromotedCopy::of(&mirror.plan, folder.path());
        first_write(&copy.endpoint());
        copy.began.elapsed()
    });
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    eprintln!(
        "promote to first answered write, 256 MiB of journal full and unapplied: median {:?}, worst {:?}, all {times:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
}
