"""Daily partitions: in UTC, created once even in a race, and without blocking other sessions."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Literal

import asyncpg
import pytest

from ingest.postgres import connections
from ingest.store import partitions

DAY = date(2026, 1, 2)
INSERT = "INSERT INTO analytics.events (type, name, created_at) VALUES ('system', 'ping', $1)"
PARTITIONS = (
    "SELECT inhrelid::regclass::text AS name, pg_get_expr(relpartbound, oid) AS bounds FROM pg_inherits"
    " JOIN pg_class ON oid = inhrelid WHERE inhparent = 'analytics.events'::regclass ORDER BY 1"
)

WAITING = (
    "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE NOT granted AND datname = current_database()"
)


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await connections.connect(database_url, purpose="tests")
    yield opened
    await opened.close()


async def names(connection: asyncpg.Connection) -> list[str]:
    return [row["name"] for row in await connection.fetch(PARTITIONS)]


async def until_a_session_waits(connection: asyncpg.Connection) -> None:
    for _ in range(500):
        # Only this database: another test run may use the same server.
        if await connection.fetchval(WAITING):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no session waits for a lock")


async def test_only_missing_partitions_are_created(connection: asyncpg.Connection):
    days = [DAY, DAY + timedelta(days=1)]
    assert await partitions.ensure(connection, days) == 2
    assert await partitions.ensure(connection, [*days, DAY + timedelta(days=2)]) == 1
    assert await names(connection) == [f"analytics.events_2026010{n}" for n in (2, 3, 4)]


async def test_ahead_begins_yesterday(connection: asyncpg.Connection):
    assert await partitions.ensure_ahead(connection, today=date(2026, 1, 1), days_ahead=2) == 4
    assert await names(connection) == [
        f"analytics.events_{day}" for day in ("20251231", "20260101", "20260102", "20260103")
    ]
    assert await partitions.ensure_ahead(connection, today=date(2026, 1, 1), days_ahead=2) == 0


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
async def test_bounds_are_utc_whatever_the_session_thinks(connection: asyncpg.Connection, zone: str):
    await connection.execute(f"SET TimeZone = '{zone}'; SET DateStyle = 'SQL, DMY'")
    await partitions.ensure(connection, [DAY])
    await connection.execute("SET TimeZone = 'UTC'; SET DateStyle = 'ISO'")
    bounds = [row["bounds"] for row in await connection.fetch(PARTITIONS)]
    assert bounds == ["FOR VALUES FROM ('2026-01-02 00:00:00+00') TO ('2026-01-03 00:00:00+00')"]


async def test_day_holds_its_first_and_last_microsecond(connection: asyncpg.Connection):
    await partitions.ensure(connection, [DAY])
    midnight = datetime(2026, 1, 2, tzinfo=UTC)
    microsecond = timedelta(microseconds=1)
    for moment in (midnight, midnight + timedelta(days=1) - microsecond):
        await connection.execute(INSERT, moment)
    for moment in (midnight - microsecond, midnight + timedelta(days=1)):
        with pytest.raises(asyncpg.CheckViolationError, match="no partition"):
            await connection.execute(INSERT, moment)


async def test_partition_has_the_key_and_checks_of_the_table_and_no_more(connection: asyncpg.Connection):
    await partitions.ensure(connection, [DAY])
    constraints = await connection.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'analytics.events_20260102'::regclass AND contype <> 'n'"
        ' ORDER BY conname COLLATE "C"'
    )
    assert [row["conname"] for row in constraints] == [
        "events_20260102_pkey",
        "events_context_object",
        "events_name_length",
        "events_properties_object",
    ]


async def test_it_neither_blocks_nor_is_blocked(connection: asyncpg.Connection, other: asyncpg.Connection):
    """One session has read and written without committing; meanwhile a day is created, also without committing; then
    the first carries on reading and writing."""
    await partitions.ensure(connection, [DAY])
    moment = datetime(2026, 1, 2, 12, tzinfo=UTC)
    for session in (connection, other):
        await session.execute("SET lock_timeout = '2s'")
    async with other.transaction():
        await other.fetchval("SELECT count(*) FROM analytics.events")
        await other.execute(INSERT, moment)
        async with connection.transaction():
            assert await partitions.ensure(connection, [DAY + timedelta(days=1)]) == 1
            # On the table itself, only a lock that conflicts with neither SELECT nor INSERT.
            held = await connection.fetch(
                "SELECT DISTINCT mode FROM pg_locks WHERE pid = pg_backend_pid()"
                " AND relation IN ('analytics.events'::regclass, 'analytics.events_20260102'::regclass)"
            )
            assert {row["mode"] for row in held} <= {"AccessShareLock", "ShareUpdateExclusiveLock"}
            assert await other.fetchval(WAITING) == 0
            await other.execute(INSERT, moment)
            assert await other.fetchval("SELECT count(*) FROM analytics.events") == 2
    await other.execute(INSERT, moment + timedelta(days=1))


async def test_copy_continues_while_days_are_created(connection: asyncpg.Connection, other: asyncpg.Connection):
    await partitions.ensure(connection, [DAY])
    created_at = datetime(2026, 1, 2, 12, tzinfo=UTC)

    async def copy() -> None:
        for _ in range(20):
            await other.copy_records_to_table(
                "events",
                schema_name="analytics",
                columns=["type", "name", "created_at"],
                records=[("system", "ping", created_at)] * 50,
            )

    days = [DAY + timedelta(days=n) for n in range(1, 15)]
    made, _ = await asyncio.wait_for(asyncio.gather(partitions.ensure(connection, days), copy()), 60)
    assert made == 14
    assert await connection.fetchval("SELECT count(*) FROM analytics.events") == 1000


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
async def test_of_two_sessions_in_a_race_one_creates_it(
    connection: asyncpg.Connection, other: asyncpg.Connection, isolation: Literal["read_committed", "repeatable_read"]
):
    """The second waits for the first one's transaction, and then relies on what it finds, not on its old snapshot."""
    first = connection.transaction()
    second = other.transaction(isolation=isolation)
    await second.start()
    await other.fetchval("SELECT count(*) FROM analytics.events")
    await first.start()
    assert await partitions.ensure(connection, [DAY]) == 1
    waiting = asyncio.ensure_future(partitions.ensure(other, [DAY]))
    await until_a_session_waits(connection)
    await first.commit()
    assert await asyncio.wait_for(waiting, 60) == 0
    await second.commit()
    assert await names(connection) == ["analytics.events_20260102"]


async def test_second_creates_it_if_the_first_rolls_back(connection: asyncpg.Connection, other: asyncpg.Connection):
    first = connection.transaction()
    await first.start()
    assert await partitions.ensure(connection, [DAY]) == 1
    waiting = asyncio.ensure_future(partitions.ensure(other, [DAY]))
    await until_a_session_waits(connection)
    await first.rollback()
    assert await asyncio.wait_for(waiting, 60) == 1


async def test_detached_day_comes_back_with_its_rows(connection: asyncpg.Connection):
    await partitions.ensure(connection, [DAY])
    await connection.execute(INSERT, datetime(2026, 1, 2, 12, tzinfo=UTC))
    await connection.execute("ALTER TABLE analytics.events DETACH PARTITION analytics.events_20260102")
    assert await connection.fetchval("SELECT count(*) FROM analytics.events") == 0
    assert await partitions.ensure(connection, [DAY]) == 1
    assert await connection.fetchval("SELECT count(*) FROM analytics.events") == 1


@pytest.mark.parametrize(
    "leftover",
    [
        "CREATE TABLE analytics.events_20260102 (a int)",
        "CREATE VIEW analytics.events_20260102 AS SELECT now() AS created_at",
        "CREATE TABLE analytics.events_20260102 (LIKE analytics.events INCLUDING ALL);"
        " INSERT INTO analytics.events_20260102 (type, name, created_at) VALUES ('system', 'ping', '2026-01-05')",
    ],
)
async def test_anything_else_of_that_name_is_refused_and_left_alone(connection: asyncpg.Connection, leftover: str):
    await connection.execute(leftover)
    with pytest.raises(asyncpg.PostgresError, match=r"events_20260102|created_at"):
        await partitions.ensure(connection, [DAY])
    assert await names(connection) == []
    assert await connection.fetchval("SELECT count(*) FROM analytics.events_20260102") in (0, 1)


async def test_search_path_cannot_redirect_it(connection: asyncpg.Connection):
    await connection.execute(
        "CREATE SCHEMA evil; CREATE FUNCTION evil.to_char(date, text) RETURNS text LANGUAGE sql"
        " AS $$ SELECT 'evil' $$; SET search_path = evil, pg_catalog"
    )
    await partitions.ensure(connection, [DAY])
    await connection.execute("RESET search_path")
    assert await names(connection) == ["analytics.events_20260102"]
