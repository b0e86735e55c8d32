//! Promote: the destination takes over, and the old source can get no write answered any more.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{
    Client, Daemon, Finished, Ledger, Load, MIB, Mirror, Plan, assert_says, eventually, flag, kind, pattern, python,
};

/// The exit code of whatever a daemon refuses to do.
const REFUSED: i32 = 3;

/// Promotes after a crash of the source, as soon as the destination has noticed that crash; returns what was printed.
#[track_caller]
pub fn promote_when_noticed(destination: &Daemon, source: &str) -> String {
    let done = eventually("the destination notices that its source is gone", Duration::from_secs(20), || {
        let finished = destination.promote(source, false);
        (!is_connected(&finished)).then_some(finished)
    });
    done.success()
}

/// Promotes by force: the source is known to be dead, but the destination was restarted since, and can't know.
#[track_caller]
pub fn promote_by_force(destination: &Daemon, source: &str) -> String {
    let unforced = destination.promote(source, false);
    assert_eq!(unforced.status.code(), Some(REFUSED), "it can't know: {}", unforced.stdout);
    assert_says(&unforced.stderr, &["missing", "--force"]);
    destination.promote(source, true).success()
}

/// Whether a promote was refused for the reason that its source is connected.
pub fn is_connected(promote: &Finished) -> bool {
    promote.status.code() == Some(REFUSED) && promote.stderr.contains("connected")
}

/// A mirror of two volumes whose source was killed under load; its ledger is still to be checked.
fn crashed(durability: &str) -> (Mirror, Ledger) {
    let mut plan = Plan::new(&[8 * MIB, 8 * MIB]);
    plan.source.durability = durability.to_owned();
    plan.source.journal_size = "16MiB".to_owned();
    plan.source.max_age = "300ms".to_owned();
    let mut mirror = plan.start();
    mirror.assert_in_step();
    let ledger = Arc::new(Ledger::new(2, 2048, durability == "always"));
    let load = Load::start(&ledger, &mirror.exports(), 2);
    load.wait_for_answers(4000);
    mirror.source.kill();
    load.stop();
    let ledger = Arc::into_inner(ledger).expect("the writers have ended");
    (mirror, ledger)
}

fn assert_refused(finished: &Finished, source: &str) {
    assert_eq!(finished.status.code(), Some(REFUSED), "stdout:\n{}\nstderr:\n{}", finished.stdout, finished.stderr);
    assert_says(&finished.stderr, &[source, "connected", "--force"]);
}

#[test]
fn refused_while_the_source_is_connected() {
    let mirror = Mirror::start("always", 8 * MIB);
    mirror.assert_in_step();
    assert_refused(&mirror.destination.promote("alpha", false), "alpha");
    // Nothing has changed: the mirror goes on, and the image isn't served for writing.
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(1, 4096)).unwrap();
    if let Ok(client) = Client::go(&mirror.promoted(), "vol0") {
        assert_ne!(client.flags & flag::READ_ONLY, 0, "an image is never writable while its source lives");
    }
    mirror.assert_in_step();
}

#[test]
fn an_unknown_source_is_named_with_those_that_exist() {
    let mirror = Mirror::start("always", 8 * MIB);
    let finished = mirror.destination.promote("gamma", false);
    assert!(!finished.status.success());
    assert_says(&finished.stderr, &["gamma", "alpha"]);
}

#[test]
fn after_a_crash_of_the_source_all_answered_writes_are_there() {
    for durability in ["always", "flush"] {
        let (mirror, ledger) = crashed(durability);
        let said = promote_when_noticed(&mirror.destination, "alpha");
        assert_says(&said, &["record"]);
        assert!(said.chars().any(|char| char.is_ascii_digit()), "the last record is a number:\n{said}");
        ledger.check("the promoted exports", &mirror.promoted_volumes());
        ledger.check("the image files", &mirror.promoted_images());
        let first = Client::go(&mirror.promoted(), "vol0").unwrap();
        assert_eq!((first.size, first.flags & flag::READ_ONLY), (8 * MIB, 0), "served read-write under its name");
    }
}

#[test]
fn the_promoted_image_takes_every_kind_of_request() {
    let (mirror, ledger) = crashed("always");
    promote_when_noticed(&mirror.destination, "alpha");
    ledger.check("the promoted exports", &mirror.promoted_volumes());
    let mut client = Client::go(&mirror.promoted(), "vol1").unwrap();
    let given = pattern(8, 5 * 512);
    client.succeed(flag::FUA, kind::WRITE, 3 * 512, given.len() as u32, &given).unwrap();
    client.succeed(0, kind::WRITE_ZEROES, MIB, 65_536, &[]).unwrap();
    client.succeed(0, kind::TRIM, 2 * MIB, 65_536, &[]).unwrap();
    client.succeed(0, kind::CACHE, 0, 4096, &[]).unwrap();
    client.succeed(0, kind::FLUSH, 0, 0, &[]).unwrap();
    assert!(client.read(3 * 512, given.len()).unwrap() == given);
    assert!(client.read(MIB, 65_536).unwrap().iter().all(|&byte| byte == 0));
    assert_eq!(client.call(0, kind::TRIM, 8 * MIB, 4096, &[]).unwrap(), 22, "out of range");
    python(
        "h = nbd.NBD()\nh.connect_uri(sys.argv[1])\nh.pwrite(b'x' * 4096, 0)\nh.flush()\nassert h.pread(4096, 0) == b'x' * 4096\nh.shutdown()",
        &[&mirror.promoted().uri("vol0")],
    );
}

#[test]
fn a_restarted_destination_still_serves_the_promoted_image() {
    let (mut mirror, ledger) = crashed("always");
    promote_when_noticed(&mirror.destination, "alpha");
    ledger.check("the promoted exports", &mirror.promoted_volumes());
    let mut client = Client::go(&mirror.promoted(), "vol0").unwrap();
    let given = pattern(11, 65_536);
    client.succeed(flag::FUA, kind::WRITE, 4 * MIB, 65_536, &given).unwrap();
    mirror.destination.kill();
    mirror.destination.restart();
    let mut client = Client::go(&mirror.promoted(), "vol0").unwrap();
    assert_eq!(client.flags & flag::READ_ONLY, 0);
    assert!(client.read(4 * MIB, 65_536).unwrap() == given, "a write to the promoted image survives a restart");
    client.write(4 * MIB, &pattern(12, 4096)).unwrap();
    // A second promote changes nothing and does no harm.
    let again = mirror.destination.promote("alpha", false);
    assert!(again.status.code().is_some(), "{}", again.stderr);
    assert!(client.read(4 * MIB + 4096, 61_440).unwrap() == given[4096..]);
}

#[test]
fn a_destination_killed_right_after_a_promote() {
    let (mut mirror, ledger) = crashed("always");
    promote_when_noticed(&mirror.destination, "alpha");
    mirror.destination.kill();
    mirror.destination.restart();
    ledger.check("the promoted exports", &mirror.promoted_volumes());
}

/// The clients of a fenced source: their connections end without a reply to what they wait for.
#[track_caller]
fn assert_closed_without_reply(client: &mut Client) {
    client.stream.set_answer_limit(Duration::from_secs(20)).unwrap();
    let sent = client.send(0, kind::WRITE, 0, 4096, &[0xee; 4096]);
    match sent.and_then(|_| client.answer()) {
        Ok((_, error)) => panic!("a fenced source answered a write (error {error})"),
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "the connection should be closed, not: {error}"
        ),
    }
}

/// Whether a fenced source refuses a client: at the door, or by closing the connection instead of answering a write.
#[track_caller]
fn assert_no_write_gets_through(mirror: &Mirror) {
    if let Ok(mut client) = Client::go(&mirror.unix(), "vol0") {
        assert_closed_without_reply(&mut client);
    }
}

#[track_caller]
fn assert_fenced(source: &Daemon) {
    source.wait_for_status("state \"fenced\"", |status| status["state"] == "fenced");
    source.wait_for_log(&["fenced", "promote|epoch"]);
}

#[test]
fn force_promotes_while_the_source_is_connected() {
    let mut mirror = Mirror::start("always", 8 * MIB);
    mirror.assert_in_step();
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    let given = pattern(21, 4096);
    client.write(0, &given).unwrap();
    mirror.destination.promote("alpha", true).success();
    assert_closed_without_reply(&mut client);
    assert_fenced(&mirror.source);
    assert_no_write_gets_through(&mirror);
    let mut promoted = Client::go(&mirror.promoted(), "vol0").unwrap();
    assert!(promoted.read(0, 4096).unwrap() == given, "the answered write is in the image, the other one is not");
    promoted.write(4096, &pattern(22, 4096)).unwrap();
    // The fence outlives a restart of the fenced.
    mirror.source.kill();
    mirror.source.restart();
    assert_fenced(&mirror.source);
    assert_no_write_gets_through(&mirror);
    assert!(promoted.read(4096, 4096).unwrap() == pattern(22, 4096));
}

#[test]
fn force_under_load_loses_no_answered_write() {
    let mirror = Plan::new(&[8 * MIB]).start();
    mirror.assert_in_step();
    let ledger = Arc::new(Ledger::new(1, 2048, true));
    let load = Load::start(&ledger, &mirror.exports(), 3);
    load.wait_for_answers(2000);
    mirror.destination.promote("alpha", true).success();
    assert_fenced(&mirror.source);
    // Whatever the old source answered, before or after the fence, has to be in the image.
    load.stop();
    ledger.check("the promoted export", &mirror.promoted_volumes());
}

#[test]
fn the_old_source_is_refused_when_it_comes_back() {
    let (mut mirror, ledger) = crashed("always");
    promote_when_noticed(&mirror.destination, "alpha");
    mirror.source.restart();
    assert_fenced(&mirror.source);
    assert_no_write_gets_through(&mirror);
    mirror.source.kill();
    mirror.source.restart();
    assert_fenced(&mirror.source);
    assert_no_write_gets_through(&mirror);
    ledger.check("the promoted exports", &mirror.promoted_volumes());
}

#[test]
fn a_source_that_stops_cleanly_can_be_promoted() {
    let mut mirror = Mirror::start("flush", 8 * MIB);
    mirror.assert_in_step();
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    let given = pattern(31, MIB as usize);
    client.write(MIB, &given).unwrap();
    client.succeed(0, kind::FLUSH, 0, 0, &[]).unwrap();
    client.disconnect();
    mirror.source.stop(nix::sys::signal::Signal::SIGTERM);
    promote_when_noticed(&mirror.destination, "alpha");
    let mut promoted = Client::go(&mirror.promoted(), "vol0").unwrap();
    assert!(promoted.read(MIB, MIB as usize).unwrap() == given);
}

#[test]
fn the_same_promote_twice_serves_the_same_bytes() {
    let (mirror, ledger) = crashed("always");
    promote_when_noticed(&mirror.destination, "alpha");
    // When nothing goes there by itself any more.
    mirror.promoted_images();
    let before: Vec<Vec<u8>> = (0..2).map(|at| std::fs::read(mirror.plan.image(at)).unwrap()).collect();
    // Asked again, it may refuse or say that it is done: but not touch what it serves.
    let _ = mirror.destination.promote("alpha", true);
    for (at, bytes) in before.iter().enumerate() {
        assert!(*bytes == std::fs::read(mirror.plan.image(at)).unwrap(), "image {at}");
    }
    ledger.check("the image files", &mirror.images());
}
