"""The floor of a mirrored write: its bare messages between three processes. bench/pingpong.rs tells what they do."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fio import GRACE_S, FioFailed, FioResult
from place import Place
from service import Service

PINGPONG = Path(__file__).resolve().parent.parent / "target" / "release" / "examples" / "pingpong"
MESSAGE_BYTES = 4096


@contextmanager
def serve_pingpong(_place: Place) -> Iterator[Service]:
    """It is its own client, and starts its servers itself."""
    yield Service([], client=measure)


def measure(seconds: float) -> FioResult:
    """One run of it."""
    try:
        ended = subprocess.run(
            [str(PINGPONG), str(seconds)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds + GRACE_S,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise FioFailed(f"ping-pong did not end {GRACE_S} s after its time") from None
    if ended.returncode != 0:
        raise FioFailed(f"ping-pong ended with code {ended.returncode}:\n    {ended.stderr.strip()}")
    return parse(ended.stdout)


def parse(output: str) -> FioResult:
    """Its line of JSON."""
    found = json.loads(output)
    return FioResult(**found, mib_s=found["iops"] * MESSAGE_BYTES / (1 << 20))
