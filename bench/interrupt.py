"""Ctrl-C and SIGTERM: one KeyboardInterrupt, never in the middle of starting a process or of cleaning up."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_held = False
_pending = False


def install() -> None:
    """From now on the first signal ends the run through every `with`; further ones are ignored meanwhile."""
    for number in SIGNALS:
        signal.signal(number, _handle)


@contextmanager
def held() -> Iterator[None]:
    """A signal that comes in this block is raised at its end: a process is never started without being noted."""
    global _held, _pending
    _held = True
    try:
        yield
    finally:
        _held = False
        if _pending:
            _pending = False
            raise KeyboardInterrupt


def _handle(_number, _frame) -> None:
    global _pending
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if not _held:
        raise KeyboardInterrupt
    _pending = True
