//! The agent's own descriptors of the sockets that the kernel uses: with them a connection can be ended from this side.
//!
//! The kernel replaces dead connections only, and a server that hangs doesn't die by itself. So a descriptor of each socket
//! is kept: by the agent, and over its restarts by systemd (FileDescriptorStoreMax=).

use super::devices::Device;
use crate::engine::process;
use nix::sys::socket::{Shutdown, shutdown};
use sd_notify::NotifyState;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

/// Descriptors that are kept at most: the one in use, and those of attempts that failed.
const MAX_KEPT: usize = 4;

/// The sockets of one device, the newest last.
#[derive(Debug)]
pub struct Kept {
    device: Device,
    sockets: Vec<(u64, OwnedFd)>,
}

impl Kept {
    /// What systemd has kept for this device.
    pub fn inherited(device: Device) -> Kept {
        let found = process::inherited_descriptors().unwrap_or_else(|error| {
            tracing::warn!("what systemd has kept can't be taken: {error}");
            Vec::new()
        });
        let number = |name: &str| number_of(device, name);
        let mut sockets: Vec<_> =
            found.into_iter().filter_map(|(socket, name)| Some((number(&name)?, socket))).collect();
        sockets.sort_by_key(|(number, _)| *number);
        Kept { device, sockets }
    }

    /// Whether none is kept: then a connection can't be ended from here.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Ends the connections; the kernel sees them as dead.
    pub fn shut_down(&self) {
        for (_, socket) in &self.sockets {
            // One that is closed already is what is wanted.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }

    /// Keeps this one, too. For before the kernel gets it: so there is none that only the kernel has.
    pub fn add(&mut self, socket: OwnedFd) -> BorrowedFd<'_> {
        let number = self.sockets.last().map_or(0, |(number, _)| number.wrapping_add(1));
        let name = name_of(self.device, number);
        let stored = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(&name)], &[socket.as_fd()]);
        if let Err(error) = stored {
            tracing::warn!("systemd can't keep the socket: {error}");
        }
        self.sockets.push((number, socket));
        self.let_go(MAX_KEPT);
        self.newest()
    }

    /// Keeps only the newest one, which the kernel uses now.
    pub fn keep_newest(&mut self) {
        self.let_go(1);
    }

    fn newest(&self) -> BorrowedFd<'_> {
        self.sockets[self.sockets.len() - 1].1.as_fd()
    }

    fn let_go(&mut self, left: usize) {
        let gone = self.sockets.len().saturating_sub(left);
        for (number, _) in self.sockets.drain(..gone) {
            let name = name_of(self.device, number);
            if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]) {
                tracing::warn!("systemd can't let go of a socket: {error}");
            }
        }
    }
}

/// What systemd calls a socket: the device, and a number that rises.
fn name_of(device: Device, number: u64) -> String {
    format!("{}.{number}", device.name())
}

fn number_of(device: Device, name: &str) -> Option<u64> {
    name.strip_prefix(&device.name())?.strip_prefix('.')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn names_tell_devices_apart() {
        assert_eq!(name_of(Device(1), 7), "nbd1.7");
        assert_eq!(number_of(Device(1), "nbd1.7"), Some(7));
        for name in ["nbd1", "nbd10.7", "nbd1.", "nbd1.x", "stored"] {
            assert_eq!(number_of(Device(1), name), None, "{name}");
        }
    }

    #[test]
    fn what_is_kept_can_be_shut_down() {
        let mut kept = Kept { device: Device(1), sockets: Vec::new() };
        assert!(kept.is_empty());
        let (mut first, near) = UnixStream::pair().unwrap();
        let (mut second, later) = UnixStream::pair().unwrap();
        kept.add(near.into());
        kept.add(later.into());
        kept.shut_down();
        for server in [&mut first, &mut second] {
            assert_eq!(server.read(&mut [0]).unwrap(), 0, "the server sees an end");
        }
        kept.keep_newest();
        assert_eq!(kept.sockets.len(), 1);
        for _ in 0..2 * MAX_KEPT {
            kept.add(UnixStream::pair().unwrap().0.into());
        }
        assert_eq!(kept.sockets.len(), MAX_KEPT);
        let numbers: Vec<u64> = kept.sockets.iter().map(|(number, _)| *number).collect();
        assert!(numbers.is_sorted() && numbers.last() == Some(&9), "{numbers:?}");
    }
}
