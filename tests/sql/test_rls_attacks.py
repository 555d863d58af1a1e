"""What must fail: getting more rights, others' rows, or more than the limits allow. And what anon can do."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

import asyncpg
import pytest

from ingest.postgres import connections
from tests.support.roles import (
    NOT_PERMITTED,
    OTHER_TOKEN,
    OTHERS,
    OURS,
    ROWS,
    TOKEN,
    TOO_MANY,
    VISITOR,
    acting,
    affected,
    claims,
    refusal,
)

MALFORMED = ["", " ", "{", "[]", "null", '"admin"', "1", '{"app_metadata": "admin"}', '{"app_metadata": ["admin"]}']


@pytest.fixture
async def populated(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute(ROWS)
    return connection


async def refused_after(connection: asyncpg.Connection, statement: str) -> tuple[int, str | None]:
    """How often it succeeded before it was refused, and the SQLSTATE."""
    for done in range(2000):
        code = await refusal(connection, statement)
        if code is not None:
            return done, code
    return 2000, None


# The documented statements of a visitor.


async def test_lead(connection: asyncpg.Connection):
    async with acting(connection, "anon"):
        assert (
            await connection.execute(
                "INSERT INTO marketing.leads (email, company_name, source)"
                " VALUES ('user@company.com', 'Company Inc', 'website-form')"
            )
            == "INSERT 0 1"
        )
        assert await connection.fetch("SELECT * FROM marketing.leads") == []
        await connection.execute("SET LOCAL app.user_email = 'User@company.com'")
        assert await connection.fetchval("SELECT company_name FROM marketing.leads") == "Company Inc"


async def test_event(connection: asyncpg.Connection):
    await connection.execute("SELECT analytics.ensure_events_partition((now() AT TIME ZONE 'UTC')::date)")
    insert = (
        "INSERT INTO analytics.events (type, name, session_id, properties)"
        " VALUES ('user_action', 'demo_request', 'session_123', '{\"page\": \"/demo\"}'::jsonb)"
    )
    async with acting(connection, "anon", {"app.client_ip": "203.0.113.77"}):
        assert await connection.execute(insert) == "INSERT 0 1"
        await connection.execute("RESET ROLE")
        event = await connection.fetchrow("SELECT * FROM analytics.events")
    assert event is not None
    assert (str(event["ip_address"]), event["batch_id"]) == ("203.0.113.0", None)
    assert json.loads(event["properties"]) == {"page": "/demo"}


async def test_onboarding_session(populated: asyncpg.Connection):
    async with acting(populated, "anon"):
        await populated.execute(f"SET app.session_token = '{TOKEN}'")
        assert (
            await populated.execute(
                "UPDATE onboarding.sessions SET current_step = 'bot_setup', business_info_completed_at = now()"
                f" WHERE session_token = '{TOKEN}'"
            )
            == "UPDATE 1"
        )
        step = await populated.fetchval("SELECT current_step FROM onboarding.sessions")
    assert step == "bot_setup"


async def test_a_new_onboarding_session_shows_its_token_to_the_caller_who_chose_it(connection: asyncpg.Connection):
    create = "INSERT INTO onboarding.sessions (session_token) VALUES ($1) RETURNING session_token"
    async with acting(connection, "anon", {"app.session_token": TOKEN}):
        assert await connection.fetchval(create, TOKEN) == TOKEN
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetchval(create, OTHER_TOKEN)


async def test_deleted_lead_is_not_read_back(populated: asyncpg.Connection):
    await populated.execute(f"UPDATE marketing.leads SET deleted_at = now() WHERE id = '{OURS}'")
    async with acting(populated, "anon", VISITOR):
        assert await populated.fetch("SELECT id FROM marketing.leads") == []


# More rights than the token grants


@pytest.mark.parametrize(
    "token",
    [
        {"user_metadata": {"role": "admin"}},
        {"user_metadata": {"app_metadata": {"role": "admin"}}},
        {"role": "admin"},
        {"role": "service_role"},
        {"app_metadata": {"roles": ["admin"]}},
        {"app_metadata": {"role": ["admin"]}},
        {"app_metadata": {"role": "Admin"}},
        {"app_metadata": {"role": "administrator"}},
    ],
)
async def test_no_admin_by_anything_but_app_metadata(populated: asyncpg.Connection, token: dict[str, Any]):
    async with acting(populated, "authenticated", claims(**token)):
        for table in ("marketing.leads", "analytics.events", "onboarding.sessions", "public.audit_logs"):
            assert await affected(populated, f"SELECT FROM {table}") == 0
        assert await affected(populated, "UPDATE marketing.leads SET score = 1") == 0
        assert await affected(populated, "INSERT INTO marketing.leads (email) VALUES ('a@example.com')") is None


@pytest.mark.parametrize("token", MALFORMED)
async def test_malformed_claims_are_ignored(populated: asyncpg.Connection, token: str):
    async with acting(populated, "authenticated", {"request.jwt.claims": token, "request.headers": token}):
        assert await populated.fetchval("SELECT auth.uid() IS NULL AND auth.role() IS NULL")
        for table in ("marketing.leads", "whatsapp.accounts", "analytics.events"):
            assert await affected(populated, f"SELECT FROM {table}") == 0
    async with acting(populated, "anon", {"request.jwt.claims": token, "request.headers": token}):
        assert await affected(populated, "INSERT INTO marketing.leads (email) VALUES ('a@example.com')") == 1


async def test_a_user_id_that_is_not_a_uuid(connection: asyncpg.Connection):
    async with acting(connection, "authenticated", claims(sub="user|1")):
        assert await connection.fetchval("SELECT auth.uid()") is None
    async with acting(connection, "authenticated", claims()):
        assert str(await connection.fetchval("SELECT auth.uid()")) == OURS


async def test_admin_claims_give_anon_nothing(populated: asyncpg.Connection):
    async with acting(populated, "anon", claims("admin")):
        assert await affected(populated, "SELECT FROM marketing.leads") == 0
        assert await affected(populated, "UPDATE marketing.leads SET score = 1") is None


async def test_whatsapp_of_another_address(populated: asyncpg.Connection):
    for email, expected in (("OURS@Example.com", [OURS]), ("nobody@example.com", []), ("", []), ("%", [])):
        async with acting(populated, "authenticated", claims(email=email)):
            accounts = await populated.fetch("SELECT id FROM whatsapp.accounts")
            templates = await populated.fetch("SELECT id FROM whatsapp.templates")
        assert ([str(row["id"]) for row in accounts], [str(row["id"]) for row in templates]) == (expected, expected)
    await populated.execute(f"UPDATE marketing.leads SET deleted_at = now() WHERE id = '{OURS}'")
    async with acting(populated, "authenticated", claims()):
        assert await affected(populated, "SELECT id FROM whatsapp.accounts") == 0


async def test_signed_in_users_cannot_read_whatsapp_tokens(populated: asyncpg.Connection):
    for app_role in (None, "analyst", "admin"):
        async with acting(populated, "authenticated", claims(app_role)):
            for column in ("access_token_encrypted", "webhook_verify_token_encrypted", "*"):
                assert await affected(populated, f"SELECT {column} FROM whatsapp.accounts") is None


# Columns that anon may not write


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("marketing.leads", ["id", "ip_address", "created_at", "updated_at", "deleted_at", "status", "score"]),
        ("onboarding.sessions", ["id", "lead_id", "ip_address", "created_at", "updated_at", "last_activity_at"]),
        ("onboarding.step_activities", ["id", "created_at"]),
        (
            "analytics.events",
            ["id", "created_at", "received_at", "ip_address", "batch_id", "country", "region", "device_type"],
        ),
        (
            "experiments.assignments",
            ["id", "user_id", "assigned_at", "ip_address", "exposure_count", "first_exposure_at"],
        ),
    ],
)
async def test_columns_that_anon_may_not_write_in_a_new_row(
    populated: asyncpg.Connection, table: str, columns: list[str]
):
    async with acting(populated, "anon", VISITOR):
        for column in columns:
            assert await refusal(populated, f"INSERT INTO {table} ({column}) VALUES (DEFAULT)") == NOT_PERMITTED


async def test_what_never_changes_of_a_session(populated: asyncpg.Connection):
    changes = [f"id = '{OTHERS}'", f"session_token = '{OTHER_TOKEN}'", f"lead_id = '{OTHERS}'", "lead_id = NULL"]
    changes += ["created_at = '2020-01-01'"]
    # Also without the column grants, as after a manual GRANT ALL.
    for grant in ("SELECT 1", "GRANT UPDATE ON onboarding.sessions TO anon"):
        await populated.execute(grant)
        async with acting(populated, "anon", VISITOR):
            for change in [*changes, "id = id", "ip_address = '1.2.3.4'"][: 7 if "SELECT" in grant else 5]:
                statement = f"UPDATE onboarding.sessions SET {change} WHERE session_token = '{TOKEN}'"
                assert await refusal(populated, statement) == NOT_PERMITTED, statement


async def test_what_never_changes_of_a_session_by_a_function_of_the_owner(populated: asyncpg.Connection):
    await populated.execute(
        "CREATE FUNCTION public.move(text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        f" UPDATE onboarding.sessions SET lead_id = '{OTHERS}' WHERE session_token = $1; END $$"
    )
    async with acting(populated, "anon", VISITOR):
        assert await refusal(populated, f"SELECT public.move('{TOKEN}')") == NOT_PERMITTED
    async with acting(populated, "service_role"):
        assert await refusal(populated, f"SELECT public.move('{TOKEN}')") is None


async def test_what_never_changes_of_an_assignment(populated: asyncpg.Connection):
    async with acting(populated, "anon", VISITOR):
        for change in ("variant_id = 'b'", "session_id = 'others'", f"user_id = '{OURS}'", "assigned_at = now()"):
            assert await refusal(populated, f"UPDATE experiments.assignments SET {change}") == NOT_PERMITTED
        seen = "first_exposure_at = now(), last_exposure_at = now(), exposure_count = exposure_count + 1"
        assert await affected(populated, f"UPDATE experiments.assignments SET {seen}") == 1


async def test_targeting_rules_and_results(populated: asyncpg.Connection):
    async with acting(populated, "anon", VISITOR):
        for column in ("targeting_rules", "results", "hypothesis", "winner_variant_id", "created_by", "*"):
            assert await affected(populated, f"SELECT {column} FROM experiments.experiments") is None
        # Nor through filters on them.
        assert (
            await affected(populated, "SELECT id FROM experiments.experiments WHERE targeting_rules <> '{}'") is None
        )
        assert await affected(populated, "SELECT id FROM experiments.experiments ORDER BY results") is None


async def test_only_running_experiments_are_visible(populated: asyncpg.Connection):
    for change in (
        "status = 'paused'",
        "status = 'completed'",
        "is_active = false",
        "start_date = now() + interval '1 hour'",
        "end_date = now() - interval '1 hour'",
    ):
        transaction = populated.transaction()
        await transaction.start()
        await populated.execute(f"UPDATE experiments.experiments SET {change} WHERE id = '{OURS}'")
        async with acting(populated, "anon", VISITOR | {"app.session_id": "new"}):
            assert await affected(populated, "SELECT id FROM experiments.experiments") == 0
            assert await affected(populated, assign("new")) is None
        await transaction.rollback()


def assign(session_id: str, variant: str = "b") -> str:
    return (
        "INSERT INTO experiments.assignments (experiment_id, session_id, variant_id)"
        f" VALUES ('{OURS}', '{session_id}', '{variant}')"
    )


async def test_assignment_is_to_a_variant_and_for_oneself(populated: asyncpg.Connection):
    async with acting(populated, "anon", VISITOR | {"app.session_id": "new"}):
        assert await affected(populated, assign("new")) == 1
        assert await affected(populated, assign("new", "no such")) is None
        assert await affected(populated, assign("another")) is None
        for statement in (
            "SELECT FROM experiments.assignments WHERE session_id = 'others'",
            "UPDATE experiments.assignments SET exposure_count = 9 WHERE session_id = 'others'",
        ):
            assert await affected(populated, statement) == 0


async def test_session_that_was_abandoned_too_long_ago(populated: asyncpg.Connection):
    touch = f"UPDATE onboarding.sessions SET status = 'in_progress' WHERE session_token = '{TOKEN}'"
    note = (
        "INSERT INTO onboarding.step_activities (session_id, step, activity_type)"
        f" VALUES ('{OURS}', 'testing', 'form_started')"
    )
    for hours, expected in ((23, (1, 1, 1)), (25, (0, 0, None))):
        await populated.execute(
            "UPDATE onboarding.sessions SET status = 'abandoned', started_at = now() - interval '2 days',"
            f" abandoned_at = now() - interval '{hours} hours' WHERE id = '{OURS}'"
        )
        async with acting(populated, "anon", VISITOR):
            found = await affected(populated, "SELECT FROM onboarding.sessions")
            assert (found, await affected(populated, touch), await affected(populated, note)) == expected


# Limits


LEAD = "INSERT INTO marketing.leads (email) VALUES ('a' || gen_random_uuid() || '@example.com')"
SESSION = "INSERT INTO onboarding.sessions DEFAULT VALUES"
EVENT = "INSERT INTO analytics.events (type, name) VALUES ('page_view', 'home')"
ACTIVITY = (
    "INSERT INTO onboarding.step_activities (session_id, step, activity_type)"
    f" VALUES ('{OURS}', 'testing', 'field_filled')"
)


@pytest.mark.parametrize(
    ("statement", "limit"),
    [(LEAD, 10), (SESSION, 5), (ACTIVITY, 100), (EVENT, 1000)],
    ids=["leads", "sessions", "activities", "events"],
)
async def test_limit(populated: asyncpg.Connection, statement: str, limit: int):
    async with acting(populated, "anon", VISITOR | {"app.client_ip": "203.0.113.1"}):
        assert await refused_after(populated, statement) == (limit, TOO_MANY)
    if statement != ACTIVITY:
        # Another address has its own limit, and nothing of the above was kept.
        async with acting(populated, "anon", {"app.client_ip": "203.0.113.2"}):
            assert await refusal(populated, statement) is None
    async with acting(populated, "service_role"):
        for _ in range(limit + 1):
            assert await refusal(populated, statement) is None


async def test_limit_of_assignments(populated: asyncpg.Connection):
    for limit, expected in (("10", [None] * 10 + [TOO_MANY]), ("", [None] * 11), ("0", [None] * 11)):
        address = {"app.client_ip": "203.0.113.1", "app.assignments_per_hour": limit}
        async with acting(populated, "anon", address):
            codes = []
            for number in range(11):
                await populated.execute(f"SET LOCAL app.session_id = 'visitor {number}'")
                codes.append(await refusal(populated, assign(f"visitor {number}")))
        assert codes == expected, limit


async def test_limit_in_one_statement(connection: asyncpg.Connection):
    many = "INSERT INTO marketing.leads (email) SELECT 'a' || n || '@example.com' FROM generate_series(1, {}) AS n"
    async with acting(connection, "anon"):
        assert await refusal(connection, many.format(11)) == TOO_MANY
        assert await refusal(connection, many.format(10)) is None
        assert await refusal(connection, LEAD) == TOO_MANY


async def test_known_address_counts_too(connection: asyncpg.Connection):
    """Whether merged into the known lead or refused, more than ten are refused."""
    again = "INSERT INTO marketing.leads (email) VALUES ('known@example.com') ON CONFLICT DO NOTHING"
    async with acting(connection, "anon"):
        assert await refused_after(connection, again) == (10, TOO_MANY)


async def test_forged_address_or_time_is_no_way_around(connection: asyncpg.Connection):
    # Not even if every column was granted manually.
    await connection.execute("GRANT INSERT ON marketing.leads TO anon")
    forged = (
        "INSERT INTO marketing.leads (email, ip_address, created_at) VALUES ('a' || gen_random_uuid() ||"
        " '@example.com', ('198.51.100.' || floor(random() * 250))::inet, now() - interval '2 hours')"
    )
    async with acting(connection, "anon", {"app.client_ip": "203.0.113.1"}):
        assert await refused_after(connection, forged) == (10, TOO_MANY)
        await connection.execute("RESET ROLE")
        assert await connection.fetch("SELECT DISTINCT host(ip_address) FROM marketing.leads") == [("203.0.113.0",)]


async def test_deleted_rows_still_count(connection: asyncpg.Connection):
    for _ in range(10):
        await connection.execute(f"SET ROLE anon; {LEAD}; RESET ROLE; DELETE FROM marketing.leads")
    async with acting(connection, "anon"):
        assert await refusal(connection, LEAD) == TOO_MANY


async def test_counts_are_out_of_reach(connection: asyncpg.Connection):
    for role in ("anon", "authenticated", "service_role"):
        async with acting(connection, role, claims("admin")):
            for statement in (
                "DELETE FROM ingest.rate_limits",
                "SELECT ingest.count_hit('leads', '', 10)",
                "SELECT ingest.own_lead_id()",
                "SELECT ingest.without_secrets('{}')",
            ):
                assert await refusal(connection, statement) == NOT_PERMITTED


async def test_an_hour_later(connection: asyncpg.Connection):
    async with acting(connection, "anon"):
        assert await refused_after(connection, LEAD) == (10, TOO_MANY)
        await connection.execute("RESET ROLE")
        # Four of the ten were more than an hour ago.
        await connection.execute(
            "UPDATE ingest.rate_limits SET hits = '{1,5}' || array_fill(0, ARRAY[58]) || '{4}',"
            " last_hit_at = last_hit_at - interval '1 minute' WHERE kind = 'leads'"
        )
        await connection.execute("SET LOCAL ROLE anon")
        assert await refused_after(connection, LEAD) == (4, TOO_MANY)


async def test_old_counts_are_deleted_when_new_ones_come(connection: asyncpg.Connection):
    await connection.execute(
        "INSERT INTO ingest.rate_limits (kind, subject, hits, last_hit_at)"
        " SELECT 'leads', n::text, '{}', now() - n * interval '5 minutes' FROM generate_series(1, 20) AS n"
    )
    for _ in range(3):
        await connection.execute(f"SET app.client_ip = '203.0.113.{_}'; SET ROLE anon; {LEAD}; RESET ROLE")
    assert await connection.fetchval("SELECT count(*) FROM ingest.rate_limits") == 11 + 3


async def test_limit_when_many_come_at_once(database_url: str):
    async def one(number: int) -> bool:
        connection = await connections.connect(database_url, purpose="tests")
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL ROLE anon")
                return await refusal(connection, LEAD) is None
        finally:
            await connection.close()

    assert sum(await asyncio.gather(*[one(number) for number in range(30)])) == 10


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"app.client_ip": "203.0.113.5"}, "203.0.113.5"),
        ({"app.client_ip": "::ffff:203.0.113.5"}, "203.0.113.5"),
        ({"request.headers": '{"x-forwarded-for": "203.0.113.5"}'}, "203.0.113.5"),
        # The client's own claim comes before the address that the proxy saw.
        ({"request.headers": '{"x-forwarded-for": "198.51.100.1, 203.0.113.5"}'}, "203.0.113.5"),
        (
            {"request.headers": '{"x-forwarded-for": "203.0.113.5", "cf-connecting-ip": "198.51.100.1"}'},
            "203.0.113.5",
        ),
        (
            {
                "request.headers": '{"x-forwarded-for": "198.51.100.1", "cf-connecting-ip": "2001:db8::5"}',
                "app.client_ip_header": "CF-Connecting-IP",
            },
            "2001:db8::5",
        ),
        ({"app.client_ip": "203.0.113.5", "request.headers": '{"x-forwarded-for": "1.1.1.1"}'}, "203.0.113.5"),
    ],
)
async def test_address_that_counts(connection: asyncpg.Connection, settings: dict[str, str], address: str):
    async with acting(connection, "anon", {"app.anonymise_ip": "off", **settings}):
        await connection.execute(LEAD)
        await connection.execute("RESET ROLE")
        assert await connection.fetchval("SELECT host(ip_address) FROM marketing.leads") == address


async def test_addresses_of_one_network_share_a_limit(connection: asyncpg.Connection):
    async with acting(connection, "anon"):
        for number in range(10):
            await connection.execute(f"SET LOCAL app.client_ip = '2001:db8:1:2::{number}'; {LEAD}")
        await connection.execute("SET LOCAL app.client_ip = '2001:db8:1:2:ffff::'")
        assert await refusal(connection, LEAD) == TOO_MANY
        await connection.execute("SET LOCAL app.client_ip = '2001:db8:1:3::1'")
        assert await refusal(connection, LEAD) is None


async def test_role_that_was_made_a_member_of_anon_is_limited_as_well(connection: asyncpg.Connection):
    role = f"web_{secrets.token_hex(4)}"
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"CREATE ROLE {role} IN ROLE anon; SET LOCAL ROLE {role}")
    assert await refused_after(connection, LEAD) == (10, TOO_MANY)
    await transaction.rollback()


async def test_size_of_an_event(populated: asyncpg.Connection):
    insert = (
        "INSERT INTO analytics.events (type, name, {})"
        " VALUES ('system', 'big', jsonb_build_object('a', repeat('x', {})))"
    )
    async with acting(populated, "anon"):
        for column in ("properties", "context"):
            assert await affected(populated, insert.format(column, 8100)) == 1
            assert await affected(populated, insert.format(column, 8192)) is None


# Search path


async def test_temporary_objects_in_the_way_of_functions(populated: asyncpg.Connection):
    """A SECURITY DEFINER function that resolved a name to the caller's object would act for the caller."""
    async with acting(populated, "anon", VISITOR | claims(email="others@example.com")):
        await populated.execute("""
            CREATE FUNCTION pg_temp.caught(text) RETURNS text LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'caught as %', current_user; END $$;
            CREATE FUNCTION pg_temp.lower(text) RETURNS text LANGUAGE sql AS 'SELECT pg_temp.caught($1)';
            CREATE FUNCTION pg_temp.host(inet) RETURNS text LANGUAGE sql AS $$ SELECT pg_temp.caught('') $$;
            CREATE FUNCTION pg_temp.row_security_active(regclass) RETURNS boolean LANGUAGE sql AS 'SELECT false';
            CREATE TEMPORARY TABLE rate_limits (kind text, subject text, hits timestamptz[], last_hit_at timestamptz);
            CREATE TEMPORARY TABLE leads (id uuid, email text, deleted_at timestamptz);
            CREATE TEMPORARY TABLE audit_logs (table_name text);
            CREATE TEMPORARY TABLE sessions (id uuid, session_token text);
            SET LOCAL search_path = pg_temp, pg_catalog, public;
        """)
        assert await refused_after(populated, LEAD) == (10, TOO_MANY)
        for table in ("rate_limits", "leads", "audit_logs"):
            assert await populated.fetchval(f"SELECT count(*) FROM pg_temp.{table}") == 0


async def test_functions_have_a_fixed_search_path_and_definers_are_few(connection: asyncpg.Connection):
    functions = await connection.fetch(
        "SELECT oid::regprocedure::text AS name, prosecdef, coalesce(proconfig::text, '') AS settings,"
        " has_function_privilege('anon', oid, 'EXECUTE') AS anybody FROM pg_proc"
        " WHERE pronamespace::regnamespace::text"
        " IN ('ingest', 'auth', 'marketing', 'onboarding', 'analytics', 'experiments', 'whatsapp')"
    )
    assert [row["name"] for row in functions if "search_path=" not in row["settings"]] == []
    # With pg_temp last: if omitted, it would be searched first.
    assert [row["name"] for row in functions if 'pg_temp"' not in row["settings"]] == []
    definers = {row["name"]: row["anybody"] for row in functions if row["prosecdef"] and "ingest." in row["name"]}
    assert definers == {
        "ingest.admit_by_address()": False,
        "ingest.admit_by_session()": False,
        "ingest.advance_session()": False,
        "ingest.forget_changed_total()": False,
        "ingest.forget_totals_of_deleted()": False,
        "ingest.forget_slices()": False,
        "ingest.enrich_event()": False,
        "ingest.keep_lead_normalised()": False,
        "ingest.link_session()": False,
        "ingest.link_sessions_of_lead()": False,
        "ingest.note_activity()": False,
        "ingest.own_lead_id()": False,
        "ingest.take_in_lead()": False,
        "ingest.write_audit_log()": False,
    }


async def test_row_security_cannot_be_turned_off(populated: asyncpg.Connection):
    async with acting(populated, "anon", {"row_security": "off"}):
        assert await refusal(populated, "SELECT * FROM marketing.leads") == NOT_PERMITTED
        assert await refusal(populated, LEAD) == NOT_PERMITTED


async def test_nobody_else_may_truncate_or_make_objects(populated: asyncpg.Connection):
    for role in ("anon", "authenticated", "service_role"):
        async with acting(populated, role, claims("admin")):
            for statement in (
                "TRUNCATE marketing.lead_interactions",
                "TRUNCATE public.audit_logs",
                "CREATE TABLE marketing.mine (a int)",
                "CREATE TABLE ingest.mine (a int)",
                "SELECT analytics.ensure_events_partition('2026-05-01')",
                "ALTER TABLE marketing.leads DISABLE ROW LEVEL SECURITY",
                "ALTER TABLE public.audit_logs DISABLE TRIGGER USER",
                "CREATE POLICY mine ON marketing.leads USING (true)",
            ):
                assert await refusal(populated, statement) == NOT_PERMITTED, (role, statement)
