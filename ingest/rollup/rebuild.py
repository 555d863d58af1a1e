"""Rebuilds and verifies buckets: minutes and hours from events, days from hours, weeks and months from days.

While an hour is rebuilt nothing is added to any bucket, and exactly the events are counted that the ledger says are
rolled up; newer ones are added afterwards. `ingest rollup rebuild` notes hours in analytics.stale_buckets, as an
erasure does; any process may rebuild noted ones, so an interrupted rebuild resumes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple

import asyncpg

from ingest.events.limits import EVENT_TYPES
from ingest.postgres import statements
from ingest.postgres.queries import load_queries
from ingest.rollup import buckets, identities, sketches, stale_metrics, tallies
from ingest.rollup.alike import from_records
from ingest.rollup.buckets import Room, Stored
from ingest.rollup.rollup import batch_ranges, note_stale, partition, rows_query, turn, with_hours
from ingest.rollup.tallies import BOTS, OTHER_NAME, OTHER_VALUE, TOTAL, Key, Tallies

GRANULARITIES: Final = ("hour", "day", "week", "month")
HOUR: Final = timedelta(hours=1)
MINUTE: Final = timedelta(minutes=1)
_PARTS: Final[Mapping[str, str]] = {"day": "hour", "week": "day", "month": "day"}
_CHUNK: Final = 20_000
_TRIES: Final = 5
_PARTS_AT_ONCE: Final = 500
_QUERIES: Final = load_queries("rebuild")


class Difference(NamedTuple):
    """A bucket that does not hold what it should; None: there is no row, or there should be none."""

    key: Key
    stored: tuple[int, int, int] | None
    """Events, users, sessions."""
    expected: tuple[int, int, int] | None


# Rebuilding.


async def note(connection: asyncpg.Connection, start: datetime, end: datetime) -> int:
    """Note every hour in [start, end) that may have events. Returns how many."""
    count: int = await connection.fetchval(_QUERIES["note_hours"], start, end)
    return count


async def count_stale(connection: asyncpg.Connection, start: datetime, end: datetime) -> int:
    """How many hours and days in [start, end) are due to be rebuilt."""
    count: int = await connection.fetchval(_QUERIES["count_stale"], start, end)
    return count


async def run_once(
    connection: asyncpg.Connection,
    dimensions: Sequence[str],
    room: Room,
    granularities: Sequence[str] = GRANULARITIES,
    most: int = 1000,
    delayed: bool = True,
) -> int:
    """Rebuild up to `most` noted buckets that are due, hours first. Returns how many were rebuilt. Must not be called
    in a transaction. `delayed`: include those that were noted for later."""
    rebuilt = 0
    while rebuilt < most and await make_next(connection, dimensions, room, granularities, delayed):
        rebuilt += 1
    return rebuilt


async def make_next(
    connection: asyncpg.Connection,
    dimensions: Sequence[str],
    room: Room,
    granularities: Sequence[str] = GRANULARITIES,
    delayed: bool = True,
) -> bool:
    """Rebuild one noted bucket, in one transaction; False if there is none."""
    for _ in range(_TRIES):
        try:
            return await _make_next(connection, dimensions, room, granularities, delayed)
        except asyncpg.SerializationError:
            # A KPI note that it renews was just being forgotten.
            continue
    return await _make_next(connection, dimensions, room, granularities, delayed)


async def _make_next(
    connection: asyncpg.Connection, dimensions: Sequence[str], room: Room, granularities: Sequence[str], delayed: bool
) -> bool:
    # One snapshot for everything, taken after all earlier changes to buckets.
    async with turn(connection, "repeatable_read"):
        noted = await connection.fetchrow(_QUERIES["take_stale"], list(granularities), delayed)
        if noted is None:
            return False
        granularity, bucket = noted
        if granularity == "hour":
            await _rebuild_hour(connection, bucket, dimensions, room)
        else:
            await _rebuild_from_parts(connection, granularity, bucket, room)
        return True


async def _rebuild_hour(
    connection: asyncpg.Connection, hour: datetime, dimensions: Sequence[str], room: Room
) -> None:
    if not await _has_events(connection, hour.date()):
        return
    counted = await _count_hour(connection, hour, dimensions)
    cleared = await connection.execute(_QUERIES["clear_hour"], hour)
    # Its day is rebuilt from all its hours afterwards.
    await buckets.add_only(connection, counted, room)
    await note_stale(connection, [hour], "day")
    if cleared == "DELETE 0" and not counted:
        return
    minutes = [hour + number * MINUTE for number in range(60)]
    kept_from = await connection.fetchval(_QUERIES["minutes_from"])
    kept = [("minute", minute) for minute in minutes if minute >= kept_from]
    await stale_metrics.note_buckets(connection, [("hour", hour), *kept])
    await stale_metrics.note_events(connection, minutes)


async def _count_hour(connection: asyncpg.Connection, hour: datetime, dimensions: Sequence[str]) -> Tallies:
    """The tallies of an hour and its minutes, from the events that are rolled up."""
    waiting = await connection.fetch(_QUERIES["not_rolled_up"])
    query = rows_query("events_within", hour.date(), dimensions, batches=batch_ranges(waiting))
    minutes: Tallies = {}
    async for records in statements.batches(connection, query, hour, hour + HOUR, size=_CHUNK):
        minutes = await _count_more(connection, minutes, records, dimensions)
    return with_hours(minutes, await connection.fetchval(_QUERIES["minutes_from"]))


async def _count_more(
    connection: asyncpg.Connection, minutes: Tallies, records: Sequence[Any], dimensions: Sequence[str]
) -> Tallies:
    alike = from_records(records, len(dimensions))
    counted = tallies.count(tallies.grouped(alike, dimensions), await identities.look_up(connection, alike))
    return tallies.summed([*minutes.items(), *counted.items()])


async def _rebuild_from_parts(connection: asyncpg.Connection, granularity: str, bucket: datetime, room: Room) -> None:
    async for group in _sums_of_parts(connection, granularity, bucket):
        await buckets.put(connection, _fitted(group, room).items())
    await connection.execute(_QUERIES["clear_others"], granularity, bucket)
    await stale_metrics.note_buckets(connection, [(granularity, bucket)])
    if granularity == "day":
        await note_stale(connection, [bucket], "week", "month")


async def _sums_of_parts(
    connection: asyncpg.Connection, granularity: str, bucket: datetime
) -> AsyncIterator[dict[Key, Stored]]:
    """The sums of a bucket's parts, one name of one type at a time."""
    group: dict[Key, list[Any]] = {}
    of: tuple[str, str] | None = None
    span = bucket, tallies.following(granularity, bucket)
    parts = statements.batches(connection, _QUERIES["parts"], _PARTS[granularity], *span, size=_PARTS_AT_ONCE)
    async for rows in parts:
        for row in rows:
            kind, name, dimensions, *_ = row
            if of != (kind, name) and group:
                yield {key: _sum(parts) for key, parts in group.items()}
                group = {}
            of = kind, name
            key = granularity, bucket, kind, name, *buckets.dimension_and_value(dimensions)
            group.setdefault(key, []).append(row)
    if group:
        yield {key: _sum(parts) for key, parts in group.items()}


def _sum(parts: Sequence[Mapping[str, Any]]) -> Stored:
    return _estimated(
        sum(part["event_count"] for part in parts),
        [part["users_sketch"] for part in parts],
        [part["sessions_sketch"] for part in parts],
    )


def _estimated(events: int, users: Iterable[bytes | None], sessions: Iterable[bytes | None]) -> Stored:
    users_sketch, sessions_sketch = sketches.union(users), sketches.union(sessions)
    counts = sketches.count(users_sketch), sketches.count(sessions_sketch)
    stored = [
        sketches.dump(one) if number else None
        for one, number in zip((users_sketch, sessions_sketch), counts, strict=True)
    ]
    # An estimate never exceeds the number of events.
    users_count, sessions_count = (min(number, events) for number in counts)
    return Stored(events, users_count, sessions_count, *stored)


def _fitted(group: Mapping[Key, Stored], room: Room) -> dict[Key, Stored]:
    """The group, with a dimension's least frequent values summed as others if there is no room for all."""
    by_dimension: dict[str, list[Key]] = {}
    for key in group:
        if key[4:] not in (TOTAL, BOTS) and key[5] != OTHER_VALUE:
            by_dimension.setdefault(key[4], []).append(key)
    placed = dict(group)
    for keys in by_dimension.values():
        keys.sort(key=lambda key: (-group[key].events, key[5]))
        for key in keys[room.values :]:
            other = (*key[:5], OTHER_VALUE)
            both = [placed.pop(key), *([placed[other]] if other in placed else [])]
            placed[other] = _summed(both)
    return placed


def _summed(parts: Sequence[Stored]) -> Stored:
    return _estimated(
        sum(one.events for one in parts),
        [one.users_sketch for one in parts],
        [one.sessions_sketch for one in parts],
    )


async def _has_events(connection: asyncpg.Connection, day: date) -> bool:
    return await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", partition(day)) is True


# Comparing.


async def verify(
    connection: asyncpg.Connection, start: datetime, end: datetime, dimensions: Sequence[str]
) -> AsyncIterator[tuple[datetime, list[Difference]]]:
    """Compare the buckets of each hour in [start, end) with its events, and of each day with its hours. Yields (hour
    or day, differences). Each is compared within one snapshot, so that nothing has to wait."""
    for bucket, granularity in await connection.fetch(_QUERIES["to_compare"], start, end):
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            if await connection.fetchval(_QUERIES["is_stale"], granularity, bucket):
                continue
            if granularity == "hour":
                if await connection.fetchval(_QUERIES["is_noted_in"], bucket):
                    continue
                found = await _compare_hour(connection, bucket, dimensions)
            else:
                found = await _compare_day(connection, bucket)
        yield bucket, found


async def _compare_hour(
    connection: asyncpg.Connection, hour: datetime, dimensions: Sequence[str]
) -> list[Difference]:
    stored = await _read(connection, "hour_rows", hour)
    counted = await _count_hour(connection, hour, dimensions)
    folded = tallies.summed((_folded(key, stored), tally) for key, tally in counted.items())
    expected = {
        key: (tally.events, tally.users.added_to(None)[1] or 0, tally.sessions.added_to(None)[1] or 0)
        for key, tally in folded.items()
    }
    minutes_from = await connection.fetchval(_QUERIES["minutes_from"])
    kept = {key: row for key, row in stored.items() if key[0] != "minute" or key[1] >= minutes_from}
    # Dimensions that are no longer, or not yet, configured are not a difference.
    return _differences(
        {key: row for key, row in kept.items() if key[4] in ("", *dimensions) or key[4:] == BOTS}, expected
    )


async def _compare_day(connection: asyncpg.Connection, day: datetime) -> list[Difference]:
    stored = await _read(connection, "day_rows", day)
    expected: dict[Key, list[Stored]] = {}
    async for group in _sums_of_parts(connection, "day", day):
        for key, one in group.items():
            expected.setdefault(_folded(key, stored), []).append(one)
    return _differences(stored, {key: _summed(parts)[:3] for key, parts in expected.items()})


def _folded(key: Key, stored: Mapping[Key, object]) -> Key:
    """The row that counts this key's events: its own, or if there is none, that of others."""
    granularity, bucket, kind, name, dimension, value = key
    if not any((granularity, bucket, any_kind, name, "", "") in stored for any_kind in EVENT_TYPES):
        other = (granularity, bucket, kind, OTHER_NAME, "", "")
        name = OTHER_NAME if other in stored else name
    named = granularity, bucket, kind, name, dimension, value
    if (dimension, value) not in (TOTAL, BOTS) and named not in stored and (*named[:5], OTHER_VALUE) in stored:
        return (*named[:5], OTHER_VALUE)
    return named


async def _read(connection: asyncpg.Connection, query: str, bucket: datetime) -> dict[Key, tuple[int, int, int]]:
    rows: dict[Key, tuple[int, int, int]] = {}
    for granularity, time_bucket, kind, name, dimensions, *counts in await connection.fetch(_QUERIES[query], bucket):
        key = granularity, time_bucket, kind, name, *buckets.dimension_and_value(dimensions)
        rows[key] = (counts[0], counts[1], counts[2])
    return rows


def _differences(
    stored: Mapping[Key, tuple[int, int, int]], expected: Mapping[Key, tuple[int, int, int]]
) -> list[Difference]:
    return [
        Difference(key, stored.get(key), expected.get(key))
        for key in sorted(stored.keys() | expected.keys())
        if stored.get(key) != expected.get(key)
    ]
