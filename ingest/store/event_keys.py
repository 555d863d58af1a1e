"""Deduplication of events that the primary key of analytics.events would not recognize.

An event is identified by its id and the time its client gave (ingest/events/steps.py). If created_at is that time,
the primary key (created_at, id) is enough. If it is not, because the time was impossible and has been corrected, or
was missing, another delivery gets another created_at. Such an event's key is kept in analytics.event_keys, and the
flush that stores the event claims the key there, in the same transaction.

A time that is impossible today may be possible tomorrow, so the same event can arrive both ways: `claim` looks among
the events stored under their own time, and `drop_known` looks for keys of corrected ones. Two flushes may store the
two deliveries concurrently; a lock, held from there to the COMMIT and shared by those that claim no corrected time,
makes this exact. It waits for a COMMIT, never for a COPY.
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
"""If a flush spans more minutes than this, as in an import, whole days are looked up instead."""
_TRIES: Final = 40
_PLAIN: Final = {b"\\N"}


class Keyed(NamedTuple):
    """A line whose event is identified by a key in analytics.event_keys; texts as in the line."""

    id: str
    created_at: str
    client_time: str
    line: bytes


class Contents(NamedTuple):
    """The lines of a flush: `plain` ones, joined as they come, for which the primary key is enough, and `keyed` ones.
    `minutes`: those in which the events happened, in UTC, such as 2026-01-02T03:04."""

    plain: list[bytes]
    keyed: list[Keyed]
    minutes: set[str]

    @property
    def days(self) -> list[date]:
        """The days, in UTC, that the events are stored under."""
        return [date.fromisoformat(day) for day in sorted({minute[:10] for minute in self.minutes})]


def examine(record: Record) -> Contents:
    """Separate plain from keyed lines."""
    columns = record.layout.event_columns
    created = columns.index("created_at")
    # Records of older releases have only plain lines.
    client_time = columns.index("client_time") if "client_time" in columns else None
    most = max(created, client_time or 0) + 1
    # Not `splitlines`, which is ten times as slow as a search for one byte.
    lines = record.event_lines.split(b"\n")
    del lines[-1]
    values = [line.split(b"\t", most) for line in lines]
    minutes = {minute.decode() for minute in {each[created][:16] for each in values}}
    if client_time is None or {each[client_time] for each in values} <= _PLAIN:
        return Contents([record.event_lines] if lines else [], [], minutes)
    plain: list[bytes] = []
    keyed: list[Keyed] = []
    key = columns.index("id")
    for each, line in zip(values, lines, strict=True):
        line += b"\n"
        if each[client_time] == b"\\N":
            plain.append(line)
        else:
            keyed.append(Keyed(each[key].decode(), each[created].decode(), each[client_time].decode(), line))
    return Contents(plain, keyed, minutes)


def together(contents: Iterable[Contents]) -> Contents:
    """The lines of several records, in order."""
    all_of_them = Contents([], [], set())
    for plain, keyed, minutes in contents:
        all_of_them.plain.extend(plain)
        all_of_them.keyed.extend(keyed)
        all_of_them.minutes.update(minutes)
    return all_of_them


def known_by(line: bytes, columns: tuple[str, ...]) -> bytes:
    """The key of a line's event in the window of recent ids: its id in 16 bytes, then its client's time."""
    values = line.rstrip(b"\n").split(b"\t")
    client_time = values[columns.index("client_time")] if "client_time" in columns else b"\\N"
    own = (values[columns.index("created_at")] if client_time == b"\\N" else client_time).decode()
    key = UUID(values[columns.index("id")].decode()).bytes
    return key if own == NO_TIME else key + one_text_of(datetime.fromisoformat(own), own).encode()


async def claim(connection: asyncpg.Connection, keyed: Sequence[Keyed]) -> list[Keyed]:
    """Claim the keys that are new, and return their lines. Call it after the plain lines are stored."""
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
    """The same lines, moved apart so that none shares created_at and id with another event. Our clock may give the
    same time to two events with the same id but different client times; one is then moved by microseconds."""
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
    """Delete events that these batches stored under the client's own time, but that are already stored under a
    corrected one; returns how many. Call it last, just before the COMMIT."""
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
    """The earliest and the latest of the times, both None if there are none."""
    moments = [datetime.fromisoformat(time) for time in times if time != NO_TIME]
    return (min(moments), max(moments)) if moments else (None, None)
