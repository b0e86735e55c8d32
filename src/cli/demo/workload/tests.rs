//! The workload against nbdkit: what its check says of a sound image, a lost write and damage.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

const SIZE_BYTES: u64 = 16 << 20;

/// nbdkit over one file, killed when dropped.
struct Server(Child);

impl Server {
    fn start(socket: &Path, file: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let child = Command::new("nbdkit")
            .args(["--foreground", "--unix"])
            .arg(socket)
            .arg("file")
            .arg(file)
            // It complains of each broken connection, which is what these tests are about.
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit is installed");
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < deadline, "nbdkit doesn't listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_check_finds_every_answered_write_and_notices_a_lost_and_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume");
    let file = File::create_new(&path).unwrap();
    file.set_len(SIZE_BYTES).unwrap();
    let export = Export { volume: 0, name: String::new(), socket: folder.path().join("nbd"), size_bytes: SIZE_BYTES };

    let server = Server::start(&export.socket, &path);
    let workload = Workload::start(42, std::slice::from_ref(&export)).unwrap();
    while workload.answered() < 5000 {
        workload.check().unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    workload.expect_cut();
    drop(server);
    let history = workload.finish().unwrap();

    let _server = Server::start(&export.socket, &path);
    let check = || history.check(&export, || Ok(())).unwrap();
    let sound = check();
    assert!(sound.answered >= 5000);
    assert_eq!((sound.found, sound.lost, sound.damaged), (sound.answered, 0, 0));

    // A block as it was one answered write ago.
    let (number, versions) =
        history.volumes[0].iter().enumerate().find(|(_, versions)| versions.answered >= 2).unwrap();
    let mut block = [0; BLOCK_BYTES];
    let older = Stamp { run: 42, volume: 0, block: number as u64, version: versions.answered - 1 };
    older.fill(&mut block);
    let offset_bytes = (number * BLOCK_BYTES) as u64;
    file.write_all_at(&block, offset_bytes).unwrap();
    let one_lost = check();
    assert_eq!((one_lost.lost, one_lost.damaged), (1, 0));

    // The same block torn: all its writes are gone.
    file.write_all_at(&[0xff; 512], offset_bytes + 512).unwrap();
    let torn = check();
    assert_eq!((torn.lost, torn.damaged), (versions.answered, 1));
    assert_eq!(torn.found + torn.lost, torn.answered);
}

#[test]
fn a_server_that_dies_unexpectedly_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume");
    File::create_new(&path).unwrap().set_len(SIZE_BYTES).unwrap();
    let export = Export { volume: 0, name: String::new(), socket: folder.path().join("nbd"), size_bytes: SIZE_BYTES };
    let server = Server::start(&export.socket, &path);
    let workload = Workload::start(1, &[export]).unwrap();
    drop(server);
    assert!(workload.finish().is_err());
}
