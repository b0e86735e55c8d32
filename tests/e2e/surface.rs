//! What operators and scripts see besides NBD: status, metrics, readiness.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Client, MIB, Mirror, Plan, assert_says, binary, free_port, kind, pattern, verb};

/// A mirror into which a mebibyte was written, and synced.
fn synced() -> Mirror {
    let mirror = Mirror::start("always", 8 * MIB);
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    for at in 0..16 {
        client.write(at * 65_536, &pattern(at, 65_536)).unwrap();
    }
    mirror.assert_in_step();
    mirror
}

#[test]
fn status_of_both_daemons_in_json() {
    let mirror = synced();
    let source = mirror.source.status();
    assert_eq!(source["name"], "alpha", "{source:#}");
    assert_eq!(source["state"], "mirroring", "{source:#}");
    assert_eq!(source["durability"], "always", "{source:#}");
    assert_eq!(source["connected"], true, "{source:#}");
    assert!(source["answered_writes"].as_u64() >= Some(16), "{source:#}");
    assert!(source["verified_record"].as_u64() > Some(0), "a sync proves both sides equal:\n{source:#}");
    assert_eq!(source["volumes"][0]["name"], "vol0", "{source:#}");
    assert_eq!(source["volumes"][0]["size_bytes"], 8 * MIB, "{source:#}");
    let destination = mirror.destination.status();
    let alpha = &destination["sources"][0];
    assert_eq!(alpha["name"], "alpha", "{destination:#}");
    assert_eq!(alpha["connected"], true, "{destination:#}");
    assert_eq!(alpha["promotable"], true, "{destination:#}");
    assert!(alpha["applied_record"].as_u64() > Some(0), "{destination:#}");
    assert_eq!(alpha["volumes"][0]["name"], "vol0", "{destination:#}");
}

#[test]
fn status_for_people() {
    let mirror = synced();
    let admin = mirror.plan.source.admin();
    let text = verb(&["status", "--admin", admin.to_str().unwrap()]).success();
    assert_says(&text, &["mirroring", "alpha", "vol0", "verified to record"]);
    let admin = mirror.plan.destination.admin();
    let text = verb(&["status", "--admin", admin.to_str().unwrap()]).success();
    assert_says(&text, &["alpha", "vol0", "promotable"]);
}

#[test]
fn watch_shows_the_status_again_and_again() {
    let mirror = synced();
    let mut watch = Command::new(binary())
        .args(["status", "--watch", "--admin", mirror.plan.source.admin().to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    let mut output = watch.stdout.take().unwrap();
    while String::from_utf8_lossy(&seen).matches("mirroring").count() < 2 {
        let mut piece = [0; 4096];
        let len = output.read(&mut piece).unwrap();
        assert!(len > 0, "it ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..len]);
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn a_sync_of_nothing_is_done_at_once() {
    let mirror = synced();
    for _ in 0..5 {
        mirror.source.sync();
    }
    mirror.assert_in_step();
}

#[test]
fn syncs_of_many_at_once() {
    let mirror = synced();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let mirror = &mirror;
            scope.spawn(move || {
                let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
                client.write(seed * MIB, &pattern(seed, 4096)).unwrap();
                mirror.source.sync();
                let image = std::fs::read(mirror.plan.image(0)).unwrap();
                let at = (seed * MIB) as usize;
                assert!(image[at..at + 4096] == pattern(seed, 4096), "a sync covers what was answered before it");
            });
        }
    });
}

/// The body that a metrics listener serves.
#[track_caller]
fn metrics(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("connect to the metrics listener");
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("metrics in UTF-8");
    assert!(text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/1.0 200"), "{text}");
    text
}

#[test]
fn metrics_of_both_daemons() {
    let mut plan = Plan::new(&[8 * MIB]);
    let (source, destination) = (free_port(), free_port());
    plan.source.extra = format!("[metrics]\nlisten = \"{source}\"\n");
    plan.destination.extra = format!("[metrics]\nlisten = \"{destination}\"\n");
    let mirror = plan.start();
    let mut client = Client::go(&mirror.unix(), "vol0").unwrap();
    client.succeed(0, kind::WRITE, 0, 4096, &pattern(1, 4096)).unwrap();
    mirror.assert_in_step();
    for (address, label) in [(source, "alpha"), (destination, "alpha")] {
        let text = metrics(address);
        assert_says(&text, &["# TYPE", "nbd_mirror", label]);
    }
}

#[test]
fn readiness_and_stopping_are_told_to_the_service_manager() {
    let plan = Plan::new(&[8 * MIB]);
    let socket = plan.path("notify");
    let notified = UnixDatagram::bind(&socket).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    for (role, config) in [("destination", plan.destination.write()), ("source", plan.source.write())] {
        let mut daemon = Command::new(binary())
            .args([role, "--config", config.to_str().unwrap()])
            .env("NOTIFY_SOCKET", &socket)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let await_word = |word: &str| {
            let mut message = [0; 4096];
            loop {
                let len = notified.recv(&mut message).unwrap_or_else(|error| panic!("{role}: no {word}: {error}"));
                if String::from_utf8_lossy(&message[..len]).lines().any(|line| line == word) {
                    return;
                }
            }
        };
        await_word("READY=1");
        if role == "source" {
            // Ready means ready: the export is there.
            Client::go(&crate::harness::Endpoint::Unix(plan.source.unix()), "vol0").expect("a ready source serves");
        }
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.id() as i32), nix::sys::signal::Signal::SIGTERM)
            .unwrap();
        await_word("STOPPING=1");
        assert_eq!(daemon.wait().unwrap().code(), Some(0), "{role}");
    }
}
