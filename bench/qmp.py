"""A QMP client, as far as starting a mirror job and waiting for it needs one."""

import json
import socket
from pathlib import Path


class QmpError(Exception):
    """QEMU refused a command, or closed the socket."""


class Qmp:
    """A connection to a QMP monitor; a context that closes it."""

    def __init__(self, path: Path, limit_s: float = 30):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(limit_s)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rwb")
        self._receive()  # The greeting.
        self.execute("qmp_capabilities")

    def __enter__(self) -> "Qmp":
        return self

    def __exit__(self, *_exception) -> None:
        self.lines.close()
        self.socket.close()

    def execute(self, command: str, **arguments):
        """Runs a command and returns its result. Keys are written with _ for QMP's -."""
        message = {"execute": command}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.lines.write(json.dumps(message).encode() + b"\n")
        self.lines.flush()
        while True:
            answer = self._receive()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")
            # Anything else is an event, which nobody here waits for.

    def _receive(self) -> dict:
        line = self.lines.readline()
        if not line:
            raise QmpError("QEMU closed the monitor's socket")
        return json.loads(line)
