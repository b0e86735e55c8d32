//! Messages of generic netlink as bytes: what the kernel's NBD client is told, and what it says.
//!
//! Layouts and numbers are those of `linux/netlink.h`, `linux/genetlink.h` and `linux/nbd-netlink.h`, all in the machine's
//! own byte order. A message is a header, a generic header and attributes; each of them begins at a multiple of 4 bytes.

use std::io;

/// The family of the controller, which knows the others.
pub const CONTROL_FAMILY: u16 = 16;
/// CTRL_CMD_GETFAMILY.
pub const GET_FAMILY: u8 = 3;

/// NBD_CMD_CONNECT.
pub const CONNECT: u8 = 1;
/// NBD_CMD_DISCONNECT.
pub const DISCONNECT: u8 = 2;
/// NBD_CMD_RECONFIGURE.
pub const RECONFIGURE: u8 = 3;
/// NBD_CMD_LINK_DEAD, an event.
pub const LINK_DEAD: u8 = 4;

const CONTROL_ATTR_FAMILY_ID: u16 = 1;
const CONTROL_ATTR_FAMILY_NAME: u16 = 2;
const CONTROL_ATTR_GROUPS: u16 = 7;
const CONTROL_ATTR_GROUP_NAME: u16 = 1;
const CONTROL_ATTR_GROUP_ID: u16 = 2;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const ATTR_SOCKET_ITEM: u16 = 1;
const ATTR_SOCKET_FD: u16 = 1;

const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const KIND_ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;
const KIND_MASK: u16 = 0x3fff;
const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;
const VERSION: u8 = 1;

/// A request that is being built.
#[derive(Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request that the kernel answers at least with how it went.
    pub fn new(family: u16, command: u8, sequence: u32) -> Message {
        let mut bytes = vec![0; 4];
        bytes.extend(family.to_ne_bytes());
        bytes.extend((FLAG_REQUEST | FLAG_ACK).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([command, VERSION, 0, 0]);
        Message(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn nested(self, kind: u16, inside: impl FnOnce(Message) -> Message) -> Message {
        let inside = inside(Message(Vec::new())).0;
        self.attribute(kind | NESTED, &inside)
    }

    /// Asks the controller for a family.
    pub fn family_name(self, name: &str) -> Message {
        self.attribute(CONTROL_ATTR_FAMILY_NAME, &[name.as_bytes(), &[0]].concat())
    }

    /// Which device.
    pub fn index(self, index: u32) -> Message {
        self.attribute(ATTR_INDEX, &index.to_ne_bytes())
    }

    /// The device's size and logical block size, in bytes. Never in a RECONFIGURE: the kernel can deadlock.
    pub fn size(self, size_bytes: u64, block_bytes: u32) -> Message {
        self.attribute(ATTR_SIZE_BYTES, &size_bytes.to_ne_bytes())
            .attribute(ATTR_BLOCK_SIZE_BYTES, &u64::from(block_bytes).to_ne_bytes())
    }

    /// The server's transmission flags.
    pub fn server_flags(self, flags: u16) -> Message {
        self.attribute(ATTR_SERVER_FLAGS, &u64::from(flags).to_ne_bytes())
    }

    /// How long requests sleep while there is no connection, in seconds.
    pub fn dead_connection_timeout(self, seconds: u64) -> Message {
        self.attribute(ATTR_DEAD_CONN_TIMEOUT, &seconds.to_ne_bytes())
    }

    /// What each later RECONFIGURE must repeat.
    pub fn backend(self, identifier: &str) -> Message {
        self.attribute(ATTR_BACKEND_IDENTIFIER, &[identifier.as_bytes(), &[0]].concat())
    }

    /// The connection: the number of a descriptor of the process that sends this.
    pub fn socket(self, descriptor: i32) -> Message {
        self.nested(ATTR_SOCKETS, |sockets| {
            sockets.nested(ATTR_SOCKET_ITEM, |item| item.attribute(ATTR_SOCKET_FD, &descriptor.to_ne_bytes()))
        })
    }

    /// The bytes to send.
    pub fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0
    }
}

/// What came from the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// How the request of this number went: an error number of the system, or 0.
    Done {
        /// The request's.
        sequence: u32,
        /// What the system calls `errno`.
        error: i32,
    },
    /// An answer or an event.
    Answer {
        /// Its family.
        family: u16,
        /// What it is.
        command: u8,
        /// Its attributes.
        attributes: Attributes<'a>,
    },
}

/// Takes a datagram apart. What can't be understood ends it.
pub fn replies(mut bytes: &[u8]) -> Vec<Reply<'_>> {
    let mut replies = Vec::new();
    while let Some(length) = number(bytes, 0)
        && let Some(message) = bytes.get(..length as usize)
        && let (Some(kind), Some(sequence)) = (short(message, 4), number(message, 8))
        && let Some(body) = message.get(HEADER_BYTES..)
    {
        if kind == KIND_ERROR {
            let Some(error) = number(body, 0) else { break };
            replies.push(Reply::Done { sequence, error: (error as i32).wrapping_neg() });
        } else if let (Some(command), Some(attributes)) = (body.first(), body.get(GENERIC_BYTES..)) {
            replies.push(Reply::Answer { family: kind, command: *command, attributes: Attributes(attributes) });
        }
        bytes = bytes.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    replies
}

/// The attributes of a message, or within one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let (length, kind) = (usize::from(short(self.0, 0)?), short(self.0, 2)?);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND_MASK, value))
    }
}

impl<'a> Attributes<'a> {
    fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The index of the device that an answer or an event is of.
    pub fn index(self) -> Option<u32> {
        number(self.get(ATTR_INDEX)?, 0)
    }

    /// What the controller tells of a family: its number, and that of one of its groups.
    pub fn family(self, group: &str) -> Option<(u16, u32)> {
        let family = short(self.get(CONTROL_ATTR_FAMILY_ID)?, 0)?;
        let groups = Attributes(self.get(CONTROL_ATTR_GROUPS)?);
        let found = groups.map(|(_, group)| Attributes(group)).find(|found| {
            let name = found.get(CONTROL_ATTR_GROUP_NAME).unwrap_or_default();
            name.strip_suffix(&[0]).unwrap_or(name) == group.as_bytes()
        })?;
        Some((family, number(found.get(CONTROL_ATTR_GROUP_ID)?, 0)?))
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The error of a request that is done; none for 0.
pub fn outcome(error: i32) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_connect_has_the_kernels_bytes() {
        let bytes = Message::new(0x1f, CONNECT, 2)
            .index(5)
            .size(1 << 30, 4096)
            .server_flags(0x16d)
            .dead_connection_timeout(86400)
            .backend("id")
            .socket(9)
            .finish();
        let expected = [
            &b"\x7c\0\0\0\x1f\0\x05\0\x02\0\0\0\0\0\0\0\x01\x01\0\0"[..],
            b"\x08\0\x01\0\x05\0\0\0",
            b"\x0c\0\x02\0\0\0\0\x40\0\0\0\0",
            b"\x0c\0\x03\0\0\x10\0\0\0\0\0\0",
            b"\x0c\0\x05\0\x6d\x01\0\0\0\0\0\0",
            b"\x0c\0\x08\0\x80\x51\x01\0\0\0\0\0",
            b"\x07\0\x0a\0id\0\0",
            b"\x10\0\x07\x80\x0c\0\x01\x80\x08\0\x01\0\x09\0\0\0",
        ]
        .concat();
        assert_eq!(expected.len(), 20 + 8 + 4 * 12 + 8 + 16);
        assert_eq!(bytes[4..], expected[4..]);
        assert_eq!(bytes[..4], (expected.len() as u32).to_le_bytes());
    }

    #[test]
    fn a_family_is_asked_for_and_understood() {
        let bytes = Message::new(CONTROL_FAMILY, GET_FAMILY, 1).family_name("nbd").finish();
        assert_eq!(bytes, b"\x1c\0\0\0\x10\0\x05\0\x01\0\0\0\0\0\0\0\x03\x01\0\0\x08\0\x02\0nbd\0");
        // The answer, with the attributes that matter not in between, and how it went behind it.
        let group = [&b"\x11\0\x01\0nbd_mc_group\0\0\0\0"[..], b"\x08\0\x02\0\x07\0\0\0"].concat();
        let groups = [&[group.len() as u8 + 4, 0, 1, 0x80][..], &group].concat();
        let attributes =
            [&b"\x08\0\x02\0nbd\0"[..], b"\x06\0\x01\0\x1f\0\0\0", &[groups.len() as u8 + 4, 0, 7, 0x80], &groups]
                .concat();
        let length = 20 + attributes.len() as u8;
        let answer = [&[length, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9, 1, 2, 0, 0][..], &attributes].concat();
        let done = b"\x24\0\0\0\x02\0\0\x01\x01\0\0\0\0\0\0\0\0\0\0\0\x1c\0\0\0\x10\0\x05\0\x01\0\0\0\0\0\0\0";
        let datagram = [&answer[..], done].concat();
        let replies = replies(&datagram);
        let [Reply::Answer { family: CONTROL_FAMILY, command: 1, attributes }, end] = &replies[..] else {
            panic!("{replies:?}")
        };
        assert_eq!(attributes.family("nbd_mc_group"), Some((0x1f, 7)));
        assert_eq!(attributes.family("another"), None);
        assert_eq!(*end, Reply::Done { sequence: 1, error: 0 });
    }

    #[test]
    fn errors_and_events_are_understood() {
        let refused = b"\x14\0\0\0\x02\0\0\0\x05\0\0\0\0\0\0\0\xf0\xff\xff\xff";
        assert_eq!(replies(refused), [Reply::Done { sequence: 5, error: 16 }]);
        assert_eq!(outcome(16).unwrap_err().raw_os_error(), Some(16));
        let dead = b"\x1c\0\0\0\x1f\0\0\0\0\0\0\0\0\0\0\0\x04\0\0\0\x08\0\x01\0\x03\0\0\0";
        let replies = replies(dead);
        let [Reply::Answer { family: 0x1f, command: LINK_DEAD, attributes }] = &replies[..] else {
            panic!("{replies:?}")
        };
        assert_eq!(attributes.index(), Some(3));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            for reply in replies(&bytes) {
                if let Reply::Answer { attributes, .. } = reply {
                    let _ = (attributes.index(), attributes.family("x"), attributes.count());
                }
            }
            prop_assert!(Attributes(&bytes).count() <= bytes.len());
        }
    }
}
