"""Connections that requests share, and their end."""

from __future__ import annotations

import asyncio

import pytest

from ingest.pool import Pool, Unavailable


async def test_what_is_lent_is_taken_back_while_it_closes(database_url: str):
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
