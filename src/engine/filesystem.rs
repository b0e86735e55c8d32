//! Which file system a file is on, as far as it matters here: what its name is, and where it keeps what it is given.

use nix::sys::statfs::{
    AFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, CODA_SUPER_MAGIC, EXT4_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC,
    OVERLAYFS_SUPER_MAGIC, SMB_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC,
};

/// Where a file system keeps its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// On devices of this machine, as far as is known.
    Here,
    /// At another machine, or with another program: an operation may wait for that, however it is asked.
    Far,
    /// In memory: a reboot takes all of it.
    Memory,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// As `mount` calls it.
    pub name: &'static str,
    /// Where its files are.
    pub home: Home,
}

/// By `linux/magic.h`; those without a name here aren't in nix yet.
const KNOWN: [(FsType, &str, Home); 18] = [
    (EXT4_SUPER_MAGIC, "ext4", Home::Here),
    (XFS_SUPER_MAGIC, "xfs", Home::Here),
    (BTRFS_SUPER_MAGIC, "btrfs", Home::Here),
    (OVERLAYFS_SUPER_MAGIC, "overlay", Home::Here),
    (FsType(0xf2f5_2010), "f2fs", Home::Here),
    (FsType(0x2fc1_2fc1), "zfs", Home::Here),
    (TMPFS_MAGIC, "tmpfs", Home::Memory),
    (FsType(0x8584_58f6), "ramfs", Home::Memory),
    (FsType(0x9584_58f6), "hugetlbfs", Home::Memory),
    (FUSE_SUPER_MAGIC, "fuse", Home::Far),
    (NFS_SUPER_MAGIC, "nfs", Home::Far),
    (SMB_SUPER_MAGIC, "smb", Home::Far),
    (AFS_SUPER_MAGIC, "afs", Home::Far),
    (CODA_SUPER_MAGIC, "coda", Home::Far),
    (FsType(0x00c3_6400), "ceph", Home::Far),
    (FsType(0xff53_4d42), "cifs", Home::Far),
    (FsType(0xfe53_4d42), "smb2", Home::Far),
    (FsType(0x0102_1997), "9p", Home::Far),
];

impl FileSystem {
    /// By what `statfs` says of a file on it.
    pub fn of(kind: FsType) -> FileSystem {
        let known = KNOWN.iter().find(|(magic, ..)| *magic == kind);
        known.map_or(FileSystem { name: "an unknown file system", home: Home::Here }, |&(_, name, home)| FileSystem {
            name,
            home,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_stands_for_two() {
        for (index, (magic, name, home)) in KNOWN.iter().enumerate() {
            assert_eq!(FileSystem::of(*magic), FileSystem { name, home: *home }, "row {index}");
        }
        assert_eq!(FileSystem::of(FsType(1)).home, Home::Here);
    }
}
