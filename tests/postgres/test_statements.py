"""Transactions that begin with settings, in one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from ingest.postgres import connections
from ingest.postgres.pool import Pool

NAME = "SELECT set_config('app.session_id', 'mine', true)"
OWN = "SELECT current_setting('app.session_id', true)"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """With a single connection, so that whatever is left in it is found; and with a table."""
    opened = await connections.connect(database_url, purpose="tests")
    await opened.execute("CREATE TABLE public.things (number int)")
    await connections.close(opened)
    lending = Pool(database_url, "tests", 1, 10)
    yield lending
    await lending.close()


async def kept(pool: Pool) -> tuple[list[int], str]:
    """The rows, and the setting, as the next who is lent the connection finds them."""
    async with pool.lent() as connection:
        assert not connection.is_in_transaction()
        rows = await connection.fetch("SELECT number FROM public.things ORDER BY number")
        return [row["number"] for row in rows], await connection.fetchval(OWN) or ""


async def insert(pool: Pool, number: int, error: BaseException | None = None, settings: str = NAME) -> None:
    async with pool.lent() as connection, connection.begun_with(settings):
        assert await connection.fetchval(OWN) == "mine"
        await connection.execute("INSERT INTO public.things VALUES ($1)", number)
        if error is not None:
            raise error


async def test_settings_end_with_the_transaction(pool: Pool):
    await insert(pool, 1)
    assert await kept(pool) == ([1], "")


@pytest.mark.parametrize("error", [ValueError("ours"), asyncio.CancelledError()], ids=repr)
async def test_an_error_in_the_block_undoes_it(pool: Pool, error: BaseException):
    with pytest.raises(type(error)):
        await insert(pool, 1, error)
    await insert(pool, 2)
    assert await kept(pool) == ([2], "")


async def test_a_setting_that_the_server_refuses_leaves_no_transaction(pool: Pool):
    with pytest.raises(asyncpg.PostgresError):
        await insert(pool, 1, settings=f"{NAME}; SELECT set_config('role', 'nobody of this name', true)")
    assert await kept(pool) == ([], "")


async def test_cancelled_while_the_server_works(pool: Pool):
    working = asyncio.create_task(insert(pool, 1, settings=f"{NAME}; SELECT pg_sleep(60)"))
    await asyncio.sleep(0.2)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert await kept(pool) == ([], "")
