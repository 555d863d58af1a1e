"""Bars behind the rows of a ranked table, and lines small enough to stand in one."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from ingest.dashboard.charts import scales, svg
from ingest.dashboard.formats import Number, finite


def bars(values: Sequence[Number]) -> list[Markup]:
    """For each row the bar to put behind its label (in an element of class `bar-cell`), the largest the full width.

    They say nothing that the numbers do not, and are hidden from those who hear the table.
    """
    known = [scales.drawable(finite(value) or 0.0) for value in values]
    largest = max(known, default=0.0)
    return [bar(svg.portion(value, largest)) for value in known]


def bar(width: float, back: float = 0.0) -> Markup:
    """One bar, `width` per cent wide, before a paler one of `back` per cent."""
    paler = f'<rect class="back" width="{svg.number(back)}%" height="100%" rx="3"/>' if back > width else ""
    return Markup(
        '<svg class="chart-bar" aria-hidden="true" width="100%" height="100%">'
        f'{paler}<rect width="{svg.number(width)}%" height="100%" rx="3"/></svg>'
    )


def sparkline(values: Sequence[Number], label: str = "") -> Markup:
    """A line without axes, from zero or the lowest value; hidden from those who hear the page if it has no label."""
    known = [finite(value) for value in values]
    drawn = [scales.drawable(value) for value in known if value is not None]
    low, high = min(0.0, *drawn, 0.0), max(0.0, *drawn, 0.0)
    heights = [None if value is None else _height(scales.drawable(value), low, high) for value in known]
    named = f'role="img" aria-label="{svg.text(label)}"' if label else 'aria-hidden="true"'
    return Markup(
        f'<svg class="sparkline" {named} viewBox="0 0 100 24" preserveAspectRatio="none" width="100" height="24">'
        f'<path d="{_path(heights)}"/></svg>'
    )


def _height(value: float, low: float, high: float) -> float:
    return 23 - svg.portion(value - low, high - low) * 0.22


def _path(heights: Sequence[float | None]) -> str:
    """A value without a neighbour is a short stroke."""
    step = 100 / max(len(heights) - 1, 1)
    path, before = [], None
    for index, height in enumerate(heights):
        if height is not None:
            path.append(f"{'M' if before is None else 'L'}{svg.number(index * step)} {svg.number(height)}")
            if before is None:
                path.append("h0")
        before = height
    return "".join(path)
