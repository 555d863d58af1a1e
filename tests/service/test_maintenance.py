"""The schedule: its tasks, how often they run, and what happens when one fails or must end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.postgres import connections
from ingest.rollup.buckets import Room
from ingest.service.maintenance import TASKS, Schedule, Settings, Task
from tests.support.aggregates import Event, insert, make_partitions

SETTINGS = Settings(3, 90, DIMENSION_NAMES, Room(100, 100))
NOW = datetime.now(UTC)
BY_NAME = {task.name: task for task in TASKS}


ONE_OF_EACH = """
INSERT INTO analytics.event_aggregations (event_type, event_name, time_bucket, granularity)
    VALUES ('system', 'ping', now() - interval '3 days', 'minute');
INSERT INTO analytics.metrics (name, type, timestamp) VALUES ('mrr', 'gauge', now() - interval '60 days');
INSERT INTO analytics.rejected_events (reason, received_at) VALUES ('malformed', now() - interval '60 days');
INSERT INTO analytics.journals (identity) VALUES (gen_random_uuid());
INSERT INTO analytics.flushes (journal, first_record, last_record, flushed_at, rolled_up_at)
    SELECT number, 1, 1, now() - interval '20 days', now() - interval '20 days' FROM analytics.journals;
INSERT INTO analytics.identities
    (anonymous_id, user_id, linked_at, received_at, batch_id, batch_position, last_seen_at)
    SELECT 'a', 'u', seen, seen, 1, 0, seen FROM (SELECT now() - interval '100 days') AS long_ago (seen);
INSERT INTO analytics.people (user_id, counted_as, last_seen_at) VALUES ('u', 'a', now() - interval '100 days');
INSERT INTO public.audit_logs (table_name, operation, created_at)
    VALUES ('marketing.leads', 'EXPORT', now() - interval '60 days');
"""
"""An old row of each kind, still younger than its retention period."""


async def run(connection: asyncpg.Connection, name: str) -> str:
    return await BY_NAME[name].run(connection, NOW, SETTINGS)


def schedule(url: str, *tasks: Task) -> tuple[Schedule, list[tuple[str, str]], list[asyncpg.Connection]]:
    """(schedule, its reports, the connections it opened)"""
    reports: list[tuple[str, str]] = []
    opened: list[asyncpg.Connection] = []

    async def connect(purpose: str) -> asyncpg.Connection:
        opened.append(await connections.connect(url, purpose=purpose))
        return opened[-1]

    return Schedule(connect, SETTINGS, lambda name, result, _: reports.append((name, result)), tasks), reports, opened


async def until(what: asyncio.Future[None] | asyncio.Event) -> None:
    async with asyncio.timeout(60):
        await (what.wait() if isinstance(what, asyncio.Event) else what)


async def until_true(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not within half a minute")


# What there is.


def test_every_task_says_what_it_does():
    assert len(BY_NAME) == len(TASKS)
    assert BY_NAME.keys() >= {
        "partitions-ahead",
        "closed-day-indexes",
        "retention",
        "abandoned-sessions",
        "pending-events",
        "kpis",
        "stale-buckets",
    }
    assert all(task.what and task.period_seconds > 0 for task in TASKS)


async def test_partitions_ahead(connection: asyncpg.Connection):
    assert await run(connection, "partitions-ahead") == "5 partitions made"
    assert await run(connection, "partitions-ahead") == ""
    assert await connection.fetchval("SELECT to_regclass($1)", f"analytics.events_{NOW + timedelta(days=3):%Y%m%d}")


async def test_closed_day_indexes(connection: asyncpg.Connection):
    await make_partitions(connection, [NOW.date() - timedelta(days=3)])
    assert await run(connection, "closed-day-indexes") == "7 indexes made"
    assert await run(connection, "closed-day-indexes") == ""


async def test_retention(connection: asyncpg.Connection):
    old = NOW - timedelta(days=200)
    await make_partitions(connection, [old.date()])
    await insert(connection, [Event(old), Event(old)])
    assert await run(connection, "retention") == "2 of analytics.events deleted"
    assert await connection.fetchval("SELECT to_regclass($1)", f"analytics.events_{old:%Y%m%d}") is None
    assert await run(connection, "retention") == ""


async def test_retention_is_set_in_the_database_or_else_configured(connection: asyncpg.Connection):
    old = NOW - timedelta(days=40)
    await make_partitions(connection, [old.date()])
    await insert(connection, [Event(old)])
    assert await run(connection, "retention") == ""
    month = SETTINGS._replace(retention_days=30)
    await connection.execute("SET app.retention_events = '60 days'")
    assert await BY_NAME["retention"].run(connection, NOW, month) == ""
    await connection.execute("RESET app.retention_events")
    assert await BY_NAME["retention"].run(connection, NOW, month) == "1 of analytics.events deleted"


@pytest.mark.parametrize("leaked", ["30 days", "1 hour", "0", "-1 year"])
@pytest.mark.parametrize(("of_database", "configured"), [(None, 365), ("365 days", 30)])
async def test_a_setting_left_in_the_session_by_another_client_deletes_nothing(
    connection: asyncpg.Connection, leaked: str, of_database: str | None, configured: int
):
    """For each kind with a period, whatever was set for the session of a pooler's server connection."""
    kinds = await connection.fetchval(
        "SELECT array_agg(DISTINCT found[1]) FROM pg_proc, regexp_matches(prosrc, $1, 'g') AS found"
        " WHERE proname = 'cleanup_old_data'",
        r"ingest\.retention\('(\w+)'",
    )
    assert len(kinds) == 7
    if of_database is not None:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET app.retention_events = '{of_database}'")
    for kind in kinds:
        await connection.execute("SELECT set_config('app.retention_' || $1, $2, false)", kind, leaked)
    days = [(NOW - timedelta(days=age)).date() for age in (1, 60, 120)]
    await make_partitions(connection, days)
    await insert(connection, [Event(NOW - timedelta(days=age)) for age in (1, 60, 120)])
    await connection.execute(ONE_OF_EACH)
    settings = SETTINGS._replace(retention_days=configured)
    assert await BY_NAME["retention"].run(connection, NOW, settings) == ""
    for kind in kinds:
        assert await connection.fetchval("SELECT current_setting('app.retention_' || $1)", kind) == leaked


async def test_a_roles_setting_in_this_database_takes_precedence(connection: asyncpg.Connection, database_url: str):
    old = NOW - timedelta(days=40)
    await make_partitions(connection, [old.date()])
    await insert(connection, [Event(old)])
    name, role = await connection.fetchrow("SELECT current_database(), quote_ident(session_user)")
    await connection.execute(f"ALTER DATABASE {name} SET app.retention_events = '1 year'")
    await connection.execute(f"ALTER ROLE {role} IN DATABASE {name} SET app.retention_events = '30 days'")
    assert await run(connection, "retention") == "1 of analytics.events deleted"


async def test_abandoned_sessions(connection: asyncpg.Connection):
    await connection.execute(
        "INSERT INTO onboarding.sessions (status, started_at, last_activity_at)"
        " VALUES ('in_progress', now() - interval '4 hours', now() - interval '3 hours')"
    )
    assert await run(connection, "abandoned-sessions") == "1 sessions abandoned"
    assert await run(connection, "abandoned-sessions") == ""


async def test_pending_events(connection: asyncpg.Connection):
    await make_partitions(connection, [NOW.date()])
    await insert(connection, [Event(NOW)] * 3)
    assert await run(connection, "pending-events") == "3 events adopted"
    assert await run(connection, "pending-events") == ""


async def test_every_task_on_an_empty_database_and_twice(connection: asyncpg.Connection):
    for task in TASKS * 2:
        assert isinstance(await task.run(connection, NOW, SETTINGS), str)


# The schedule.


async def test_a_failing_task_is_reported_and_retried_and_stops_nothing_else(database_url: str, caplog):
    tries, others = 0, 0
    both = asyncio.Event()

    async def fails_once(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            await connection.execute("SELECT 1 / 0")
        if tries > 1 and others > 1:
            both.set()
        return ""

    async def works(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
        nonlocal others
        others += 1
        assert await connection.fetchval("SELECT 1") == 1
        return "something"

    it, reports, opened = schedule(
        database_url, Task("breaks", "to see", 0.01, fails_once), Task("works", "to see", 0.01, works)
    )
    stop = asyncio.Event()
    running = asyncio.ensure_future(it.run(stop))
    await until(both)
    stop.set()
    await until(running)
    assert reports.count(("breaks", "failed")) == 1
    assert ("breaks", "ok") in reports
    assert ("works", "ok") in reports
    assert "breaks failed (1 times), retrying: division by zero" in caplog.text
    assert all(connection.is_closed() for connection in opened)


async def test_a_database_that_is_away_is_a_failure(caplog):
    it, reports, _ = schedule("postgresql://nobody@127.0.0.1:1/none", BY_NAME["retention"])
    stop = asyncio.Event()
    running = asyncio.ensure_future(it.run(stop))
    await until_true(lambda: bool(reports))
    stop.set()
    await until(running)
    assert reports == [("retention", "failed")]
    assert "connection refused" in caplog.text


async def test_it_ends_what_is_running_when_it_must_stop(database_url: str, connection: asyncpg.Connection):
    async def long(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
        await connection.execute("SELECT pg_sleep(3600)")
        return ""

    async def sleeping(expected: int) -> None:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ingest long' AND wait_event = 'PgSleep'"
        )
        for _ in range(600):
            if await connection.fetchval(query) == expected:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never were {expected} at it")

    it, reports, opened = schedule(database_url, Task("long", "to see", 60, long))
    stop = asyncio.Event()
    running = asyncio.ensure_future(it.run(stop))
    # Not sooner: a request to cancel a statement that the server has not read yet cancels nothing.
    await sleeping(1)
    stop.set()
    await until(running)
    assert reports == []
    assert opened[0].is_closed()
    await sleeping(0)


@pytest.mark.parametrize("day", [date(2024, 2, 28), date(2024, 12, 30)])
async def test_partitions_go_on_over_the_ends_of_months(connection: asyncpg.Connection, day: date):
    now = datetime(day.year, day.month, day.day, 23, 59, 59, tzinfo=UTC)
    await BY_NAME["partitions-ahead"].run(connection, now, SETTINGS)
    for offset in range(-1, 4):
        name = f"analytics.events_{day + timedelta(days=offset):%Y%m%d}"
        assert await connection.fetchval("SELECT to_regclass($1)", name), name
