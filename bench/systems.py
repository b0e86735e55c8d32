"""The systems that are measured, in the order of the table."""

from floor import serve_both, serve_raw
from jobs import DURABLE_JOBS, JOBS
from nbd_mirror import serve_nbd_mirror
from peers import serve_nbdkit, serve_qemu_mirror, serve_qemu_nbd, serve_qemu_quorum
from service import System

NBD_MIRROR = ("nbd-mirror",)
QEMU = ("qemu-nbd", "qemu-storage-daemon")

ALWAYS = System(
    "nbd-mirror always", "mirrored", True, NBD_MIRROR, JOBS, serve_nbd_mirror("always"), measure_idle=True
)
FLUSH = System("nbd-mirror flush", "mirrored", False, NBD_MIRROR, JOBS, serve_nbd_mirror("flush"), measure_idle=True)

# It does the fsync jobs in both modes: only this one keeps a flush's promise on both sides, and it may be the faster.
MIRROR_DURABLE = System("qemu mirror wt", "mirrored", True, QEMU, JOBS, serve_qemu_mirror(True))
MIRROR = System("qemu mirror wb", "mirrored", False, QEMU, JOBS, serve_qemu_mirror(False))
QUORUM_DURABLE = System("qemu quorum wt", "mirrored", True, QEMU, DURABLE_JOBS, serve_qemu_quorum(True))
QUORUM = System("qemu quorum wb", "mirrored", False, QEMU, JOBS, serve_qemu_quorum(False))

QEMU_NBD_DURABLE = System("qemu-nbd wt", "unreplicated", True, QEMU[:1], DURABLE_JOBS, serve_qemu_nbd(True))
QEMU_NBD = System("qemu-nbd wb", "unreplicated", False, QEMU[:1], JOBS, serve_qemu_nbd(False))
NBDKIT_DURABLE = System("nbdkit wt", "unreplicated", True, ("nbdkit",), DURABLE_JOBS, serve_nbdkit(True))
NBDKIT = System("nbdkit wb", "unreplicated", False, ("nbdkit",), JOBS, serve_nbdkit(False))

RAW_DURABLE = System("raw file O_DSYNC", "floor", True, (), DURABLE_JOBS, serve_raw(True))
RAW = System("raw file", "floor", False, (), JOBS, serve_raw(False))
BOTH_DURABLE = System("both raw files O_DSYNC", "floor", True, (), DURABLE_JOBS, serve_both(True))

PEERS = (
    MIRROR_DURABLE,
    MIRROR,
    QUORUM_DURABLE,
    QUORUM,
    QEMU_NBD_DURABLE,
    QEMU_NBD,
    NBDKIT_DURABLE,
    NBDKIT,
    RAW_DURABLE,
    RAW,
    BOTH_DURABLE,
)
SYSTEMS = (ALWAYS, FLUSH, *PEERS)
