"""The results as Markdown and JSON, and the summary in docs/performance.md."""

import json
from dataclasses import asdict
from pathlib import Path

import goals
from jobs import Job
from part import Part
from results import Results, Spread


def to_json(results: Results, part: Part) -> str:
    """All samples, with the verdicts."""
    verdicts = [asdict(verdict) for verdict in goals.judge(results, part.goals, part.idle)]
    return json.dumps({**results.as_dict(), "goals": verdicts}, indent=2, ensure_ascii=False) + "\n"


def to_markdown(results: Results, part: Part) -> str:
    """The whole summary: what ran, the goals, one table a job, the idle CPU."""
    parts = [part.note] if part.note else []
    parts += [describe(results), goal_table(results, part)]
    parts += [job_table(results, part, job) for job in part.jobs if any(s.job == job.name for s in results.samples)]
    if results.idles:
        parts.append(idle_table(results))
    if results.failures:
        parts.append("Failed, and so missing from the tables:\n\n" + "\n".join(f"- {f}" for f in results.failures))
    return "\n\n".join(parts) + "\n"


def describe(results: Results) -> str:
    """When, on what and with which versions."""
    about = results.about
    programs = ", ".join(about["versions"].values())
    return (
        f"Measured on {about['date']}: {about['rounds']} round(s), {about['seconds']} s a job, "
        f"{about['size_mib']} MiB files.\n\nMachine: {about['machine']}.\n\nPrograms: {programs}."
    )


def goal_table(results: Results, part: Part) -> str:
    """Each goal with its ratio (the median of the rounds' ratios) and whether it is reached."""
    rows = []
    for verdict in goals.judge(results, part.goals, part.idle):
        ratio = "" if verdict.ratio is None else show(verdict.ratio, 0 if verdict.goal == "idle" else 2)
        word = {None: "not measured", True: "reached", False: "**not reached**"}[verdict.reached]
        rows.append([verdict.goal, verdict.system, f"{verdict.kind} {verdict.bar}", ratio, word])
    return "### Goals\n\n" + table(["job", "system", "goal", "measured ratio (min–max)", ""], "lllrl", rows)


def job_table(results: Results, part: Part, job: Job) -> str:
    """One job: all systems that did it."""
    metric = "mib_s" if job.unit == "MiB/s" else "iops"
    rows = []
    for system in part.systems:
        rate = results.spread(system.name, job.name, metric)
        if rate is None:
            continue
        median = {
            name: results.spread(system.name, job.name, name) for name in ("p50_us", "p99_us", "cpu_us", "drain_s")
        }
        cpu = "–" if median["cpu_us"] is None else show(median["cpu_us"], 1)
        rows.append(
            [
                system.name,
                system.group,
                show(rate, 0),
                f"{median['p50_us'].median:,.0f}",
                f"{median['p99_us'].median:,.0f}",
                cpu,
                f"{median['drain_s'].median:.1f}",
            ]
        )
    head = ["system", "", f"{job.unit} (min–max)", "p50 µs", "p99 µs", "server CPU µs a request", "drain s"]
    return f"### {job.title}\n\n" + table(head, "llrrrrr", rows)


def idle_table(results: Results) -> str:
    """What the daemons use while nobody asks them for anything."""
    rows = []
    for name in dict.fromkeys(idle.system for idle in results.idles):
        idles = [idle for idle in results.idles if idle.system == name]
        cpu = Spread.of([idle.cpu_us_per_s for idle in idles])
        wakeups = Spread.of([idle.wakeups_per_s for idle in idles])
        rows.append([name, show(cpu, 0), show(wakeups, 1)])
    head = ["system", "CPU µs a second (min–max)", "wake-ups a second (min–max)"]
    return "### Idle\n\n" + table(head, "lrr", rows)


def show(spread: Spread, digits: int) -> str:
    """Median and range; a single round has no range."""
    if spread.least == spread.greatest:
        return f"{spread.median:,.{digits}f}"
    return f"{spread.median:,.{digits}f} ({spread.least:,.{digits}f}–{spread.greatest:,.{digits}f})"


def table(head: list[str], align: str, rows: list[list[str]]) -> str:
    """A Markdown table that is also readable as plain text; align: one of l and r a column."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * (width - 1) + ":" if way == "r" else "-" * width for way, width in zip(align, widths)]
    lines = []
    for row in [head, rule, *rows]:
        cells = (
            cell.rjust(width) if way == "r" else cell.ljust(width) for cell, way, width in zip(row, align, widths)
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replace_summary(page: str, summary: str, begin: str, end: str) -> str:
    """The page with a new summary between its marks."""
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs one line {begin} and, after it, one line {end}")
    before, after = page[: page.index(begin)], page[page.index(end) :]
    return f"{before}{begin}\n\n{summary.strip()}\n\n{after}"


def update_page(page: Path, results: Results, part: Part) -> None:
    """Writes the summary into the page."""
    page.write_text(replace_summary(page.read_text(), to_markdown(results, part), *part.marks))
