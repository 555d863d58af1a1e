"""Events put into the table as collectors and plain SQL put them, and what the aggregates of them must be."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import NamedTuple

import asyncpg

from ingest.config import DIMENSION_NAMES

GRANULARITIES = ("minute", "hour", "day", "week", "month")


class Event(NamedTuple):
    """What of an event the aggregates look at."""

    created_at: datetime
    name: str = "ping"
    type: str = "user_action"
    user_id: str | None = None
    anonymous_id: str | None = None
    session_id: str | None = None
    country: str | None = None
    page_path: str | None = None
    utm_source: str | None = None


async def make_partitions(connection: asyncpg.Connection, days: Sequence[date]) -> None:
    for day in days:
        await connection.execute("SELECT analytics.ensure_events_partition($1)", day)


class Ledger:
    """A collector's journal: `flush` stores events as one, in one transaction with their row of the ledger."""

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
    """Store events; without a batch they come as by plain SQL."""
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
        values = ", ".join(
            f"${place}{'::text::analytics.event_type' if name == 'type' else ''}"
            for place, name in enumerate(Event._fields, 1)
        )
        await connection.executemany(
            f"INSERT INTO analytics.events ({columns}, batch_id) VALUES ({values}, {batch or 'NULL'})", events
        )


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
    """What one GROUP BY over the events gives, in total and by each dimension; users and sessions exactly."""
    sets = ", ".join(f"(granularity, bucket, type, name, {name})" for name in DIMENSION_NAMES)
    picked = " ".join(
        f"WHEN grouping({name}) = 0 THEN jsonb_build_object('{name}', {name})" for name in DIMENSION_NAMES
    )
    known = " AND ".join(f"(grouping({name}) = 1 OR {name} IS NOT NULL)" for name in DIMENSION_NAMES)
    rows = await connection.fetch(
        f"""
        SELECT granularity, bucket, type::text, name, (CASE {picked} ELSE '{{}}' END)::text,
            count(*), count(DISTINCT coalesce(user_id, anonymous_id)), count(DISTINCT session_id)
        FROM analytics.events
        CROSS JOIN unnest($1::text[]) AS granularity
        CROSS JOIN LATERAL date_trunc(granularity, created_at, 'UTC') AS bucket
        GROUP BY GROUPING SETS ((granularity, bucket, type, name), {sets})
        HAVING {known}
        """,
        list(granularities),
    )
    return {tuple(row)[:5]: tuple(row)[5:] for row in rows}
