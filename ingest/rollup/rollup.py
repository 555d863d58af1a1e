"""From the ledger to the aggregates.

Flushes that are not rolled up are claimed, exactly their events counted and added to the buckets, and the flushes
marked, in one transaction. Late events, several collectors and crashes are no special case.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple

import asyncpg

from ingest.events.limits import MAX_VALUE_CHARACTERS
from ingest.journal.batch_ids import batch_id
from ingest.postgres.leases import Lease
from ingest.postgres.queries import fill, load_queries
from ingest.rollup import buckets, identities, stale_metrics, tallies
from ingest.rollup.buckets import Room
from ingest.rollup.identities import MOST_LINKS
from ingest.rollup.tallies import BEGINNINGS, Tallies
from ingest.rollup.who import Row

_TURN_PAUSE_SECONDS: Final = 0.2
MAX_EVENTS: Final = 40_000
"""Of one transaction, unless a single flush has more: some 60 MB of rows."""
_EARLIER_PAGES: Final = 512
"""A flush may fill pages that stood half-empty, or were made ahead, when it began: so many are read for nothing."""
_ADOPTED_SECONDS: Final = 60
"""Rows that plain SQL inserted are given their batch before their flush is written down: at most so long before."""
_SAMPLES: Final = 600
_QUERIES: Final = load_queries("rollup")


class Cycle(NamedTuple):
    """What one transaction rolled up. `lags`: seconds from storage to rollup, one a flush; `more`: others wait."""

    flushes: int
    events: int
    buckets: int
    lags: list[float]
    seconds: float
    more: bool


class Rollup:
    """Adds to the buckets what is new. `run_once` waits for its turn: one at a time works."""

    def __init__(self, dimensions: Sequence[str], room: Room, most_links: int = MOST_LINKS) -> None:
        self.dimensions = tuple(dimensions)
        self.room = room
        self._most_links = most_links
        # (when, {day: pages of its partition}), oldest first: where the rows of a flush can begin.
        self._samples: deque[tuple[datetime, dict[date, int]]] = deque(maxlen=_SAMPLES)

    async def run_once(self, connection: asyncpg.Connection, lease: Lease | None = None) -> Cycle | None:
        """Roll up the oldest flushes that wait, and note their weeks and months; None when no flush waits.

        `lease` is held meanwhile. Raises LeaseLost if it is another's; then nothing was done.
        """
        started = time.perf_counter()
        async with turn(connection):
            if lease is not None:
                await lease.hold(connection)
            now, minutes_from = await connection.fetchrow(_QUERIES["times"])
            pages = dict(await connection.fetch(_QUERIES["partitions"]))
            self._samples.append((now, pages))
            waiting = await connection.fetch(_QUERIES["claim"])
            claimed = _up_to(waiting, MAX_EVENTS)
            if not claimed:
                return None
            rows = await self._read(connection, claimed, pages)
            who = await identities.learn(connection, rows, self._most_links)
            minutes = tallies.count(rows, self.dimensions, who)
            counted = with_hours(minutes, minutes_from)
            days = await buckets.add(connection, counted, self.room)
            await note_stale(connection, {key[1] for key in days}, "week", "month")
            await stale_metrics.note_buckets(connection, {key[:2] for some in (counted, days) for key in some})
            await stale_metrics.note_events(connection, {key[1] for key in minutes})
            lags = await connection.fetch(
                _QUERIES["mark"], [flush["journal"] for flush in claimed], [flush["last_record"] for flush in claimed]
            )
        return Cycle(
            len(claimed),
            len(rows),
            len(counted) + len(days),
            [lag[0] for lag in lags],
            time.perf_counter() - started,
            len(claimed) < len(waiting),
        )

    async def _read(
        self, connection: asyncpg.Connection, claimed: Sequence[Mapping[str, Any]], pages: Mapping[date, int]
    ) -> list[Row]:
        """The events of the claimed flushes.

        They are looked for at the end of their days' partitions. Whether that were all, the ledger knows; if not
        (pages that were filled again, events that were erased), by the index on the batch, which takes longer the
        more a day has.
        """
        days = _days(claimed, pages)
        ids = batches(claimed)
        ends = self._ends(claimed)
        if ends is not None:
            rows: list[Row] = []
            for day in days:
                rows += await connection.fetch(
                    rows_query("events_at_end", day, self.dimensions, page=ends.get(day, 0), batches=ids)
                )
            if len(rows) == sum(flush["events_stored"] for flush in claimed):
                return rows
        between = " OR ".join(f"batch_id BETWEEN {low} AND {high}" for low, high in _journal_ranges(claimed))
        rows = []
        for day in days:
            rows += await connection.fetch(
                rows_query("events_of_batches", day, self.dimensions, between=between, batches=ids)
            )
        return rows

    def _ends(self, claimed: Sequence[Mapping[str, Any]]) -> dict[date, int] | None:
        """The page of each day's partition that the rows of these flushes cannot be before; None if not known."""
        earliest = min(
            flush["flushed_at"] - timedelta(seconds=_ADOPTED_SECONDS * flush["adopted"]) for flush in claimed
        )
        known = None
        for when, pages in self._samples:
            if when > earliest:
                break
            known = pages
        return known and {day: max(0, count - _EARLIER_PAGES) for day, count in known.items()}


@asynccontextmanager
async def turn(connection: asyncpg.Connection, isolation: str | None = None) -> AsyncIterator[None]:
    """A transaction in which nobody else changes buckets, and which sees all that was done to them before.

    The lock is a table's, as that is taken before a transaction has its view of the database, under any isolation.
    Waited for it is outside of transactions, but for moments: a pooler may have few connections for them.
    """
    while True:
        transaction = connection.transaction(isolation=isolation)
        await transaction.start()
        try:
            await connection.execute(_QUERIES["take_turn"])
            break
        except asyncpg.LockNotAvailableError:
            await transaction.rollback()
            await asyncio.sleep(_TURN_PAUSE_SECONDS)
        except BaseException:
            if not connection.is_closed():
                await transaction.rollback()
            raise
    try:
        yield
    except BaseException:
        if not connection.is_closed():
            await transaction.rollback()
        raise
    await transaction.commit()


def rows_query(name: str, day: date, dimensions: Sequence[str], **given: object) -> str:
    """One of the queries for the events of a day as rows for `identities.learn` and `tallies.count`. Nothing in it
    comes from outside."""
    values = "".join(f", left({dimension}::text, {MAX_VALUE_CHARACTERS})" for dimension in dimensions)
    return fill(_QUERIES[name], dimensions=values, partition=partition(day), **given)


def partition(day: date) -> str:
    """The table of a day of analytics.events."""
    return f"analytics.events_{day:%Y%m%d}"


def with_hours(minutes: Tallies, minutes_from: datetime) -> Tallies:
    """Tallies of minutes, but for those too old to be kept, and of hours."""
    kept = {key: tally for key, tally in minutes.items() if key[1] >= minutes_from}
    return kept | tallies.coarser(minutes, "hour")


async def note_stale(connection: asyncpg.Connection, moments: Collection[datetime], *granularities: str) -> None:
    """Have the buckets rebuilt that these moments are in, of these granularities."""
    noted = {(granularity, BEGINNINGS[granularity](moment)) for granularity in granularities for moment in moments}
    await connection.execute(
        _QUERIES["note_stale"], [granularity for granularity, _ in noted], [bucket for _, bucket in noted]
    )


def batches(flushes: Sequence[Mapping[str, Any]]) -> str:
    """The batch ids of these flushes, as a constant of SQL."""
    ranges = ",".join(f"[{low},{high}]" for low, high in map(_batch_range, flushes))
    return f"'{{{ranges}}}'::int8multirange"


def _batch_range(flush: Mapping[str, Any]) -> tuple[int, int]:
    journal = flush["journal"]
    return batch_id(journal, flush["first_record"]), batch_id(journal, flush["last_record"])


def _journal_ranges(flushes: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """For each journal the range that holds all its flushes."""
    found: dict[int, tuple[int, int]] = {}
    for flush in flushes:
        low, high = _batch_range(flush)
        known = found.get(flush["journal"], (low, high))
        found[flush["journal"]] = min(low, known[0]), max(high, known[1])
    return list(found.values())


def _days(flushes: Sequence[Mapping[str, Any]], known: Collection[date]) -> list[date]:
    """The days that have events of these flushes, of those that are still there; all, if a flush does not tell."""
    if any(flush["days"] is None for flush in flushes):
        return sorted(known)
    return sorted({day for flush in flushes for day in flush["days"]} & set(known))


def _up_to(flushes: Sequence[Any], events: int) -> list[Any]:
    """The first flushes that together have at most so many events; at least one."""
    taken: list[Any] = []
    for flush in flushes:
        events -= flush["events_stored"]
        if taken and events < 0:
            break
        taken.append(flush)
    return taken
