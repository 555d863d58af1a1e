"""The audit log: who changed what, without secrets, permanently."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from tests.support.roles import NOT_PERMITTED, OTHERS, OURS, ROWS, TOKEN, VISITOR, acting, claims, refusal

AUDITED = [
    "marketing.leads",
    "marketing.lead_interactions",
    "onboarding.sessions",
    "onboarding.step_activities",
    "experiments.experiments",
    "experiments.assignments",
    "whatsapp.accounts",
    "whatsapp.templates",
]


@pytest.fixture
async def populated(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute(ROWS)
    return connection


async def latest(connection: asyncpg.Connection, table: str) -> dict[str, Any]:
    """The last row about the table, with its JSON decoded."""
    row = await connection.fetchrow("SELECT * FROM audit_logs WHERE table_name = $1 ORDER BY id DESC LIMIT 1", table)
    assert row is not None
    return dict(row) | {name: row[name] and json.loads(row[name]) for name in ("old_values", "new_values")}


async def test_life_of_a_lead(connection: asyncpg.Connection):
    lead_id = await connection.fetchval(
        "INSERT INTO marketing.leads (email) VALUES ('ada@example.com') RETURNING id::text"
    )
    entry = await latest(connection, "marketing.leads")
    assert (entry["operation"], entry["row_id"], entry["old_values"]) == ("INSERT", lead_id, None)
    assert entry["new_values"]["email"] == "ada@example.com"

    await connection.execute("UPDATE marketing.leads SET company_name = 'Ada & Co', city = 'London'")
    entry = await latest(connection, "marketing.leads")
    assert (entry["operation"], entry["row_id"]) == ("UPDATE", lead_id)
    assert {"company_name", "city"} <= set(entry["changed_columns"])
    assert (entry["old_values"]["city"], entry["new_values"]["city"]) == (None, "London")

    await connection.execute("DELETE FROM marketing.leads")
    entry = await latest(connection, "marketing.leads")
    assert (entry["operation"], entry["row_id"], entry["new_values"]) == ("DELETE", lead_id, None)
    assert entry["old_values"]["city"] == "London"


async def test_an_update_that_changes_nothing_is_not_logged(populated: asyncpg.Connection):
    count = "SELECT count(*) FROM audit_logs"
    before = await populated.fetchval(count)
    await populated.execute("UPDATE whatsapp.templates SET body_text = body_text, updated_at = now()")
    assert await populated.fetchval(count) == before


@pytest.mark.parametrize("table", AUDITED)
async def test_every_verb_on_every_table_of_a_person(populated: asyncpg.Connection, table: str):
    column = {
        "marketing.leads": "city = 'Rome'",
        "marketing.lead_interactions": "subject = 'b'",
        "onboarding.sessions": "user_agent = 'b'",
        "onboarding.step_activities": "field_name = 'b'",
        "experiments.experiments": "description = 'b'",
        "experiments.assignments": "user_agent = 'b'",
        "whatsapp.accounts": "display_name = 'b'",
        "whatsapp.templates": "footer_text = 'b'",
    }[table]
    await populated.execute(
        f"UPDATE {table} SET {column} WHERE id = '{OURS}'; DELETE FROM {table} WHERE id = '{OURS}'"
    )
    await populated.execute(f"TRUNCATE {table} CASCADE")
    operations = await populated.fetch(
        "SELECT DISTINCT operation FROM audit_logs WHERE table_name = $1 AND (row_id = $2 OR row_id IS NULL)",
        table,
        OURS,
    )
    assert {row[0] for row in operations} == {"INSERT", "UPDATE", "DELETE", "TRUNCATE"}


async def test_tables_without_audit_are_those_of_events_and_our_own(connection: asyncpg.Connection):
    triggered = await connection.fetch(
        "SELECT tgrelid::regclass::text AS name FROM pg_trigger WHERE tgname = 'write_audit_log'"
    )
    assert {row["name"] for row in triggered} == set(AUDITED)


async def test_who_it_was(populated: asyncpg.Connection):
    async with acting(populated, "anon", VISITOR | {"app.client_ip": "203.0.113.1", "app.user_agent": "Firefox"}):
        await populated.execute("UPDATE onboarding.sessions SET current_step = 'testing'")
        await populated.execute("RESET ROLE")
        entry = await latest(populated, "onboarding.sessions")
    assert (entry["actor_role"], entry["user_id"], entry["user_email"]) == ("anon", None, "ours@example.com")
    assert (str(entry["ip_address"]), entry["user_agent"]) == ("203.0.113.0", "Firefox")

    headers = {"request.headers": json.dumps({"user-agent": "Safari", "x-forwarded-for": "203.0.113.2"})}
    async with acting(populated, "authenticated", claims("admin", "admin@example.com") | headers):
        await populated.execute("UPDATE marketing.leads SET city = 'Rome'")
        entry = await latest(populated, "marketing.leads")
    assert (entry["actor_role"], str(entry["user_id"]), entry["user_email"]) == (
        "authenticated",
        OURS,
        "admin@example.com",
    )
    assert (str(entry["ip_address"]), entry["user_agent"]) == ("203.0.113.0", "Safari")

    async with acting(populated, "authenticated", claims("admin", sub="not a uuid")):
        await populated.execute("UPDATE marketing.leads SET city = 'Oslo'")
        assert (await latest(populated, "marketing.leads"))["user_id"] is None


# Secrets


async def test_secrets_are_not_copied(populated: asyncpg.Connection):
    config = {
        "phone": "+491",
        "accessToken": "hush-1",
        "webhook": {"verify_token": "hush-2", "url": "https://example.com"},
        "apps": [{"app_secret": "hush-3", "name": "bot"}, "plain"],
        "api_key": "hush-4",
        "api-key": "hush-5",
        "Password": "hush-6",
    }
    await populated.execute(
        "UPDATE onboarding.sessions SET whatsapp_config = $1 WHERE id = $2", json.dumps(config), OURS
    )
    await populated.execute(
        "UPDATE whatsapp.accounts SET access_token_encrypted = 'hush-7', webhook_verify_token_encrypted = 'hush-8'"
    )
    for name in ("access_token", "field_password"):
        await populated.execute(
            "INSERT INTO onboarding.step_activities (session_id, step, activity_type, field_name, field_value)"
            f" VALUES ('{OURS}', 'whatsapp_integration', 'field_filled', '{name}', 'hush-9')"
        )
    everything = "".join(row[0] for row in await populated.fetch("SELECT audit_logs::text FROM audit_logs"))
    assert "hush" not in everything
    assert "68757368" not in everything
    assert TOKEN not in everything

    entry = await latest(populated, "whatsapp.accounts")
    assert {"access_token_encrypted", "webhook_verify_token_encrypted"} <= set(entry["changed_columns"])
    entry = await latest(populated, "onboarding.step_activities")
    assert (entry["new_values"]["field_name"], "field_value" in entry["new_values"]) == ("field_password", False)
    kept = await populated.fetchval(
        "SELECT new_values -> 'whatsapp_config' FROM audit_logs"
        " WHERE table_name = 'onboarding.sessions' AND operation = 'UPDATE'"
    )
    assert json.loads(kept) == {
        "phone": "+491",
        "webhook": {"url": "https://example.com"},
        "apps": [{"name": "bot"}, "plain"],
    }


# Permanent


UPDATE = "UPDATE public.audit_logs SET row_id = 'x'"
DELETE = "DELETE FROM public.audit_logs"


async def test_nobody_changes_the_log(populated: asyncpg.Connection):
    for role, settings in (("anon", VISITOR), ("authenticated", claims("admin")), ("service_role", {})):
        for maintenance in ("off", "on"):
            async with acting(populated, role, settings | {"app.audit_maintenance": maintenance}):
                for statement in (UPDATE, DELETE, "TRUNCATE public.audit_logs"):
                    assert await refusal(populated, statement) == NOT_PERMITTED


async def test_nor_its_owner_by_mistake(populated: asyncpg.Connection):
    for statement in (UPDATE, DELETE, f"{DELETE} WHERE false", "TRUNCATE public.audit_logs"):
        assert await refusal(populated, statement) == NOT_PERMITTED


async def test_nor_whoever_was_granted_it_by_mistake(populated: asyncpg.Connection):
    await populated.execute("GRANT ALL ON public.audit_logs TO service_role")
    async with acting(populated, "service_role", {"app.audit_maintenance": "on"}):
        for statement in (UPDATE, DELETE, "TRUNCATE public.audit_logs"):
            assert await refusal(populated, statement) == NOT_PERMITTED


async def test_retention_and_erasure_do(populated: asyncpg.Connection):
    await populated.execute(
        "CREATE FUNCTION public.forget() RETURNS void LANGUAGE sql SECURITY DEFINER SET app.audit_maintenance = 'on'"
        f" AS $$ {UPDATE}; {DELETE} WHERE table_name = 'marketing.leads' $$"
    )
    async with acting(populated, "service_role"):
        assert await refusal(populated, "SELECT public.forget()") is None
        assert await populated.fetchval("SELECT count(*) FROM audit_logs WHERE table_name = 'marketing.leads'") == 0
        assert await populated.fetchval("SELECT count(*) FROM audit_logs WHERE row_id <> 'x'") == 0
        # The setting ends with the function.
        await populated.execute("RESET ROLE")
        assert await refusal(populated, DELETE) == NOT_PERMITTED


async def test_admin_adds_to_it_in_their_own_name_only(populated: asyncpg.Connection):
    async with acting(populated, "authenticated", claims("admin", "admin@example.com")):
        await populated.execute(
            "INSERT INTO audit_logs (table_name, operation, actor_role, user_id, user_email, created_at) VALUES"
            f" ('marketing.leads', 'EXPORT', 'service_role', '{OTHERS}', 'others@example.com', '2020-01-01')"
        )
        entry = await latest(populated, "marketing.leads")
        assert (entry["actor_role"], str(entry["user_id"]), entry["user_email"]) == (
            "authenticated",
            OURS,
            "admin@example.com",
        )
        assert await populated.fetchval("SELECT $1 = now()", entry["created_at"])
