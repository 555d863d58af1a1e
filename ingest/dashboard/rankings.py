"""The lists of the overview: pages, entry pages, sources, places, devices, events; each ranked by what it counts."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import asyncpg

from ingest.dashboard import counting, entries
from ingest.dashboard.counting import NOTHING, PAGE_VIEW, Distinct
from ingest.dashboard.covering import Cover
from ingest.dashboard.view import View
from ingest.features.stats import counts, reading, slices
from ingest.features.stats.query import OTHER, OTHER_EVENT, Query, Refused, Value
from ingest.features.stats.reading import MAX_STORED_ROWS, QUERIES, Freshness

ENTRY_PAGE: Final = "entry_page"
COUNTED: Final[Mapping[str, str]] = {
    "page_path": "page_views",
    ENTRY_PAGE: "sessions",
    "referrer_host": "events",
    "utm_source": "events",
    "utm_medium": "events",
    "utm_campaign": "events",
    "country": "events",
    "device_type": "events",
    "browser": "events",
    "os": "events",
    "event": "events",
}
"""What there is a ranking of, and what it counts."""
_QUICK_ROWS: Final = 100
After = tuple[int, str, bool]
"""Where the next page begins: the last row's number, its value, and whether it has none."""


class Row(NamedTuple):
    """A value and what was counted with it."""

    value: Value
    """None: without a value; OTHER: all those that aggregates had no room for. `View.with_filter` takes either."""
    number: int
    visitors: Distinct | None
    """None: not known, as aggregates do not have who did events without a value."""
    share: float
    """Of everything that is counted in the view, those without a value and others included: from 0 to 1."""


class Ranking(NamedTuple):
    """A page of a ranking: by number, then by value. On the first page, the row of OTHER follows at the end, if there
    is one; it takes no place of the others."""

    what: str
    counted: str
    """events, page_views or sessions."""
    rows: list[Row]
    total: int
    """What shares are of."""
    source: str
    as_of: datetime
    after: After | None
    """For the next page; None: this is the last one."""
    at_least: bool = False
    """Whether each number may lack some, which are among those of OTHER or of what is not shown."""
    shifted: bool = False


async def ranking(
    connection: asyncpg.Connection,
    view: View,
    what: str,
    dimensions: Sequence[str],
    now: datetime,
    limit: int = 10,
    after: After | None = None,
) -> Ranking:
    """A page of one of COUNTED. `dimensions`: those that aggregates are kept by.

    Pages count page views; entry pages, sessions: those of the KPI session_entries (see entries.py), or with filters
    those of the query entry_pages. Raises Refused where neither aggregates nor, for at most 31 days, events have it.
    """
    dimension = "page_path" if what == ENTRY_PAGE else what
    kind = PAGE_VIEW if what == "page_path" else None
    query = view.as_query(type=kind, dimension=dimension, limit=limit, after=after)
    if what == ENTRY_PAGE:
        if query.filters or query.event is not None:
            return await _filtered_entries(connection, query)
        return await _entries(connection, query, now)
    if what != "event" and query.filters.keys() == {what}:
        return await _only_one(connection, query, dimensions, what)
    freshness = await reading.freshness(connection)
    # By name, a row of aggregates is enough; by another dimension, there is none for two.
    is_kept = what == "event" or (what in dimensions and not query.filters and query.bots == "exclude")
    if is_kept and None not in query.filters.values():
        cover = await counting.cover_of(connection, query, dimensions, freshness, [query.start])
        if cover is not None:
            return await _from_aggregates(connection, query, dimensions, cover, freshness.as_of)
    counting.check_events(query, freshness, counts.why_events(query, dimensions))
    return await _from_events(connection, query, freshness)


# From aggregates.


async def _from_aggregates(
    connection: asyncpg.Connection, query: Query, dimensions: Sequence[str], cover: Cover, as_of: datetime
) -> Ranking:
    what = query.dimension
    edges = await _edges(connection, query, cover)
    of_names = what == "event"
    by = counts.rows_of(query) if of_names else what
    ranked = await connection.fetch(
        QUERIES["rank_names" if of_names else "rank_values"],
        *_arguments(query, cover),
        by,
        *(query.after or (None, None, None)),
        query.limit + 1,
        list(edges),
        [row["events"] for row in edges.values()],
    )
    page = ranked[: query.limit]
    visitors = await _visitors(connection, query, cover, by, page, edges)
    everything = await counting.measure(connection, query, dimensions, [query.start], users=False, sessions=False)
    total = everything.found.get(0, NOTHING).events
    rows = [
        Row(row["value"], row["events"], visitors.get(row["value"]), _share(row["events"], total)) for row in page
    ]
    other = await _other(connection, query, cover, total)
    return Ranking(
        what,
        COUNTED[what],
        rows + other if query.after is None else rows,
        total,
        "aggregates",
        as_of,
        _next(page, len(ranked) > query.limit),
        everything.at_least or bool(other),
        cover.shifted,
    )


def _arguments(query: Query, cover: Cover) -> tuple[object, ...]:
    return *reading.columns(cover.parts), query.types, query.event


async def _edges(connection: asyncpg.Connection, query: Query, cover: Cover) -> dict[str | None, Mapping[str, Any]]:
    """What no bucket has, by value."""
    if not cover.edges:
        return {}
    *picked, starts, ends, _ = counting.edge_arguments(query, cover)
    rows = await connection.fetch(QUERIES["edges_by_value"], *picked, query.dimension, starts, ends)
    return {row["value"]: row for row in rows}


async def _visitors(
    connection: asyncpg.Connection,
    query: Query,
    cover: Cover,
    by: object,
    page: Sequence[Mapping[str, Any]],
    edges: Mapping[str | None, Mapping[str, Any]],
) -> dict[str | None, Distinct]:
    """Who did the events of each value of a page."""
    stored = await connection.fetch(
        QUERIES["name_sketches" if query.dimension == "event" else "value_sketches"],
        *_arguments(query, cover),
        by,
        [row["value"] for row in page if row["value"] is not None],
        MAX_STORED_ROWS + 1,
    )
    try:
        counts.check_rows(stored)
    except counts.TooMany as error:
        raise Refused("too_many_rows", str(error), 422) from None
    found: dict[str | None, list[bytes]] = defaultdict(list)
    for row in stored:
        found[row["value"]].append(row["users_sketch"])

    def merge() -> dict[str | None, Distinct]:
        return {
            row["value"]: counting.distinct(
                found[row["value"]], (edges.get(row["value"]) or {}).get("users") or (), row["events"]
            )
            for row in page
            if row["value"] is not None
        }

    return merge() if len(stored) <= _QUICK_ROWS else await asyncio.to_thread(merge)


async def _other(connection: asyncpg.Connection, query: Query, cover: Cover, total: int) -> list[Row]:
    """The row of what buckets had no room for, if there is any."""
    if query.dimension != "event":
        event, rows = query.event, [counts.row_of(query.dimension, OTHER)]
    elif query.event in (None, OTHER_EVENT):
        event, rows = OTHER_EVENT, counts.rows_of(query) or []
    else:
        return []
    stored = await connection.fetch(
        QUERIES["stored_by_type"],
        *reading.columns(cover.parts),
        query.types,
        event,
        rows,
        True,
        False,
        MAX_STORED_ROWS + 1,
    )
    events = sum(row["event_count"] for row in stored[:MAX_STORED_ROWS])
    if not events:
        return []
    users = await asyncio.to_thread(counting.distinct, _sketches(stored), (), events)
    return [Row(OTHER, events, users, _share(events, total))]


def _sketches(rows: Iterable[Mapping[str, Any]]) -> list[bytes]:
    return [row["users_sketch"] for row in rows if row["users_sketch"] is not None]


async def _only_one(connection: asyncpg.Connection, query: Query, dimensions: Sequence[str], what: str) -> Ranking:
    """The ranking of a dimension that is filtered by: one row, with everything in it."""
    measured = await counting.measure(connection, query, dimensions, [query.start], sessions=False)
    found = measured.found.get(0, NOTHING)
    rows = [Row(query.filters[what], found.events, found.users, 1.0)] if found.events and not query.after else []
    return Ranking(
        what,
        COUNTED[what],
        rows,
        found.events,
        measured.source,
        measured.as_of,
        None,
        measured.at_least,
        measured.shifted,
    )


async def _entries(connection: asyncpg.Connection, query: Query, now: datetime) -> Ranking:
    freshness = await reading.freshness(connection)
    found = await entries.entries_of(connection, query, now, freshness)
    if not found.from_kpis:
        return _ranked(ENTRY_PAGE, found.rows, query, found.total, freshness.now)
    page = found.rows[: query.limit]
    rows = [Row(row["value"], row["events"], None, _share(row["events"], found.total)) for row in page]
    other = [Row(OTHER, found.other, None, _share(found.other, found.total))] if found.other > 0 else []
    return Ranking(
        ENTRY_PAGE,
        COUNTED[ENTRY_PAGE],
        rows + other if query.after is None else rows,
        found.total,
        "aggregates",
        freshness.as_of,
        _next(page, len(found.rows) > query.limit),
        bool(other),
        found.shifted,
    )


# From events.


async def _from_events(connection: asyncpg.Connection, query: Query, freshness: Freshness) -> Ranking:
    of_pages = query.dimension == "page_path"
    read = await slices.sliced(connection, query, [(query.start, query.end)])
    rows = await connection.fetch(
        QUERIES["rank_pages" if of_pages else "rank_people"],
        *read.arguments,
        *(query.after or (None, None, None)),
        query.limit + 1,
        *([] if of_pages else [query.dimension]),
    )
    total = rows[0]["total"] if rows else 0
    if query.after is not None:
        row = await connection.fetchrow(QUERIES["count_slices"], *read.arguments, [query.start])
        total = row["events"] if row else 0
    return _ranked(query.dimension, rows, query, total, read.as_of(freshness))


async def _filtered_entries(connection: asyncpg.Connection, query: Query) -> Ranking:
    freshness = await reading.freshness(connection)
    counting.check_events(query, freshness, "entry pages with filters are read from events")
    read = await slices.sliced(connection, query, [(query.start, query.end)], around=slices.HALF_HOUR)
    asked = slices.of_visits("entry_pages", picked=True), *read.arguments, query.start, query.end
    rows = await connection.fetch(*asked, *(query.after or (None, None, None)), query.limit + 1)
    total = rows[0]["total"] if rows else 0
    if query.after is not None:
        first = await connection.fetchrow(*asked, None, None, None, 1)
        total = first["total"] if first else 0
    return _ranked(ENTRY_PAGE, rows, query, total, read.as_of(freshness))


def _ranked(what: str, rows: Sequence[Mapping[str, Any]], query: Query, total: int, as_of: datetime) -> Ranking:
    page = rows[: query.limit]
    found = [Row(row["value"], row["events"], Distinct(row["users"]), _share(row["events"], total)) for row in page]
    return Ranking(what, COUNTED[what], found, total, "events", as_of, _next(page, len(rows) > query.limit))


def _next(page: Sequence[Mapping[str, Any]], more: bool) -> After | None:
    return (page[-1]["events"], page[-1]["value"] or "", page[-1]["value"] is None) if more and page else None


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0
