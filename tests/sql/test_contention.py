"""Locks and errors of the database: no feature keeps the others waiting, and no answer repeats its messages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from ingest.api import api_keys
from ingest.postgres.shares import Shares
from ingest.service.collector import CALLING_CONNECTIONS, FEATURES
from tests.support.amounts import some_of
from tests.support.collector import Answer, Client, Start

ADMIN = "an-admin-key-of-these-tests"
BEARER = {"Authorization": f"Bearer {ADMIN}"}
NO_LIMIT = {"api_rate_limit_per_second": 0, "admin_keys": (ADMIN,)}


# Shares.


async def test_a_feature_that_takes_all_it_can_leaves_one_for_each_other():
    shares = Shares(6, ("a", "b", "c"))
    taken = [asyncio.ensure_future(shares.take("a")) for _ in range(10)]
    await asyncio.sleep(0)
    assert sum(each.done() for each in taken) == 4
    async with asyncio.timeout(60):
        await shares.take("b")
        await shares.take("c")
    waiting = asyncio.ensure_future(shares.take("b"))
    await asyncio.sleep(0)
    assert not waiting.done()
    # First come, first served, among those allowed.
    shares.give_back("a")
    await asyncio.sleep(0)
    assert sum(each.done() for each in taken) == 5 and not waiting.done()
    for each in taken:
        each.cancel()
    await asyncio.gather(*taken, return_exceptions=True)
    shares.give_back("a")
    await waiting


async def test_whatever_is_taken_given_back_and_given_up_the_books_are_right():
    """Any interleaving: never more than there are, one for each feature that has none, and no needless waiting."""
    features = ("a", "b", "c", "d")
    for seed in range(30):
        chance = random.Random(seed)
        total = chance.randrange(4, 9)
        shares = Shares(total, features)
        held: list[str] = []
        waiting: list[tuple[str, asyncio.Task[None]]] = []
        for _ in range(200):
            act = chance.random()
            if act < 0.5:
                name = chance.choice(features)
                waiting.append((name, asyncio.ensure_future(shares.take(name))))
            elif act < 0.8 and held:
                shares.give_back(held.pop(chance.randrange(len(held))))
            elif waiting:
                waiting[chance.randrange(len(waiting))][1].cancel()
            if chance.random() < 0.7:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                held += [name for name, task in waiting if task.done() and not task.cancelled()]
                waiting = [each for each in waiting if not each[1].done()]
                assert len(held) == shares._held.total() <= total
                idle = set(features) - set(held)
                assert total - len(held) >= len(idle)
                assert not idle & {name for name, _ in waiting}
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*[task for _, task in waiting], return_exceptions=True)
        held += [name for name, task in waiting if not task.cancelled()]
        for name in held:
            shares.give_back(name)
        assert shares._held.total() == 0 and not shares._waiting


def test_there_is_a_share_for_each():
    assert len(FEATURES) < CALLING_CONNECTIONS
    with pytest.raises(ValueError, match="places"):
        Shares(2, ("a", "b", "c"))


async def test_an_unknown_feature_has_no_share():
    with pytest.raises(KeyError):
        await Shares(3, ("a",)).take("b")


# Locks.


@asynccontextmanager
async def locked(url: str, table: str) -> AsyncIterator[None]:
    """Lock the table: nobody else can read it meanwhile."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


EXPERIMENT: dict[str, Any] = {"name": "e", "control_variant": {"id": "a"}, "test_variants": [{"id": "b"}]}
ASKED: dict[str, tuple[str, str, Any]] = {
    "leads": ("POST", "/v1/leads", {"email": "ann@shop.example"}),
    "list of leads": ("GET", "/v1/leads", None),
    "onboarding": ("POST", "/v1/onboarding/sessions", {}),
    "assignments": ("POST", "/v1/experiments/assignments", {"session_id": "s"}),
    "experiments": ("GET", "/v1/experiments", None),
    "flags": ("POST", "/ofrep/v1/evaluate/flags", {"context": {"targetingKey": "u"}}),
    "statistics": ("GET", "/v1/stats/totals", None),
    "events": ("POST", "/v1/events", {"name": "x"}),
    "health": ("GET", "/readyz", None),
}
NEEDS = {
    "marketing.leads": {"leads", "list of leads", "onboarding"},
    "onboarding.sessions": {"onboarding"},
    "experiments.assignments": {"assignments"},
    "analytics.event_aggregations": {"statistics"},
    "ingest.api_keys": set[str](),
}
ALIKE = {"experiments.assignments": {"experiments"}}
"""What is of the same feature as those that need it, and waits behind them for its connections."""


async def ask(client: Client, name: str) -> Answer:
    method, path, body = ASKED[name]
    return await client.request(method, path, body, **BEARER)


@pytest.mark.parametrize("table", some_of(NEEDS, 2))
async def test_who_locks_a_table_stops_nobody_who_does_not_need_it(
    start: Start, database_url: str, table: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ingest.api.transactions.LOCK_SECONDS", 1.0)
    monkeypatch.setattr("ingest.features.stats.reading.LOCK_SECONDS", 1.0)
    client = await start(**NO_LIMIT)
    made = await client.post(EXPERIMENT, "/v1/experiments", **BEARER)
    await client.post({}, f"/v1/experiments/{made.json()['id']}/start", **BEARER)
    assert [(name, (await ask(client, name)).status // 100) for name in ASKED] == [(name, 2) for name in ASKED]
    async with locked(database_url, table):
        # More than there are connections, as long as requests go to the other features.
        stuck = [asyncio.ensure_future(ask(client, name)) for name in NEEDS[table] for _ in range(30)]
        await asyncio.sleep(0.2)
        for _ in range(3):
            for name in ASKED.keys() - NEEDS[table] - ALIKE.get(table, set()):
                answer = await ask(client, name)
                assert answer.status // 100 == 2, (name, answer)
        for answer in await asyncio.gather(*stuck):
            assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0, answer
            assert answer.json()["code"] in ("busy", "database_unavailable")
    for name in ASKED:
        assert (await ask(client, name)).status // 100 == 2, name


async def test_the_wait_for_a_locked_row_is_limited(start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ingest.api.transactions.LOCK_SECONDS", 0.5)
    client = await start(**NO_LIMIT)
    lead = (await client.post({"email": "ann@shop.example"}, "/v1/leads", **BEARER)).json()["id"]
    path = f"/v1/leads/{lead}"
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM marketing.leads WHERE id = $1::text::uuid FOR UPDATE", lead)
            answer = await client.request("PATCH", path, {"status": "contacted"}, **BEARER)
            assert (answer.status, answer.json()["code"]) == (503, "busy")
            waiting = asyncio.ensure_future(client.request("PATCH", path, {"status": "contacted"}, **BEARER))
            await asyncio.sleep(0.1)
        assert (await waiting).status == 200
    finally:
        await connection.close()


# Words.

STATES = (
    "PT429", "P0001", "P0002", "P0003", "P0004", "22000", "22001", "22003", "22007", "22023", "22P02", "22P05",
    "23000", "23502", "23503", "23505", "23514", "23P01", "40001", "40P01", "42501", "42703", "42P01", "53100",
    "54000", "54001", "55000", "55006", "55P03", "57014", "58030", "XX000", "0A000", "21000", "25006", "28000",
)  # fmt: skip
"""At least one of each class that a row, a trigger or a function can raise."""
OURS = {"PT429": 429, "42501": 403, "23505": 409, "23P01": 409, "40001": 503, "40P01": 503, "55P03": 503}
OF_ROWS = ("22", "23", "54", "P0001")


async def raising(connection: asyncpg.Connection, table: str) -> None:
    """Make every INSERT raise the state in public.wanted_state, with words that no caller may see."""
    await connection.execute(
        """
        CREATE TABLE IF NOT EXISTS public.wanted_state (state text);
        GRANT SELECT ON public.wanted_state TO PUBLIC;
        CREATE OR REPLACE FUNCTION public.raise_wanted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        DECLARE wanted text := (SELECT state FROM public.wanted_state);
        BEGIN
            IF wanted IS NULL THEN RETURN NEW; END IF;
            RAISE EXCEPTION 'the message' USING ERRCODE = wanted, DETAIL = 'private detail of another row',
                HINT = 'private hint', COLUMN = 'private_column', CONSTRAINT = 'the_constraint',
                TABLE = 'private_table', SCHEMA = 'private_schema', DATATYPE = 'private_type';
        END $$;
        """
    )
    await connection.execute(
        f"CREATE TRIGGER aaa_raise BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION public.raise_wanted()"
    )


@pytest.mark.parametrize(
    ("table", "path", "body"),
    [
        ("marketing.leads", "/v1/leads", {"email": "ann@shop.example"}),
        ("onboarding.sessions", "/v1/onboarding/sessions", {}),
        ("experiments.experiments", "/v1/experiments", EXPERIMENT),
    ],
)
async def test_no_answer_repeats_the_databases_messages(
    start: Start, connection: asyncpg.Connection, table: str, path: str, body: Any, caplog: pytest.LogCaptureFixture
):
    client = await start(**NO_LIMIT)
    await raising(connection, table)
    for state in STATES:
        await connection.execute("DELETE FROM public.wanted_state")
        await connection.execute("INSERT INTO public.wanted_state VALUES ($1)", state)
        answer = await client.post(body, path, **BEARER)
        words = answer.body.decode() + str(answer.headers)
        for word in ("private", "DETAIL", "HINT", "CONTEXT", "PL/pgSQL", "aaa_raise", "raise_wanted"):
            assert word not in words, (state, words)
        assert answer.status >= 400 and answer.json()["code"]
        if state in OURS:
            assert answer.status in (OURS[state], 409), (state, answer)
        elif state.startswith(OF_ROWS):
            assert answer.status == 422, (state, answer)
        else:
            assert answer.status in (500, 503), (state, answer)
    caplog.clear()
    await connection.execute("DELETE FROM public.wanted_state")
    assert (await client.post(body, path, **BEARER)).status in (200, 201, 202)


async def test_a_limit_says_what_it_is_and_when_it_ends(start: Start, connection: asyncpg.Connection):
    client = await start(api_rate_limit_per_second=0)
    for _ in range(5):
        assert (await client.post({}, "/v1/onboarding/sessions")).status == 201
    answer = await client.post({}, "/v1/onboarding/sessions")
    assert answer.status == 429
    assert answer.json()["message"] == "too many onboarding sessions: at most 5 an hour"
    assert 3500 < int(answer.headers["Retry-After"]) <= 3600
    key = await api_keys.create(connection, "server", ["write"])
    assert (await client.post({}, "/v1/onboarding/sessions", Authorization=f"Bearer {key}")).status == 201
