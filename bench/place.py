"""The place where a run works: two preallocated files on one disk, sockets, logs and configurations."""

import os
import shutil
import tempfile
from pathlib import Path

GIB = 1 << 30
CHUNK_BYTES = 4 << 20
# Both files, nbd-mirror's journal, the destination's journal files, and some air.
SPACE_FOR_JOURNALS_BYTES = 2 * GIB


class Place:
    """A context: made on entry, removed on exit whatever happened.

    All systems use the same two files one after the other, so that none has the luckier blocks.
    Sockets are kept apart under the system's temporary folder: their paths are limited to 107 bytes.
    """

    def __init__(self, parent: Path, size_bytes: int):
        self.parent = parent
        self.size_bytes = size_bytes

    def __enter__(self) -> "Place":
        self.parent.mkdir(parents=True, exist_ok=True)
        need = self.need_bytes(self.size_bytes)
        free = shutil.disk_usage(self.parent).free
        if free < need:
            raise SystemExit(
                f"bench: {self.parent} has {free / GIB:.1f} GiB free and {need / GIB:.1f} GiB are needed: "
                "make room, or name a folder on another disk with --dir"
            )
        self.folder = Path(tempfile.mkdtemp(prefix="bench-", dir=self.parent))
        self.sockets = Path(tempfile.mkdtemp(prefix="bench-"))
        self.volume = self.folder / "volume.img"
        self.image = self.folder / "image.img"
        try:
            self._check_direct()
            for file in self.files:
                preallocate(file, self.size_bytes)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_exception) -> None:
        self.remove()

    @staticmethod
    def need_bytes(size_bytes: int) -> int:
        """What both files, and all that comes beside them, take of a disk."""
        return 2 * size_bytes + SPACE_FOR_JOURNALS_BYTES

    @property
    def files(self) -> tuple[Path, Path]:
        """The local side and the mirror's side."""
        return (self.volume, self.image)

    def fresh_folder(self) -> Path:
        """An empty folder for one turn's journals, configurations and logs."""
        return Path(tempfile.mkdtemp(prefix="turn-", dir=self.folder))

    def socket(self, name: str) -> Path:
        """A free path for a Unix socket."""
        path = self.sockets / name
        path.unlink(missing_ok=True)
        return path

    def flush(self) -> None:
        """Brings what the page cache holds of the files to the disk."""
        for file in self.files:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

    def forget(self) -> None:
        """Drops the files from the page cache, so that a system does not read from its predecessor's."""
        self.flush()
        for file in self.files:
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def remove(self) -> None:
        """Removes everything that the run has made."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def _check_direct(self) -> None:
        probe = self.folder / "probe"
        try:
            os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
        except OSError as error:
            raise SystemExit(
                f"bench: {self.parent} can't open files with O_DIRECT ({error.strerror}): "
                "name a folder on a disk with --dir"
            ) from None
        probe.unlink()


def preallocate(path: Path, size_bytes: int) -> None:
    """Writes a file in full: neither sparse nor merely reserved, and nothing a system may skip as zeros."""
    chunk = os.urandom(CHUNK_BYTES)
    with path.open("wb") as file:
        left_bytes = size_bytes
        while left_bytes > 0:
            left_bytes -= file.write(chunk[: min(left_bytes, CHUNK_BYTES)])
        file.flush()
        os.fsync(file.fileno())
