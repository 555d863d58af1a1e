"""Where statistics are read: read-only transactions of a bounded time, in a few connections of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from ingest.api.transactions import LOCK_SECONDS
from ingest.features.stats.query import MAX_VALUE_CHARACTERS, Query, Refused, Value
from ingest.features.stats.times import Part
from ingest.postgres.connections import load_queries
from ingest.postgres.pool import Pool, TooSlow

MAX_STORED_ROWS: Final = 25_000
"""Buckets read for one answer: their sketches are some 200 MB at the most."""
QUERIES: Final = load_queries("stats")


class Moment(NamedTuple):
    """When is it: `as_of` is when everything stored before was in the buckets."""

    now: datetime
    as_of: datetime
    minutes_from: datetime


class Reader:
    """Read-only transactions for statistics."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a transaction that sees one state of the database. Raises Unavailable and Refused."""
        seconds = self._pool.timeout_seconds
        try:
            async with (
                self._pool.lent() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                await connection.execute(
                    "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)",
                    str(round(seconds * 1000)),
                    str(round(min(LOCK_SECONDS, seconds) * 1000)),
                )
                yield connection
        except TooSlow:
            message = (
                f"this took longer than {seconds:g} seconds; ask for less time, a larger granularity, or one event"
            )
            raise Refused("too_slow", message, 422) from None


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


_BOTS: Final = {
    "exclude": "AND device_type IS DISTINCT FROM 'bot'",
    "only": "AND device_type = 'bot'",
    "include": "",
}


def filtered(name: str, query: Query, taken: int, value: str = "") -> str:
    """A query for events with a condition a filter, whose `filter_values` are the arguments after the first `taken`.
    Raises Refused if events cannot tell."""
    if query.asks_others:
        message = (
            "other is what aggregates had no room for, and this is answered from events: ask for whole hours of UTC,"
            " with one filter at most, without bots"
        )
        raise Refused("bad_parameter", message)
    conditions = [_BOTS[query.bots]]
    place = taken
    for dimension, wanted in query.filters.items():
        if wanted is None:
            conditions.append(f"AND {value_of(dimension)} IS NULL")
        else:
            place += 1
            conditions.append(f"AND {value_of(dimension)} = ${place}")
    return QUERIES[name].replace("{filters}", " ".join(conditions)).replace("{value}", value)


def filter_values(query: Query) -> list[Value]:
    """The arguments that `filtered` speaks of."""
    return [wanted for wanted in query.filters.values() if wanted is not None]


def picked(query: Query, start: datetime, end: datetime) -> tuple[object, ...]:
    """The first four arguments of the queries for events."""
    return start, end, query.types, query.event
