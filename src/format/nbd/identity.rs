//! Who an export is, in a line of text that any NBD client can ask for: NBD_INFO_DESCRIPTION.
//!
//! `nbd-mirror volume=<uuid> epoch=<n> role=primary|image`. It lets a client that holds a device through a failover tell
//! the volume's new server from a foreign one, and a newer server from one that was left behind. More words may follow
//! in later versions: a reader ignores those that it doesn't know.

use crate::format::ids::{Epoch, Id};
use std::fmt;
use std::str::FromStr;

/// The text's first word.
const PROGRAM: &str = "nbd-mirror";

/// A volume of a source, the same at the source and wherever it is mirrored or promoted. Shown as a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl VolumeId {
    /// The id of the volume of this name: the beginning of a BLAKE3 of the source's id and the name.
    ///
    /// Both sides know these two, so nothing has to be stored or sent.
    pub fn of(source: Id, name: &str) -> VolumeId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&source.0).update(name.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        VolumeId(id)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for VolumeId {
    type Err = NoIdentity;

    /// Reads a UUID, as it is shown.
    fn from_str(text: &str) -> Result<VolumeId, NoIdentity> {
        let mut id = [0; 16];
        let mut digits = text.bytes().filter(|byte| *byte != b'-');
        for byte in &mut id {
            let mut digit = || digits.next().and_then(|digit| char::from(digit).to_digit(16));
            let (high, low) = (digit().ok_or(NoIdentity)?, digit().ok_or(NoIdentity)?);
            *byte = (high << 4 | low) as u8;
        }
        // Only the one way of writing it: dashes and case are part of what devices and files show.
        let id = VolumeId(id);
        if id.to_string() == text { Ok(id) } else { Err(NoIdentity) }
    }
}

/// What an export is of its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that takes writes.
    Primary,
    /// A copy that is mirrored to: it may only be read, and is a moment behind.
    Image,
}

impl Role {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Image => "image",
        }
    }
}

/// Who an export is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Which volume it serves.
    pub volume: VolumeId,
    /// The epoch that its server lives in, raised by each promote: of two primaries the one with the lower is out of date.
    pub epoch: Epoch,
    /// What it is of the volume.
    pub role: Role,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PROGRAM} volume={} epoch={} role={}", self.volume, self.epoch, self.role.as_str())
    }
}

/// A description isn't an identity: something else serves the export, or a version that doesn't tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no identity of a volume of nbd-mirror")]
pub struct NoIdentity;

impl FromStr for Identity {
    type Err = NoIdentity;

    fn from_str(text: &str) -> Result<Identity, NoIdentity> {
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some(PROGRAM) {
            return Err(NoIdentity);
        }
        let (mut volume, mut epoch, mut role) = (None, None, None);
        for word in words {
            match word.split_once('=') {
                Some(("volume", id)) if volume.is_none() => volume = Some(id.parse()?),
                Some(("epoch", n)) if epoch.is_none() => epoch = Some(Epoch(n.parse().map_err(|_| NoIdentity)?)),
                Some(("role", name)) if role.is_none() => {
                    let roles = [Role::Primary, Role::Image];
                    role = Some(roles.into_iter().find(|role| role.as_str() == name).ok_or(NoIdentity)?);
                }
                // The same thing twice could mean two things.
                Some(("volume" | "epoch" | "role", _)) => return Err(NoIdentity),
                _ => {}
            }
        }
        match (volume, epoch, role) {
            (Some(volume), Some(epoch), Some(role)) => Ok(Identity { volume, epoch, role }),
            _ => Err(NoIdentity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    const ID: [u8; 16] = *b"\x67\xe5\x50\x44\x10\xb1\x42\x6f\x92\x47\xbb\x68\x0e\x5f\xe0\xc8";

    #[test]
    fn it_is_told_in_one_line() {
        let identity = Identity { volume: VolumeId(ID), epoch: Epoch(3), role: Role::Primary };
        let text = format!("nbd-mirror volume={UUID} epoch=3 role=primary");
        assert_eq!(identity.to_string(), text);
        assert_eq!(text.parse(), Ok(identity));
        assert_eq!(format!("{text} alone=yes new").parse(), Ok(identity), "later versions may add words");
        let image = Identity { role: Role::Image, ..identity };
        assert_eq!(image.to_string().parse(), Ok(image));
    }

    #[test]
    fn anything_else_is_no_identity() {
        for text in [
            "".into(),
            "nbd-mirror".into(),
            format!("nbdkit volume={UUID} epoch=3 role=primary"),
            format!("nbd-mirror volume={UUID} epoch=3"),
            format!("nbd-mirror volume={UUID} role=primary"),
            "nbd-mirror epoch=3 role=primary".into(),
            format!("nbd-mirror volume={UUID} epoch=3 role=secondary"),
            format!("nbd-mirror volume={UUID} epoch=-3 role=primary"),
            format!("nbd-mirror volume={UUID} epoch=3 epoch=4 role=primary"),
            format!("nbd-mirror volume={} epoch=3 role=primary", UUID.to_uppercase()),
            format!("nbd-mirror volume={} epoch=3 role=primary", &UUID[1..]),
            format!("nbd-mirror volume={UUID}0 epoch=3 role=primary"),
            format!("nbd-mirror volume={} epoch=3 role=primary", UUID.replace('-', "")),
        ] {
            assert_eq!(text.parse::<Identity>(), Err(NoIdentity), "{text}");
        }
    }

    #[test]
    fn a_volumes_id_comes_from_its_source_and_name() {
        let id = VolumeId::of(Id(ID), "vol0");
        assert_eq!(id.to_string(), "0c983bb3-feb1-c38f-1f1c-00a47af15425");
        assert_ne!(id, VolumeId::of(Id(ID), "vol1"));
        assert_ne!(id, VolumeId::of(Id([1; 16]), "vol0"));
    }

    proptest! {
        #[test]
        fn each_identity_comes_back(volume: [u8; 16], epoch: u64, image: bool) {
            let role = if image { Role::Image } else { Role::Primary };
            let identity = Identity { volume: VolumeId(volume), epoch: Epoch(epoch), role };
            prop_assert_eq!(identity.to_string().parse(), Ok(identity));
        }

        #[test]
        fn any_text_is_survived(text: String) {
            let _ = text.parse::<Identity>();
            let _ = format!("nbd-mirror volume={text}").parse::<Identity>();
        }
    }
}
