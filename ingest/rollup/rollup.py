"""From the ledger to the aggregates.

One transaction claims flushes that are not rolled up, counts exactly their events, adds them to the buckets and marks
the flushes. Late events, several collectors and crashes are no special cases.
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
from ingest.rollup.alike import Lines
from ingest.rollup.buckets import Room
from ingest.rollup.identities import MOST_LINKS
from ingest.rollup.tallies import BEGINNINGS, Tallies

_TURN_PAUSE_SECONDS: Final = 0.2
_READING_PAUSE_SECONDS: Final = 0.001
MAX_EVENTS: Final = 250_000
"""Per transaction, unless a single flush has more. If all differ they take some 150 MB."""
_EARLIER_PAGES: Final = 512
"""Rows that are not behind the end that a partition had before their flush are looked for this far before it, then
eight times as far, and so on."""
_MOST_EARLIER_PAGES: Final = 40_000
"""Half a million rows, which take a tenth of a second."""
_ALL_PAGES: Final = 2**32 - 1
_ADOPTED_SECONDS: Final = 60
"""Rows inserted by plain SQL get their batch before their flush is recorded: at most this long before."""
_SAMPLES: Final = 600
_QUERIES: Final = load_queries("rollup")


class Cycle(NamedTuple):
    """What one transaction rolled up. `lags`: seconds from storage to rollup, per flush; `more`: others are left."""

    flushes: int
    events: int
    buckets: int
    lags: list[float]
    seconds: float
    more: bool


class Rollup:
    """Adds new events to the buckets. `run_once` waits for its turn: one worker at a time."""

    def __init__(self, dimensions: Sequence[str], room: Room, most_links: int = MOST_LINKS) -> None:
        self.dimensions = tuple(dimensions)
        self.room = room
        self._most_links = most_links
        # (time, {day: pages of its partition}), oldest first: where the rows of a flush can begin.
        self._samples: deque[tuple[datetime, dict[date, int]]] = deque(maxlen=_SAMPLES)

    async def run_once(self, connection: asyncpg.Connection, lease: Lease | None = None) -> Cycle | None:
        """Roll up the oldest waiting flushes, and note their weeks and months; None if no flush is waiting.

        Holds `lease` meanwhile. Raises LeaseLost, having done nothing, if another worker has it.
        """
        started = time.perf_counter()
        async with turn(connection):
            if lease is not None:
                await lease.hold(connection)
            minutes_from = await connection.fetchval(_QUERIES["minutes_from"])
            pages = await self.sample(connection)
            waiting = await connection.fetch(_QUERIES["claim"])
            claimed = _up_to(waiting, MAX_EVENTS)
            if not claimed:
                return None
            lines = await self._read(connection, claimed, pages)
            alike = lines.alike()
            who = await identities.learn(connection, alike, self._most_links)
            groups = tallies.grouped(alike, self.dimensions)
            kept = await buckets.kept(connection, groups, self.room, minutes_from)
            minutes = tallies.count(groups, who, kept)
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
            lines.events,
            len(counted) + len(days),
            [lag[0] for lag in lags],
            time.perf_counter() - started,
            len(claimed) < len(waiting),
        )

    async def sample(self, connection: asyncpg.Connection) -> dict[date, int]:
        """Note how many pages each day's partition has now, and return it. Call it every second: where the rows of a
        flush begin is known by what there was before it."""
        now = await connection.fetchval("SELECT clock_timestamp()")
        pages = dict(await connection.fetch(_QUERIES["partitions"]))
        self._samples.append((now, pages))
        return pages

    async def _read(
        self, connection: asyncpg.Connection, claimed: Sequence[Mapping[str, Any]], pages: Mapping[date, int]
    ) -> Lines:
        """The events of the claimed flushes.

        First reads the ends of their days' partitions. The ledger knows how many there must be. If some are missing,
        it goes back from there: a few rows are often in a page that an earlier flush had not filled. If they are
        further back (space freed by VACUUM), or nowhere (erased), it reads them through the index on the batch, which
        takes longer the more events a day has.
        """
        expected = sum(flush["events_stored"] for flush in claimed)
        lines = Lines(len(self.dimensions))
        ids = batch_ranges(claimed)
        ends = self._ends(claimed)
        # Up to where each day is still unread.
        unread = dict.fromkeys(_days(claimed, pages), _ALL_PAGES)
        back = 0
        while ends is not None and lines.events < expected and back <= _MOST_EARLIER_PAGES:
            for day, end in unread.items():
                unread[day] = start = max(0, ends.get(day, 0) - back)
                if start < end:
                    await self._add(lines, connection, "events_in_pages", day, start=start, end=end, batches=ids)
            back = max(_EARLIER_PAGES, 8 * back)
        if lines.events < expected:
            between = " OR ".join(f"batch_id BETWEEN {low} AND {high}" for low, high in _journal_ranges(claimed))
            for day, end in unread.items():
                await self._add(lines, connection, "events_of_batches", day, between=between, end=end, batches=ids)
        return lines

    async def _add(self, lines: Lines, connection: asyncpg.Connection, name: str, day: date, **given: object) -> None:
        """Add the events that a query finds. As COPY text they take a fifth of the time that records would."""

        async def add(text: bytes) -> None:
            lines.add(text)
            # The next text is then as much as a socket holds, instead of a few rows.
            await asyncio.sleep(_READING_PAUSE_SECONDS)

        await connection.copy_from_query(rows_query(name, day, self.dimensions, **given), output=add)
        lines.end()

    def _ends(self, claimed: Sequence[Mapping[str, Any]]) -> dict[date, int] | None:
        """How many pages each day's partition had before these flushes; None if not known."""
        earliest = min(
            flush["flushed_at"] - timedelta(seconds=_ADOPTED_SECONDS * flush["adopted"]) for flush in claimed
        )
        known = None
        for when, pages in self._samples:
            if when > earliest:
                break
            known = pages
        return known


@asynccontextmanager
async def turn(connection: asyncpg.Connection, isolation: str | None = None) -> AsyncIterator[None]:
    """A transaction that alone may change buckets, and sees all earlier changes to them.

    It locks a table, because such a lock is taken before the transaction's snapshot, under any isolation level. The
    wait is mostly outside of transactions: a pooler may have few connections for them.
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
    """A query for a day's events, as `Lines` and `from_records` take them. Contains no outside input."""
    values = "".join(f", {_value(dimension)}" for dimension in dimensions)
    return fill(_QUERIES[name], dimensions=values, partition=partition(day), **given)


def _value(dimension: str) -> str:
    """The expression for a dimension's value, cut to what is kept. Nearly all are short, which costs less to see than
    to cut."""
    if dimension == "device_type":
        return dimension
    most = MAX_VALUE_CHARACTERS
    return f"CASE WHEN octet_length({dimension}) <= {most} THEN {dimension} ELSE left({dimension}, {most}) END"


def partition(day: date) -> str:
    """The partition of analytics.events for a day."""
    return f"analytics.events_{day:%Y%m%d}"


def with_hours(minutes: Tallies, minutes_from: datetime) -> Tallies:
    """Tallies of minutes, except those too old to be kept, and of their hours."""
    kept = {key: tally for key, tally in minutes.items() if key[1] >= minutes_from}
    return kept | tallies.coarser(minutes, "hour")


async def note_stale(connection: asyncpg.Connection, moments: Collection[datetime], *granularities: str) -> None:
    """Schedule a rebuild of the buckets of these granularities that contain these moments."""
    noted = {(granularity, BEGINNINGS[granularity](moment)) for granularity in granularities for moment in moments}
    await connection.execute(
        _QUERIES["note_stale"], [granularity for granularity, _ in noted], [bucket for _, bucket in noted]
    )


def batch_ranges(flushes: Sequence[Mapping[str, Any]]) -> str:
    """The batch ids of these flushes, as an SQL constant."""
    ranges = ",".join(f"[{low},{high}]" for low, high in map(_batch_range, flushes))
    return f"'{{{ranges}}}'::int8multirange"


def _batch_range(flush: Mapping[str, Any]) -> tuple[int, int]:
    journal = flush["journal"]
    return batch_id(journal, flush["first_record"]), batch_id(journal, flush["last_record"])


def _journal_ranges(flushes: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """For each journal, the range that covers all its flushes."""
    found: dict[int, tuple[int, int]] = {}
    for flush in flushes:
        low, high = _batch_range(flush)
        known = found.get(flush["journal"], (low, high))
        found[flush["journal"]] = min(low, known[0]), max(high, known[1])
    return list(found.values())


def _days(flushes: Sequence[Mapping[str, Any]], known: Collection[date]) -> list[date]:
    """The known days that have events of these flushes; all of them if a flush does not say."""
    if any(flush["days"] is None for flush in flushes):
        return sorted(known)
    return sorted({day for flush in flushes for day in flush["days"]} & set(known))


def _up_to(flushes: Sequence[Any], events: int) -> list[Any]:
    """The first flushes that together have at most `events` events; at least one flush."""
    taken: list[Any] = []
    for flush in flushes:
        events -= flush["events_stored"]
        if taken and events < 0:
            break
        taken.append(flush)
    return taken
