"""The buckets of analytics.event_aggregations: tallies are added to what is stored, as far as there is room.

A bucket has room for a limited number of names, and of values per dimension. The first to arrive, and among those
that arrive together the most frequent, get rows of their own; the rest is counted as "others", which cannot be
mistaken for a name or a value. Adding never evicts a row, so each row is the exact count of its name or value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from heapq import nsmallest
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg
import orjson

from ingest.postgres.queries import load_queries
from ingest.rollup import sketches, tallies
from ingest.rollup.tallies import (
    BEGINNINGS,
    BOTS,
    OTHER_NAME,
    OTHER_VALUE,
    TOTAL,
    Group,
    Key,
    Name,
    Tallies,
    Tally,
    Value,
)

K = TypeVar("K", bound=tuple[Any, ...])
G = TypeVar("G")

OTHER: Final = {"other": True}
"""In `dimensions`, stands for the values that had no room: no real value is an object."""
_QUERIES = load_queries("rollup")


class Room(NamedTuple):
    """How many names a time bucket may have, and how many values each dimension of a name."""

    names: int
    values: int


class Stored(NamedTuple):
    """What a bucket holds: events, users, sessions, and the sketches of the two."""

    events: int
    users: int
    sessions: int
    users_sketch: bytes | None
    sessions_sketch: bytes | None


NOTHING = Stored(0, 0, 0, None, None)


async def add(connection: asyncpg.Connection, added: Tallies, room: Room) -> Tallies:
    """Add tallies of minutes and hours, then of their days. Returns what was added to the days.

    Must be called in the transaction that marks their flushes as rolled up, in a `turn`.
    """
    placed = await add_only(connection, added, room)
    # From the hours as placed: a day is the sum of its hours, including their others.
    hours = {key: tally for key, tally in placed.items() if key[0] == "hour"}
    return await add_only(connection, tallies.coarser(hours, "day"), room)


async def add_only(connection: asyncpg.Connection, added: Tallies, room: Room) -> Tallies:
    """Add tallies to their own buckets only. Returns them under the keys they were stored as."""
    if not added:
        return {}
    stored = await _stored(connection, added)
    placed = await _placed(connection, added, stored, room)
    await put(connection, ((key, _sum(stored.get(key, NOTHING), tally)) for key, tally in placed.items()))
    return placed


def _sum(stored: Stored, tally: Tally) -> Stored:
    users_sketch, users = tally.users.added_to(stored.users_sketch)
    sessions_sketch, sessions = tally.sessions.added_to(stored.sessions_sketch)
    events = stored.events + tally.events
    return Stored(
        events,
        _bounded(users, stored.users, users_sketch, stored.events, events),
        _bounded(sessions, stored.sessions, sessions_sketch, stored.events, events),
        users_sketch,
        sessions_sketch,
    )


def _bounded(estimate: int | None, before: int, sketch: bytes | None, events_before: int, events: int) -> int:
    """The estimate, at most the number of events. None: unchanged."""
    if estimate is None:
        # An estimate that was capped at the number of events may be higher now.
        was_cut = sketch is not None and before == events_before
        estimate = sketches.count(sketches.load(sketch)) if sketch is not None and was_cut else before
    return min(estimate, events)


async def _stored(connection: asyncpg.Connection, keys: Iterable[Key]) -> dict[Key, Stored]:
    wanted = list(keys)
    if not wanted:
        return {}
    rows = await connection.fetch(_QUERIES["stored"], *_columns(wanted))
    return {wanted[place - 1]: Stored(*held) for place, *held in rows}


async def put(connection: asyncpg.Connection, made: Iterable[tuple[Key, Stored]]) -> None:
    """Store buckets, replacing what they held."""
    rows = list(made)
    held = [list(column) for column in zip(*(one for _, one in rows), strict=True)]
    await connection.execute(_QUERIES["put"], *_columns([key for key, _ in rows]), *held)


def _columns(keys: list[Key]) -> tuple[list[object], ...]:
    return (
        [key[0] for key in keys],
        [key[1] for key in keys],
        [key[2] for key in keys],
        [key[3] for key in keys],
        [dimensions(key) for key in keys],
    )


def dimensions(key: Key) -> str:
    """The column `dimensions` of a key, as JSON."""
    return orjson.dumps({key[4]: OTHER if key[5] == OTHER_VALUE else key[5]}).decode() if key[4] else "{}"


def dimension_and_value(dimensions: str) -> tuple[str, str]:
    """The last two parts of the key with these `dimensions`."""
    dimension, value = next(iter(orjson.loads(dimensions).items()), TOTAL)
    return dimension, value if isinstance(value, str) else OTHER_VALUE


# Room.


async def kept(
    connection: asyncpg.Connection, groups: Sequence[Group], room: Room, minutes_from: datetime
) -> dict[Value, set[str]]:
    """Where minutes or their hours have more values of a dimension than there is room for, those of each minute that
    may get, or have, a row of their own in either. To count all others one by one would take most of the time where
    each page is visited once."""
    crowds = tallies.crowds(groups, room.values, minutes_from)
    if not crowds:
        return {}
    # The values of a name without room are not added to its own rows. That is rare, and left to `add`.
    crowded = await _names_without_room(connection, tallies.by_name(groups), room)
    chosen = await _likely(connection, crowds, room)
    found: dict[Value, set[str]] = {}
    for group in groups:
        hour = BEGINNINGS["hour"](group.minute)
        if {("minute", group.minute, group.name), ("hour", hour, group.name)} & crowded:
            continue
        for dimension in group.values:
            of_minute = "minute", group.minute, group.kind, group.name, dimension
            of_hour = "hour", hour, group.kind, group.name, dimension
            if of_hour in chosen and (of_minute in chosen or group.minute < minutes_from):
                found[of_minute] = chosen[of_hour] | chosen.get(of_minute, set())
    return found


async def _likely(
    connection: asyncpg.Connection, crowds: Mapping[Value, Mapping[str, int]], room: Room
) -> dict[Value, set[str]]:
    """The values that are stored, and those most frequent that there is room for besides."""
    wanted = list(crowds)
    rows = await connection.fetch(_QUERIES["stored_values"], *map(list, zip(*wanted, strict=True)))
    likely: dict[Value, set[str]] = {key: set() for key in wanted}
    for place, value in rows:
        likely[wanted[place - 1]].add(value)
    for key, events in crowds.items():
        new = ((-number, value) for value, number in events.items() if value not in likely[key])
        likely[key].update(value for _, value in nsmallest(room.values - len(likely[key]), new))
    return likely


async def _placed(connection: asyncpg.Connection, added: Tallies, stored: dict[Key, Stored], room: Room) -> Tallies:
    """The tallies under the keys that have room, the rest summed as others, whose rows are added to `stored`."""
    new = [key for key in added if key not in stored]
    if not new:
        return added
    crowded = await _names_without_room(connection, _by_name(added, new), room)
    named = added
    if crowded:
        named = tallies.summed(
            ((*key[:3], OTHER_NAME, *key[4:]) if (key[0], key[1], key[3]) in crowded else key, tally)
            for key, tally in added.items()
        )
        stored |= await _stored(connection, named.keys() - added.keys())
    full = await _values_without_room(connection, named, stored, room)
    if not full:
        return named
    placed = tallies.summed(((*key[:5], OTHER_VALUE) if key in full else key, tally) for key, tally in named.items())
    stored |= await _stored(connection, placed.keys() - named.keys())
    return placed


async def _names_without_room(connection: asyncpg.Connection, named: Mapping[Name, int], room: Room) -> set[Name]:
    """The names to be counted as others. `named`: events by name."""
    events = dict(named)
    if not events:
        return set()
    wanted = list(events)
    known = await connection.fetch(_QUERIES["known_names"], *map(list, zip(*wanted, strict=True)))
    for place in known:
        del events[wanted[place[0] - 1]]
    times = list({(granularity, bucket) for granularity, bucket, _ in events})
    if not times:
        return set()
    rows = await connection.fetch(_QUERIES["names"], *map(list, zip(*times, strict=True)))
    left = {times[place - 1]: room.names - names for place, names in rows}
    return _beyond(events, {name: name[:2] for name in events}, left, room.names)


def _by_name(added: Tallies, keys: Iterable[Key]) -> dict[Name, int]:
    events: dict[Name, int] = {}
    for key in keys:
        if key[4:] in (TOTAL, BOTS) and key[3] != OTHER_NAME:
            name = key[0], key[1], key[3]
            events[name] = events.get(name, 0) + added[key].events
    return events


async def _values_without_room(
    connection: asyncpg.Connection, named: Tallies, stored: Mapping[Key, Stored], room: Room
) -> set[Key]:
    events = {
        key: tally.events
        for key, tally in named.items()
        if key[4:] not in (TOTAL, BOTS) and key[5] != OTHER_VALUE and key not in stored
    }
    if not events:
        return set()
    wanted = list({key[:4] for key in events})
    rows = await connection.fetch(_QUERIES["values"], *map(list, zip(*wanted, strict=True)))
    left = {(*wanted[place - 1], dimension): room.values - values for place, dimension, values in rows}
    return _beyond(events, {key: key[:5] for key in events}, left, room.values)


def _beyond(events: Mapping[K, int], group: Mapping[K, G], left: Mapping[G, int], otherwise: int) -> set[K]:
    """Those that their group has no room for when the most frequent come first. `left`: the remaining room of groups
    that already hold something; `otherwise`: that of the rest."""
    groups: defaultdict[G, list[K]] = defaultdict(list)
    for one in events:
        groups[group[one]].append(one)
    without: set[K] = set()
    for name, members in groups.items():
        places = max(0, left.get(name, otherwise))
        if len(members) > places:
            if places:
                # Deterministic, also among equals.
                members.sort(key=lambda one: (-events[one], one))
            without.update(members[places:])
    return without
