//! An outage under each policy, as a client sees it.

use std::time::Duration;

use super::{Apart, STAMPED, TIMEOUT, plan};
use crate::harness::{Answered, Client, MIB, Witness, assert_says, kind, pattern, wait_until};

/// NBD's number for an I/O error.
const EIO: u32 = 5;
/// What a busy machine may add to a wait.
const SLACK: Duration = Duration::from_secs(8);

/// A mirror with this policy, and a witness behind the stamped blocks.
#[track_caller]
fn watched(policy: &str) -> (Apart, Witness) {
    let mut plan = plan();
    plan.source.on_disconnect = policy.to_owned();
    let apart = Apart::start(plan);
    let witness = Witness::start(&apart.mirror.unix(), "vol0", STAMPED..STAMPED + MIB);
    witness.wait_for_writes(20, 0);
    (apart, witness)
}

fn longest(answers: &[Answered]) -> Duration {
    answers.iter().map(|answer| answer.waited).max().unwrap_or_default()
}

/// No read failed, and none waited as the writes did.
#[track_caller]
fn assert_reads_went_on(reads: &[Answered], wait: Duration) {
    assert!(reads.iter().all(|read| read.error == 0), "a read failed");
    assert!(longest(reads) < wait, "a read waited for {:?}, a write for {wait:?}", longest(reads));
}

#[test]
fn continue_waits_for_the_timeout_and_goes_on() {
    let (apart, witness) = watched("continue");
    apart.proxy.set_open(false);
    witness.wait_for_a_wait(TIMEOUT / 2);
    witness.wait_for_reads_beside_a_wait(5);
    let status = apart.mirror.source.wait_for_state("degraded");
    assert_eq!(status["failover_loses"]["what"], "writes since", "{status:#}");
    assert!(status["failover_loses"]["since_unix_s"].is_u64() && status["lacking_records"].is_u64(), "{status:#}");
    witness.wait_for_writes(50, 0);
    apart.join();
    apart.mirror.source.wait_for_state("mirroring");
    witness.wait_for_writes(20, 0);
    let (writes, reads) = witness.stop();
    assert!(writes.iter().all(|write| write.error == 0), "a write failed");
    let wait = longest(&writes);
    assert!((TIMEOUT / 2..TIMEOUT + SLACK).contains(&wait), "the longest write waited for {wait:?}");
    assert_reads_went_on(&reads, wait);
    apart.assert_together();
}

#[test]
fn stall_waits_until_the_destination_is_back() {
    let (apart, witness) = watched("stall");
    apart.proxy.set_open(false);
    witness.wait_for_a_wait(TIMEOUT * 3);
    witness.wait_for_reads_beside_a_wait(50);
    let status = apart.mirror.source.wait_for_state("stalled");
    assert_eq!(status["failover_loses"]["what"], "nothing", "{status:#}");
    apart.join();
    witness.wait_for_writes(20, 0);
    let (writes, reads) = witness.stop();
    assert!(writes.iter().all(|write| write.error == 0), "a write failed");
    assert!(longest(&writes) >= TIMEOUT * 3);
    assert_reads_went_on(&reads, longest(&writes));
    assert_eq!(apart.logged("DEGRADED"), 0);
    apart.assert_together();
}

#[test]
fn stall_is_released_by_set() {
    let (apart, witness) = watched("stall");
    apart.proxy.set_open(false);
    witness.wait_for_a_wait(TIMEOUT * 3);
    let said = apart.mirror.source.set(&["on_disconnect=continue"]);
    assert_says(&said, &["on_disconnect = continue", "timeout = 1s"]);
    witness.wait_for_writes(50, 0);
    apart.mirror.source.wait_for_state("degraded");
    apart.join();
    apart.mirror.source.wait_for_state("mirroring");
    witness.wait_for_writes(20, 0);
    let (writes, reads) = witness.stop();
    assert!(writes.iter().all(|write| write.error == 0), "a write failed");
    assert!(longest(&writes) >= TIMEOUT * 3);
    assert_reads_went_on(&reads, longest(&writes));
    apart.assert_together();
}

#[test]
fn fail_gives_errors_until_the_destination_is_back() {
    let (apart, witness) = watched("fail");
    apart.proxy.set_open(false);
    apart.mirror.source.wait_for_state("failing");
    witness.wait_for_writes(50, EIO);
    apart.join();
    apart.mirror.source.wait_for_state("mirroring");
    witness.wait_for_writes(50, 0);
    let (writes, reads) = witness.stop();
    let failed: Vec<_> = writes.iter().filter(|write| write.error != 0).copied().collect();
    assert!(failed.iter().all(|write| write.error == EIO), "{failed:?}");
    // The first one waited for the destination; those behind it knew.
    assert!((TIMEOUT / 2..TIMEOUT + SLACK).contains(&failed[0].waited), "{:?}", failed[0]);
    let quick = failed[1..].iter().filter(|write| write.waited < TIMEOUT / 2).count();
    assert!(quick >= 40, "errors should come at once: {failed:?}");
    // No error is followed by a success that is followed by an error.
    let turns = writes.windows(2).filter(|pair| (pair[0].error == 0) != (pair[1].error == 0)).count();
    assert_eq!(turns, 2, "writes succeed, fail, and succeed again");
    assert_reads_went_on(&reads, longest(&writes));
    assert_eq!(apart.logged("DEGRADED"), 0);
    apart.assert_together();
}

#[test]
fn reads_go_on_while_many_megabytes_of_writes_wait() {
    let mut plan = plan();
    plan.source.on_disconnect = "stall".to_owned();
    let apart = Apart::start(plan);
    apart.change(1, 40);
    apart.proxy.set_open(false);
    apart.mirror.source.wait_for_state("stalled");
    // Each sends more than may wait in memory, and reads no answer before all of it is sent.
    let writers: Vec<_> = (0..2u64)
        .map(|writer| {
            let mut client = Client::go(&apart.mirror.unix(), "vol0").unwrap();
            std::thread::spawn(move || {
                let cookies: Vec<u64> = (0..24)
                    .map(|at| {
                        let offset = STAMPED + (writer * 24 + at) * MIB;
                        client.send(0, kind::WRITE, offset, MIB as u32, &pattern(at + 7, MIB as usize)).unwrap()
                    })
                    .collect();
                cookies.iter().map(|_| client.answer().unwrap().1).max()
            })
        })
        .collect();
    let waiting = |status: &serde_json::Value| status["writes_waiting"].as_u64() > Some(50);
    let status = apart.mirror.source.wait_for_status_of("writes that wait", waiting);
    assert_eq!(status["state"], "stalled");
    let mut reader = Client::go(&apart.mirror.unix(), "vol0").unwrap();
    for at in 0..200 {
        let old = reader.read(STAMPED + at % 40 * MIB, 65_536).expect("a read while writes wait");
        assert!(old == pattern((1 << 32) | (at % 40), 65_536), "a read saw what was never answered, at {at} MiB");
    }
    assert!(writers.iter().all(|writer| !writer.is_finished()), "the writes should wait");
    apart.join();
    for writer in writers {
        assert_eq!(writer.join().unwrap(), Some(0), "what waited is answered without an error");
    }
    apart.assert_together();
}

#[test]
fn policy_and_timeout_are_changed_while_the_destination_is_away() {
    let mut plan = plan();
    plan.source.timeout = "1h".to_owned();
    let apart = Apart::start(plan);
    let source = &apart.mirror.source;
    let witness = Witness::start(&apart.mirror.unix(), "vol0", STAMPED..STAMPED + MIB);
    witness.wait_for_writes(5, 0);
    let status = source.status();
    assert_eq!(
        (&status["policy"]["on_disconnect"], &status["policy"]["timeout_ms"]),
        (&"continue".into(), &3_600_000.into())
    );
    apart.proxy.set_open(false);
    source.wait_for_state("stalled");
    witness.wait_for_a_wait(TIMEOUT * 2);
    // A shorter timeout doesn't undo what the destination was told: only the word to go on does.
    assert_says(&source.set(&["timeout=300ms"]), &["on_disconnect = continue", "timeout = 300ms"]);
    witness.wait_for_a_wait(TIMEOUT);
    assert_eq!(source.status()["state"], "stalled");
    source.set(&["on_disconnect=continue"]);
    source.wait_for_state("degraded");
    witness.wait_for_writes(5, 0);
    source.set(&["on_disconnect=stall"]);
    source.wait_for_state("stalled");
    witness.wait_for_a_wait(TIMEOUT);
    assert_says(&source.set(&["on_disconnect=fail", "timeout=200ms"]), &["on_disconnect = fail", "timeout = 200ms"]);
    source.wait_for_state("failing");
    witness.wait_for_writes(5, EIO);
    source.set(&["on_disconnect=continue"]);
    source.wait_for_state("degraded");
    witness.wait_for_writes(5, 0);
    let status = source.status();
    assert_eq!(
        (&status["policy"]["on_disconnect"], &status["policy"]["timeout_ms"]),
        (&"continue".into(), &200.into())
    );
    source.set(&["timeout=5s"]);
    apart.join();
    source.wait_for_state("mirroring");
    witness.wait_for_writes(5, 0);
    witness.stop();
    apart.assert_together();
    wait_until("nothing waits in the end", Duration::from_secs(30), || source.status()["writes_waiting"] == 0);
}
