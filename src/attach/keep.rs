//! The agent's own descriptors of the sockets that the kernel uses: with them a connection can be ended from this side.
//!
//! The kernel replaces dead connections only, and a server that hangs doesn't die by itself. So a descriptor of each socket
//! is kept: by the agent, and over its restarts by systemd (FileDescriptorStoreMax=).

use super::devices::Device;
use crate::engine::process;
use nix::sys::socket::{Shutdown, shutdown};
use sd_notify::NotifyState;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

/// The sockets of one device.
#[derive(Debug)]
pub struct Kept {
    name: String,
    sockets: Vec<OwnedFd>,
}

impl Kept {
    /// What systemd has kept for this device.
    pub fn inherited(device: Device) -> Kept {
        let name = device.name();
        let found = process::inherited_descriptors().unwrap_or_else(|error| {
            tracing::warn!("what systemd has kept can't be taken: {error}");
            Vec::new()
        });
        let sockets = found.into_iter().filter(|(_, found)| *found == name).map(|(socket, _)| socket).collect();
        Kept { name, sockets }
    }

    /// Whether none is kept: then a connection can't be ended from here.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Ends the connections; the kernel sees them as dead.
    pub fn shut_down(&self) {
        for socket in &self.sockets {
            // One that is closed already is what is wanted.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }

    /// Keeps this one instead of those before.
    pub fn replace(&mut self, socket: OwnedFd) {
        let name = NotifyState::FdName(&self.name);
        let stored = sd_notify::notify(&[NotifyState::FdStoreRemove, name.clone()])
            .and_then(|()| sd_notify::notify_with_fds(&[NotifyState::FdStore, name], &[socket.as_fd()]));
        if let Err(error) = stored {
            tracing::warn!("systemd can't keep the socket: {error}");
        }
        self.sockets = vec![socket];
    }
}
