"""Who may do what: every table, role and verb, by the table below."""

from __future__ import annotations

import asyncpg
import pytest

from tests.support.roles import DAY, OTHERS, OURS, ROWS, VISITOR, acting, affected, claims

# For select, insert, update, delete: A every row, O only their own, - none. A running experiment is anon's own.
MATRIX = """
table                         anon  authenticated  analyst  admin  service_role
marketing.leads               OA--  ----           ----     AAAA   AAAA
marketing.lead_interactions   ----  ----           ----     AAAA   AAAA
onboarding.sessions           OAO-  ----           ----     AAAA   AAAA
onboarding.step_activities    OO--  ----           ----     AAAA   AAAA
analytics.events              -A--  ----           A---     AAAA   AAAA
analytics.event_keys          ----  ----           A---     AAAA   AAAA
analytics.event_aggregations  ----  ----           A---     AAAA   AAAA
analytics.stale_buckets       ----  ----           A---     AAAA   AAAA
analytics.identities          ----  ----           A---     AAAA   AAAA
analytics.people              ----  ----           A---     AAAA   AAAA
analytics.visits              ----  ----           A---     AAAA   AAAA
analytics.stale_identities    ----  ----           A---     AAAA   AAAA
analytics.metrics             ----  ----           A---     AAAA   AAAA
analytics.stale_metrics       ----  ----           A---     AAAA   AAAA
analytics.journals            ----  ----           A---     AAAA   AAAA
analytics.flushes             ----  ----           A---     AAAA   AAAA
analytics.rejected_events     ----  ----           A---     AAAA   AAAA
analytics.leases              ----  ----           A---     AAAA   AAAA
analytics.visitor_salts       ----  ----           ----     ----   ----
analytics.bucket_totals       ----  ----           A---     AAAA   AAAA
analytics.sliced_hours        ----  ----           A---     AAAA   AAAA
analytics.visit_slices        ----  ----           A---     AAAA   AAAA
analytics.saved_funnels       ----  ----           AAAA     AAAA   AAAA
experiments.experiments       O---  ----           ----     AAAA   AAAA
experiments.assignments       OOO-  ----           ----     AAAA   AAAA
whatsapp.accounts             ----  O---           O---     AAAA   AAAA
whatsapp.templates            ----  O---           O---     AAAA   AAAA
public.audit_logs             ----  ----           ----     AA--   AA--
ingest.migrations             ----  ----           ----     ----   ----
ingest.api_keys               ----  ----           ----     ----   ----
ingest.rate_limits            ----  ----           ----     ----   ----
ingest.secrets                ----  ----           ----     ----   ----
ingest.spent_tokens           ----  ----           ----     ----   ----
ingest.shared_views           ----  ----           ----     ----   ----
analytics.events_20260102     ----  ----           ----     ----   ----
"""

# A column that distinguishes our row (1) from another's (2), and one that every role with UPDATE may update.
COLUMNS: dict[str, tuple[str, str, str, str]] = {
    "marketing.leads": ("id", OURS, OTHERS, "score"),
    "marketing.lead_interactions": ("id", OURS, OTHERS, "subject"),
    "onboarding.sessions": ("id", OURS, OTHERS, "current_step"),
    "onboarding.step_activities": ("id", OURS, OTHERS, "metadata"),
    "analytics.events": ("id", OURS, OTHERS, "name"),
    "analytics.event_keys": ("id", OURS, OTHERS, "created_at"),
    "analytics.event_aggregations": ("event_name", "ours", "others", "event_count"),
    "analytics.stale_buckets": ("granularity", "day", "week", "noted_at"),
    "analytics.identities": ("anonymous_id", "ours", "others", "verified"),
    "analytics.people": ("user_id", "ours", "others", "links"),
    "analytics.visits": ("person", "ours", "others", "session_id"),
    "analytics.stale_identities": ("anonymous_id", "ours", "others", "noted_at"),
    "analytics.metrics": ("name", "ours", "others", "source"),
    "analytics.stale_metrics": ("source", "aggregates", "events", "token"),
    "analytics.journals": ("number", "1", "2", "stored_through"),
    "analytics.flushes": ("journal", "1", "2", "events_stored"),
    "analytics.rejected_events": ("reason", "ours", "others", "detail"),
    "analytics.leases": ("name", "ours", "others", "holder"),
    "analytics.visitor_salts": ("day", DAY, "2026-01-03", "created_at"),
    "analytics.bucket_totals": ("granularity", "hour", "day", "event_count"),
    "analytics.sliced_hours": ("hour", DAY, "2026-01-03", "is_complete"),
    "analytics.visit_slices": ("number", "1", "2", "events"),
    "analytics.saved_funnels": ("name", "ours", "others", "within_seconds"),
    "experiments.experiments": ("id", OURS, OTHERS, "description"),
    "experiments.assignments": ("id", OURS, OTHERS, "exposure_count"),
    "whatsapp.accounts": ("id", OURS, OTHERS, "display_name"),
    "whatsapp.templates": ("id", OURS, OTHERS, "body_text"),
    "public.audit_logs": ("table_name", "ours", "others", "row_id"),
    "ingest.migrations": ("number", "9001", "9002", "name"),
    "ingest.api_keys": ("name", "ours", "others", "name"),
    "ingest.rate_limits": ("kind", "ours", "others", "subject"),
    "ingest.secrets": ("purpose", "ours", "others", "created_at"),
    "ingest.spent_tokens": ("id", OURS, OTHERS, "expires_at"),
    "ingest.shared_views": ("name", "ours", "others", "query"),
    "analytics.events_20260102": ("id", OURS, OTHERS, "name"),
}

# The columns of a new row, and those that make it ours or another's, if any do.
INSERTS: dict[str, tuple[str, str, tuple[str, str]]] = {
    "marketing.leads": ("email", "%s", ("'ours+new@example.com'", "'others+new@example.com'")),
    "marketing.lead_interactions": ("lead_id, interaction_type", "%s, 'call_made'", (f"'{OURS}'", f"'{OTHERS}'")),
    "onboarding.sessions": ("session_token", "%s", (f"'sess_{'c' * 43}'", f"'sess_{'d' * 43}'")),
    "onboarding.step_activities": (
        "session_id, step, activity_type",
        "%s, 'testing', 'form_started'",
        (f"'{OURS}'", f"'{OTHERS}'"),
    ),
    "analytics.events": ("type, name, session_id", "'page_view', 'home', %s", ("'ours'", "'others'")),
    "analytics.event_keys": ("client_time, id, created_at", "'-infinity', %s, now()", (f"'{OURS}'", f"'{OTHERS}'")),
    "analytics.event_aggregations": (
        "event_type, event_name, time_bucket, granularity",
        "'system', %s, now(), 'hour'",
        ("'ours'", "'others'"),
    ),
    "analytics.stale_buckets": ("granularity, time_bucket", "%s, now()", ("'hour'", "'month'")),
    "analytics.stale_metrics": (
        "source, granularity, time_window_start",
        "%s, 'week', now()",
        ("'aggregates'", "'events'"),
    ),
    "analytics.identities": (
        "anonymous_id, user_id, linked_at, received_at, batch_id, batch_position",
        "%s, 'u', now(), now(), 1, 0",
        ("'ours new'", "'others new'"),
    ),
    "analytics.people": ("user_id, counted_as", "%s, 'new'", ("'ours new'", "'others new'")),
    "analytics.visits": (
        "person, started_at, ended_at, session_id",
        "%s, now(), now(), 's'",
        ("'ours new'", "'others new'"),
    ),
    "analytics.stale_identities": ("anonymous_id", "%s", ("'ours new'", "'others new'")),
    "analytics.metrics": ("name, type", "%s, 'gauge'", ("'ours new'", "'others new'")),
    "analytics.journals": ("identity", "%s", ("gen_random_uuid()", "gen_random_uuid()")),
    "analytics.flushes": ("journal, first_record, last_record", "%s, 7, 8", ("1", "2")),
    "analytics.rejected_events": ("reason", "%s", ("'ours'", "'others'")),
    "analytics.leases": (
        "name, token, holder, expires_at",
        "%s, gen_random_uuid(), '', now()",
        ("'ours new'", "'others new'"),
    ),
    "analytics.visitor_salts": ("day, salt", "%s, sha256('new')", ("'2026-01-04'", "'2026-01-05'")),
    "analytics.bucket_totals": ("granularity, time_bucket", "%s, now()", ("'hour'", "'day'")),
    "analytics.sliced_hours": ("hour", "%s", ("'2026-01-04'", "'2026-01-05'")),
    "analytics.visit_slices": (
        "number, hour, first_at, last_at, events, page_views, conversions, acts, pages, events_of_pages,"
        " page_views_of_pages, conversions_of_pages",
        "%s, now(), now(), now(), 1, 0, 0, 1, '{/}', '{1}', '{0}', '{0}'",
        ("3", "4"),
    ),
    "analytics.saved_funnels": ("name, steps", "%s, '{a,b}'", ("'ours new'", "'others new'")),
    "experiments.experiments": ("name", "%s", ("'ours new'", "'others new'")),
    "experiments.assignments": (
        "experiment_id, session_id, variant_id",
        f"'{OURS}', %s, 'b'",
        # Anon's other identification: the onboarding session's id.
        (f"'{OURS}'", f"'{OTHERS}'"),
    ),
    "whatsapp.accounts": (
        "lead_id, business_account_id, phone_number_id, phone_number",
        "%s, '8', '9', '+5511900000002'",
        (f"'{OURS}'", f"'{OTHERS}'"),
    ),
    "whatsapp.templates": (
        "account_id, template_name, category, body_text",
        "%s, 'new', 'utility', 'a'",
        (f"'{OURS}'", f"'{OTHERS}'"),
    ),
    "public.audit_logs": ("table_name, operation", "%s, 'EXPORT'", ("'ours'", "'others'")),
    "ingest.migrations": ("number, name, sha256", "%s, 'new', ''", ("9003", "9004")),
    "ingest.api_keys": ("name, shown, hash, scopes", "%s, '', sha256('new'), '{read}'", ("'ours'", "'others'")),
    "ingest.rate_limits": ("kind, subject, hits, last_hit_at", "'new', %s, '{}', now()", ("'ours'", "'others'")),
    "ingest.secrets": ("purpose, secret", "%s, sha256('new')", ("'ours new'", "'others new'")),
    "ingest.spent_tokens": ("id, expires_at", "%s, now()", ("gen_random_uuid()", "gen_random_uuid()")),
    "ingest.shared_views": (
        "name, page, query, created_by",
        "%s, '/', '', ''",
        ("'ours new'", "'others new'"),
    ),
    "analytics.events_20260102": ("type, name, created_at", "'system', %s, '2026-01-02'", ("'ours'", "'others'")),
}

SETTINGS = {
    "anon": VISITOR,
    "authenticated": claims(),
    "analyst": claims("analyst"),
    "admin": claims("admin"),
    "service_role": {},
}


def matrix() -> dict[str, dict[str, str]]:
    """Table -> role -> the four letters."""
    header, *lines = [line.split() for line in MATRIX.strip().splitlines()]
    return {table: dict(zip(header[1:], cells, strict=True)) for table, *cells in lines}


def statements(table: str, verb: str) -> tuple[str, str]:
    """The verb on our row, and on another's."""
    key, ours, others, column = COLUMNS[table]
    if verb == "insert":
        columns, values, (first, second) = INSERTS[table]
        start = f"INSERT INTO {table} ({columns}) VALUES"
        return f"{start} ({values % first})", f"{start} ({values % second})"
    start = {
        "select": f"SELECT {key} FROM {table}",
        "update": f"UPDATE {table} SET {column} = {column}",
        "delete": f"DELETE FROM {table}",
    }[verb]
    return f"{start} WHERE {key} = '{ours}'", f"{start} WHERE {key} = '{others}'"


async def reached(connection: asyncpg.Connection, table: str) -> str:
    """The four letters for the connection's current role."""
    letters = ""
    for verb in ("select", "insert", "update", "delete"):
        counts = [await affected(connection, statement) or 0 for statement in statements(table, verb)]
        letters += {(0, 0): "-", (1, 0): "O", (1, 1): "A"}.get((counts[0], counts[1]), "?")
    return letters


@pytest.fixture
async def populated(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute(ROWS)
    # Not about foreign keys: a row that others refer to might not be deletable even with permission.
    await connection.execute("ALTER TABLE analytics.flushes DROP CONSTRAINT flushes_journal_fkey")
    return connection


@pytest.mark.parametrize("role", SETTINGS)
async def test_matrix(populated: asyncpg.Connection, role: str):
    database_role = role if role in ("anon", "service_role") else "authenticated"
    async with acting(populated, database_role, SETTINGS[role]):
        found = {table: await reached(populated, table) for table in matrix()}
    assert found == {table: cells[role] for table, cells in matrix().items()}


async def test_service_role_that_could_not_be_given_bypassrls(populated: asyncpg.Connection):
    # Roles are global to the server, but transactional: nobody else sees this.
    transaction = populated.transaction()
    await transaction.start()
    await populated.execute("ALTER ROLE service_role NOBYPASSRLS")
    async with acting(populated, "service_role"):
        found = {table: await reached(populated, table) for table in matrix()}
    await transaction.rollback()
    assert found == {table: cells["service_role"] for table, cells in matrix().items()}


async def test_a_caller_without_identification_owns_no_rows(populated: asyncpg.Connection):
    for role, nothing in (("anon", dict.fromkeys(VISITOR, "")), ("anon", {}), ("authenticated", {})):
        async with acting(populated, role, nothing):
            for table in matrix():
                if table != "experiments.experiments":
                    letters = await reached(populated, table)
                    assert "O" not in letters, (role, table)
                    assert letters.replace("A", "-") == "----" or letters == "-A--", (role, table)


async def test_every_table_is_in_the_matrix_and_has_row_security(populated: asyncpg.Connection):
    tables = await populated.fetch(
        "SELECT relnamespace::regnamespace || '.' || relname AS name, relrowsecurity, relispartition FROM pg_class"
        " WHERE relkind IN ('r', 'p') AND relnamespace::regnamespace::text !~ '^(pg_|information_schema$)'"
    )
    assert [row["name"] for row in tables if not row["relrowsecurity"]] == []
    assert {row["name"] for row in tables if not row["relispartition"]} | {"analytics.events_20260102"} == set(
        matrix()
    )


async def test_one_permissive_policy_a_role_and_verb(connection: asyncpg.Connection):
    several = await connection.fetch("""
        SELECT polrelid::regclass::text, role::regrole::text, verb, count(*) FROM pg_policy,
            unnest(polroles) AS role,
            unnest(CASE polcmd WHEN '*' THEN '{r,a,w,d}' ELSE ARRAY[polcmd::text] END) AS verb
        WHERE polpermissive GROUP BY 1, 2, 3 HAVING count(*) > 1
    """)
    assert several == []


async def test_policies_determine_the_caller_once_per_statement(populated: asyncpg.Connection):
    for role, settings, query in (
        ("anon", VISITOR, "SELECT email FROM marketing.leads"),
        ("anon", VISITOR, "SELECT id FROM onboarding.sessions"),
        ("authenticated", claims("analyst"), "SELECT name FROM analytics.events"),
        ("authenticated", claims(), "SELECT id FROM whatsapp.accounts"),
    ):
        async with acting(populated, role, settings):
            plan = "\n".join(row[0] for row in await populated.fetch(f"EXPLAIN {query}"))
        assert "InitPlan" in plan
        filters = [line for line in plan.splitlines() if "Filter" in line or "Cond" in line]
        assert not [line for line in filters if "current_setting" in line or "jwt" in line or "lead_id()" in line]


async def test_a_partition_created_later_is_protected_too(populated: asyncpg.Connection):
    await populated.execute("SELECT analytics.ensure_events_partition('2026-01-03')")
    for role, settings in (("anon", VISITOR), ("authenticated", claims("admin")), ("service_role", {})):
        async with acting(populated, role, settings):
            for day in (DAY, "2026-01-03"):
                assert await affected(populated, f"SELECT FROM analytics.events_{day.replace('-', '')}") is None
