//! What clients send once a volume is theirs.

use crate::{list, write};
use nbd_mirror_fuzz::nbd_requests::{self, Session};

pub fn write_all() -> std::io::Result<()> {
    use nbd_requests::Sent;
    let near = |command, flags, from_end, blocks, skew, length_blocks, length_skew| Sent::Near {
        command,
        flags,
        from_end,
        blocks,
        skew,
        length_blocks,
        length_skew,
    };
    for command in 0..9 {
        let sent = [
            near(command, 0, false, 0, 0, 1, 0),
            near(command, 1, false, 3, 0, 8, 0),
            near(command, 2, false, 3, 0, 8, 0),
            near(command, 4, true, 8, 0, 8, 0),
            near(command, 8, true, 8, 0, 9, 0),
            near(command, 16, false, 0, 0, 1, 0),
            near(command, 0, true, 0, 0, 1, 0),
            near(command, 0, false, 0, 1, 1, 0),
            near(command, 0, false, 0, 0, 1, 1),
            near(command, 0, false, 0, 0, 0, 0),
            near(command, 0, true, 1, 0, 65535, 0),
            Sent::Any { command: command.into(), flags: 0, offset: 0, length: (32 << 20) + 65536 },
            Sent::Any { command: command.into(), flags: 0, offset: 0, length: 32 << 20 },
            Sent::Any { command: command.into(), flags: 0, offset: u64::MAX - 511, length: 1024 },
            Sent::Raw { bytes: [0x25; 28] },
        ];
        for (name, block_log, blocks, read_only) in
            [("small", 9, 64, false), ("large", 16, u64::MAX >> 17, false), ("read-only", 12, 1 << 20, true)]
        {
            let flags = usize::from(command) + name.len();
            let (structured, base_allocation) = (!flags.is_multiple_of(3), flags.is_multiple_of(2));
            let session = Session { block_log, blocks, read_only, structured, base_allocation, requests: list(&sent) };
            write("nbd_requests", &format!("{name}-{command}"), &session)?;
        }
    }
    Ok(())
}
