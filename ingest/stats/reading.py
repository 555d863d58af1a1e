"""Where statistics are read: read-only transactions of a bounded time, in a few connections of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from ingest.database import load_queries
from ingest.stats.query import MAX_VALUE_CHARACTERS, Query, Refused
from ingest.stats.times import Part

logger = logging.getLogger(__name__)

MAX_STORED_ROWS: Final = 25_000
"""Buckets read for one answer: their sketches are some 200 MB at the most."""
_CONNECTIONS: Final = 4
_CONNECT_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 5.0
"""Time for the server to tell that a statement took too long, before its connection is given up."""
_ABSENT: Final = (
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)
"""What a database says that goes away, rather than one that does not like what we ask."""
QUERIES: Final = load_queries("stats")


class Unavailable(Exception):
    """The database does not answer, or every connection is busy."""


class Moment(NamedTuple):
    """When is it: `as_of` is when everything stored before was in the buckets."""

    now: datetime
    as_of: datetime
    minutes_from: datetime


class Reader:
    """Connections for statistics, made when they are first needed."""

    def __init__(self, dsn: str, timeout_seconds: float) -> None:
        self._dsn = dsn
        self._timeout_seconds = timeout_seconds
        # Made by the first question, ended by `close`.
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a transaction that sees one state of the database. Raises Unavailable and Refused."""
        connection = await self._lend()
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                milliseconds = str(round(self._timeout_seconds * 1000))
                await connection.execute("SELECT set_config('statement_timeout', $1, true)", milliseconds)
                yield connection
        except asyncpg.QueryCanceledError:
            message = (
                f"this took longer than {self._timeout_seconds:g} seconds; ask for less time, a larger granularity,"
                " or one event"
            )
            raise Refused("too_slow", message, 422) from None
        except (*_ABSENT, OSError, TimeoutError) as error:
            raise Unavailable(_told(error)) from None
        finally:
            await self._take_back(connection)

    async def _lend(self) -> asyncpg.Connection:
        pool = await self._opened()
        try:
            return await pool.acquire(timeout=_CONNECT_SECONDS)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise Unavailable(_told(error)) from None

    async def _take_back(self, connection: asyncpg.Connection) -> None:
        if self._pool is None:
            return
        try:
            await self._pool.release(connection, timeout=_GRACE_SECONDS)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            # The pool has ended it, and makes another for the next question.
            logger.debug("a connection for statistics ended: %s", _told(error))

    async def _opened(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                # Makes no connection yet, as the least is none. No statement is kept, for transaction poolers.
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=0,
                    max_size=_CONNECTIONS,
                    statement_cache_size=0,
                    timeout=_CONNECT_SECONDS,
                    command_timeout=self._timeout_seconds + _GRACE_SECONDS,
                    server_settings={"application_name": "ingest statistics"},
                )
        return self._pool

    async def close(self) -> None:
        """Close the connections; repeatable."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(2):
                await pool.close()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            pool.terminate()


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


async def moment(connection: asyncpg.Connection) -> Moment:
    return Moment(*await connection.fetchrow(QUERIES["moment"]))


async def stale(connection: asyncpg.Connection) -> set[tuple[str, datetime]]:
    return {tuple(row) for row in await connection.fetch(QUERIES["stale"])}


def columns(parts: Sequence[Part]) -> tuple[list[str], list[datetime], list[datetime]]:
    """Parts as the first three arguments of the queries for buckets."""
    return [part.granularity for part in parts], [part.start for part in parts], [part.end for part in parts]


# From events.


def value_of(dimension: str) -> str:
    """The expression for what buckets call the value of a dimension, or the name.

    This becomes part of a query: `dimension` is one of our own words, never a request's.
    """
    if dimension == "event":
        return "name"
    assert dimension.isidentifier()
    return f"left({dimension}::text, {MAX_VALUE_CHARACTERS})"


def filtered(name: str, filters: Mapping[str, str], taken: int, value: str = "") -> str:
    """A query for events with a condition a filter, whose values are the arguments after the first `taken`."""
    conditions = [f"AND {value_of(one)} = ${place}" for place, one in enumerate(filters, taken + 1)]
    return QUERIES[name].replace("{filters}", " ".join(conditions)).replace("{value}", value)


def picked(query: Query, start: datetime, end: datetime) -> tuple[object, ...]:
    """The first four arguments of the queries for events."""
    return start, end, query.types, query.event
