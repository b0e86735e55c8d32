//! Which of the servers that answer is the volume's: decisions as plain values.
//!
//! A device may only ever go to the very volume that it was attached to, in a state at least as new: any other is worse
//! than none, for the file system on it goes on as if nothing had happened. Whoever doesn't say who he is, is no one.

use crate::format::ids::Epoch;
use crate::format::nbd::identity::{Identity, Role, VolumeId};
use crate::format::nbd::options::{FLAG_READ_ONLY, FLAG_SEND_FLUSH, FLAG_SEND_FUA};

/// What of a server's flags the device's file system counts on; the kernel reads them once, at the first server.
const FLAGS_THAT_COUNT: u16 = FLAG_SEND_FLUSH | FLAG_SEND_FUA;

/// What a server says of its export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Who it is; `None` where it doesn't tell.
    pub identity: Option<Identity>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its transmission flags.
    pub flags: u16,
    /// Its minimum block size in bytes.
    pub min_block_bytes: u32,
    /// Its preferred block size in bytes.
    pub preferred_block_bytes: u32,
}

impl Offer {
    /// The block size for the device, in bytes: the preferred one, or less where the size isn't a multiple of it, for the
    /// rest couldn't be reached. The kernel takes powers of two from 512 to 4096.
    pub fn device_block_bytes(&self) -> u32 {
        let fits =
            |block: &u32| *block <= self.preferred_block_bytes && self.size_bytes.is_multiple_of((*block).into());
        [4096, 2048, 1024].into_iter().find(fits).unwrap_or(512)
    }
}

/// What the device needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its volume.
    pub volume: VolumeId,
    /// The highest epoch that was seen of it; nothing older will do.
    pub epoch: Epoch,
    /// What the device was set up as; `None` while it isn't.
    pub device: Option<Device>,
}

/// What a device was set up as, which can't be changed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its logical block size in bytes.
    pub block_bytes: u32,
    /// The first server's flags, as far as they are known: of a device that another agent left they aren't.
    pub flags: Option<u16>,
}

/// Why a server isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It can't be asked.
    #[error("{0}")]
    Unreachable(String),
    /// It doesn't say who it is.
    #[error("it doesn't say which volume it serves: it is no nbd-mirror, or too old a version")]
    Unknown,
    /// It serves another volume.
    #[error("it serves volume {found}, not {wanted}")]
    Foreign {
        /// The volume that it serves.
        found: VolumeId,
        /// The device's.
        wanted: VolumeId,
    },
    /// It is a copy.
    #[error("it is a read-only image of the volume, not the primary")]
    Image,
    /// It can't be written.
    #[error("it is read-only")]
    ReadOnly,
    /// A newer one was seen.
    #[error("it is in epoch {found}, and epoch {seen} was seen: the volume was promoted elsewhere")]
    Stale {
        /// Its epoch.
        found: Epoch,
        /// The highest one seen.
        seen: Epoch,
    },
    /// The size differs.
    #[error("it has {found} bytes, and the device {wanted}: a size can't change while the device is attached")]
    Size {
        /// Its size in bytes.
        found: u64,
        /// The device's.
        wanted: u64,
    },
    /// Its blocks are larger than the device's.
    #[error("its blocks have {found} bytes, and the device's only {wanted}")]
    Blocks {
        /// Its minimum in bytes.
        found: u32,
        /// The device's in bytes.
        wanted: u32,
    },
    /// It lacks what the first server had.
    #[error("it lacks what the device was attached with (NBD flags {found:#x}, and {wanted:#x} before)")]
    Flags {
        /// Its flags.
        found: u16,
        /// The first server's.
        wanted: u16,
    },
}

/// Whether a server can take the device; its epoch if so.
pub fn judge(wanted: &Wanted, offer: &Offer) -> Result<Epoch, Refusal> {
    let Identity { volume, epoch, role } = offer.identity.ok_or(Refusal::Unknown)?;
    if volume != wanted.volume {
        return Err(Refusal::Foreign { found: volume, wanted: wanted.volume });
    }
    if role != Role::Primary {
        return Err(Refusal::Image);
    }
    if offer.flags & FLAG_READ_ONLY != 0 {
        return Err(Refusal::ReadOnly);
    }
    if epoch < wanted.epoch {
        return Err(Refusal::Stale { found: epoch, seen: wanted.epoch });
    }
    if let Some(device) = wanted.device {
        if offer.size_bytes != device.size_bytes {
            return Err(Refusal::Size { found: offer.size_bytes, wanted: device.size_bytes });
        }
        if offer.min_block_bytes > device.block_bytes {
            return Err(Refusal::Blocks { found: offer.min_block_bytes, wanted: device.block_bytes });
        }
        let flags = device.flags.unwrap_or(FLAGS_THAT_COUNT);
        if offer.flags & flags != flags {
            return Err(Refusal::Flags { found: offer.flags, wanted: flags });
        }
    }
    Ok(epoch)
}

/// The best of those that may be taken: of the highest epoch, and of several the first. An index into `answers`.
///
/// Two primaries of one epoch are one server under two names: only a promote makes another, and it raises the epoch.
pub fn best(answers: &[Result<Epoch, Refusal>]) -> Option<usize> {
    let epochs = answers.iter().enumerate().filter_map(|(index, answer)| Some((index, *answer.as_ref().ok()?)));
    let (index, _) = epochs.max_by_key(|(index, epoch)| (*epoch, std::cmp::Reverse(*index)))?;
    Some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::nbd::options::{FLAG_HAS_FLAGS, FLAG_SEND_TRIM};

    const VOLUME: VolumeId = VolumeId([7; 16]);
    const OTHER: VolumeId = VolumeId([8; 16]);
    const FLAGS: u16 = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_SEND_TRIM;

    fn offer(epoch: u64) -> Offer {
        Offer {
            identity: Some(Identity { volume: VOLUME, epoch: Epoch(epoch), role: Role::Primary }),
            size_bytes: 1 << 20,
            flags: FLAGS,
            min_block_bytes: 512,
            preferred_block_bytes: 4096,
        }
    }

    fn wanted() -> Wanted {
        let device = Device { size_bytes: 1 << 20, block_bytes: 4096, flags: Some(FLAGS) };
        Wanted { volume: VOLUME, epoch: Epoch(3), device: Some(device) }
    }

    fn with(identity: Identity) -> Offer {
        Offer { identity: Some(identity), ..offer(3) }
    }

    #[test]
    fn each_server_is_judged_by_what_it_says() {
        let primary = Identity { volume: VOLUME, epoch: Epoch(3), role: Role::Primary };
        for (offer, verdict) in [
            (offer(3), Ok(Epoch(3))),
            (offer(4), Ok(Epoch(4))),
            (offer(2), Err(Refusal::Stale { found: Epoch(2), seen: Epoch(3) })),
            (Offer { identity: None, ..offer(3) }, Err(Refusal::Unknown)),
            (with(Identity { volume: OTHER, ..primary }), Err(Refusal::Foreign { found: OTHER, wanted: VOLUME })),
            (with(Identity { role: Role::Image, ..primary }), Err(Refusal::Image)),
            (with(Identity { role: Role::Image, epoch: Epoch(9), ..primary }), Err(Refusal::Image)),
            (Offer { flags: FLAGS | FLAG_READ_ONLY, ..offer(3) }, Err(Refusal::ReadOnly)),
            (Offer { size_bytes: 1 << 21, ..offer(3) }, Err(Refusal::Size { found: 1 << 21, wanted: 1 << 20 })),
            (Offer { min_block_bytes: 8192, ..offer(3) }, Err(Refusal::Blocks { found: 8192, wanted: 4096 })),
            (
                Offer { flags: FLAGS & !FLAG_SEND_TRIM, ..offer(3) },
                Err(Refusal::Flags { found: FLAGS & !FLAG_SEND_TRIM, wanted: FLAGS }),
            ),
        ] {
            assert_eq!(judge(&wanted(), &offer), verdict, "{offer:?}");
        }
    }

    #[test]
    fn a_device_that_isnt_attached_takes_any_size() {
        let wanted = Wanted { device: None, epoch: Epoch(0), ..wanted() };
        let small = Offer { size_bytes: 512, min_block_bytes: 512, ..offer(1) };
        assert_eq!(judge(&wanted, &small), Ok(Epoch(1)));
    }

    #[test]
    fn flags_that_nobody_remembers_are_the_least() {
        let mut wanted = wanted();
        wanted.device.as_mut().unwrap().flags = None;
        assert_eq!(judge(&wanted, &Offer { flags: FLAGS & !FLAG_SEND_TRIM, ..offer(3) }), Ok(Epoch(3)));
        assert!(judge(&wanted, &Offer { flags: FLAG_HAS_FLAGS, ..offer(3) }).is_err());
    }

    #[test]
    fn the_highest_epoch_is_taken_and_of_several_the_first() {
        let no = || Err(Refusal::Image);
        for (answers, best_one) in [
            (vec![], None),
            (vec![no(), no()], None),
            (vec![no(), Ok(Epoch(1))], Some(1)),
            (vec![Ok(Epoch(1)), Ok(Epoch(2)), no()], Some(1)),
            (vec![Ok(Epoch(2)), Ok(Epoch(1)), Ok(Epoch(2))], Some(0)),
        ] {
            assert_eq!(best(&answers), best_one, "{answers:?}");
        }
    }

    #[test]
    fn blocks_are_as_large_as_the_server_likes_them_and_the_size_allows() {
        for (size_bytes, preferred_block_bytes, block_bytes) in [
            (1 << 20, 4096, 4096),
            (1 << 20, 512, 512),
            (1 << 20, 1 << 16, 4096),
            ((1 << 20) + 512, 4096, 512),
            ((1 << 20) + 2048, 4096, 2048),
            (1 << 20, 1, 512),
        ] {
            let offer = Offer { size_bytes, preferred_block_bytes, ..offer(1) };
            assert_eq!(offer.device_block_bytes(), block_bytes, "{size_bytes} {preferred_block_bytes}");
        }
    }
}
