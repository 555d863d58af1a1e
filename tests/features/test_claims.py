"""Ids claimed without proof: whichever id an event without credentials names, and whatever table has that id,
export and erasure leave its owner's rows alone unless asked to include unverified ids."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from ingest.journal.traces import Traces
from ingest.rollup import identity_repairs

MALLORY = "mal3@evil.example"
LEAD = "eeeeeeee-0000-4000-8000-000000000001"
USER = "dddddddd-0000-4000-8000-000000000042"
BROWSER, VISIT = "victim-browser", "vsess-9"
IDS = {"user": USER, "browser": BROWSER, "visit": VISIT}

VICTIM = f"""
SELECT analytics.ensure_events_partition(now()::date);
INSERT INTO experiments.experiments (id, name, status, test_variants)
    VALUES ('00000000-0000-4000-8000-000000000001', 'ours', 'running', '[{{"id": "b"}}]'),
        ('00000000-0000-4000-8000-000000000002', 'second', 'running', '[{{"id": "b"}}]');
INSERT INTO experiments.assignments (experiment_id, user_id, session_id, variant_id, linked_sessions) VALUES
    ('00000000-0000-4000-8000-000000000001', '{USER}', NULL, 'b', '{{{VISIT}}}'),
    ('00000000-0000-4000-8000-000000000001', NULL, '{VISIT}', 'b', '{{}}'),
    ('00000000-0000-4000-8000-000000000002', NULL, '{BROWSER}', 'b', '{{}}'),
    ('00000000-0000-4000-8000-000000000002', NULL, '{USER}', 'b', '{{}}');
INSERT INTO analytics.events (created_at, type, name, user_id, anonymous_id, session_id, batch_id) VALUES
    (now(), 'page_view', 'by user', '{USER}', NULL, NULL, 1),
    (now(), 'page_view', 'by browser', NULL, '{BROWSER}', NULL, 1),
    (now(), 'page_view', 'by visit', NULL, NULL, '{VISIT}', 1),
    (now(), 'page_view', 'by all', '{USER}', '{BROWSER}', '{VISIT}', 1);
INSERT INTO analytics.rejected_events (reason, payload)
    VALUES ('x', '{{"user_id": "{USER}", "anonymousId": "{BROWSER}", "session_id": "{VISIT}"}}');
INSERT INTO analytics.identities (anonymous_id, user_id, linked_at, received_at, batch_id, batch_position)
    VALUES ('{BROWSER}', '{USER}', now(), now(), 1, 3);
INSERT INTO analytics.people (user_id, counted_as, links) VALUES ('{USER}', '{BROWSER}', 1);
INSERT INTO analytics.visits (person, started_at, ended_at, session_id) VALUES
    ('{USER}', now(), now(), 'a visit'), ('{BROWSER}', now(), now(), 'another');
INSERT INTO analytics.stale_identities (anonymous_id, people) VALUES ('{BROWSER}', '{{{USER}}}');
INSERT INTO marketing.leads (id, email, phone_number, notes)
    VALUES ('dddddddd-0000-4000-8000-000000000001', 'victim@example.com', '+493023125009', 'came in {VISIT}');
INSERT INTO onboarding.sessions (id, session_token, anonymous_id, visit_session_id, business_data)
    VALUES ('dddddddd-0000-4000-8000-000000000002', 'sess_{"v" * 43}', '{BROWSER}', '{VISIT}',
        '{{"email": "victim@example.com"}}');
INSERT INTO onboarding.step_activities (session_id, step, activity_type, field_name, field_value)
    VALUES ('dddddddd-0000-4000-8000-000000000002', 'business_info', 'field_filled', 'name', 'V');
INSERT INTO whatsapp.accounts (lead_id, business_account_id, phone_number_id, phone_number, display_name,
        access_token_encrypted, webhook_verify_token_encrypted)
    VALUES ('dddddddd-0000-4000-8000-000000000001', 'k', 'k', '+493023125009', 'V', '\\x00', '\\x00');
"""
"""A person in every table, with ids that anybody may send."""

TABLES = (
    "experiments.assignments", "analytics.events", "analytics.rejected_events", "analytics.identities",
    "analytics.people", "analytics.visits", "analytics.stale_identities", "marketing.leads", "onboarding.sessions",
    "onboarding.step_activities", "whatsapp.accounts", "public.audit_logs",
)  # fmt: skip

# The ways in which an event without credentials can claim an id; CLAIMED is somebody else's.
EVENTS: dict[str, dict[str, Any]] = {
    "address as user": {"user_id": MALLORY},
    "address as user, in another case": {"user_id": MALLORY.upper()},
    "lead as user": {"user_id": LEAD},
    "address as browser": {"anonymous_id": MALLORY},
    "identify": {"name": "identify", "properties": {"email": MALLORY}},
    "traits": {"context": {"traits": {"email": MALLORY}}},
    "email alone": {"properties": {"email": MALLORY}},
    "lead created": {"name": "lead_created", "properties": {"lead_id": LEAD}},
    "lead updated": {"name": "lead_updated", "user_id": MALLORY, "properties": {"lead_id": LEAD}},
}
FIELDS = {"user": "user_id", "browser": "anonymous_id", "visit": "session_id"}


def claims() -> list[tuple[str, tuple[str, ...]]]:
    """The way and the ids: each alone, and as many as fit at once."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for how, event in EVENTS.items():
        free = [kind for kind, field in FIELDS.items() if field not in event]
        found += [(how, (kind,)) for kind in free]
        found.append((how, tuple(free)))
    return [*found, ("onboarding", ("browser",)), ("onboarding", ("visit",)), ("onboarding", ("browser", "visit"))]


def joins_nothing(how: str, kinds: tuple[str, ...]) -> bool:
    """Whether the event identifies at most its sender: besides what it claims it has no person's id, or another's."""
    only_visit = kinds == ("visit",) and not {"user_id", "anonymous_id"} & EVENTS.get(how, {"user_id": ""}).keys()
    return how == "address as browser" or (how == "email alone" and "user" in kinds) or only_visit


async def say(connection: asyncpg.Connection, how: str, kinds: tuple[str, ...]) -> None:
    if how == "onboarding":
        await connection.execute(
            "INSERT INTO onboarding.sessions (anonymous_id, visit_session_id, business_data) VALUES ($1, $2, $3)",
            BROWSER if "browser" in kinds else None, VISIT if "visit" in kinds else None,
            json.dumps({"email": MALLORY}),
        )  # fmt: skip
        return
    event = {"name": "x", **EVENTS[how], **{FIELDS[kind]: IDS[kind] for kind in kinds}}
    await connection.execute(
        "INSERT INTO analytics.events (type, name, user_id, anonymous_id, session_id, properties, context, batch_id)"
        " VALUES ('system', $1, $2, $3, $4, $5, $6, 1)",
        event["name"], event.get("user_id"), event.get("anonymous_id"), event.get("session_id"),
        json.dumps(event.get("properties", {})), json.dumps(event.get("context", {})),
    )  # fmt: skip


async def rows(connection: asyncpg.Connection) -> dict[str, list[dict[str, Any]]]:
    return {
        table: [json.loads(row[0]) for row in await connection.fetch(f"SELECT to_jsonb(each) FROM {table} AS each")]
        for table in TABLES
    }


async def assert_all_are_there(connection: asyncpg.Connection, before: dict[str, list[dict[str, Any]]]) -> None:
    now = await rows(connection)
    for table in TABLES:
        assert [row for row in before[table] if row not in now[table]] == [], table


async def ask(connection: asyncpg.Connection, function: str, *arguments: object) -> dict[str, Any]:
    places = ", ".join(f"${number}" for number in range(1, len(arguments) + 1))
    result: dict[str, Any] = json.loads(await connection.fetchval(f"SELECT {function}({places})", *arguments))
    return result


@pytest.fixture
async def victim(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute(VICTIM)
    return connection


@pytest.mark.parametrize(("how", "kinds"), claims())
async def test_claiming_an_id_gives_no_access_to_its_owners_data(
    victim: asyncpg.Connection, how: str, kinds: tuple[str, ...]
):
    before = await rows(victim)
    assert all(before.values())
    await victim.execute("INSERT INTO marketing.leads (id, email) VALUES ($1, $2)", LEAD, MALLORY)
    await say(victim, how, kinds)

    export = await ask(victim, "gdpr_export_user_data", MALLORY)
    for table in TABLES:
        exported = [row.items() for row in export.get(table, ())]
        assert not [row for row in before[table] for shown in exported if shown <= row.items()], table
    planned = await ask(victim, "gdpr_delete_user_data", MALLORY, False, True)
    claimed = {IDS[kind] for kind in kinds}
    assert not [one for one in claimed if one in json.dumps(planned["because_of"])]
    assert claimed <= {one for ids in planned["unverified"].values() for one in ids} or joins_nothing(how, kinds)
    await assert_all_are_there(victim, before)
    traces = Traces(planned["because_of"])
    for event in before["analytics.events"]:
        assert not traces.has_event({**event, "properties": "{}", "context": "{}"})
        assert not traces.has_broken("\t".join(str(value) for value in event.values()))
    for refused in before["analytics.rejected_events"]:
        assert not traces.has_refused(refused)

    # Included only on request, and a dry run shows in advance what that means.
    believing = await ask(victim, "gdpr_delete_user_data", MALLORY, True, True)
    more = {
        kind: set(ids) - set(planned["because_of"].get(kind, ())) for kind, ids in believing["because_of"].items()
    }
    listed = {kind: set(ids) for kind, ids in planned["unverified"].items()}
    assert {kind: ids for kind, ids in more.items() if ids} == listed
    assert export.get("unverified", {}) == planned["unverified"]
    await assert_all_are_there(victim, before)

    await ask(victim, "gdpr_delete_user_data", MALLORY)
    await assert_all_are_there(victim, before)
    assert not await victim.fetch("SELECT FROM analytics.events AS event WHERE event::text ILIKE $1", f"%{MALLORY}%")


async def test_ids_sent_with_a_key_are_trusted(victim: asyncpg.Connection):
    await say(victim, "address as user", ("browser", "visit"))
    await victim.execute("UPDATE analytics.events SET authenticated = true WHERE user_id = $1", MALLORY)
    planned = await ask(victim, "gdpr_delete_user_data", MALLORY, False, True)
    assert (planned["because_of"]["anonymous_ids"], planned["because_of"]["session_ids"]) == ([BROWSER], [VISIT])
    assert planned["unverified"] == {}
    counts = await ask(victim, "gdpr_delete_user_data", MALLORY)
    assert counts["experiments.assignments"] == 2
    names = {row[0] for row in await victim.fetch("SELECT name FROM analytics.events")}
    assert names == {"by user", "by visit", "by all"}


async def test_a_name_is_listed_before_it_is_searched_for(connection: asyncpg.Connection):
    await connection.execute(
        "INSERT INTO marketing.leads (email, first_name, last_name) VALUES ($1, 'the', 'order')", MALLORY
    )
    planned = await ask(connection, "gdpr_delete_user_data", MALLORY, False, True)
    assert planned["unverified"] == {"names": ["the order"]} and "names" not in planned["because_of"]
    believing = await ask(connection, "gdpr_delete_user_data", MALLORY, True, True)
    assert believing["because_of"]["names"] == ["the order"]


@pytest.mark.parametrize("claimed_first", [True, False])
async def test_statistics_based_on_a_claim_are_rebuilt(connection: asyncpg.Connection, claimed_first: bool):
    """Statistics use unverified ids too, so a browser's visits may be attributed to whoever claimed it."""
    await connection.execute("SELECT analytics.ensure_events_partition(now()::date)")
    await connection.execute(
        "INSERT INTO analytics.events (created_at, type, name, user_id, anonymous_id, batch_id) VALUES"
        " (now() - interval '2 seconds', 'page_view', 'theirs', NULL, $1, 1),"
        " (now() - interval '1 second', 'user_action', 'claim', $2, $1, 1),"
        " (now() - interval '1 second', 'user_action', 'claim', $3, $2, 1)",
        BROWSER, MALLORY, USER,
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO analytics.identities (anonymous_id, user_id, linked_at, received_at, batch_id, batch_position)"
        " VALUES ($1, $2, now(), now(), 1, 1), ($2, $3, now(), now(), 1, 2)",
        BROWSER, MALLORY, USER,
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO analytics.people (user_id, counted_as, links) VALUES ($1, $2, 1), ($2, $3, 1)",
        USER, MALLORY, BROWSER,
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO analytics.visits (person, started_at, ended_at, session_id)"
        " SELECT $1, min(created_at), max(created_at), 'of both' FROM analytics.events",
        MALLORY,
    )  # fmt: skip
    if not claimed_first:
        await connection.execute(
            "INSERT INTO analytics.stale_identities (anonymous_id, people) VALUES ($1, $2)", BROWSER, [USER, MALLORY]
        )
    exported = await ask(connection, "gdpr_export_user_data", MALLORY)
    assert "analytics.visits" not in exported
    assert {"counted_as": MALLORY} in exported["analytics.people"]
    assert not any("last_seen_at" in link for link in exported["analytics.identities"])

    await ask(connection, "gdpr_delete_user_data", MALLORY)
    [person] = await connection.fetch("SELECT user_id, counted_as, links FROM analytics.people")
    assert (person["user_id"], person["links"]) == (USER, 0) and MALLORY not in person["counted_as"]
    [noted] = await connection.fetch("SELECT anonymous_id, people FROM analytics.stale_identities")
    assert noted["anonymous_id"] == BROWSER and set(noted["people"]) == {BROWSER, *([] if claimed_first else [USER])}
    assert await identity_repairs.run_once(connection) == 1
    [seen] = await connection.fetch("SELECT person, session_id FROM analytics.visits")
    assert (seen["person"], seen["session_id"]) != (MALLORY, "of both") and seen["person"] == BROWSER
    [visit] = await connection.fetch("SELECT person, visit FROM analytics.activity WHERE name = 'theirs'")
    assert tuple(visit) == (BROWSER, seen["session_id"])
    for table in TABLES:
        assert not await connection.fetch(f"SELECT FROM {table} AS each WHERE each::text ILIKE $1", f"%{MALLORY}%")
