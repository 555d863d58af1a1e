"""Concurrency: one lead per address, one variant per unit, one adoption per event, sessions stay in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from ingest.postgres import connections
from tests.support.roles import OURS, TOKEN

CONNECTIONS = 20


@pytest.fixture
async def crowd(database_url: str) -> AsyncIterator[list[asyncpg.Connection]]:
    opened = [await connections.connect(database_url, purpose="tests") for _ in range(CONNECTIONS)]
    yield opened
    for one in opened:
        await one.close()


async def all_at_once(crowd: list[asyncpg.Connection], work: Callable[[int, asyncpg.Connection], Any]) -> list[Any]:
    """Do the work on every connection at the same time. Returns the results; raises an error of any."""
    return await asyncio.gather(*(work(place, one) for place, one in enumerate(crowd)))


async def test_a_hundred_inserts_of_one_address_make_one_lead(crowd: list[asyncpg.Connection]):
    async def insert_five(place: int, one: asyncpg.Connection) -> int:
        inserted = 0
        for turn in range(5):
            number = place * 5 + turn
            email = "".join(c.upper() if number >> bit & 1 else c for bit, c in enumerate("one@example.com"))
            status = await one.execute(
                "INSERT INTO marketing.leads (email, notes, interested_features) VALUES ($1, $2, $3)",
                f" {email} ",
                f"note-{number:03}",
                [f"feature-{number % 10}"],
            )
            inserted += int(status.split()[-1])
        return inserted

    assert sum(await all_at_once(crowd, insert_five)) == 1
    (lead,) = await crowd[0].fetch("SELECT email, notes, interested_features FROM marketing.leads")
    assert lead["email"] == "one@example.com"
    assert sorted(lead["notes"].split("\n")) == [f"note-{number:03}" for number in range(100)]
    assert sorted(lead["interested_features"]) == [f"feature-{number}" for number in range(10)]


async def test_an_import_of_leads_may_be_one_statement(connection: asyncpg.Connection):
    # All transactions share the server's locks, 64 for each connection.
    leads = "SELECT 'lead' || number || '@example.com' FROM generate_series(1, 2000) AS number"
    async with connection.transaction():
        assert await connection.execute(f"INSERT INTO marketing.leads (email) {leads}") == "INSERT 0 2000"
        locks = await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        )
    assert 1 <= locks <= 1024


async def test_upserts_of_one_address_make_one_lead(crowd: list[asyncpg.Connection]):
    async def upsert(place: int, one: asyncpg.Connection) -> None:
        await one.execute(
            "INSERT INTO marketing.leads (email) VALUES ('one@example.com')"
            " ON CONFLICT (email) WHERE deleted_at IS NULL DO UPDATE SET city = $1",
            f"City {place}",
        )

    await all_at_once(crowd, upsert)
    assert await crowd[0].fetchval("SELECT count(*) FROM marketing.leads") == 1


@pytest.mark.parametrize(
    "unit", ["user_id := '550e8400-e29b-41d4-a716-446655440001'::uuid", "session_id := 'session_123'"]
)
async def test_one_unit_is_given_one_variant(crowd: list[asyncpg.Connection], unit: str):
    await crowd[0].execute(
        "INSERT INTO experiments.experiments (name, status, test_variants)"
        """ SELECT 'race ' || n, 'running', '[{"id": "b"}, {"id": "c"}]' FROM generate_series(1, 20) AS n"""
    )

    async def assign(place: int, one: asyncpg.Connection) -> Any:
        answers = [json.loads(await one.fetchval(f"SELECT auto_assign_experiments({unit})")) for _ in range(2)]
        assert answers[0] == answers[1]
        return answers[0]

    answers = await all_at_once(crowd, assign)
    assert len(answers[0]) == 20
    assert all(answer == answers[0] for answer in answers)
    rows = await crowd[0].fetch("SELECT experiment_id, variant_id FROM experiments.assignments")
    assert len(rows) == 20
    assert {str(row["experiment_id"]): row["variant_id"] for row in rows} == {
        given["experiment_id"]: given["variant_id"] for given in answers[0].values()
    }


async def test_traffic_raised_meanwhile_does_not_split_a_unit(crowd: list[asyncpg.Connection]):
    """Half raise the traffic, half assign the same units: once assigned, a unit has one variant and one row."""
    await crowd[0].execute(
        "INSERT INTO experiments.experiments (name, status, traffic_percentage, test_variants)"
        " VALUES ('moving', 'running', 10, '[{\"id\": \"b\"}]')"
    )

    async def work(place: int, one: asyncpg.Connection) -> list[tuple[str, str]]:
        given = []
        for turn in range(30):
            if place % 2:
                await one.execute(
                    "UPDATE experiments.experiments SET traffic_percentage = greatest(traffic_percentage, $1)",
                    10 + 3 * turn,
                )
            else:
                answer = json.loads(
                    await one.fetchval("SELECT auto_assign_experiments(session_id := $1)", f"visit {turn % 10}")
                )
                given += [(f"visit {turn % 10}", assignment["variant_id"]) for assignment in answer.values()]
        return given

    answers = {pair for given in await all_at_once(crowd, work) for pair in given}
    rows = await crowd[0].fetch("SELECT session_id, variant_id FROM experiments.assignments")
    assert sorted(answers) == sorted((row["session_id"], row["variant_id"]) for row in rows)
    assert len({unit for unit, _ in answers}) == len(answers) > 0


async def test_steps_done_at_once_leave_a_consistent_session(crowd: list[asyncpg.Connection]):
    steps = ["business_info", "whatsapp_integration", "bot_setup", "testing"]
    await crowd[0].execute("INSERT INTO onboarding.sessions (id, session_token) VALUES ($1, $2)", UUID(OURS), TOKEN)

    async def finish(place: int, one: asyncpg.Connection) -> list[tuple[Any, ...]]:
        seen = []
        for turn in range(2):
            step = steps[(place + turn) % len(steps)]
            row = await one.fetchrow(
                f"UPDATE onboarding.sessions SET {step}_completed_at = coalesce({step}_completed_at, now())"
                " RETURNING progress_percentage, current_step, status, num_nonnulls(business_info_completed_at,"
                " whatsapp_integration_completed_at, bot_setup_completed_at, testing_completed_at) AS done"
            )
            await one.execute(
                "INSERT INTO onboarding.step_activities (session_id, step, activity_type)"
                " VALUES ($1, $2, 'step_done')",
                UUID(OURS),
                step,
            )
            assert row is not None
            seen.append(tuple(row))
        return seen

    for row in [row for rows in await all_at_once(crowd, finish) for row in rows]:
        progress, step, status, done = row
        assert progress == done * 25
        assert (step == "complete") == (status == "completed") == (done == 4)
    session = await crowd[0].fetchrow("SELECT * FROM onboarding.sessions")
    assert session is not None
    assert (session["progress_percentage"], session["current_step"], session["status"]) == (
        100,
        "complete",
        "completed",
    )
    assert session["completed_at"] >= session["started_at"]
    assert await crowd[0].fetchval("SELECT count(*) FROM onboarding.step_activities") == 2 * CONNECTIONS


@pytest.mark.parametrize("first", ["business_info_completed_at", "testing_completed_at", "status"])
async def test_an_older_transaction_may_finish_a_step_started_later(crowd: list[asyncpg.Connection], first: str):
    """now() is the start of the transaction, not the time when it gets the row."""
    early, late, *_ = crowd
    await early.execute("INSERT INTO onboarding.sessions (id, session_token) VALUES ($1, $2)", UUID(OURS), TOKEN)
    async with early.transaction():
        began = await early.fetchval("SELECT now()")
        to = "'in_progress'" if first == "status" else "now()"
        await late.execute(f"UPDATE onboarding.sessions SET {first} = {to}")
        await early.execute(
            "UPDATE onboarding.sessions SET"
            " business_info_completed_at = coalesce(business_info_completed_at, now()),"
            " whatsapp_integration_completed_at = now(), bot_setup_completed_at = now(),"
            " testing_completed_at = coalesce(testing_completed_at, now())"
        )
    session = await late.fetchrow("SELECT * FROM onboarding.sessions")
    assert session is not None and session["status"] == "completed"
    assert began < session["started_at"] <= session["completed_at"]


async def test_pending_events_are_adopted_once(crowd: list[asyncpg.Connection]):
    await crowd[0].execute("SELECT analytics.ensure_events_partition((now() AT TIME ZONE 'UTC')::date)")

    async def insert_and_adopt(place: int, one: asyncpg.Connection) -> int:
        adopted = 0
        for _ in range(5):
            await one.execute(
                "INSERT INTO analytics.events (type, name) VALUES ('system', 'ping'), ('system', 'pong')"
            )
            adopted += await one.fetchval("SELECT process_pending_events()")
        return adopted

    adopted = sum(await all_at_once(crowd, insert_and_adopt))
    # None is left: each connection adopts after its own inserts.
    assert adopted == 10 * CONNECTIONS
    assert await crowd[0].fetchval("SELECT process_pending_events()") == 0
    batches = await crowd[0].fetch("SELECT batch_id, count(*) FROM analytics.events GROUP BY 1")
    flushes = await crowd[0].fetch(
        "SELECT journal::bigint << 40 | first_record AS batch_id, events_stored FROM analytics.flushes"
    )
    assert {tuple(row) for row in batches} == {tuple(row) for row in flushes}
    stored = await crowd[0].fetchval("SELECT events_stored FROM analytics.journals")
    assert stored == adopted


async def test_two_concurrent_calls_share_the_waiting_events(crowd: list[asyncpg.Connection]):
    """The second waits for the first to commit, and then finds none of its events."""
    first, second, watcher = crowd[:3]
    await first.execute("SELECT analytics.ensure_events_partition((now() AT TIME ZONE 'UTC')::date)")
    await first.execute(
        "INSERT INTO analytics.events (type, name) SELECT 'system', 'ping' FROM generate_series(1, 1000)"
    )
    async with first.transaction():
        assert await first.fetchval("SELECT process_pending_events()") == 1000
        other = asyncio.create_task(second.fetchval("SELECT process_pending_events()"))
        for _ in range(1000):
            if await watcher.fetchval(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1", second.get_server_pid()
            ):
                break
            await asyncio.sleep(0.01)
        assert not other.done()
    assert await other == 0
