"""What the resync part has measured: its goals, its tables, its block in docs/performance.md."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from report import replace_summary, show, table
from resync import FOREGROUND, OUTAGES, SETTINGS, ResyncResults
from results import Spread

BEGIN = "<!-- resync -->"
END = "<!-- /resync -->"
LEAST_SHARE = 0.8
# The factor by which the throttle lets a client's write take longer in the mean.
FACTOR = 2.0
MOST_SENT = 1.1


@dataclass(frozen=True)
class Verdict:
    """One goal. `measured` is None where nothing was measured."""

    goal: str
    bar: str
    measured: Spread | None
    reached: bool | None


def judge(results: ResyncResults) -> list[Verdict]:
    """All goals."""
    verdicts = []
    for setting in SETTINGS:
        for kind in setting.kinds:
            found = [rate.busy for rate in results.rates if (rate.kind, rate.on_disk) == (kind, setting.name)]
            goal = f"{kind} without clients, on the disk {setting.name}: share × writes"
            verdicts.append(hold(goal, LEAST_SHARE, found, at_least=True))
    for job in FOREGROUND:
        found = [latency.mean_ratio for latency in results.latencies if latency.job == job.title]
        verdicts.append(hold(f"{job.title}: mean during a resync by mean in step", FACTOR, found, at_least=False))
    for outages in OUTAGES:
        for case, *_ in outages.cases:
            found = [sent.ratio for sent in results.sents if (sent.way, sent.case) == (outages.way, case)]
            verdicts.append(hold(f"sent by changed, {outages.way}, {case}", MOST_SENT, found, at_least=False))
    return verdicts


def hold(goal: str, bar: float, found: list[float], at_least: bool) -> Verdict:
    """The median counts."""
    words = f"at least {bar}" if at_least else f"at most {bar}"
    if not found:
        return Verdict(goal, words, None, None)
    measured = Spread.of(found)
    reached = measured.median >= bar if at_least else measured.median <= bar
    return Verdict(goal, words, measured, reached)


def to_json(results: ResyncResults) -> str:
    """All that was measured, with the verdicts."""
    verdicts = [asdict(verdict) for verdict in judge(results)]
    return json.dumps({**results.as_dict(), "goals": verdicts}, indent=2, ensure_ascii=False) + "\n"


def to_markdown(results: ResyncResults) -> str:
    """The whole block."""
    about = results.about
    parts = [
        f"Measured on {about['date']}: {about['rounds']} round(s), files of {about['resync_mib']} MiB.\n\n"
        f"Machine: {about['machine']}.\n\nPrograms: {', '.join(about['versions'].values())}.",
        goal_table(results),
        rate_table(results),
        latency_table(results),
        sent_table(results),
    ]
    if results.failures:
        parts.append("Failed, and so missing from the tables:\n\n" + "\n".join(f"- {f}" for f in results.failures))
    return "\n\n".join(part for part in parts if part) + "\n"


def goal_table(results: ResyncResults) -> str:
    """Each goal, and whether it is reached."""
    rows = []
    for verdict in judge(results):
        measured = "" if verdict.measured is None else show(verdict.measured, 2)
        word = {None: "not measured", True: "reached", False: "**not reached**"}[verdict.reached]
        rows.append([verdict.goal, verdict.bar, measured, word])
    return "#### Goals of the resync\n\n" + table(["", "goal", "measured (min–max)", ""], "llrl", rows)


def rate_table(results: ResyncResults) -> str:
    """Rates, and what they are of the disk's."""
    rows = []
    for setting in SETTINGS:
        for kind in setting.kinds:
            rates = [rate for rate in results.rates if (rate.kind, rate.on_disk) == (kind, setting.name)]
            if rates:
                columns = (
                    ([rate.mib_s for rate in rates], 0),
                    ([rate.disk_mib_s for rate in rates], 0),
                    ([rate.share for rate in rates], 2),
                    ([rate.writes for rate in rates], 1),
                    ([rate.busy for rate in rates], 2),
                    ([rate.whole_s / rate.done_s for rate in rates], 2),
                    ([rate.cores for rate in rates], 1),
                )
                rows.append([kind, setting.name, *(show(Spread.of(values), digits) for values, digits in columns)])
    head = ["", "on the disk", "MiB/s", "disk MiB/s", "share", "writes a byte", "share × writes", "whole after", "CPUs"]
    return rows and "#### Resync without clients\n\n" + table(head, "llrrrrrrr", rows)


def latency_table(results: ResyncResults) -> str:
    """What a resync costs clients."""
    rows = []
    for job in FOREGROUND:
        found = [latency for latency in results.latencies if latency.job == job.title]
        if found:
            columns = (
                ([one.mean_ratio for one in found], 2),
                ([one.p99_ratio for one in found], 2),
                ([one.alone_mean_us for one in found], 0),
                ([one.mean_us for one in found], 0),
                ([one.alone_p99_us for one in found], 0),
                ([one.p99_us for one in found], 0),
                ([one.resync_mib_s for one in found], 0),
            )
            rows.append([job.title, *(show(Spread.of(values), digits) for values, digits in columns)])
    head = ["", "mean ratio", "p99 ratio", "mean µs in step", "during", "p99 µs in step", "during", "resync MiB/s"]
    return rows and "#### Writes during a resync\n\n" + table(head, "lrrrrrrr", rows)


def sent_table(results: ResyncResults) -> str:
    """What an outage costs on the wire."""
    rows = []
    for outages in OUTAGES:
        for case, *_ in outages.cases:
            found = [sent for sent in results.sents if (sent.way, sent.case) == (outages.way, case)]
            if found:
                changed = found[0].changed_bytes / (1 << 20)
                ratio = show(Spread.of([sent.ratio for sent in found]), 2)
                rows.append([outages.way, case, f"{changed:.0f}", ratio])
    return rows and "#### Sent after an outage\n\n" + table(["", "writes", "MiB changed", "sent by changed"], "llrr", rows)


def update_page(page: Path, results: ResyncResults) -> None:
    """Writes the block into the page."""
    page.write_text(replace_summary(page.read_text(), to_markdown(results), BEGIN, END))
