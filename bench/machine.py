"""The machine that a run was measured on, in one line."""

import os
import platform
from pathlib import Path


def describe(folder: Path) -> str:
    """CPU, memory, kernel, and the disk and file system under a folder."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{os.cpu_count()} × {cpu_model(Path('/proc/cpuinfo').read_text())}, {memory_gib:.0f} GiB of memory, "
        f"Linux {platform.release()}, {disk(folder)}"
    )


def cpu_model(cpuinfo: str) -> str:
    """The model name, where the architecture's /proc/cpuinfo has one."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def disk(folder: Path) -> str:
    """File system, device and the device's cache mode."""
    file_system, device = find_mount(Path("/proc/self/mounts").read_text(), str(folder.resolve()))
    cache = Path("/sys/class/block") / Path(device).name / "queue" / "write_cache"
    mode = f", {cache.read_text().strip()} cache" if cache.exists() else ""
    return f"{file_system} on {device}{mode}"


def find_mount(mounts: str, folder: str) -> tuple[str, str]:
    """File system and device of the mount that holds the folder: the last of the longest that match."""
    best, found = "", ("unknown file system", "unknown device")
    for line in mounts.splitlines():
        device, point, file_system = line.split()[:3]
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, found = point, (file_system, device)
    return found
