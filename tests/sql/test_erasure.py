"""A person is erased from every table, and nobody else is; before that, their data can be exported."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import unicodedata
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from ingest.api import email_addresses
from ingest.events.values.phones import phone_forms
from ingest.journal.traces import Traces
from tests.support.roles import NOT_PERMITTED, acting, claims, refusal


@dataclasses.dataclass(frozen=True)
class Person:
    """The values in the rows of one person; `digit` distinguishes their UUIDs."""

    digit: str
    first_name: str
    last_name: str
    phone: str

    @property
    def address(self) -> str:
        return f"{self.first_name}.{self.last_name}@example.com".lower()

    @property
    def name(self) -> str:
        return f"{self.first_name} {self.last_name}"

    @property
    def traces(self) -> tuple[str, ...]:
        """Values that identify them, in lower case."""
        return (self.address, self.address.replace("@", "%40"), self.name.lower(), f'"{self.phone}"')

    def fill(self, statements: str) -> str:
        """The statements with the words in capitals replaced by this person's values."""
        words = {
            "UUID": f"{self.digit * 8}-0000-4000-8000-00000000000",
            "ADDRESS": self.address,
            "ENCODED": self.address.replace("@", "%40"),
            "SHOUTED": self.address.upper(),
            "PHONE": self.phone,
            "SPACED": f"{self.phone[:3]} {self.phone[3:6]} {self.phone[6:9]}-{self.phone[9:]}",
            "FIRST": self.first_name,
            "LAST": self.last_name,
            "NAME": self.name,
            "KEY": f"key-{self.digit}",
            "SECRET": f"sess_{self.digit * 43}",
            "DIGIT": self.digit,
        }
        return re.sub("(" + "|".join(words) + r")(?![A-Z])", lambda match: words[match[1]], statements)


ADA = Person("a", "Ada", "Lovelace", "+493023125001")
BOB = Person("b", "Bob", "Byron", "+493023125002")

SHARED = """
SELECT analytics.ensure_events_partition('2026-01-02'), analytics.ensure_events_partition('2026-01-03');
INSERT INTO experiments.experiments (id, name, status, test_variants)
    VALUES ('00000000-0000-4000-8000-000000000001', 'ours', 'running', '[{"id": "b"}]'),
        ('00000000-0000-4000-8000-000000000002', 'second', 'running', '[{"id": "b"}]');
"""

ROWS = r"""
INSERT INTO marketing.leads (id, email, phone_number, first_name, last_name, notes, landing_page, ip_address)
    VALUES ('UUID1', 'ADDRESS', 'PHONE', 'FIRST', 'LAST', 'NAME called', 'https://x.example/?m=ENCODED', '192.0.2.1');
UPDATE marketing.leads SET notes = 'NAME called again from PHONE' WHERE id = 'UUID1';
INSERT INTO marketing.leads (id, email, first_name, deleted_at) VALUES ('UUID9', 'ADDRESS', 'FIRST', now());
INSERT INTO marketing.lead_interactions (id, lead_id, interaction_type, subject, description, metadata) VALUES
    ('UUID1', 'UUID1', 'call_made', 'NAME', 'NAME wants a demo', '{"to": "PHONE"}'),
    ('UUID2', 'UUID1', 'email_sent', 'NAME again', 'only in the log', '{}');
DELETE FROM marketing.lead_interactions WHERE id = 'UUID2';
INSERT INTO onboarding.sessions (id, session_token, business_data, whatsapp_config, bot_config, user_agent) VALUES
    ('UUID1', 'SECRET', '{"email": "ADDRESS", "name": "NAME"}', '{"phone_number": "PHONE"}',
        '{"greeting": "NAME here"}', 'UA');
INSERT INTO onboarding.sessions (id, session_token, bot_config)
    VALUES ('UUID2', 'SECRET2', '{"contact": "SHOUTED"}');
INSERT INTO onboarding.step_activities (id, session_id, step, activity_type, field_name, field_value,
        error_message, metadata)
    VALUES ('UUID1', 'UUID1', 'business_info', 'field_filled', 'name', 'NAME', 'no such person: NAME',
        '{"was": "PHONE"}');
INSERT INTO analytics.events (id, created_at, type, name, user_id, anonymous_id, session_id, properties,
        context, url) VALUES
    ('UUID1', '2026-01-02 12:00+00', 'system', 'identify', 'user-KEY', 'KEY', 'visit-KEY',
        '{"email": "SHOUTED", "name": "NAME"}', '{}', NULL),
    ('UUID2', '2026-01-02 12:01+00', 'page_view', 'by_user', 'user-KEY', NULL, NULL, '{}', '{}', NULL),
    ('UUID3', '2026-01-03 12:01+00', 'page_view', 'by_browser', NULL, 'KEY', 'visit2-KEY', '{}', '{}', NULL),
    ('UUID4', '2026-01-03 12:02+00', 'page_view', 'by_url', NULL, NULL, NULL, '{}', '{}',
        'https://x.example/?e=ADDRESS'),
    ('UUID5', '2026-01-03 12:03+00', 'page_view', 'by_encoded_url', NULL, NULL, NULL, '{}', '{}',
        'https://x.example/?r=%3DENCODED%26a'),
    ('UUID6', '2026-01-03 12:04+00', 'user_action', 'by_phone', NULL, NULL, NULL, '{"contact": {"Phone": "PHONE"}}',
        '{}', NULL),
    ('UUID7', '2026-01-03 12:05+00', 'user_action', 'by_spaced_phone', NULL, NULL, NULL,
        '{}', '{"traits": {"mobile": "SPACED"}}', NULL),
    ('UUID8', '2026-01-03 12:06+00', 'user_action', 'by_line', NULL, NULL, NULL,
        '{"text": "mail:\nADDRESS\n"}', '{}', NULL),
    ('UUID0', '2026-01-03 12:07+00', 'user_action', 'by_lead', 'UUID1', NULL, NULL, '{}',
        '{"traits": {"a": null}}', NULL);
INSERT INTO analytics.rejected_events (reason, payload, detail) VALUES
    ('invalid', '{"event": "x", "email": "ADDRESS"}', 'KEY'), ('invalid', 'KEY', 'SHOUTED is no name'),
    ('invalid', '{"name": "NAME"}', 'KEY'), ('invalid', '{"phone": "PHONE"}', 'KEY');
INSERT INTO experiments.assignments (id, experiment_id, user_id, session_id, variant_id, user_agent) VALUES
    ('UUID1', '00000000-0000-4000-8000-000000000001', 'UUID1', 'visit-KEY', 'b', 'UA'),
    ('UUID2', '00000000-0000-4000-8000-000000000002', NULL, 'visit2-KEY', 'b', 'UA'),
    ('UUID3', '00000000-0000-4000-8000-000000000001', NULL, 'UUID1', 'b', 'UA');
INSERT INTO whatsapp.accounts (id, lead_id, business_account_id, phone_number_id, phone_number, display_name,
        access_token_encrypted, webhook_verify_token_encrypted)
    VALUES ('UUID1', 'UUID1', 'KEY', 'KEY', 'PHONE', 'NAME', '\xc0ffee0DIGIT', '\xdecade0DIGIT');
INSERT INTO whatsapp.templates (id, account_id, template_name, category, body_text, footer_text)
    VALUES ('UUID1', 'UUID1', 'hello', 'utility', 'NAME says hello', 'NAME, PHONE');
INSERT INTO analytics.event_aggregations (event_type, event_name, time_bucket, granularity, dimensions)
    VALUES ('page_view', 'page', '2026-01-02', 'day', '{"path": "/of/ADDRESS"}');
INSERT INTO analytics.identities (anonymous_id, user_id, linked_at, received_at, batch_id, batch_position) VALUES
    ('KEY', 'user-KEY', '2026-01-02 12:00+00', now(), 1, 0), ('browser of ADDRESS', 'ADDRESS', now(), now(), 1, 1);
INSERT INTO analytics.people (user_id, counted_as, links) VALUES ('user-KEY', 'KEY', 1), ('ADDRESS', 'ADDRESS', 1);
INSERT INTO analytics.visits (person, started_at, ended_at, session_id) VALUES
    ('user-KEY', '2026-01-02 12:01+00', '2026-01-02 12:01+00', 'a visit'), ('ADDRESS', now(), now(), 'another');
INSERT INTO analytics.stale_identities (anonymous_id, people) VALUES ('KEY', '{}'), ('any-0DIGIT', '{ADDRESS}');
INSERT INTO analytics.metrics (name, type, dimensions) VALUES ('KEY', 'gauge', '{"path": "/of/ENCODED"}');
"""
"""A person in every table that can hold one; triggers write the audit log."""

TABLES = """
SELECT format('%s.%I', relnamespace::regnamespace, relname) AS name,
    array_agg(quote_ident(attname) ORDER BY attnum) AS columns
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relkind IN ('r', 'm') AND attnum > 0 AND NOT attisdropped
    AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
GROUP BY 1
"""
"""Every table with its columns, partitions separately."""

NOTHING: dict[str, int] = dict.fromkeys(
    [
        "analytics.events",
        "analytics.rejected_events",
        "analytics.event_aggregations",
        "analytics.metrics",
        "analytics.identities",
        "analytics.people",
        "analytics.visits",
        "analytics.stale_identities",
        "experiments.assignments",
        "onboarding.step_activities",
        "onboarding.sessions",
        "marketing.lead_interactions",
        "whatsapp.templates",
        "whatsapp.accounts",
        "marketing.leads",
        "public.audit_logs",
    ],
    0,
)


@pytest.fixture
async def populated(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute(SHARED + ADA.fill(ROWS) + BOB.fill(ROWS))
    for person in (ADA, BOB):
        # Their own actions, signed in.
        async with connection.transaction():
            await connection.execute(
                person.fill(
                    'SET LOCAL "request.jwt.claims" = \'{"sub": "UUID5", "email": "SHOUTED"}\';'
                    "SET LOCAL app.client_ip = '192.0.2.1'; SET LOCAL app.user_agent = 'UA KEY';"
                    "UPDATE onboarding.step_activities SET time_spent_seconds = 7 WHERE id = 'UUID1'"
                )
            )
    return connection


async def erase(connection: asyncpg.Connection, address: str | None) -> dict[str, int]:
    counts: dict[str, int] = json.loads(
        await connection.fetchval("SELECT public.gdpr_delete_user_data($1, true)", address)
    )
    return counts


async def export(connection: asyncpg.Connection, address: str | None) -> dict[str, Any]:
    exported: dict[str, Any] = json.loads(
        await connection.fetchval("SELECT public.gdpr_export_user_data($1, true)", address)
    )
    return exported


async def found(connection: asyncpg.Connection, *traces: str) -> list[tuple[str, str, str]]:
    """Every value in any column of any table that contains one of these: table, column, value."""
    values = []
    for table in await connection.fetch(TABLES):
        for column in table["columns"]:
            rows = await connection.fetch(
                f"SELECT {column}::text AS value FROM {table['name']} WHERE {column} IS NOT NULL"
            )
            values += [(table["name"], column, row["value"]) for row in rows]
    return [value for value in values if any(trace in value[2].lower() for trace in traces)]


async def rows_of(connection: asyncpg.Connection, person: Person) -> dict[str, list[str]]:
    """Every row that is theirs or identifies them, by table."""
    marks = (*person.traces, person.fill("UUID"), person.fill("KEY"))
    rows = {}
    for table in await connection.fetch(TABLES):
        texts = await connection.fetch(f"SELECT to_jsonb(each)::text FROM {table['name']} AS each ORDER BY 1")
        rows[table["name"]] = [text[0] for text in texts if any(mark in text[0].lower() for mark in marks)]
    return {table: texts for table, texts in rows.items() if texts}


async def count_erasures(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval("SELECT count(*) FROM public.audit_logs WHERE operation = 'ERASE'")
    return count


# Erasure


@pytest.mark.parametrize("written", [ADA.address, f" \t{ADA.address.upper()}\r\n"])
async def test_nothing_identifies_them_any_more(populated: asyncpg.Connection, written: str):
    tables = {table for table, _, _ in await found(populated, *ADA.traces)}
    assert {name for name in NOTHING if name not in ("analytics.events", "experiments.assignments")} <= tables
    assert {"analytics.events_20260102", "analytics.events_20260103"} <= tables
    counts = await erase(populated, written)
    assert await found(populated, *ADA.traces) == []
    assert counts == NOTHING | {
        "analytics.events": 9,
        "analytics.rejected_events": 4,
        "analytics.event_aggregations": 1,
        "analytics.metrics": 1,
        "analytics.identities": 2,
        "analytics.people": 2,
        "analytics.visits": 2,
        "analytics.stale_identities": 2,
        "experiments.assignments": 3,
        "onboarding.step_activities": 1,
        "onboarding.sessions": 2,
        "marketing.lead_interactions": 1,
        "whatsapp.templates": 1,
        "whatsapp.accounts": 1,
        "marketing.leads": 2,
        "public.audit_logs": counts["public.audit_logs"],
    }
    assert counts["public.audit_logs"] > 0


async def test_keys_that_identify_a_person_are_gone(populated: asyncpg.Connection):
    await erase(populated, ADA.address)
    lead = ADA.fill("UUID1")
    assert await found(populated, "visit-key-a", "visit2-key-a", "user-key-a", "ua key-a") == []
    assigned = "SELECT count(*) FROM experiments.assignments WHERE $1 IN (user_id::text, session_id)"
    assert await populated.fetchval(assigned, lead) == 0
    # Their events are anonymous, and the journey and the variants are still counted.
    deed = ADA.fill("UUID5")
    assert await populated.fetchval("SELECT count(*) FROM audit_logs WHERE user_id::text = $1", deed) == 0
    assert await populated.fetchval("SELECT count(*) FROM onboarding.sessions") == 4
    assert await populated.fetchval("SELECT count(*) FROM experiments.assignments WHERE variant_id = 'b'") == 6
    assert (
        await populated.fetchval("SELECT time_spent_seconds FROM onboarding.step_activities WHERE id = $1", lead) == 7
    )


async def test_bystander_is_untouched(populated: asyncpg.Connection):
    before = await rows_of(populated, BOB)
    assert len(before) > len(NOTHING)
    await erase(populated, ADA.address)
    assert await rows_of(populated, BOB) == before


async def test_twice_is_once(populated: asyncpg.Connection):
    await erase(populated, ADA.address)
    log = await populated.fetch("SELECT * FROM audit_logs ORDER BY id")
    assert await erase(populated, ADA.address) == NOTHING
    assert await populated.fetch("SELECT * FROM audit_logs ORDER BY id") == log


async def test_one_record_of_it(populated: asyncpg.Connection):
    async with acting(populated, "authenticated", claims("admin", "admin@example.com")):
        counts = await erase(populated, ADA.address)
        await populated.execute("RESET ROLE")
        [record] = await populated.fetch("SELECT * FROM audit_logs WHERE operation = 'ERASE'")
        assert (record["table_name"], record["actor_role"], record["row_id"]) == ("all", "authenticated", None)
        assert record["user_id"] is not None
        assert json.loads(record["new_values"]) == counts
        assert ADA.address not in str(dict(record)).lower()
        # The row still says who deleted the data.
        deleted = "SELECT user_email FROM audit_logs WHERE operation = 'DELETE' AND table_name = 'marketing.leads'"
        assert {row[0] for row in await populated.fetch(deleted)} == {"admin@example.com"}


async def test_nobody_similar_is_erased(populated: asyncpg.Connection):
    """Addresses and numbers that contain theirs, and people who only mention them."""
    others = [
        f"mc{ADA.address}",
        f"mary-{ADA.address}",
        f"x.{ADA.address}",
        f"{ADA.address}.br",
        f"{ADA.address}pany",
        ADA.address.replace(".", "x", 1),
        f"1{ADA.phone[1:]}",
        f"{ADA.phone}0",
    ]
    await populated.executemany(
        "INSERT INTO analytics.events (created_at, type, name, properties)"
        " VALUES ('2026-01-02 12:00+00', 'system', 'like', $1)",
        [[json.dumps({"text": other})] for other in others],
    )
    await populated.execute(
        ADA.fill(
            "INSERT INTO analytics.events (created_at, type, name, user_id, properties) VALUES"
            """ ('2026-01-02 12:00+00', 'system', 'invited', 'inviter', '{"email": "ADDRESS"}'),"""
            " ('2026-01-02 12:00+00', 'system', 'like', 'inviter', '{}'),"
            " ('2026-01-02 12:00+00', 'system', 'like', 'shared browser', '{}')"
        )
    )
    await populated.execute("UPDATE analytics.events SET anonymous_id = 'key-a' WHERE user_id = 'shared browser'")
    assert (await erase(populated, ADA.address))["analytics.events"] == 10
    assert await populated.fetchval("SELECT count(*) FROM analytics.events WHERE name = 'like'") == len(others) + 2


async def test_a_number_shared_by_two_leads_identifies_neither(populated: asyncpg.Connection):
    await populated.execute(
        ADA.fill("INSERT INTO marketing.leads (email, phone_number) VALUES ('colleague@example.com', 'PHONE')")
    )
    assert (await erase(populated, ADA.address))["analytics.events"] == 7
    assert await populated.fetchval("SELECT count(*) FROM analytics.events WHERE name = 'by_phone'") == 2


async def test_a_lead_that_is_already_gone_or_has_another_number(populated: asyncpg.Connection):
    await populated.execute(ADA.fill("UPDATE marketing.leads SET phone_number = '+4930777777' WHERE id = 'UUID1'"))
    await populated.execute(ADA.fill("DELETE FROM marketing.leads WHERE email = 'ADDRESS'"))
    await erase(populated, ADA.address)
    assert await found(populated, *ADA.traces) == []
    assert await erase(populated, ADA.address) == NOTHING


async def test_an_address_with_pattern_characters(populated: asyncpg.Connection):
    address = "o'neil+a.b*c{2}|x?^$(d)[e]\\w@example.com"
    await populated.executemany(
        "INSERT INTO analytics.rejected_events (reason, payload) VALUES ('a', $1)",
        [
            [f"<{address}>"],
            [address.replace("@", "%40").replace("+", "%2B")],
            ["o'neil+a.b*c{2}|"],
            ["x?@example.com"],
        ],
    )
    assert (await erase(populated, address))["analytics.rejected_events"] == 2


async def test_unknown_address(populated: asyncpg.Connection):
    before = await populated.fetchval("SELECT count(*) FROM audit_logs")
    assert await erase(populated, "unknown@example.com") == NOTHING
    assert await populated.fetchval("SELECT count(*) FROM audit_logs") == before


@pytest.mark.parametrize("function", ["gdpr_delete_user_data", "gdpr_export_user_data"])
@pytest.mark.parametrize("address", [None, "", "  ", "nobody", "@", "a@", "@b", "a b@example.com", "%"])
async def test_invalid_addresses(populated: asyncpg.Connection, function: str, address: str | None):
    before = await populated.fetchval("SELECT count(*) FROM analytics.events")
    with pytest.raises(asyncpg.InvalidParameterValueError, match="an email address is needed"):
        await populated.fetchval(f"SELECT public.{function}($1)", address)
    assert await populated.fetchval("SELECT count(*) FROM analytics.events") == before


@pytest.mark.parametrize("function", ["gdpr_delete_user_data", "gdpr_export_user_data"])
async def test_who_may_erase_and_export(populated: asyncpg.Connection, function: str):
    call = f"SELECT public.{function}('{ADA.address}')"
    own_word = claims(email=ADA.address, user_metadata={"role": "admin"}) | {"app.user_email": ADA.address}
    for role, settings in (
        ("anon", {}),
        ("anon", claims("admin")),
        ("authenticated", {}),
        ("authenticated", claims(email=ADA.address)),
        ("authenticated", claims("analyst")),
        ("authenticated", own_word),
        ("authenticated", {"request.jwt.claims": '{"role": "service_role"}'}),
    ):
        async with acting(populated, role, settings):
            assert await refusal(populated, call) == NOT_PERMITTED, (role, settings)
    for role, settings in (("service_role", {}), ("authenticated", claims("admin"))):
        async with acting(populated, role, settings):
            assert await refusal(populated, call) is None, (role, settings)


# Export


async def test_export_holds_everything_of_the_person(populated: asyncpg.Connection):
    exported = await export(populated, f" {ADA.address.upper()}")
    assert exported.pop("email") == ADA.address
    counts = {table: len(rows) for table, rows in exported.items()}
    assert counts == (await erase(populated, ADA.address)) | {
        # Matched only by name, it may be somebody else's: erased, but not exported.
        "analytics.rejected_events": 3,
        "onboarding.step_activities": 1,
        "public.audit_logs": counts["public.audit_logs"],
    }
    [by_lead] = [event for event in exported["analytics.events"] if event["name"] == "by_lead"]
    assert by_lead["context"] == {"traits": {"a": None}}
    assert {"marketing.leads", "marketing.lead_interactions", "whatsapp.templates", "experiments.assignments"} <= {
        row["table_name"] for row in exported["public.audit_logs"]
    }


async def test_export_holds_no_secret_and_nobody_else(populated: asyncpg.Connection):
    async with acting(populated, "authenticated", claims("admin", "admin@example.com")):
        await populated.execute(ADA.fill("UPDATE marketing.leads SET city = 'London' WHERE id = 'UUID1'"))
        exported = json.dumps(await export(populated, ADA.address)).lower()
        for secret in ("sess_", "c0ffee", "decade", "session_token", "encrypted", "admin@example.com"):
            assert secret not in exported, secret
        for trace in (*BOB.traces, BOB.fill("UUID"), "key-b"):
            assert trace not in exported, trace


async def test_export_is_recorded_and_changes_nothing(populated: asyncpg.Connection):
    before = [await rows_of(populated, person) for person in (ADA, BOB)]
    await export(populated, ADA.address)
    assert [await rows_of(populated, person) for person in (ADA, BOB)] == before
    [record] = await populated.fetch("SELECT * FROM audit_logs WHERE operation = 'EXPORT'")
    assert ADA.address not in str(dict(record))


async def test_export_of_nobody(populated: asyncpg.Connection):
    assert await export(populated, "unknown@example.com") == {"email": "unknown@example.com"}
    await erase(populated, ADA.address)
    assert await export(populated, ADA.address) == {"email": ADA.address}


async def test_others_keep_their_rows_without_the_name(connection: asyncpg.Connection):
    await connection.execute(
        "INSERT INTO marketing.leads (email, first_name, last_name, phone_number)"
        " VALUES ('grace@example.com', 'Grace', 'Hopper', '+49301234567')"
    )
    await connection.execute(
        "INSERT INTO marketing.leads (email, notes) VALUES ('xgrace@example.com',"
        " 'Knows Grace  Hopper, Grace@Example.com, +49 30 1234-567; writes from xgrace@example.com')"
    )
    await connection.execute(
        "INSERT INTO marketing.lead_interactions (lead_id, interaction_type, metadata)"
        """ SELECT id, 'call_made', '{"with": ["grace@example.com"], "number": 49301234567, "length": 12}'"""
        " FROM marketing.leads WHERE email = 'xgrace@example.com'"
    )
    await connection.fetchval("SELECT gdpr_delete_user_data('grace@example.com', true)")
    other = await connection.fetchrow("SELECT email, notes FROM marketing.leads")
    assert other["email"] == "xgrace@example.com"
    # Digits in a text may be anybody's.
    assert other["notes"] == "Knows erased, erased, +49 30 1234-567; writes from xgrace@example.com"
    metadata = await connection.fetchval("SELECT metadata FROM marketing.lead_interactions")
    assert json.loads(metadata) == {"with": ["erased"], "number": 49301234567, "length": 12}


# Whose claims are trusted


MALLORY = "mallory@evil.example"

LEAD = "00000000-0000-4000-8000-0000000000ff"

# What an attacker may send to attach another's events to their own address: values of columns by table.
CLAIMS: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {
    "identify": [("events", "name, user_id, properties", ("identify", "victim-42", f'{{"email": "{MALLORY}"}}'))],
    "traits": [("events", "name, user_id, context", ("x", "victim-42", f'{{"traits": {{"email": "{MALLORY}"}}}}'))],
    "both ids": [("events", "name, user_id, anonymous_id", ("x", MALLORY, "victim-browser"))],
    "browser": [("events", "name, anonymous_id, properties", ("x", "victim-browser", f'{{"email": "{MALLORY}"}}'))],
    "lead": [
        ("leads", "id, email", (LEAD, MALLORY)),
        (
            "events",
            "name, anonymous_id, properties",
            ("lead_created", "victim-browser", f'{{"lead_id": "{LEAD}"}}'),
        ),
    ],
    "lead's own id": [
        ("leads", "id, email", (LEAD, MALLORY)),
        ("events", "name, user_id, anonymous_id", ("x", LEAD, "victim-browser")),
    ],
    "onboarding": [("sessions", "anonymous_id, business_data", ("victim-browser", f'{{"email": "{MALLORY}"}}'))],
    "phone": [("leads", "email, phone_number", (MALLORY, "+4930123456"))],
    "number": [("leads", "email, phone_number", (MALLORY, "7654321"))],
    "name": [("leads", "email, first_name, last_name", (MALLORY, "the", "order"))],
}
TABLE_OF = {"events": "analytics.events", "leads": "marketing.leads", "sessions": "onboarding.sessions"}


async def say(connection: asyncpg.Connection, claim: str) -> None:
    for table, columns, values in CLAIMS[claim]:
        written = ", ".join(f"'{value}'" for value in values)
        if table == "events":
            columns, written = f"type, {columns}", f"'system', {written}"
        await connection.execute(f"INSERT INTO {TABLE_OF[table]} ({columns}) VALUES ({written})")


VICTIM = """
INSERT INTO analytics.events (type, name, user_id, anonymous_id, properties) VALUES
    ('page_view', 'by user', 'victim-42', NULL, '{"phone": "+49 30 123456"}'),
    ('page_view', 'by browser', NULL, 'victim-browser', '{}'), ('page_view', 'by number', '7654321', NULL, '{}');
INSERT INTO marketing.leads (email, notes) VALUES ('victim@example.com', 'the order 7654321 is late, +49 30 123456');
"""


@pytest.mark.parametrize("claim", CLAIMS)
async def test_unverified_claims_link_nobody(connection: asyncpg.Connection, claim: str):
    await connection.execute("SELECT analytics.ensure_events_partition(now()::date)")
    await connection.execute(VICTIM)
    victims = "SELECT * FROM analytics.events WHERE name LIKE 'by %' ORDER BY name"
    lead = "SELECT notes FROM marketing.leads WHERE email = 'victim@example.com'"
    before, notes = await connection.fetch(victims), await connection.fetchval(lead)
    await say(connection, claim)
    exported = json.loads(await connection.fetchval("SELECT gdpr_export_user_data($1)", MALLORY))
    assert not [event for event in exported.get("analytics.events", ()) if event["name"].startswith("by ")]
    planned = json.loads(await connection.fetchval("SELECT gdpr_delete_user_data($1, dry_run := true)", MALLORY))
    assert await connection.fetch(victims) == before
    ids = "victim-42" if claim in ("identify", "traits") else "victim-browser"
    if claim not in ("phone", "number", "name"):
        # It is listed separately, for a person to decide.
        assert ids in json.dumps(planned["unverified"]) and ids not in json.dumps(planned["because_of"])
        assert ids in json.dumps(exported["unverified"])
    counts = json.loads(await connection.fetchval("SELECT gdpr_delete_user_data($1)", MALLORY))
    assert {table: count for table, count in counts.items() if table != "public.audit_logs"} == {
        table: count for table, count in planned["would_erase"].items() if table != "public.audit_logs"
    }
    assert await connection.fetch(victims) == before
    assert await connection.fetchval(lead) == notes
    assert not await connection.fetchval("SELECT count(*) FROM marketing.leads WHERE email = $1", MALLORY)


async def test_claims_of_a_caller_with_a_key_link(connection: asyncpg.Connection):
    await connection.execute("SELECT analytics.ensure_events_partition(now()::date)")
    await connection.execute(VICTIM)
    await say(connection, "identify")
    await connection.execute("UPDATE analytics.events SET authenticated = true WHERE name = 'identify'")
    counts = json.loads(await connection.fetchval("SELECT gdpr_delete_user_data($1)", MALLORY))
    assert counts["analytics.events"] == 2
    assert not await connection.fetchval("SELECT count(*) FROM analytics.events WHERE user_id = 'victim-42'")


@pytest.mark.parametrize(
    "written",
    [
        "ann.o@example.com",
        "Ann.O@EXAMPLE.com",
        "ann.o\\u0040example.com",
        "ann.o%40example.com",
        "ann.o%2540example.com",
        "ann%2Eo%2540example%2ecom",
        "\\u0061nn.o@example.com",
        "ann.o&#64;example.com",
        "ann.o\uff20example.com",
        "%25252561nn.o%40example.com",
    ],
)
async def test_an_address_is_found_however_it_is_written(connection: asyncpg.Connection, written: str):
    await connection.execute(
        "INSERT INTO analytics.rejected_events (reason, payload) VALUES ('a', $1), ('a', $2)",
        f'{{"to": "{written}"}}', f'{{"to": "j{written}"}}',
    )  # fmt: skip
    await connection.fetchval("SELECT gdpr_delete_user_data('ann.o@example.com')")
    left = [row[0] for row in await connection.fetch("SELECT payload FROM analytics.rejected_events")]
    assert left == [f'{{"to": "j{written}"}}']


@pytest.mark.parametrize(
    ("written", "is_hers"),
    [("+44 (0)20 7946 0958", True), ("0044 20 79460958", True), ("tel:+44-20-7946-0958;ext=9", True),
     ("+44\u201120\u20117946\u20110958", True), ("\uff0b\uff14\uff142079460958", True), ("+44 (020) 7946 0958", True),
     ("+44 020 7946 0958", True), ("+44 20 7946 0958 ext. 9", True), ("+44 20 7946 0958 x9", True),
     ("%2B442079460958", True), ("%252B44%252020%25207946%25200958", True), ("+44+20+7946+0958", True),
     ("https://wa.me/442079460958?text=Hi%209", True), ("whatsapp://send?phone=442079460958&text=1", True),
     ("\u0660\u0660\u0664\u0664\u0662\u0660\u0667\u0669\u0664\u0666\u0660\u0669\u0665\u0668", True),
     ("\u202a+44 20 7946 0958\u202c", True), ("442079460958, 49301234567", True), ("(+44) (0) 20 79460958", True),
     ("+4420794609589", False), ("+1 442079460958", False), ("02079460958", False), ("+44 20 7946 x 0958", False),
     ("tel:+44207946095", False), ("https://wa.me/4420794609580", False),
     ("+442079460958", True), ("+44-20-7946.0958", True),
     ("+4420794609580", False), ("2079460958", False)],
)  # fmt: skip
async def test_a_number_is_found_in_fields_for_numbers(connection: asyncpg.Connection, written: str, is_hers: bool):
    await connection.execute("SELECT analytics.ensure_events_partition(now()::date)")
    await connection.execute(
        "INSERT INTO marketing.leads (email, phone_number) VALUES ('ann@example.com', '+442079460958')"
    )
    await connection.executemany(
        "INSERT INTO analytics.events (type, name, properties) VALUES ('system', $1, $2)",
        [("field", json.dumps({"form": [{"Phone": written}]})), ("text", json.dumps({"text": written}))],
    )
    await connection.fetchval("SELECT gdpr_delete_user_data('ann@example.com', include_unverified := true)")
    left = {row[0] for row in await connection.fetch("SELECT name FROM analytics.events")}
    assert left == ({"text"} if is_hers else {"text", "field"})


# A number as stored, and another that differs by a digit or a significant zero.
NUMBERS = [
    ("+442079460958", "+442079460959"), ("+3906123456", "+396123456"), ("+12125550123", "+1212555012"),
    ("+2250712345678", "+225712345678"), ("0301234567", "+301234567"), ("+35312345678", "+35212345678"),
]  # fmt: skip


def number_spellings(chance: random.Random, number: str) -> str:
    """The number in one of the spellings that people and programs use."""
    trunk = ""
    if number.startswith("+"):
        number = chance.choice(["+", "00", "\uff0b", "%2B", "tel:+", "+ ", "(+)", "https://wa.me/"]) + number[1:]
    if "44207" in number:
        trunk = chance.choice(["", "", "0", "(0)", "((0))", "(0)(0)", "[0]"])
    head, place, tail = number.partition("207" if trunk else number[-7:])
    written = head + trunk + place
    for digit in tail:
        written += chance.choice(["", "", "", " ", "-", "\u2011", "\u00a0", ".", "%20", "\u200b", " - "]) + digit
    wide = str.maketrans("0123456789", "".join(map(chr, range(0xFF10, 0xFF1A))))
    # Not those after %.
    written = written if "%" in written or chance.random() < 0.7 else written.translate(wide)
    return written + chance.choice(["", "", " ext. 12", " x12", ",12", ";ext=12", "#12"])


async def test_any_spelling_of_a_number_is_the_number(connection: asyncpg.Connection):
    chance = random.Random(7)
    for stored, other in NUMBERS:
        forms, others = phone_forms(stored), phone_forms(other)
        assert forms.isdisjoint(others), (stored, other)
        for _ in range(40):
            written = number_spellings(chance, stored)
            texts = [json.dumps({"Mobile": written}), json.dumps({"to": written})]
            found = [
                await connection.fetchval("SELECT ingest.names_phone($1::jsonb, $2)", text, [number])
                for text in texts for number in (stored, other)
            ]  # fmt: skip
            assert found == [True, False, False, False], (stored, written)
            for number in (stored, other):
                traces = Traces({"phones": [number]})
                assert [traces.has_event({"properties": text}) for text in texts] == [number == stored, False]


IDN = [
    "b\u00fccher.example", "m\u00fcnchen.stra\u00dfe.example", "\u4f8b\u3048.\u30c6\u30b9\u30c8",
    "\u043f\u043e\u0447\u0442\u0430.\u0440\u0444",
    "caf\u00e9.b\u00fccher.example", "\U0001f600.example"]  # fmt: skip


def address_spellings(local: str, domain: str) -> list[str]:
    """The address in the spellings of forms, links and programs."""
    unicode_form = f"{local}@{domain}"
    forms = [unicode_form, email_addresses.in_ascii(unicode_form), unicodedata.normalize("NFD", unicode_form)]
    written = [*forms, *[form.upper() for form in forms if "\u00df" not in form]]
    written += [quote(form) for form in written] + [quote(quote(form)) for form in written]
    written += [form.replace(".", "\u3002") for form in forms] + [form.replace("@", "\uff20") for form in forms]
    return written + [f"{form}." for form in forms]


@pytest.mark.parametrize("domain", IDN)
async def test_any_spelling_of_an_international_domain_is_the_address(connection: asyncpg.Connection, domain: str):
    await connection.execute("SELECT analytics.ensure_events_partition(now()::date)")
    written = address_spellings("bob", domain)
    others = [f"x{form}" for form in written] + [f"{form}x" for form in written if not form.endswith(".")]
    add_event = (
        "INSERT INTO analytics.events (type, name, properties, user_id, url) VALUES ('system', $1, $2, $3, $4)"
    )
    add_refused = "INSERT INTO analytics.rejected_events (reason, payload) VALUES ('a', $1)"
    for asked in (
        f"bob@{domain}",
        email_addresses.in_ascii(f"bob@{domain}"),
        unicodedata.normalize("NFD", f"Bob@{domain}."),
    ):
        spellings = email_addresses.spellings(asked)
        for whose, forms in (("theirs", written), ("another's", others)):
            for form in forms:
                rows = [
                    (whose, json.dumps({"deep": [{"mail": f"<{form}>"}]}), None, None), (whose, "{}", form, None),
                    (whose, "{}", None, f"https://x.example/?e={form}&x=1"),
                ]  # fmt: skip
                await connection.executemany(add_event, rows)
                await connection.executemany(
                    add_refused, [[f'{{"{whose}": {json.dumps(form)}}}'], [f"{whose} {form}"]]
                )
        held = json.loads(
            await connection.fetchval("SELECT gdpr_export_user_data($1, true, $2)", spellings[0], spellings)
        )
        assert [event["name"] for event in held["analytics.events"]] == ["theirs"] * 3 * len(written)
        assert len(held["analytics.rejected_events"]) == 2 * len(written)
        traces = Traces({"address": spellings})
        refused = [row[0] for row in await connection.fetch("SELECT payload FROM analytics.rejected_events")]
        assert {text for text in refused if traces.has_refused({"payload": text})} == {
            text for text in refused if "theirs" in text
        }
        await connection.fetchval("SELECT gdpr_delete_user_data($1, true, spellings := $2)", spellings[0], spellings)
        left = await connection.fetch("DELETE FROM analytics.events RETURNING name")
        assert [name for [name] in left] == ["another's"] * 3 * len(others)
        assert len(await connection.fetch("DELETE FROM analytics.rejected_events RETURNING id")) == 2 * len(others)


@pytest.mark.parametrize("spelling", ["", " ", "bob", "@"])
async def test_no_spelling_is_found_in_everything(populated: asyncpg.Connection, spelling: str):
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await populated.fetchval("SELECT gdpr_delete_user_data($1, true, spellings := $2)", ADA.address, [spelling])
