"""The goals, as data, and how a run is held against them."""

from dataclasses import dataclass
from statistics import median

import jobs
import systems
from jobs import Job
from results import Results, Spread
from service import System

# "No CPU" when idle: less than 0.1 % of one. A polling loop uses all of it, a 1 ms timer some 1 %.
IDLE_LIMIT_US_PER_S = 1000


@dataclass(frozen=True)
class Bar:
    """What a goal is measured against: `factor` times the best of the peers, of which a `share`th counts."""

    factor: float
    peers: tuple[System, ...]
    share: int = 1

    def title(self) -> str:
        """For the table."""
        peer = " or ".join(peer.name for peer in self.peers)
        if len(self.peers) > 1:
            peer = f"the better of {peer}"
        return f"{round(self.factor, 2)} × {peer}" + (f" / {self.share}" if self.share > 1 else "")


@dataclass(frozen=True)
class Goal:
    """nbd-mirror's result in a job, at least this and if possible that. metric: "iops" (more is better) or "cpu_us"."""

    job: Job
    system: System
    least: tuple[Bar, ...]
    aim: tuple[Bar, ...] = ()
    metric: str = "iops"

    def title(self) -> str:
        """For the table."""
        what = "CPU a request, " if self.metric == "cpu_us" else ""
        return what + self.job.title


GOALS = (
    Goal(
        jobs.WRITE_1,
        systems.ALWAYS,
        least=(Bar(1.4, (systems.MIRROR_DURABLE,)),),
        aim=(Bar(0.8, (systems.BOTH_DURABLE,)),),
    ),
    Goal(
        jobs.WRITE_1_FSYNC,
        systems.ALWAYS,
        least=(Bar(1.4, (systems.MIRROR, systems.MIRROR_DURABLE)),),
        aim=(Bar(0.8, (systems.NBDKIT,)),),
    ),
    Goal(
        jobs.WRITE_32,
        systems.ALWAYS,
        least=(Bar(1.0, (systems.NBDKIT_DURABLE,)), Bar(2.1, (systems.MIRROR_DURABLE,))),
        aim=(Bar(1.0, (systems.QEMU_NBD_DURABLE,)),),
    ),
    Goal(jobs.WRITE_32_FSYNC, systems.FLUSH, least=(Bar(1.0, (systems.NBDKIT,)),)),
    Goal(
        jobs.WRITE_1M,
        systems.FLUSH,
        least=(Bar(1.2, (systems.MIRROR, systems.QUORUM)),),
        aim=(Bar(0.9, (systems.RAW,), share=4),),
    ),
    Goal(jobs.READ_32, systems.ALWAYS, least=(Bar(1.0, (systems.QEMU_NBD,)),)),
    Goal(jobs.MIXED_16, systems.ALWAYS, least=(Bar(1.0, (systems.MIRROR_DURABLE,)),)),
    Goal(
        jobs.WRITE_32,
        systems.ALWAYS,
        metric="cpu_us",
        least=(Bar(0.45, (systems.MIRROR_DURABLE,)),),
        aim=(Bar(1.0, (systems.QEMU_NBD_DURABLE,)),),
    ),
)


@dataclass(frozen=True)
class Verdict:
    """One bar held against a run. `ratio` is None where the run did not measure both sides."""

    goal: str
    system: str
    kind: str
    bar: str
    ratio: Spread | None
    reached: bool | None


def judge(results: Results, goals: tuple[Goal, ...], idle: tuple[System, ...]) -> list[Verdict]:
    """A verdict for each bar of each goal, and for those that have to be idle at rest."""
    verdicts = []
    for goal in goals:
        for kind, bars in (("at least", goal.least), ("aim", goal.aim)):
            verdicts += [judge_bar(results, goal, kind, bar) for bar in bars]
    return verdicts + [judge_idle(results, system) for system in idle]


def judge_bar(results: Results, goal: Goal, kind: str, bar: Bar) -> Verdict:
    """The ratio is taken within each round, so that a slow minute of the machine slows both sides of it."""
    less_is_better = goal.metric == "cpu_us"
    pick = min if less_is_better else max
    ours = results.by_round(goal.system.name, goal.job.name, goal.metric)
    theirs = [results.by_round(peer.name, goal.job.name, goal.metric) for peer in bar.peers]
    ratios = [
        ours[number] * bar.share / pick(peer[number] for peer in theirs)
        for number in sorted(ours)
        if all(number in peer for peer in theirs)
    ]
    ratio, reached = None, None
    if ratios:
        ratio = Spread.of(ratios)
        reached = ratio.median <= bar.factor if less_is_better else ratio.median >= bar.factor
    if less_is_better:
        kind = {"at least": "at most", "aim": "aim at most"}[kind]
    return Verdict(goal.title(), goal.system.name, kind, bar.title(), ratio, reached)


def judge_idle(results: Results, system: System) -> Verdict:
    """No ratio but CPU time itself: µs a second."""
    found = [idle.cpu_us_per_s for idle in results.idles if idle.system == system.name]
    spread = Spread.of(found) if found else None
    reached = median(found) < IDLE_LIMIT_US_PER_S if found else None
    bar = f"{IDLE_LIMIT_US_PER_S} µs of CPU a second"
    return Verdict("idle", system.name, "less than", bar, spread, reached)
