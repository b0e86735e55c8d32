"""Server processes: started with a log, watched, measured through /proc, always stopped."""

import os
import signal
import subprocess
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_LIMIT_S = 30
STOP_LIMIT_S = 30
LOG_TAIL_LINES = 12


class ServerFailed(Exception):
    """A server that did not start, ended by itself or would not stop; says what it logged."""


class Server:
    """One server process. Its own session, so that Ctrl-C reaches the harness only, which stops it."""

    def __init__(self, name: str, command: list[str], log_folder: Path):
        self.name = name
        self.log = log_folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def fail(self, what: str) -> ServerFailed:
        """The error that tells what happened and the end of the server's log."""
        return ServerFailed(f"{self.name} {what}:\n    {self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines that it logged, indented."""
        tail = self.log.read_text(errors="replace").strip().splitlines()[-LOG_TAIL_LINES:]
        return "\n    ".join(tail) if tail else "(it logged nothing)"

    def check_alive(self) -> None:
        """Raises ServerFailed when the process has ended."""
        if self.process.poll() is not None:
            raise self.fail(f"ended by itself with code {self.process.returncode}")

    def wait_for(self, ready, what: str, limit_s: float = START_LIMIT_S) -> None:
        """Waits until ready() is true, as long as the process lives."""
        end = time.monotonic() + limit_s
        while not ready():
            self.check_alive()
            if time.monotonic() > end:
                raise self.fail(f"did not get ready in {limit_s} s ({what})")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what does not end in time (that is an error too)."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise self.fail(f"did not stop within {STOP_LIMIT_S} s of SIGTERM") from None
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def cpu_s(self) -> float:
        """User and system time of all its threads, ended ones and io_uring workers included."""
        return parse_cpu_ticks(self._proc("stat")) / TICKS_PER_SECOND

    def written_bytes(self) -> int:
        """Bytes that it caused to be written to disks."""
        return parse_written_bytes(self._proc("io"))

    def thread_run_ns(self) -> int:
        """Time on a CPU of its living threads: finer than cpu_s(), but forgets ended threads."""
        return sum(int(text.split()[0]) for text in self._threads("schedstat"))

    def wakeups(self) -> int:
        """How often its living threads went to sleep, which is how often they had been woken."""
        return sum(parse_wakeups(text) for text in self._threads("status"))

    def _proc(self, name: str) -> str:
        self.check_alive()
        return Path(f"/proc/{self.process.pid}/{name}").read_text()

    def _threads(self, name: str) -> list[str]:
        self.check_alive()
        texts = []
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                texts.append((thread / name).read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # A thread that ended since the folder was listed.
        return texts


def parse_cpu_ticks(stat: str) -> int:
    """utime + stime of a /proc/PID/stat line; the command's name may hold spaces and brackets."""
    fields = stat[stat.rindex(")") + 1 :].split()
    return int(fields[11]) + int(fields[12])  # Fields 14 and 15 of proc(5), counted from state.


def parse_written_bytes(io: str) -> int:
    """write_bytes of /proc/PID/io."""
    for line in io.splitlines():
        key, _, value = line.partition(":")
        if key == "write_bytes":
            return int(value)
    raise ValueError("/proc/PID/io has no write_bytes: is task I/O accounting off in this kernel?")


def parse_wakeups(status: str) -> int:
    """voluntary_ctxt_switches of /proc/PID/task/TID/status."""
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == "voluntary_ctxt_switches":
            return int(value)
    raise ValueError("/proc/PID/task/TID/status has no voluntary_ctxt_switches")
