"""Leases: exclusive rights to do some work, each a row with the holder's token and an expiry time.

They replace session-level locks, which do not work behind a transaction pooler.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import asyncpg

from ingest.base.errors import IngestError, one_line
from ingest.postgres.connections import FAILURES, close
from ingest.postgres.queries import load_queries

logger = logging.getLogger(__name__)

_QUERIES: Final = load_queries("leases")


class LeaseLost(IngestError):
    """Another process holds the lease."""


class Lease:
    """One lease, ours as long as our `token` is in its row. Taking or renewing it makes it last another `seconds`."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.token = uuid.uuid4()
        self._seconds = seconds
        self._holder = f"process {os.getpid()} on {socket.gethostname()}"

    def __repr__(self) -> str:
        return f"Lease({self.name!r}, {self.token})"

    async def take(self, connection: asyncpg.Connection) -> bool:
        """Take it if it is free, ours or expired; returns whether it is ours now. Does not wait."""
        taken: bool = await connection.fetchval(
            _QUERIES["take"], self.name, self.token, self._holder, timedelta(seconds=self._seconds)
        )
        return taken

    async def renew(self, connection: asyncpg.Connection) -> bool:
        """Extend it; returns False if another process has it."""
        ours = await connection.fetchval(_QUERIES["renew"], self.name, self.token, timedelta(seconds=self._seconds))
        return ours is not None

    async def hold(self, connection: asyncpg.Connection) -> None:
        """Keep others from taking it until the transaction ends. Raises LeaseLost if another process has it."""
        if not await connection.fetchval(_QUERIES["hold"], self.name, self.token):
            raise LeaseLost(f"the lease {self.name} is held by {await holder(connection, self.name) or 'nobody'}")

    async def release(self, connection: asyncpg.Connection) -> None:
        """Release it, if it is ours. Repeatable."""
        await connection.execute(_QUERIES["release"], self.name, self.token)

    @asynccontextmanager
    async def kept(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> AsyncIterator[asyncio.Event]:
        """Renew it as long as the block runs, on separate connections. The event is set if another process takes it.

        If the database does not answer, renewing is retried: the lease is ours until another process takes it, even
        if it has expired.
        """
        lost = asyncio.Event()
        keeping = asyncio.ensure_future(self._keep(connect, lost))
        try:
            yield lost
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self, connect: Callable[[], Awaitable[asyncpg.Connection]], lost: asyncio.Event) -> None:
        connection: asyncpg.Connection | None = None
        try:
            while not lost.is_set():
                await asyncio.sleep(self._seconds / 5)
                try:
                    connection = connection or await connect()
                    if not await self.renew(connection):
                        lost.set()
                except Exception as error:
                    known = isinstance(error, (IngestError, *FAILURES))
                    words = one_line(error)
                    logger.log(logging.DEBUG if known else logging.ERROR, "the lease %s: %s", self.name, words)
                    if connection is not None:
                        connection.terminate()
                        connection = None
        finally:
            if connection is not None:
                await close(connection)


async def holder(connection: asyncpg.Connection, name: str) -> str | None:
    """A description of the lease's latest holder, for messages; None if it was never taken."""
    found: str | None = await connection.fetchval(_QUERIES["holder"], name)
    return found
