"""Every index serves a query and no two serve the same one; those of closed days are created without blocking."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.postgres import connections
from ingest.postgres.leases import Lease
from ingest.store import partitions

MIGRATION = Path(__file__).parents[2] / "sql" / "migrations" / "003_performance_indexes.sql"
TABLES = """
SELECT pg_class.oid::regclass::text AS name FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p') AND NOT relispartition
    AND nspname IN ('marketing', 'onboarding', 'analytics', 'experiments', 'whatsapp', 'public')
"""
# Key columns as written by pg_get_indexdef(index, n), each with its operator class; without the order, because an
# index can also be read backwards.
INDEXES = f"""
SELECT indexrelid::regclass::text AS name, indrelid::regclass::text AS on_table, amname AS method,
    pg_get_expr(indpred, indrelid) AS predicate, indisunique AS is_unique,
    EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid) AS is_constraint,
    ARRAY(
        SELECT pg_get_indexdef(indexrelid, n, false) || ' ' || indclass[n - 1]
        FROM generate_series(1, indnkeyatts) AS n ORDER BY n
    ) AS keys
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
WHERE indrelid::regclass::text IN ({TABLES})
ORDER BY 1
"""
ON_TABLE = """
SELECT relname::text AS name FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE indrelid = $1::text::regclass AND indisvalid ORDER BY 1
"""
CLOSED = [
    "anonymous_id_created_at",
    "counted",
    "counted_long",
    "name_created_at",
    "page_created_at",
    "properties_gin",
    "user_id_created_at",
]
DAY = date(2026, 1, 2)
TODAY = datetime.now(UTC).date()
INSERT = "INSERT INTO analytics.events (type, name, created_at) VALUES ('system', 'ping', '2026-01-02 12:00+00')"


# The list.


async def test_at_least_fifty_besides_those_of_constraints(connection: asyncpg.Connection):
    made = [index["name"] for index in await connection.fetch(INDEXES) if not index["is_constraint"]]
    assert len(made) >= 50


async def test_every_table_has_some_except_small_ones_of_the_service(
    connection: asyncpg.Connection,
):
    tables = {row["name"] for row in await connection.fetch(TABLES)}
    indexed = {index["on_table"] for index in await connection.fetch(INDEXES) if not index["is_constraint"]}
    assert tables - indexed == {
        "analytics.journals",
        "analytics.leases",
        "analytics.stale_buckets",
        "analytics.stale_identities",
        "analytics.stale_metrics",
        "analytics.bucket_totals",
        "analytics.sliced_hours",
        "analytics.visit_slices",
        "analytics.saved_funnels",
        "analytics.visitor_salts",
    }


async def test_none_repeats_another_or_its_leading_columns(connection: asyncpg.Connection):
    indexes = await connection.fetch(INDEXES)
    repeated = [
        (index["name"], other["name"])
        for index in indexes
        for other in indexes
        if index["name"] != other["name"]
        and all(index[same] == other[same] for same in ("on_table", "method", "predicate"))
        and other["keys"][: len(index["keys"])] == index["keys"]
        # A unique index is needed even if another begins with its columns.
        and (not index["is_unique"] or len(index["keys"]) == len(other["keys"]))
    ]
    assert repeated == []


async def test_every_foreign_key_has_one(connection: asyncpg.Connection):
    # All have one column; an index without NULLs will do, as NULL refers to no row.
    without = await connection.fetch("""
        SELECT conrelid::regclass::text || '.' || attname FROM pg_constraint
        JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
        WHERE contype = 'f' AND NOT EXISTS (
            SELECT FROM pg_index WHERE indrelid = conrelid AND indkey[0] = conkey[1]
                AND (indpred IS NULL OR pg_get_expr(indpred, indrelid) = format('(%I IS NOT NULL)', attname))
        )
    """)
    assert without == []


def statements_with_their_comments() -> Iterator[tuple[str, str]]:
    lines = MIGRATION.read_text(encoding="utf-8").splitlines()
    for above, line in pairwise(lines):
        if line.startswith("CREATE INDEX"):
            yield above, line


def test_each_names_its_query():
    statements = list(statements_with_their_comments())
    assert len(statements) >= 50
    assert [line for above, line in statements if not above.startswith("-- ")] == []


# Events.


async def test_the_indexes_that_a_copy_maintains(connection: asyncpg.Connection):
    await partitions.ensure(connection, [DAY])
    parent = [row["name"] for row in await connection.fetch(ON_TABLE, "analytics.events")]
    assert parent == [
        "events_batch_id_brin",
        "events_pkey",
        "events_session_id_created_at_idx",
        "events_waiting_created_at_idx",
    ]
    # ATTACH adopts the indexes copied by LIKE as those of the parent, instead of creating them again.
    assert (
        await connection.fetch("""
        SELECT indexrelid FROM pg_index WHERE indrelid = 'analytics.events_20260102'::regclass
        EXCEPT SELECT inhrelid FROM pg_inherits
    """)
        == []
    )
    assert len(await connection.fetch(ON_TABLE, "analytics.events_20260102")) == len(parent)


async def test_batches_of_alternating_collectors_are_in_few_pages(connection: asyncpg.Connection):
    await partitions.ensure(connection, [DAY])
    # Four journals, twenty rows per flush; a range of pages has batches of all four.
    await connection.execute("""
        INSERT INTO analytics.events (type, name, created_at, context, batch_id)
        SELECT 'system', 'ping', '2026-01-02 12:00+00'::timestamptz + n * interval '1 ms',
            jsonb_build_object('filler', repeat('x', 500)), ((1 + n / 20 % 4)::bigint << 40) | (n / 80)
        FROM generate_series(0, 19999) AS n
    """)
    await connection.execute("SELECT brin_summarize_new_values('analytics.events_20260102_batch_id_idx')")
    # With so few pages the planner would read the whole table.
    await connection.execute("SET enable_seqscan = off")
    [found] = json.loads(
        await connection.fetchval("""
            EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM analytics.events
            WHERE batch_id BETWEEN (2::bigint << 40) + 100 AND (2::bigint << 40) + 101
        """)
    )
    assert list(indexes_in(found["Plan"])) == ["events_20260102_batch_id_idx"]
    assert found["Plan"]["Actual Rows"] == 40
    pages = await connection.fetchval("SELECT pg_relation_size('analytics.events_20260102') / 8192")
    # Two ranges if the rows lie across a boundary.
    assert found["Plan"]["Lossy Heap Blocks"] <= 64 < pages / 10


COUNTED_UP = {
    "analytics.event_aggregations": (
        "INSERT INTO analytics.event_aggregations (event_type, event_name, time_bucket, granularity)"
        " VALUES ('system', 'ping', now(), 'hour')",
        "UPDATE analytics.event_aggregations SET event_count = event_count + 1, unique_users = 1, updated_at = now()",
    ),
    "experiments.assignments": (
        "INSERT INTO experiments.assignments (experiment_id, session_id, variant_id, first_exposure_at)"
        " SELECT id, 'session', 'control', now() FROM experiments.experiments",
        "UPDATE experiments.assignments SET exposure_count = exposure_count + 1, last_exposure_at = now()",
    ),
    "whatsapp.accounts": (
        "INSERT INTO whatsapp.accounts (lead_id, business_account_id, phone_number_id, phone_number)"
        " SELECT id, 'business', 'phone', '+491701234567' FROM marketing.leads",
        "UPDATE whatsapp.accounts SET messages_sent_today = messages_sent_today + 1, last_message_sent_at = now()",
    ),
}


@pytest.mark.parametrize("table", COUNTED_UP)
async def test_counting_up_writes_to_no_index(connection: asyncpg.Connection, table: str):
    insert, count_up = COUNTED_UP[table]
    await connection.execute("INSERT INTO experiments.experiments (name) VALUES ('experiment')")
    await connection.execute("INSERT INTO marketing.leads (email) VALUES ('lead@example.com')")
    await connection.execute(insert)
    async with connection.transaction():
        assert await connection.execute(count_up) == "UPDATE 1"
        assert await connection.fetchval("SELECT pg_stat_get_xact_tuples_hot_updated($1::text::regclass)", table) == 1


# Plans.

ROWS = """
SELECT analytics.ensure_events_partition('2026-01-02');
INSERT INTO marketing.leads
    (email, company_name, phone_number, source, status, interested_features, consent, created_at)
SELECT 'lead' || n || '@example.com', 'Company ' || n, '+5511' || 900000000 + n,
    (enum_range(NULL::marketing.lead_source))[n % 5 + 1], (enum_range(NULL::marketing.lead_status))[n / 5 % 5 + 1],
    ARRAY['feature' || n % 500], CASE n % 100 WHEN 0 THEN '{"newsletter": true}' ELSE '{}' END::jsonb,
    '2026-01-02'::timestamptz - n * interval '1 hour'
FROM generate_series(1, 3000) AS n;
INSERT INTO marketing.lead_interactions (lead_id, interaction_type)
SELECT id, 'call_made' FROM marketing.leads;
INSERT INTO onboarding.sessions (lead_id, status, business_data, started_at, last_activity_at, created_at)
SELECT id, CASE WHEN n % 50 = 0 THEN 'in_progress' ELSE 'completed' END::onboarding.session_status,
    jsonb_build_object('email', email, 'industry', 'industry ' || n % 500), created_at, created_at, created_at
FROM (SELECT id, email, created_at, row_number() OVER () AS n FROM marketing.leads) AS leads;
INSERT INTO onboarding.step_activities (session_id, step, activity_type, field_name, error_message, created_at)
SELECT id, 'testing', 'field_filled', 'field', CASE WHEN random() < 0.02 THEN 'wrong' END, created_at
FROM onboarding.sessions;
INSERT INTO analytics.events (type, name, session_id, created_at, batch_id)
SELECT 'system', 'ping', 's' || n / 10, '2026-01-02'::timestamptz + n * interval '1 second',
    CASE WHEN n < 9990 THEN n / 100 END
FROM generate_series(1, 10000) AS n;
INSERT INTO analytics.journals (identity) VALUES (gen_random_uuid());
INSERT INTO analytics.flushes (journal, first_record, last_record, rolled_up_at)
SELECT 1, n, n, CASE WHEN n < 2990 THEN now() END FROM generate_series(1, 3000) AS n;
INSERT INTO analytics.rejected_events (reason, replayed_at)
SELECT 'reason' || n % 20, CASE WHEN n % 100 > 0 THEN now() END FROM generate_series(1, 3000) AS n;
INSERT INTO analytics.event_aggregations (event_type, event_name, time_bucket, granularity, dimensions)
SELECT 'system', 'event' || n % 10, '2026-01-02'::timestamptz + n / 10 * interval '1 hour', 'hour',
    CASE WHEN split THEN '{"country": "DE"}' ELSE '{}' END::jsonb
FROM generate_series(1, 3000) AS n CROSS JOIN (VALUES (true), (false)) AS halves (split);
INSERT INTO analytics.identities
    (anonymous_id, user_id, linked_at, received_at, batch_id, batch_position, last_seen_at)
SELECT 'browser' || n, 'user' || n / 2, now(), now(), n, 0, '2026-01-02'::timestamptz + n * interval '1 minute'
FROM generate_series(1, 3000) AS n;
INSERT INTO analytics.people (user_id, counted_as)
SELECT 'user' || n, 'browser' || 2 * n FROM generate_series(1, 1500) AS n;
INSERT INTO analytics.visits (person, started_at, ended_at, session_id)
SELECT 'user' || n % 100, moment, moment, n
FROM generate_series(1, 3000) AS n, LATERAL (SELECT '2026-01-02'::timestamptz + n * interval '1 hour') AS at (moment);
INSERT INTO analytics.metrics (name, type, dimensions, tags, timestamp)
SELECT 'metric' || n % 20, 'gauge', jsonb_build_object('n', n), ARRAY['tag' || n % 500],
    '2026-01-02'::timestamptz + n * interval '1 minute'
FROM generate_series(1, 3000) AS n;
INSERT INTO experiments.experiments (name) VALUES ('button');
INSERT INTO experiments.assignments
    (experiment_id, user_id, session_id, variant_id, first_exposure_at, last_exposure_at)
SELECT id, CASE WHEN n % 2 = 0 THEN gen_random_uuid() END, 's' || n, 'control', seen, seen
FROM experiments.experiments CROSS JOIN generate_series(1, 3000) AS n
CROSS JOIN LATERAL (SELECT CASE WHEN n % 100 = 0 THEN now() END) AS exposure (seen);
INSERT INTO whatsapp.accounts (lead_id, business_account_id, phone_number_id, phone_number)
SELECT id, '1', id::text, phone_number FROM marketing.leads;
INSERT INTO whatsapp.templates (account_id, template_name, category, body_text, status)
SELECT id, 'hello', 'utility', 'Hello',
    CASE WHEN random() < 0.02 THEN 'pending' ELSE 'approved' END::whatsapp.template_status
FROM whatsapp.accounts;
INSERT INTO public.audit_logs (table_name, operation, row_id, user_email)
SELECT 'marketing.leads', CASE WHEN n % 1000 = 0 THEN 'ERASE' ELSE 'UPDATE' END, n, 'Admin' || n || '@example.com'
FROM generate_series(1, 3000) AS n;
"""
ZERO = "'00000000-0000-4000-8000-000000000000'"
PLANS = {
    # The unique index leaves out deleted leads, but an erasure needs their rows, too.
    "SELECT * FROM marketing.leads WHERE email = 'lead7@example.com'": "leads_email_pattern_idx",
    "SELECT id FROM marketing.leads WHERE email LIKE 'lead77@%'": "leads_email_pattern_idx",
    f"SELECT id FROM marketing.leads WHERE deleted_at IS NULL AND (created_at, id) < ('2025-12-01', {ZERO})"
    " ORDER BY created_at DESC, id DESC LIMIT 50": "leads_created_at_idx",
    "SELECT id FROM marketing.leads WHERE deleted_at IS NULL AND status = 'new'"
    " ORDER BY created_at DESC, id DESC LIMIT 20": "leads_status_created_at_idx",
    "SELECT * FROM marketing.leads WHERE deleted_at IS NULL AND source = 'demo-request' AND status = 'new'"
    " ORDER BY created_at DESC LIMIT 20": "leads_source_status_created_at_idx",
    "SELECT id FROM marketing.leads WHERE deleted_at IS NULL AND status IN ('new', 'contacted', 'qualified')"
    " ORDER BY score DESC, id DESC LIMIT 20": "leads_open_score_idx",
    "SELECT id FROM marketing.leads WHERE lower(company_name) LIKE 'company 77%'": "leads_lower_company_name_idx",
    "SELECT id FROM marketing.leads WHERE phone_number = '+5511900000007'": "leads_phone_number_idx",
    "SELECT id FROM marketing.leads WHERE interested_features @> '{feature7}'": "leads_interested_features_idx",
    "SELECT id FROM marketing.leads WHERE consent ? 'newsletter'": "leads_consent_idx",
    f"SELECT * FROM marketing.lead_interactions WHERE lead_id = {ZERO} ORDER BY created_at DESC": (
        "lead_interactions_lead_id_created_at_idx"
    ),
    f"SELECT id FROM onboarding.sessions WHERE lead_id = {ZERO}": "sessions_lead_id_idx",
    "SELECT id FROM onboarding.sessions WHERE session_token = 'sess_x'": "sessions_session_token_key",
    "SELECT id FROM onboarding.sessions WHERE status = 'in_progress'"
    " AND last_activity_at < '2025-10-01'": "sessions_in_progress_last_activity_at_idx",
    "SELECT id FROM onboarding.sessions WHERE lower(business_data ->> 'email') = 'lead7@example.com'": (
        "sessions_lower_business_email_idx"
    ),
    """SELECT id FROM onboarding.sessions WHERE business_data @> '{"industry": "industry 7"}'""": (
        "sessions_business_data_idx"
    ),
    "SELECT created_at, business_info_completed_at, whatsapp_integration_completed_at, bot_setup_completed_at,"
    " testing_completed_at, status FROM onboarding.sessions"
    " WHERE created_at >= '2025-09-01' AND created_at < '2025-09-08'": "sessions_created_at_idx",
    f"SELECT * FROM onboarding.step_activities WHERE session_id = {ZERO} ORDER BY created_at": (
        "step_activities_session_id_created_at_idx"
    ),
    "SELECT field_name, count(*) FROM onboarding.step_activities WHERE step = 'testing'"
    " AND error_message IS NOT NULL GROUP BY 1": "step_activities_error_step_field_idx",
    "SELECT * FROM analytics.events WHERE session_id = 's7' ORDER BY created_at": (
        "events_20260102_session_id_created_at_idx"
    ),
    "SELECT created_at, id FROM analytics.events WHERE batch_id IS NULL LIMIT 5000": "events_20260102_created_at_idx",
    "SELECT count(*) FROM analytics.events WHERE batch_id BETWEEN 1 AND 2": "events_20260102_batch_id_idx",
    "SELECT * FROM analytics.flushes WHERE rolled_up_at IS NULL ORDER BY flushed_at LIMIT 20": (
        "flushes_not_rolled_up_idx"
    ),
    "SELECT id FROM analytics.rejected_events WHERE reason = 'reason7'"
    " AND received_at > now() - interval '1 hour' ORDER BY received_at DESC LIMIT 20": (
        "rejected_events_reason_received_at_idx"
    ),
    "SELECT id FROM analytics.rejected_events WHERE replayed_at IS NULL AND NOT payload_truncated AND id > 7"
    " ORDER BY id LIMIT 500": "rejected_events_replayable_idx",
    "SELECT time_bucket, event_count FROM analytics.event_aggregations WHERE granularity = 'hour'"
    " AND event_type = 'system' AND event_name = 'event7' AND dimensions = '{}' AND time_bucket >= '2026-01-05'"
    " ORDER BY time_bucket": "event_aggregations_total_name_idx",
    "SELECT sum(event_count) FROM analytics.event_aggregations WHERE granularity = 'hour' AND dimensions = '{}'"
    " AND time_bucket >= '2026-01-14'": "event_aggregations_total_time_bucket_idx",
    "SELECT user_id FROM analytics.identities WHERE anonymous_id = 'browser7'": "identities_pkey",
    "SELECT anonymous_id FROM analytics.identities WHERE user_id = 'user7'": "identities_user_id_idx",
    "SELECT user_id FROM analytics.people WHERE counted_as = 'browser8'": "people_counted_as_key",
    "SELECT session_id FROM analytics.visits WHERE person = 'user7' AND started_at <= '2026-02-02'"
    " ORDER BY started_at DESC LIMIT 1": "visits_pkey",
    "SELECT * FROM analytics.metrics WHERE name = 'metric7' ORDER BY timestamp DESC LIMIT 1": (
        "metrics_name_timestamp_idx"
    ),
    "SELECT id FROM analytics.metrics WHERE tags @> '{tag7}'": "metrics_tags_idx",
    "SELECT string_agg(id::text || xmin::text, ',' ORDER BY id) FROM experiments.experiments"
    " WHERE status <> 'draft' AND archived_at IS NULL": "experiments_served_idx",
    "SELECT id FROM experiments.experiments WHERE archived_at IS NULL ORDER BY created_at DESC, id DESC LIMIT 100": (
        "experiments_created_at_idx"
    ),
    f"SELECT * FROM experiments.assignments WHERE user_id = {ZERO}": "assignments_user_id_idx",
    "SELECT * FROM experiments.assignments WHERE session_id = 's7'": "assignments_session_id_idx",
    f"SELECT id FROM whatsapp.accounts WHERE lead_id = {ZERO}": "accounts_lead_id_idx",
    "SELECT id FROM whatsapp.accounts WHERE phone_number_id = '7'": "accounts_phone_number_id_idx",
    "SELECT id FROM whatsapp.templates WHERE status = 'pending' ORDER BY created_at LIMIT 5": (
        "templates_pending_created_at_idx"
    ),
    "SELECT * FROM public.audit_logs WHERE row_id = '7' AND table_name = 'marketing.leads'"
    " ORDER BY created_at DESC": "audit_logs_row_id_table_name_created_at_idx",
    "SELECT * FROM public.audit_logs WHERE lower(user_email) = 'admin7@example.com'": (
        "audit_logs_lower_user_email_idx"
    ),
    "SELECT * FROM public.audit_logs WHERE operation = 'ERASE'": "audit_logs_rare_operation_created_at_idx",
}


def indexes_in(node: dict[str, Any]) -> Iterator[str]:
    if "Index Name" in node:
        yield node["Index Name"]
    for child in node.get("Plans", ()):
        yield from indexes_in(child)


async def plan(connection: asyncpg.Connection, query: str) -> list[str]:
    [explained] = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query}"))
    return list(indexes_in(explained["Plan"]))


async def test_the_intended_index_is_used(connection: asyncpg.Connection):
    await connection.execute(ROWS)
    # Tables this small have few pages, which the planner may prefer to scan.
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("SET enable_seqscan = off")
    assert {query: await plan(connection, query) for query in PLANS} == {
        query: [index] for query, index in PLANS.items()
    }
    # Here two are equally good: the planner sees the same cost.
    of_email = await plan(connection, "SELECT * FROM marketing.leads WHERE email = 'a@b.cd' AND deleted_at IS NULL")
    assert of_email in (["leads_email_key"], ["leads_email_pattern_idx"])


# Closed days.


WAITING = (
    "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE NOT granted AND datname = current_database()"
)


async def until_somebody_waits(connection: asyncpg.Connection) -> None:
    for _ in range(500):
        if await connection.fetchval(WAITING):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits for a lock")


async def closed_names(connection: asyncpg.Connection, day: str = "20260102") -> list[str]:
    prefix = f"events_{day}_"
    found = [row["name"].removeprefix(prefix) for row in await connection.fetch(ON_TABLE, f"analytics.events_{day}")]
    return [name for name in found if name in CLOSED]


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await connections.connect(database_url, purpose="tests")
    yield opened
    await opened.close()


async def test_a_closed_day_gets_its_indexes_once(connection: asyncpg.Connection):
    await partitions.ensure(connection, [DAY, DAY + timedelta(days=1)])
    assert await partitions.index_closed_days(connection) == 2 * len(CLOSED)
    assert await closed_names(connection) == CLOSED
    assert await closed_names(connection, "20260103") == CLOSED
    assert await partitions.index_closed_days(connection) == 0
    # A late event can still be inserted into its day.
    await connection.execute(INSERT)


async def test_days_that_are_not_over_are_left_alone(connection: asyncpg.Connection):
    days = [TODAY, TODAY + timedelta(days=1)]
    await partitions.ensure(connection, days)
    assert await partitions.index_closed_days(connection) == 0


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
async def test_a_day_is_closed_by_utc_and_after_a_while(connection: asyncpg.Connection, zone: str):
    await connection.execute(f"SET TimeZone = '{zone}'")
    await partitions.ensure(connection, [DAY])
    since_end = datetime.now(UTC) - datetime(2026, 1, 3, tzinfo=UTC)
    count = "SELECT count(*) FROM analytics.missing_closed_day_indexes($1)"
    minute = timedelta(minutes=1)
    assert await connection.fetchval(count, since_end - minute) == len(CLOSED)
    assert await connection.fetchval(count, since_end + minute) == 0


async def test_the_leftover_of_an_interrupted_build_is_replaced(connection: asyncpg.Connection):
    await partitions.ensure(connection, [DAY])
    await connection.execute(INSERT)
    await connection.execute(INSERT)
    # Fails on the second row and leaves an invalid index, like any other interruption.
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(
            "CREATE UNIQUE INDEX CONCURRENTLY events_20260102_name_created_at ON analytics.events_20260102 (name)"
        )
    leftovers = await connection.fetch(
        "SELECT index_name, leftover FROM analytics.missing_closed_day_indexes() WHERE leftover IS NOT NULL"
    )
    assert [tuple(row) for row in leftovers] == [
        ("events_20260102_name_created_at", "analytics.events_20260102_name_created_at")
    ]
    assert await partitions.index_closed_days(connection) == len(CLOSED)
    assert await closed_names(connection) == CLOSED
    assert not await connection.fetchval(
        "SELECT indisunique FROM pg_index WHERE indexrelid = 'analytics.events_20260102_name_created_at'::regclass"
    )


async def test_an_index_being_built_stops_no_insert(
    connection: asyncpg.Connection, other: asyncpg.Connection, database_url: str
):
    await partitions.ensure(connection, [DAY])
    writing = await connections.connect(database_url, purpose="tests")
    transaction = writing.transaction()
    await transaction.start()
    await writing.execute(INSERT)
    making = asyncio.ensure_future(partitions.index_closed_days(connection))
    try:
        # It waits for the writing transaction, and nobody waits for it.
        await until_somebody_waits(other)
        await other.execute(INSERT)
        # An index being built is not taken for a leftover.
        assert "events_20260102_properties_gin" not in [
            row["index_name"] for row in await other.fetch("SELECT * FROM analytics.missing_closed_day_indexes()")
        ]
        await writing.execute(INSERT)
        await transaction.commit()
        assert await making == len(CLOSED)
    finally:
        making.cancel()
        await writing.close()
    assert await closed_names(connection) == CLOSED


async def test_one_process_at_a_time(connection: asyncpg.Connection, other: asyncpg.Connection):
    await partitions.ensure(connection, [DAY])
    lease = Lease(partitions.INDEXES, 60)
    assert await lease.take(other)
    assert await partitions.index_closed_days(connection) == 0
    assert await closed_names(connection) == []
    await lease.release(other)
    assert await partitions.index_closed_days(connection) == len(CLOSED)
    # And releases the lock when done.
    assert await lease.take(other)


async def test_no_statement_timeout_outlives_the_building_of_indexes_behind_a_pooler(
    connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
):
    await partitions.ensure(connection, [DAY])
    await connection.execute("SET statement_timeout = '1h'")
    monkeypatch.setattr(asyncpg.Connection, "get_server_pid", lambda self: 7)
    assert await partitions.index_closed_days(connection) == len(CLOSED)
    assert await connection.fetchval("SHOW statement_timeout") == "1h"
