"""Tests of what reads numbers: fio's JSON, /proc, mounts; and of servers that are started and stopped."""

import json
import os
import tempfile
import time
import unittest
from pathlib import Path

import fio
import machine
import processes
from jobs import MIXED_16, WRITE_1_FSYNC
from service import Crew


def fio_job(way: str, ios: int, iops: float, p99_ns: int = 9000, error: int = 0) -> dict:
    """One job of fio's output, as far as it is read; fio leaves percentiles out where nothing was done."""
    job = {"error": error}
    for name in ("read", "write"):
        job[name] = {"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "runtime": 0, "lat_ns": {}}
    job[way] = {
        "total_ios": ios,
        "iops": iops,
        "bw_bytes": int(iops * 4096),
        "runtime": 2000,
        "lat_ns": {"mean": 6000.0, "percentile": {"50.000000": 5000, "99.000000": p99_ns}},
    }
    return job


def fio_output(*jobs: dict) -> str:
    return "fio: connected to NBD server\n" + json.dumps({"fio version": "fio-3.33", "jobs": list(jobs)}) + "\n"


class Fio(unittest.TestCase):
    def test_reads_and_writes_count_together(self):
        job = fio_job("write", 3000, 1500.0)
        job["read"] = fio_job("read", 7000, 3500.0)["read"]
        result = fio.parse(fio_output(job))
        self.assertEqual(result.requests, 10000)
        self.assertEqual(result.iops, 5000.0)
        self.assertAlmostEqual(result.mib_s, 5000 * 4096 / (1 << 20), places=3)

    def test_two_files_at_once_are_one_mirrored_write_each(self):
        result = fio.parse(fio_output(fio_job("write", 4000, 2000.0), fio_job("write", 6000, 3000.0, p99_ns=20000)))
        self.assertEqual((result.requests, result.iops, result.p99_us), (5000, 2500.0, 20.0))

    def test_reads_alone_have_their_own_percentiles(self):
        result = fio.parse(fio_output(fio_job("read", 10, 5.0)))
        self.assertEqual((result.mean_us, result.p50_us, result.runtime_s), (6.0, 5.0, 2.0))

    def test_an_error_of_fio_is_told(self):
        with self.assertRaisesRegex(fio.FioFailed, "error 5"):
            fio.parse(fio_output(fio_job("write", 10, 5.0, error=5)))

    def test_no_json_and_no_request_are_failures(self):
        with self.assertRaisesRegex(fio.FioFailed, "no JSON"):
            fio.parse("fio: engine nbd not loadable")
        with self.assertRaisesRegex(fio.FioFailed, "no request"):
            fio.parse(fio_output(fio_job("write", 0, 0.0)))

    def test_the_command_has_the_job_for_all_targets(self):
        line = fio.command(MIXED_16, [["--filename=a"], ["--filename=b"]], 8, 4096, seed=1)
        self.assertLess(line.index("--rwmixread=70"), line.index("--name=target0"))
        self.assertEqual(line[line.index("--name=target1") + 1], "--filename=b")
        self.assertIn("--fsync=1", fio.command(WRITE_1_FSYNC, [[]], 8, 4096, seed=1))

    def test_a_job_of_so_many_bytes_has_no_time(self):
        line = fio.command(WRITE_1_FSYNC, [[]], 8, 4096, seed=1, io_bytes=1024)
        self.assertIn("--io_size=1024", line)
        self.assertFalse([option for option in line if option.startswith(("--time", "--runtime"))])


class Proc(unittest.TestCase):
    def test_cpu_ticks_of_a_name_with_brackets_and_spaces(self):
        before = "42 (a) b (c) S " + " ".join(str(field) for field in range(4, 14))
        self.assertEqual(processes.parse_cpu_ticks(f"{before} 700 30 1 2 20 0"), 730)

    def test_cpu_ticks_of_this_process(self):
        times = os.times()
        ticks = processes.parse_cpu_ticks(Path("/proc/self/stat").read_text())
        self.assertAlmostEqual(ticks / processes.TICKS_PER_SECOND, times.user + times.system, delta=0.1)

    def test_written_bytes_are_not_cancelled_bytes(self):
        self.assertEqual(processes.parse_written_bytes("wchar: 9\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n"), 4096)
        with self.assertRaises(ValueError):
            processes.parse_written_bytes("wchar: 9\n")

    def test_wakeups_are_voluntary_switches(self):
        status = "nonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t5\n"
        self.assertEqual(processes.parse_wakeups(status), 5)


class Machine(unittest.TestCase):
    MOUNTS = "/dev/a / ext4 rw 0 0\n/dev/b /data xfs rw 0 0\n/dev/c /data2 ext4 rw 0 0\n"

    def test_the_longest_mount_point_wins(self):
        self.assertEqual(machine.find_mount(self.MOUNTS, "/data/x"), ("xfs", "/dev/b"))
        self.assertEqual(machine.find_mount(self.MOUNTS, "/data2"), ("ext4", "/dev/c"))
        self.assertEqual(machine.find_mount(self.MOUNTS, "/database"), ("ext4", "/dev/a"))


class Servers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_all_are_stopped_when_the_turn_fails(self):
        with self.assertRaises(KeyboardInterrupt), Crew(self.folder) as crew:
            servers = [crew.start(name, ["sleep", "600"]) for name in ("one", "two")]
            raise KeyboardInterrupt
        for server in servers:
            self.assertIsNotNone(server.process.returncode)
            self.assertFalse(Path(f"/proc/{server.process.pid}").exists())

    def test_one_that_ends_by_itself_is_told_with_its_log(self):
        command = ["python3", "-c", "import sys; sys.exit('no such device')"]
        with self.assertRaisesRegex(processes.ServerFailed, "(?s)early ended.*code 1.*no such device"):
            with Crew(self.folder) as crew:
                crew.start("early", command, self.folder / "socket")

    def test_cpu_time_grows_with_work(self):
        with Crew(self.folder) as crew:
            server = crew.start("busy", ["python3", "-c", "while True: pass"])
            end = time.monotonic() + 30
            while server.cpu_s() < 0.1 and time.monotonic() < end:
                time.sleep(0.05)
            self.assertGreaterEqual(server.cpu_s(), 0.1)
            self.assertGreater(server.thread_run_ns(), 50_000_000)


if __name__ == "__main__":
    unittest.main()
