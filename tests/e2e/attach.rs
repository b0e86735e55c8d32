//! Attaching, as far as it goes without the kernel's module: who is who, what is refused, and what is said.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Client, MIB, Mirror, Plan, assert_says, binary, finish, free_port, run, verb};
use crate::promote::promote_when_noticed;

/// Exit codes of `attach` and `detach`.
const REFUSED: i32 = 3;
const UNREACHABLE: i32 = 4;
const KERNEL: i32 = 6;

/// How an `attach` ends that gets nowhere.
#[track_caller]
fn attach(dir: &Path, uris: &[&str]) -> (i32, String) {
    let mut command = Command::new(binary());
    command.args(["attach", "--wait", "1s", "--state-dir", dir.to_str().unwrap()]).args(uris);
    let finished = finish(command, Duration::from_secs(30));
    let code = finished.status.code().unwrap_or_else(|| panic!("a signal ended it:\n{}", finished.stderr));
    (code, finished.stderr)
}

/// Whether this machine's kernel has no NBD client. Where it has one, tests of its absence say that they are left out.
fn lacks_the_module() -> bool {
    let lacks = !Path::new("/sys/module/nbd").exists();
    if !lacks {
        eprintln!("left out: the kernel's nbd module is loaded");
    }
    lacks
}

/// What an export tells a foreign client of itself.
fn description(uri: &str) -> String {
    let info: Value = serde_json::from_str(&run("nbdinfo", ["--json", uri])).unwrap();
    info["exports"][0]["description"].as_str().unwrap_or_else(|| panic!("no description: {info:#}")).to_owned()
}

#[test]
fn a_volume_keeps_its_identity_through_a_promote() {
    let mut mirror = Mirror::start("always", 8 * MIB);
    mirror.assert_in_step();
    let status = mirror.source.status();
    let id = status["volumes"][0]["id"].as_str().unwrap();
    let before = description(&mirror.unix().uri("vol0"));
    assert_eq!(before, format!("nbd-mirror volume={id} epoch=1 role=primary"));
    mirror.source.kill();
    promote_when_noticed(&mirror.destination, "alpha");
    let after = description(&mirror.promoted().uri("vol0"));
    assert_eq!(after, format!("nbd-mirror volume={id} epoch=2 role=primary"));
    let there = mirror.destination.status();
    assert_eq!(there["sources"][0]["volumes"][0]["id"], id, "{there:#}");
}

#[test]
fn a_kernel_without_the_module_is_named_with_the_remedy() {
    if !lacks_the_module() {
        return;
    }
    let mirror = Mirror::start("always", 8 * MIB);
    let (code, said) = attach(&mirror.plan.path("run"), &[&mirror.unix().uri("vol0")]);
    assert_eq!(code, KERNEL, "{said}");
    assert_says(&said, &["modprobe nbd"]);
    let detach = verb(&["detach", "/dev/nbd0"]);
    assert_eq!(detach.status.code(), Some(KERNEL), "{}", detach.stderr);
    // Asking leaves nothing behind: the server goes on.
    Client::go(&mirror.unix(), "vol0").unwrap();
}

#[test]
fn two_volumes_are_never_taken_for_one() {
    let mirror = Plan::new(&[8 * MIB, 8 * MIB]).start();
    let ids: Vec<String> =
        (0..2).map(|at| mirror.source.status()["volumes"][at]["id"].as_str().unwrap().to_owned()).collect();
    assert_ne!(ids[0], ids[1]);
    let uris = [mirror.unix().uri("vol0"), mirror.tcp().uri("vol1")];
    let (code, said) = attach(&mirror.plan.path("run"), &[&uris[0], &uris[1]]);
    assert_eq!(code, REFUSED, "{said}");
    assert_says(&said, &[&ids[0], &ids[1], &uris[0], &uris[1]]);
}

#[test]
fn a_server_that_doesnt_say_who_it_is_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbdkit.sock");
    let attach = |uri: &str| attach(&dir.path().join("run"), &[uri]);
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let inner = format!("{} attach --wait 1s '{uri}'; echo $?", binary().display());
    let output = run("nbdkit", ["-U", socket.to_str().unwrap(), "memory", "1M", "--run", &inner]);
    assert_eq!(output.trim(), REFUSED.to_string());
    // One that is no NBD server at all is like none: something else may come to listen there.
    let listener = TcpListener::bind(free_port()).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let _ = std::io::Write::write_all(&mut &stream, b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n");
        }
    });
    let (code, said) = attach(&format!("nbd://{address}/vol0"));
    assert!(code == UNREACHABLE || code == KERNEL, "{said}");
}

#[test]
fn there_are_no_devices() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().to_str().unwrap();
    assert_eq!(verb(&["attach", "--list", "--state-dir", state_dir]).success(), "");
    assert_eq!(verb(&["attach", "--list", "--json", "--state-dir", state_dir]).success(), "[]\n");
}

#[test]
fn what_is_wrong_with_a_uri_is_said() {
    for (uri, said) in [("http://h/vol0", "scheme"), ("nbd+unix:///vol0", "?socket="), ("nbds://h/vol0", "TLS")] {
        let finished = verb(&["attach", uri]);
        assert_eq!(finished.status.code(), Some(2), "{}", finished.stderr);
        assert_says(&finished.stderr, &[said]);
    }
}
