"""How fast a resync is, what it costs clients meanwhile, and what it sends. docs/performance.md tells how and why."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import fio
from fio import raw_target
from jobs import WRITE_1M, Job
from pair import Layout, Pair, check_same, memory_folder
from place import Place, preallocate
from processes import ServerFailed
from slow_disk import limited

MIB = 1 << 20
# Of the disk, of a job against which another is held.
DISK_SECONDS = 2
JOB_SECONDS = 3

FIRST_SYNC = "first sync"
STAGED = "staged resync"
LIMIT_MIB_S = 200


@dataclass(frozen=True)
class Setting:
    """What is on the measured disk; the rest is in memory. `part`: of the files' size, the volume has so much.

    `limited`: the destination's writes are, and only they count. Slow settings get less to do.
    """

    name: str
    part: float
    kinds: tuple[str, ...]
    source_on_disk: bool
    journals_on_disk: bool
    limited: bool = False


BOTH = (FIRST_SYNC, STAGED)
LIMITED_IMAGE = Setting(f"the image, at {LIMIT_MIB_S} MiB/s", 0.7, (FIRST_SYNC,), True, False, limited=True)
LIMITED = Setting(f"the destination, at {LIMIT_MIB_S} MiB/s", 0.5, BOTH, True, True, limited=True)
IMAGE = Setting("the image", 1, BOTH, False, False)
ALL = Setting("everything", 1, BOTH, True, True)
SETTINGS = (LIMITED_IMAGE, LIMITED, IMAGE, ALL)

WRITE_1 = Job("write-4k-1", "randwrite 4k, depth 1", "randwrite", "4k", 1)
WRITE_8 = Job("write-4k-8", "randwrite 4k, depth 8", "randwrite", "4k", 8)
WRITE_64K = Job("write-64k-4", "randwrite 64k, depth 4", "randwrite", "64k", 4)
FOREGROUND = (WRITE_1, WRITE_8)

SHORT = "short cut"
LONG = "long cut"
SMALL_JOURNAL = "16MiB"


@dataclass(frozen=True)
class Rate:
    """One resync without clients. `on_disk`: the setting's name.

    `moved_bytes` is what differed. `whole_s` is until a promote gives the new state, `done_s` until it is on the image.
    `written_bytes` is what was written to the disk meanwhile, `disk_mib_s` what fio writes there, `cpu_s` what both
    daemons used.
    """

    round: int
    kind: str
    on_disk: str
    moved_bytes: int
    whole_s: float
    done_s: float
    written_bytes: int
    disk_mib_s: float
    cpu_s: float

    @property
    def mib_s(self) -> float:
        """Bytes brought to the image a second."""
        return self.moved_bytes / MIB / self.done_s

    @property
    def writes(self) -> float:
        """How often a byte was written to the disk."""
        return self.written_bytes / self.moved_bytes

    @property
    def share(self) -> float:
        """Of what the disk can take, as if each byte were written once."""
        return self.mib_s / self.disk_mib_s

    @property
    def busy(self) -> float:
        """Of what the disk can take, by what was written to it."""
        return self.share * self.writes

    @property
    def cores(self) -> float:
        """How many CPUs both daemons used on the average."""
        return self.cpu_s / self.done_s


@dataclass(frozen=True)
class Latency:
    """A job during a first sync and in step, of the same pair in the same round. `resync_mib_s`: the first sync's rate."""

    round: int
    job: str
    mean_us: float
    p99_us: float
    alone_mean_us: float
    alone_p99_us: float
    resync_mib_s: float

    @property
    def mean_ratio(self) -> float:
        """How much longer a write takes in the mean."""
        return self.mean_us / self.alone_mean_us

    @property
    def p99_ratio(self) -> float:
        """And the slowest hundredth."""
        return self.p99_us / self.alone_p99_us


@dataclass(frozen=True)
class Sent:
    """What went to the destination after an outage in which so many bytes were changed, each once."""

    round: int
    way: str
    case: str
    changed_bytes: int
    sent_bytes: int

    @property
    def ratio(self) -> float:
        """Sent by changed."""
        return self.sent_bytes / self.changed_bytes


@dataclass
class Outages:
    """Cases of one way: name, job, bytes that it changes, and of how many parts of the volume it has the first.

    `once`: it comes to the same in each round, so the first is enough.
    """

    way: str
    journal_size: str | None
    once: bool
    cases: tuple[tuple[str, Job, int, int], ...]


# Short cut: all fits into the journal. Long cut: the journal is left behind, so that only the dirty bitmap knows.
OUTAGES = (
    Outages(
        SHORT,
        None,
        True,
        (
            ("4k, depth 1", WRITE_1, 8 * MIB, 1),
            ("4k, depth 8", WRITE_8, 32 * MIB, 1),
            ("64k, depth 4", WRITE_64K, 64 * MIB, 1),
        ),
    ),
    Outages(
        LONG,
        SMALL_JOURNAL,
        False,
        (
            ("4k, spread thin", WRITE_8, 24 * MIB, 1),
            ("4k, in a quarter of the volume", WRITE_8, 48 * MIB, 4),
            ("64k, depth 4", WRITE_64K, 64 * MIB, 1),
        ),
    ),
)


@dataclass
class ResyncResults:
    """A run of this part. `about` describes it."""

    about: dict
    rates: list[Rate] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    sents: list[Sent] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, result: Rate | Latency | Sent) -> None:
        """Takes in what a round yields."""
        {Rate: self.rates, Latency: self.latencies, Sent: self.sents}[type(result)].append(result)

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def run_round(number: int, place: Place, memory: Path | None) -> Iterator[Rate | Latency | Sent]:
    """All measurements once; each result as soon as it is there."""
    for setting in SETTINGS:
        if memory or (setting.source_on_disk and setting.journals_on_disk):
            yield from rates(number, place, memory, setting)
    layout = on_disk(place)
    for job in FOREGROUND:
        yield measure_latency(number, place, layout, job)
    for outages in OUTAGES:
        if number == 1 or not outages.once:
            yield from sent(number, place, layout, outages)


def on_disk(place: Place) -> Layout:
    """Everything on the measured disk."""
    return Layout(place.volume, place.folder / "source.journal", place.image, place.folder / "journals")


def rates(number: int, place: Place, memory: Path | None, setting: Setting) -> Iterator[Rate]:
    """A first sync, and then a staged resync of half the volume. Nothing where the disk can't be limited but should be."""
    source = place.folder if setting.source_on_disk else memory
    journals = place.folder if setting.journals_on_disk else memory
    layout = Layout(source / "some.img", source / "source.journal", place.image, journals / "journals")
    size_bytes = int(setting.part * place.size_bytes) // (8 * MIB) * (8 * MIB)
    with ExitStack() as stack:
        prefix = stack.enter_context(limited(place.folder, LIMIT_MIB_S)) if setting.limited else []
        if prefix is None:
            return
        preallocate(layout.volume, size_bytes)
        stack.callback(layout.volume.unlink)
        place.forget()
        raw = [raw_target(place.image, durable=False)]
        disk = fio.run(WRITE_1M, raw, DISK_SECONDS, size_bytes, seed=number, prefix=prefix)
        pair = stack.enter_context(Pair(layout, place, prefix=prefix))
        pair.start_destination()
        pair.start_source()
        yield measure_resync(pair, number, FIRST_SYNC, setting, disk.mib_s)
        pair.wait_for_state("mirroring")
        pair.settle()
        if STAGED in setting.kinds:
            pair.stop_destination()
            pair.wait_for_state("degraded")
            half = size_bytes // 2
            fio.run(WRITE_1M, pair.targets, DISK_SECONDS, half, seed=number, io_bytes=half)
            pair.forget()
            pair.start_destination()
            yield measure_resync(pair, number, STAGED, setting, disk.mib_s)
            pair.wait_for_state("mirroring")
            pair.settle()
        if number == 1:
            check_same(layout.volume, layout.image)


def measure_resync(pair: Pair, number: int, kind: str, setting: Setting, disk_mib_s: float) -> Rate:
    """Waits for the resync's begin and its end."""
    moved: list[int] = []

    def begun(status: dict) -> bool:
        if status["resync"]:
            moved.append(status["resync"]["total_bytes"])
        return bool(moved)

    def written_bytes() -> int:
        return pair.destination.written_bytes() + (0 if setting.limited else pair.source.written_bytes())

    def cpu_s() -> float:
        return pair.destination.cpu_s() + pair.source.cpu_s()

    began = pair.wait("source", begun, "resyncing")
    before_bytes, before_s = written_bytes(), cpu_s()
    whole = pair.wait("source", lambda status: status["whole"] and status["resync"] is None, "whole")
    done = pair.wait("destination", lambda status: status["phase"] == "direct" and status["promotable"], "drained")
    return Rate(
        round=number,
        kind=kind,
        on_disk=setting.name,
        moved_bytes=moved[0],
        whole_s=whole - began,
        done_s=done - began,
        written_bytes=written_bytes() - before_bytes,
        disk_mib_s=disk_mib_s,
        cpu_s=cpu_s() - before_s,
    )


def measure_latency(number: int, place: Place, layout: Layout, job: Job) -> Latency:
    """A job during a first sync, and again when the pair is in step."""
    # What the last pair has left there would be equal, and not be sent.
    size = place.size_bytes
    fio.run(WRITE_1M, [raw_target(place.image, durable=False)], DISK_SECONDS, size, seed=number, io_bytes=size)
    with Pair(layout, place) as pair:
        pair.start_destination()
        pair.start_source()
        pair.wait("source", lambda status: status["resync"], "resyncing")
        before, before_s = progress(pair), time.monotonic()
        during = fio.run(job, pair.targets, JOB_SECONDS, size, seed=number)
        after, after_s = progress(pair), time.monotonic()
        pair.wait_for_state("mirroring")
        pair.settle()
        alone = fio.run(job, pair.targets, JOB_SECONDS, size, seed=number + 1000)
    return Latency(
        round=number,
        job=job.title,
        mean_us=during.mean_us,
        p99_us=during.p99_us,
        alone_mean_us=alone.mean_us,
        alone_p99_us=alone.p99_us,
        resync_mib_s=(after - before) / MIB / (after_s - before_s),
    )


def progress(pair: Pair) -> int:
    """Bytes that the resync has done; it must be under way, or there is nothing to compare with."""
    resync = pair.source_status()["resync"]
    if resync is None:
        raise ServerFailed("the first sync was over before the job was: give it larger files (--resync-mib)")
    return resync["done_bytes"]


def sent(number: int, place: Place, layout: Layout, outages: Outages) -> Iterator[Sent]:
    """Each case: in step, cut, changed, healed, in step again."""
    with Pair(layout, place, outages.journal_size, relayed=True) as pair:
        pair.start_destination()
        pair.start_source()
        for index, (case, job, changed_bytes, part) in enumerate(outages.cases):
            if index > 0:
                # Else the connection would have to hold for longer after each outage.
                pair.stop_source()
                pair.start_source()
            pair.wait_for_state("mirroring")
            pair.settle()
            pair.relay.cut()
            pair.wait_for_state("degraded")
            seed = number * 100 + index
            fio.run(job, pair.targets, JOB_SECONDS, place.size_bytes // part, seed=seed, io_bytes=changed_bytes)
            before = pair.relay.sent_bytes
            pair.relay.heal()
            pair.wait_for_state("mirroring")
            yield Sent(number, outages.way, case, changed_bytes, pair.relay.sent_bytes - before)
        pair.settle()
    if number == 1:
        check_same(layout.volume, layout.image)


class Memory(ExitStack):
    """A context that gives a folder in memory, or None, and removes it."""

    def __init__(self, parent: Path):
        super().__init__()
        self.parent = parent

    def __enter__(self) -> Path | None:
        super().__enter__()
        folder = memory_folder(self.parent)
        if folder:
            self.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder
