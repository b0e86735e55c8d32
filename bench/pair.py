"""A source and a destination whose parts lie where a measurement wants them, and that can be parted."""

import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import admin
from fio import nbd_target
from interrupt import held
from nbd_mirror import NAME, daemon, destination_config, free_port, source_config
from peers import EXPORT, export_uri
from place import Place
from processes import Server, ServerFailed
from relay import Relay

LIMIT_S = 120
POLL_S = 0.01
# So that a parted source goes on alone soon. In step nothing depends on it.
TIMEOUT = "500ms"


@dataclass(frozen=True)
class Layout:
    """Where everything lies. `journals`: the destination's folder, with the staging log."""

    volume: Path
    journal: Path
    image: Path
    journals: Path


class Pair(ExitStack):
    """A context; both daemons are started and stopped one by one. `prefix` goes before the destination's command."""

    def __init__(
        self,
        layout: Layout,
        place: Place,
        journal_size: str | None = None,
        relayed: bool = False,
        prefix: list[str] | None = None,
    ):
        super().__init__()
        self.prefix = prefix or []
        self.layout = layout
        self.place = place
        self.journal_size = journal_size
        self.relayed = relayed
        self.relay: Relay | None = None
        self.source: Server | None = None
        self.destination: Server | None = None
        self._starts = 0

    def __enter__(self) -> "Pair":
        super().__enter__()
        self.folder = self.place.fresh_folder()
        self.nbd, self.source_admin, self.destination_admin = (
            self.place.socket(name) for name in ("pair-nbd", "pair-source", "pair-destination")
        )
        port = free_port()
        address = f"127.0.0.1:{port}"
        self.callback(self._forget_files)
        if self.relayed:
            self.relay = self.enter_context(Relay(("127.0.0.1", port)))
        reached = f"127.0.0.1:{self.relay.port}" if self.relay else address
        layout = self.layout
        (self.folder / "destination.toml").write_text(
            destination_config(address, layout.journals, {NAME: layout.image}, self.destination_admin)
        )
        (self.folder / "source.toml").write_text(
            source_config(
                "always",
                reached,
                layout.journal,
                layout.volume,
                self.nbd,
                self.source_admin,
                journal_size=self.journal_size,
                timeout=TIMEOUT,
            )
        )
        self.callback(self.stop_destination)
        self.callback(self.stop_source)
        return self

    @property
    def targets(self) -> list[list[str]]:
        """For fio."""
        return [nbd_target(export_uri(self.nbd))]

    def start_destination(self) -> None:
        """Starts it; returns when it can be asked."""
        self.destination = self._start("destination", self.destination_admin)

    def start_source(self) -> None:
        """Starts it; returns when it can be asked and takes clients."""
        self.source = self._start("source", self.source_admin)
        self.source.wait_for(self.nbd.exists, f"no socket {self.nbd}")

    def stop_destination(self) -> None:
        """Stops it, if it runs."""
        running, self.destination = self.destination, None
        stop(running)

    def stop_source(self) -> None:
        """Stops it, if it runs."""
        running, self.source = self.source, None
        stop(running)

    def source_status(self) -> dict:
        """The source's."""
        return admin.status(self.source_admin)

    def destination_status(self) -> dict:
        """The destination's."""
        return admin.status(self.destination_admin)

    def wait(self, role: str, ready, what: str) -> float:
        """Waits until ready(status of that role) is true, and returns when that was, in seconds of the monotonic clock."""
        ask = self.source_status if role == "source" else self.destination_status
        end = time.monotonic() + LIMIT_S
        while not ready(status := ask()):
            for server in (self.source, self.destination):
                if server:
                    server.check_alive()
            if time.monotonic() > end:
                server = self.source if role == "source" else self.destination
                raise server.fail(f"isn't {what} after {LIMIT_S} s (state {status['state']}: {status.get('reason')})")
            time.sleep(POLL_S)
        return time.monotonic()

    def wait_for_state(self, state: str) -> float:
        """Waits for a state of the source."""
        return self.wait("source", lambda status: status["state"] == state, state)

    def settle(self) -> None:
        """Brings all to volume and image (a staging log, too), and waits until nothing is being written."""
        admin.ask(self.source_admin, {"verb": "sync"})
        busy = {"flushing", "flushed", "sealed"}
        self.wait("source", lambda status: all(half["state"] not in busy for half in status["halves"]), "at rest")
        if self.destination:
            self.wait("destination", lambda status: status["phase"] == "direct", "at rest")

    def forget(self) -> None:
        """Makes a parted source keep what it has to send in its dirty bitmap only: what a start finds is flushed."""
        self.stop_source()
        self.start_source()
        self.wait("source", lambda status: all(half["state"] == "clean" for half in status["halves"]), "done with its journal")

    def _start(self, role: str, ready: Path) -> Server:
        self._starts += 1
        with held():
            # A log of its own for each start.
            prefix = self.prefix if role == "destination" else []
            command = prefix + daemon(role, self.folder / f"{role}.toml")
            server = Server(f"{role}-{self._starts}", command, self.folder)
        try:
            server.wait_for(ready.exists, f"no socket {ready}")
        except BaseException:
            stop(server)
            raise
        return server

    def _forget_files(self) -> None:
        shutil.rmtree(self.layout.journals, ignore_errors=True)
        self.layout.journal.unlink(missing_ok=True)


def stop(server: Server | None) -> None:
    """Stops a server that was started."""
    if server:
        server.stop()


def memory_folder(parent: Path) -> Path | None:
    """A new folder on a memory-backed file system that takes O_DIRECT (tmpfs from Linux 6.6 on); None where there is none."""
    if not parent.is_dir():
        return None
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    probe = folder / "probe"
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
        probe.unlink()
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder


def check_same(first: Path, second: Path) -> None:
    """Two files have the same contents; ServerFailed where not: then nothing that was measured counts."""
    with first.open("rb") as one, second.open("rb") as other:
        at = 0
        while piece := one.read(4 << 20):
            if piece != other.read(len(piece)):
                raise ServerFailed(f"{first.name} and {second.name} differ within 4 MiB from byte {at}")
            at += len(piece)
