"""The service makes the indexes of closed days by itself, and does not wait for one when it stops."""

from __future__ import annotations

import asyncio
from datetime import date

import asyncpg

from ingest import database, partitions
from tests.worker import Start, start

__all__ = ["start"]

MISSING = "SELECT count(*) FROM analytics.missing_closed_day_indexes()"
BUILDING = "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()"
OURS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ingest indexes'"
)
INSERT = "INSERT INTO analytics.events (type, name, created_at) VALUES ('system', 'ping', '2026-01-02 12:00+00')"


async def until(connection: asyncpg.Connection, query: str, count: int) -> None:
    for _ in range(1000):
        if await connection.fetchval(query) == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never {count}: {query}")


async def test_a_worker_makes_them(connection: asyncpg.Connection, start: Start):
    await partitions.ensure(connection, [date(2026, 1, 2)])
    assert await connection.fetchval(MISSING) > 0
    await start()
    await until(connection, MISSING, 0)


async def test_a_worker_that_stops_leaves_one_half_made(
    connection: asyncpg.Connection, start: Start, database_url: str
):
    await partitions.ensure(connection, [date(2026, 1, 2)])
    writing = await database.connect(database_url, purpose="tests")
    # Whoever makes an index waits for this transaction to end.
    await writing.execute("BEGIN")
    await writing.execute(INSERT)
    client = await start(shutdown_timeout_seconds=600)
    await until(connection, BUILDING, 1)
    await asyncio.wait_for(client.worker.stop(), 60)
    await until(connection, OURS, 0)
    await writing.execute("COMMIT")
    await writing.close()
    leftovers = await connection.fetchval(f"{MISSING} WHERE leftover IS NOT NULL")
    assert leftovers == 1
    assert await partitions.index_closed_days(connection) > 0
    assert await connection.fetchval(MISSING) == 0
