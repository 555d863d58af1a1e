"""The schedule creates the indexes of closed days, and does not wait for one when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date

import asyncpg

from ingest.postgres import connections
from ingest.rollup.buckets import Room
from ingest.service.maintenance import TASKS, Schedule, Settings
from ingest.store import partitions

MISSING = "SELECT count(*) FROM analytics.missing_closed_day_indexes()"
# Not sooner than it waits: only then is there an index for it to leave half made.
WAITING = """
SELECT count(*) FROM pg_stat_progress_create_index
WHERE datname = current_database() AND phase = 'waiting for writers before build'
"""
OURS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'ingest closed-day-indexes'
"""
INSERT = "INSERT INTO analytics.events (type, name, created_at) VALUES ('system', 'ping', '2026-01-02 12:00+00')"


async def until(connection: asyncpg.Connection, query: str, count: int) -> None:
    for _ in range(1000):
        if await connection.fetchval(query) == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never {count}: {query}")


@asynccontextmanager
async def kept_schedule(url: str) -> AsyncIterator[None]:
    """Run the schedule's task for these indexes; it must end when stopped."""
    stop = asyncio.Event()
    tasks = [task for task in TASKS if task.name == "closed-day-indexes"]
    schedule = Schedule(
        lambda purpose: connections.connect(url, purpose=purpose), Settings(7, 90, (), Room(10, 10)), tasks=tasks
    )
    keeping = asyncio.ensure_future(schedule.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(keeping, 60)


async def test_the_schedule_makes_them(connection: asyncpg.Connection, database_url: str):
    await partitions.ensure(connection, [date(2026, 1, 2)])
    assert await connection.fetchval(MISSING) > 0
    async with kept_schedule(database_url):
        await until(connection, MISSING, 0)


async def test_a_schedule_that_stops_leaves_one_half_made(connection: asyncpg.Connection, database_url: str):
    await partitions.ensure(connection, [date(2026, 1, 2)])
    writing = await connections.connect(database_url, purpose="tests")
    # Creating an index waits for this transaction to end.
    await writing.execute("BEGIN")
    await writing.execute(INSERT)
    async with kept_schedule(database_url):
        await until(connection, WAITING, 1)
    await until(connection, OURS, 0)
    await writing.execute("COMMIT")
    await writing.close()
    leftovers = await connection.fetchval(f"{MISSING} WHERE leftover IS NOT NULL")
    assert leftovers == 1
    assert await partitions.index_closed_days(connection) > 0
    assert await connection.fetchval(MISSING) == 0
