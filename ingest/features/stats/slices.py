"""What of a range is read from slices of visits, and what from events: the arguments of the queries that count both.

Slices (ingest/rollup/slices.py) know neither names nor two of the types; a query that asks for these is answered from
events alone. So are the hours that have no slices, such as the one that goes on, and the half hours of which only a
part is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import asyncpg

from ingest.features.stats import reading, times
from ingest.features.stats.query import Query
from ingest.features.stats.reading import QUERIES, Freshness
from ingest.postgres.queries import fill

HALF_HOUR: Final = timedelta(minutes=30)
_TYPES: Final = (None, "page_view", "conversion")
"""Those that slices have numbers of, besides all together."""

Span = tuple[datetime, datetime]


class Sliced(NamedTuple):
    """`arguments`: the first fifteen of queries of slices."""

    arguments: tuple[object, ...]
    from_slices: bool
    """Whether any of it is."""

    def as_of(self, freshness: Freshness) -> datetime:
        """What was stored before is in it."""
        return freshness.as_of if self.from_slices else freshness.now


def of_visits(name: str, *, picked: bool) -> str:
    """The query of visits with this name; `picked`: of those with any event that is picked."""
    return fill(QUERIES[name], among="AND visit IN (SELECT visit FROM picked_visits)" if picked else "")


async def sliced(
    connection: asyncpg.Connection,
    query: Query,
    spans: Sequence[Span],
    bounds: Iterable[datetime] = (),
    *,
    around: timedelta = timedelta(),
) -> Sliced:
    """How what was done in `spans`, and so long `around` each, is read. No slice goes over one of `bounds`, or over
    the start or end of a span. Must be called in the transaction of the query."""
    wide = joined((start - around, end + around) for start, end in spans)
    low, high = (wide[0][0], wide[-1][1]) if wide else spans[0]
    hours: Collection[datetime] = ()
    if _can_answer(query):
        hours = {row["hour"] for row in await connection.fetch(QUERIES["sliced_hours"], low, high)}
    bounds = {*bounds, *(bound for span in spans for bound in span)}
    cut = {_half_hour(bound) for bound in bounds if _half_hour(bound) != bound}
    halves: list[datetime] = []
    rest: list[Span] = []
    for span in wide:
        of_events = [span]
        if hours:
            whole = [half for half in _whole_halves(*span) if half not in cut and times.begin(half, "hour") in hours]
            halves += whole
            of_events = _without(span, whole)
        rest += of_events
    read = sorted({times.begin(half, "hour") for half in halves})
    first, last = (read[0], read[-1] + 2 * HALF_HOUR) if read else (low, low)
    others = set(times.starts(first, last, "hour")).difference(read)
    other_halves = {each for hour in read for each in (hour, hour + HALF_HOUR)}.difference(halves)
    longest = max(rest, key=lambda part: part[1] - part[0], default=(low, low))
    short = [part for part in rest if part != longest]
    return Sliced(
        (
            *reading.picked(query, low, high),
            first,
            last,
            sorted(others),
            sorted(other_halves),
            *longest,
            [start for start, _ in short],
            [end for _, end in short],
        ),
        bool(read),
    )


def _can_answer(query: Query) -> bool:
    """Whether slices can."""
    has_names = query.event is not None or query.return_event is not None or query.dimension == "event"
    return query.type in _TYPES and not has_names


def _whole_halves(start: datetime, end: datetime) -> Iterator[datetime]:
    """The starts of the half hours that are wholly in a span."""
    half = _half_hour(start)
    if half < start:
        half += HALF_HOUR
    while half + HALF_HOUR <= end:
        yield half
        half += HALF_HOUR


def _without(span: Span, halves: Iterable[datetime]) -> list[Span]:
    """What is left of a span without these half hours, which are in order."""
    moment, end = span
    found = []
    for half in halves:
        found.append((moment, half))
        moment = half + HALF_HOUR
    return joined([*found, (moment, end)])


def joined(spans: Iterable[Span]) -> list[Span]:
    """Spans in order of time, without empty ones, and those that follow each other or overlap as one. They must come
    by their starts."""
    found: list[Span] = []
    for low, high in spans:
        if low >= high:
            continue
        if found and found[-1][1] >= low:
            found[-1] = found[-1][0], max(found[-1][1], high)
        else:
            found.append((low, high))
    return found


def _half_hour(moment: datetime) -> datetime:
    hour = times.begin(moment, "hour")
    return hour + HALF_HOUR if moment - hour >= HALF_HOUR else hour
