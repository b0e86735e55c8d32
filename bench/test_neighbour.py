"""Tests of what is measured beside a source that floods."""

import unittest

from fio import FioResult
from neighbour import CASES, Found, to_markdown

ABOUT = {"date": "2030-01-02", "rounds": 3, "seconds": 4, "machine": "2 × a CPU"}


def taken(p50_us: float, p99_us: float) -> FioResult:
    return FioResult(100, 2.0, 50.0, 0.2, p50_us, p50_us, p99_us)


class Table(unittest.TestCase):
    def test_factors_are_those_of_each_round(self):
        without, logged = CASES
        found = [Found(logged, taken(100, 400), taken(p50, 200), 500) for p50 in (50, 300, 150)]
        row = to_markdown([*found, Found(without, taken(100, 100), taken(700, 100), 400)], ABOUT).splitlines()[-1]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        self.assertEqual(cells[0], logged)
        self.assertEqual(cells[2:5], ["150 (50–300)", "1.5 (0.5–3.0)", "0.5 (0.5–0.5)"])


if __name__ == "__main__":
    unittest.main()
