"""Runs fio, the client of every measurement, and reads its JSON."""

import json
import subprocess
from dataclasses import dataclass

from jobs import Job

# fio may need longer than asked: a last flush, a queue that drains.
GRACE_S = 60


class FioFailed(Exception):
    """fio ended with an error or printed no result."""


@dataclass(frozen=True)
class FioResult:
    """What a job achieved. `requests` counts reads and writes, not flushes."""

    requests: float
    runtime_s: float
    iops: float
    mib_s: float
    mean_us: float
    p50_us: float
    p99_us: float


def nbd_target(uri: str) -> list[str]:
    """A target behind an NBD server."""
    return ["--ioengine=nbd", f"--uri={uri}"]


def raw_target(path, durable: bool) -> list[str]:
    """A target that is a plain file, past the page cache; durable: opened O_DSYNC."""
    options = ["--ioengine=libaio", "--direct=1", f"--filename={path}"]
    return options + ["--sync=dsync"] if durable else options


def command(
    job: Job, targets: list[list[str]], seconds: float, size_bytes: int, seed: int, io_bytes: int | None = None
) -> list[str]:
    """The fio command: the job on all targets at once, one fio job a target.

    io_bytes: it ends when so much is done, not when the time is over, and does no block twice.
    """
    line = ["fio", "--output-format=json", "--name=global"]
    line += [f"--io_size={io_bytes}"] if io_bytes else ["--time_based", f"--runtime={seconds}"]
    line += [f"--size={size_bytes}", f"--randseed={seed}", "--thread"]
    # From submission on: a submission that blocks is part of the latency, whatever the engine calls it.
    line += ["--clat_percentiles=0", "--lat_percentiles=1"]
    line += job.options()
    for number, target in enumerate(targets):
        line += [f"--name=target{number}", *target]
    return line


def run(
    job: Job,
    targets: list[list[str]],
    seconds: float,
    size_bytes: int,
    seed: int,
    io_bytes: int | None = None,
    prefix: list[str] | None = None,
) -> FioResult:
    """Runs the job and returns its result. `prefix` goes before the command."""
    process = subprocess.Popen(
        (prefix or []) + command(job, targets, seconds, size_bytes, seed, io_bytes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds + GRACE_S)
    except subprocess.TimeoutExpired:
        raise FioFailed(f"{job.name}: fio did not end {GRACE_S} s after its time") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise FioFailed(f"{job.name}: fio ended with code {process.returncode}:\n    " + first_words(output))
    return parse(output)


def first_words(output: str) -> str:
    """What fio says beside its JSON: that is where its errors are."""
    lines = [line for line in output.splitlines() if line.lower().startswith(("fio:", "fio[", "error"))]
    return "\n    ".join(lines[:12]) or output[:500]


def parse(output: str) -> FioResult:
    """Reads fio's output, in which the JSON follows the messages.

    Several targets are one mirrored request each time: the rates are the mean over the targets. Percentiles are
    those of the writes where there are any (the worse of the targets).
    """
    start = output.find("{")
    if start < 0:
        raise FioFailed("fio printed no JSON:\n    " + output[:500])
    jobs = json.loads(output[start : output.rindex("}") + 1])["jobs"]
    for job in jobs:
        if job["error"] != 0:
            raise FioFailed(f"fio reports error {job['error']}:\n    " + first_words(output))
    requests = sum(job[way]["total_ios"] for job in jobs for way in ("read", "write")) / len(jobs)
    if requests == 0:
        raise FioFailed("fio made no request:\n    " + first_words(output))
    way = "write" if jobs[0]["write"]["total_ios"] else "read"
    return FioResult(
        requests=requests,
        runtime_s=max(job[way]["runtime"] for job in jobs) / 1000,
        iops=sum(job[way]["iops"] for job in jobs for way in ("read", "write")) / len(jobs),
        mib_s=sum(job[way]["bw_bytes"] for job in jobs for way in ("read", "write")) / len(jobs) / (1 << 20),
        mean_us=max(job[way]["lat_ns"]["mean"] for job in jobs) / 1000,
        p50_us=max(percentile_us(job[way], "50.000000") for job in jobs),
        p99_us=max(percentile_us(job[way], "99.000000") for job in jobs),
    )


def percentile_us(way: dict, percent: str) -> float:
    """A percentile of the latency from submission to completion."""
    return way["lat_ns"]["percentile"][percent] / 1000
