"""Tests of what is made of the numbers: medians, goals, the page, the plot."""

import unittest
import xml.etree.ElementTree as xml

import goals
import jobs
import plot
import report
import systems
from goals import Bar, Goal
from measure import Idle, Sample
from on_memory import ON_MEMORY
from part import ON_DISK
from results import Results, Spread
from run import PAGE

ABOUT = {
    "date": "2030-01-02",
    "rounds": 3,
    "seconds": 8,
    "size_mib": 2048,
    "machine": "2 × a CPU",
    "versions": {"fio": "fio-3.33"},
}


def results(*rows) -> Results:
    """Of (system, job, rates of the rounds[, CPU of the rounds])."""
    made = Results(ABOUT)
    for system, job, rates, *cpu in rows:
        for number, rate in enumerate(rates, start=1):
            cpu_us = cpu[0][number - 1] if cpu else None
            made.add(Sample(system.name, job.name, number, rate, rate / 256, 1, 2, 100, 8, cpu_us, 0.0))
    return made


class Goals(unittest.TestCase):
    LEAST = Goal(jobs.WRITE_1, systems.ALWAYS, least=(Bar(1.4, (systems.MIRROR_DURABLE,)),))

    def judge(self, goal, bar, *rows):
        return goals.judge_bar(results(*rows), goal, "at least", bar)

    def test_ratios_are_taken_within_rounds(self):
        # The machine ran at half its speed in the second round: the ratio must not see it.
        ours = (systems.ALWAYS, jobs.WRITE_1, [300, 150, 320])
        theirs = (systems.MIRROR_DURABLE, jobs.WRITE_1, [200, 100, 200])
        verdict = self.judge(self.LEAST, self.LEAST.least[0], ours, theirs)
        self.assertEqual(verdict.ratio, Spread(1.5, 1.5, 1.6))
        self.assertTrue(verdict.reached)

    def test_a_ratio_below_the_factor_is_not_reached(self):
        ours = (systems.ALWAYS, jobs.WRITE_1, [139, 139, 200])
        theirs = (systems.MIRROR_DURABLE, jobs.WRITE_1, [100, 100, 100])
        self.assertFalse(self.judge(self.LEAST, self.LEAST.least[0], ours, theirs).reached)

    def test_a_round_without_the_peer_does_not_count(self):
        ours = (systems.ALWAYS, jobs.WRITE_1, [200, 9999])
        theirs = (systems.MIRROR_DURABLE, jobs.WRITE_1, [100])
        self.assertEqual(self.judge(self.LEAST, self.LEAST.least[0], ours, theirs).ratio, Spread(2.0, 2.0, 2.0))

    def test_nothing_measured_is_no_verdict(self):
        verdict = self.judge(self.LEAST, self.LEAST.least[0])
        self.assertIsNone(verdict.ratio)
        self.assertIsNone(verdict.reached)

    def test_the_faster_of_two_peers_counts(self):
        bar = Bar(1.2, (systems.MIRROR, systems.QUORUM))
        rows = [
            (systems.FLUSH, jobs.WRITE_1M, [120]),
            (systems.MIRROR, jobs.WRITE_1M, [60]),
            (systems.QUORUM, jobs.WRITE_1M, [100]),
        ]
        goal = Goal(jobs.WRITE_1M, systems.FLUSH, least=(bar,))
        self.assertEqual(self.judge(goal, bar, *rows).ratio.median, 1.2)

    def test_a_share_of_the_raw_rate(self):
        bar = Bar(0.9, (systems.RAW,), share=4)
        goal = Goal(jobs.WRITE_1M, systems.FLUSH, least=(), aim=(bar,))
        rows = [(systems.FLUSH, jobs.WRITE_1M, [200]), (systems.RAW, jobs.WRITE_1M, [1000])]
        verdict = self.judge(goal, bar, *rows)
        self.assertEqual((verdict.ratio.median, verdict.reached), (0.8, False))

    def test_less_cpu_is_better(self):
        bar = Bar(0.45, (systems.MIRROR_DURABLE,))
        goal = Goal(jobs.WRITE_32, systems.ALWAYS, least=(bar,), metric="cpu_us")
        rows = [
            (systems.ALWAYS, jobs.WRITE_32, [1], [20.0]),
            (systems.MIRROR_DURABLE, jobs.WRITE_32, [9], [50.0]),
        ]
        verdict = self.judge(goal, bar, *rows)
        self.assertEqual((verdict.ratio.median, verdict.reached), (0.4, True))

    def test_idle_is_a_limit(self):
        made = Results(ABOUT)
        made.add(Idle(systems.ALWAYS.name, 1, 1200.0, 50.0))
        self.assertFalse(goals.judge_idle(made, systems.ALWAYS).reached)
        self.assertIsNone(goals.judge_idle(made, systems.FLUSH).reached)

    def test_each_goal_is_about_a_job_that_its_systems_do(self):
        for part in (ON_DISK, ON_MEMORY):
            for goal in part.goals:
                self.assertIn(goal.job, part.jobs)
                self.assertIn(goal.system, part.systems)
                self.assertIn(goal.job, goal.system.jobs)
                for bar in (*goal.least, *goal.aim):
                    for peer in bar.peers:
                        self.assertIn(peer, part.systems)
                        self.assertIn(goal.job, peer.jobs, f"{goal.title()}: {peer.name}")


class Report(unittest.TestCase):
    def test_only_what_is_between_the_marks_is_replaced(self):
        begin, end = ON_MEMORY.marks
        page = f"# Speed\n\n{begin}\nold\n{end}\n\nend\n"
        new = report.replace_summary(page, "new\n", begin, end)
        self.assertEqual(new, f"# Speed\n\n{begin}\n\nnew\n\n{end}\n\nend\n")
        self.assertEqual(report.replace_summary(new, "new\n", begin, end), new)

    def test_a_page_without_its_marks_is_refused(self):
        begin, end = ON_DISK.marks
        for page in ("", begin, f"{end}{begin}", f"{begin}{begin}{end}"):
            with self.assertRaises(ValueError):
                report.replace_summary(page, "new", begin, end)

    def test_the_page_has_a_block_for_each_part(self):
        page = PAGE.read_text()
        for part in (ON_DISK, ON_MEMORY):
            report.replace_summary(page, "new", *part.marks)

    def test_the_table_shows_median_and_range(self):
        markdown = report.to_markdown(results((systems.RAW, jobs.WRITE_1, [1000, 3000, 2500])), ON_DISK)
        self.assertIn("2,500 (1,000–3,000)", markdown)
        self.assertIn("not measured", markdown)

    def test_a_failure_is_in_the_summary(self):
        made = results((systems.RAW, jobs.WRITE_1, [1]))
        made.failures.append("nbdkit wb, round 2: ended by itself")
        self.assertIn("- nbdkit wb, round 2: ended by itself", report.to_markdown(made, ON_DISK))


class Plot(unittest.TestCase):
    def test_each_result_is_a_bar_and_the_file_is_xml(self):
        svg = plot.to_svg(
            results(
                (systems.ALWAYS, jobs.WRITE_32, [30000, 40000], [20.0, 21.0]),
                (systems.RAW, jobs.WRITE_32, [50000, 50000]),
            ),
            ON_DISK,
        )
        root = xml.fromstring(svg)
        names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        self.assertEqual(names.count("nbd-mirror always"), 2)  # The rate, and the CPU a request.
        self.assertEqual(names.count("raw file"), 1)
        self.assertIn("35,000", names)


if __name__ == "__main__":
    unittest.main()
