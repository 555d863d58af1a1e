"""The daily partitions of analytics.events, created ahead of time, or on demand for a late event's day; and the
indexes that a day gets once it is over. Days are in UTC."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Final

import asyncpg

from ingest.postgres.connections import is_direct
from ingest.postgres.leases import Lease

logger = logging.getLogger(__name__)

INDEXES: Final = "closed-day-indexes"
"""The name of the lease."""
INDEX_SECONDS: Final = 900.0
"""Time for one index; the lease is renewed before each."""


async def ensure(connection: asyncpg.Connection, days: Iterable[date]) -> int:
    """Create the missing partitions for these days; returns how many were created."""
    made = 0
    # One transaction per day: locks are short, and partitions already created stay if a later one fails.
    for day in days:
        made += await connection.fetchval("SELECT analytics.ensure_events_partition($1)", day)
    return made


async def ensure_ahead(connection: asyncpg.Connection, *, today: date, days_ahead: int = 7) -> int:
    """Create missing partitions from yesterday (clients' clocks, late retries) to `days_ahead` days after today."""
    return await ensure(connection, [today + timedelta(days=offset) for offset in range(-1, days_ahead + 1)])


async def index_closed_days(connection: asyncpg.Connection) -> int:
    """Create the indexes that closed days lack, one after the other, without blocking writers; returns how many. Days
    that were given one are vacuumed and analysed: only then an index alone answers.

    Needs a dedicated connection outside a transaction, as CONCURRENTLY requires. May be interrupted: an unfinished
    index is replaced at the next call. One process at a time creates indexes, the others return 0 immediately. If an
    index takes longer than the lease, another process continues with the next one: an index being built is not
    reported as missing.
    """
    lease = Lease(INDEXES, INDEX_SECONDS)
    if not await lease.take(connection):
        return 0
    # Only in a session that is ours alone: a pooler hands its sessions on to others.
    if await is_direct(connection):
        await connection.execute("SET statement_timeout = 0")
    made = 0
    days: set[str] = set()
    try:
        for missing in await connection.fetch("SELECT * FROM analytics.missing_closed_day_indexes()"):
            if not await lease.renew(connection):
                break
            # Retention may drop the day meanwhile.
            with contextlib.suppress(asyncpg.UndefinedTableError):
                if missing["leftover"] is not None:
                    await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {missing['leftover']}")
                await connection.execute(missing["statement"])
                days.add(missing["partition_name"])
                made += 1
        for day in sorted(days):
            if not await lease.renew(connection):
                break
            with contextlib.suppress(asyncpg.UndefinedTableError):
                await connection.execute(f'VACUUM (ANALYZE, SKIP_LOCKED) analytics."{day}"')
    finally:
        if not connection.is_closed():
            await lease.release(connection)
    if made:
        logger.info("created %d indexes on closed days", made)
    return made
