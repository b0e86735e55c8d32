//! Images are read while they are mirrored: as of the last sync signal, and nothing in between.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::harness::{Client, MIB, Mirror, Plan, Proxy, assert_says, eventually, flag, kind, pattern, python, run};
use crate::promote::promote_when_noticed;

/// NBD_EPERM.
const EPERM: u32 = 1;
/// Blocks that the writer gives one number at a time.
const GROUP: usize = 32;
const BLOCK: usize = 4096;

/// A mirror in step whose halves switch only when they are full or asked to.
fn in_step(size: u64) -> Mirror {
    let mut plan = Plan::new(&[size]);
    plan.source.journal_size = "16MiB".to_owned();
    plan.source.max_age = "1h".to_owned();
    let mirror = plan.start();
    mirror.assert_in_step();
    mirror
}

/// Opens the image, once it may be read.
#[track_caller]
fn open(mirror: &Mirror) -> Client {
    eventually("the image can be read", Duration::from_secs(20), || Client::go(&mirror.promoted(), "vol0@image").ok())
}

/// The number in each block of a read.
fn numbers(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(BLOCK).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap())).collect()
}

#[test]
fn a_read_sees_the_last_sync_and_nothing_later() {
    let mirror = in_step(8 * MIB);
    let mut writer = Client::go(&mirror.unix(), "vol0").unwrap();
    let mut reader = open(&mirror);
    assert_eq!((reader.size, reader.flags & flag::READ_ONLY), (8 * MIB, flag::READ_ONLY));
    for round in 1..5 {
        let (given, later) = (pattern(round, 300_000 / 4096 * 4096), pattern(100 + round, 65_536));
        writer.write(12_288, &given).unwrap();
        mirror.source.sync();
        assert!(reader.read(12_288, given.len()).unwrap() == given, "round {round}: not as of the sync");
        writer.write(12_288, &later).unwrap();
        writer.succeed(0, kind::TRIM, MIB, 65_536, &[]).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert!(reader.read(12_288, given.len()).unwrap() == given, "round {round}: later writes are seen");
        let status = mirror.destination.status();
        let source = &status["sources"][0];
        assert_eq!((&source["clients"], &source["exports"][0]), (&1.into(), &"vol0@image".into()), "{source:#}");
        assert_eq!((&source["read_record"], &source["read_refusal"]), (&source["applied_record"], &().into()));
    }
}

#[test]
fn only_reads_are_served() {
    let mirror = in_step(8 * MIB);
    let mut reader = open(&mirror);
    for kind in [kind::WRITE, kind::TRIM, kind::WRITE_ZEROES] {
        let payload = if kind == kind::WRITE { vec![1; 4096] } else { Vec::new() };
        assert_eq!(reader.call(0, kind, 0, 4096, &payload).unwrap(), EPERM, "command {kind}");
    }
    reader.succeed(0, kind::FLUSH, 0, 0, &[]).unwrap();
    reader.succeed(0, kind::CACHE, 0, 4096, &[]).unwrap();
    assert!(reader.read(0, 4096).unwrap().iter().all(|byte| *byte == 0), "nothing was written");
}

/// Each block of a group gets the same number in one request, and readers look at whole groups, while fills are applied one
/// behind the other: each read is of one state, and none is of an earlier one than the last.
#[test]
fn each_read_is_of_one_state_while_fills_are_applied() {
    let mirror = in_step(16 * MIB);
    let over = AtomicBool::new(false);
    let groups = 16 * MIB as usize / (GROUP * BLOCK);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = Client::go(&mirror.unix(), "vol0").unwrap();
            for number in 1_u64.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let block: Vec<u8> = number.to_le_bytes().repeat(BLOCK / 8);
                let group = number as usize % groups;
                writer.write((group * GROUP * BLOCK) as u64, &block.repeat(GROUP)).unwrap();
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                mirror.source.sync();
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let mirror = &mirror;
                scope.spawn(move || {
                    let mut reader = open(mirror);
                    let (mut newest, mut states) = (0, 0);
                    let until = std::time::Instant::now() + Duration::from_secs(6);
                    while std::time::Instant::now() < until {
                        // All groups in one request: of one state, the numbers follow each other without a gap.
                        let all = numbers(&reader.read(0, 16 * MIB as usize).unwrap());
                        let firsts: Vec<u64> = all.chunks(GROUP).map(|group| group[0]).collect();
                        let newest_now = *firsts.iter().max().unwrap();
                        for (group, first) in firsts.iter().enumerate() {
                            let expected = (0..groups as u64)
                                .map(|back| newest_now.saturating_sub(back))
                                .find(|number| *number as usize % groups == group)
                                .unwrap_or(0);
                            assert_eq!(*first, expected, "group {group} as of {newest_now}: {firsts:?}");
                            // The newest request may be cut by the end of a fill.
                            let whole = all[group * GROUP..][..GROUP].iter().all(|number| number == first);
                            assert!(whole || *first == newest_now, "group {group} as of {newest_now} is a mixture");
                        }
                        assert!(newest_now >= newest, "a read goes back from {newest} to {newest_now}");
                        states += u64::from(newest_now > newest);
                        newest = newest_now;
                    }
                    assert!(states > 3, "the view moved {states} times only");
                })
            })
            .collect();
        let outcomes: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        over.store(true, Ordering::Relaxed);
        outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    });
}

#[test]
fn refused_with_the_reason_until_the_first_sync_is_complete() {
    let mut plan = Plan::new(&[16 * MIB]);
    std::fs::write(plan.volume(0), pattern(3, 16 * MIB as usize)).unwrap();
    let proxy = Proxy::start(plan.destination.listen, MIB);
    plan.source.destination = Some(proxy.address);
    let mirror = plan.start();
    let error = eventually("the export is refused", Duration::from_secs(20), || {
        Client::go(&mirror.promoted(), "vol0@image").err().filter(|error| error.to_string().contains("first sync"))
    });
    assert_says(&error.to_string(), &["vol0", "whole copy"]);
    proxy.set_rate(0);
    let mut reader = open(&mirror);
    assert!(reader.read(0, MIB as usize).unwrap() == pattern(3, 16 * MIB as usize)[..MIB as usize]);
}

#[test]
fn while_a_resync_is_staged_the_old_image_is_served() {
    let mut plan = Plan::new(&[32 * MIB]);
    plan.source.on_disconnect = "continue".to_owned();
    plan.source.timeout = "1s".to_owned();
    plan.source.journal_size = "16MiB".to_owned();
    plan.source.max_age = "200ms".to_owned();
    let proxy = Proxy::start(plan.destination.listen, 0);
    plan.source.destination = Some(proxy.address);
    let mirror = plan.start();
    mirror.assert_in_step();
    let mut writer = Client::go(&mirror.unix(), "vol0").unwrap();
    let (old, new) = (pattern(1, MIB as usize), pattern(2, MIB as usize));
    writer.write(0, &old).unwrap();
    mirror.source.sync();
    let mut reader = open(&mirror);
    assert!(reader.read(0, old.len()).unwrap() == old);
    proxy.set_open(false);
    mirror.source.wait_for_state("degraded");
    for at in 0..24 {
        writer.write(at * MIB, &new).unwrap();
    }
    // Long enough for its journal not to reach back.
    mirror.source.wait_for_status("the halves are flushed", |status| status["volumes"].is_array());
    thread::sleep(Duration::from_secs(2));
    proxy.set_rate(4 * MIB);
    proxy.set_open(true);
    mirror.destination.wait_for_mirror("a resync is staged", |mirror| {
        mirror["phase"] == "staging" && mirror["staged_bytes"].as_u64() > Some(2 * MIB)
    });
    assert!(reader.read(0, old.len()).unwrap() == old, "the old image over the connection of before");
    assert!(open(&mirror).read(0, old.len()).unwrap() == old, "and over a new one");
    proxy.set_rate(0);
    // The staging log goes to the image: the connection is closed, and another one sees the new state.
    assert!(reader.stream.read_to_close().is_ok());
    mirror.source.wait_for_state("mirroring");
    assert!(open(&mirror).read(0, new.len()).unwrap() == new, "the new image");
}

#[test]
fn a_promote_closes_readers_and_serves_read_write() {
    let mut mirror = in_step(8 * MIB);
    let given = pattern(4, 65_536);
    Client::go(&mirror.unix(), "vol0").unwrap().write(0, &given).unwrap();
    let mut reader = open(&mirror);
    mirror.source.kill();
    // Not signalled: only the promote brings it.
    assert!(reader.read(0, 4096).unwrap().iter().all(|byte| *byte == 0));
    promote_when_noticed(&mirror.destination, "alpha");
    assert!(reader.stream.read_to_close().unwrap().is_empty(), "closed without a reply");
    let mut client = Client::go(&mirror.promoted(), "vol0").unwrap();
    assert_eq!(client.flags & flag::READ_ONLY, 0);
    assert!(client.read(0, given.len()).unwrap() == given);
    client.write(0, &pattern(5, 4096)).unwrap();
}

#[test]
fn after_a_restart_it_waits_for_the_source_to_say_what_is_complete() {
    let mut mirror = in_step(8 * MIB);
    let mut writer = Client::go(&mirror.unix(), "vol0").unwrap();
    writer.write(0, &pattern(6, 65_536)).unwrap();
    mirror.source.freeze();
    mirror.destination.kill();
    mirror.destination.restart();
    let error = Client::go(&mirror.promoted(), "vol0@image").err().expect("nothing is known of the open fill");
    assert_says(&error.to_string(), &["vol0", "started"]);
    mirror.source.thaw();
    mirror.destination.wait_for_mirror("the source is back", |mirror| mirror["connected"] == true);
    mirror.source.sync();
    assert!(open(&mirror).read(0, 65_536).unwrap() == pattern(6, 65_536));
}

/// Clients that ask for much and read nothing have no effect on anybody but themselves.
#[test]
fn slow_readers_hold_up_neither_the_mirror_nor_the_others() {
    let mirror = in_step(16 * MIB);
    let mut slow: Vec<Client> = (0..3).map(|_| open(&mirror)).collect();
    for client in &mut slow {
        for at in 0..32 {
            client.send(0, kind::READ, at % 4 * 4 * MIB, 4 * MIB as u32, &[]).unwrap();
        }
    }
    let mut writer = Client::go(&mirror.unix(), "vol0").unwrap();
    for round in 0..20 {
        writer.write(round % 8 * 2 * MIB, &pattern(round, 2 * MIB as usize)).unwrap();
    }
    mirror.source.sync();
    let mut reader = open(&mirror);
    assert!(reader.read(6 * MIB, 65_536).unwrap() == pattern(19, 65_536));
    // They get all of it when they read at last, each request from one state.
    let mut one = slow.remove(0);
    for _ in 0..32 {
        assert_eq!(one.answer().unwrap().1, 0);
        let mut bytes = vec![0; 4 * MIB as usize];
        one.stream.read_exact(&mut bytes).unwrap();
    }
}

#[test]
fn foreign_clients_copy_the_image() {
    let mirror = in_step(16 * MIB);
    let mut writer = Client::go(&mirror.unix(), "vol0").unwrap();
    for at in [0, 5, 9] {
        writer.write(at * MIB, &pattern(at, MIB as usize)).unwrap();
    }
    mirror.source.sync();
    let (uri, copy) = (mirror.promoted().uri("vol0@image"), mirror.plan.path("copy"));
    run("nbdcopy", [uri.as_str(), copy.to_str().unwrap()]);
    let expected = std::fs::read(mirror.plan.volume(0)).unwrap();
    assert!(std::fs::read(&copy).unwrap() == expected, "nbdcopy");
    let raw = mirror.plan.path("raw");
    run("qemu-img", ["convert", "-O", "raw", uri.as_str(), raw.to_str().unwrap()]);
    assert!(std::fs::read(&raw).unwrap() == expected, "qemu-img");
    let script = "h = nbd.NBD()\nh.connect_uri(sys.argv[1])\nassert h.is_read_only() and h.can_multi_conn()\nassert h.get_size() == 16 << 20\nh.shutdown()";
    python(script, &[&uri]);
}
