//! The tests' own judge, judged: against a server that is known to work, it is content, and it finds every kind of
//! damage that is done to the server's data behind its back.

use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{Client, Endpoint, Image, Ledger, Load, MIB, create_file, pattern, wait_until};

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
