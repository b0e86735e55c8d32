"""What a started system offers to the measurement, and what a system is."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from fio import FioResult
from interrupt import held
from jobs import Job
from place import Place
from processes import Server


@dataclass
class Service:
    """A system that is up: where fio connects, the processes whose CPU counts, how it comes to rest.

    `client` measures for so many seconds in fio's place, where a system is its own client.
    `finish` asks for outstanding background work to be done now; whether it is done is watched from outside.
    """

    targets: list[list[str]]
    servers: list[Server] = field(default_factory=list)
    finish: Callable[[], None] = lambda: None
    client: Callable[[float], FioResult] | None = None

    def cpu_s(self) -> float:
        """CPU time of all server processes together."""
        return sum(server.cpu_s() for server in self.servers)

    def written_bytes(self) -> int:
        """Bytes written to disks by all server processes together."""
        return sum(server.written_bytes() for server in self.servers)


@dataclass(frozen=True)
class System:
    """One contestant in one mode.

    `group` says what it gives: "mirrored" (stored twice), "unreplicated" or "floor" (fio on the files, no server).
    `durable`: each write is on stable storage before its answer.
    """

    name: str
    group: str
    durable: bool
    programs: tuple[str, ...]
    jobs: tuple[Job, ...]
    serve: Callable[[Place], AbstractContextManager[Service]]
    measure_idle: bool = False


class Crew(ExitStack):
    """Starts servers, and stops them in reverse order when the context ends."""

    def __init__(self, log_folder: Path):
        super().__init__()
        self.log_folder = log_folder
        self.servers: list[Server] = []

    def start(self, name: str, command: list[str], socket: Path | None = None) -> Server:
        """Starts a server and, where a socket is named, waits until it is there."""
        with held():
            server = Server(name, command, self.log_folder)
            self.callback(server.stop)
        self.servers.append(server)
        if socket is not None:
            server.wait_for(socket.exists, f"no socket {socket}")
        return server
