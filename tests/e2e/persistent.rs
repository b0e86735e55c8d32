//! Journals that are written as persistent memory. This machine has none, so they are taken for it: kills of daemons are all
//! that they can stand. tests/vm has an emulated NVDIMM.

use crate::harness::{Client, Daemon, Endpoint, KIB, MIB, Mirror, Plan, pattern};

const ASSUMED: (&str, &str) = ("NBD_MIRROR_ASSUME_PMEM", "1");

/// Short copies, and those before which the ring first submits what is queued.
const SIZES: [u64; 4] = [512, 4 * KIB, 64 * KIB, 128 * KIB];

fn write_all(endpoint: &Endpoint, numbers: std::ops::Range<u64>) {
    let mut client = Client::go(endpoint, "vol0").expect("connect");
    for number in numbers {
        let bytes = pattern(number, SIZES[number as usize % SIZES.len()] as usize);
        client.write(number % 64 * 256 * KIB, &bytes).expect("write");
    }
}

#[track_caller]
fn assert_newest(endpoint: &Endpoint, numbers: std::ops::Range<u64>) {
    let mut client = Client::go(endpoint, "vol0").expect("connect");
    for number in numbers {
        let expected = pattern(number, SIZES[number as usize % SIZES.len()] as usize);
        let found = client.read(number % 64 * 256 * KIB, expected.len()).expect("read");
        assert!(found == expected, "write {number} isn't there");
    }
}

#[test]
fn what_was_answered_is_there_after_both_daemons_were_killed() {
    for durability in ["always", "flush"] {
        let mut plan = Plan::new(&[16 * MIB]);
        plan.source.durability = durability.to_owned();
        plan.source.journal_size = "16MiB".to_owned();
        // With a shared log, and without.
        plan.destination.nvram = (durability == "always").then(|| plan.path("nvram.log"));
        let mut destination = Daemon::unstarted_destination(&plan.destination).with_variable(ASSUMED.0, ASSUMED.1);
        let mut source = Daemon::unstarted_source(&plan.source).with_variable(ASSUMED.0, ASSUMED.1);
        destination.restart();
        source.restart();
        let mut mirror = Mirror { plan, source, destination };
        mirror.source.wait_for_first_copy();
        for journal in [&mirror.source.status()["journal"], &mirror.destination.status()["sources"][0]["journal"]] {
            assert_eq!(journal["store"]["how"], "assumed persistent memory", "{journal:#}");
        }
        mirror.source.wait_for_log(&["WARN", "for measuring only"]);
        if durability == "always" {
            let status = mirror.destination.status();
            assert_eq!(status["nvram"]["store"]["how"], "assumed persistent memory", "{status:#}");
        }
        // More than both halves hold.
        write_all(&mirror.unix(), 0..512);
        mirror.source.kill();
        mirror.destination.kill();
        mirror.destination.restart();
        mirror.source.restart();
        assert_newest(&mirror.unix(), 448..512);
        mirror.assert_in_step();
        mirror.destination.verb(&["promote", "--force", "alpha"]).success();
        assert_newest(&mirror.promoted(), 448..512);
    }
}
