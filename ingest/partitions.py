"""The daily partitions of analytics.events: made ahead, or on demand for a late event's day. Days are in UTC."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import asyncpg


async def ensure(connection: asyncpg.Connection, days: Iterable[date]) -> int:
    """Make the partitions of these days that are missing; return how many were."""
    made = 0
    # One transaction a day: what was made stays, and locks are short, also if a later day cannot be made.
    for day in days:
        made += await connection.fetchval("SELECT analytics.ensure_events_partition($1)", day)
    return made


async def ensure_ahead(connection: asyncpg.Connection, *, today: date, days_ahead: int = 7) -> int:
    """Make what is missing from yesterday (clients' clocks, late retries) to `days_ahead` days after today."""
    return await ensure(connection, [today + timedelta(days=offset) for offset in range(-1, days_ahead + 1)])


_BUILDER_LOCK = 0x696E6478
"""Any number that nobody else takes; this one is "indx" in ASCII."""


async def index_closed_days(connection: asyncpg.Connection) -> int:
    """Build the indexes that closed days lack, one after the other; how many were built.

    Outside a transaction, and for minutes if the days are large: the connection is the caller's own, without a
    statement time-out. One process does it at a time, by a lock of the session; behind a transaction pooler that lock
    does not hold, and two would merely be in each other's way: what one leaves invalid is built again.
    """
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _BUILDER_LOCK):
        return 0
    try:
        missing = await connection.fetch("SELECT * FROM analytics.missing_closed_day_indexes()")
        await connection.execute("SET statement_timeout = 0")
        for index in missing:
            if index["leftover"]:
                await connection.execute(f'DROP INDEX CONCURRENTLY IF EXISTS analytics."{index["index_name"]}"')
            await connection.execute(index["statement"])
        return len(missing)
    finally:
        await connection.execute("RESET statement_timeout")
        await connection.execute("SELECT pg_advisory_unlock($1)", _BUILDER_LOCK)
