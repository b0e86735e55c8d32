"""The programs that a run needs: which are missing and how to get them."""

import shutil
import subprocess

from nbd_mirror import BINARY
from pingpong import PINGPONG
from service import System

PACKAGES = {"fio": "fio", "nbdkit": "nbdkit", "qemu-nbd": "qemu-utils", "qemu-storage-daemon": "qemu-utils"}
BUILT = {
    "nbd-mirror": (BINARY, "build it with `cargo build --release`, or use --peers-only"),
    "pingpong": (PINGPONG, "build it with `cargo build --release --example pingpong`, or use --no-memory"),
}


def check(systems: list[System]) -> None:
    """Ends the program with a clear message when one of the systems can't be measured."""
    programs = {"fio", *(program for system in systems for program in system.programs)}
    complaints = []
    for name in programs & set(BUILT):
        programs.discard(name)
        path, remedy = BUILT[name]
        if not path.is_file():
            complaints.append(f"{path} is missing: {remedy}")
    missing = sorted(program for program in programs if shutil.which(program) is None)
    if missing:
        packages = " ".join(sorted({PACKAGES[program] for program in missing}))
        complaints.append(f"{', '.join(missing)} not found: apt-get install {packages}")
    if "fio" not in missing and run("fio", "--enghelp=nbd").returncode != 0:
        complaints.append("this fio has no nbd engine: use Debian's package (apt-get install fio)")
    if complaints:
        raise SystemExit("bench: " + "\nbench: ".join(complaints))


def versions(systems: list[System]) -> dict[str, str]:
    """What each program says of itself."""
    programs = {"fio", *(program for system in systems for program in system.programs)}
    found = {}
    for program in sorted(programs - {"pingpong"}):
        answer = run(str(BINARY) if program == "nbd-mirror" else program, "--version")
        found[program] = answer.stdout.splitlines()[0] if answer.stdout else "unknown"
    return found


def run(*command: str) -> subprocess.CompletedProcess:
    """Runs a program that answers at once."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
