"""The figures of `bench.scale`: what is flat, as a page with a chart, and as JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from statistics import median
from typing import Any, Final, NamedTuple

from bench import dashboard, stats_api
from bench.measure import BatchRound
from bench.rolled import Rolled

STEADY: Final = 0.2
"""Speed and CPU time are flat if they are not worse by more than this share."""
LATENCY_TIMES: Final = 1.5
LATENCY_MS: Final = 5.0
"""A latency is flat if it is at most so many times as long, or longer by less than so many milliseconds, which is
what two runs on one machine differ by."""
SPEED, COST, LATENCY, OTHER = "speed", "cost", "latency", "other"
FLAT, NOT_FLAT = "flat", "**not flat**"


class Stage(NamedTuple):
    """Everything that was measured at one size."""

    events: int
    """In the table when it began."""
    sent: int
    """That its own loads added."""
    table_bytes: int
    """Of analytics.events with its indexes, in the end."""
    version: str
    """Of the server."""
    rounds: Sequence[BatchRound]
    rolled: Rolled
    asked: dashboard.Results
    statistics: Sequence[stats_api.Timing]
    others_cores: float
    """In use by other processes, on average."""


class Figure(NamedTuple):
    """A measured value. `kind` decides when it is flat; `why` says why it may not be."""

    section: str
    what: str
    value: float
    kind: str
    text: str
    why: str = ""


INGESTION: Final = "Ingestion"
ROLLUP: Final = "Rollup"
DASHBOARD: Final = "Dashboard, p95"
STATISTICS: Final = "/v1/stats, p95"
DIRECTLY: Final = "The overview's questions, asked of the events themselves"
_READS_EVENTS: Final = "counted from events, of which there are more"


def figures(stage: Stage) -> Iterator[Figure]:
    """All of one stage, in the order of the page."""
    yield from _of_ingestion(stage)
    yield from _of_rollup(stage.rolled)
    for panel in (*stage.asked.panels, stage.asked.first_view):
        words = panel.what if panel.status == 200 else f"{panel.what} ({panel.status})"
        yield _latency(DASHBOARD, words, panel.p95_ms, panel.from_events)
    for timing in stage.statistics:
        yield _latency(STATISTICS, timing.what, timing.p95_ms, not timing.from_aggregates)
    for what, milliseconds in stage.asked.directly.items():
        yield _latency(DIRECTLY, what, milliseconds, True)


def _of_ingestion(stage: Stage) -> Iterator[Figure]:
    stored = median(each.service.stored_per_second for each in stage.rounds)
    copied = median(each.copy_per_second for each in stage.rounds)
    ratio = median(each.ratio for each in stage.rounds)
    cpu = median(each.service.cpu_us.collector + each.service.cpu_us.postgres for each in stage.rounds)
    yield Figure(INGESTION, "events/s stored, batches of 50, with rollups", stored, SPEED, f"{stored:,.0f}")
    yield Figure(INGESTION, "rows/s of one raw COPY into an empty copy", copied, OTHER, f"{copied:,.0f}")
    yield Figure(INGESTION, "ratio of the two", ratio, SPEED, f"{ratio:.2f}")
    yield Figure(INGESTION, "CPU of collector and Postgres, µs an event", cpu, COST, f"{cpu:.1f}")
    size = stage.table_bytes / (stage.events + stage.sent)
    yield Figure(INGESTION, "bytes an event, with its indexes", size, OTHER, f"{size:,.0f}")


def _of_rollup(rolled: Rolled) -> Iterator[Figure]:
    rate = f"at {rolled.per_second:,.0f} events/s"
    yield Figure(ROLLUP, f"CPU {rate}, µs an event", rolled.rollup_us, COST, f"{rolled.rollup_us:.1f}")
    yield _latency(ROLLUP, f"lag from storage to rollup {rate}, p99", 1000 * rolled.lag_p99, False)


def _latency(section: str, what: str, milliseconds: float, from_events: bool) -> Figure:
    text = f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:,.0f} ms"
    return Figure(section, what, milliseconds, LATENCY, text, _READS_EVENTS if from_events else "")


def verdict(kind: str, first: float, last: float) -> str:
    """Whether the last value is as good as the first; empty where none is wanted."""
    if kind == OTHER:
        return ""
    if kind == SPEED:
        is_flat = last >= first * (1 - STEADY)
    elif kind == COST:
        is_flat = last <= first * (1 + STEADY)
    else:
        is_flat = last <= first * LATENCY_TIMES or last - first < LATENCY_MS
    return FLAT if is_flat else NOT_FLAT


class Row(NamedTuple):
    """A figure at all sizes; None where it was not measured."""

    what: str
    figures: Sequence[Figure | None]

    @property
    def measured(self) -> list[Figure]:
        return [figure for figure in self.figures if figure is not None]

    @property
    def ratio(self) -> float | None:
        """Of the largest size to the smallest; None with a single size, or where one of the two is missing or 0."""
        first, last = self.figures[0], self.figures[-1]
        if len(self.figures) < 2 or first is None or last is None or not first.value:
            return None
        return last.value / first.value

    @property
    def verdict(self) -> str:
        first, last = self.figures[0], self.figures[-1]
        if self.ratio is None or first is None or last is None:
            return ""
        said = verdict(first.kind, first.value, last.value)
        why = last.why or first.why
        return f"{said}: {why}" if said == NOT_FLAT and why else said


def rows(stages: Sequence[Stage]) -> dict[str, list[Row]]:
    """By section, in the order in which they come."""
    found = [{(figure.section, figure.what): figure for figure in figures(stage)} for stage in stages]
    keys = dict.fromkeys(key for each in found for key in each)
    sections: dict[str, list[Row]] = {}
    for section, what in keys:
        of_sizes = [each.get((section, what)) for each in found]
        sections.setdefault(section, []).append(Row(what, of_sizes))
    return sections


def as_markdown(where: Mapping[str, Any], stages: Sequence[Stage], day: date, command: str, picture: str) -> str:
    """The page; `picture` is the chart's address."""
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    others = max(stage.others_cores for stage in stages)
    sent = ", ".join(f"{stage.sent:,}" for stage in stages)
    head = [
        "# Scale with what is stored",
        f"Generated on {day:%Y-%m-%d} by `{command}`, on {where['cores']} cores of {where['cpu']}, "
        f"{where['memory_gb']} GB, {where['system']}; Python {where['python']}, PostgreSQL {where['postgres']}, "
        f"{packages}; load by {where['load']}. Load, service and Postgres share this machine; other processes used "
        f"up to {others:.2f} cores.",
        "One database that grows, with events over thirty days up to today; the loads at each size then add some "
        f"({sent}). [bench/README.md](../README.md) explains the figures.",
        f"Flat means, at the largest size against the smallest: speed and CPU time at most {STEADY:.0%} worse; "
        f"latency at most {LATENCY_TIMES:g} times as long, or less than {LATENCY_MS:g} ms longer.",
        f"![Each figure at each size, as a multiple of that at the smallest]({picture})",
    ]
    sizes = [f"{stage.events:,}" for stage in stages]
    for section, of_section in rows(stages).items():
        table = [["", *sizes, "ratio", ""], ["---", *["---:"] * (len(sizes) + 1), "---"]]
        table += [_cells(row) for row in of_section]
        head += [f"## {section}", "\n".join(f"| {' | '.join(cells)} |" for cells in table)]
    return "\n\n".join(head) + "\n"


def _cells(row: Row) -> list[str]:
    texts = ["" if figure is None else figure.text for figure in row.figures]
    return [row.what, *texts, "" if row.ratio is None else f"{row.ratio:.2f}", row.verdict]


def as_json(where: Mapping[str, Any], stages: Sequence[Stage]) -> dict[str, Any]:
    """All figures by section; milliseconds, microseconds and bytes as the texts say."""
    return {
        "machine": where,
        "sizes": [stage.events for stage in stages],
        "others_cores": [stage.others_cores for stage in stages],
        "figures": {
            section: [
                {
                    "what": row.what,
                    "kind": row.measured[0].kind,
                    "values": [None if figure is None else figure.value for figure in row.figures],
                    "ratio": row.ratio,
                    "verdict": row.verdict.replace("*", ""),
                }
                for row in of_section
            ]
            for section, of_section in rows(stages).items()
        },
    }


# The chart.

WIDTH, HEIGHT = 760, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 300, 20, 40
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#555}.grid{stroke:#8884;stroke-width:1}"
    "polyline{fill:none;stroke-width:2}"
)
_COLOURS: Final = {
    INGESTION: "#2563eb",
    ROLLUP: "#9333ea",
    DASHBOARD: "#16a34a",
    STATISTICS: "#d97706",
    DIRECTLY: "#dc2626",
}


def chart(stages: Sequence[Stage]) -> str:
    """An SVG: the median of each section's figures as multiples of those at the smallest size, on logarithmic axes. A
    speed counts as its inverse, so that up is always worse."""
    lines = {section: points for section, of_section in rows(stages).items() if (points := _multiples(of_section))}
    sizes = [stage.events for stage in stages]
    highest = max(10.0, *(value for points in lines.values() for value in points))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f"<style>{_STYLE}</style>",
    ]
    parts += _axes(sizes, highest)
    taken: list[float] = []
    for section, points in sorted(lines.items(), key=lambda each: -each[1][-1]):
        places = [(_x(size, sizes), _y(value, highest)) for size, value in zip(sizes, points, strict=True)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour = _COLOURS[section]
        parts.append(f'<polyline points="{drawn}" stroke="{colour}"/>')
        # Below the line before, if they end close together.
        at = max(places[-1][1], taken[-1] + 16) if taken else places[-1][1]
        taken.append(at)
        label = f"{section.split(',')[0]} × {points[-1]:.1f}"
        parts.append(f'<text x="{WIDTH - _RIGHT + 8}" y="{at + 4:.1f}" style="fill:{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _multiples(of_section: Sequence[Row]) -> list[float]:
    """At each size, the median over the rows that were measured at all sizes, and have a verdict."""
    measured = []
    for row in of_section:
        first = row.figures[0]
        if first is None or first.kind == OTHER or len(row.measured) < len(row.figures):
            continue
        if all(figure.value > 0 for figure in row.measured):
            values = [figure.value / first.value for figure in row.measured]
            measured.append([1 / value for value in values] if first.kind == SPEED else values)
    return [median(at_size) for at_size in zip(*measured, strict=True)]


def _axes(sizes: Sequence[int], highest: float) -> Iterator[str]:
    for power in range(math.ceil(math.log10(highest)) + 1):
        if 10**power <= highest:
            y = _y(10**power, highest)
            yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">× {10**power:,}</text>'
    for size in sizes:
        x = _x(size, sizes)
        yield f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 20}" text-anchor="middle">{size:,}</text>'


def _x(size: int, sizes: Sequence[int]) -> float:
    span = math.log(sizes[-1] / sizes[0]) or 1.0
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * math.log(size / sizes[0]) / span


def _y(value: float, highest: float) -> float:
    """Half the smallest is the bottom, as some get better."""
    lowest = 0.5
    share = math.log(max(value, lowest) / lowest) / math.log(highest / lowest)
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share
