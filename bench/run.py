#!/usr/bin/env python3
"""Measures nbd-mirror against its peers. docs/performance.md tells what, how and why."""

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

import interrupt
import machine
import on_memory
import plot
import report
import resync
import resync_report
import tools
from fio import FioFailed
from jobs import JOBS, Job
from measure import Idle, Sample, take_turn
from on_memory import ON_MEMORY
from part import ON_DISK, Part
from place import Place
from processes import ServerFailed
from qmp import QmpError
from results import Results
from service import System
from systems import ALWAYS, NBD_MIRROR

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"
MIN_ROUNDS_FOR_PAGE = 3
QUICK_ROUNDS, QUICK_SECONDS = 1, 3


def main() -> int:
    """Runs the rounds, prints the table, writes the files. 1 when a system failed."""
    options = parse_options(sys.argv[1:])
    runs = [Run(part, options) for part in options.parts]
    tools.check([ALWAYS] * options.resync + [system for run in runs for system in run.systems])
    interrupt.install()
    resyncs = resync.ResyncResults(about(options, [ALWAYS], options.dir) if options.resync else {})
    interrupted = False
    try:
        if options.resync:
            run_resync(options, resyncs)
        for run in runs:
            run.measure()
    except KeyboardInterrupt:
        interrupted = True
        log("interrupted: everything started is stopped and removed")
    if resyncs.rates:
        write(resyncs.about, "resync-", resync_report.to_markdown(resyncs), json=resync_report.to_json(resyncs))
    for run in runs:
        run.write()
    if interrupted:
        return 130
    if options.resync:
        update_resyncs(options, resyncs)
    for run in runs:
        run.update_page()
    failures = resyncs.failures + [failure for run in runs for failure in run.results.failures]
    for failure in failures:
        log(f"FAILED: {failure}")
    return 1 if failures else 0


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    names = ", ".join(dict.fromkeys(system.name for part in (ON_DISK, ON_MEMORY) for system in part.systems))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="times each system has its turn (default 3)")
    parser.add_argument("--seconds", type=int, help="length of one fio job (default 8)")
    parser.add_argument("--quick", action="store_true", help="1 round of 3 s: only to see whether all works")
    parser.add_argument(
        "--only",
        action="append",
        metavar="SYSTEM",
        help=f"measure the systems whose name begins so; may be repeated ({names})",
    )
    parser.add_argument("--peers-only", action="store_true", help="leave nbd-mirror out")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--resync-only", action="store_true", help="only the part about resyncs, 4 to 6 minutes")
    part.add_argument("--memory-only", action="store_true", help="only the part on memory, some 10 minutes")
    parser.add_argument("--no-resync", action="store_true", help="leave the part about resyncs out")
    parser.add_argument("--no-memory", action="store_true", help="leave the part on memory out")
    parser.add_argument("--jobs", metavar="JOB,…", help=f"of {', '.join(job.name for job in JOBS)}")
    parser.add_argument("--size-mib", type=int, default=2048, help="size of each of the two files (default 2048)")
    parser.add_argument("--resync-mib", type=int, default=768, help="the same for resyncs (default 768)")
    parser.add_argument("--memory-mib", type=int, default=1024, help="the same on memory (default 1024)")
    parser.add_argument("--dir", type=Path, default=ROOT / "target", help="folder on the disk to measure on")
    parser.add_argument(
        "--memory-dir", type=Path, default=Path("/dev/shm"), help="folder on a tmpfs (default /dev/shm)"
    )
    options = parser.parse_args(arguments)
    # Whoever picks systems or jobs wants these.
    picked = options.only or options.jobs or options.peers_only
    options.resync = options.resync_only or not (options.no_resync or options.memory_only or picked)
    options.parts = [] if options.resync_only else [ON_DISK, ON_MEMORY]
    if options.memory_only:
        options.parts = [ON_MEMORY]
    elif options.no_memory or picked:
        options.parts = [part for part in options.parts if part is not ON_MEMORY]
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else 3)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else 8)
    sizes_mib = (options.size_mib, options.memory_mib)
    if options.rounds < 1 or options.seconds < 1 or min(sizes_mib) < 64 or options.resync_mib < 512:
        parser.error(
            "--rounds and --seconds must be at least 1, --size-mib and --memory-mib at least 64, --resync-mib at least 512"
        )
    return options


class Run:
    """One part in this run: what the options leave of it, and what was measured."""

    def __init__(self, part: Part, options: argparse.Namespace):
        self.part = part
        self.options = options
        on_memory = part is ON_MEMORY
        self.dir: Path = options.memory_dir if on_memory else options.dir
        self.size_mib: int = options.memory_mib if on_memory else options.size_mib
        self.systems = choose_systems(options, part)
        self.jobs = choose_jobs(options, part)
        self.results = Results(about(options, self.systems, self.dir) | {"size_mib": self.size_mib})

    def measure(self) -> None:
        """All rounds."""
        if self.part is ON_MEMORY and (complaint := on_memory.unfit(self.dir, self.size_mib << 20)):
            self.results.failures.append(complaint)
            return log(f"FAILED: {complaint}")
        log(f"writing two files of {self.size_mib} MiB below {self.dir}")
        with Place(self.dir, self.size_mib << 20) as place:
            for number in range(1, self.options.rounds + 1):
                self.measure_round(number, place)

    def measure_round(self, number: int, place: Place) -> None:
        """Each system's turn. Each round begins with another system, so that none always follows the same one."""
        start = (number - 1) * len(self.systems) // self.options.rounds
        for system in self.systems[start:] + self.systems[:start]:
            try:
                for result in take_turn(system, self.jobs, place, number, self.options.seconds):
                    self.results.add(result)
                    log(f"round {number} {line(result)}")
            except (ServerFailed, FioFailed, QmpError) as failure:
                self.results.failures.append(f"{system.name}, round {number}: {failure}")
                log(f"FAILED: {self.results.failures[-1]}")

    def write(self) -> None:
        """What was measured, in all forms."""
        if self.results.samples:
            markdown, json = (form(self.results, self.part) for form in (report.to_markdown, report.to_json))
            write(self.results.about, self.part.stem, markdown, json=json, svg=plot.to_svg(self.results, self.part))

    def update_page(self) -> None:
        """The page gets complete runs only."""
        complete = len(self.results.samples) == self.part.samples(self.options.rounds)
        if self.options.rounds < MIN_ROUNDS_FOR_PAGE or not complete:
            what = f"{PAGE.relative_to(ROOT)} keeps its {self.part.mark}"
            return log(f"{what}: that takes all systems, all jobs and {MIN_ROUNDS_FOR_PAGE} rounds or more")
        report.update_page(PAGE, self.results, self.part)
        log(f"updated the {self.part.mark} of {PAGE.relative_to(ROOT)}")


def choose_systems(options: argparse.Namespace, part: Part) -> list[System]:
    """The systems of this run."""
    systems = [system for system in part.systems if not (options.peers_only and system.programs == NBD_MIRROR)]
    if not options.only:
        return systems
    for beginning in options.only:
        if not any(system.name.startswith(beginning) for system in systems):
            raise SystemExit(f"bench: no system is called {beginning!r}: {', '.join(s.name for s in systems)}")
    return [system for system in systems if system.name.startswith(tuple(options.only))]


def choose_jobs(options: argparse.Namespace, part: Part) -> list[Job]:
    """The jobs of this run."""
    if options.jobs is None:
        return list(part.jobs)
    wanted = options.jobs.split(",")
    unknown = set(wanted) - {job.name for job in part.jobs}
    if unknown:
        raise SystemExit(f"bench: no job is called {', '.join(sorted(unknown))}: {', '.join(j.name for j in part.jobs)}")
    return [job for job in part.jobs if job.name in wanted]


def about(options: argparse.Namespace, systems: list[System], folder: Path) -> dict:
    """What a reader must know of the run."""
    options.dir.mkdir(parents=True, exist_ok=True)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "resync_mib": options.resync_mib,
        "machine": machine.describe(folder),
        "versions": tools.versions(systems),
    }


def run_resync(options: argparse.Namespace, results: resync.ResyncResults) -> None:
    """The part about resyncs."""
    log(f"resync: writing two files of {options.resync_mib} MiB below {options.dir}")
    with Place(options.dir, options.resync_mib << 20) as place, resync.Memory(options.memory_dir) as memory:
        if memory is None:
            results.failures.append(f"{options.memory_dir} is no folder in memory that takes O_DIRECT (tmpfs, Linux 6.6)")
        for number in range(1, options.rounds + 1):
            try:
                for result in resync.run_round(number, place, memory):
                    results.add(result)
                    log(f"round {number} {result}")
            except (ServerFailed, FioFailed) as failure:
                results.failures.append(f"resync, round {number}: {failure}")
                log(f"FAILED: {results.failures[-1]}")


def line(result: Sample | Idle) -> str:
    """A result in the running log."""
    if isinstance(result, Sample):
        return f"{result.system:24} {result.job:18} {result.iops:10,.0f} IOPS {result.mib_s:8,.0f} MiB/s"
    return f"{result.system:24} idle               {result.cpu_us_per_s:10,.0f} µs of CPU a second"


def write(about: dict, part: str, markdown: str, **others: str) -> None:
    """The table on stdout, and all forms under bench/results/."""
    RESULTS.mkdir(exist_ok=True)
    stem = part + about["started"].replace(":", "").replace("+0000", "Z")
    print(markdown)
    for ending, content in {"md": markdown, **others}.items():
        path = RESULTS / f"{stem}.{ending}"
        path.write_text(content)
        log(f"wrote {path.relative_to(ROOT)}")


def update_resyncs(options: argparse.Namespace, results: resync.ResyncResults) -> None:
    """The page gets complete runs only."""
    if options.rounds < MIN_ROUNDS_FOR_PAGE or results.failures:
        log(f"{PAGE.relative_to(ROOT)} keeps what it says of resyncs: that takes 3 rounds or more, without a failure")
        return
    resync_report.update_page(PAGE, results)
    log(f"updated what {PAGE.relative_to(ROOT)} says of resyncs")


def log(message: str) -> None:
    """Progress goes to stderr; stdout is for the table."""
    print(f"bench: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
