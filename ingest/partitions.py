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
