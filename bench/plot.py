"""The results as an SVG: one panel a job, one bar a system, with the range of the rounds as a whisker."""

from dataclasses import dataclass
from html import escape

from jobs import WRITE_32, Job
from part import Part
from results import Results, Spread

COLOURS = {"nbd-mirror": "#c2410c", "mirrored": "#2563eb", "unreplicated": "#64748b", "floor": "#cbd5e1"}
LEGEND = {
    "nbd-mirror": "nbd-mirror",
    "mirrored": "other mirrors",
    "unreplicated": "not replicated",
    "floor": "the floor",
}
COLUMNS = 2
PANEL_WIDTH, LABEL_WIDTH, VALUE_WIDTH = 560, 170, 70
BAR, GAP, TITLE, MARGIN, TOP = 14, 5, 30, 24, 64


@dataclass(frozen=True)
class Panel:
    """Title and bars: (name, colour, value)."""

    title: str
    bars: list[tuple[str, str, Spread]]

    def height(self) -> int:
        """In SVG units."""
        return TITLE + len(self.bars) * (BAR + GAP)


def to_svg(results: Results, part: Part) -> str:
    """The whole picture. Each panel has its own linear scale from zero."""
    panels = [panel(results, part, job, "mib_s" if job.unit == "MiB/s" else "iops", job.unit) for job in part.jobs]
    panels.append(panel(results, part, WRITE_32, "cpu_us", "µs of server CPU a request (less is better)"))
    panels = [panel for panel in panels if panel.bars]
    drawn, y = [], TOP
    for first in range(0, len(panels), COLUMNS):
        row = panels[first : first + COLUMNS]
        for column, item in enumerate(row):
            drawn += draw(item, MARGIN + column * (PANEL_WIDTH + MARGIN), y)
        y += max(item.height() for item in row) + MARGIN
    width = MARGIN + COLUMNS * (PANEL_WIDTH + MARGIN)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        text(MARGIN, 24, f"nbd-mirror and its peers, {results.about['date']}", "font-size='16' font-weight='bold'"),
        *legend(),
    ]
    return "\n".join([*head, *drawn, "</svg>"]) + "\n"


def panel(results: Results, part: Part, job: Job, metric: str, unit: str) -> Panel:
    """The systems that were measured in this job."""
    bars = []
    for system in part.systems:
        value = results.spread(system.name, job.name, metric)
        if value is not None:
            kind = "nbd-mirror" if system.name.startswith("nbd-mirror") else system.group
            bars.append((system.name, COLOURS[kind], value))
    return Panel(f"{job.title}: {unit}", bars)


def draw(item: Panel, x: int, y: int) -> list[str]:
    """One panel with its upper left corner at x, y."""
    top_value = max(value.greatest for _, _, value in item.bars) or 1
    scale = (PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH) / top_value
    left = x + LABEL_WIDTH
    parts = [text(x, y + 14, item.title, "font-weight='bold'")]
    for number, (name, colour, value) in enumerate(item.bars):
        top = y + TITLE + number * (BAR + GAP)
        middle = top + BAR / 2
        low, high = left + value.least * scale, left + value.greatest * scale
        parts.append(text(left - 6, top + 11, name, "text-anchor='end'"))
        parts.append(
            f'<rect x="{left}" y="{top}" width="{value.median * scale:.1f}" height="{BAR}" fill="{colour}"/>'
        )
        if high - low >= 1:
            parts.append(
                f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" '
                'stroke="#111827" fill="none"/>'
            )
        parts.append(text(max(high, left + value.median * scale) + 6, top + 11, f"{value.median:,.{digits(value)}f}"))
    return parts


def digits(value: Spread) -> int:
    """Small numbers are shown with a decimal."""
    return 0 if value.median >= 100 else 1


def legend() -> list[str]:
    """What the colours mean."""
    parts = []
    for number, (kind, title) in enumerate(LEGEND.items()):
        x = MARGIN + number * 150
        parts.append(f'<rect x="{x}" y="38" width="12" height="12" fill="{COLOURS[kind]}"/>')
        parts.append(text(x + 18, 48, title))
    parts.append(text(MARGIN + len(LEGEND) * 150, 48, "bar: median, whisker: least to greatest round"))
    return parts


def text(x: float, y: float, content: str, attributes: str = "") -> str:
    """A text element."""
    return f"<text x='{x:.1f}' y='{y:.1f}'{' ' if attributes else ''}{attributes}>{escape(content)}</text>"
