"""If waiting flushes are not rolled up, the log, /readyz and a metric report it, whatever the cause."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from ingest.postgres import connections
from ingest.store import partitions
from tests.support.amounts import some_of
from tests.support.rollup_process import (
    RollupProcess,
    insert_today,
    rolling_up,
    the_leader,
    total,
    verify,
    wait_rolled_up,
)
from tests.support.service import request, wait_until

SECONDS = 90
WORDS = r"(nothing rolled up for \d+ s while \d+ flushes|for \d+ s the database has not reported what is waiting)"
ERROR_LINE = f"(?i)error.*{WORDS}"
GOES_ON = "rollup has resumed"

LOCKS = {
    "a lock on the aggregates": "LOCK TABLE analytics.event_aggregations IN ACCESS EXCLUSIVE MODE",
    "a lock on the leases": "LOCK TABLE analytics.leases IN EXCLUSIVE MODE",
    "a lock on the flushes": "SELECT * FROM analytics.flushes FOR UPDATE",
    "a lock on the events": "LOCK TABLE analytics.events IN ACCESS EXCLUSIVE MODE",
    "nobody can look": "LOCK TABLE analytics.flushes IN ACCESS EXCLUSIVE MODE",
}
"""Statements of another transaction, until it ends."""

FAULTS = {
    "a trigger that fails": (
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'a fault of the user''s'; END $$;"
        " CREATE TRIGGER fail BEFORE INSERT ON analytics.event_aggregations"
        " FOR EACH ROW EXECUTE FUNCTION public.fail()",
        "DROP FUNCTION public.fail CASCADE",
    ),
    "a constraint that refuses": (
        "ALTER TABLE analytics.event_aggregations ADD CONSTRAINT never CHECK (event_count < 0) NOT VALID",
        "ALTER TABLE analytics.event_aggregations DROP CONSTRAINT never",
    ),
    "a column that is gone": (
        "ALTER TABLE analytics.event_aggregations RENAME users_sketch TO sketched",
        "ALTER TABLE analytics.event_aggregations RENAME sketched TO users_sketch",
    ),
    "a table that is gone": (
        "ALTER TABLE analytics.event_aggregations RENAME TO called_otherwise",
        "ALTER TABLE analytics.called_otherwise RENAME TO event_aggregations",
    ),
    "a trigger that never ends": (
        "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(1000); RETURN NEW; END $$;"
        " CREATE TRIGGER wait BEFORE INSERT ON analytics.event_aggregations"
        " FOR EACH ROW EXECUTE FUNCTION public.wait()",
        # And the waiting backend is terminated, as by an administrator.
        "DROP FUNCTION public.wait CASCADE",
    ),
    "a lead that nobody gives back": (
        "INSERT INTO analytics.leases (name, token, holder, expires_at)"
        " VALUES ('rollup', gen_random_uuid(), 'process 1 on a machine that is gone', now() + interval '1 hour')"
        " ON CONFLICT (name) DO UPDATE"
        " SET token = excluded.token, holder = excluded.holder, expires_at = excluded.expires_at",
        "UPDATE analytics.leases SET expires_at = now() WHERE name = 'rollup'",
    ),
}
"""Faults of the database: the statement that causes it, and the one that repairs it."""

END_SLEEPERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event = 'PgSleep'"
)


@asynccontextmanager
async def kept_from(cause: str, connection: asyncpg.Connection, database_url: str) -> AsyncIterator[None]:
    """While the block runs nothing can be rolled up."""
    if cause in LOCKS:
        other = await connections.connect(database_url, purpose="tests")
        try:
            async with other.transaction():
                await other.execute(LOCKS[cause])
                yield
        finally:
            await connections.close(other)
        return
    fault, mending = FAULTS[cause]
    await connection.execute(fault)
    yield
    if cause == "a trigger that never ends":
        # It holds a lock on the function to be repaired.
        await connection.execute("ALTER FUNCTION public.wait() RENAME TO waited")
        await connection.execute("CREATE OR REPLACE FUNCTION public.waited() RETURNS trigger LANGUAGE plpgsql AS"
                                 " $$ BEGIN RETURN NEW; END $$")  # fmt: skip
        await connection.fetch(END_SLEEPERS)
        return
    await connection.execute(mending)


def readiness(worker: RollupProcess) -> tuple[int, dict[str, object]]:
    status, body = request(f"http://127.0.0.1:{worker.port}/readyz", timeout=60)
    return status, json.loads(body)


def stalled(worker: RollupProcess) -> float:
    return worker.metrics()["ingest_rollup_stalled"]


@pytest.mark.parametrize("cause", some_of([*LOCKS, *FAULTS], 4))
async def test_whatever_stops_the_rollup_is_reported_everywhere(
    connection: asyncpg.Connection, database_url: str, tmp_path: Path, cause: str
):
    await partitions.ensure_ahead(connection, today=datetime.now(UTC).date(), days_ahead=1)
    worker = RollupProcess(tmp_path / "rollup", database_url, "--rollup-stalled-seconds", "1")
    with rolling_up(worker):
        await the_leader([worker])
        await insert_today(connection)
        await wait_rolled_up(connection, 60)
        assert (await asyncio.to_thread(readiness, worker))[0] == 200 and await asyncio.to_thread(
            stalled, worker
        ) == 0
        assert worker.stop() == 0
        await insert_today(connection)
        await connection.execute("SELECT public.process_pending_events()")
        async with kept_from(cause, connection, database_url):
            worker.start()
            await asyncio.to_thread(
                wait_until, lambda: worker.is_up() and stalled(worker) == 1, SECONDS, "the metric reports it"
            )
            status, body = await asyncio.to_thread(readiness, worker)
            assert status == 503, body
            assert re.match(WORDS, str(body["reason"])), body
            await asyncio.to_thread(
                wait_until, lambda: re.search(ERROR_LINE, worker.log_text()) is not None, 20, "the log reports it"
            )
        await asyncio.to_thread(
            wait_until, lambda: stalled(worker) == 0 and readiness(worker)[0] == 200, SECONDS, "it goes on"
        )
        assert GOES_ON in worker.log_text()
        await wait_rolled_up(connection, 60)
    assert await total(connection, "day") == await total(connection, "minute") == 20
    assert " 0 differences" in await asyncio.to_thread(verify, database_url)
