//! The kernel's NBD client, spoken to over generic netlink. It takes its own references to sockets.

use super::netlink::{self, Message, Reply, replies};
use crate::engine::process;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use tokio::net::UnixDatagram;

/// The client's name among the families.
const FAMILY: &str = "nbd";
/// The group to which it tells that a connection died.
const GROUP: &str = "nbd_mc_group";
/// How long requests wait for a new connection, in seconds: a day. At its default 0 they would fail at once.
const DEAD_CONNECTION_TIMEOUT_S: u64 = 86_400;
/// Longer than any answer of the kernel's to what is asked here.
const MAX_DATAGRAM_BYTES: usize = 64 << 10;
/// The kernel answers within the call that asks; more is a bug, and mustn't hang the agent.
const ANSWER_LIMIT_S: i64 = 10;

/// What a device is set up as.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its logical block size in bytes.
    pub block_bytes: u32,
    /// The server's flags.
    pub flags: u16,
    /// What each reconfigure must repeat.
    pub backend: &'a str,
}

/// A netlink socket with which devices are set up.
#[derive(Debug)]
pub struct Kernel {
    socket: OwnedFd,
    family: u16,
    group: u32,
    sequence: u32,
}

impl Kernel {
    /// Finds the kernel's NBD client. `NotFound` is the error where its module isn't loaded.
    pub fn open() -> io::Result<Kernel> {
        let socket = open(0)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_LIMIT_S, 0))?;
        let mut kernel = Kernel { socket, family: netlink::CONTROL_FAMILY, group: 0, sequence: 0 };
        let message = kernel.message(netlink::GET_FAMILY).family_name(FAMILY);
        let found = kernel.ask(message, |attributes| attributes.family(GROUP))?;
        (kernel.family, kernel.group) = found.ok_or(io::ErrorKind::InvalidData)?;
        Ok(kernel)
    }

    /// Sets a free device up with a connection.
    ///
    /// There is no TIMEOUT: with one, the kernel would kill a server that is merely slow.
    pub fn connect(&mut self, index: u32, socket: BorrowedFd<'_>, setup: &Setup<'_>) -> io::Result<()> {
        let message = self
            .message(netlink::CONNECT)
            .index(index)
            .size(setup.size_bytes, setup.block_bytes)
            .server_flags(setup.flags)
            .dead_connection_timeout(DEAD_CONNECTION_TIMEOUT_S)
            .backend(setup.backend)
            .socket(socket.as_raw_fd());
        self.ask(message, |_| None::<()>).map(drop)
    }

    /// Replaces a dead connection. Success proves nothing: where none is dead the new one is dropped.
    pub fn reconfigure(&mut self, index: u32, socket: BorrowedFd<'_>, backend: &str) -> io::Result<()> {
        let message = self.message(netlink::RECONFIGURE).index(index).backend(backend).socket(socket.as_raw_fd());
        self.ask(message, |_| None::<()>).map(drop)
    }

    /// Takes a device down; requests that wait fail.
    pub fn disconnect(&mut self, index: u32) -> io::Result<()> {
        let message = self.message(netlink::DISCONNECT).index(index);
        self.ask(message, |_| None::<()>).map(drop)
    }

    /// The kernel's events, from now on.
    pub fn events(&self) -> io::Result<Events> {
        let socket = open(libc::SOCK_NONBLOCK)?;
        process::join_netlink_group(&socket, self.group)?;
        // Of tokio's sockets the one that does no more than wait and receive, which is the same for any kind of datagram.
        Ok(Events { socket: UnixDatagram::from_std(socket.into())?, family: self.family })
    }

    fn message(&mut self, command: u8) -> Message {
        self.sequence = self.sequence.wrapping_add(1);
        Message::new(self.family, command, self.sequence)
    }

    /// Sends a request and waits for how it went; `read` picks what is wanted out of an answer.
    fn ask<T>(
        &mut self,
        message: Message,
        read: impl Fn(netlink::Attributes<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        send(self.socket.as_raw_fd(), &message.finish(), MsgFlags::empty())?;
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        let mut found = None;
        loop {
            let count = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for reply in replies(buffer.get(..count).unwrap_or_default()) {
                match reply {
                    Reply::Done { sequence, error } if sequence == self.sequence => {
                        return netlink::outcome(error).map(|()| found);
                    }
                    Reply::Answer { attributes, .. } => found = found.or_else(|| read(attributes)),
                    // Of an earlier request that was given up.
                    Reply::Done { .. } => {}
                }
            }
        }
    }
}

/// What happens to devices, told by the kernel.
#[derive(Debug)]
pub struct Events {
    socket: UnixDatagram,
    family: u16,
}

/// What the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A connection of this device died.
    LinkDead(u32),
    /// Events were lost: anything may have happened.
    Lost,
}

impl Events {
    /// Waits for what happens next.
    pub async fn next(&self) -> io::Result<Event> {
        let mut buffer = vec![0; 4096];
        loop {
            let count = match self.socket.recv(&mut buffer).await {
                Ok(count) => count,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Event::Lost),
                Err(error) => return Err(error),
            };
            for reply in replies(buffer.get(..count).unwrap_or_default()) {
                if let Reply::Answer { family, command: netlink::LINK_DEAD, attributes } = reply
                    && family == self.family
                    && let Some(index) = attributes.index()
                {
                    return Ok(Event::LinkDead(index));
                }
            }
        }
    }
}

fn open(flags: i32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::from_bits_truncate(flags);
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}
