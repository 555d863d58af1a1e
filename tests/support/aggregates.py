"""Events inserted as by collectors and by plain SQL, and their expected aggregates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple

import asyncpg

from ingest.base.config import DIMENSION_NAMES
from ingest.rollup import identity_repairs, rebuild
from ingest.rollup.buckets import Room

GRANULARITIES = ("minute", "hour", "day", "week", "month")
BY_DEFINITION = """
WITH links AS (
    SELECT DISTINCT ON (anonymous_id) anonymous_id, user_id FROM analytics.events
    WHERE anonymous_id IS NOT NULL AND user_id IS NOT NULL
    ORDER BY anonymous_id, created_at, received_at, batch_id, batch_position, user_id COLLATE "C"
), people AS (
    SELECT event.*, coalesce(event.user_id, links.user_id, event.anonymous_id) AS person
    FROM analytics.events AS event LEFT JOIN links USING (anonymous_id)
), silences AS (
    SELECT id, person, created_at, created_at - lag(created_at) OVER everything AS silence
    FROM people WHERE session_id IS NULL AND type <> 'system' AND person IS NOT NULL
    WINDOW everything AS (PARTITION BY person ORDER BY created_at)
), visits AS (
    SELECT id, jsonb_build_array(person, count(*) FILTER (WHERE silence > interval '30 minutes') OVER (
        PARTITION BY person ORDER BY created_at
    ))::text AS derived FROM silences
)
SELECT people.*, coalesce(session_id, derived) AS visit FROM people LEFT JOIN visits USING (id)
"""
"""Events with their person and visit, from events only: the definition, written a second time."""


class Event(NamedTuple):
    """The columns of an event that aggregates use."""

    created_at: datetime
    name: str = "ping"
    type: str = "user_action"
    user_id: str | None = None
    anonymous_id: str | None = None
    session_id: str | None = None
    country: str | None = None
    page_path: str | None = None
    utm_source: str | None = None
    authenticated: bool | None = None
    device_type: str | None = None


CASTS = {"type": "::text::analytics.event_type", "device_type": "::text::analytics.device_type"}


class Known(NamedTuple):
    """Who did an event, and in which visit."""

    person: str | None
    visit: object


def recognised(events: Sequence[Event]) -> dict[int, Known]:
    """id() of each event -> who did it. `events`: all there are; those of one time in the order of sending.
    The definition a third time, in Python."""
    in_order = sorted(events, key=lambda event: event.created_at)
    links: dict[str, str] = {}
    for event in in_order:
        if event.user_id is not None and event.anonymous_id is not None:
            links.setdefault(event.anonymous_id, event.user_id)
    found: dict[int, Known] = {}
    last: dict[str, tuple[datetime, object]] = {}
    for event in in_order:
        person = event.user_id
        if person is None and event.anonymous_id is not None:
            person = links.get(event.anonymous_id, event.anonymous_id)
        visit: object = event.session_id
        if visit is None and person is not None and event.type != "system":
            seen_at, visit = last.get(person, (None, None))
            if seen_at is None or event.created_at - seen_at > timedelta(minutes=30):
                visit = (person, event.created_at)
            last[person] = event.created_at, visit
        found[id(event)] = Known(person, visit)
    return found


async def make_partitions(connection: asyncpg.Connection, days: Sequence[date]) -> None:
    for day in days:
        await connection.execute("SELECT analytics.ensure_events_partition($1)", day)


class Ledger:
    """A collector's journal: `flush` stores events in one transaction with their row of the ledger."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._journal: int | None = None
        self._record = 0

    async def flush(self, events: Sequence[Event], *, tells_days: bool = True) -> None:
        if self._journal is None:
            self._journal = await self._connection.fetchval(
                "INSERT INTO analytics.journals (identity) VALUES (gen_random_uuid()) RETURNING number"
            )
        self._record += 1
        await insert(
            self._connection,
            events,
            batch=(self._journal << 40) | self._record,
            ledger=(self._journal, self._record, tells_days),
        )


async def insert(
    connection: asyncpg.Connection,
    events: Sequence[Event],
    *,
    batch: int | None = None,
    ledger: tuple[int, int, bool] | None = None,
) -> None:
    """Store events; without a batch, as if by plain SQL."""
    async with connection.transaction():
        if ledger is not None:
            journal, record, tells_days = ledger
            days = sorted({event.created_at.date() for event in events}) if tells_days else None
            await connection.execute(
                "INSERT INTO analytics.flushes (journal, first_record, last_record, events_stored, days)"
                " VALUES ($1, $2, $2, $3, $4)",
                journal,
                record,
                len(events),
                days,
            )
        columns = ", ".join(Event._fields)
        values = ", ".join(f"${place}{CASTS.get(name, '')}" for place, name in enumerate(Event._fields, 1))
        await connection.executemany(
            f"INSERT INTO analytics.events ({columns}, batch_id, batch_position)"
            f" VALUES ({values}, {batch or 'NULL'}, ${len(Event._fields) + 1})",
            [(*event, place if batch else None) for place, event in enumerate(events)],
        )


async def recognise(connection: asyncpg.Connection, dimensions: Sequence[str], room: Room) -> None:
    """Do the background work now: rebuild the hours in which people were counted twice."""
    while await identity_repairs.run_once(connection):
        pass
    await connection.execute("UPDATE analytics.stale_buckets SET due_at = noted_at")
    while await rebuild.run_once(connection, dimensions, room):
        pass


Row = tuple[int, int, int]


async def stored(connection: asyncpg.Connection) -> dict[tuple[str, datetime, str, str, str], Row]:
    """The aggregates: (granularity, bucket, type, name, dimensions) -> events, users, sessions."""
    rows = await connection.fetch(
        "SELECT granularity::text, time_bucket, event_type::text, event_name, dimensions::text,"
        " event_count, unique_users, unique_sessions FROM analytics.event_aggregations"
    )
    return {tuple(row)[:5]: tuple(row)[5:] for row in rows}


async def expected(
    connection: asyncpg.Connection, granularities: Sequence[str] = GRANULARITIES
) -> dict[tuple[str, datetime, str, str, str], Row]:
    """The result of one GROUP BY over the events, in total and by each dimension; users and sessions exactly. Events
    of bots are in one row per name, in addition to its total, which may be 0."""
    await connection.execute(f"CREATE TEMPORARY VIEW defined AS {BY_DEFINITION}")
    sets = ", ".join(f"(granularity, bucket, type, name, {name})" for name in DIMENSION_NAMES)
    picked = " ".join(
        f"WHEN grouping({name}) = 0 THEN jsonb_build_object('{name}', {name})" for name in DIMENSION_NAMES
    )
    known = " AND ".join(f"(grouping({name}) = 1 OR {name} IS NOT NULL)" for name in DIMENSION_NAMES)
    rows = await connection.fetch(
        f"""
        SELECT granularity, bucket, type::text, name, (CASE {picked} ELSE '{{}}' END)::text,
            count(*), count(DISTINCT person), count(DISTINCT visit)
        FROM defined
        CROSS JOIN unnest($1::text[]) AS granularity
        CROSS JOIN LATERAL date_trunc(granularity, created_at, 'UTC') AS bucket
        WHERE device_type IS DISTINCT FROM 'bot'
        GROUP BY GROUPING SETS ((granularity, bucket, type, name), {sets})
        HAVING {known}
        """,
        list(granularities),
    )
    of_bots = await connection.fetch(
        """
        SELECT granularity, bucket, type::text, name, '{"device_type": "bot"}',
            count(*), count(DISTINCT person), count(DISTINCT visit)
        FROM defined
        CROSS JOIN unnest($1::text[]) AS granularity
        CROSS JOIN LATERAL date_trunc(granularity, created_at, 'UTC') AS bucket
        WHERE device_type = 'bot'
        GROUP BY 1, 2, 3, 4
        """,
        list(granularities),
    )
    await connection.execute("DROP VIEW defined")
    empty = {(*tuple(row)[:4], "{}"): (0, 0, 0) for row in of_bots}
    return empty | {tuple(row)[:5]: tuple(row)[5:] for row in [*rows, *of_bots]}
