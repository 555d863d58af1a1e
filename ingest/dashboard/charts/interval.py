"""Confidence intervals as pictures, one below the other on the same scale, with a line at zero."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from markupsafe import Markup

from ingest.dashboard import formats
from ingest.dashboard.charts import scales, svg
from ingest.dashboard.charts.scales import PERCENT, Unit
from ingest.dashboard.formats import Number, finite


class Range(NamedTuple):
    """What all intervals of a table are drawn in; zero is in it."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """In per cent of the width."""
        return svg.portion(value - self.low, self.high - self.low)


def common_range(ends: Iterable[Number]) -> Range:
    """From the lowest to the highest of the ends that are finite, with zero, and some room at both sides."""
    known = [scales.drawable(value) for end in ends if (value := finite(end)) is not None]
    low, high = min(0.0, 0.0, *known), max(0.0, 0.0, *known)
    room = (high - low) * 0.06 or 1.0
    return Range(low - room, high + room)


def interval(
    low: Number, high: Number, point: Number, within: Range, *, rising_is_good: bool = True, unit: Unit = PERCENT
) -> Markup:
    """From `low` to `high`, and the estimate; an end that is not finite, or beyond the range, is left open.

    The class says whether zero is outside of it, and if so, whether that is good: `good`, `bad` or `unsure`.
    """
    start, end, middle = (_place(value, within) for value in (low, high, point))
    if start is None and end is None and middle is None:
        return Markup(f'<span class="interval-none">{formats.NOTHING}</span>')
    zero = svg.number(within.place(0))
    said = f"{unit.exact(point)}, between {unit.exact(low)} and {unit.exact(high)}"
    left, right = (svg.number(place) for place in (start or 0.0, 100.0 if end is None else end))
    caps = "".join(_upright("cap", place, 7, 17) for place in (start, end) if place is not None)
    dot = "" if middle is None else f'<circle cx="{svg.number(middle)}%" cy="12" r="4"/>'
    return Markup(
        f'<svg class="interval {_verdict(low, high, rising_is_good)}" role="img" aria-label="{svg.text(said)}"'
        f' width="100%" height="24"><line class="zero" x1="{zero}%" x2="{zero}%" y1="0" y2="24"/>'
        f'<line class="between" x1="{left}%" x2="{right}%" y1="12" y2="12"/>{caps}{dot}</svg>'
    )


def _upright(kind: str, place: float, top: int, bottom: int) -> str:
    x = svg.number(place)
    return f'<line class="{kind}" x1="{x}%" x2="{x}%" y1="{top}" y2="{bottom}"/>'


def _place(value: Number, within: Range) -> float | None:
    known = finite(value)
    if known is None or not within.low <= scales.drawable(known) <= within.high:
        return None
    return within.place(scales.drawable(known))


def _verdict(low: Number, high: Number, rising_is_good: bool) -> str:
    start, end = finite(low), finite(high)
    if start is not None and start > 0:
        return "good" if rising_is_good else "bad"
    if end is not None and end < 0:
        return "bad" if rising_is_good else "good"
    return "unsure"
