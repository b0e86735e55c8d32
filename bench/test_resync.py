"""Tests of the resync part: the relay, the admin socket, ratios, goals, tables."""

import json
import os
import socket
import tempfile
import threading
import time
import unittest
from pathlib import Path

import admin
import pair
import resync_report
import slow_disk
from processes import ServerFailed
from relay import Relay
from resync import ALL, FIRST_SYNC, IMAGE, LONG, MIB, SHORT, STAGED, Latency, Rate, ResyncResults, Sent, Setting
from results import Spread
from run import parse_options

ABOUT = {
    "date": "2030-01-02",
    "rounds": 3,
    "resync_mib": 1536,
    "machine": "2 × a CPU",
    "versions": {"fio": "fio-3.33"},
}


def rate(number: int, kind: str, setting: Setting, done_s: float, writes: int) -> Rate:
    """100 MiB, whole after half the time, with one and a half CPUs, on a disk that takes 1000 MiB/s."""
    return Rate(number, kind, setting.name, 100 * MIB, done_s / 2, done_s, writes * 100 * MIB, 1000, done_s * 1.5)


def results(*found) -> ResyncResults:
    made = ResyncResults(ABOUT)
    for one in found:
        made.add(one)
    return made


def verdict(made: ResyncResults, goal: str) -> resync_report.Verdict:
    (found,) = [one for one in resync_report.judge(made) if one.goal.startswith(goal)]
    return found


class Ratios(unittest.TestCase):
    def test_a_share_is_of_the_same_rounds_disk(self):
        one = rate(1, STAGED, ALL, done_s=0.5, writes=4)
        self.assertEqual((one.mib_s, one.writes, one.share, one.busy, one.cores), (200, 4, 0.2, 0.8, 1.5))

    def test_latencies_are_held_against_those_in_step(self):
        one = Latency(1, "randwrite 4k, depth 1", 300, 900, 200, 300, 50)
        self.assertEqual((one.mean_ratio, one.p99_ratio), (1.5, 3.0))


class Goals(unittest.TestCase):
    def test_the_median_of_the_rounds_counts(self):
        made = results(*(rate(n, FIRST_SYNC, IMAGE, s, 1) for n, s in enumerate([0.2, 0.125, 0.1], start=1)))
        found = verdict(made, "first sync without clients, on the disk the image: share")
        self.assertEqual((found.measured, found.reached), (Spread(0.8, 0.5, 1.0), True))

    def test_on_one_disk_all_writes_count(self):
        found = verdict(results(rate(1, STAGED, ALL, 0.5, 4)), "staged resync without clients, on the disk everything")
        self.assertEqual((found.measured.median, found.reached), (0.8, True))

    def test_more_than_the_factor_is_not_reached(self):
        made = results(Latency(1, "randwrite 4k, depth 8", 201, 1, 100, 1, 50))
        self.assertFalse(verdict(made, "randwrite 4k, depth 8").reached)

    def test_each_case_is_a_goal_of_its_own(self):
        made = results(Sent(1, SHORT, "4k, depth 8", 100, 109), Sent(1, LONG, "64k, depth 4", 100, 120))
        self.assertTrue(verdict(made, "sent by changed, short cut, 4k, depth 8").reached)
        self.assertFalse(verdict(made, "sent by changed, long cut, 64k, depth 4").reached)
        self.assertIsNone(verdict(made, "sent by changed, short cut, 64k, depth 4").reached)


class Tables(unittest.TestCase):
    MADE = results(
        rate(1, FIRST_SYNC, ALL, 0.5, 3),
        Latency(1, "randwrite 4k, depth 1", 300, 900, 200, 300, 50),
        Sent(1, SHORT, "4k, depth 8", 32 * MIB, 36 * MIB),
    )

    def test_what_was_measured_is_shown(self):
        markdown = resync_report.to_markdown(self.MADE)
        for line in ("| first sync | everything  |   200 |", "|       1.50 |      3.00 |", "|          32 |            1.12 |"):
            self.assertIn(line, markdown)

    def test_what_was_not_measured_has_no_table(self):
        markdown = resync_report.to_markdown(results())
        self.assertIn("not measured", markdown)
        self.assertNotIn("Writes during a resync", markdown)

    def test_the_block_has_marks_of_its_own(self):
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "page.md"
            page.write_text(f"a\n{resync_report.BEGIN}\nold\n{resync_report.END}\n<!-- results -->\nz\n")
            resync_report.update_page(page, self.MADE)
            text = page.read_text()
        self.assertTrue(text.startswith(f"a\n{resync_report.BEGIN}\n\nMeasured on 2030-01-02"))
        self.assertTrue(text.endswith(f"{resync_report.END}\n<!-- results -->\nz\n"))

    def test_json_has_all_of_it(self):
        self.assertEqual(json.loads(resync_report.to_json(self.MADE))["rates"][0]["kind"], FIRST_SYNC)


class Options(unittest.TestCase):
    def test_whoever_picks_systems_or_jobs_gets_these_only(self):
        for arguments, parts in (
            ([], (True, True)),
            (["--resync-only"], (True, False)),
            (["--no-resync"], (False, True)),
            (["--jobs", "write-4k-1"], (False, True)),
            (["--peers-only"], (False, True)),
        ):
            options = parse_options(arguments)
            self.assertEqual((bool(options.resync), bool(options.parts)), parts, arguments)


class Wire(unittest.TestCase):
    def setUp(self):
        self.far = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.far.close)

    def test_only_what_goes_to_the_target_is_counted(self):
        with Relay(self.far.getsockname()) as relay, socket.create_connection(("127.0.0.1", relay.port)) as near:
            served, _ = self.far.accept()
            with served:
                near.sendall(b"x" * 1000)
                self.assertEqual(len(read(served, 1000)), 1000)
                served.sendall(b"y" * 50)
                self.assertEqual(len(read(near, 50)), 50)
            self.assertEqual(relay.sent_bytes, 1000)

    def test_a_cut_ends_connections_and_lets_none_through_until_it_is_healed(self):
        with Relay(self.far.getsockname()) as relay:
            with socket.create_connection(("127.0.0.1", relay.port)) as near:
                served, _ = self.far.accept()
                with served:
                    relay.cut()
                    self.assertEqual((near.recv(1), served.recv(1)), (b"", b""))
            with socket.create_connection(("127.0.0.1", relay.port)) as near:
                self.assertEqual(near.recv(1), b"")
            relay.heal()
            with socket.create_connection(("127.0.0.1", relay.port)) as near:
                near.sendall(b"z")
                end = time.monotonic() + 30
                while relay.sent_bytes == 0 and time.monotonic() < end:
                    time.sleep(0.01)
            self.assertEqual(relay.sent_bytes, 1)


class Admin(unittest.TestCase):
    def answer(self, reply: bytes) -> Path:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "admin"
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(path))
        listener.listen()

        def serve():
            stream, _ = listener.accept()
            with stream:
                stream.recv(4096)
                stream.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        return path

    def test_of_a_destination_the_only_source_is_told(self):
        data = {"role": "destination", "sources": [{"phase": "direct"}]}
        self.assertEqual(admin.status(self.answer(json.dumps({"ok": True, "data": data}).encode() + b"\n"))["phase"], "direct")

    def test_a_refusal_and_silence_are_failures(self):
        with self.assertRaisesRegex(ServerFailed, "not now"):
            admin.status(self.answer(b'{"ok":false,"error":"not now"}\n'))
        with self.assertRaisesRegex(ServerFailed, "hung up"):
            admin.status(self.answer(b""))
        with self.assertRaisesRegex(ServerFailed, "nobody answers"):
            admin.status(Path("/nowhere/admin"))


class SlowDisk(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_where_there_are_no_groups_nothing_is_limited(self):
        self.assertIsNone(slow_disk.make_group(self.folder / "none", "8:0", 1))
        # Folders that don't get the kernel's files are removed again.
        (self.folder / "blkio").mkdir()
        self.assertIsNone(slow_disk.make_group(self.folder, "8:0", 1))
        self.assertEqual([path.name for path in self.folder.rglob("*")], ["blkio"])

    def test_a_partition_is_on_its_disk(self):
        number = self.folder.stat().st_dev
        disk = self.folder / "disk"
        (disk / "part").mkdir(parents=True)
        (disk / "dev").write_text("8:0\n")
        (disk / "part" / "dev").write_text("8:1\n")
        devices = self.folder / "devices"
        devices.mkdir()
        (devices / f"{os.major(number)}:{os.minor(number)}").symlink_to(disk / "part")
        self.assertEqual(slow_disk.whole_disk(self.folder, devices), "8:1")
        (disk / "part" / "partition").touch()
        self.assertEqual(slow_disk.whole_disk(self.folder, devices), "8:0")
        self.assertIsNone(slow_disk.whole_disk(self.folder, self.folder))


class Files(unittest.TestCase):
    def test_files_that_differ_are_noticed(self):
        with tempfile.TemporaryDirectory() as folder:
            first, second = Path(folder) / "first", Path(folder) / "second"
            first.write_bytes(b"x" * 5000)
            second.write_bytes(b"x" * 5000 + b"y" * 9)
            pair.check_same(first, second)  # An image may be longer than its volume.
            second.write_bytes(b"x" * 4999 + b"y")
            with self.assertRaises(ServerFailed):
                pair.check_same(first, second)

    def test_no_folder_in_memory_is_no_failure(self):
        self.assertIsNone(pair.memory_folder(Path("/nowhere")))


def read(stream: socket.socket, count: int) -> bytes:
    """So many bytes."""
    found = b""
    while len(found) < count and (piece := stream.recv(count - len(found))):
        found += piece
    return found


if __name__ == "__main__":
    unittest.main()
