"""The pool of connections that requests share: prepared statements, and closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from ingest.postgres import connections
from ingest.postgres.pool import Pool, Unavailable

KEPT = "SELECT count(*) FROM pg_prepared_statements"


async def test_closing_waits_for_lent_connections(database_url: str):
    pool = Pool(database_url, "tests", 1, 10)
    async with pool.lent() as connection:
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        assert await connection.fetchval("SELECT 1") == 1
        assert not closing.done()
    await closing
    with pytest.raises(Unavailable):
        async with pool.lent():
            pass
    await pool.close()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Pool]:
    lending = Pool(url, "tests", 1, 10)
    try:
        yield lending
    finally:
        await lending.close()


async def test_statements_stay_prepared_on_a_direct_connection(direct_url: str):
    async with opened(direct_url) as lending:
        for _ in range(2):
            async with lending.lent() as connection:
                assert await connection.fetchval(KEPT) == 1
        async with lending.lent() as connection:
            assert await connection.fetchval("SHOW plan_cache_mode") == "force_custom_plan"


async def test_no_statement_stays_prepared_behind_a_pooler(database_url: str, monkeypatch):
    # A pooler's number for a cancel request is not that of a server's process.
    monkeypatch.setattr(asyncpg.Connection, "get_server_pid", lambda self: 7)
    async with opened(database_url) as lending:
        for _ in range(2):
            async with lending.lent() as connection:
                assert await connection.fetchval(KEPT) == 0


async def test_a_statement_from_before_a_migration_is_prepared_again(direct_url: str):
    # Directly, as no statement is kept behind a pooler.
    other = await connections.connect(direct_url, purpose="tests")
    await other.execute("CREATE TABLE changing (a int)")
    async with opened(direct_url) as lending, lending.lent() as connection:
        await connection.fetch("SELECT * FROM changing")
        await other.execute("ALTER TABLE changing ADD COLUMN b int")
        with pytest.raises(asyncpg.InvalidCachedStatementError):
            async with connection.transaction():
                await connection.fetch("SELECT * FROM changing")
        assert await connection.fetch("SELECT * FROM changing") == []
    await other.close()


async def test_a_query_after_the_servers_last_message_finds_it_unavailable(database_url: str):
    last_word = b"SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
    async with opened(database_url) as lending:
        with pytest.raises(Unavailable):
            async with lending.lent() as connection:
                # The message has been read, the end of the connection not yet.
                connection._protocol.data_received(b"E" + (len(last_word) + 4).to_bytes(4, "big") + last_word)
                await connection.fetchval("SELECT 1")
        async with lending.lent() as connection:
            assert await connection.fetchval("SELECT 1") == 1


async def test_a_connection_abandoned_during_its_check_is_closed(database_url: str, monkeypatch):
    async def never(connection: asyncpg.Connection) -> bool:
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr("ingest.postgres.pool.is_direct", never)
    monkeypatch.setattr("ingest.postgres.pool._CONNECT_SECONDS", 0.5)
    async with opened(database_url) as lending:
        with pytest.raises(Unavailable):
            async with lending.lent():
                pass
    other = await connections.connect(database_url, purpose="other")
    left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ingest tests'"
    async with asyncio.timeout(60):
        while await other.fetchval(left):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await other.close()
