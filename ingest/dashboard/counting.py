"""Events, people and visits of some buckets: from stored ones as far as these go, otherwise from events."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg

from ingest.dashboard import covering
from ingest.dashboard.covering import Cover, Kept
from ingest.features.stats import counts, reading
from ingest.features.stats.query import MAX_EVENTS_RANGE, Query, Refused, check_events_range
from ingest.features.stats.reading import MAX_STORED_ROWS, QUERIES, Freshness
from ingest.features.stats.slices import sliced
from ingest.features.stats.times import Part

T = TypeVar("T")
_QUICK_ROWS: Final = 100
"""Up to this many rows and sketches are added up in the event loop, more in a thread, so that acknowledgements do not
wait."""
PAGE_VIEW: Final = "page_view"
CONVERSION: Final = "conversion"
_REST: Final = ""
"""In place of a type: all the others together."""


class Distinct(NamedTuple):
    """A number of people or visits, and whether it is an estimate: then its standard error is 1.6 %."""

    number: int
    estimated: bool = False


class Measures(NamedTuple):
    """What is counted of a bucket; None: not known, or not asked for."""

    events: int = 0
    page_views: int = 0
    conversions: int = 0
    users: Distinct | None = Distinct(0)
    sessions: Distinct | None = Distinct(0)


NOTHING: Final = Measures()


class Measured(NamedTuple):
    """Measures by the place of their bucket; those without any events are left out."""

    found: Mapping[int, Measures]
    source: str
    """aggregates, or events if nothing else was read; with `cover.edges`, aggregates and a few events."""
    as_of: datetime
    """What was stored before is in it."""
    at_least: bool = False
    """Whether aggregates may have counted some of these events among others, for lack of room."""
    shifted: bool = False
    """Whether buckets begin and end up to an hour early, as neither their minutes nor their events are kept."""


@dataclass(slots=True)
class _Sums:
    """What is added up for one bucket: changed by `_stored`, and those it calls, only."""

    events: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    users: list[bytes] = field(default_factory=list)
    sessions: list[bytes] = field(default_factory=list)
    more_users: set[str] = field(default_factory=set)
    more_sessions: set[str] = field(default_factory=set)


async def measure(
    connection: asyncpg.Connection,
    query: Query,
    dimensions: Sequence[str],
    starts: Sequence[datetime],
    *,
    users: bool = True,
    sessions: bool = True,
) -> Measured:
    """The measures of the buckets that start at `starts`, the last of which ends at `query.end`; distinct people and
    visits only if they are asked for, as their sketches are nearly all there is to read.

    `dimensions`: those that aggregates are kept by. Raises Refused.
    """
    freshness = await reading.freshness(connection)
    may_read_events = min(query.end, freshness.now) - query.start <= MAX_EVENTS_RANGE and not query.asks_others
    cover = await cover_of(connection, query, dimensions, freshness, starts)
    # Sketches can be merged, but not subtracted: who did events without a value is known from these alone.
    without = None in query.filters.values()
    if cover is not None and not (without and may_read_events and (users or sessions)):
        at_least = await counts.has_other(connection, query, cover.parts)
        try:
            found = await _stored(
                connection, query, cover, users=users and not without, sessions=sessions and not without
            )
        except counts.TooMany as error:
            if not may_read_events:
                raise Refused("too_many_rows", str(error), 422) from None
        else:
            if found or not at_least or not may_read_events:
                return Measured(found, "aggregates", freshness.as_of, at_least, cover.shifted)
    check_events(query, freshness, counts.why_events(query, dimensions))
    read = await sliced(connection, query, [(starts[0], query.end)], starts)
    rows = await connection.fetch(QUERIES["count_slices"], *read.arguments, starts)
    measures = {
        row["place"]: Measures(
            row["events"],
            row["page_views"],
            row["conversions"],
            Distinct(row["users"]) if users else None,
            Distinct(row["sessions"]) if sessions else None,
        )
        for row in rows
    }
    return Measured(measures, "events", read.as_of(freshness))


def check_events(query: Query, freshness: Freshness, why: str) -> None:
    """Raise Refused unless all of the query's range may be read from events; `why` it would have to be."""
    check_events_range(query.start, max(query.start, min(query.end, freshness.now)), why)
    if query.start < freshness.events_from:
        day = freshness.events_from.astimezone(query.zone).date()
        raise Refused("bad_range", f"{why}, which are kept from {day} on")


async def cover_of(
    connection: asyncpg.Connection,
    query: Query,
    dimensions: Sequence[str],
    freshness: Freshness,
    starts: Sequence[datetime],
) -> Cover | None:
    """How buckets are read from aggregates; None if these do not have what the query filters by."""
    if len(query.filters) > 1 or not query.filters.keys() <= set(dimensions) or counts.rows_of(query) is None:
        return None
    kept = Kept(freshness.minutes_from, freshness.events_from)
    stale = await reading.stale(connection)
    return covering.cover(starts, query.end, kept, stale, from_events=not query.asks_others)


# From aggregates.


async def _stored(
    connection: asyncpg.Connection, query: Query, cover: Cover, *, users: bool, sessions: bool
) -> dict[int, Measures]:
    sums: dict[int, _Sums] = defaultdict(_Sums)
    if None in query.filters.values():
        await _add_without(connection, query, cover, sums)
    else:
        parts = await _add_totals(connection, query, cover, sums, users, sessions)
        rows = await connection.fetch(
            QUERIES["stored_by_type"],
            *reading.columns(parts),
            query.types,
            query.event,
            counts.rows_of(query),
            users,
            sessions,
            MAX_STORED_ROWS + 1,
        )
        counts.check_rows(rows)
        await _apart(len(rows), _add_rows, sums, cover.starts, rows)
    if cover.edges:
        for row in await connection.fetch(QUERIES["edges"], *edge_arguments(query, cover)):
            some = sums[row["place"]]
            some.events[row["type"]] += row["events"]
            some.more_users.update(row["users"] or ())
            some.more_sessions.update(row["sessions"] or ())
    sketches = sum(len(some.users) + len(some.sessions) for some in sums.values())
    return await _apart(sketches, _summed, sums, users, sessions)


async def _apart(size: int, work: Callable[..., T], *given: object) -> T:
    """Do it in a thread if it takes long."""
    return work(*given) if size <= _QUICK_ROWS else await asyncio.to_thread(work, *given)


def _add_rows(sums: Mapping[int, _Sums], starts: Sequence[datetime], rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        some = sums[bisect_right(starts, row["time_bucket"]) - 1]
        some.events[row["type"]] += row["event_count"]
        some.users += filter(None, (row["users_sketch"],))
        some.sessions += filter(None, (row["sessions_sketch"],))


async def _add_totals(
    connection: asyncpg.Connection,
    query: Query,
    cover: Cover,
    sums: Mapping[int, _Sums],
    users: bool,
    sessions: bool,
) -> list[Part]:
    """Add the buckets that have a total over all names, if that is what is asked for. Returns the others: those that
    are not over, or have just changed."""
    has_type = query.type is None or (query.type in (PAGE_VIEW, CONVERSION) and not users and not sessions)
    if query.filters or query.event is not None or query.bots != "exclude" or not has_type:
        return cover.parts
    rows = await connection.fetch(
        QUERIES["stored_totals"], *reading.columns(cover.parts), users, sessions, MAX_STORED_ROWS + 1
    )
    counts.check_rows(rows)
    return await _apart(len(rows), _added, sums, cover, query.type, rows)


def _added(
    sums: Mapping[int, _Sums], cover: Cover, kind: str | None, rows: Sequence[Mapping[str, Any]]
) -> list[Part]:
    """Add totals; returns the parts of the cover that have none."""
    starts = cover.starts
    for row in rows:
        some = sums[bisect_right(starts, row["time_bucket"]) - 1]
        if kind in (None, PAGE_VIEW):
            some.events[PAGE_VIEW] += row["page_views"]
        if kind in (None, CONVERSION):
            some.events[CONVERSION] += row["conversions"]
        if kind is None:
            some.events[_REST] += row["event_count"] - row["page_views"] - row["conversions"]
        some.users += filter(None, (row["users_sketch"],))
        some.sessions += filter(None, (row["sessions_sketch"],))
    return covering.gaps(cover.parts, {(row["granularity"], row["time_bucket"]) for row in rows})


async def _add_without(connection: asyncpg.Connection, query: Query, cover: Cover, sums: Mapping[int, _Sums]) -> None:
    """Add events without a value: those of the total less those of all values."""
    dimension = next(iter(query.filters))
    for kind in query.types:
        rows = await connection.fetch(
            QUERIES["events_without"], *reading.columns(cover.parts), [kind], query.event, dimension
        )
        for row in rows:
            sums[bisect_right(cover.starts, row["time_bucket"]) - 1].events[kind] += row["events"]


def edge_arguments(query: Query, cover: Cover) -> tuple[object, ...]:
    """The arguments of the queries of edges, which must not be empty."""
    first, last = cover.edges[0].start, max(edge.end for edge in cover.edges)
    return *reading.picked(query, first, last), *map(list, zip(*cover.edges, strict=True))


def _summed(sums: Mapping[int, _Sums], users: bool, sessions: bool) -> dict[int, Measures]:
    return {
        place: Measures(
            events,
            some.events[PAGE_VIEW],
            some.events[CONVERSION],
            distinct(some.users, some.more_users, events) if users else None,
            distinct(some.sessions, some.more_sessions, events) if sessions else None,
        )
        for place, some in sums.items()
        if (events := sum(some.events.values()))
    }


def distinct(stored: Iterable[bytes | None], more: Iterable[str], most: int) -> Distinct:
    """How many distinct values there are in stored sketches and besides; an estimate may exceed what is possible."""
    # Imported late: numpy, which it needs, takes a tenth of the time that a collector takes to start.
    from ingest.rollup import sketches

    union = sketches.union(stored)
    for value in more:
        union.update(value)
    return Distinct(min(most, sketches.count(union)), not sketches.is_exact(union))
