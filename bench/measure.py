"""One system's turn: it is started alone, does its jobs one after the other, rests after each, and is stopped."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import fio
from jobs import Job
from place import Place
from processes import ServerFailed
from service import Service, System

QUIET_S = 0.5
QUIET_LIMIT_S = 300
POLL_S = 0.05
IDLE_S = 3.0


@dataclass(frozen=True)
class Sample:
    """One job of one system in one round.

    `cpu_us` is the servers' CPU time a request, background work after the job included; None where no server is.
    `drain_s` is how long background work went on after the job's last answer.
    """

    system: str
    job: str
    round: int
    iops: float
    mib_s: float
    p50_us: float
    p99_us: float
    requests: float
    runtime_s: float
    cpu_us: float | None
    drain_s: float


@dataclass(frozen=True)
class Idle:
    """What a system does without any client and with nothing left to do."""

    system: str
    round: int
    cpu_us_per_s: float
    wakeups_per_s: float


def take_turn(
    system: System, jobs: list[Job], place: Place, round_number: int, seconds: float
) -> Iterator[Sample | Idle]:
    """Measures the jobs that the system knows; yields each result as soon as it is there."""
    place.forget()
    with system.serve(place) as service:
        rest(service, place)
        for job in (job for job in system.jobs if job in jobs):
            yield measure_job(system, service, job, place, round_number, seconds)
        if system.measure_idle:
            yield measure_idle(system, service, round_number)


def measure_job(
    system: System, service: Service, job: Job, place: Place, round_number: int, seconds: float
) -> Sample:
    """Runs fio; the CPU is read after the rest, so that work put off is still charged to the job that caused it."""
    cpu_before_s = service.cpu_s()
    try:
        if service.client:
            result = service.client(seconds)
        else:
            result = fio.run(job, service.targets, seconds, place.size_bytes, seed=round_number)
    except fio.FioFailed as failure:
        logs = "".join(f"\n  log of {server.name}:\n    {server.log_tail()}" for server in service.servers)
        raise ServerFailed(f"{failure}{logs}") from failure
    drain_s = rest(service, place)
    cpu_s = service.cpu_s() - cpu_before_s
    return Sample(
        system=system.name,
        job=job.name,
        round=round_number,
        iops=result.iops,
        mib_s=result.mib_s,
        p50_us=result.p50_us,
        p99_us=result.p99_us,
        requests=result.requests,
        runtime_s=result.runtime_s,
        cpu_us=cpu_s * 1e6 / result.requests if service.servers else None,
        drain_s=drain_s,
    )


def rest(service: Service, place: Place) -> float:
    """Waits until the system has written what it still had to write; returns how long that took, in seconds.

    Seen from outside, the same way for all: its processes have written nothing for QUIET_S, and the page cache holds
    nothing of the files that is not on the disk.
    """
    start = time.monotonic()
    service.finish()
    written_bytes = service.written_bytes()
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < QUIET_S and service.servers:
        time.sleep(POLL_S)
        if time.monotonic() - start > QUIET_LIMIT_S:
            raise ServerFailed(f"still writing {QUIET_LIMIT_S} s after the last request")
        now_bytes = service.written_bytes()
        if now_bytes != written_bytes:
            written_bytes = now_bytes
            quiet_since = time.monotonic()
    flush_start = time.monotonic()
    place.flush()
    return (quiet_since - start) + (time.monotonic() - flush_start)


def measure_idle(system: System, service: Service, round_number: int) -> Idle:
    """CPU time and wake-ups of all threads during IDLE_S."""
    run_ns, wakeups = run_and_wakeups(service)
    time.sleep(IDLE_S)
    run_ns_after, wakeups_after = run_and_wakeups(service)
    return Idle(
        system=system.name,
        round=round_number,
        cpu_us_per_s=(run_ns_after - run_ns) / 1000 / IDLE_S,
        wakeups_per_s=(wakeups_after - wakeups) / IDLE_S,
    )


def run_and_wakeups(service: Service) -> tuple[int, int]:
    """Sums over the servers."""
    return (
        sum(server.thread_run_ns() for server in service.servers),
        sum(server.wakeups() for server in service.servers),
    )
