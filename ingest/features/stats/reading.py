"""The transactions that statistics are read in: read-only, limited in time, and on a few separate connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg
import orjson

from ingest.api.transactions import LOCK_SECONDS
from ingest.features.stats.query import Query, Refused
from ingest.features.stats.times import Part
from ingest.postgres.pool import Pool, TooSlow
from ingest.postgres.queries import load_queries

MAX_STORED_ROWS: Final = 25_000
"""Buckets read for one answer: their sketches take up to some 200 MB."""
SORT_BYTES: Final = 16 * 1024 * 1024
"""What a sort or a hash of a query may take, if the server's work_mem is less: with its default, 4 MB, the sessions
of a long range are sorted on disk."""
QUERIES: Final = load_queries("stats_buckets") | load_queries("stats_kpis") | load_queries("stats_events")


class Freshness(NamedTuple):
    """as_of: buckets have everything that was stored before.  minutes_from: minutes are kept from then on.
    events_from: so are events."""

    now: datetime
    as_of: datetime
    minutes_from: datetime
    events_from: datetime


class StatsTransactions:
    """Begins read-only transactions."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def read_only(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a transaction with a single snapshot of the database. Raises Unavailable and Refused."""
        seconds = self._pool.timeout_seconds
        try:
            async with (
                self._pool.lent() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                await connection.execute(
                    QUERIES["limits"],
                    str(round(seconds * 1000)),
                    str(round(min(LOCK_SECONDS, seconds) * 1000)),
                    SORT_BYTES,
                )
                yield connection
        except TooSlow:
            message = (
                f"this took longer than {seconds:g} seconds; ask for less time, a larger granularity, or one event"
            )
            raise Refused("too_slow", message, 422) from None


async def freshness(connection: asyncpg.Connection) -> Freshness:
    return Freshness(*await connection.fetchrow(QUERIES["freshness"]))


async def stale(connection: asyncpg.Connection) -> set[tuple[str, datetime]]:
    return {tuple(row) for row in await connection.fetch(QUERIES["stale"])}


def columns(parts: Sequence[Part]) -> tuple[list[str], list[datetime], list[datetime]]:
    """Parts as the first three arguments of the queries of buckets."""
    return [part.granularity for part in parts], [part.start for part in parts], [part.end for part in parts]


# From events.


def picked(query: Query, start: datetime, end: datetime) -> tuple[object, ...]:
    """The first seven arguments of the queries of events. Raises Refused if only buckets could answer."""
    if query.asks_others:
        message = (
            "other is what aggregates had no room for, but this is answered from events: ask for whole hours of UTC,"
            " with at most one filter, without bots"
        )
        raise Refused("bad_parameter", message)
    values = {dimension: value for dimension, value in query.filters.items() if value is not None}
    absent = [dimension for dimension, value in query.filters.items() if value is None]
    return start, end, query.types, query.event, query.bots, orjson.dumps(values).decode(), absent
