//! Peers on the replication link that aren't what they should be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::harness::{
    Client, Daemon, Endpoint, Ledger, Load, MIB, Mirror, Plan, Proxy, SourceConfig, create_file, fill_pattern,
    free_port, pattern, run, wait_until,
};

const BLOCK: usize = 4096;
/// Of the replication protocol.
const VERSION: u16 = 3;
const OTHER_VERSION: u16 = 4711;

/// CRC-32C, bit by bit: independent of the program's own.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// A header block as docs/format.md describes it: magic, version, flags, checksum over all its bytes.
fn block(magic: &[u8; 8], version: u16) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    bytes[..8].copy_from_slice(magic);
    bytes[8..10].copy_from_slice(&version.to_le_bytes());
    let sum = crc32c(&bytes);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Sends bytes to the destination's port, and waits until it closes.
#[track_caller]
fn send_and_expect_close(destination: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(destination).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The destination may close before all is sent.
    let _ = stream.write_all(bytes);
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            panic!("it should be closed: {error}")
        }
        _ => {}
    }
}

/// A source whose destination is something else; reads have to go on, and a stop has to be clean.
#[track_caller]
fn source_towards(address: SocketAddr, nouns: &[&str]) {
    let mut plan = Plan::new(&[8 * MIB]);
    fill_pattern(plan.volume(0), 1, 0, 4096);
    plan.source.destination = Some(address);
    let mut source = Daemon::source(&plan.source);
    let mut client = Client::go(&Endpoint::Unix(plan.source.unix()), "vol0").unwrap();
    assert!(client.read(0, 4096).unwrap() == pattern(1, 4096));
    if !nouns.is_empty() {
        source.wait_for_log(nouns);
    }
    assert!(source.status().is_object());
    assert_eq!(source.stop(nix::sys::signal::Signal::SIGTERM).code(), Some(0), "{}", source.log());
}

#[test]
fn a_stranger_at_the_destinations_port() {
    let mirror = Mirror::start("always", 8 * MIB);
    let address = mirror.plan.destination.listen;
    send_and_expect_close(address, &[b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[b'x'; BLOCK]].concat());
    mirror.destination.wait_for_log(&["not|foreign|magic", "nbd-mirror"]);
    send_and_expect_close(address, &pattern(2, 3 * BLOCK));
    // Strangers that say nothing, or half of something, hold up nobody.
    let hello = block(b"NBDMHELO", 1);
    let _held: Vec<TcpStream> = [0, 1, 100, BLOCK - 1]
        .iter()
        .map(|&len| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&hello[..len]).unwrap();
            stream
        })
        .collect();
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.write(0, &pattern(3, 4096)).unwrap();
    mirror.assert_in_step();
}

#[test]
fn a_source_connects_while_strangers_hold_connections() {
    let plan = Plan::new(&[8 * MIB]);
    let destination = Daemon::destination(&plan.destination);
    let _held: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(plan.destination.listen).unwrap()).collect();
    let source = Daemon::source(&plan.source);
    Mirror { source, destination, plan }.assert_in_step();
}

#[test]
fn a_source_of_another_version() {
    let mirror = Mirror::start("always", 8 * MIB);
    send_and_expect_close(mirror.plan.destination.listen, &block(b"NBDMHELO", OTHER_VERSION));
    mirror.destination.wait_for_log(&["version", "4711"]);
    mirror.assert_in_step();
}

#[test]
fn a_hello_with_a_wrong_checksum_or_nonsense_inside() {
    let mirror = Mirror::start("always", 8 * MIB);
    let mut torn = block(b"NBDMHELO", VERSION);
    torn[2000] ^= 1;
    send_and_expect_close(mirror.plan.destination.listen, &torn);
    mirror.destination.wait_for_log(&["checksum"]);
    // The checksum is right, but there is neither a name nor a volume in it.
    send_and_expect_close(mirror.plan.destination.listen, &block(b"NBDMHELO", VERSION));
    mirror.assert_in_step();
}

/// A listener that answers each connection's first block with `answer`, or never.
fn fake_destination(answer: Option<Vec<u8>>) -> SocketAddr {
    let address = free_port();
    let listener = TcpListener::bind(address).unwrap();
    // It ends with the test process: the tests have no way to tell that a source won't dial again.
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            let mut hello = vec![0; BLOCK];
            if let Some(answer) = &answer
                && stream.read_exact(&mut hello).is_ok()
            {
                // The source may hang up: that is what the test waits for.
                let _ = stream.write_all(answer);
            }
            held.push(stream);
        }
    });
    address
}

#[test]
fn a_destination_of_another_version() {
    source_towards(fake_destination(Some(block(b"NBDMWELC", OTHER_VERSION))), &["version", "4711"]);
}

#[test]
fn a_destination_that_is_something_else() {
    source_towards(fake_destination(Some(pattern(4, BLOCK))), &["not|foreign|magic", "nbd-mirror"]);
}

#[test]
fn a_destination_that_accepts_and_never_answers() {
    source_towards(fake_destination(None), &[]);
}

#[test]
fn a_destination_that_is_an_nbd_server() {
    struct Server(Child);
    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let address = free_port();
    let port = address.port().to_string();
    let _server = Server(
        Command::new("nbdkit")
            .args(["--foreground", "--ipaddr", "127.0.0.1", "--port", &port, "memory", "1M"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("install the Debian package nbdkit"),
    );
    wait_until("nbdkit listens", Duration::from_secs(20), || TcpStream::connect(address).is_ok());
    source_towards(address, &["not|foreign|magic|closed", "nbd-mirror|destination"]);
}

#[test]
fn an_nbd_client_at_the_replication_port() {
    let mirror = Mirror::start("always", 8 * MIB);
    let mut nbdinfo = Command::new("nbdinfo");
    nbdinfo.arg(format!("nbd://{}", mirror.plan.destination.listen));
    // Both ends wait for the other's first word: the destination must be the one to give up or to be left.
    let mut child = nbdinfo.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("install libnbd-bin");
    mirror.assert_in_step();
    child.kill().unwrap();
    child.wait().unwrap();
    mirror.assert_in_step();
}

#[test]
fn an_unknown_source_name() {
    let mut plan = Plan::new(&[8 * MIB]);
    plan.source.name = "gamma".to_owned();
    let destination = Daemon::destination(&plan.destination);
    let source = Daemon::source(&plan.source);
    destination.wait_for_log(&["gamma"]);
    source.wait_for_log(&["gamma", "unknown|not|no source"]);
    assert!(source.status().is_object());
}

#[test]
fn a_volume_that_the_destination_has_no_image_for() {
    let mut plan = Plan::new(&[8 * MIB, 8 * MIB]);
    plan.destination.sources[0].1.pop();
    let _destination = Daemon::destination(&plan.destination);
    let source = Daemon::source(&plan.source);
    source.wait_for_log(&["vol1"]);
}

#[test]
fn an_image_smaller_than_its_volume() {
    let plan = Plan::new(&[8 * MIB]);
    create_file(plan.image(0), 8 * MIB - 4096);
    let destination = Daemon::destination(&plan.destination);
    let source = Daemon::source(&plan.source);
    source.wait_for_log(&["vol0", "small|larger|size|bytes"]);
    destination.wait_for_log(&["vol0", "small|larger|size|bytes"]);
    let image = std::fs::metadata(plan.image(0)).unwrap();
    assert_eq!(image.len(), 8 * MIB - 4096, "nobody stretches an image");
    assert!(source.status().is_object());
}

#[test]
fn another_source_under_the_same_name() {
    let mirror = Mirror::start("always", 8 * MIB);
    let ledger = Arc::new(Ledger::new(1, 2048, true));
    let load = Load::start(&ledger, &mirror.exports(), 1);
    load.wait_for_answers(200);
    let dir = mirror.plan.path("impostor");
    std::fs::create_dir(&dir).unwrap();
    let mut config = SourceConfig::new(&dir, "alpha");
    let volume = dir.join("volume");
    create_file(&volume, 8 * MIB);
    fill_pattern(&volume, 5, 0, MIB as usize);
    config.volumes.push(("vol0".to_owned(), volume));
    config.destination = Some(mirror.plan.destination.listen);
    let impostor = Daemon::source(&config);
    impostor.wait_for_log(&["alpha", "another|other|already|connected|journal|refuse"]);
    load.wait_for_answers(200);
    load.stop();
    mirror.assert_in_step();
    ledger.check("the image", &mirror.images());
}

#[test]
fn a_flipped_bit_on_the_link_is_found_and_repaired() {
    let mut plan = Plan::new(&[8 * MIB]);
    let proxy = Proxy::start(plan.destination.listen, 0);
    plan.source.destination = Some(proxy.address);
    let mirror = plan.start();
    mirror.assert_in_step();
    let ledger = Arc::new(Ledger::new(1, 2048, true));
    let load = Load::start(&ledger, &mirror.exports(), 2);
    for round in 0..4 {
        load.wait_for_answers(300);
        proxy.flip_a_bit(round * 1009);
    }
    mirror.destination.wait_for_log(&["checksum|damage"]);
    load.wait_for_answers(300);
    load.stop();
    mirror.assert_in_step();
    ledger.check("the image", &mirror.images());
}

#[test]
fn verbs_at_the_wrong_daemon_and_at_none() {
    let mirror = Mirror::start("always", 8 * MIB);
    let source_admin = mirror.plan.source.admin();
    let destination_admin = mirror.plan.destination.admin();
    let cases = [
        (vec!["promote", "--admin", source_admin.to_str().unwrap(), "alpha"], "destination"),
        (vec!["sync", "--admin", destination_admin.to_str().unwrap()], "source"),
        (vec!["status", "--admin", "/nonexistent/admin"], "/nonexistent/admin"),
    ];
    for (args, noun) in cases {
        let finished = crate::harness::verb(&args);
        assert!(!finished.status.success(), "{args:?}");
        crate::harness::assert_says(&finished.stderr, &[noun]);
    }
    run("nbdinfo", ["--size", &mirror.unix().uri("vol0")]);
}
