"""Which hours of a range have KPIs of the sessions that began in them, and which times are read from events instead.

An hour's KPIs are read where they are settled: computed when it was over for half an hour, and with nothing noted for
it since. The running hour, hours that are to be computed (again), and the parts of hours at the ends are read from
events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import asyncpg

from ingest.features.stats import times
from ingest.features.stats.query import Query
from ingest.features.stats.reading import QUERIES
from ingest.features.stats.slices import Span, joined

HOUR: Final = timedelta(hours=1)


class Hours(NamedTuple):
    """The hours from `first` to before `settled`, without `spans`, are read from KPIs; `spans`, which are in order
    and apart from each other, from events. Together they are the range from `start` to before `end`."""

    start: datetime
    end: datetime
    first: datetime
    settled: datetime
    spans: list[Span]
    row: Mapping[str, Any]
    """Of the query."""


async def hours_of(
    connection: asyncpg.Connection, query: Query, now: datetime, events_from: datetime, asked: str, *arguments: object
) -> Hours:
    """The hours of a query's range. `asked`: the query that tells them, from its fourth argument on `arguments`."""
    start, end = (_kept_bound(bound, events_from) for bound in (query.start, query.end))
    first, last = times.up(start, "hour"), times.begin(end, "hour")
    row = await connection.fetchrow(QUERIES[asked], first, max(first, last), times.begin(now, "hour"), *arguments)
    settled = max(first, min(row["settled"] or first, last))
    spans = [(start, first), *((hour, hour + HOUR) for hour in row["unsettled"] or ()), (settled, end)]
    if first > last:
        spans, settled = [(start, end)], first
    return Hours(start, end, first, settled, joined(spans), row)


def between(spans: Iterable[Span], start: datetime, end: datetime) -> list[Span]:
    """What of them is from `start` to before `end`."""
    return joined((max(low, start), min(high, end)) for low, high in spans)


def length(spans: Iterable[Span]) -> timedelta:
    return sum((high - low for low, high in spans), timedelta())


def columns(spans: Sequence[Span]) -> tuple[list[datetime], list[datetime]]:
    """Their starts and their ends."""
    return [low for low, _ in spans], [high for _, high in spans]


def _kept_bound(bound: datetime, events_from: datetime) -> datetime:
    """Where neither part of an hour can be read, the hour's start."""
    hour = times.begin(bound, "hour")
    return bound if hour >= events_from else hour
