//! The tests' own judge, judged: against a server that is known to work, it is content, and it finds every kind of
//! damage that is done to the server's data behind its back.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{Client, Endpoint, Image, Ledger, Load, MIB, Proxy, Toward, create_file, pattern, wait_until};

const BLOCK: u64 = 4096;

/// nbdkit over one file.
struct Server {
    child: Child,
    file: PathBuf,
    endpoint: Endpoint,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let (file, socket) = (dir.path().join("file"), dir.path().join("socket"));
        create_file(&file, 4 * MIB);
        let child = Command::new("nbdkit")
            .args(["--foreground", "--unix", socket.to_str().unwrap(), "file", file.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("install the Debian package nbdkit");
        let endpoint = Endpoint::Unix(socket);
        wait_until("nbdkit listens", Duration::from_secs(20), || endpoint.connect().is_ok());
        Server { child, file, endpoint, _dir: dir }
    }

    /// A workload of some thousand writes, and its ledger.
    fn load(&self, answered_is_durable: bool) -> Ledger {
        let ledger = Arc::new(Ledger::new(1, 1024, answered_is_durable));
        let load = Load::start(&ledger, &[(self.endpoint.clone(), String::new())], 3);
        load.wait_for_answers(3000);
        load.stop();
        Arc::into_inner(ledger).expect("the writers have ended")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The complaint of a check that must not pass.
#[track_caller]
fn complaint(ledger: &Ledger, image: &Image) -> String {
    let result = catch_unwind(AssertUnwindSafe(|| ledger.check("a damaged file", std::slice::from_ref(image))));
    *result.expect_err("the damage should have been found").downcast::<String>().expect("a message")
}

#[test]
fn the_client_speaks_both_handshakes() {
    let server = Server::start();
    let mut new = Client::go(&server.endpoint, "").unwrap();
    let mut old = Client::export_name(&server.endpoint, "").unwrap();
    assert_eq!((new.size, old.size), (4 * MIB, 4 * MIB));
    assert_eq!(new.flags, old.flags);
    new.write(512, &pattern(1, 1024)).unwrap();
    assert!(old.read(512, 1024).unwrap() == pattern(1, 1024));
    assert_eq!(old.call(0, 99, 0, 0, &[]).unwrap(), 22);
    new.disconnect();
}

#[test]
fn the_ledger_finds_what_is_lost() {
    let server = Server::start();
    let ledger = server.load(true);
    let versions = ledger.check("the export", &[Image::export(&server.endpoint, "")]);
    let image = Image::file(&server.file);
    ledger.check("the file", std::slice::from_ref(&image));
    let block = versions.iter().position(|&version| version > 1).unwrap() as u64;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&server.file).unwrap();
    let mut kept = vec![0; BLOCK as usize];
    file.read_exact_at(&mut kept, block * BLOCK).unwrap();
    // The write has vanished; the block is torn; it is another block's; it is an older version.
    file.write_all_at(&vec![0; BLOCK as usize], block * BLOCK).unwrap();
    assert!(complaint(&ledger, &image).contains("LOST"));
    file.write_all_at(&kept[..512], block * BLOCK).unwrap();
    assert!(complaint(&ledger, &image).contains("torn"));
    let other = versions.iter().rposition(|&version| version > 0).unwrap() as u64;
    file.write_all_at(&kept, other * BLOCK).unwrap();
    file.write_all_at(&kept, block * BLOCK).unwrap();
    assert!(complaint(&ledger, &image).contains("holds volume 0, block"));
}

#[test]
fn the_ledger_finds_gaps_where_a_loss_is_allowed() {
    // Nothing was flushed after the last flush: but what is missing must be missing at the end.
    let server = Server::start();
    let ledger = Ledger::new(1, 1024, false);
    let mut client = Client::go(&server.endpoint, "").unwrap();
    let image = Image::file(&server.file);
    for block in 0..3 {
        let write = ledger.next(0, block);
        client.write(block as u64 * BLOCK, &write.bytes).unwrap();
        ledger.note_answer(0, block, write.version);
    }
    client.succeed(0, crate::harness::kind::FLUSH, 0, 0, &[]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&server.file).unwrap();
    file.write_all_at(&vec![0; BLOCK as usize], 2 * BLOCK).unwrap();
    assert_eq!(ledger.check("a lost tail is allowed", std::slice::from_ref(&image))[..3], [1, 1, 0]);
    file.write_all_at(&vec![0; BLOCK as usize], 0).unwrap();
    assert!(complaint(&ledger, &image).contains("GAP"));
    // Once a flush covers them, not even the tail may be lost.
    file.write_all_at(&ledger_bytes(0), 0).unwrap();
    let started = ledger.flush_started();
    ledger.note_flush(started);
    assert!(complaint(&ledger, &image).contains("LOST"));
}

/// What the first version of a block holds.
fn ledger_bytes(block: usize) -> Vec<u8> {
    Ledger::new(1, 1024, false).next(0, block).bytes
}

/// A ledger of one volume with a file that its writes go to at once; which of them were answered is for the test to say.
struct Paper {
    ledger: Ledger,
    file: std::fs::File,
    image: Image,
    _dir: tempfile::TempDir,
}

impl Paper {
    fn new() -> Paper {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        create_file(&path, 4 * MIB);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        Paper { ledger: Ledger::new(1, 1024, true), file, image: Image::file(&path), _dir: dir }
    }

    fn put(&self, block: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, block * BLOCK).unwrap();
    }

    fn zero(&self, block: u64) {
        self.put(block, &[0; BLOCK as usize]);
    }

    #[track_caller]
    fn holds(&self, versions: &[usize]) {
        assert_eq!(self.ledger.check("a good file", std::slice::from_ref(&self.image))[..versions.len()], *versions);
    }

    #[track_caller]
    fn breaks(&self, rule: &str) {
        let complaint = complaint(&self.ledger, &self.image);
        assert!(complaint.contains(rule), "this should break {rule}: {complaint}");
    }
}

#[test]
fn the_ledger_finds_writes_that_overtook_others() {
    let paper = Paper::new();
    let (one, other) = (paper.ledger.connection(), paper.ledger.connection());
    let writes: Vec<_> = (0..3).map(|block| paper.ledger.next_over(one, 0, block).bytes).collect();
    let alone = paper.ledger.next_over(other, 0, 3).bytes;
    // Nothing is answered: each connection may have come any way, and neither says anything of the other.
    paper.put(3, &alone);
    paper.holds(&[0, 0, 0, 1]);
    paper.put(0, &writes[0]);
    paper.holds(&[1, 0, 0, 1]);
    paper.put(2, &writes[2]);
    paper.breaks("ORDER");
    paper.put(1, &writes[1]);
    paper.holds(&[1, 1, 1, 1]);
}

#[test]
fn the_ledger_finds_what_comes_back() {
    let paper = Paper::new();
    let first = paper.ledger.next(0, 0);
    paper.put(0, &first.bytes);
    let lost = paper.ledger.next(0, 0);
    paper.ledger.settle("after a crash", std::slice::from_ref(&paper.image));
    paper.put(0, &lost.bytes);
    paper.breaks("UNDEAD");
    // What was seen, on the other hand, has to stay, though it never was answered.
    paper.zero(0);
    paper.breaks("LOST");
    let next = paper.ledger.next(0, 0);
    paper.put(0, &next.bytes);
    paper.holds(&[3]);
}

#[test]
fn the_ledger_knows_what_zeros_may_be() {
    let paper = Paper::new();
    let connection = paper.ledger.connection();
    let stamped = paper.ledger.next_over(connection, 0, 0);
    paper.put(0, &stamped.bytes);
    paper.ledger.note_answer(0, 0, stamped.version);
    let zeros = paper.ledger.next_zeros_over(connection, 0, 0);
    paper.holds(&[1]);
    paper.zero(0);
    paper.holds(&[zeros]);
    let behind = paper.ledger.next_over(connection, 0, 1);
    paper.put(1, &behind.bytes);
    paper.holds(&[zeros, 1]);
    paper.put(0, &stamped.bytes);
    paper.breaks("ORDER");
    paper.ledger.note_answer(0, 0, zeros);
    paper.breaks("LOST");
    assert!(paper.ledger.check_read(0, 0, zeros, &stamped.bytes).is_err(), "a read that sees an older version");
    assert!(paper.ledger.check_read(0, 0, zeros, &[0; BLOCK as usize]).is_ok());
    let last = paper.ledger.next_over(connection, 0, 0);
    paper.ledger.note_answer(0, 0, last.version);
    paper.zero(0);
    paper.breaks("LOST");
}

/// A connection through a proxy: the dialing end, and the end that it reaches.
fn through_a_proxy() -> (Proxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap(), 0);
    let dialer = TcpStream::connect(proxy.address).unwrap();
    let (target, _) = listener.accept().unwrap();
    for stream in [&dialer, &target] {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    }
    (proxy, dialer, target)
}

#[test]
fn the_proxy_keeps_every_byte_however_bad_the_link() {
    let (proxy, mut dialer, mut target) = through_a_proxy();
    let given = pattern(1, 200_000);
    proxy.crumble(700, 100_000);
    proxy.set_delay(Duration::from_millis(3), Duration::from_millis(3));
    let writer = std::thread::spawn({
        let (given, mut dialer) = (given.clone(), dialer.try_clone().unwrap());
        move || dialer.write_all(&given).unwrap()
    });
    let mut got = vec![0; given.len()];
    target.read_exact(&mut got).unwrap();
    assert!(got == given);
    writer.join().unwrap();
    proxy.calm();
    target.write_all(&given[..1000]).unwrap();
    dialer.read_exact(&mut got[..1000]).unwrap();
    assert!(got[..1000] == given[..1000]);
}

#[test]
fn the_proxy_cuts_behind_a_byte() {
    let (proxy, mut dialer, mut target) = through_a_proxy();
    proxy.cut_after(12_345);
    // The cut may be noticed while this is still being written.
    let _ = dialer.write_all(&pattern(1, 100_000));
    let mut got = Vec::new();
    target.read_to_end(&mut got).unwrap();
    assert!(got == pattern(1, 12_345), "{} bytes arrived", got.len());
}

#[test]
fn the_proxy_closes_one_direction_alone() {
    for toward in [Toward::Target, Toward::Dialer] {
        let (proxy, dialer, target) = through_a_proxy();
        let (mut sends, mut receives) = if toward == Toward::Target { (dialer, target) } else { (target, dialer) };
        sends.write_all(b"before").unwrap();
        receives.read_exact(&mut [0; 6]).unwrap();
        proxy.close_one_way(toward);
        assert_eq!(receives.read(&mut [0; 6]).unwrap(), 0, "{toward:?}: the end");
        sends.write_all(b"into the void").unwrap();
        receives.write_all(b"back").unwrap();
        let mut got = [0; 4];
        sends.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"back", "{toward:?}: the other direction goes on");
    }
}
