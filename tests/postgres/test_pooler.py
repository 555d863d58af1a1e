"""Behind a transaction pooler: everything works, nothing is left in sessions, and no caller gets another's role."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from ingest.api.access import Caller
from ingest.api.transactions import Transactions
from ingest.postgres import connections
from ingest.postgres.pool import Pool
from ingest.postgres.statements import batches
from ingest.store import partitions
from tests.support.collector import Start
from tests.support.events import batch
from tests.support.faults import StubbornClient
from tests.support.pooler import Pooler, needs_pooler
from tests.support.rollup_process import RollupProcess, rolling_up, total, verify, wait_rolled_up
from tests.support.service import Service, running

pytestmark = [
    needs_pooler,
    pytest.mark.direct(reason="poolers of its own"),
]


@pytest.fixture(
    params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["no reset", "server_reset_query_always"]
)
def pooler(request: pytest.FixtureRequest, direct_url: str, new_folder) -> Iterator[Pooler]:
    """With and without DISCARD ALL after each transaction: state that must not be left must not be needed either."""
    folder = new_folder()
    folder.chmod(0o755)
    made = Pooler(direct_url, folder / "pooler", reset_always=request.param)
    try:
        yield made.start()
    finally:
        made.kill()


LEFT = """
SELECT (SELECT count(*) FROM pg_prepared_statements) AS statements,
    (SELECT count(*) FROM pg_cursors WHERE name <> '') AS cursors,
    (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory') AS locks,
    current_setting('role') AS role, current_setting('app.session_id', true) AS session,
    current_setting('statement_timeout') AS timeout, current_setting('jit') AS jit
"""


async def test_two_callers_never_get_each_others_role_or_settings(pooler: Pooler, direct_url: str):
    """Ten thousand alternating requests over more connections than the pooler has for them."""
    pool = Pool(pooler.url_of(direct_url), "tests", 8, 20)
    transactions = Transactions(pool, 100, False)
    callers = [("anon", "first"), ("authenticated", "second"), ("service_role", "third")]
    seen: set[tuple[str, str]] = set()

    async def ask(number: int) -> None:
        for turn in range(number, 10_000, 8):
            role, session = callers[turn % len(callers)]
            async with transactions.on_behalf(
                Caller(role, frozenset()), "", "", {"session_id": session}
            ) as connection:
                row = await connection.fetchrow(
                    "SELECT current_user::text, current_setting('app.session_id'), $1::text", session
                )
                assert tuple(row) == (role, session, session)
                seen.add((role, session))

    try:
        await asyncio.gather(*[ask(number) for number in range(8)])
        async with pool.lent() as connection, connection.transaction():
            left = await connection.fetchrow(LEFT)
        assert (left["statements"], left["cursors"], left["locks"], left["role"]) == (0, 0, 0, "none")
        assert left["session"] in (None, "") and left["timeout"] == "0"
    finally:
        await pool.close()
    assert seen == set(callers)


async def test_reading_in_batches_does_not_collide_with_other_sessions(pooler: Pooler, direct_url: str):
    opened = [await connections.connect(pooler.url_of(direct_url), purpose="tests") for _ in range(9)]

    async def read(connection: asyncpg.Connection) -> None:
        for _ in range(20):
            async with connection.transaction():
                rows = [
                    row["n"]
                    async for some in batches(connection, "SELECT generate_series(1, $1::int) AS n", 25, size=7)
                    for row in some
                ]
            assert rows == list(range(1, 26))
            assert await connection.fetchval("SELECT $1::analytics.event_type::text", "system") == "system"

    try:
        await asyncio.gather(*map(read, opened))
    finally:
        for one in opened:
            await connections.close(one)


async def test_events_are_stored_and_rolled_up_once_while_pooler_and_connections_are_killed(
    pooler: Pooler, direct_url: str, connection: asyncpg.Connection, tmp_path: Path
):
    """Two collectors, two rollup workers, three server connections for all."""
    await partitions.ensure_ahead(connection, today=datetime.now(UTC).date(), days_ahead=1)
    url = pooler.url_of(direct_url)
    first, second = (RollupProcess(tmp_path / f"rollup-{number}", url) for number in range(2))
    flags = ("--workers", "2", "--database-wait-seconds", "60")
    with running(Service(tmp_path / "data", url, *flags)) as service, rolling_up(first), rolling_up(second):
        client = StubbornClient(service.url)
        client.start()
        await asyncio.sleep(2)
        for number in range(4):
            if number % 2:
                await asyncio.to_thread(pooler.kill)
                await asyncio.to_thread(pooler.start)
            else:
                await connection.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            await asyncio.sleep(1)
        # The leader dies too.
        (first if first.leads else second).kill()
        await asyncio.to_thread(client.finish)
        await asyncio.to_thread(service.wait_stored, 60)
        await wait_rolled_up(connection, 60)
    events = await connection.fetchval("SELECT count(*) FROM analytics.events")
    assert events == len(client.acknowledged) > 0
    assert await total(connection, "day") == await total(connection, "minute") == events
    assert " 0 differences" in await asyncio.to_thread(verify, direct_url)
    assert "the database is behind a pooler" in first.all_logs() + second.all_logs()


BEGUN = """
SELECT pid, application_name FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'ingest writer%' AND wait_event_type = 'Lock'
"""


@pytest.mark.parametrize("by", ["pooler", "server"])
async def test_an_abandoned_flush_is_ended_and_no_other_session(
    pooler: Pooler, direct_url: str, connection: asyncpg.Connection, start: Start, by: str
):
    """A flush that hangs in the server still holds the journal's row after we have disconnected. The writer ends it,
    but no flush of other writers, whatever pid the pooler reports for our connection."""
    url = pooler.url_of(direct_url) if by == "pooler" else direct_url
    client = await start(database_url=url, statement_timeout_seconds=1)
    bystanders = [await connections.connect(direct_url, purpose="writer") for _ in range(3)]
    try:
        for one in bystanders:
            await one.execute("BEGIN; SELECT 1")
        async with connection.transaction():
            await connection.execute("LOCK TABLE analytics.events IN ACCESS EXCLUSIVE MODE")
            assert (await client.post(batch(5))).status == 200
            hanging: set[int] = set()
            async with asyncio.timeout(60):
                # The first is abandoned, ended, and followed by another, which then holds the journal's row.
                while len(hanging) < 3:
                    # Outside the transaction, within which pg_stat_activity would not change.
                    hanging |= {row["pid"] for row in await client.fetch_now(BEGUN)}
                    await asyncio.sleep(0.02)
        assert len(await client.events()) == 5
        for one in bystanders:
            assert await one.fetchval("SELECT 1") == 1
            assert one.is_in_transaction()
    finally:
        for one in bystanders:
            await one.execute("ROLLBACK")
            await connections.close(one)
    # Between transactions the application_name is the common one, so that nothing is left in the pooler's sessions.
    assert not await connection.fetch("SELECT FROM pg_stat_activity WHERE application_name ~ 'ingest writer .'")
