//! Crashes and restarts: SIGKILL at random moments under load, a destination that is away, a clean stop.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{Client, Daemon, Endpoint, Image, Ledger, Load, MIB, Mirror, Plan, Proxy, kind, pattern};

/// Who dies.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Source,
    Destination,
    Both,
}

/// Answered writes before each crash: it falls into any phase of filling, flushing and applying.
fn moments(seed: u64, rounds: usize) -> Vec<u64> {
    let bytes = pattern(seed, rounds * 8);
    bytes.chunks_exact(8).map(|chunk| 200 + u64::from_le_bytes(chunk.try_into().unwrap()) % 4000).collect()
}

/// Kills and restarts by the same command while writers run, reconnecting; then checks everything.
fn crash_under_load(durability: &str, victim: Victim, seed: u64) {
    let mut plan = Plan::new(&[8 * MIB, 8 * MIB]);
    plan.source.durability = durability.to_owned();
    // Small halves and a short age: many switches, so that crashes meet flushes and applies too.
    plan.source.journal_size = "16MiB".to_owned();
    plan.source.max_age = "150ms".to_owned();
    let mut mirror = plan.start();
    let ledger = Arc::new(Ledger::new(2, 2048, durability == "always"));
    let what = format!("{durability}, {victim:?}, seed {seed}");
    for (round, answers) in moments(seed, 4).into_iter().enumerate() {
        let load = Load::start(&ledger, &mirror.exports(), 2);
        load.wait_for_answers(answers);
        let what = format!("{what}, round {round}");
        match victim {
            Victim::Source => mirror.source.kill(),
            Victim::Destination => mirror.destination.kill(),
            Victim::Both if round % 2 == 0 => {
                mirror.source.kill();
                mirror.destination.kill();
            }
            Victim::Both => {
                mirror.destination.kill();
                mirror.source.kill();
            }
        }
        match victim {
            Victim::Destination => {
                // The source lives on: the same connections get their answers once the destination is back.
                mirror.destination.restart();
                load.wait_for_answers(300);
                load.stop();
            }
            Victim::Source => {
                load.stop();
                mirror.source.restart();
            }
            Victim::Both => {
                load.stop();
                // The source is back first: it serves reads of what was answered without its destination.
                mirror.source.restart();
                ledger.check(&format!("{what}: exports before the destination is back"), &mirror.volumes());
                mirror.destination.restart();
            }
        }
        ledger.settle(&format!("{what}: exports after the restart"), &mirror.volumes());
    }
    mirror.assert_in_step();
    ledger.check(&format!("{what}: images after the sync"), &mirror.images());
}

#[test]
fn source_killed_under_load_always() {
    crash_under_load("always", Victim::Source, 1);
}

#[test]
fn source_killed_under_load_flush() {
    crash_under_load("flush", Victim::Source, 2);
}

#[test]
fn destination_killed_under_load_always() {
    crash_under_load("always", Victim::Destination, 3);
}

#[test]
fn destination_killed_under_load_flush() {
    crash_under_load("flush", Victim::Destination, 4);
}

#[test]
fn both_killed_under_load_always() {
    crash_under_load("always", Victim::Both, 5);
}

#[test]
fn both_killed_under_load_flush() {
    crash_under_load("flush", Victim::Both, 6);
}

#[test]
fn clients_reconnect_and_go_on_over_a_crash_of_the_source() {
    let mut mirror = Mirror::start("always", 8 * MIB);
    let ledger = Arc::new(Ledger::new(1, 2048, true));
    let load = Load::start(&ledger, &[(mirror.tcp(), "vol0".to_owned())], 4);
    for answers in moments(7, 3) {
        load.wait_for_answers(answers);
        mirror.source.kill();
        mirror.source.restart();
    }
    load.wait_for_answers(500);
    load.stop();
    ledger.check("the export", &mirror.volumes());
    mirror.assert_in_step();
    ledger.check("the image", &mirror.images());
}

#[test]
fn a_link_cut_in_the_middle_of_frames() {
    let mut plan = Plan::new(&[8 * MIB]);
    let proxy = Proxy::start(plan.destination.listen, 0);
    plan.source.destination = Some(proxy.address);
    plan.source.journal_size = "16MiB".to_owned();
    let mirror = plan.start();
    let ledger = Arc::new(Ledger::new(1, 2048, true));
    let load = Load::start(&ledger, &mirror.exports(), 4);
    for answers in moments(8, 6) {
        load.wait_for_answers(answers);
        proxy.cut();
    }
    load.wait_for_answers(500);
    load.stop();
    mirror.assert_in_step();
    ledger.check("the image", &mirror.images());
}

/// A write that must not be answered for now.
#[track_caller]
fn assert_waits(client: &mut Client) {
    client.stream.set_answer_limit(Duration::from_millis(700)).unwrap();
    match client.answer() {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        Err(error) => panic!("the connection should live while the write waits: {error}"),
        Ok((_, error)) => {
            panic!("a write was answered (error {error}) while the destination was away")
        }
    }
    client.stream.set_answer_limit(Duration::from_secs(30)).unwrap();
}

#[test]
fn writes_wait_while_the_destination_is_away() {
    for durability in ["always", "flush"] {
        let mut mirror = Mirror::start(durability, 8 * MIB);
        mirror.assert_in_step();
        let mut writer = Client::go(&mirror.unix(), "vol0").unwrap();
        let mut reader = Client::go(&mirror.tcp(), "vol0").unwrap();
        writer.write(0, &pattern(1, 8192)).unwrap();
        mirror.destination.kill();
        mirror.source.wait_for_status("that the destination is away", |status| {
            status["connected"] == false && status["state"] != "mirroring"
        });
        // In mode "flush" a write may be answered from memory: then its flush waits.
        let cookie = writer.send(0, kind::WRITE, 4096, 4096, &pattern(2, 4096)).unwrap();
        let flush = if durability == "flush" { Some(writer.send(0, kind::FLUSH, 0, 0, &[]).unwrap()) } else { None };
        let mut open = vec![cookie];
        open.extend(flush);
        if durability == "always" {
            assert_waits(&mut writer);
        } else {
            writer.stream.set_answer_limit(Duration::from_millis(700)).unwrap();
            while let Ok((answered, error)) = writer.answer() {
                assert_eq!((answered, error), (cookie, 0), "no flush is complete without the destination");
                open.retain(|&open| open != answered);
            }
            writer.stream.set_answer_limit(Duration::from_secs(30)).unwrap();
        }
        assert!(reader.read(0, 4096).unwrap() == pattern(1, 8192)[..4096], "reads go on");
        assert!(mirror.source.status().is_object(), "status goes on");
        mirror.destination.restart();
        while !open.is_empty() {
            let (answered, error) = writer.answer().expect("an answer, now that the destination is back");
            assert_eq!(error, 0);
            open.retain(|&open| open != answered);
        }
        assert!(reader.read(4096, 4096).unwrap() == pattern(2, 4096));
        mirror.assert_in_step();
    }
}

#[test]
fn a_destination_that_hangs_makes_writes_wait() {
    let mirror = Mirror::start("always", 8 * MIB);
    let mut writer = Client::go(&mirror.unix(), "vol0").unwrap();
    let mut reader = Client::go(&mirror.unix(), "vol0").unwrap();
    writer.write(0, &pattern(1, 4096)).unwrap();
    let destination = nix::unistd::Pid::from_raw(mirror.destination.pid() as i32);
    nix::sys::signal::kill(destination, Signal::SIGSTOP).unwrap();
    writer.send(0, kind::WRITE, 4096, 4096, &pattern(2, 4096)).unwrap();
    assert_waits(&mut writer);
    assert!(reader.read(0, 4096).unwrap() == pattern(1, 4096));
    nix::sys::signal::kill(destination, Signal::SIGCONT).unwrap();
    assert_eq!(writer.answer().unwrap().1, 0);
    mirror.assert_in_step();
}

#[test]
fn a_source_that_starts_without_its_destination_serves_reads() {
    let plan = Plan::new(&[8 * MIB]);
    crate::harness::fill_pattern(plan.volume(0), 5, 0, MIB as usize);
    let source = Daemon::source(&plan.source);
    let mut client = Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap();
    assert!(client.read(0, MIB as usize).unwrap() == pattern(5, MIB as usize));
    client.send(0, kind::WRITE, 2 * MIB, 4096, &pattern(6, 4096)).unwrap();
    assert_waits(&mut client);
    let destination = Daemon::destination(&plan.destination);
    assert_eq!(client.answer().unwrap().1, 0);
    Mirror { source, destination, plan }.assert_in_step();
}

#[test]
fn a_source_without_a_destination_runs_alone() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.destination = None;
    let mut source = Daemon::source(&plan.source);
    let ledger = Arc::new(Ledger::new(1, 2048, true));
    let exports = [(Endpoint::Unix(plan.source.unix()), "vol0".to_owned())];
    let load = Load::start(&ledger, &exports, 2);
    load.wait_for_answers(2000);
    source.kill();
    load.stop();
    source.restart();
    ledger.check("the export", &[Image::export(&exports[0].0, "vol0")]);
    source.sync();
    ledger.check("the volume", &[Image::file(plan.volume(0))]);
}

#[test]
fn sigterm_and_sigint_stop_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut mirror = Mirror::start("always", 8 * MIB);
        let ledger = Arc::new(Ledger::new(1, 2048, true));
        let load = Load::start(&ledger, &mirror.exports(), 2);
        load.wait_for_answers(1000);
        assert_eq!(mirror.source.stop(signal).code(), Some(0), "{signal}:\n{}", mirror.source.log());
        assert_eq!(mirror.destination.stop(signal).code(), Some(0), "{signal}:\n{}", mirror.destination.log());
        load.stop();
        mirror.destination.restart();
        mirror.source.restart();
        ledger.check("the export after a clean stop", &mirror.volumes());
        mirror.assert_in_step();
        ledger.check("the image after a clean stop", &mirror.images());
    }
}
