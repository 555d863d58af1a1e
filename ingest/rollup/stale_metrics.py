"""Which windows' KPIs are to be computed again: noted where aggregates or events change, in the same transaction.

So no change is missed, whatever dies when. A note is forgotten by who has computed its window after reading it,
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
"""An hour's KPIs that are from events look so far before the hour and after it."""
_MINUTE: Final = timedelta(minutes=1)
_QUERIES: Final = load_queries("stale_metrics")


class Note(NamedTuple):
    granularity: str
    start: datetime
    token: UUID


async def note_buckets(connection: asyncpg.Connection, buckets: Iterable[tuple[str, datetime]]) -> None:
    """Have the KPIs computed again that are from these buckets, (granularity, beginning in UTC)."""
    await _note(connection, "aggregates", buckets)


async def note_events(connection: asyncpg.Connection, minutes: Iterable[datetime]) -> None:
    """Have the KPIs computed again that are from events of these minutes, told by their beginnings in UTC."""
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
    """The windows that began before `now` and are noted; days after hours."""
    return [Note(*row) for row in await connection.fetch(_QUERIES["noted"], source, now)]


async def forget(connection: asyncpg.Connection, source: str, note: Note) -> None:
    """Forget a note, unless it was written again since it was read. One at a time: who holds several might wait for a
    worker that notes them in another order, and waits for one of these."""
    await connection.execute(_QUERIES["forget"], source, *note)


async def kept_from(connection: asyncpg.Connection) -> tuple[datetime, datetime | None]:
    """From when there are buckets of minutes, and from when events; None: there are none."""
    row = await connection.fetchrow(_QUERIES["kept_from"])
    return row["minutes_from"], row["events_from"]
