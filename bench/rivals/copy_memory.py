"""Events are answered when they are in memory, and stored by one COPY every second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from bench.rivals.endpoint import Store, Unavailable, application, pool
from bench.rivals.payload import Row
from bench.rivals.table import UNAVAILABLE, copy

PERIOD_SECONDS: Final = 1.0
MOST_ROWS: Final = 100_000
"""In the memory of each process; with more, the answer is 503."""


class Buffer:
    """What was acknowledged and is not stored yet."""

    def __init__(self, connections: asyncpg.Pool) -> None:
        self._connections = connections
        self._rows: list[Row] = []
        # Those that are being copied.
        self._leaving = 0

    async def store(self, rows: Sequence[Row]) -> None:
        if len(self._rows) + self._leaving > MOST_ROWS:
            raise Unavailable
        self._rows += rows

    async def flush(self) -> None:
        """Store what is there. Raises what asyncpg raises, and keeps the rows then."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        self._leaving = len(rows)
        try:
            async with self._connections.acquire() as connection:
                await copy(connection, rows)
        except BaseException:
            self._rows = rows + self._rows
            raise
        finally:
            self._leaving = 0

    async def flush_every_second(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                await self.flush()
            except UNAVAILABLE:
                continue


@asynccontextmanager
async def storing() -> AsyncIterator[Store]:
    async with pool() as connections:
        buffer = Buffer(connections)
        task = asyncio.create_task(buffer.flush_every_second())
        yield buffer.store
        # A COPY that is cut keeps its rows.
        task.cancel()
        await asyncio.wait([task])
        await buffer.flush()


app = application(storing)
