//! `demo`: what a newcomer runs first.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::{assert_says, binary, finish, is_root};

/// The bound for the whole demo, with slack for a machine that runs other tests at the same time.
const LIMIT: Duration = Duration::from_secs(60);

/// The number in the table's row of that name.
#[track_caller]
fn row(table: &str, name: &str) -> u64 {
    let line = table
        .lines()
        .find(|line| line.to_lowercase().contains(name))
        .unwrap_or_else(|| panic!("no row {name:?} in:\n{table}"));
    let from = line.to_lowercase().find(name).unwrap() + name.len();
    let digits: String = line[from..]
        .chars()
        .skip_while(|char| !char.is_ascii_digit())
        .take_while(|char| char.is_ascii_digit() || matches!(char, ',' | '_'))
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or_else(|_| panic!("no number in {line:?}"))
}

#[track_caller]
fn assert_demo(command: Command) {
    let table = finish(command, LIMIT).success();
    assert_eq!(row(&table, "lost"), 0, "{table}");
    let answered = row(&table, "answered");
    assert!(answered > 0, "{table}");
    assert!(row(&table, "found") >= answered, "every answered write is found:\n{table}");
    assert_says(&table, &["promote", "MiB/s"]);
}

#[test]
fn loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.arg("demo").arg("--dir").arg(dir.path());
    assert_demo(command);
}

#[test]
fn cleans_up_after_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.arg("demo").env("TMPDIR", dir.path());
    assert_demo(command);
    let left: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "the demo leaves nothing in the temporary folder: {left:?}");
}

#[test]
fn runs_as_any_user() {
    // World-readable, since the build's own folder need not be.
    let dir = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o777)).tempdir().unwrap();
    let copy = dir.path().join("nbd-mirror");
    std::fs::copy(binary(), &copy).unwrap();
    open_to_all(dir.path());
    open_to_all(&copy);
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]).arg(&copy);
        command
    } else {
        Command::new(&copy)
    };
    command.arg("demo").env("TMPDIR", dir.path()).env("HOME", "/nonexistent").current_dir("/");
    assert_demo(command);
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
}
