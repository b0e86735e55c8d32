"""Two sources at one destination, one of which floods it: what the other's writes take longer. docs/performance.md tells how.

The destination's journal files are on the disk; all the rest is on a tmpfs, so that the disk is busy with nothing else.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import fio
import machine
from jobs import WRITE_1, WRITE_1M
from nbd_mirror import FIRST_SYNC_LIMIT_S, daemon, destination_config, free_port, is_mirroring, source_config
from on_memory import ASSUME_PMEM
from peers import export_uri
from place import preallocate
from report import replace_summary, table
from service import Crew

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
MARKS = ("<!-- neighbour -->", "<!-- /neighbour -->")
BUSY, QUIET = "busy", "quiet"
SIZE_BYTES = 256 << 20
JOURNAL = "128MiB"
# The flood is under way before the other is measured, and goes on behind.
LEAD_S, TAIL_S = 3, 2
CASES = {"without a log": False, "with a shared log": True}


@dataclass(frozen=True)
class Found:
    """One case in one round: the quiet source's times without the flood and beside it, and the flood's rate."""

    case: str
    alone: fio.FioResult
    beside: fio.FioResult
    flood_mib_s: float


@contextmanager
def serve(memory: Path, disk: Path, log: bool) -> Iterator[dict[str, Path]]:
    """Both sources and their destination; gives the sockets of the sources."""
    address = f"127.0.0.1:{free_port()}"
    names = (BUSY, QUIET)
    config, admin = memory / "destination.toml", memory / "destination.admin"
    images = {name: memory / f"{name}.image" for name in names}
    config.write_text(destination_config(address, disk / "journals", images, admin, memory / "log" if log else None))
    sockets = {name: memory / f"{name}.nbd" for name in names}
    with Crew(memory) as crew:
        crew.start("destination", daemon("destination", config), admin)
        for name in names:
            config, admin = memory / f"{name}.toml", memory / f"{name}.admin"
            journal, volume = (memory / f"{name}.{kind}" for kind in ("journal", "volume"))
            config.write_text(
                source_config("always", address, journal, volume, sockets[name], admin, JOURNAL, name=name)
            )
            server = crew.start(name, daemon("source", config, ASSUME_PMEM), admin)
            server.wait_for(lambda: is_mirroring(admin), "its state is not mirroring", FIRST_SYNC_LIMIT_S)
            server.wait_for(sockets[name].exists, f"no socket {sockets[name]}")
        yield sockets


def measure(case: str, log: bool, options: argparse.Namespace, seed: int) -> Found:
    """One case in one round, everything made anew."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.memory_dir) as memory,
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.dir) as disk,
    ):
        memory, disk = Path(memory), Path(disk)
        for name in (BUSY, QUIET):
            for kind in ("volume", "image"):
                preallocate(memory / f"{name}.{kind}", SIZE_BYTES)
        with serve(memory, disk, log) as sockets:
            targets = {name: [fio.nbd_target(export_uri(socket))] for name, socket in sockets.items()}

            def quiet() -> fio.FioResult:
                return fio.run(WRITE_1, targets[QUIET], options.seconds, SIZE_BYTES, seed)

            alone = quiet()
            line = fio.command(WRITE_1M, targets[BUSY], LEAD_S + options.seconds + TAIL_S, SIZE_BYTES, seed)
            flood = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            try:
                time.sleep(LEAD_S)
                beside = quiet()
                if flood.poll() is not None:
                    raise fio.FioFailed("the flood was over before the other's writes were")
                output = flood.communicate(timeout=fio.GRACE_S)[0]
            finally:
                flood.kill()
            return Found(case, alone, beside, fio.parse(output).mib_s)


def to_markdown(found: list[Found], about: dict) -> str:
    """The block of docs/performance.md."""

    def cell(values: list[float], digits: int) -> str:
        return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"

    rows = []
    for case in CASES:
        of_case = [one for one in found if one.case == case]
        if of_case:
            rows.append(
                [
                    case,
                    cell([one.alone.p50_us for one in of_case], 0),
                    cell([one.beside.p50_us for one in of_case], 0),
                    cell([one.beside.p50_us / one.alone.p50_us for one in of_case], 1),
                    cell([one.beside.p99_us / one.alone.p99_us for one in of_case], 1),
                    cell([one.flood_mib_s for one in of_case], 0),
                ]
            )
    head = ["destination", "alone p50 µs", "beside the flood p50 µs", "factor p50", "factor p99", "flood MiB/s"]
    said = f"Measured on {about['date']}: {about['rounds']} rounds of {about['seconds']} s, medians (min–max); {about['machine']}."
    return f"{said}\n\n{table(head, 'lrrrrr', rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=ROOT / "target", help="folder on the disk of the journal files")
    parser.add_argument("--memory-dir", type=Path, default=Path("/dev/shm"), help="folder on a tmpfs")
    parser.add_argument("--page", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    found = []
    for number in range(options.rounds):
        # The one that comes first has the disk as the round before has left it: they take turns.
        for case in list(CASES)[:: -1 if number % 2 else 1]:
            found.append(measure(case, CASES[case], options, number))
            one = found[-1]
            shown = {"case": case, "alone": one.alone.p50_us, "beside": one.beside.p50_us, "flood": one.flood_mib_s}
            print(json.dumps(shown), file=sys.stderr, flush=True)
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "machine": machine.describe(options.dir),
    }
    markdown = to_markdown(found, about)
    print(markdown)
    if options.page:
        PAGE.write_text(replace_summary(PAGE.read_text(), markdown, *MARKS))


if __name__ == "__main__":
    main()
