"""An INSERT for each event, as many would write it: those of a body in one transaction, answered after its COMMIT."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bench.rivals.endpoint import Store, Unavailable, application, pool
from bench.rivals.payload import Row
from bench.rivals.table import INSERT_ONE, UNAVAILABLE


@asynccontextmanager
async def storing() -> AsyncIterator[Store]:
    async with pool() as connections:

        async def store(rows: Sequence[Row]) -> None:
            try:
                async with connections.acquire() as connection:
                    if len(rows) == 1:
                        await connection.execute(INSERT_ONE, *rows[0])
                        return
                    async with connection.transaction():
                        for row in rows:
                            await connection.execute(INSERT_ONE, *row)
            except UNAVAILABLE as error:
                raise Unavailable from error

        yield store


app = application(storing)
