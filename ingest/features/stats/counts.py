"""Time series, totals and rankings: from stored buckets where possible, otherwise from events."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NamedTuple

import asyncpg
import orjson

from ingest.features.stats import cursors, reading, times
from ingest.features.stats.query import (
    MAX_EVENTS_RANGE,
    OTHER,
    OTHER_EVENT,
    Query,
    Refused,
    Value,
    check_events_range,
)
from ingest.features.stats.reading import MAX_STORED_ROWS, QUERIES, Freshness
from ingest.features.stats.slices import sliced
from ingest.features.stats.times import Part

_TOTAL: Final = "{}"
_BOTS: Final = '{"device_type":"bot"}'
"""The row of aggregates with everything that bots did; no other row includes it."""
_QUICK_ROWS: Final = 100
"""Up to this many sketches are merged in the event loop, more in a thread, so that acknowledgements do not wait."""


class Count(NamedTuple):
    """The counts of a bucket or a value; None: not known."""

    events: int
    users: int | None
    sessions: int | None


NOTHING: Final = Count(0, 0, 0)


class Counted(NamedTuple):
    """Counts by bucket or value, their source, and whether some of them may be among `other` instead."""

    counts: Mapping[Any, Count]
    source: str
    at_least: bool = False


class TooMany(Exception):
    """More stored buckets than may be read for one answer."""


# The endpoints.


async def timeseries(connection: asyncpg.Connection, query: Query, dimensions: Sequence[str], now: datetime) -> Any:
    """A point for each bucket of the time zone, including all of the first and the last."""
    granularity, zone = query.granularity, query.zone
    start = times.begin(query.start, granularity, zone)
    end = times.up(query.end, granularity, zone)
    if query.after is not None:
        start = max(start, times.after(times.begin(query.after[0], granularity, zone), granularity, zone))
    found, stop = times.page_of(start, end, granularity, zone, query.limit)
    freshness = await reading.freshness(connection)
    counted = await _by_bucket(connection, query, dimensions, freshness, found, stop) if found else None
    points = []
    for place, bucket in enumerate(found):
        ends = found[place + 1] if place + 1 < len(found) else stop
        count = counted.counts.get(place, NOTHING) if counted else NOTHING
        point = {"bucket": bucket.astimezone(zone).isoformat(), **count._asdict()}
        points.append(point | {"partial": True} if ends > now else point)
    return {
        **_about(query, counted or Counted({}, "aggregates"), freshness, start, end),
        "granularity": granularity,
        "points": points,
        **({"next": cursors.encode(found[-1].isoformat())} if stop < end else {}),
    }


async def totals(connection: asyncpg.Connection, query: Query, dimensions: Sequence[str]) -> Any:
    """Events, users and sessions of a range."""
    freshness = await reading.freshness(connection)
    counted = await _by_bucket(connection, query, dimensions, freshness, [query.start], query.end)
    return _about(query, counted, freshness, query.start, query.end) | counted.counts.get(0, NOTHING)._asdict()


async def top(connection: asyncpg.Connection, query: Query, dimensions: Sequence[str]) -> Any:
    """Values of a dimension, or names, ranked by their events."""
    freshness = await reading.freshness(connection)
    parts = None
    if query.dimension == "event":
        may_rank_buckets = None not in query.filters.values()
    else:
        may_rank_buckets = query.dimension in dimensions and not query.filters and query.bots == "exclude"
    if may_rank_buckets:
        parts = await _parts(connection, query, dimensions, freshness, [query.start], query.end)
    others = NOTHING
    if parts is not None:
        ranked, more = await _ranked_buckets(connection, query, parts)
        others = await _others(connection, query, parts)
        counted = Counted(ranked, "aggregates", await has_other(connection, query, parts))
    else:
        check_events_range(query.start, query.end, why_events(query, dimensions))
        ranked, more = await ranked_events(connection, query)
        counted = Counted(ranked, "events")
    last = next(reversed(ranked), None)
    return {
        **_about(query, counted, freshness, query.start, query.end),
        "dimension": query.dimension,
        "values": [{"value": value, **count._asdict()} for value, count in ranked.items()],
        **({"other": others._asdict()} if others.events else {}),
        **({"next": cursors.encode(ranked[last].events, last or "", last is None)} if more else {}),
    }


def _about(query: Query, counted: Counted, freshness: Freshness, start: datetime, end: datetime) -> dict[str, Any]:
    """The members of every answer that describe it."""
    return {
        "source": counted.source,
        "as_of": (freshness.as_of if counted.source == "aggregates" else freshness.now).isoformat(),
        "from": start.astimezone(query.zone).isoformat(),
        "to": end.astimezone(query.zone).isoformat(),
        **({"at_least": True} if counted.at_least else {}),
    }


# By bucket.


async def _by_bucket(
    connection: asyncpg.Connection,
    query: Query,
    dimensions: Sequence[str],
    freshness: Freshness,
    found: Sequence[datetime],
    end: datetime,
) -> Counted:
    """Counts of the buckets that start at `found`; the last of them ends at `end`."""
    parts = await _parts(connection, query, dimensions, freshness, found, end)
    may_read_events = query.end - query.start <= MAX_EVENTS_RANGE
    if parts is not None:
        at_least = await has_other(connection, query, parts)
        try:
            counts = await _count_buckets(connection, query, parts, found)
            if counts or not at_least or not may_read_events or query.asks_others:
                return Counted(counts, "aggregates", at_least)
        except TooMany as error:
            if not may_read_events:
                raise Refused("too_many_rows", str(error), 422) from None
    check_events_range(query.start, query.end, why_events(query, dimensions))
    read = await sliced(connection, query, [(found[0], end)], found)
    rows = await connection.fetch(QUERIES["count_slices"], *read.arguments, found)
    return Counted({row["place"]: Count(row["events"], row["users"], row["sessions"]) for row in rows}, "events")


async def _parts(
    connection: asyncpg.Connection,
    query: Query,
    dimensions: Sequence[str],
    freshness: Freshness,
    found: Sequence[datetime],
    end: datetime,
) -> list[Part] | None:
    """The stored buckets that answer the query; None if they cannot."""
    if len(query.filters) > 1 or not query.filters.keys() <= set(dimensions) or rows_of(query) is None:
        return None
    parts = times.cover_each(found, end, query.granularity, await reading.stale(connection))
    if parts is None or any(part.granularity == "minute" and part.start < freshness.minutes_from for part in parts):
        return None
    return parts


def why_events(query: Query, dimensions: Sequence[str]) -> str:
    if len(query.filters) > 1:
        return "more than one filter is answered from events"
    if not query.filters.keys() <= set(dimensions) or query.dimension not in {"", "event", *dimensions}:
        return "a dimension that is not in rollup_dimensions is answered from events"
    if query.bots != "exclude" and (query.filters or query.dimension not in ("", "event")):
        return "bots by a dimension are answered from events"
    if query.dimension and query.filters:
        return "a ranking by a dimension with a filter is answered from events"
    return "a range not in whole hours of UTC, from before the minutes that are kept, is answered from events"


def _arguments(query: Query, parts: Sequence[Part]) -> tuple[object, ...]:
    """The first five arguments of the queries of buckets."""
    return *reading.columns(parts), query.types, query.event


def rows_of(query: Query) -> list[str] | None:
    """The rows of aggregates, by their `dimensions`, that add up to a query with at most one filter; None if no
    rows do. For events without a value, these are all rows with one, to be subtracted from the total."""
    people, bots = query.bots != "only", query.bots != "exclude"
    if not query.filters:
        return [_TOTAL] * people + [_BOTS] * bots
    ((dimension, wanted),) = query.filters.items()
    if dimension == "device_type":
        # This row has everything that bots did.
        is_bot = wanted == "bot"
        return [row_of(dimension, wanted)] if (bots if is_bot else people) else []
    return [row_of(dimension, wanted)] if query.bots == "exclude" else None


def row_of(dimension: str, wanted: Value) -> str:
    return orjson.dumps({dimension: {"other": True} if wanted is OTHER else wanted}).decode()


async def has_other(connection: asyncpg.Connection, query: Query, parts: Sequence[Part]) -> bool:
    """Whether some of these events may have been counted as `other`, for lack of room."""
    columns = reading.columns(parts)
    if query.event not in (None, OTHER_EVENT) and await connection.fetchval(
        QUERIES["has_buckets"], *columns, query.types, OTHER_EVENT, _TOTAL
    ):
        return True
    if not query.filters or OTHER in query.filters.values() or None in query.filters.values():
        return False
    other = row_of(next(iter(query.filters)), OTHER)
    return bool(await connection.fetchval(QUERIES["has_buckets"], *columns, query.types, query.event, other))


async def _others(connection: asyncpg.Connection, query: Query, parts: Sequence[Part]) -> Count:
    """The events that a ranking has no name for, as buckets had no room."""
    if query.dimension != "event":
        asked = replace(query, filters={query.dimension: OTHER})
    elif query.event in (None, OTHER_EVENT):
        asked = replace(query, event=OTHER_EVENT)
    else:
        return NOTHING
    return (await _count_buckets(connection, asked, parts, [query.start])).get(0, NOTHING)


async def _count_buckets(
    connection: asyncpg.Connection, query: Query, parts: Sequence[Part], found: Sequence[datetime]
) -> dict[int, Count]:
    def place(row: Mapping[str, Any]) -> int:
        return bisect_right(found, row["time_bucket"]) - 1

    wanted = rows_of(query)
    assert wanted is not None
    if None in query.filters.values():
        return await _count_without(connection, query, parts, place) if wanted else {}
    rows: list[Any] = []
    for row in wanted:
        limit = MAX_STORED_ROWS + 1 - len(rows)
        rows += await connection.fetch(QUERIES["buckets"], *_arguments(query, parts), row, limit)
        check_rows(rows)
    return await _merged([row for row in rows if row["event_count"]], place)


async def _count_without(
    connection: asyncpg.Connection,
    query: Query,
    parts: Sequence[Part],
    place: Callable[[Mapping[str, Any]], int],
) -> dict[int, Count]:
    """Events without a value. Their users and sessions are unknown: sketches can be merged, but not subtracted."""
    rows = await connection.fetch(QUERIES["events_without"], *_arguments(query, parts), next(iter(query.filters)))
    events: dict[int, int] = {}
    for row in rows:
        events[place(row)] = events.get(place(row), 0) + row["events"]
    return {where: Count(number, None, None) for where, number in events.items() if number}


def check_rows(rows: Sequence[object]) -> None:
    if len(rows) > MAX_STORED_ROWS:
        message = (
            f"this takes more than {MAX_STORED_ROWS} buckets; ask for less time, a larger granularity, one event,"
            " or a smaller limit"
        )
        raise TooMany(message)


async def _merged(rows: Sequence[Mapping[str, Any]], group: Callable[[Mapping[str, Any]], Any]) -> dict[Any, Count]:
    if len(rows) <= _QUICK_ROWS:
        return merged(rows, group)
    return await asyncio.to_thread(merged, rows, group)


def merged(rows: Iterable[Mapping[str, Any]], group: Callable[[Mapping[str, Any]], Any]) -> dict[Any, Count]:
    """Stored buckets merged by group; uniques are those of the union of the sketches."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    return {key: _sum(some) for key, some in groups.items()}


def _sum(rows: Sequence[Mapping[str, Any]]) -> Count:
    events = sum(row["event_count"] for row in rows)
    if len(rows) == 1:
        return Count(events, rows[0]["unique_users"], rows[0]["unique_sessions"])
    # Imported late: numpy, which it needs, takes a tenth of the time that a collector takes to start.
    from ingest.rollup import sketches

    # An estimate may exceed what is possible.
    return Count(
        events,
        min(events, sketches.count_union(row["users_sketch"] for row in rows)),
        min(events, sketches.count_union(row["sessions_sketch"] for row in rows)),
    )


# Rankings.


async def _ranked_buckets(
    connection: asyncpg.Connection, query: Query, parts: Sequence[Part]
) -> tuple[dict[str | None, Count], bool]:
    """A page of a ranking, with None for no value, and whether there is another."""
    of_names = query.dimension == "event"
    by = rows_of(query) if of_names else query.dimension
    rows = await connection.fetch(
        QUERIES["rank_names" if of_names else "rank_values"],
        *_arguments(query, parts),
        by,
        *(query.after or (None, None, None)),
        query.limit + 1,
        [],
        [],
    )
    ranked = rows[: query.limit]
    stored = await connection.fetch(
        QUERIES["name_buckets" if of_names else "value_buckets"],
        *_arguments(query, parts),
        by,
        [row["value"] for row in ranked if row["value"] is not None],
        MAX_STORED_ROWS + 1,
    )
    try:
        check_rows(stored)
    except TooMany as error:
        raise Refused("too_many_rows", str(error), 422) from None
    uniques = await _merged(stored, lambda row: row["value"])
    counts = {
        row["value"]: Count(row["events"], None, None) if row["value"] is None else uniques[row["value"]]
        for row in ranked
    }
    return counts, len(rows) > query.limit


async def ranked_events(connection: asyncpg.Connection, query: Query) -> tuple[dict[str | None, Count], bool]:
    rows = await connection.fetch(
        QUERIES["rank_events"],
        *reading.picked(query, query.start, query.end),
        query.dimension,
        *(query.after or (None, None, None)),
        query.limit + 1,
    )
    counts = {row["value"]: Count(row["events"], row["users"], row["sessions"]) for row in rows[: query.limit]}
    return counts, len(rows) > query.limit
