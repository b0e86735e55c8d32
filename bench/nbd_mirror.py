"""nbd-mirror itself: a source and a destination daemon, over TCP on the loopback interface."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fio import nbd_target
from peers import EXPORT, export_uri
from place import Place
from processes import ServerFailed
from service import Crew, Service

BINARY = Path(__file__).resolve().parent.parent / "target" / "release" / "nbd-mirror"
NAME = "bench"
FIRST_SYNC_LIMIT_S = 300
COMMAND_LIMIT_S = 300


def serve_nbd_mirror(durability: str, environment: dict[str, str] | None = None, nvram: bool = False):
    """Both daemons with their defaults; only the durability, the environment and the shared log are chosen."""
    @contextmanager
    def serve(place: Place) -> Iterator[Service]:
        folder = place.fresh_folder()
        address = f"127.0.0.1:{free_port()}"
        nbd, source_admin, destination_admin = (place.socket(name) for name in ("nbd", "source", "destination"))
        destination = folder / "destination.toml"
        log = folder / "nvram" if nvram else None
        images = {NAME: place.image}
        destination.write_text(destination_config(address, folder / "journals", images, destination_admin, log))
        source = folder / "source.toml"
        journal = folder / "source.journal"
        source.write_text(source_config(durability, address, journal, place.volume, nbd, source_admin))
        with Crew(folder) as crew:
            crew.start("destination", daemon("destination", destination, environment), destination_admin)
            server = crew.start("source", daemon("source", source, environment), source_admin)
            server.wait_for(lambda: is_mirroring(source_admin), "its state is not mirroring", FIRST_SYNC_LIMIT_S)
            server.wait_for(nbd.exists, f"no socket {nbd}")
            yield Service([nbd_target(export_uri(nbd))], crew.servers, finish=lambda: finish(source_admin))

    return serve


def daemon(role: str, config: Path, environment: dict[str, str] | None = None) -> list[str]:
    """The command of one daemon; `environment` comes on top of ours."""
    more = ["env", *(f"{key}={value}" for key, value in environment.items())] if environment else []
    return [*more, str(BINARY), role, "--config", str(config)]


def source_config(
    durability: str,
    address: str,
    journal: Path,
    device: Path,
    nbd: Path,
    admin: Path,
    journal_size: str | None = None,
    timeout: str | None = None,
    name: str = NAME,
) -> str:
    """source.toml. What isn't given keeps its default."""
    patience = f"timeout = {quoted(timeout)}\n" if timeout else ""
    size = f"size = {quoted(journal_size)}\n" if journal_size else ""
    return f"""\
name = {quoted(name)}
durability = "{durability}"
{patience}[journal]
path = {quoted(journal)}
{size}[[volume]]
name = "{EXPORT}"
device = {quoted(device)}
[nbd]
listen = [{quoted(f"unix:{nbd}")}]
[destination]
address = "{address}"
[admin]
socket = {quoted(admin)}
"""


def destination_config(
    address: str, journals: Path, images: dict[str, Path], admin: Path, nvram: Path | None = None
) -> str:
    """destination.toml. `images`: of each source by its name."""
    log = f"nvram = {quoted(nvram)}\n" if nvram else ""
    sources = "".join(
        f"[[source]]\nname = {quoted(name)}\n"
        f"[[source.volume]]\nname = {quoted(EXPORT)}\nimage = {quoted(image)}\n"
        for name, image in images.items()
    )
    return f"""\
listen = "{address}"
journal_dir = {quoted(journals)}
{log}{sources}[admin]
socket = {quoted(admin)}
"""


def quoted(value) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's."""
    return json.dumps(str(value), ensure_ascii=False)


def is_mirroring(admin: Path) -> bool:
    """True once the first copy is at the destination. A source that does not answer yet is not mirroring."""
    answer = command("status", "--admin", str(admin), "--json")
    return answer.returncode == 0 and json.loads(answer.stdout)["state"] == "mirroring"


def finish(admin: Path) -> None:
    """Has both sides write what their journals hold, so that no background work outlives the measurement.

    `sync` switches the halves and waits for the apply at the destination; the source's own flush is waited for here.
    """
    ask("sync", admin)
    end = time.monotonic() + COMMAND_LIMIT_S
    while any(half["state"] == "flushing" for half in json.loads(ask("status", admin, "--json"))["halves"]):
        if time.monotonic() > end:
            raise ServerFailed(f"nbd-mirror: a half was still flushing {COMMAND_LIMIT_S} s after `sync`")
        time.sleep(0.05)


def ask(verb: str, admin: Path, *options: str) -> str:
    """What a daemon answers."""
    answer = command(verb, "--admin", str(admin), *options)
    if answer.returncode != 0:
        raise ServerFailed(f"nbd-mirror {verb} ended with code {answer.returncode}:\n    {answer.stderr.strip()}")
    return answer.stdout


def command(*arguments: str) -> subprocess.CompletedProcess:
    """Runs one of the commands that talk to a daemon."""
    return subprocess.run(
        [str(BINARY), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_LIMIT_S
    )


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
