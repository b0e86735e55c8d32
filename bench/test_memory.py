"""Tests of the part on memory: its floor, its goals, its label, and what it says without room."""

import tempfile
import unittest
from pathlib import Path

import goals
import on_memory
import pingpong
import report
from jobs import WRITE_1, WRITE_32
from measure import Sample, measure_job
from on_memory import LOGGED, MAPPED, MIRROR, NBDKIT, ON_MEMORY, PING_PONG, WRITTEN
from results import Results
from run import choose_systems, parse_options
from service import Service

ABOUT = {"date": "2030-01-02", "rounds": 1, "seconds": 8, "size_mib": 1024, "machine": "2 × a CPU", "versions": {}}
LINE = '{"requests":100,"runtime_s":2.0,"iops":512.0,"mean_us":40.5,"p50_us":38.0,"p99_us":99.0}\n'


def results(**rates) -> Results:
    """Of the job at depth 1 and at depth 32, a round each."""
    made = Results(ABOUT)
    for job in (WRITE_1, WRITE_32):
        for system in (WRITTEN, MAPPED, PING_PONG, NBDKIT, MIRROR):
            if (rate := rates.get(system.name.split()[0].replace("-", "_"))) and job in system.jobs:
                made.add(Sample(system.name, job.name, 1, rate, rate / 256, 1, 2, 100, 8, None, 0.0))
    return made


class PingPong(unittest.TestCase):
    def test_its_line_is_a_result(self):
        found = pingpong.parse(LINE)
        self.assertEqual((found.requests, found.iops, found.mib_s, found.p50_us), (100, 512.0, 2.0, 38.0))

    def test_it_is_measured_in_the_place_of_fio(self):
        class Resting:
            def flush(self):
                pass

        asked = []
        service = Service([], client=lambda seconds: asked.append(seconds) or pingpong.parse(LINE))
        sample = measure_job(PING_PONG, service, WRITE_1, Resting(), 1, 3)
        self.assertEqual((asked, sample.iops, sample.cpu_us), ([3], 512.0, None))


class Part(unittest.TestCase):
    def test_depth_1_may_take_1_3_times_the_bare_messages(self):
        for rate, reached in ((770, True), (765, False)):
            verdict = goals.judge(results(nbd_mirror=rate, ping_pong=1000), ON_MEMORY.goals, ())[0]
            self.assertEqual((verdict.bar, verdict.reached), ("0.77 × ping-pong", reached))

    def test_its_summary_says_what_it_stands_on(self):
        markdown = report.to_markdown(results(nbd_mirror=1), ON_MEMORY)
        self.assertTrue(markdown.startswith("**On memory**"))
        self.assertIn("survives nothing", markdown)
        self.assertIn("nbd-mirror, journals mapped", markdown)

    def test_a_complete_run_has_each_job_of_each_system(self):
        self.assertEqual(ON_MEMORY.samples(rounds=3), 3 * (6 * 3 + 1))

    def test_it_is_part_of_a_run_unless_something_is_picked(self):
        def parts(*line):
            return [part.mark for part in parse_options(list(line)).parts]

        self.assertEqual(parts(), ["results", "memory"])
        self.assertEqual(parts("--no-memory"), ["results"])
        self.assertEqual(parts("--jobs", "write-4k-1"), ["results"])
        self.assertEqual(parts("--resync-only"), [])
        picked = parse_options(["--memory-only", "--only", "nbd-mirror, "])
        self.assertEqual((picked.parts, picked.resync), ([ON_MEMORY], False))
        self.assertEqual(choose_systems(picked, ON_MEMORY), [MAPPED, LOGGED])


class Room(unittest.TestCase):
    def test_a_folder_that_is_not_in_memory_is_refused(self):
        self.assertIn("--memory-dir", on_memory.unfit(Path("/proc"), 1 << 20))
        with tempfile.TemporaryDirectory() as folder:
            self.assertIn("--memory-dir", on_memory.unfit(Path(folder) / "none", 1 << 20))

    def test_available_memory_is_what_the_kernel_says(self):
        self.assertEqual(on_memory.available_bytes("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), 2 << 20)
        with self.assertRaises(ValueError):
            on_memory.available_bytes("MemTotal: 9 kB\n")


if __name__ == "__main__":
    unittest.main()
