"""Totals: hours and days that are over, each summed over all types and names.

Who was there at all is in one row then, instead of one per name. A total is there only while it is right: whatever
changes a bucket deletes its total in the same transaction (triggers in sql/migrations/007_dashboard.sql), and here it
is made anew. Both happen in a `turn`, one after the other, so that no change is missed. Who finds none sums the rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg

from ingest.postgres import statements
from ingest.postgres.queries import load_queries
from ingest.rollup import sketches
from ingest.rollup.rollup import turn
from ingest.rollup.sketches import Sketch

BACK: Final = timedelta(days=800)
"""How far back there are totals: a year, and the year before that it is compared with."""
SECONDS: Final = 5.0
"""How long one run may take: anybody can send events for any number of hours, and while one is summed, nothing is
added to any."""
_SETTLED: Final = timedelta(minutes=2)
"""Most of the events that come after their hour come within this time: it is summed once."""
_MOST: Final = 5000
_ROWS_AT_ONCE: Final = 500
_QUERIES: Final = load_queries("totals")


async def run_once(connection: asyncpg.Connection, now: datetime, seconds: float = SECONDS) -> int:
    """Make the totals that are missing at `now`, the latest first, for at most about `seconds`. Returns how many.

    Must not be called in a transaction.
    """
    until = time.monotonic() + seconds
    made = 0
    for granularity, bucket in await connection.fetch(_QUERIES["missing"], now - BACK, now - _SETTLED, _MOST):
        if time.monotonic() >= until:
            break
        await _make(connection, granularity, bucket)
        made += 1
    return made


async def _make(connection: asyncpg.Connection, granularity: str, bucket: datetime) -> None:
    """Sum what a bucket has by name, while nobody changes it."""
    events = page_views = conversions = 0
    users: Sketch | None = None
    sessions: Sketch | None = None
    async with turn(connection):
        found = statements.batches(connection, _QUERIES["rows"], granularity, bucket, size=_ROWS_AT_ONCE)
        async for rows in found:
            events += _sum(rows)
            page_views += _sum(rows, "page_view")
            conversions += _sum(rows, "conversion")
            users, sessions = await asyncio.to_thread(_united, rows, users, sessions)
        stored = _stored(users), _stored(sessions)
        await connection.execute(_QUERIES["put"], granularity, bucket, events, page_views, conversions, *stored)


def _sum(rows: Sequence[Mapping[str, Any]], kind: str | None = None) -> int:
    return sum(row["event_count"] for row in rows if kind in (None, row["type"]))


def _united(
    rows: Sequence[Mapping[str, Any]], users: Sketch | None, sessions: Sketch | None
) -> tuple[Sketch, Sketch]:
    return (
        _with(users, (row["users_sketch"] for row in rows)),
        _with(sessions, (row["sessions_sketch"] for row in rows)),
    )


def _with(known: Sketch | None, stored: Iterable[bytes | None]) -> Sketch:
    union = sketches.union(stored)
    return union if known is None else sketches.merged([known, union])


def _stored(sketch: Sketch | None) -> bytes | None:
    """The bytes to store; None if there is nobody in it."""
    return None if sketch is None or sketch.is_empty() else sketches.dump(sketch)
