"""A daemon's admin socket: one JSON object a line. Cheap enough to be asked hundreds of times a second."""

import json
import socket
from pathlib import Path

from processes import ServerFailed

LIMIT_S = 300


def ask(path: Path, request: dict) -> dict:
    """What a daemon answers; ServerFailed where it refuses or isn't there."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(LIMIT_S)
            stream.connect(str(path))
            stream.sendall(json.dumps(request).encode() + b"\n")
            with stream.makefile("rb") as lines:
                line = lines.readline()
    except OSError as error:
        raise ServerFailed(f"nbd-mirror: nobody answers at {path}: {error}") from None
    reply = json.loads(line) if line else {"ok": False, "error": "it hung up"}
    if not reply["ok"]:
        raise ServerFailed(f"nbd-mirror {request['verb']}: {reply['error']}")
    return reply["data"]


def status(path: Path) -> dict:
    """The status; of a destination, that of its only source."""
    answer = ask(path, {"verb": "status"})
    return answer["sources"][0] if answer["role"] == "destination" else answer
