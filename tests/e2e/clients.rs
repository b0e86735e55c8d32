//! Clients that nobody here wrote, over both socket families and in both durabilities; after each of them, volume
//! and image hold the same bytes.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::harness::{Client, Endpoint, KIB, MIB, Mirror, Plan, fill_pattern, flag, pattern, python, run};

const DURABILITIES: [&str; 2] = ["always", "flush"];

/// One map of `nbdinfo --map`: whether every byte of a range has an allocation status.
fn range_is(map: &Value, start: u64, end: u64, description: &str) -> bool {
    let mut at = start;
    for extent in map.as_array().expect("a map is an array") {
        let (offset, len) = (extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        if offset <= at && at < offset + len {
            if extent["description"] != description {
                return false;
            }
            at = offset + len;
        }
        if at >= end {
            return true;
        }
    }
    false
}

#[test]
fn nbdinfo_tells_what_the_server_can_do() {
    for durability in DURABILITIES {
        let mirror = Mirror::start(durability, 64 * MIB);
        for endpoint in [mirror.unix(), mirror.tcp()] {
            let text = run("nbdinfo", ["--json", &endpoint.uri("vol0")]);
            let info: Value = serde_json::from_str(&text).expect("nbdinfo writes JSON");
            assert_eq!(info["protocol"], "newstyle-fixed");
            assert_eq!(info["structured"], true, "structured replies:\n{text}");
            let export = &info["exports"][0];
            assert_eq!(export["export-name"], "vol0");
            assert_eq!(export["export-size"], 64 * MIB);
            assert_eq!(export["is_read_only"], false);
            for ability in ["can_cache", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
                assert_eq!(export[ability], true, "{ability}:\n{text}");
            }
            let contexts = export["contexts"].as_array().expect("contexts are an array");
            assert!(contexts.iter().any(|context| context == "base:allocation"), "{text}");
            let minimum = export["block_size_minimum"].as_u64().expect("a minimum block size");
            let preferred = export["block_size_preferred"].as_u64().expect("a preferred block size");
            let maximum = export["block_size_maximum"].as_u64().expect("a maximum block size");
            assert!(minimum <= 512, "512-byte requests are served:\n{text}");
            assert!((4 * KIB..=maximum).contains(&preferred) && preferred.is_power_of_two(), "{text}");
            assert!(maximum >= 32 * MIB, "requests up to 32 MiB are served:\n{text}");
        }
    }
}

#[test]
fn nbdinfo_lists_the_exports() {
    let mirror = Plan::new(&[8 * MIB, 16 * MIB]).start();
    let text = run("nbdinfo", ["--list", "--json", &mirror.unix().uri("")]);
    let list: Value = serde_json::from_str(&text).expect("nbdinfo writes JSON");
    let mut found: Vec<(String, u64)> = list["exports"]
        .as_array()
        .expect("exports are an array")
        .iter()
        .map(|export| (export["export-name"].as_str().unwrap().to_owned(), export["export-size"].as_u64().unwrap()))
        .collect();
    found.sort();
    assert_eq!(found, [("vol0".to_owned(), 8 * MIB), ("vol1".to_owned(), 16 * MIB)]);
}

#[test]
fn nbdcopy_copies_in_and_out() {
    for durability in DURABILITIES {
        let mirror = Mirror::start(durability, 64 * MIB);
        let (given, got) = (mirror.plan.path("given"), mirror.plan.path("got"));
        crate::harness::create_file(&given, 64 * MIB);
        fill_pattern(&given, 1, 0, 20 * MIB as usize);
        fill_pattern(&given, 2, 48 * MIB + 512, 5 * MIB as usize);
        for endpoint in [mirror.unix(), mirror.tcp()] {
            run("nbdcopy", ["--flush", given.to_str().unwrap(), &endpoint.uri("vol0")]);
            run("nbdcopy", [&endpoint.uri("vol0"), got.to_str().unwrap()]);
            crate::harness::assert_same(&given, &got, 64 * MIB);
        }
        mirror.assert_in_step();
    }
}

#[test]
fn nbdinfo_maps_holes_after_a_trim() {
    let mirror = Mirror::start("always", 16 * MIB);
    let uri = mirror.unix().uri("vol0");
    let map = || -> Value { serde_json::from_str(&run("nbdinfo", ["--map", "--json", &uri])).expect("a map in JSON") };
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(3, 8 * MIB as usize)).unwrap();
    // Before and after the data went from the journal to the device, the map tells the same.
    let before = map();
    assert!(range_is(&before, 0, 8 * MIB, "data"), "{before:#}");
    mirror.source.sync();
    let before = map();
    assert!(range_is(&before, 0, 8 * MIB, "data") && range_is(&before, 8 * MIB, 16 * MIB, "hole,zero"), "{before:#}");
    run("qemu-io", ["-f", "raw", "-d", "unmap", "-c", "discard 2M 4M", &uri]);
    mirror.source.sync();
    let after = map();
    assert!(range_is(&after, 0, 2 * MIB, "data") && range_is(&after, 2 * MIB, 6 * MIB, "hole,zero"), "{after:#}");
    assert!(range_is(&after, 6 * MIB, 8 * MIB, "data"), "{after:#}");
    mirror.assert_in_step();
}

#[test]
fn fio_verifies_over_several_jobs_and_connections() {
    for durability in DURABILITIES {
        let mirror = Mirror::start(durability, 64 * MIB);
        for (at, endpoint) in [mirror.unix(), mirror.tcp()].iter().enumerate() {
            let uri = format!("--uri={}", endpoint.uri("vol0"));
            let seed = format!("--randseed={}", 17 + at);
            run(
                "fio",
                [
                    "--name=mixed",
                    "--ioengine=nbd",
                    &uri,
                    &seed,
                    "--rw=randrw",
                    "--rwmixread=30",
                    "--bssplit=512/10:4k/50:20k/20:128k/15:1m/5",
                    "--blockalign=512",
                    "--numjobs=4",
                    "--iodepth=16",
                    "--size=16m",
                    "--offset_increment=16m",
                    "--verify=crc32c",
                    "--verify_fatal=1",
                    "--verify_state_save=0",
                    "--do_verify=1",
                    "--fsync=64",
                    "--group_reporting",
                ],
            );
        }
        mirror.assert_in_step();
    }
}

#[test]
fn qemu_io_writes_zeroes_discards_and_forces() {
    for durability in DURABILITIES {
        let mirror = Mirror::start(durability, 32 * MIB);
        let uri = mirror.tcp().uri("vol0");
        // Reads that find another pattern make qemu-io fail; a second process asks once the data left the journal.
        run(
            "qemu-io",
            [
                "-f",
                "raw",
                "-d",
                "unmap",
                "-c",
                "write -P 0xa5 0 8M",
                "-c",
                "write -z 1M 1M",
                "-c",
                "write -z -u 3M 64k",
                "-c",
                "discard 4M 1M",
                "-c",
                "write -f -P 0x5a 6M 4k",
                "-c",
                "flush",
                "-c",
                "write -P 7 512 512",
                "-c",
                "read -P 0 1M 1M",
                "-c",
                "read -P 0xa5 2M 1M",
                "-c",
                "read -P 7 512 512",
                &uri,
            ],
        );
        for _ in 0..2 {
            let said = run(
                "qemu-io",
                [
                    "-f",
                    "raw",
                    "-c",
                    "read -P 0xa5 0 512",
                    "-c",
                    "read -P 7 512 512",
                    "-c",
                    "read -P 0xa5 1k 1023k",
                    "-c",
                    "read -P 0 1M 1M",
                    "-c",
                    "read -P 0xa5 2M 1M",
                    "-c",
                    "read -P 0 3M 64k",
                    "-c",
                    "read -P 0x5a 6M 4k",
                    "-c",
                    "read -P 0xa5 7M 1M",
                    "-c",
                    "read -P 0 8M 24M",
                    &uri,
                ],
            );
            assert!(!said.contains("Pattern verification failed"), "{said}");
            mirror.assert_in_step();
        }
    }
}

#[test]
fn qemu_img_converts_in_and_out() {
    let mirror = Mirror::start("flush", 64 * MIB);
    let uri = mirror.unix().uri("vol0");
    let (given, got) = (mirror.plan.path("given.raw"), mirror.plan.path("got.qcow2"));
    crate::harness::create_file(&given, 64 * MIB);
    fill_pattern(&given, 4, 3 * MIB, 9 * MIB as usize);
    fill_pattern(&given, 5, 40 * MIB + 4096, 700_000);
    let (given, got) = (given.to_str().unwrap(), got.to_str().unwrap());
    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", "-W", given, &uri]);
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", given, &uri]);
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", &uri, got]);
    run("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", given, got]);
    mirror.assert_in_step();
}

/// libnbd as clients were before GO, structured replies and block sizes: every request in turn.
const OLD_STYLE: &str = r#"
path, flags = sys.argv[1], int(sys.argv[2])
h = nbd.NBD()
h.set_handshake_flags(flags)
h.set_request_structured_replies(False)
h.set_opt_mode(False)
h.set_export_name("vol0")
h.connect_unix(path)
assert h.get_size() == 16 << 20, h.get_size()
assert not h.get_structured_replies_negotiated()
block = bytes(range(256)) * 16
h.pwrite(block, 8192)
h.pwrite(block[:512], 512, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(4096, 8192) == block
h.zero(4096, 8192)
assert h.pread(4096, 8192) == bytes(4096)
h.trim(4096, 65536)
h.cache(65536, 0)
assert h.pread(512, 512) == block[:512]
h.shutdown()
"#;

#[test]
fn libnbd_as_an_old_style_client() {
    let mirror = Mirror::start("always", 16 * MIB);
    let path = mirror.plan.source.unix();
    // 1: fixed newstyle; 3: with "no zeroes" as well.
    for flags in ["1", "3"] {
        python(OLD_STYLE, &[path.to_str().unwrap(), flags]);
    }
    // By EXPORT_NAME, with and without the 124 zeroes after the answer, which must be where they belong.
    let mut client = Client::export_name(&mirror.unix(), "vol0").unwrap();
    assert_eq!(client.size, 16 * MIB);
    assert_ne!(client.flags & flag::CAN_MULTI_CONN, 0);
    assert!(client.read(512, 512).unwrap() == (0..512).map(|at| at as u8).collect::<Vec<_>>());
    mirror.assert_in_step();
}

#[test]
fn the_nbd_crate_reads_and_writes() {
    let mirror = Mirror::start("always", 16 * MIB);
    let mut socket = UnixStream::connect(mirror.plan.source.unix()).unwrap();
    let export = nbd::client::handshake(&mut socket, b"vol0").expect("the crate's handshake");
    assert_eq!(export.size, 16 * MIB);
    let given = pattern(6, 300 * KIB as usize);
    let mut got = vec![0; given.len()];
    let mut client = nbd::client::NbdClient::new(&mut socket, &export);
    client.seek(SeekFrom::Start(5 * MIB)).unwrap();
    client.write_all(&given).unwrap();
    client.seek(SeekFrom::Start(5 * MIB)).unwrap();
    client.read_exact(&mut got).unwrap();
    assert!(given == got, "the crate's client reads what it wrote");
    mirror.assert_in_step();
}

/// Several requests of 32 MiB in flight together, written and read back.
const LARGE: &str = r#"
uri, size = sys.argv[1], 32 << 20
h = nbd.NBD()
h.connect_uri(uri)
data = [random.Random(seed).randbytes(size) for seed in range(2)]
buffers = [nbd.Buffer.from_bytearray(bytearray(d)) for d in data]
cookies = [h.aio_pwrite(buffer, at * size) for at, buffer in enumerate(buffers)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
for at, expected in enumerate(data):
    assert h.pread(size, at * size) == expected, at
h.zero(size, size)
assert h.pread(size, size) == bytes(size)
h.flush()
h.shutdown()
"#;

#[test]
fn requests_of_32_mib() {
    // With the smallest journal a request is larger than a half.
    for (durability, journal_size) in [("always", "16MiB"), ("flush", "128MiB")] {
        let mut plan = Plan::new(&[64 * MIB]);
        plan.source.durability = durability.to_owned();
        plan.source.journal_size = journal_size.to_owned();
        let mirror = plan.start();
        python(&format!("import random\n{LARGE}"), &[&mirror.unix().uri("vol0")]);
        mirror.assert_in_step();
    }
}

#[test]
fn sizes_that_no_block_divides() {
    // A volume that ends with half a page, under an image that is larger than it.
    let size = 10 * MIB + 512;
    let plan = Plan::new(&[size]);
    crate::harness::create_file(plan.image(0), size + 7 * 512);
    let mirror = plan.start();
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    assert_eq!(client.size, size);
    for at in (0..40).map(|step| step * 262_144 + (step % 8) * 512) {
        client.write(at, &pattern(at, 512)).unwrap();
        assert_eq!(client.read(at, 512).unwrap(), pattern(at, 512));
    }
    let last = pattern(9, 512);
    client.succeed(flag::FUA, crate::harness::kind::WRITE, size - 512, 512, &last).unwrap();
    client.write(size - 5 * KIB, &pattern(10, 4096)).unwrap();
    assert_eq!(client.read(size - 512, 512).unwrap(), last);
    mirror.assert_in_step();
    assert_eq!(client.read(size - 512, 512).unwrap(), last);
    let image = std::fs::metadata(mirror.plan.image(0)).unwrap();
    assert_eq!(image.len(), size + 7 * 512, "an image keeps its size");
}

#[test]
fn a_connection_reads_what_another_wrote() {
    // Multi-conn: a write answered on one connection is seen, and flushed, by every other (promise P3).
    let mirror = Mirror::start("flush", 16 * MIB);
    let endpoints = [mirror.unix(), mirror.tcp()];
    let mut clients: Vec<Client> = endpoints.iter().map(|at: &Endpoint| Client::go(at, "vol0").unwrap()).collect();
    assert_ne!(clients[0].flags & flag::CAN_MULTI_CONN, 0);
    for round in 0..200u64 {
        let (writer, reader) = ((round % 2) as usize, (1 - round % 2) as usize);
        let offset = (round * 37 % 512) * 4096 + (round % 3) * 512;
        let given = pattern(round, 1536);
        clients[writer].write(offset, &given).unwrap();
        assert!(clients[reader].read(offset, 1536).unwrap() == given, "round {round}");
    }
    mirror.assert_in_step();
}
