"""Users change the table of events: their rules may refuse one row or every row; one row never stops the others."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any, NamedTuple

import asyncpg
import pytest

from ingest.base.refusals import RejectReason
from ingest.postgres import connections
from ingest.store import writer
from ingest.store.channel import Failed, FromWriter
from ingest.store.merge import is_servers
from tests.support.amounts import some_of
from tests.support.collector import Client, Start, errors
from tests.support.events import batch

FUNCTION = "CREATE FUNCTION public.users_rule() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN {} RETURN NEW; END $f$;"
TRIGGER = "CREATE TRIGGER users_rule {} ON analytics.events FOR EACH ROW EXECUTE FUNCTION public.users_rule()"
STATEMENT = (
    "CREATE TRIGGER users_rule AFTER INSERT ON analytics.events REFERENCING NEW TABLE AS added"
    " FOR EACH STATEMENT EXECUTE FUNCTION public.users_rule()"
)


def raising(what: str, when: str = "BEFORE INSERT", condition: str = "NEW.name LIKE 'bad%'") -> str:
    return FUNCTION.format(f"IF {condition} THEN {what} END IF;") + TRIGGER.format(when)


STATES = ("22012", "23514", "2F005", "38000", "39004", "42883", "42703", "42501", "44000", "54000", "0A000", "P0002")
ROW_RULES = {
    "plain exception": raising("RAISE EXCEPTION 'not %', NEW.name;"),
    "exception after the row": raising("RAISE EXCEPTION 'not this one';", "AFTER INSERT"),
    "assertion": raising("ASSERT false, 'never';"),
    "bug of the trigger": raising("PERFORM 1 / (length(NEW.name) - length(NEW.name));"),
    "unknown function": raising("EXECUTE 'SELECT no_such_function()';"),
    "unknown table": raising("EXECUTE 'INSERT INTO no_such_table VALUES (1)';"),
    "no row of many": raising("DECLARE x int; BEGIN SELECT 1 INTO STRICT x WHERE false; END;"),
    "a code of its own": raising("RAISE EXCEPTION 'mine' USING ERRCODE = 'ZZ123';"),
    "an internal error": raising("RAISE EXCEPTION 'from an extension' USING ERRCODE = 'XX000';"),
    **{f"state {state}": raising(f"RAISE EXCEPTION 'x' USING ERRCODE = '{state}';") for state in STATES},
    "check": "ALTER TABLE analytics.events ADD CONSTRAINT users CHECK (name NOT LIKE 'bad%') NOT VALID",
    "index on an expression": "CREATE INDEX ON analytics.events ((10 / (1 - (name LIKE 'bad%')::int)))",
    "constraint trigger at the end": FUNCTION.format("IF NEW.name LIKE 'bad%' THEN RAISE EXCEPTION 'late'; END IF;")
    + "CREATE CONSTRAINT TRIGGER users_rule AFTER INSERT ON analytics.events DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION public.users_rule()",
    "trigger of the statement": FUNCTION.format(
        "IF EXISTS (SELECT FROM added WHERE name LIKE 'bad%') THEN RAISE EXCEPTION 'one of them'; END IF;"
    )
    + STATEMENT,
    "foreign key": "CREATE TABLE public.customers (id text PRIMARY KEY); "
    "ALTER TABLE analytics.events ADD FOREIGN KEY (user_id) REFERENCES public.customers",
    "foreign key at the end": "CREATE TABLE public.customers (id text PRIMARY KEY); ALTER TABLE analytics.events"
    " ADD FOREIGN KEY (user_id) REFERENCES public.customers DEFERRABLE INITIALLY DEFERRED",
}


def events_with_bad_ones(bad: set[int], count: int) -> list[dict[str, Any]]:
    events = batch(count)
    for index in bad:
        events[index] |= {"name": f"bad {index}", "user_id": "nobody's"}
    return events


@pytest.mark.parametrize("rule", some_of(ROW_RULES, 9))
async def test_an_error_caused_by_one_row_is_blamed_on_it(client: Client, connection: asyncpg.Connection, rule: str):
    await connection.execute(ROW_RULES[rule])
    chance = random.Random(rule)
    count = chance.randint(2, 300)
    bad = set(chance.sample(range(count), chance.randint(1, min(4, count - 1))))
    assert (await client.post(events_with_bad_ones(bad, count))).status == 200
    # And one that comes alone: no neighbour is stored, which would show that the row is at fault.
    assert (await client.post(events_with_bad_ones({0}, 1))).status == 200
    assert (await client.post(batch(1, "after"))).status == 200
    stored = await client.events()
    assert len(stored) == count - len(bad) + 1 and not [one for one in stored if one["name"].startswith("bad")]
    kept = await client.rejected()
    assert sorted(json.loads(one["payload"])["name"] for one in kept) == sorted([*(f"bad {n}" for n in bad), "bad 0"])
    assert {one["reason"] for one in kept} == {"database_refused"}
    accounts = client.worker.accounts
    assert (accounts.stored, accounts.rejected[RejectReason.DATABASE_REFUSED]) == (count - len(bad) + 1, len(bad) + 1)
    assert (await client.get("/readyz")).json() == {"status": "ready", "postgres": "up", "pending": 0}
    ledger = await connection.fetchrow(
        "SELECT sum(events_stored) AS s, sum(events_rejected) AS r FROM analytics.flushes"
    )
    assert tuple(ledger) == (count - len(bad) + 1, len(bad) + 1)


def test_errors_of_the_server_are_not_blamed_on_rows():
    states = {
        **dict.fromkeys(("08006", "57P01", "57014", "53100", "53200", "53300", "58030", "40001", "40P01"), True),
        **dict.fromkeys(("25006", "25P02", "28P01", "3D000", "55P03", "XX001", "XX002"), True),
        **dict.fromkeys(("P0001", "P0004", "22P02", "23502", "23514", "42501", "42P01", "54000", "XX000", ""), False),
    }
    for state, servers in states.items():
        error = asyncpg.PostgresError()
        error.sqlstate = state
        assert is_servers(error) is servers, state


class Change(NamedTuple):
    """A change to the table, and its repair."""

    do: str
    repair: str


DROP = "DROP TRIGGER users_rule ON analytics.events; DROP FUNCTION public.users_rule()"
CHANGES = {
    "a column that must be there": Change(
        "ALTER TABLE analytics.events ADD COLUMN tenant text DEFAULT 'one';"
        "ALTER TABLE analytics.events ALTER COLUMN tenant SET NOT NULL, ALTER COLUMN tenant DROP DEFAULT",
        "ALTER TABLE analytics.events ALTER COLUMN tenant SET DEFAULT 'one'",
    ),
    "a check on a column of their own": Change(
        "ALTER TABLE analytics.events ADD COLUMN tenant text, ADD CONSTRAINT t CHECK (tenant IS NOT NULL) NOT VALID",
        "ALTER TABLE analytics.events DROP CONSTRAINT t",
    ),
    "a check that nothing meets": Change(
        "ALTER TABLE analytics.events ADD CONSTRAINT t CHECK (name = '') NOT VALID",
        "ALTER TABLE analytics.events DROP CONSTRAINT t",
    ),
    "a trigger that always raises": Change(raising("RAISE EXCEPTION 'no %', NEW.id;", condition="true"), DROP),
    "a trigger with a bug": Change(raising("NEW.no_such_column := 1;", condition="true"), DROP),
    "a trigger that always raises, of the statement": Change(
        FUNCTION.format("RAISE EXCEPTION 'no';") + STATEMENT, DROP
    ),
    "a trigger that always raises at the end": Change(
        FUNCTION.format("RAISE EXCEPTION 'no';")
        + "CREATE CONSTRAINT TRIGGER users_rule AFTER INSERT ON analytics.events DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION public.users_rule()",
        DROP,
    ),
    "a column that is gone": Change(
        "DROP VIEW analytics.activity, analytics.counted_activity; ALTER TABLE analytics.events DROP COLUMN utm_term",
        "ALTER TABLE analytics.events ADD COLUMN utm_term text",
    ),
    "a column that has another name": Change(
        "ALTER TABLE analytics.events RENAME COLUMN region TO area",
        "ALTER TABLE analytics.events RENAME COLUMN area TO region",
    ),
    "a column of another type": Change(
        "DROP VIEW analytics.activity, analytics.counted_activity;"
        " ALTER TABLE analytics.events ALTER COLUMN received_at DROP DEFAULT,"
        " ALTER COLUMN received_at TYPE int USING 7",
        "ALTER TABLE analytics.events ALTER COLUMN received_at TYPE timestamptz USING now()",
    ),
    "a table that is gone": Change(
        "ALTER TABLE analytics.events RENAME TO old_events", "ALTER TABLE analytics.old_events RENAME TO events"
    ),
    "a foreign key that nothing meets": Change(
        "CREATE TABLE public.names (name text PRIMARY KEY); ALTER TABLE analytics.events"
        " ADD CONSTRAINT t FOREIGN KEY (name) REFERENCES public.names",
        "ALTER TABLE analytics.events DROP CONSTRAINT t",
    ),
}


async def change(connection: asyncpg.Connection, statements: str) -> None:
    """Execute the statements, and retry after a deadlock with a flush, as a user would."""
    for last in (False, False, False, True):
        try:
            await connection.execute(statements)
            return
        except asyncpg.DeadlockDetectedError:
            if last:
                raise


@pytest.mark.parametrize("before", [0, 30], ids=["new table", "table in use"])
@pytest.mark.parametrize("what", some_of(CHANGES, 4))
async def test_a_change_that_refuses_every_row_is_logged_and_waited_out(
    client: Client, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture, what: str, before: int
):
    if what == "a foreign key that nothing meets" and before:
        pytest.skip("rows that are there would have to meet it")
    if before:
        await client.post(batch(before))
        await client.settled()
    await change(connection, CHANGES[what].do)
    chance = random.Random(what)
    count = chance.choice([1, 2, 90])
    assert (await client.post(batch(count))).status == 200
    async with asyncio.timeout(60):
        while not errors(caplog):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    # More events arrive meanwhile; the next attempts try them too.
    assert (await client.post(batch(3, "meanwhile"))).status == 200
    await asyncio.sleep(1)
    assert "nothing can be stored until this is fixed" in errors(caplog)[0] and len(errors(caplog)) == 1
    ready = await client.get("/readyz")
    assert ready.status == 200 and ready.json()["postgres"] == "up" and ready.json()["pending"] == count + 3
    assert "refuses every row" in ready.json()["not_storing"]
    assert (await client.metrics())["ingest_table_refuses"] == 1
    assert await connection.fetchval("SELECT count(*) FROM analytics.rejected_events") == 0
    await change(connection, CHANGES[what].repair)
    assert len(await client.events()) == before + count + 3
    assert await client.rejected() == []
    assert client.worker.accounts.stored == before + count + 3
    assert (await client.metrics())["ingest_table_refuses"] == 0
    assert (await client.get("/readyz")).json() == {"status": "ready", "postgres": "up", "pending": 0}


HOSTILE = {
    "a list of what is not wanted": "ADD CONSTRAINT t CHECK (name <> 'spam') NOT VALID",
    "a list of what is wanted": "ADD CONSTRAINT t CHECK (name LIKE 'ok%') NOT VALID",
    "a property that must be there": "ADD CONSTRAINT t CHECK (properties ? 'tenant') NOT VALID",
}


@pytest.mark.parametrize("before", ["nothing", "the others", "the hostile one", "both"])
@pytest.mark.parametrize("rule", some_of(HOSTILE, 1))
async def test_one_client_that_sends_only_bad_rows_does_not_stop_the_others(
    start: Start, connection: asyncpg.Connection, rule: str, before: str
):
    """Whatever the table held when its owner added the rule, and even if whole flushes are bad."""
    client = await start(flush_max_bytes="64kB")
    good = [{**one, "properties": {"tenant": "t"}} for one in batch(60, "ok")]
    if before in ("the others", "both"):
        await client.post(good[:20])
        await client.settled()
    if before in ("the hostile one", "both"):
        await client.post(batch(300, "spam"))
        await client.settled()
    held = len(await client.events())
    await connection.execute(f"ALTER TABLE analytics.events {HOSTILE[rule]}")
    for _ in range(4):
        assert (await client.post(batch(250, "spam"))).status == 200
    assert (await client.post(good[20:])).status == 200
    assert len(await client.events()) == held + 40
    kept = await client.rejected()
    assert len(kept) == 1000 and {one["reason"] for one in kept} == {"database_refused"}
    assert client.worker.accounts.rejected[RejectReason.DATABASE_REFUSED] == 1000


async def test_a_refused_event_that_its_own_table_refuses_does_not_stop_the_others(
    client: Client, connection: asyncpg.Connection
):
    await connection.execute(
        FUNCTION.format("PERFORM pg_notify('refused', NEW.payload);")
        + "CREATE TRIGGER users_rule AFTER INSERT ON analytics.rejected_events"
        " FOR EACH ROW EXECUTE FUNCTION public.users_rule()"
    )
    too_long = {"name": "", "properties": {"text": "x" * 9000}}
    assert (await client.post([*batch(5), too_long, {"name": ""}])).status == 200
    assert len(await client.events()) == 5
    assert [json.loads(one["payload"]) for one in await client.rejected()] == [{"name": ""}]


async def test_a_row_that_both_tables_refuse_stays_pending(
    client: Client, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
):
    await connection.execute(
        "ALTER TABLE analytics.events ADD CONSTRAINT t CHECK (name <> 'bad') NOT VALID;"
        "ALTER TABLE analytics.rejected_events ADD CONSTRAINT t CHECK (payload NOT LIKE '%bad%') NOT VALID"
    )
    await client.post([*batch(5), *batch(1, "bad")])
    async with asyncio.timeout(60):
        while not any("nothing can be stored" in text for text in errors(caplog)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert client.worker.accounts.pending == 6
    await connection.execute("ALTER TABLE analytics.rejected_events DROP CONSTRAINT t")
    assert len(await client.events()) == 5 and len(await client.rejected()) == 1


# Rows that take too long.


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts here is how often the writer tries, not how long it rests in between."""
    monkeypatch.setattr(writer, "LAST_RETRY_SECONDS", 0.2)


SLOW = "IF NEW.name LIKE 'bad%' THEN {} END IF;"
SLOW_RULES = {
    "sleeps before": FUNCTION.format(SLOW.format("PERFORM pg_sleep(600);")) + TRIGGER.format("BEFORE INSERT"),
    "sleeps after": FUNCTION.format(SLOW.format("PERFORM pg_sleep(600);")) + TRIGGER.format("AFTER INSERT"),
    "works forever": FUNCTION.format(SLOW.format("LOOP PERFORM 1; END LOOP;")) + TRIGGER.format("BEFORE INSERT"),
    "at the end": FUNCTION.format(SLOW.format("PERFORM pg_sleep(600);"))
    + "CREATE CONSTRAINT TRIGGER users_rule AFTER INSERT ON analytics.events DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION public.users_rule()",
}


@pytest.mark.parametrize(
    ("rule", "count", "times"),
    some_of([("sleeps before", 1, 1), ("sleeps after", 20, 7), *((rule, 40, 1) for rule in SLOW_RULES)], 1),
)
@pytest.mark.usefixtures("short_pauses")
async def test_a_row_that_takes_forever_is_refused_and_does_not_stop_the_others(
    start: Start, connection: asyncpg.Connection, rule: str, count: int, times: int
):
    await connection.execute(SLOW_RULES[rule])
    client = await start(statement_timeout_seconds=1)
    bad = set(random.Random(rule).sample(range(count), times))
    assert (await client.post(events_with_bad_ones(bad, count))).status == 200
    assert (await client.post(batch(1, "after"))).status == 200
    async with asyncio.timeout(240):
        while client.worker.journal.has_backlog:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    stored = await client.events()
    assert len(stored) == count - times + 1 and not [one for one in stored if one["name"].startswith("bad")]
    kept = await client.rejected()
    assert len(kept) == times
    for one in kept:
        assert (one["reason"], "alone took longer" in one["detail"]) == (RejectReason.DATABASE_REFUSED.value, True)


@pytest.mark.long
@pytest.mark.usefixtures("short_pauses")
async def test_a_slow_row_is_also_refused_if_the_servers_limit_is_shorter(
    start: Start, connection: asyncpg.Connection
):
    await connection.execute(SLOW_RULES["sleeps before"])
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET statement_timeout = '700ms'")
    client = await start(statement_timeout_seconds=2)
    assert (await client.post(events_with_bad_ones({2}, 5))).status == 200
    async with asyncio.timeout(120):
        while client.worker.journal.has_backlog:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await connection.execute(f"ALTER DATABASE {name} RESET statement_timeout")
    assert (len(await client.events()), len(await client.rejected())) == (4, 1)


NOT_A_ROWS_FAULT = {
    "every row is slow": (
        FUNCTION.format("PERFORM pg_sleep(600);") + TRIGGER.format("BEFORE INSERT"),
        "SELECT 1",
    ),
    "one row waits for a lock": (
        FUNCTION.format(SLOW.format("PERFORM pg_advisory_xact_lock(7);")) + TRIGGER.format("BEFORE INSERT"),
        "SELECT pg_advisory_xact_lock(7)",
    ),
    "one row waits for a row": (
        "CREATE TABLE public.counted (n int); INSERT INTO public.counted VALUES (0);"
        + FUNCTION.format(SLOW.format("UPDATE public.counted SET n = n + 1;"))
        + TRIGGER.format("BEFORE INSERT"),
        "UPDATE public.counted SET n = 0",
    ),
    "a lock on the table": ("SELECT 1", "LOCK TABLE analytics.events IN ACCESS EXCLUSIVE MODE"),
}
"""How the database is changed, and what another transaction holds meanwhile."""


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("cause", some_of(NOT_A_ROWS_FAULT, 1))
async def test_a_slow_database_refuses_no_row(
    start: Start, connection: asyncpg.Connection, database_url: str, cause: str, monkeypatch: pytest.MonkeyPatch
):
    change, held = NOT_A_ROWS_FAULT[cause]
    await connection.execute(change)
    client = await start(statement_timeout_seconds=1)
    other = await connections.connect(database_url, purpose="tests")
    try:
        async with other.transaction():
            await other.execute(held)
            assert (await client.post(events_with_bad_ones({3}, 10))).status == 200
            feeder, failed = client.worker.stores.feeder, 0
            receive = feeder.receive

            def count(message: FromWriter) -> None:
                nonlocal failed
                failed += isinstance(message, Failed)
                receive(message)

            monkeypatch.setattr(feeder, "receive", count)
            async with asyncio.timeout(120):
                while failed < 9:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert client.worker.journal.has_backlog
    finally:
        await connections.close(other)
    if cause == "every row is slow":
        await connection.execute("DROP FUNCTION public.users_rule CASCADE")
    assert len(await client.events()) == 10
    assert await client.rejected() == []
