"""Values over time: a line over an area, and the period before as a second, quieter line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, tzinfo
from itertools import pairwise
from typing import Final, NamedTuple

from markupsafe import Markup, escape

from ingest.dashboard import formats
from ingest.dashboard.charts import scales, svg
from ingest.dashboard.charts.scales import COUNT, Scale, Unit
from ingest.dashboard.charts.tables import chart_table
from ingest.dashboard.formats import Number, finite

# Shapes are drawn on a grid of one unit from point to point, and this height, which is stretched to the size of the
# chart; that keeps their numbers short. Texts are placed by per cent, and are not stretched.
_HEIGHT: Final = 1000


class Point(NamedTuple):
    """The value of one bucket."""

    start: datetime
    value: Number
    partial: bool = False
    """Whether only a part of the bucket lies in the range, or in the past."""


class _Line(NamedTuple):
    """A chart, before it is drawn."""

    points: Sequence[Point]
    names: list[str]
    values: list[float | None]
    before: list[float | None]
    """As long as `values`, or empty."""
    scale: Scale
    unit: Unit


def line(
    points: Sequence[Point],
    before: Sequence[Number] = (),
    *,
    title: str,
    interval: str,
    zone: tzinfo,
    unit: Unit = COUNT,
) -> Markup:
    """The chart, in a <div class="chart">.

    `before` has the values of the period before, compared bucket by bucket. Values that are None or not finite leave
    a gap. Only the first and the last point can be partial. Each point has a <title>, and `data-label`, `data-value`
    and `data-before` with what it says.
    """
    drawn = _line(points, before, interval, zone, unit)
    if all(value is None for value in (*drawn.values, *drawn.before)):
        return Markup('<div class="chart"><p class="chart-empty">Nothing in this range</p></div>')
    label = svg.text(gist(points, title, interval, zone, unit))
    return Markup(
        f'<div class="chart"><svg class="chart-line" role="img" aria-label="{label}" width="100%" height="220">'
        f"{_grid(drawn)}{_shapes(drawn)}{_labels(drawn, interval, zone)}</svg></div>"
    )


def line_table(
    points: Sequence[Point],
    before: Sequence[Number] = (),
    *,
    title: str,
    interval: str,
    zone: tzinfo,
    unit: Unit = COUNT,
) -> Markup:
    """The same as `line`, as a table."""
    drawn = _line(points, before, interval, zone, unit)
    columns = [interval.capitalize(), title, *(["Before"] if drawn.before else [])]
    rows = [
        [name, *map(unit.exact, values)]
        for name, *values in zip(drawn.names, drawn.values, *([drawn.before] if drawn.before else []), strict=True)
    ]
    return chart_table(f"{title} by {interval}", columns, rows)


def legend(now: str, before: str = "", partial: bool = False) -> Markup:
    """What the lines are: the period, the one before, and whether a bucket is incomplete."""
    kinds = [("now", now), *([("before", before)] if before else []), *([("part", "incomplete")] if partial else [])]
    keys = "".join(
        '<li><svg class="chart-line" aria-hidden="true" width="22" height="8">'
        f'<path class="{kind}" d="M1 4h20"/></svg>{svg.text(name)}</li>'
        for kind, name in kinds
    )
    return Markup(f'<ul class="chart-legend">{keys}</ul>')


def gist(points: Sequence[Point], title: str, interval: str, zone: tzinfo, unit: Unit = COUNT) -> str:
    """What the chart shows, in a sentence: Visitors by day, 3 to 30 November: between 12 and 340, 220 on the last."""
    if not points:
        return f"{title} by {interval}: nothing"
    known = [value for point in points if (value := finite(point.value)) is not None]
    between = f"between {unit.exact(min(known))} and {unit.exact(max(known))}" if known else "nothing"
    last = f"{unit.exact(points[-1].value)} {'on' if interval == 'day' else 'in'}"
    so_far = " so far" if points[-1].partial else ""
    period = formats.span(points[0].start, points[-1].start, interval, zone)
    return f"{title} by {interval}, {period}: {between}, {last} the last {interval}{so_far}"


def _line(points: Sequence[Point], before: Sequence[Number], interval: str, zone: tzinfo, unit: Unit) -> _Line:
    values = [finite(point.value) for point in points]
    others = [finite(value) for value in before[: len(points)]]
    others += [None] * (len(points) - len(others)) if others else []
    years = {formats.local(point.start, zone).year for point in points}
    names = [
        formats.bucket(point.start, interval, zone, len(years) > 1) + (" (incomplete)" if point.partial else "")
        for point in points
    ]
    known = [value for value in (*values, *others) if value is not None]
    return _Line(points, names, values, others, scales.scale(known, unit), unit)


def _grid(drawn: _Line) -> str:
    lines = []
    for tick in drawn.scale.ticks:
        y = svg.number(100 - drawn.scale.height(tick) * 100)
        kind = ' class="zero"' if tick == 0 else ""
        lines.append(f'<line{kind} x2="100%" y1="{y}%" y2="{y}%"/>')
    return f'<g class="grid">{"".join(lines)}</g>'


def _labels(drawn: _Line, interval: str, zone: tzinfo) -> str:
    texts = []
    for tick in drawn.scale.ticks:
        y = svg.number(100 - drawn.scale.height(tick) * 100)
        texts.append(f'<text class="y" x="-8" y="{y}%" dy="4">{svg.text(drawn.unit.axis(tick))}</text>')
    for index, widths in scales.labelled([point.start for point in drawn.points], interval, zone).items():
        x, kind = svg.number(_x(index, len(drawn.points))), " ".join([f"x{width}" for width in widths])
        name = svg.text(formats.tick(drawn.points[index].start, interval, zone))
        texts.append(f'<text class="x {kind}" x="{x}%" y="100%" dy="20">{name}</text>')
    return f"<g>{''.join(texts)}</g>"


def _x(index: int, amount: int) -> float:
    """In per cent."""
    return index / (amount - 1) * 100 if amount > 1 else 50.0


# Shapes.


def _shapes(drawn: _Line) -> str:
    heights, before = _heights(drawn.values, drawn.scale), _heights(drawn.before, drawn.scale)
    now = list(_runs(heights))
    zero = _y(0, drawn.scale)
    whole, part = _by_completeness(now, drawn.points)
    paths = (
        ("before", "".join(map(_path, _runs(before)))),
        ("area", "".join(f"{_path(run)}V{zero}H{run[0][0]}Z" for run in now if len(run) > 1)),
        ("now", "".join(map(_path, whole))),
        ("part", "".join(map(_path, part))),
    )
    shapes = "".join(f'<path class="{name}" d="{path}"/>' for name, path in paths if path)
    alone = {run[0][0] for run in now if len(run) == 1}
    return (
        f'<svg viewBox="0 0 {max(len(drawn.points) - 1, 1)} {_HEIGHT}" preserveAspectRatio="none"'
        f' overflow="visible" fill="none">{shapes}{_points(drawn, heights, alone)}</svg>'
    )


_Run = list[tuple[int, int]]
"""(x, y) of points without a gap between them; x is the index of the point."""


def _heights(values: Sequence[float | None], scale: Scale) -> list[int | None]:
    return [None if value is None else _y(value, scale) for value in values]


def _y(value: float, scale: Scale) -> int:
    return round(_HEIGHT * (1 - scale.height(value)))


def _runs(heights: Sequence[int | None]) -> Iterator[_Run]:
    run: _Run = []
    for index, height in enumerate(heights):
        if height is not None:
            run.append((index, height))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _by_completeness(runs: Sequence[_Run], points: Sequence[Point]) -> tuple[list[_Run], list[_Run]]:
    """The runs between complete buckets, and the segments that lead to, or from, one that is not complete."""
    whole, part = [], []
    for run in runs:
        first, last = (len(run) > 1 and points[run[end][0]].partial for end in (0, -1))
        whole.append(run[first : len(run) - last])
        part += [run[:2]] * first + [run[-2:]] * (last and not (first and len(run) == 2))
    return whole, part


def _path(run: _Run) -> str:
    """From point to point, each relative to the last; a point alone is none, and has its dot."""
    if len(run) < 2:
        return ""
    steps = " ".join([f"1 {after - before}" for (_, before), (_, after) in pairwise(run)])
    return f"M{run[0][0]} {run[0][1]}l{steps}"


# What can be pointed at.


def _points(drawn: _Line, heights: Sequence[int | None], alone: set[int]) -> str:
    last = len(drawn.points) - 1
    found = []
    for index, (said, height) in enumerate(zip(_said(drawn), heights, strict=True)):
        if height is None and not (drawn.before and drawn.before[index] is not None):
            continue
        left, right = (max(index - 0.5, 0), min(index + 0.5, last)) if last else (0, 1)
        partial = drawn.points[index].partial
        kind = "pt part" if partial else "pt alone" if index in alone else "pt"
        area = f'<rect x="{left:g}" width="{right - left:g}" height="{_HEIGHT}"/>'
        dot = "" if height is None else _dot(index if last else 0.5, height, partial)
        found.append(f'<g class="{kind}" {said}{area}{dot}</g>')
    return f'<g class="pts" pointer-events="fill">{"".join(found)}</g>'


def _dot(x: float, y: int, hollow: bool) -> str:
    """A line without length, which its round ends make a dot: no circle stays round when it is stretched."""
    dot = f'd="M{x:g} {y}h0"/>'
    return f'<path class="dot" {dot}<path class="hole" {dot}' if hollow else f'<path class="dot" {dot}'


def _said(drawn: _Line) -> list[str]:
    """What each point says: the rest of its tag, and its <title>."""
    names, now = _escaped(drawn.names), _escaped(map(drawn.unit.exact, drawn.values))
    if not drawn.before:
        return [
            f'data-label="{name}" data-value="{value}"><title>{name}: {value}</title>'
            for name, value in zip(names, now, strict=True)
        ]
    old = _escaped(map(drawn.unit.exact, drawn.before))
    return [
        f'data-label="{name}" data-value="{value}" data-before="{before}">'
        f"<title>{name}: {value}, before: {before}</title>"
        for name, value, before in zip(names, now, old, strict=True)
    ]


def _escaped(texts: Iterable[str]) -> list[str]:
    """All at once, which is many times faster."""
    return str.split(escape("\0".join(texts)), "\0")
