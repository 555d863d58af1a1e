"""Stores the events of the Redis stream: COPY, and after its COMMIT they leave the stream.

Killed in between it stores them again when it is back, where the table's key passes over them.
`python -m bench.rivals.redis_worker`, with DATABASE_URL and REDIS_URL.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
import redis.asyncio as redis
import uvloop

from bench.rivals.endpoint import database_url
from bench.rivals.stream import GROUP, STREAM, redis_url, rows_of_entry
from bench.rivals.table import UNAVAILABLE, copy

CONSUMER: Final = "worker"
MOST_ENTRIES: Final = 500
BLOCK_MS: Final = 1000
AGAIN_SECONDS: Final = 0.2
"""After Postgres or Redis was gone."""
_Entries = list[tuple[bytes, dict[bytes, bytes]]]


async def _read(server: redis.Redis, after: str) -> _Entries:
    """The next entries: new ones (`>`), or those that a worker before this one had read (`0`)."""
    found: Any = await server.xreadgroup(GROUP, CONSUMER, {STREAM: after}, count=MOST_ENTRIES, block=BLOCK_MS)
    # A list of pairs or a mapping, by the protocol's version.
    streams = list(found.values()) if isinstance(found, dict) else [entries for _, entries in found or []]
    entries: _Entries = streams[0] if streams else []
    return entries[0] if entries and isinstance(entries[0], list) else entries


async def _store(connection: asyncpg.Connection, server: redis.Redis, entries: _Entries) -> None:
    await copy(connection, [row for _, entry in entries for row in rows_of_entry(entry)])
    async with server.pipeline(transaction=True) as pipeline:
        ids = [name for name, _ in entries]
        pipeline.xack(STREAM, GROUP, *ids)
        pipeline.xdel(STREAM, *ids)
        await pipeline.execute()


async def _drain(server: redis.Redis) -> None:
    """Store entries until one of the servers is gone."""
    try:
        await server.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
    connection = await asyncpg.connect(database_url())
    try:
        while entries := await _read(server, "0"):
            await _store(connection, server, entries)
        while True:
            if entries := await _read(server, ">"):
                await _store(connection, server, entries)
    finally:
        connection.terminate()


async def run() -> None:
    while True:
        server = redis.Redis.from_url(redis_url())
        try:
            await _drain(server)
        except (*UNAVAILABLE, redis.RedisError):
            await asyncio.sleep(AGAIN_SECONDS)
        finally:
            await server.aclose()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
