"""Events are answered when Redis has them in its stream; `redis_worker.py` stores them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import redis.asyncio as redis

from bench.rivals.endpoint import Store, Unavailable, application
from bench.rivals.payload import Row
from bench.rivals.stream import STREAM, entry_of, redis_url

CONNECTIONS: Final = 32
"""To Redis, of each process. A request waits for one."""


@asynccontextmanager
async def storing() -> AsyncIterator[Store]:
    connections = redis.BlockingConnectionPool.from_url(redis_url(), max_connections=CONNECTIONS, timeout=None)
    async with redis.Redis(connection_pool=connections) as server:

        async def store(rows: Sequence[Row]) -> None:
            try:
                await server.xadd(STREAM, entry_of(rows))
            # Also when its memory is full.
            except redis.RedisError as error:
                raise Unavailable from error

        yield store
    await connections.aclose()


app = application(storing)
