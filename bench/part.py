"""A part of a run with a table of its own: where it works, who is measured, what is to be reached."""

from dataclasses import dataclass

from goals import GOALS, Goal
from jobs import JOBS, Job
from service import System
from systems import ALWAYS, FLUSH, SYSTEMS


@dataclass(frozen=True)
class Part:
    """`mark`: of its block in docs/performance.md, and of its files unless it is "results".

    `note` is the first paragraph of its summary. `idle`: the systems that have to use no CPU at rest.
    """

    mark: str
    systems: tuple[System, ...]
    jobs: tuple[Job, ...]
    goals: tuple[Goal, ...]
    idle: tuple[System, ...]
    note: str = ""

    @property
    def stem(self) -> str:
        """How the names of its files begin."""
        return "" if self.mark == "results" else f"{self.mark}-"

    @property
    def marks(self) -> tuple[str, str]:
        """The lines around its block on the page."""
        return f"<!-- {self.mark} -->", f"<!-- /{self.mark} -->"

    def samples(self, rounds: int) -> int:
        """How many a complete run has."""
        return rounds * sum(len(set(system.jobs) & set(self.jobs)) for system in self.systems)


ON_DISK = Part("results", SYSTEMS, JOBS, GOALS, idle=(ALWAYS, FLUSH))
