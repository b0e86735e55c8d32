"""The floor: fio on the raw files, with no server in between."""

from collections.abc import Iterator
from contextlib import contextmanager

from fio import raw_target
from place import Place
from service import Service


def serve_raw(durable: bool):
    """fio on one file."""

    @contextmanager
    def serve(place: Place) -> Iterator[Service]:
        yield Service([raw_target(place.volume, durable)])

    return serve


def serve_both(durable: bool):
    """fio on both files at once, a job each: what two disks' writes cost that share one disk."""

    @contextmanager
    def serve(place: Place) -> Iterator[Service]:
        yield Service([raw_target(file, durable) for file in place.files])

    return serve
