"""Axes: what a chart's values are, the round values that get a line, and the buckets that get a label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, tzinfo
from typing import Final, NamedTuple

from ingest.dashboard import formats
from ingest.dashboard.formats import Number

_MOST_LINES: Final = 4
"""Above the lowest."""
_EXTREME: Final = 1e100
"""Sizes are drawn as if they were at most this, and as 0 below its inverse: no arithmetic on them can overflow."""
_ROUND: Final = (1.0, 2.0, 2.5, 5.0)
_ROUND_TIMES: Final = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 3 * 3600, 6 * 3600, 12 * 3600, 86_400,
)  # fmt: skip


class Unit(NamedTuple):
    """What values are: how they are written, and which steps between them are round."""

    exact: Callable[[Number], str]
    """As the values themselves are written."""
    axis: Callable[[Number], str]
    """As a scale is written, in at most 7 characters or so."""
    least: float
    """The smallest step that makes sense."""
    rounds: tuple[float, ...] = ()
    """Steps that are round though they are no 1, 2, 2.5 or 5 times a power of ten."""
    empty: float = 1.0
    """Where a scale ends if all is zero."""


COUNT: Final = Unit(formats.count, formats.short, 1)
NUMBER: Final = Unit(formats.short, formats.short, 0)
PERCENT: Final = Unit(formats.percent, lambda share: formats.percent(share, 0), 0.01)
DURATION: Final = Unit(formats.duration, formats.duration, 1, _ROUND_TIMES, 60)


class Scale(NamedTuple):
    """From a value to its height."""

    low: float
    high: float
    ticks: tuple[float, ...]
    """Round values from `low` to `high`, both among them; 0 is one of them."""

    def height(self, value: float) -> float:
        """From 0 at `low` to 1 at `high`."""
        return (drawable(value) - self.low) / (self.high - self.low)


def drawable(value: float) -> float:
    """A size that can be calculated with, of one that is finite."""
    size = abs(value)
    return value if 1 / _EXTREME < size < _EXTREME else math.copysign(_EXTREME, value) if size > 1 else 0.0


def scale(values: Sequence[float], unit: Unit) -> Scale:
    """A scale from zero that has a place for all values, which are finite, and at most five ticks."""
    high = drawable(max(0.0, *values)) if values else 0.0
    low = drawable(min(0.0, *values)) if values else 0.0
    if low == high:
        high = unit.empty
    step = _step(low, high, unit)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last == 0:  # Rounding can do that only where a float has no more digits.
        last = 1
    return Scale(first * step, last * step, tuple(step * index for index in range(first, last + 1)))


def _step(low: float, high: float, unit: Unit) -> float:
    """The smallest round step of which few enough make up the scale."""
    for step in unit.rounds:
        if _intervals(low, high, step) <= _MOST_LINES:
            return step
    power = math.floor(math.log10((high - low) / _MOST_LINES))
    steps = [factor * 10.0**exponent for exponent in range(power, power + 3) for factor in _ROUND]
    fitting = (step for step in steps if _allowed(step, unit.least) and _intervals(low, high, step) <= _MOST_LINES)
    return next(fitting, unit.least or steps[-1])


def _allowed(step: float, least: float) -> bool:
    return not least or (step >= least and math.isclose(step / least, round(step / least)))


def _intervals(low: float, high: float, step: float) -> int:
    return math.ceil(high / step - 1e-9) - math.floor(low / step + 1e-9)


# Labels of time. How near each other they may be, as a part of the width of the chart: one narrower than 480 pixels,
# one narrower than 900, and a wider one. The style sheet shows those of the width that there is.
GAPS: Final = (0.23, 0.125, 0.068)
_STRIDES: Final = {
    "minute": (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440),
    "hour": (1, 2, 3, 6, 12, 24, 48, 168),
    "day": (1, 2, 7, 14, 28, 56, 112, 364),
    "week": (1, 2, 4, 8, 16, 26, 52),
    "month": (1, 2, 3, 6, 12, 24, 60, 120),
}


def labelled(starts: Sequence[datetime], interval: str, zone: tzinfo) -> dict[int, list[int]]:
    """By index, the buckets that get a label, each with the widths at which it is shown: 1, 2 and 3, as in GAPS.

    They stand at round times (Mondays, even hours), or if that were too few, at even distances from the first.
    """
    places = [_place(formats.local(start, zone), interval) for start in starts]
    found: dict[int, list[int]] = {}
    for width, gap in enumerate(GAPS, 1):
        apart = max(gap * (len(starts) - 1), 1.0)
        chosen = _chosen(places, apart, _STRIDES[interval])
        for index in chosen if len(chosen) >= 3 else _chosen(range(len(starts)), apart, ()):
            found.setdefault(index, []).append(width)
    return found


def _chosen(places: Sequence[int], apart: float, strides: Sequence[int]) -> list[int]:
    """The indices of places that are divisible by the smallest stride that keeps them apart."""
    stride = next((stride for stride in strides if stride >= apart), math.ceil(apart))
    chosen: list[int] = []
    for index, place in enumerate(places):
        # Where clocks change, round hours come too soon, or twice.
        if place % stride == 0 and (not chosen or index - chosen[-1] >= apart):
            chosen.append(index)
    return chosen


def _place(there: datetime, interval: str) -> int:
    """A number that grows by one from bucket to bucket, and is divisible by 7, 12, 24 … where something begins."""
    if interval == "month":
        return there.year * 12 + there.month - 1
    days = there.toordinal() - 1  # The calendar begins on a Monday.
    if interval == "week":
        return days // 7
    if interval == "day":
        return days
    hours = days * 24 + there.hour
    return hours if interval == "hour" else hours * 60 + there.minute
