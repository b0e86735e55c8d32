#!/usr/bin/python3
"""Boots each kernel that was fetched, runs the tests of tests/vm inside, and judges by what they left behind.

`make test-vm` calls this. Arguments, if any, are names of tests, as for cargo test.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = ROOT / "target" / "vm"
VENV = WORK / "venv" / "bin"
DISK = "12G"  # sparse

# Each is booted for each kernel: its name, its memory, which tests it runs, and after how many seconds it hangs.
BOOTS = [
    ("roomy", "1G", ["--skip", "pressure::"], 1200),
    ("small", "512M", ["pressure::"], 900),
]


def main():
    # Whoever ends this wants the machine ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    wanted = sys.argv[1:]
    tests = build_tests()
    program = ROOT / "target" / "release" / "nbd-mirror"
    kernels = sorted(WORK.glob("kernels/*/complete"))
    if not kernels:
        sys.exit("no kernel below target/vm/kernels: make vm-deps")
    only = os.environ.get("NBD_MIRROR_VM_KERNEL", "")
    failed = []
    for kernel in (path.parent for path in kernels):
        if only not in kernel.name:
            continue
        for name, memory, selection, limit_s in BOOTS:
            if wanted:
                selection = choose(name, wanted)
                if not selection:
                    continue
            results = WORK / "results" / kernel.name / name
            shutil.rmtree(results, ignore_errors=True)
            results.mkdir(parents=True)
            print(f"---- {kernel.name}, {name}: {memory} of memory", flush=True)
            start = time.monotonic()
            outcome = boot(kernel, memory, results, [tests, program, *selection], limit_s)
            took_s = time.monotonic() - start
            print(f"---- {kernel.name}, {name}: {outcome}, after {took_s:.0f} s", flush=True)
            if outcome != "all passed":
                failed.append(f"{kernel.name}, {name}")
    if failed:
        sys.exit(f"VM tests failed: {'; '.join(failed)}; see {WORK}/results/")


def choose(boot_name, wanted):
    """Which of the wanted tests this boot is for."""
    return [test for test in wanted if test.startswith("pressure") == (boot_name == "small")]


def build_tests():
    """The test binary, built."""
    command = [os.environ.get("CARGO", "cargo"), "test", "--release", "--locked", "--test", "vm", "--no-run"]
    built = subprocess.run([*command, "--message-format=json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "vm":
            return message["executable"]
    sys.exit("cargo built no test binary named vm")


def boot(kernel, memory, results, command, limit_s):
    """Runs the guest's script in a VM; says how it ended."""
    disk = WORK / "disk.img"
    disk.unlink(missing_ok=True)
    with open(disk, "wb") as file:
        file.truncate(int(DISK.removesuffix("G")) << 30)
    image = next(kernel.glob("boot/vmlinuz-*"))
    script = " ".join(str(part) for part in [ROOT / "tests" / "vm" / "guest.sh", results, *command])
    # What the guest writes needs to survive the guest only as long as the test does: unsafe is as good, and faster.
    drive = f"-drive file={disk},if=virtio,format=raw,cache=unsafe"
    vng = [VENV / "vng", "--run", image, "--user", "root", "--memory", memory, "--cpus", "2", "--force-9p"]
    vng += [f"--rwdir={results}", f"--qemu-opts={drive}", "--append=panic=5 oops=panic", f"--exec={script}"]
    if not os.environ.get("NBD_MIRROR_VM_KVM"):
        vng.append("--disable-kvm")
    environment = {**os.environ, "PATH": f"{VENV}:{os.environ['PATH']}"}
    machine = subprocess.Popen(vng, stdin=subprocess.DEVNULL, env=environment, cwd=WORK, start_new_session=True)
    try:
        machine.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"still ran after {limit_s} s"
    finally:
        try:
            os.killpg(machine.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        machine.wait()
        disk.unlink(missing_ok=True)
    outcome = results / "outcome"
    if not outcome.exists():
        return "the guest ended without a word"
    status = outcome.read_text().strip()
    return "all passed" if status == "0" else f"failed ({status})"


if __name__ == "__main__":
    main()
