"""The peers: how each is started in its best setting. docs/performance.md gives the reasons."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from fio import nbd_target
from place import Place
from processes import Server
from qmp import Qmp
from service import Crew, Service

EXPORT = "vol0"
MIRROR_LIMIT_S = 300


def export_uri(socket) -> str:
    """The URI of the measured export behind a Unix socket."""
    return f"nbd+unix:///{EXPORT}?socket={socket}"


def serve_nbdkit(durable: bool):
    """nbdkit's file plugin; durable: its fua filter makes each write a write and fdatasync."""

    @contextmanager
    def serve(place: Place) -> Iterator[Service]:
        socket = place.socket("nbdkit")
        command = ["nbdkit", "--foreground", f"--unix={socket}", f"--exportname={EXPORT}"]
        if durable:
            command.append("--filter=fua")
        command += ["file", f"file={place.volume}"]
        if durable:
            command.append("fuamode=force")
        with Crew(place.fresh_folder()) as crew:
            crew.start("nbdkit", command, socket)
            yield Service([nbd_target(export_uri(socket))], crew.servers)

    return serve


def serve_qemu_nbd(durable: bool):
    """qemu-nbd on the file."""

    @contextmanager
    def serve(place: Place) -> Iterator[Service]:
        socket = place.socket("qemu-nbd")
        with Crew(place.fresh_folder()) as crew:
            crew.start("qemu-nbd", qemu_nbd(place.volume, socket, durable), socket)
            yield Service([nbd_target(export_uri(socket))], crew.servers)

    return serve


def serve_qemu_mirror(durable: bool):
    """A mirror job in copy-mode=write-blocking to a second NBD server, over a Unix socket.

    The mirror passes neither flushes nor FUA on to its target, so in the durable mode the target makes each
    write durable by itself; in the other mode the target's flushes are missing, to this peer's advantage.
    """

    @contextmanager
    def serve(place: Place) -> Iterator[Service]:
        with Crew(place.fresh_folder()) as crew:
            far = place.socket("far")
            crew.start("mirror-target", qemu_nbd(place.image, far, durable), far)
            near, monitor = place.socket("near"), place.socket("qmp")
            nodes = [file_node("volume", place.volume), nbd_node("image", far)]
            command = storage_daemon(nodes, near, "volume", durable)
            command += ["--chardev", f"socket,id=qmp,path={monitor},server=on,wait=off", "--monitor", "chardev=qmp"]
            server = crew.start("mirror-source", command, near)
            server.wait_for(monitor.exists, f"no monitor socket {monitor}")
            start_mirror(monitor, server)
            yield Service([nbd_target(export_uri(near))], crew.servers)

    return serve


def serve_qemu_quorum(durable: bool):
    """The quorum driver over the local file and an NBD child; both must succeed, reads go to the file alone.

    Quorum sends a flush to both children, so in the durable mode the far side needs no cache mode of its own.
    """

    @contextmanager
    def serve(place: Place) -> Iterator[Service]:
        with Crew(place.fresh_folder()) as crew:
            far = place.socket("far")
            crew.start("quorum-far", qemu_nbd(place.image, far, durable=False), far)
            near = place.socket("near")
            quorum = {
                "driver": "quorum",
                "node-name": "both",
                "vote-threshold": 2,
                "read-pattern": "fifo",
                "children": ["volume", "image"],
            }
            nodes = [file_node("volume", place.volume), nbd_node("image", far), json.dumps(quorum)]
            crew.start("quorum-near", storage_daemon(nodes, near, "both", durable), near)
            yield Service([nbd_target(export_uri(near))], crew.servers)

    return serve


def qemu_nbd(file, socket, durable: bool) -> list[str]:
    """qemu-nbd past the page cache; directsync is none with every write made FUA."""
    cache = "directsync" if durable else "none"
    options = ["--persistent", "--shared=0", "--format=raw", "--aio=native", f"--cache={cache}"]
    return ["qemu-nbd", *options, f"--export-name={EXPORT}", f"--socket={socket}", str(file)]


def storage_daemon(nodes: list[str], socket, exported: str, durable: bool) -> list[str]:
    """qemu-storage-daemon exporting one of its nodes.

    writethrough=on is its form of cache=writethrough, for one export. Options are worked off as they come.
    """
    command = ["qemu-storage-daemon"]
    for node in nodes:
        command += ["--blockdev", node]
    through = "on" if durable else "off"
    command += ["--nbd-server", f"addr.type=unix,addr.path={socket}", "--export"]
    command.append(f"nbd,id=export,node-name={exported},name={EXPORT},writable=on,writethrough={through}")
    return command


def file_node(name: str, file) -> str:
    """A local file past the page cache."""
    return f"driver=file,node-name={name},filename={file},cache.direct=on,aio=native"


def nbd_node(name: str, socket) -> str:
    """The NBD client side, over a Unix socket (QEMU before 8.1 leaves Nagle's algorithm on over TCP)."""
    return f"driver=nbd,node-name={name},server.type=unix,server.path={socket},export={EXPORT}"


def start_mirror(monitor, server: Server) -> None:
    """Starts the job, with the full first copy, and waits until each write goes to both sides."""
    with Qmp(monitor) as qmp:
        qmp.execute(
            "blockdev-mirror",
            job_id="mirror",
            device="volume",
            target="image",
            sync="full",
            copy_mode="write-blocking",
        )

        def active() -> bool:
            jobs = qmp.execute("query-block-jobs")
            if not jobs:
                raise server.fail("ended its mirror job")
            # QEMU before 8.2 does not tell whether a ready job is already in its active mode.
            return jobs[0]["ready"] and jobs[0].get("actively-synced", True)

        server.wait_for(active, "the mirror job is not ready", MIRROR_LIMIT_S)
