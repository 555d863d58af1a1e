"""One INSERT for the events of many requests, each answered after the COMMIT that stores its own.

While one statement runs, the next requests gather: so batches grow with the load, and nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from bench.rivals.endpoint import Store, Unavailable, application, pool
from bench.rivals.payload import Row
from bench.rivals.table import UNAVAILABLE, insert_many

WRITERS: Final = 2
"""In each process: one sends its statement while the other's is committed."""
MOST_ROWS: Final = 2000
"""A batch is full when it has so many; a body is not divided."""

_Waiting = tuple[Sequence[Row], asyncio.Future[None]]


@asynccontextmanager
async def storing() -> AsyncIterator[Store]:
    async with pool() as connections, asyncio.TaskGroup() as tasks:
        queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        writers = [tasks.create_task(_write(queue, connections)) for _ in range(WRITERS)]

        async def store(rows: Sequence[Row]) -> None:
            stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue.put_nowait((rows, stored))
            await stored

        yield store
        for writer in writers:
            writer.cancel()


async def _write(queue: asyncio.Queue[_Waiting], connections: asyncpg.Pool) -> None:
    while True:
        batch = [await queue.get()]
        rows = list(batch[0][0])
        while len(rows) < MOST_ROWS and not queue.empty():
            batch.append(queue.get_nowait())
            rows += batch[-1][0]
        error: Exception | None = None
        try:
            async with connections.acquire() as connection:
                await insert_many(connection, rows)
        except UNAVAILABLE as cause:
            error = Unavailable()
            error.__cause__ = cause
        for _, stored in batch:
            # The client of a cancelled one is gone.
            if not stored.done():
                stored.set_exception(error) if error else stored.set_result(None)


app = application(storing)
