"""A disk that takes only so much a second: by a control group, where the system lets the run make one (as root)."""

import os
import time
from contextlib import contextmanager
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
ENTER = 'echo $$ >"$0/cgroup.procs" && exec "$@"'


@contextmanager
def limited(folder: Path, mib_s: int, groups: Path = GROUPS) -> Iterator[list[str] | None]:
    """What goes before a command whose writes to the folder's disk are to be limited; None where that can't be done."""
    device = whole_disk(folder)
    group = make_group(groups, device, mib_s << 20) if device else None
    try:
        yield ["sh", "-c", ENTER, str(group)] if group else None
    finally:
        if group:
            remove(group)


def make_group(groups: Path, device: str, bytes_s: int) -> Path | None:
    """A group with the limit: by cgroup v1 where its block controller is mounted, else by v2."""
    ways = (
        (groups / "blkio", "blkio.throttle.write_bps_device", f"{device} {bytes_s}"),
        (groups, "io.max", f"{device} wbps={bytes_s}"),
    )
    for parent, setting, value in ways:
        group = parent / f"nbd-mirror-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            # The kernel makes the file with the folder, or never.
            with open(os.open(group / setting, os.O_WRONLY), "w") as file:
                file.write(value)
            return group
        except OSError:
            remove(group)
    return None


def remove(group: Path) -> None:
    """A process that has just ended may still be counted for a moment."""
    for _ in range(100):
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.05)


def whole_disk(folder: Path, devices: Path = Path("/sys/dev/block")) -> str | None:
    """The number of the disk that a folder is on, as MAJOR:MINOR; of a partition, that of its disk."""
    number = os.stat(folder).st_dev
    entry = devices / f"{os.major(number)}:{os.minor(number)}"
    if not entry.exists():
        return None
    entry = entry.resolve()
    disk = entry.parent if (entry / "partition").exists() else entry
    return (disk / "dev").read_text().strip()
