"""The scheduled functions: old rows are deleted, idle sessions are abandoned, events of plain INSERTs get a batch."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from ingest.postgres import connections
from tests.support.roles import NOT_PERMITTED, acting, affected, claims, refusal

CLEANUP = "SELECT * FROM public.cleanup_old_data()"
KEPT = {
    "analytics.events": 0,
    "analytics.event_aggregations": 0,
    "analytics.metrics": 0,
    "analytics.rejected_events": 0,
    "analytics.flushes": 0,
    "analytics.visits": 0,
    "analytics.identities": 0,
    "analytics.people": 0,
    "public.audit_logs": 0,
}
"""The result of a cleanup that deleted nothing."""


async def cleanup(connection: asyncpg.Connection) -> dict[str, int]:
    async with ServiceRole(connection):
        return {row["table_name"]: row["deleted_count"] for row in await connection.fetch(CLEANUP)}


class ServiceRole:
    """Act as service_role; unlike with `acting`, changes are kept."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def __aenter__(self) -> None:
        await self.connection.execute("SET ROLE service_role")

    async def __aexit__(self, *_: object) -> None:
        await self.connection.execute("RESET ROLE")


@pytest.fixture
async def at_one_moment(connection: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """In one transaction, so that now() is the same for test and function, even at midnight."""
    async with connection.transaction():
        yield connection


async def fill_day(connection: asyncpg.Connection, day: date, moments: list[str]) -> None:
    """Create the partition of a day, with an event at each of these times."""
    await connection.execute("SELECT analytics.ensure_events_partition($1)", day)
    for moment in moments:
        await connection.execute(
            "INSERT INTO analytics.events (created_at, type, name, batch_id) VALUES ($1, 'system', 'ping', 1)",
            datetime.fromisoformat(f"{day}T{moment}+00:00"),
        )


async def partitions(connection: asyncpg.Connection) -> list[str]:
    return [
        row["name"]
        for row in await connection.fetch(
            "SELECT inhrelid::regclass::text AS name FROM pg_inherits"
            " WHERE inhparent = 'analytics.events'::regclass ORDER BY 1"
        )
    ]


def name_of(day: date) -> str:
    return f"analytics.events_{day:%Y%m%d}"


async def today(connection: asyncpg.Connection) -> date:
    day: date = await connection.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    return day


async def keep(connection: asyncpg.Connection, what: str, period: str) -> None:
    await connection.execute("SELECT set_config('app.retention_' || $1, $2, false)", what, period)


# Events


async def test_only_days_that_ended_ninety_days_ago_are_deleted(at_one_moment: asyncpg.Connection):
    connection = at_one_moment
    # The day of now minus 90 days also contains younger moments.
    border = await today(connection) - timedelta(days=90)
    await fill_day(connection, border - timedelta(days=2), ["00:00:00", "23:59:59.999999"])
    await fill_day(connection, border - timedelta(days=1), ["00:00:00", "12:00:00", "23:59:59.999999"])
    await fill_day(connection, border, ["00:00:00"])
    await fill_day(connection, border + timedelta(days=1), ["00:00:00"])
    assert await cleanup(connection) == KEPT | {"analytics.events": 5}
    assert await partitions(connection) == [name_of(border), name_of(border + timedelta(days=1))]
    assert await connection.fetchval("SELECT count(*) FROM analytics.events") == 2
    assert await cleanup(connection) == KEPT


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
@pytest.mark.parametrize(
    ("last_to_go", "first_to_stay"),
    [
        (date(2028, 2, 28), date(2028, 2, 29)),
        (date(2028, 2, 29), date(2028, 3, 1)),
        (date(2027, 2, 28), date(2027, 3, 1)),
        (date(2027, 12, 31), date(2028, 1, 1)),
        (date(2024, 2, 29), date(2024, 3, 1)),
        (date(2024, 4, 30), date(2024, 5, 1)),
    ],
)
async def test_borders_of_months(at_one_moment: asyncpg.Connection, last_to_go: date, first_to_stay: date, zone: str):
    connection = at_one_moment
    await connection.execute(f"SET timezone = '{zone}'")
    await fill_day(connection, last_to_go, ["23:59:59.999999"])
    await fill_day(connection, first_to_stay, ["00:00:00"])
    # A negative period for a future day: the border is the same.
    await keep(connection, "events", f"{(await today(connection) - first_to_stay).days} days")
    assert await cleanup(connection) == KEPT | {"analytics.events": 1}
    assert await partitions(connection) == [name_of(first_to_stay)]


async def test_other_tables_and_empty_days(connection: asyncpg.Connection):
    await connection.execute("CREATE TABLE analytics.events_20200101 (kept int)")
    await fill_day(connection, date(2020, 1, 2), [])
    assert await cleanup(connection) == KEPT
    assert await partitions(connection) == []
    assert await connection.fetchval("SELECT to_regclass('analytics.events_20200101')") is not None


async def test_a_day_that_is_being_read_is_deleted_at_the_next_call(
    connection: asyncpg.Connection, database_url: str
):
    warnings: list[str] = []
    connection.add_log_listener(lambda _, message: warnings.append(str(message)))
    day = date(2020, 1, 2)
    await fill_day(connection, day, ["12:00:00"])
    await connection.execute("INSERT INTO analytics.rejected_events (reason, received_at) VALUES ('a', '2020-01-02')")
    reader = await connections.connect(database_url, purpose="tests")
    try:
        async with reader.transaction():
            await reader.fetch(f"SELECT * FROM {name_of(day)}")
            # The rest is still done.
            assert await cleanup(connection) == KEPT | {"analytics.rejected_events": 1}
            assert await reader.fetchval("SELECT count(*) FROM analytics.events") == 1
    finally:
        await reader.close()
    assert [warning for warning in warnings if "events_20200102 is in use" in warning] != []
    assert await cleanup(connection) == KEPT | {"analytics.events": 1}
    assert await partitions(connection) == []


# Everything else

AGED = {
    "analytics.event_aggregations": (
        "minutes",
        timedelta(days=7),
        "INSERT INTO analytics.event_aggregations (event_type, event_name, granularity, time_bucket)"
        " VALUES ('system', 'ping', 'minute', $1)",
    ),
    "analytics.metrics": (
        "metrics",
        timedelta(days=365),
        "INSERT INTO analytics.metrics (name, type, timestamp) VALUES ('ping', 'gauge', $1)",
    ),
    "analytics.rejected_events": (
        "rejected",
        timedelta(days=90),
        "INSERT INTO analytics.rejected_events (reason, received_at) VALUES ('ping', $1)",
    ),
    "analytics.flushes": (
        "flushes",
        timedelta(days=30),
        "INSERT INTO analytics.flushes (journal, first_record, last_record, flushed_at, rolled_up_at)"
        " VALUES (1, 1, (SELECT count(*) FROM analytics.flushes) + 1, $1, now())",
    ),
    "analytics.visits": (
        "events",
        timedelta(days=91),
        "INSERT INTO analytics.visits (person, started_at, ended_at, session_id) VALUES ('ada', $1, $1, 's')",
    ),
    "analytics.identities": (
        "identities",
        timedelta(days=400),
        "INSERT INTO analytics.identities (anonymous_id, user_id, linked_at, received_at, batch_id, batch_position,"
        " last_seen_at) VALUES (gen_random_uuid(), 'ada', now(), now(), 1, 0, $1)",
    ),
    "analytics.people": (
        "identities",
        timedelta(days=400),
        "INSERT INTO analytics.people (user_id, counted_as, last_seen_at)"
        " VALUES (gen_random_uuid(), gen_random_uuid(), $1)",
    ),
    "public.audit_logs": (
        "audit",
        timedelta(days=730),
        "INSERT INTO public.audit_logs (table_name, operation, created_at) VALUES ('ping', 'EXPORT', $1)",
    ),
}
"""The setting of each table's period, the period, and a row of a given age. Two years are two years: of 730 or 731
days, so that the border of the audit log is tested by `margin`."""


@pytest.mark.parametrize("table", AGED)
async def test_period_of(connection: asyncpg.Connection, table: str):
    setting, period, insert = AGED[table]
    margin = timedelta(days=2) if table == "public.audit_logs" else timedelta(minutes=10)
    await connection.execute(f"INSERT INTO analytics.journals (identity) VALUES ('{uuid.uuid4()}')")
    unique = insert.replace("'ping', 'gauge'", "'ping' || gen_random_uuid(), 'gauge'")
    now = datetime.now(UTC)
    for age in (period + margin, period - margin, timedelta(0)):
        await connection.execute(unique, now - age)
    assert await cleanup(connection) == KEPT | {table: 1}
    assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 2
    await keep(connection, setting, "1 hour")
    assert await cleanup(connection) == KEPT | {table: 1}
    await keep(connection, setting, "")
    assert await cleanup(connection) == KEPT
    await keep(connection, setting, "soon")
    with pytest.raises(asyncpg.InvalidDatetimeFormatError):
        await cleanup(connection)


async def test_a_browser_is_kept_as_long_as_somebody_is_counted_as_it(connection: asyncpg.Connection):
    await connection.execute(
        """
        INSERT INTO analytics.identities
            (anonymous_id, user_id, linked_at, received_at, batch_id, batch_position, last_seen_at)
        SELECT name, 'ada', now(), now(), 1, 0, '2020-01-01' FROM unnest('{first,second}'::text[]) AS name;
        INSERT INTO analytics.people (user_id, counted_as, links) VALUES ('ada', 'first', 2);
        """
    )
    assert await cleanup(connection) == KEPT | {"analytics.identities": 1}
    assert await connection.fetchval("SELECT anonymous_id FROM analytics.identities") == "first"
    assert await connection.fetchval("SELECT links FROM analytics.people") == 1
    await connection.execute("UPDATE analytics.people SET last_seen_at = '2020-01-01'")
    assert await cleanup(connection) == KEPT | {"analytics.identities": 1, "analytics.people": 1}


async def test_setting_of_the_database(connection: asyncpg.Connection, direct_url: str):
    await connection.execute(
        "INSERT INTO analytics.rejected_events (reason, received_at) VALUES ('a', now() - '2 d'::interval)"
    )
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET app.retention_rejected = '1 day'")
    # Directly: the setting applies to new sessions, and a pooler has old ones.
    later = await connections.connect(direct_url, purpose="tests")
    try:
        assert await cleanup(later) == KEPT | {"analytics.rejected_events": 1}
    finally:
        await later.close()


async def test_rows_without_a_period_stay(connection: asyncpg.Connection):
    await connection.execute(
        """
        INSERT INTO analytics.event_aggregations (event_type, event_name, granularity, time_bucket)
        SELECT 'system', 'ping', longer, '2020-01-01'
        FROM unnest('{hour,day,week,month}'::analytics.granularity[]) AS longer;
        INSERT INTO analytics.journals (identity, updated_at) VALUES (gen_random_uuid(), '2020-01-01');
        INSERT INTO analytics.flushes (journal, first_record, last_record, flushed_at) VALUES (1, 1, 1, '2020-01-01');
        -- Of a window that ended of late, though it was computed long ago; and the other way round.
        INSERT INTO analytics.metrics (name, type, timestamp, time_window_start, time_window_end) VALUES
            ('kept', 'gauge', '2020-01-01', '2020-01-01', now()), ('old', 'gauge', now(), '2020-01-01', '2020-01-02');
        """
    )
    assert await cleanup(connection) == KEPT | {"analytics.metrics": 1}
    assert await connection.fetchval("SELECT name FROM analytics.metrics") == "kept"


async def test_audit_log_is_closed_before_and_after(connection: asyncpg.Connection):
    await connection.execute("INSERT INTO public.audit_logs (table_name, operation) VALUES ('kept', 'EXPORT')")
    changes = ("UPDATE public.audit_logs SET table_name = 'x'", "DELETE FROM public.audit_logs")
    for change in changes:
        assert await refusal(connection, change) == NOT_PERMITTED
    async with connection.transaction():
        await cleanup(connection)
        for change in changes:
            assert await refusal(connection, change) == NOT_PERMITTED
    assert await connection.fetchval("SELECT table_name FROM public.audit_logs") == "kept"


@pytest.mark.parametrize("function", ["cleanup_old_data", "abandon_inactive_sessions", "process_pending_events"])
async def test_only_service_role_may_call(connection: asyncpg.Connection, function: str):
    call = f"SELECT public.{function}()"
    for role, settings in (("anon", {}), ("authenticated", claims()), ("authenticated", claims("admin"))):
        async with acting(connection, role, settings):
            assert await affected(connection, call) is None, (role, settings)
    async with acting(connection, "service_role"):
        assert await affected(connection, call) is not None


# Idle sessions


async def test_sessions_are_abandoned_after_two_hours(connection: asyncpg.Connection):
    # In one transaction now() is constant, so that the border is exact.
    async with acting(connection, "service_role"):
        await connection.execute(
            """
            INSERT INTO onboarding.sessions (status, last_activity_at, started_at, user_agent) VALUES
                ('in_progress', now() - interval '2 hours', now() - interval '1 day', 'just not'),
                ('in_progress', now() - interval '2 hours 1 microsecond', now() - interval '1 day', 'just'),
                ('in_progress', now() - interval '9 days', now() - interval '9 days', 'long ago'),
                ('in_progress', now(), now(), 'now'),
                ('not_started', now() - interval '9 days', NULL, 'not started');
            INSERT INTO onboarding.sessions (status, last_activity_at, started_at, abandoned_at, user_agent)
            SELECT 'abandoned', past, past, past, 'before' FROM (SELECT now() - interval '9 days' AS past) AS moment;
            INSERT INTO onboarding.sessions (last_activity_at, started_at, completed_at, user_agent,
                business_info_completed_at, whatsapp_integration_completed_at, bot_setup_completed_at,
                testing_completed_at)
            SELECT past, past, past, 'completed', past, past, past, past
            FROM (SELECT now() - interval '9 days' AS past) AS moment;
            """
        )
        rows = "SELECT user_agent, to_jsonb(sessions)::text FROM onboarding.sessions"
        before = dict(await connection.fetch(rows))
        assert await connection.fetchval("SELECT public.abandon_inactive_sessions()") == 2
        after = dict(await connection.fetch(rows))
        assert {name for name in before if before[name] != after[name]} == {"just", "long ago"}
        left = await connection.fetch(
            "SELECT status::text, abandoned_at = now(), last_activity_at < now() - interval '2 hours'"
            " FROM onboarding.sessions WHERE user_agent IN ('just', 'long ago')"
        )
        assert [tuple(row) for row in left] == [("abandoned", True, True)] * 2
        assert await connection.fetchval("SELECT public.abandon_inactive_sessions()") == 0


# Plain INSERTs

ADOPT = "SELECT public.process_pending_events()"


async def plain_events(connection: asyncpg.Connection, count: int) -> None:
    await connection.execute(
        "INSERT INTO analytics.events (created_at, type, name)"
        " SELECT '2026-01-02 00:00+00'::timestamptz + make_interval(days => n % 2), 'system', 'plain'"
        " FROM generate_series(1, $1::int) AS n",
        count,
    )


async def test_plain_events_keep_the_order_of_their_insert(connection: asyncpg.Connection):
    named = (
        "INSERT INTO analytics.events (type, name, created_at)"
        " SELECT 'system', 'n' || n, $1 FROM generate_series(1, 300) AS n"
    )
    await fill_day(connection, date(2026, 1, 2), [])
    async with ServiceRole(connection):
        await connection.execute(named, datetime(2026, 1, 2, tzinfo=UTC))
        assert await connection.fetchval(ADOPT) == 300
    rows = await connection.fetch(
        "SELECT name, batch_position FROM analytics.events ORDER BY received_at, batch_id, batch_position"
    )
    assert [tuple(row) for row in rows] == [(f"n{n + 1}", n) for n in range(300)]


async def test_plain_events_get_a_batch(connection: asyncpg.Connection):
    await connection.execute(
        "INSERT INTO analytics.journals (identity, stored_through) VALUES (gen_random_uuid(), 7)"
    )
    for day in (date(2026, 1, 2), date(2026, 1, 3)):
        await fill_day(connection, day, ["12:00:00"])
    theirs = "SELECT to_jsonb(journals)::text FROM analytics.journals WHERE number = 1"
    of_collector = "SELECT to_jsonb(events)::text FROM analytics.events WHERE name = 'ping' ORDER BY created_at"
    before = [*await connection.fetch(theirs), *await connection.fetch(of_collector)]

    async with ServiceRole(connection):
        assert await connection.fetchval(ADOPT) == 0
        assert await connection.fetchval("SELECT count(*) FROM analytics.flushes") == 0
    for record, count in ((1, 5), (2, 3)):
        await plain_events(connection, count)
        content = (
            "SELECT id, to_jsonb(events) - '{batch_id,batch_position}'::text[] AS rest FROM analytics.events"
            " WHERE name = 'plain' ORDER BY id"
        )
        as_inserted = await connection.fetch(content)
        async with ServiceRole(connection):
            assert await connection.fetchval(ADOPT) == count
        assert await connection.fetch(content) == as_inserted
        number, through, stored = await connection.fetchrow(
            "SELECT number, stored_through, events_stored FROM analytics.journals WHERE number <> 1"
        )
        assert (through, stored) == (record, 5 if record == 1 else 8)
        batch = number << 40 | record
        assert await connection.fetchval("SELECT count(*) FROM analytics.events WHERE batch_id = $1", batch) == count
        flush = await connection.fetchrow(
            "SELECT journal, first_record, events_stored, events_duplicate, events_rejected, rolled_up_at"
            " FROM analytics.flushes WHERE last_record = $1",
            record,
        )
        assert flush is not None and tuple(flush) == (number, record, count, 0, 0, None)
    async with ServiceRole(connection):
        assert await connection.fetchval(ADOPT) == 0
    assert await connection.fetchval("SELECT count(*) FROM analytics.flushes") == 2
    assert [*await connection.fetch(theirs), *await connection.fetch(of_collector)] == before


async def test_events_that_are_being_written_wait_for_the_next_call(
    connection: asyncpg.Connection, database_url: str
):
    await fill_day(connection, date(2026, 1, 2), [])
    await fill_day(connection, date(2026, 1, 3), [])
    await plain_events(connection, 2)
    writer = await connections.connect(database_url, purpose="tests")
    try:
        async with writer.transaction():
            await plain_events(writer, 1)
            await writer.execute("SELECT FROM analytics.events WHERE created_at < '2026-01-03 00:00+00' FOR UPDATE")
            assert await connection.fetchval(ADOPT) == 1
    finally:
        await writer.close()
    assert await connection.fetchval(ADOPT) == 2
    assert await connection.fetchval(ADOPT) == 0
