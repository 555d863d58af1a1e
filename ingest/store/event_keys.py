"""Events that the key of analytics.events would not know again: stored once all the same.

An event is known by its id and the time that its client gave (ingest/events/steps.py). Where created_at is that
time, the primary key (created_at, id) is enough. Where it is not, because the time was impossible and is corrected,
or because there was none, another delivery has another created_at: then the key is kept in analytics.event_keys, and
the flush that stores the event claims it there, in its own transaction.

A time that is impossible today may be possible tomorrow, so the same event can come both ways: `claim` looks among
the events that have their own time, and `drop_known` looks for the others' keys. What makes that exact while two
flushes store the two deliveries at once is a lock from there to the COMMIT, shared by those that claim no corrected
time; it waits for a COMMIT, never for a COPY.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg

from ingest.events.row import NO_TIME
from ingest.events.values.timestamps import one_text_of
from ingest.journal.segments import Record
from ingest.postgres.queries import fill, load_queries

_QUERIES: Final = load_queries("event_keys")
_MOST_MINUTES: Final = 500
"""Past so many different minutes in a flush, such as of an import, days are asked for."""
_TRIES: Final = 40
_PLAIN: Final = {b"\\N"}


class Keyed(NamedTuple):
    """A line whose event is known by a key in analytics.event_keys; texts as in the line."""

    id: str
    created_at: str
    client_time: str
    line: bytes


class Contents(NamedTuple):
    """What a flush holds: `plain` lines, joined as they come, of events that their own key knows again, and the
    others. `minutes` are those that the events happened in, in UTC, such as 2026-01-02T03:04."""

    plain: list[bytes]
    keyed: list[Keyed]
    minutes: set[str]

    @property
    def days(self) -> list[date]:
        """The days, in UTC, that the events are stored under."""
        return [date.fromisoformat(day) for day in sorted({minute[:10] for minute in self.minutes})]


def examine(records: Iterable[Record]) -> Contents:
    """Tell the two kinds of lines apart."""
    plain: list[bytes] = []
    keyed: list[Keyed] = []
    minutes: set[bytes] = set()
    for record in records:
        columns = record.layout.event_columns
        created = columns.index("created_at")
        # A record of an older release knows no other kind.
        client_time = columns.index("client_time") if "client_time" in columns else None
        most = max(created, client_time or 0) + 1
        lines = record.event_lines.splitlines(keepends=True)
        values = [line.split(b"\t", most) for line in lines]
        minutes.update([each[created][:16] for each in values])
        if client_time is None or {each[client_time] for each in values} <= _PLAIN:
            plain.append(record.event_lines)
            continue
        key = columns.index("id")
        for each, line in zip(values, lines, strict=True):
            if each[client_time] == b"\\N":
                plain.append(line)
            else:
                keyed.append(Keyed(each[key].decode(), each[created].decode(), each[client_time].decode(), line))
    return Contents(plain, keyed, {minute.decode() for minute in minutes})


def known_by(line: bytes, columns: tuple[str, ...]) -> bytes:
    """What the event of a line is known by in the window of recent ids: its id in 16 bytes, then its own time."""
    values = line.rstrip(b"\n").split(b"\t")
    client_time = values[columns.index("client_time")] if "client_time" in columns else b"\\N"
    own = (values[columns.index("created_at")] if client_time == b"\\N" else client_time).decode()
    key = UUID(values[columns.index("id")].decode()).bytes
    return key if own == NO_TIME else key + one_text_of(datetime.fromisoformat(own), own).encode()


async def claim(connection: asyncpg.Connection, keyed: Sequence[Keyed]) -> list[Keyed]:
    """Those that are new, whose keys are theirs from now on. To be asked after the plain lines are stored."""
    if not keyed:
        return []
    bounds = _bounds([one.client_time for one in keyed])
    if bounds != (None, None):
        await connection.execute(_QUERIES["lock"])
    else:
        await connection.execute(_QUERIES["lock_shared"])
    ids, created, client_time = ([one[field] for one in keyed] for field in range(3))
    places = await connection.fetch(_QUERIES["claim"], ids, client_time, created, *bounds)
    return await _apart(connection, [keyed[row["place"] - 1] for row in places])


async def _apart(connection: asyncpg.Connection, keyed: list[Keyed]) -> list[Keyed]:
    """The same, none with the created_at and id of another event: our clock may give one time to two events of one
    id, whose clients gave them different ones. Then one is put microseconds later."""
    occupied: set[tuple[str, str]] = set()
    settled: list[Keyed] = []
    step = timedelta(microseconds=1)
    for _ in range(_TRIES):
        if not keyed:
            break
        ids, created = [one.id for one in keyed], [one.created_at for one in keyed]
        rows = await connection.fetch(_QUERIES["taken"], ids, created, *_bounds(created))
        taken = {row["place"] - 1 for row in rows}
        again: list[Keyed] = []
        for place, one in enumerate(keyed):
            if place not in taken and (one.id, one.created_at) not in occupied:
                occupied.add((one.id, one.created_at))
                settled.append(one)
            else:
                again.append(_later(one, step * (len(again) + 1)))
        keyed, step = again, step * 2
    return settled + keyed


def _later(one: Keyed, by: timedelta) -> Keyed:
    created = (datetime.fromisoformat(one.created_at) + by).isoformat()
    line = one.line.replace(one.created_at.encode(), created.encode(), 1)
    return one._replace(created_at=created, line=line)


async def release(connection: asyncpg.Connection, keyed: Sequence[Keyed]) -> None:
    """The table has refused these: when they come again, they are new."""
    if keyed:
        ids, client_time = [one.id for one in keyed], [one.client_time for one in keyed]
        await connection.execute(_QUERIES["release"], ids, client_time)


async def drop_known(
    connection: asyncpg.Connection, minutes: Iterable[str], first_batch: int, last_batch: int
) -> int:
    """Take back what these batches stored under the client's own time although it is there under a corrected one;
    how many. To be asked last before the COMMIT."""
    spans, width = sorted(minutes), timedelta(minutes=1)
    if len(spans) > _MOST_MINUTES:
        spans, width = sorted({minute[:10] for minute in spans}), timedelta(days=1)
    starts = [datetime.fromisoformat(span).replace(tzinfo=UTC) for span in spans]
    if not starts:
        return 0
    texts = [start.isoformat() for start in starts]
    look = fill(_QUERIES["lock_and_look"], starts=",".join(texts), seconds=round(width.total_seconds()))
    if await connection.execute(look) == "SELECT 0":
        return 0
    rows = await connection.fetch(
        _QUERIES["known"], texts, width, first_batch, last_batch, starts[0], starts[-1] + width
    )
    await connection.executemany(_QUERIES["drop"], [(row["created_at"], row["id"]) for row in rows])
    return len(rows)


def _bounds(times: Sequence[str]) -> tuple[datetime | None, datetime | None]:
    """The first and the last of them, both None if there is none."""
    moments = [datetime.fromisoformat(time) for time in times if time != NO_TIME]
    return (min(moments), max(moments)) if moments else (None, None)
