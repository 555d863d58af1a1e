"""The chart of the overview: one number over time, and over the period before."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from ingest.dashboard import counting
from ingest.dashboard.counting import CONVERSION, NOTHING, PAGE_VIEW, Measures
from ingest.dashboard.view import View
from ingest.features.stats import times
from ingest.features.stats.query import Refused

METRICS: Final = ("visitors", "sessions", "page_views", "conversions")
_TYPES: Final = {"page_views": PAGE_VIEW, "conversions": CONVERSION}


class Point(NamedTuple):
    """A bucket. Its value is None if it is not known, as people's without a value of a dimension."""

    start: datetime
    """In UTC; of the first, where the range begins, even if the bucket began before."""
    value: int | None
    partial: bool = False
    """Whether it is cut off by an end of the range, or not over."""


class Series(NamedTuple):
    """Points in order, including zeros, and those of the period before, aligned by index: where months or weeks
    differ, one of the two may have a point more."""

    metric: str
    points: list[Point]
    before: list[Point] | None
    """None: not compared."""
    source: str
    as_of: datetime
    estimated: bool
    at_least: bool
    shifted: bool
    why_no_comparison: str = ""


async def series(
    connection: asyncpg.Connection, view: View, metric: str, dimensions: Sequence[str], now: datetime
) -> Series:
    """One of METRICS by the view's interval. `dimensions`: those that aggregates are kept by.

    Raises Refused where neither aggregates nor, for at most 31 days, events have it. If that is so of the period
    before only, there is no comparison.
    """
    found = await _one(connection, view, metric, dimensions, now)
    if not view.compares:
        return found
    try:
        before = await _one(connection, view.before, metric, dimensions, now)
    except Refused as error:
        return found._replace(why_no_comparison=error.message)
    return found._replace(before=before.points, estimated=found.estimated or before.estimated)


async def _one(
    connection: asyncpg.Connection, view: View, metric: str, dimensions: Sequence[str], now: datetime
) -> Series:
    starts, ends = buckets(view)
    query = view.as_query(type=_TYPES.get(metric))
    measured = await counting.measure(
        connection, query, dimensions, starts, users=metric == "visitors", sessions=metric == "sessions"
    )
    points = []
    estimated = False
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        value, is_estimate = _value(measured.found.get(place, NOTHING), metric)
        whole = start == times.begin(start, view.interval, view.zone) and end <= view.end
        points.append(Point(start, value, not whole or end > now))
        estimated |= is_estimate
    return Series(
        metric,
        points,
        None,
        measured.source,
        measured.as_of,
        estimated,
        measured.at_least,
        measured.shifted,
    )


def buckets(view: View) -> tuple[list[datetime], list[datetime]]:
    """Where the buckets of a view start, the first not before the view does, and where they end, even if that is
    after it."""
    first = times.begin(view.start, view.interval, view.zone)
    whole = list(times.starts(first, view.end, view.interval, view.zone))
    return [max(view.start, whole[0]), *whole[1:]], [*whole[1:], times.after(whole[-1], view.interval, view.zone)]


def _value(found: Measures, metric: str) -> tuple[int | None, bool]:
    if metric in _TYPES:
        return (found.page_views if metric == "page_views" else found.conversions), False
    one = found.users if metric == "visitors" else found.sessions
    return (None, False) if one is None else (one.number, one.estimated)
