//! The program under test: daemons as child processes, and the verbs that talk to them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::tool::{output_within, wait_within};
use super::{DestinationConfig, SourceConfig, eventually, wait_until};

/// How long a daemon may take to start, to stop or to recover.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a source may take to come to a state: a resync on a busy machine, or a link that has to prove that it holds.
const STATE_PATIENCE: Duration = Duration::from_secs(120);

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("NBD_MIRROR_BIN").map_or_else(|| env!("CARGO_BIN_EXE_nbd-mirror").into(), PathBuf::from)
}

/// How a verb ended, and what it said.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Fails the test unless the verb succeeded; returns its standard output.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(
            self.status.success(),
            "ended with {}\nstdout:\n{}\nstderr:\n{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

/// Runs one verb of the program to its end.
#[track_caller]
pub fn verb(args: &[&str]) -> Finished {
    let mut command = Command::new(binary());
    command.args(args);
    finish(command, Duration::from_secs(90))
}

/// Runs a prepared command to its end.
#[track_caller]
pub fn finish(command: Command, limit: Duration) -> Finished {
    let output = output_within(command, limit);
    Finished {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Starts a daemon that has to refuse its work; returns what it logged. It must end by itself, not by a
/// signal and not by a panic.
#[track_caller]
pub fn refused(role: &str, config: &Path) -> String {
    let mut command = Command::new(binary());
    command.args([role, "--config", path_str(config)]);
    let finished = finish(command, PATIENCE);
    assert!(
        !finished.status.success(),
        "a {role} that should have refused its work ended with {}:\n{}",
        finished.status,
        finished.stderr
    );
    assert!(
        finished.status.code().is_some() && !finished.stderr.contains("panicked"),
        "a refusal must not be a crash: {}\n{}",
        finished.status,
        finished.stderr
    );
    finished.stderr
}

fn path_str(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A daemon as a process. Dropping it kills it; if the test is failing, its log is shown.
pub struct Daemon {
    role: &'static str,
    config: PathBuf,
    admin: PathBuf,
    /// Set in its environment.
    variable: Option<(&'static str, &'static str)>,
    child: Option<Child>,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    /// Writes a source's configuration, starts it, and waits until it is ready.
    #[track_caller]
    pub fn source(config: &SourceConfig) -> Daemon {
        Daemon::source_with(config, &[])
    }

    /// Writes a destination's configuration, starts it, and waits until it is ready.
    #[track_caller]
    pub fn destination(config: &DestinationConfig) -> Daemon {
        Daemon::destination_with(config, &[])
    }

    /// A source, started with extra arguments.
    #[track_caller]
    pub fn source_with(config: &SourceConfig, extra: &[&str]) -> Daemon {
        let mut daemon = Daemon::idle("source", config.write(), config.admin());
        daemon.start_with(extra);
        daemon
    }

    /// A destination, started with extra arguments.
    #[track_caller]
    pub fn destination_with(config: &DestinationConfig, extra: &[&str]) -> Daemon {
        let mut daemon = Daemon::idle("destination", config.write(), config.admin());
        daemon.start_with(extra);
        daemon
    }

    /// A source with its configuration written, not started.
    pub fn unstarted_source(config: &SourceConfig) -> Daemon {
        Daemon::idle("source", config.write(), config.admin())
    }

    /// A destination with its configuration written, not started.
    pub fn unstarted_destination(config: &DestinationConfig) -> Daemon {
        Daemon::idle("destination", config.write(), config.admin())
    }

    fn idle(role: &'static str, config: PathBuf, admin: PathBuf) -> Daemon {
        Daemon { role, config, admin, variable: None, child: None, log: Arc::default() }
    }

    /// With a variable in its environment, from its next start on.
    pub fn with_variable(mut self, name: &'static str, value: &'static str) -> Daemon {
        self.variable = Some((name, value));
        self
    }

    /// Starts the daemon again by the very same command, and waits until it is ready.
    #[track_caller]
    pub fn restart(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the daemon with extra arguments, and waits until `status` gets an answer.
    #[track_caller]
    pub fn start_with(&mut self, extra: &[&str]) {
        self.spawn(extra);
        wait_until(&format!("the {} is ready; its log:\n{}", self.role, self.log()), PATIENCE, || {
            let child = self.child.as_mut().expect("a started daemon has a process");
            if let Some(status) = child.try_wait().expect("look after a daemon") {
                panic!("the {} ended at its start with {status}:\n{}", self.role, self.log());
            }
            self.admin.exists() && verb(&["status", "--admin", path_str(&self.admin), "--json"]).status.success()
        });
    }

    /// Starts the daemon and doesn't wait for anything.
    #[track_caller]
    pub fn spawn(&mut self, extra: &[&str]) {
        assert!(self.child.is_none(), "the {} runs already", self.role);
        let mut child = Command::new(binary())
            .args([self.role, "--config", path_str(&self.config)])
            .args(extra)
            .env_remove("NOTIFY_SOCKET")
            .envs(self.variable)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("can't run {}: {error}", binary().display()));
        let stderr = child.stderr.take().expect("a piped stderr");
        let log = Arc::clone(&self.log);
        thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let mut log = log.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                log.push_str(&String::from_utf8_lossy(&line));
                log.push('\n');
            }
        });
        self.child = Some(child);
    }

    /// One verb at its admin socket.
    pub fn verb(&self, words: &[&str]) -> Finished {
        verb(&[&[words[0], "--admin", path_str(&self.admin)], &words[1..]].concat())
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// Ends the daemon with SIGKILL, as a crash would.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        child.kill().expect("kill a daemon");
        child.wait().expect("reap a daemon");
    }

    /// Stops the daemon where it is, as a machine does that hangs; its sockets stay.
    #[track_caller]
    pub fn freeze(&self) {
        kill(Pid::from_raw(self.pid() as i32), Signal::SIGSTOP).expect("freeze a daemon");
    }

    /// Lets a frozen daemon go on.
    #[track_caller]
    pub fn thaw(&self) {
        kill(Pid::from_raw(self.pid() as i32), Signal::SIGCONT).expect("thaw a daemon");
    }

    /// Sends a signal that the daemon stops cleanly on, and returns how it ended.
    #[track_caller]
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        let mut child = self.child.take().expect("the daemon runs");
        kill(Pid::from_raw(child.id() as i32), signal).expect("signal a daemon");
        wait_within(&mut child, PATIENCE).unwrap_or_else(|| {
            child.kill().expect("kill a daemon that doesn't stop");
            panic!("the {} did not stop within {PATIENCE:?} of {signal}:\n{}", self.role, self.log())
        })
    }

    /// Waits until the daemon ends by itself, and returns how.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the daemon was started");
        let status = wait_within(child, PATIENCE)
            .unwrap_or_else(|| panic!("the {} still runs after {PATIENCE:?}:\n{}", self.role, self.log()));
        self.child = None;
        status
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("look after a daemon").is_none())
    }

    /// Everything logged so far, over all restarts.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Waits until one line of the log speaks of all these things (alternatives are separated by `|`).
    #[track_caller]
    pub fn wait_for_log(&self, nouns: &[&str]) {
        let what = format!("a log line of the {} with {nouns:?}", self.role);
        eventually(&what, PATIENCE, || {
            let log = self.log().to_lowercase();
            log.lines()
                .any(|line| nouns.iter().all(|noun| noun.split('|').any(|word| line.contains(&word.to_lowercase()))))
                .then_some(())
        });
    }

    /// What `status --json` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = verb(&["status", "--admin", path_str(&self.admin), "--json"]).success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("status --json is no JSON ({error}):\n{text}"))
    }

    /// Waits until `status --json` satisfies a condition.
    #[track_caller]
    pub fn wait_for_status(&self, what: &str, condition: impl Fn(&Value) -> bool) {
        self.wait_for_status_within(PATIENCE, what, condition);
    }

    /// Waits until the state is this one; returns the whole status.
    #[track_caller]
    pub fn wait_for_state(&self, state: &str) -> Value {
        self.wait_for_status_within(STATE_PATIENCE, &format!("state {state:?}"), |status| status["state"] == state)
    }

    /// Waits until the first source's mirror at this destination satisfies a condition; returns its status.
    #[track_caller]
    pub fn wait_for_mirror(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.wait_for_status_within(STATE_PATIENCE, what, |status| condition(&status["sources"][0]))["sources"][0]
            .take()
    }

    /// Waits until what this side serves is as wanted, whether it began as the source or as the destination.
    #[track_caller]
    pub fn wait_for_serving(&self, what: &str, condition: impl Fn(&Value) -> bool) {
        self.wait_for_status_of(what, |status| {
            condition(if status["role"] == "source" { status } else { &status["sources"][0]["serving"] })
        });
    }

    /// Waits until this side, which serves, mirrors to the other one, which has all.
    #[track_caller]
    pub fn wait_until_in_step(&self) {
        self.wait_for_serving("it is in step with its peer", |serving| {
            serving["state"] == "mirroring" && serving["whole"] == true
        });
    }

    /// Waits, however busy the machine may be, until the status satisfies a condition; returns it.
    #[track_caller]
    pub fn wait_for_status_of(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.wait_for_status_within(STATE_PATIENCE, what, condition)
    }

    #[track_caller]
    fn wait_for_status_within(&self, limit: Duration, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let start = std::time::Instant::now();
        while start.elapsed() < limit {
            last = self.status();
            if condition(&last) {
                return last;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("status of the {} never said: {what}\nlast:\n{last:#}", self.role);
    }

    /// Waits until the destination of this source has a whole copy.
    #[track_caller]
    pub fn wait_for_first_copy(&self) {
        self.wait_for_status("every volume is copied", |status| status["whole"] == true);
    }

    /// Switches halves and waits for the apply.
    #[track_caller]
    pub fn sync(&self) {
        verb(&["sync", "--admin", path_str(&self.admin)]).success();
    }

    /// Changes the policy of a source that runs.
    #[track_caller]
    pub fn set(&self, settings: &[&str]) -> String {
        verb(&[&["set", "--admin", path_str(&self.admin)], settings].concat()).success()
    }

    /// Compares volumes and images.
    #[track_caller]
    pub fn verify(&self, options: &[&str]) -> Finished {
        verb(&[&["verify", "--admin", path_str(&self.admin)], options].concat())
    }

    /// Whether a promote of a source's images would go without force.
    pub fn warrants(&self, source: &str) -> bool {
        let finished = verb(&["promote", "--admin", path_str(&self.admin), source, "--check"]);
        assert!(matches!(finished.status.code(), Some(0 | 7 | 3)), "{}", finished.stderr);
        finished.status.success()
    }

    /// Asks for a promote of a source's images.
    #[track_caller]
    pub fn promote(&self, source: &str, force: bool) -> Finished {
        let mut args = vec!["promote", "--admin", path_str(&self.admin), source];
        if force {
            args.push("--force");
        }
        verb(&args)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("---- log of the {} ({}):\n{}----", self.role, self.config.display(), self.log());
        }
    }
}
