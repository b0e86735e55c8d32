//! A device that `nbd-mirror attach` keeps at its volume's primary.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::Device;
use crate::harness::{binary, eventually, finish, wait_until};

/// How long the agent may take to come to a server that is there, or to detach.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running agent and its device. Dropping it detaches by force.
pub struct Agent {
    pub device: PathBuf,
    state_dir: PathBuf,
    child: Child,
    /// What was logged, and when.
    log: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Agent {
    /// Attaches the next unused device to an export that these Unix sockets may serve, and waits until it is there.
    #[track_caller]
    pub fn attach(sockets: &[&Path], export: &str, dir: &Path) -> Agent {
        let device = PathBuf::from(format!("/dev/{}", Device::unused()));
        let state_dir = dir.join("agent");
        let uris = sockets.iter().map(|socket| format!("nbd+unix:///{export}?socket={}", socket.display()));
        let mut command = Command::new(binary());
        command.arg("attach").arg("--device").arg(&device).arg("--state-dir").arg(&state_dir);
        command.args(["--wait", "60s"]).args(uris).env("NO_COLOR", "1").env_remove("NOTIFY_SOCKET");
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("run an agent");
        let stderr = BufReader::new(child.stderr.take().expect("a piped stderr"));
        let log: Arc<Mutex<Vec<_>>> = Arc::default();
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push((Instant::now(), line));
            }
        });
        let agent = Agent { device, state_dir, child, log };
        agent.wait_until_at(sockets[0], 0);
        agent
    }

    /// How many lines were logged so far.
    pub fn logged(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// When the log said that the device is at this server, which it says once the device was read there; lines before
    /// `from` don't count.
    #[track_caller]
    pub fn wait_until_at(&self, socket: &Path, from: usize) -> Instant {
        let socket = socket.to_string_lossy();
        let find = || {
            let log = self.log.lock().unwrap();
            let says = |(_, line): &&(Instant, String)| line.contains(": is at ") && line.contains(&*socket);
            log.iter().skip(from).find(says).map(|(at, _)| *at)
        };
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(at) = find() {
                return at;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("the device didn't come to {socket} within {PATIENCE:?}; the agent's log:\n{}", self.text());
    }

    /// Everything logged so far.
    pub fn text(&self) -> String {
        self.log.lock().unwrap().iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// Detaches the device, which must succeed and end the agent cleanly.
    #[track_caller]
    pub fn detach(mut self) {
        let mut detach = self.detach_command();
        detach.arg(&self.device);
        finish(detach, PATIENCE).success();
        let status = eventually("the agent ends", PATIENCE, || self.child.try_wait().expect("look after an agent"));
        assert!(status.success(), "the agent ended with {status}:\n{}", self.text());
        let name = self.device.file_name().expect("a device's name").to_string_lossy().into_owned();
        let pid = PathBuf::from(format!("/sys/block/{name}/pid"));
        wait_until(&format!("{name} is detached"), PATIENCE, || !pid.exists());
    }

    fn detach_command(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg("detach").arg("--state-dir").arg(&self.state_dir);
        command
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- log of the agent:\n{}----", self.text());
            let _ = self.detach_command().arg("--force").arg(&self.device).status();
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
