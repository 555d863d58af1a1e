"""A small pool of connections that requests share, opened on first use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from ingest.base.errors import one_line
from ingest.postgres.connections import FAILURES, close, is_direct
from ingest.postgres.shares import Shares
from ingest.postgres.statements import Connection

logger = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 5.0
"""How long to wait for the server to report a statement's timeout before giving up on the connection."""
_ABSENT: Final = (
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InternalClientError,
)
"""Errors of a database that is gone or going, as opposed to errors of a statement."""
_KEPT_STATEMENTS: Final = 100


class Unavailable(Exception):
    """The database does not answer, or every connection is busy."""


class TooSlow(Exception):
    """A statement was cancelled because it took longer than the limit."""


class Pool:
    """Connections for one purpose; the server limits each statement to `timeout_seconds`.

    `features` names those who share them: none of these can take all connections.
    """

    def __init__(
        self, dsn: str, purpose: str, connections: int, timeout_seconds: float, features: Sequence[str] = ("any",)
    ) -> None:
        self.shares = Shares(connections, features)
        self._dsn = dsn
        self._purpose = purpose
        self._connections = connections
        self.timeout_seconds = timeout_seconds
        # Created on first use, ended by `close`, after which none is created.
        self._pool: asyncpg.Pool | None = None
        self._closed = False
        # Whether the connection is direct, so that prepared statements can be kept; None until the first one is open.
        self._direct: bool | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def lent(self, feature: str = "any") -> AsyncIterator[asyncpg.Connection]:
        """A connection for the duration of the block. Raises Unavailable and TooSlow."""
        await self._take_share(feature)
        try:
            async with self._lent() as connection:
                yield connection
        finally:
            self.shares.give_back(feature)

    async def _take_share(self, feature: str) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self.shares.take(feature)
        except TimeoutError:
            raise Unavailable(f"all connections available to {feature} are busy") from None

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[asyncpg.Connection]:
        pool, connection = await self._lend()
        try:
            yield connection
        except asyncpg.QueryCanceledError:
            raise TooSlow from None
        except ValueError:
            # An argument that does not fit its parameter is an InterfaceError, too, but it is a bug of ours.
            raise
        except (*_ABSENT, OSError, TimeoutError) as error:
            raise Unavailable(one_line(error)) from None
        finally:
            await self._take_back(pool, connection)

    async def _lend(self) -> tuple[asyncpg.Pool, asyncpg.Connection]:
        pool = await self._opened()
        try:
            return pool, await pool.acquire(timeout=_CONNECT_SECONDS)
        except FAILURES as error:
            raise Unavailable(one_line(error)) from None

    async def _take_back(self, pool: asyncpg.Pool, connection: asyncpg.Connection) -> None:
        # Also while the pool is closing, which waits for this.
        try:
            await pool.release(connection, timeout=_GRACE_SECONDS)
        except FAILURES as error:
            # The pool has closed it, and opens another when one is needed.
            logger.debug("a connection for %s ended: %s", self._purpose, one_line(error))

    async def _opened(self) -> asyncpg.Pool:
        async with self._opening:
            if self._closed:
                raise Unavailable("the service is stopping")
            if self._pool is None:
                # Opens no connection yet, because min_size is 0.
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=0,
                    max_size=self._connections,
                    connection_class=Connection,
                    connect=self._connect,
                    # Nothing to reset: all our settings end with their transaction.
                    reset=_nothing,
                    timeout=_CONNECT_SECONDS,
                    command_timeout=self.timeout_seconds + _GRACE_SECONDS,
                    server_settings={"application_name": f"ingest {self._purpose}"},
                )
        return self._pool

    async def _connect(self, *args: Any, **given: Any) -> asyncpg.Connection:
        """A connection that keeps prepared statements, saving a round trip each, unless a pooler is in between."""
        if not self._direct:
            connection = await asyncpg.connect(*args, **given, statement_cache_size=0)
            if self._direct is None:
                self._direct = await _is_direct(connection)
            if not self._direct:
                return connection
            await close(connection)
        # This keeps parsing and rewriting; a generic plan would be a bad one for filters that are left out.
        given["server_settings"] = {**given["server_settings"], "plan_cache_mode": "force_custom_plan"}
        return await asyncpg.connect(*args, **given, statement_cache_size=_KEPT_STATEMENTS)

    async def close(self) -> None:
        """Close the connections for good. Repeatable."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(2):
                await pool.close()
        except FAILURES:
            pool.terminate()


async def _is_direct(connection: asyncpg.Connection) -> bool:
    """Whether it is direct. Closes it if that fails, as the pool does not have it yet."""
    try:
        return await is_direct(connection)
    except BaseException:
        connection.terminate()
        raise


async def _nothing(connection: asyncpg.Connection) -> None:
    """Replaces asyncpg's RESET ALL etc., which takes a round trip per request."""
