"""The indexes: as many as promised, none for nothing, used by the queries they are for, and built on closed days
without standing in anybody's way."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from ingest import partitions

SCHEMAS = ("marketing", "onboarding", "analytics", "experiments", "whatsapp", "public")
INDEXES = """
SELECT c.relname AS name, i.indrelid::regclass::text AS relation, am.amname AS method,
    i.indkey::text AS keys, i.indnkeyatts AS key_count, i.indclass::text AS classes, i.indoption::text AS options,
    coalesce(pg_get_expr(i.indpred, i.indrelid), '') AS predicate,
    coalesce(pg_get_expr(i.indexprs, i.indrelid), '') AS expressions,
    EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u', 'x')) AS of_constraint
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_am AS am ON am.oid = c.relam
WHERE c.relnamespace::regnamespace::text = ANY ($1) AND NOT c.relispartition
ORDER BY c.relname
"""


async def indexes(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    found: list[asyncpg.Record] = await connection.fetch(INDEXES, SCHEMAS)
    return found


async def test_at_least_fifty_beside_those_of_constraints(connection: asyncpg.Connection):
    own = [index["name"] for index in await indexes(connection) if not index["of_constraint"]]
    assert len(own) >= 50
    tables = {index["relation"] for index in await indexes(connection)}
    without = await connection.fetch(
        "SELECT oid::regclass::text AS name FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
        " AND relnamespace::regnamespace::text = ANY ($1)",
        SCHEMAS,
    )
    assert {row["name"] for row in without} - tables == set()


async def test_none_is_the_beginning_of_another(connection: asyncpg.Connection):
    def keys(index: asyncpg.Record) -> list[tuple[str, str, str]]:
        count = index["key_count"]
        parts = (index["keys"].split()[:count], index["classes"].split()[:count], index["options"].split()[:count])
        return list(zip(*parts, strict=True))

    found = [index for index in await indexes(connection) if index["method"] == "btree"]
    useless = [
        (short["name"], long["name"])
        for short in found
        for long in found
        if short["name"] != long["name"]
        and not short["of_constraint"]
        and (short["relation"], short["predicate"], short["expressions"])
        == (long["relation"], long["predicate"], long["expressions"])
        and keys(short) == keys(long)[: len(keys(short))]
    ]
    assert useless == []


async def test_the_stream_of_events_pays_for_few(connection: asyncpg.Connection):
    of_events = {index["name"] for index in await indexes(connection) if index["relation"] == "analytics.events"}
    assert of_events == {"events_pkey", "events_batch_id_idx", "events_session_idx", "events_pending_idx"}
    await partitions.ensure(connection, [date(2026, 1, 2)])
    of_day = await connection.fetch(
        "SELECT pg_get_indexdef(indexrelid) AS definition FROM pg_index"
        " WHERE indrelid = 'analytics.events_20260102'::regclass"
    )
    # Made once from the parent's, and matched to it: not twice.
    assert len(of_day) == 4


async def test_every_foreign_key_has_an_index(connection: asyncpg.Connection):
    missing = await connection.fetch(
        "SELECT conrelid::regclass::text AS relation, conname FROM pg_constraint AS c"
        " WHERE contype = 'f' AND connamespace::regnamespace::text = ANY ($1) AND NOT EXISTS ("
        "   SELECT FROM pg_index AS i WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1])",
        SCHEMAS,
    )
    assert [row["conname"] for row in missing] == []


LEADS = """
INSERT INTO marketing.leads (email, source, status, score, utm_source, utm_campaign, country_code, company_name,
    phone_number, interested_features, created_at)
SELECT 'lead' || n || '@example.com', (enum_range(NULL::marketing.lead_source))[1 + n % 5],
    CASE WHEN n % 100 = 0 THEN 'lost' ELSE (enum_range(NULL::marketing.lead_status))[1 + n % 4] END,
    n % 100, 'google', 'c' || n % 50,
    (ARRAY['DE', 'US', 'BR'])[1 + n % 3], 'Company ' || n, '+49170' || 1000000 + n,
    ARRAY['feature ' || n % 200], now() - n * interval '1 minute'
FROM generate_series(1, 3000) AS n
"""
OTHERS = """
INSERT INTO onboarding.sessions (business_data, status, started_at, last_activity_at, created_at)
SELECT jsonb_build_object('email', 's' || n || '@example.com'),
    CASE WHEN n % 20 = 0 THEN 'in_progress' ELSE 'not_started' END::onboarding.session_status,
    CASE WHEN n % 20 = 0 THEN now() - interval '9 days' END,
    now() - n * interval '1 minute', now() - n * interval '1 minute'
FROM generate_series(1, 2000) AS n;
INSERT INTO onboarding.step_activities (session_id, step, activity_type)
SELECT id, 'business_info', 'form_started' FROM onboarding.sessions;
INSERT INTO analytics.event_aggregations (event_type, event_name, time_bucket, granularity, dimensions, event_count)
SELECT 'page_view', 'event ' || n % 40, date_trunc('hour', now()) - (n / 40) * interval '1 hour', 'hour',
    CASE WHEN n % 2 = 0 THEN '{}' ELSE jsonb_build_object('country', n % 97) END, n
FROM generate_series(1, 8000) AS n;
INSERT INTO analytics.flushes (journal, first_record, last_record, rolled_up_at)
SELECT 1, n, n, CASE WHEN n < 1990 THEN now() END FROM generate_series(1, 2000) AS n;
INSERT INTO analytics.rejected_events (reason, payload)
SELECT 'reason ' || n % 50, '{}' FROM generate_series(1, 3000) AS n;
"""
QUERIES = [
    ("leads_email_key", "SELECT * FROM marketing.leads WHERE email = 'lead7@example.com' AND deleted_at IS NULL"),
    (
        "leads_recent_idx",
        "SELECT * FROM marketing.leads WHERE deleted_at IS NULL AND (created_at, id) <"
        " (now() - interval '1 hour', '550e8400-e29b-41d4-a716-446655440001')"
        " ORDER BY created_at DESC, id DESC LIMIT 50",
    ),
    (
        "leads_status_recent_idx",
        "SELECT * FROM marketing.leads WHERE status = 'lost' AND deleted_at IS NULL"
        " ORDER BY created_at DESC, id DESC LIMIT 20",
    ),
    (
        "leads_promising_idx",
        "SELECT * FROM marketing.leads WHERE status = 'new' AND deleted_at IS NULL"
        " ORDER BY score DESC, created_at LIMIT 9",
    ),
    ("leads_company_idx", "SELECT * FROM marketing.leads WHERE lower(company_name) = 'company 77'"),
    ("leads_phone_number_idx", "SELECT * FROM marketing.leads WHERE phone_number = '+491701000077'"),
    ("leads_interested_features_idx", "SELECT * FROM marketing.leads WHERE interested_features @> '{feature 7}'"),
    (
        "sessions_in_progress_idx",
        "SELECT * FROM onboarding.sessions WHERE status = 'in_progress'"
        " AND last_activity_at < now() - interval '33 hours'",
    ),
    ("sessions_session_token_key", "SELECT * FROM onboarding.sessions WHERE session_token = 'sess_none'"),
    (
        "sessions_email_idx",
        "SELECT * FROM onboarding.sessions WHERE lower(business_data ->> 'email') = 's9@example.com'",
    ),
    (
        "step_activities_session_idx",
        "SELECT * FROM onboarding.step_activities WHERE session_id = '550e8400-e29b-41d4-a716-446655440001'"
        " ORDER BY created_at",
    ),
    (
        "event_aggregations_totals_idx",
        "SELECT time_bucket, event_count FROM analytics.event_aggregations WHERE event_name = 'event 7'"
        " AND granularity = 'hour' AND dimensions = '{}' AND time_bucket >= now() - interval '1 day'",
    ),
    (
        "event_aggregations_dimensions_idx",
        "SELECT * FROM analytics.event_aggregations WHERE dimensions @> '{\"country\": 13}'",
    ),
    (
        "flushes_not_rolled_up_idx",
        "SELECT * FROM analytics.flushes WHERE rolled_up_at IS NULL ORDER BY flushed_at LIMIT 100",
    ),
    (
        "rejected_events_reason_idx",
        "SELECT * FROM analytics.rejected_events WHERE reason = 'reason 7' ORDER BY id DESC LIMIT 20",
    ),
]


@pytest.fixture
async def filled(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A few thousand rows: enough for the planner to want an index."""
    await connection.execute("INSERT INTO analytics.journals (identity) VALUES (gen_random_uuid())")
    # Triggers would only cost time.
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(LEADS)
    await connection.execute(OTHERS)
    await connection.execute("ANALYZE")
    return connection


def used(plan: Any) -> set[str]:
    """The names of all indexes in a plan."""
    if isinstance(plan, list):
        return set().union(*map(used, plan))
    if not isinstance(plan, dict):
        return set()
    own = {plan["Index Name"]} if "Index Name" in plan else set()
    return own.union(*map(used, plan.values()))


async def test_queries_use_their_indexes(filled: asyncpg.Connection):
    found = {}
    for name, query in QUERIES:
        plan = json.loads(await filled.fetchval(f"EXPLAIN (FORMAT JSON) {query}"))
        found[name] = used(plan)
    assert {name: {name} & plan for name, plan in found.items()} == {name: {name} for name, _ in QUERIES}, found


# Closed days.


async def fill_day(connection: asyncpg.Connection, day: date, rows: int = 200) -> str:
    await partitions.ensure(connection, [day])
    await connection.execute(
        "INSERT INTO analytics.events (created_at, type, name, user_id, properties, batch_id)"
        " SELECT $1::timestamptz + n * interval '1 second', 'system', 'tick', 'u' || n % 7,"
        " jsonb_build_object('n', n), 1"
        " FROM generate_series(1, $2) AS n",
        datetime(day.year, day.month, day.day, tzinfo=UTC),
        rows,
    )
    return f"events_{day:%Y%m%d}"


async def of_partition(connection: asyncpg.Connection, partition: str) -> dict[str, bool]:
    """Name of each closed day's index -> whether it is valid."""
    rows = await connection.fetch(
        "SELECT indexrelid::regclass::text AS name, indisvalid FROM pg_index"
        " WHERE indrelid = ('analytics.' || $1)::regclass"
        " AND indexrelid::regclass::text LIKE '%closed_idx'",
        partition,
    )
    return {row["name"].removeprefix("analytics."): row["indisvalid"] for row in rows}


async def test_closed_days_get_theirs_once_and_today_does_not(connection: asyncpg.Connection):
    today = datetime.now(UTC).date()
    old = await fill_day(connection, today - timedelta(days=3))
    hot = await fill_day(connection, today)
    assert await partitions.index_closed_days(connection) == 5
    kinds = ("anonymous", "name", "page", "properties", "user")
    assert await of_partition(connection, old) == {f"{old}_{kind}_closed_idx": True for kind in kinds}
    assert await of_partition(connection, hot) == {}
    assert await partitions.index_closed_days(connection) == 0
    # A day is closed some time after it has ended, for those who are late.
    listed = "SELECT count(*) FROM analytics.missing_closed_day_indexes($1)"
    assert await connection.fetchval(listed, timedelta(days=-2)) == 5
    assert await connection.fetchval(listed, timedelta(days=1)) == 0


async def test_what_an_interrupted_build_left_is_built_again(connection: asyncpg.Connection):
    day = datetime.now(UTC).date() - timedelta(days=3)
    partition = await fill_day(connection, day)
    name = f"{partition}_name_closed_idx"
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON analytics.{partition} (name)")
    assert await of_partition(connection, partition) == {name: False}
    assert await partitions.index_closed_days(connection) == 5
    assert set((await of_partition(connection, partition)).values()) == {True}
    definition = await connection.fetchval("SELECT pg_get_indexdef(('analytics.' || $1)::regclass)", name)
    assert "UNIQUE" not in definition


async def test_a_late_event_is_stored_while_its_day_is_being_indexed(
    connection: asyncpg.Connection, database_url: str
):
    day = datetime.now(UTC).date() - timedelta(days=3)
    partition = await fill_day(connection, day)
    holder, builder = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        # CONCURRENTLY waits for this transaction, which has written to the day; meanwhile others write on.
        transaction = holder.transaction()
        await transaction.start()
        insert = (
            "INSERT INTO analytics.events (created_at, type, name, batch_id)"
            f" VALUES ('{day} 12:00:00+00', 'system', $1, 1)"
        )
        await holder.execute(insert, "held")
        building = asyncio.create_task(partitions.index_closed_days(builder))
        waiting = (
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock')"
        )
        async with asyncio.timeout(20):
            while not await connection.fetchval(waiting):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await connection.execute("SET lock_timeout = '5s'")
        await connection.execute(insert, "late")
        # And only one builds.
        assert await partitions.index_closed_days(connection) == 0
        await transaction.commit()
        assert await building == 5
    finally:
        await holder.close()
        await builder.close()
    names = await connection.fetch(f"SELECT name FROM analytics.{partition} WHERE name <> 'tick' ORDER BY name")
    assert [row["name"] for row in names] == ["held", "late"]
