"""Windows whose KPIs must be recomputed, noted in the same transaction that changes aggregates or events.

So no change is missed, whatever crashes. A note is forgotten once its window has been computed after it was read,
unless it was written again meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg

from ingest.postgres.queries import load_queries
from ingest.rollup.tallies import BEGINNINGS

AROUND: Final = timedelta(minutes=30)
"""KPIs of an hour that are computed from events look this far before and after the hour."""
_MINUTE: Final = timedelta(minutes=1)
_QUERIES: Final = load_queries("stale_metrics")


class Note(NamedTuple):
    granularity: str
    start: datetime
    token: UUID


async def note_buckets(connection: asyncpg.Connection, buckets: Iterable[tuple[str, datetime]]) -> None:
    """Note the KPIs computed from these buckets, (granularity, start in UTC)."""
    await _note(connection, "aggregates", buckets)


async def note_events(connection: asyncpg.Connection, minutes: Iterable[datetime]) -> None:
    """Note the KPIs computed from events of these minutes, given by their starts in UTC."""
    hour_of, day_of = BEGINNINGS["hour"], BEGINNINGS["day"]
    hours = {
        hour_of(moment) for minute in set(minutes) for moment in (minute - AROUND, minute, minute + _MINUTE + AROUND)
    }
    days = {("day", day_of(hour)) for hour in hours}
    await _note(connection, "events", {*days, *(("hour", hour) for hour in hours)})


async def _note(connection: asyncpg.Connection, source: str, windows: Iterable[tuple[str, datetime]]) -> None:
    if changed := list(windows):
        columns = [list(column) for column in zip(*changed, strict=True)]
        await connection.execute(_QUERIES["note"], source, *columns)


async def noted(connection: asyncpg.Connection, source: str, now: datetime) -> list[Note]:
    """The noted windows that began before `now`; hours before days."""
    return [Note(*row) for row in await connection.fetch(_QUERIES["noted"], source, now)]


async def forget(connection: asyncpg.Connection, source: str, note: Note) -> None:
    """Forget a note, unless it was written again since it was read. One per transaction: locking several could
    deadlock with a worker that notes them in another order."""
    await connection.execute(_QUERIES["forget"], source, *note)


async def kept_from(connection: asyncpg.Connection) -> tuple[datetime, datetime | None]:
    """The times of the earliest kept minute bucket and of the earliest day of events; None if there are no events."""
    row = await connection.fetchrow(_QUERIES["kept_from"])
    return row["minutes_from"], row["events_from"]
