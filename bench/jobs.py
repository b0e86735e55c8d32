"""The jobs that every system is measured with, as fio options."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One fio job: `unit` is what its result is shown in, "IOPS" or "MiB/s"."""

    name: str
    title: str
    rw: str
    block: str
    depth: int
    fsync: int = 0
    read_percent: int | None = None
    unit: str = "IOPS"

    def options(self) -> list[str]:
        """What of the job goes to fio."""
        options = [f"--rw={self.rw}", f"--bs={self.block}", f"--iodepth={self.depth}"]
        if self.fsync:
            options.append(f"--fsync={self.fsync}")
        if self.read_percent is not None:
            options.append(f"--rwmixread={self.read_percent}")
        return options


WRITE_1 = Job("write-4k-1", "randwrite 4k, depth 1", "randwrite", "4k", 1)
WRITE_1_FSYNC = Job("write-4k-1-fsync", "randwrite 4k, depth 1, fsync=1", "randwrite", "4k", 1, fsync=1)
WRITE_32 = Job("write-4k-32", "randwrite 4k, depth 32", "randwrite", "4k", 32)
WRITE_32_FSYNC = Job("write-4k-32-fsync", "randwrite 4k, depth 32, fsync=32", "randwrite", "4k", 32, fsync=32)
WRITE_1M = Job("write-1m-8", "write 1M, depth 8", "write", "1M", 8, unit="MiB/s")
READ_32 = Job("read-4k-32", "randread 4k, depth 32", "randread", "4k", 32)
MIXED_16 = Job("mixed-4k-16", "randrw 70/30 4k, depth 16", "randrw", "4k", 16, read_percent=70)

JOBS = (WRITE_1, WRITE_1_FSYNC, WRITE_32, WRITE_32_FSYNC, WRITE_1M, READ_32, MIXED_16)
# Where every write is durable before its answer, a flush adds nothing to ask for, and reads don't differ.
DURABLE_JOBS = (WRITE_1, WRITE_32, WRITE_1M, MIXED_16)
