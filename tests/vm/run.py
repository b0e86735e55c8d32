#!/usr/bin/python3
"""Boots each kernel that was fetched, runs the tests of tests/vm inside, and judges by what they left behind.

`make test-vm` calls this. Arguments, if any, are names of tests, as for cargo test.
"""

import json
import os
import random
import re
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
NVDIMM_BYTES = 1 << 30

# Each is booted for each kernel: its name, its memory, which tests it runs, and after how many seconds it hangs.
BOOTS = [
    ("roomy", "1G", ["--skip", "pressure::", "--skip", "nvdimm::"], 1200),
    ("small", "512M", ["pressure::"], 900),
]
# With the newest kernel only: a machine with an NVDIMM is killed in the middle of the first tests, and boots again with
# the same NVDIMM and the same disk for the second ones.
KILLED = ("nvdimm", "1G", "nvdimm::before_the_kill", "nvdimm::after_the_kill", 600)
# Answered writes that the tests count before the kill, at least and at most.
ANSWERED = (1500, 3000)
# Of a test that failed, at the end, where it is found.
SHOWN_LINES = 80


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
    chosen = [path.parent for path in kernels if only in path.parent.name]
    failed = {}
    for kernel in chosen:
        for name, memory, selection, limit_s in BOOTS:
            if wanted:
                selection = choose(name, wanted)
                if not selection:
                    continue
            results = fresh_results(kernel, name)
            disk = sparse_file("disk.img", int(DISK.removesuffix("G")) << 30)
            outcome = boot(kernel, f"{name}: {memory} of memory", memory, results, [tests, program, *selection], limit_s, disk)
            disk.unlink()
            if outcome != "all passed":
                failed[f"{kernel.name}, {name}"] = results
    if chosen and (not wanted or choose(KILLED[0], wanted)):
        results = fresh_results(chosen[-1], KILLED[0])
        if not killed_and_booted_again(chosen[-1], [tests, program], results):
            failed[f"{chosen[-1].name}, {KILLED[0]}"] = results
    if failed:
        for results in failed.values():
            print(f"\n---- what failed, of {results}/output:\n{what_failed(results)}", flush=True)
        sys.exit(f"VM tests failed: {'; '.join(failed)}; see {WORK}/results/")


def what_failed(results):
    """The output of the tests that failed in a boot, or of the last one if the guest didn't get to its end."""
    path = results / "output"
    output = path.read_text(errors="replace") if path.exists() else ""
    tests = re.split(r"^(?=test \S+ \.\.\. )", output, flags=re.MULTILINE)
    ended = [test for test in tests if re.search(r"^(test \S+ \.\.\. )?FAILED$", test, flags=re.MULTILINE)]
    return "\n".join("\n".join(test.splitlines()[:SHOWN_LINES]) for test in ended or tests[-1:])


def killed_and_booted_again(kernel, command, results):
    """Whether the machine was killed in the middle of the first tests, and the second ones passed in the next boot."""
    name, memory, before, after, limit_s = KILLED
    # The host's page cache outlives the emulator: what the guest wrote before the kill is there, flushed or not.
    disk = sparse_file("disk.img", int(DISK.removesuffix("G")) << 30)
    nvdimm = sparse_file("nvdimm.img", NVDIMM_BYTES)
    enough = random.randrange(*ANSWERED)

    def answered():
        return sum(path.stat().st_size for path in results.glob("answered-*"))

    outcome = boot(
        kernel, f"{name}, killed after {enough} answered writes", memory, results, [*command, before], limit_s, disk, nvdimm,
        kill_when=lambda: answered() >= enough,
    )
    if outcome == "killed":
        outcome = boot(kernel, f"{name}, once more", memory, results, [*command, after], limit_s, disk, nvdimm)
    disk.unlink()
    nvdimm.unlink()
    return outcome == "all passed"


def fresh_results(kernel, name):
    """An empty folder for what a boot leaves behind."""
    results = WORK / "results" / kernel.name / name
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    return results


def sparse_file(name, size_bytes):
    """A new file of zeros."""
    path = WORK / name
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return path


def choose(boot_name, wanted):
    """Which of the wanted tests this boot is for."""
    special = {"pressure": "small", "nvdimm": KILLED[0]}
    return [test for test in wanted if special.get(test.split("::")[0], "roomy") == boot_name]


def build_tests():
    """The test binary, built."""
    command = [os.environ.get("CARGO", "cargo"), "test", "--release", "--locked", "--test", "vm", "--no-run"]
    built = subprocess.run([*command, "--message-format=json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "vm":
            return message["executable"]
    sys.exit("cargo built no test binary named vm")


def boot(kernel, title, memory, results, command, limit_s, disk, nvdimm=None, kill_when=None):
    """Runs the guest's script in a VM, and says how it ended."""
    print(f"---- {kernel.name}, {title}", flush=True)
    start = time.monotonic()
    outcome = run(vng(kernel, memory, results, command, disk, nvdimm), results, limit_s, kill_when)
    print(f"---- {kernel.name}, {title}: {outcome}, after {time.monotonic() - start:.0f} s", flush=True)
    return outcome


def vng(kernel, memory, results, command, disk, nvdimm):
    """The command that boots a machine."""
    image = next(kernel.glob("boot/vmlinuz-*"))
    script = " ".join(str(part) for part in [ROOT / "tests" / "vm" / "guest.sh", results, *command])
    # What the guest writes needs to survive the guest only as long as the test does: unsafe is as good, and faster.
    options = f"-drive file={disk},if=virtio,format=raw,cache=unsafe"
    vng = [VENV / "vng", "--run", image, "--user", "root", "--memory", memory, "--cpus", "2", "--force-9p"]
    if nvdimm:
        options += f" -machine nvdimm=on -m {memory},slots=2,maxmem=4G"
        options += f" -object memory-backend-file,id=nv,share=on,mem-path={nvdimm},size={NVDIMM_BYTES}"
        options += " -device nvdimm,memdev=nv"
        vng.append("--disable-microvm")
    vng += [f"--rwdir={results}", f"--qemu-opts={options}", "--append=panic=5 oops=panic", f"--exec={script}"]
    if not os.environ.get("NBD_MIRROR_VM_KVM"):
        vng.append("--disable-kvm")
    return vng


def run(vng, results, limit_s, kill_when):
    """Runs a machine to its end, or until it is time to kill it."""
    environment = {**os.environ, "PATH": f"{VENV}:{os.environ['PATH']}"}
    machine = subprocess.Popen(vng, stdin=subprocess.DEVNULL, env=environment, cwd=WORK, start_new_session=True)
    deadline = time.monotonic() + limit_s
    try:
        while machine.poll() is None:
            if kill_when and kill_when():
                return "killed"
            if time.monotonic() > deadline:
                return f"still ran after {limit_s} s"
            time.sleep(0.02)
    finally:
        try:
            os.killpg(machine.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        machine.wait()
    outcome = results / "outcome"
    if not outcome.exists():
        return "the guest ended without a word"
    status = outcome.read_text().strip()
    return "all passed" if status == "0" else f"failed ({status})"


if __name__ == "__main__":
    main()
