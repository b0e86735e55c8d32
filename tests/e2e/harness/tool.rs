//! Foreign commands: run with a time limit, with everything they said in the failure message.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::wait::patience;

/// The Debian package that a tool comes from.
fn package(tool: &str) -> &'static str {
    match tool {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "qemu-io" | "qemu-img" | "qemu-nbd" => "qemu-utils",
        "fio" => "fio",
        "nbdkit" => "nbdkit",
        "losetup" | "mount" | "umount" => "mount",
        "mkfs.ext4" => "e2fsprogs",
        "setpriv" => "util-linux",
        "/usr/bin/python3" => "python3",
        _ => "unknown; see the tool's documentation",
    }
}

/// Runs a tool that has to succeed within a minute, and returns its standard output.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(tool: &str, args: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(tool);
    command.args(args);
    let shown = format!("{command:?}");
    let output = output_within(command, Duration::from_secs(60));
    assert!(
        output.status.success(),
        "{shown}\nended with {}\nstdout:\n{}\nstderr:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a script under the system's Python, which is the one that has libnbd's bindings.
#[track_caller]
pub fn python(script: &str, args: &[&str]) -> String {
    const CHECK: &str =
        "import sys\ntry:\n import nbd\nexcept ImportError:\n sys.exit('install the Debian package python3-libnbd')\n";
    let whole = format!("{CHECK}{script}");
    run("/usr/bin/python3", ["-c", whole.as_str()].iter().chain(args))
}

/// Runs a command to its end and collects what it says; a command that outlasts `limit` is killed and fails the test.
#[track_caller]
pub fn output_within(mut command: Command, limit: Duration) -> Output {
    let shown = format!("{command:?}");
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("can't run {program} ({error}): install the Debian package {}", package(&program))
        });
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let ended = wait_within(&mut child, limit);
    if ended.is_none() {
        child.kill().expect("kill a command that hangs");
        child.wait().expect("reap a killed command");
    }
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let Some(status) = ended else {
        panic!(
            "{shown}\nstill ran after {limit:?}\nstdout:\n{}\nstderr:\n{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    };
    Output { status, stdout, stderr }
}

/// Waits for a child's end, or `None` when it outlasts `limit`.
pub fn wait_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let (start, limit) = (Instant::now(), limit * patience());
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child process") {
            return Some(status);
        }
        if start.elapsed() > limit {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).expect("read a command's output");
        }
        bytes
    })
}
