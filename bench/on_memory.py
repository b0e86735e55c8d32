"""The part on memory: what remains of a write when storage costs nothing. docs/performance.md tells how and why."""

from pathlib import Path

import machine
from goals import Bar, Goal
from jobs import WRITE_1, WRITE_1M, WRITE_32
from nbd_mirror import serve_nbd_mirror
from part import Part
from pingpong import serve_pingpong
from place import GIB, Place
from service import System
from systems import MIRROR, NBD_MIRROR, NBDKIT, QUORUM

MEMORY_JOBS = (WRITE_1, WRITE_32, WRITE_1M)
# Journals on a tmpfs are stored to as on persistent memory.
ASSUME_PMEM = {"NBD_MIRROR_ASSUME_PMEM": "1"}


def nbd_mirror(name: str, **settings) -> System:
    """nbd-mirror in one more setting."""
    serve = serve_nbd_mirror("always", **settings)
    return System(name, "mirrored", True, NBD_MIRROR, MEMORY_JOBS, serve, measure_idle=True)


WRITTEN = nbd_mirror("nbd-mirror")
MAPPED = nbd_mirror("nbd-mirror, journals mapped", environment=ASSUME_PMEM)
LOGGED = nbd_mirror("nbd-mirror, mapped, shared log", environment=ASSUME_PMEM, nvram=True)
PING_PONG = System("ping-pong", "floor", True, ("pingpong",), (WRITE_1,), serve_pingpong)

OURS = (WRITTEN, MAPPED, LOGGED)
ON_MEMORY = Part(
    "memory",
    systems=(*OURS, PING_PONG, NBDKIT, MIRROR, QUORUM),
    jobs=MEMORY_JOBS,
    goals=tuple(
        Goal(job, system, least=bars)
        for system in OURS
        for job, bars in (
            # At depth 1 a rate is a time: 1.3 times that of the bare messages.
            (WRITE_1, (Bar(1 / 1.3, (PING_PONG,)),)),
            (WRITE_32, (Bar(3.0, (MIRROR,)), Bar(0.5, (NBDKIT,)))),
            (WRITE_1M, (Bar(1.5, (QUORUM,)),)),
        )
    ),
    idle=OURS,
    note=(
        "**On memory**: volumes, images and journals are files on a tmpfs, a stand-in for persistent memory that "
        "survives nothing. These figures say what the program costs, not what a disk gives."
    ),
)


def unfit(parent: Path, size_bytes: int) -> str | None:
    """Why a run can't work below this folder; None where it can."""
    if not parent.is_dir() or machine.find_mount(Path("/proc/self/mounts").read_text(), str(parent.resolve()))[0] != "tmpfs":
        return f"{parent} is no folder on a tmpfs: name one with --memory-dir"
    need, available = Place.need_bytes(size_bytes), available_bytes(Path("/proc/meminfo").read_text())
    if available < need:
        return (
            f"{available / GIB:.1f} GiB of memory are available and {need / GIB:.1f} GiB are needed below {parent}: "
            "end other programs, or make the files smaller with --memory-mib"
        )
    return None


def available_bytes(meminfo: str) -> int:
    """MemAvailable: a tmpfs may be larger than what is left."""
    for line in meminfo.splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) << 10
    raise ValueError("/proc/meminfo has no MemAvailable")
