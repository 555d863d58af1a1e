"""Events counted by time bucket, type, name and dimension, before they are added to what is stored. Pure.

A key is (granularity, time_bucket, event_type, event_name, dimension, value); a total's dimension and value are "".
Events of bots are in no total and no dimension; they are all under BOTS.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar

from ingest.rollup import sketches
from ingest.rollup.alike import Alike
from ingest.rollup.sketches import Sketch
from ingest.rollup.who import NOBODY, Who

T = TypeVar("T")

OTHER_NAME: Final = ""
"""Stands for the names that a bucket has no room for: no event's name is empty."""
OTHER_VALUE: Final = "\0"
"""The same for values: no Postgres text has a NUL. buckets.py decides how it is stored."""
TOTAL: Final = ("", "")
BOTS: Final = ("device_type", "bot")
"""The dimension and value of bots' events, whether or not device_type is a configured dimension."""
_FEW: Final = 16
"""Up to this many values are added to a stored sketch one by one; more go through a sketch of their own, made once
for minute, hour and day."""
_MANY: Final = 10_000
"""More values than this are kept as a sketch, so that memory does not grow with a bucket's events."""

Key = tuple[str, datetime, str, str, str, str]


class Distinct:
    """Distinct users or sessions: their ids or, once there are many, a sketch. Immutable."""

    __slots__ = ("_made", "_sketch", "_values")

    def __init__(self, values: set[str], sketch: Sketch | None = None) -> None:
        self._values = values
        self._sketch = sketch
        # The sketch of both, once it has been needed.
        self._made: Sketch | None = None

    def plus(self, other: Distinct) -> Distinct:
        """The union of both."""
        values = self._values | other._values
        kept = [one for one in (self._sketch, other._sketch) if one is not None]
        if len(values) > _MANY:
            kept.append(sketches.new(values))
            values = set()
        return Distinct(values, sketches.merged(kept) if kept else None)

    def added_to(self, stored: bytes | None) -> tuple[bytes | None, int | None]:
        """The stored sketch with these added (None if empty), and its count (None if unchanged)."""
        if self._sketch is None and len(self._values) <= _FEW:
            if not self._values:
                return stored, None if stored is not None else 0
            sketch = sketches.new() if stored is None else sketches.load(stored)
            for value in self._values:
                sketch.update(value)
            return sketches.dump(sketch), sketches.count(sketch)
        if self._made is None:
            parts = (
                [sketches.new(self._values)] if self._sketch is None else [self._sketch, sketches.new(self._values)]
            )
            self._made = parts[0] if len(parts) == 1 else sketches.merged(parts)
        if stored is None:
            return sketches.dump(self._made), sketches.count(self._made)
        both, number = sketches.merged_and_counted([sketches.load(stored), self._made])
        return sketches.dump(both), number


class Tally(NamedTuple):
    """What events add to one bucket."""

    events: int
    users: Distinct
    sessions: Distinct

    def plus(self, other: Tally) -> Tally:
        return Tally(self.events + other.events, self.users.plus(other.users), self.sessions.plus(other.sessions))


NO_TALLY: Final = Tally(0, Distinct(set()), Distinct(set()))
Tallies = dict[Key, Tally]
Name = tuple[str, datetime, str]
"""(granularity, time_bucket, event_name)."""
Value = tuple[str, datetime, str, str, str]
"""(granularity, time_bucket, event_type, event_name, dimension)."""
NO_VALUES: Final[Mapping[Value, Collection[str]]] = {}


class Group(NamedTuple):
    """Events of one minute, type and name, by column as in `Alike`."""

    minute: datetime
    kind: str
    name: str
    of_bots: bool
    events: Sequence[int]
    times: Sequence[int]
    users: Sequence[str | None]
    browsers: Sequence[str | None]
    sessions: Sequence[str | None]
    values: Mapping[str, Sequence[str | None]]
    """By dimension; without those that none of the events has a value of."""


def grouped(alike: Alike, dimensions: Sequence[str]) -> list[Group]:
    """The events by minute, type, name, and whether they are of bots."""
    places: defaultdict[tuple[datetime, str, str, bool], list[int]] = defaultdict(list)
    for place, key in enumerate(zip(alike.minutes, alike.kinds, alike.names, alike.of_bots, strict=True)):
        places[key].append(place)
    groups = []
    for key, some in places.items():
        # Of one place it would be the value, instead of a tuple.
        chosen = itemgetter(*some) if len(some) > 1 else partial(_only, some[0])
        columns = (alike.events, alike.first, alike.users, alike.browsers, alike.sessions)
        values = {name: chosen(column) for name, column in zip(dimensions, alike.values, strict=True)}
        known = {name: column for name, column in values.items() if column.count(None) < len(column)}
        groups.append(Group(*key, *map(chosen, columns), known))  # type: ignore[call-arg]
    return groups


def _only(place: int, column: Sequence[T]) -> tuple[T]:
    return (column[place],)


def by_name(groups: Iterable[Group]) -> dict[Name, int]:
    """The events of each name in minutes and hours."""
    found: dict[Name, int] = {}
    for group in groups:
        for granularity in ("minute", "hour"):
            key = granularity, BEGINNINGS[granularity](group.minute), group.name
            found[key] = found.get(key, 0) + sum(group.events)
    return found


def crowds(groups: Iterable[Group], most: int, minutes_from: datetime) -> dict[Value, Counter[str]]:
    """The events by value, of minutes and hours with more values of a dimension than `most`."""
    of_hour: defaultdict[Value, list[Group]] = defaultdict(list)
    for group in groups:
        hour = BEGINNINGS["hour"](group.minute)
        for dimension in group.values if not group.of_bots else ():
            of_hour["hour", hour, group.kind, group.name, dimension].append(group)
    found: dict[Value, Counter[str]] = {}
    for key, some in of_hour.items():
        dimension = key[4]
        if len(set().union(*(group.values[dimension] for group in some))) <= most:
            continue
        total: Counter[str] = Counter()
        for group in some:
            counted = _counted(group.values[dimension], group.events)
            total.update(counted)
            if len(counted) > most and group.minute >= minutes_from:
                found["minute", group.minute, *key[2:]] = counted
        found[key] = total
    return found


def count(groups: Iterable[Group], who: Who = NOBODY, kept: Mapping[Value, Collection[str]] = NO_VALUES) -> Tallies:
    """Events counted by minute, in total and by each dimension. `kept`: the values of minutes that are counted on
    their own, where not all are; the rest is counted as others."""
    tallies: Tallies = {}
    for group in groups:
        key = "minute", group.minute, group.kind, group.name
        users = who.counted_as(group.users, group.browsers)
        sessions = who.sessions(group.kind, group.users, group.browsers, group.sessions, group.times)
        tally = Tally(sum(group.events), Distinct(_known(set(users))), Distinct(_known(set(sessions))))
        if group.of_bots:
            tallies[*key, *BOTS] = tally
            # A name takes up room by its total.
            tallies.setdefault((*key, *TOTAL), NO_TALLY)
            continue
        tallies[*key, *TOTAL] = tally
        for dimension, column in group.values.items():
            values = set(column)
            if len(values) == 1:
                tallies[*key, dimension, *values] = tally  # type: ignore[index]
                continue
            chosen = kept.get((*key, dimension))
            if chosen is not None:
                counted_as = {value: value if value in chosen or value is None else OTHER_VALUE for value in values}
                column = list(map(counted_as.__getitem__, column))
            users_of, sessions_of = _by_value(column, users), _by_value(column, sessions)
            for value, events in _counted(column, group.events).items():
                tallies[*key, dimension, value] = Tally(
                    events, Distinct(users_of[value]), Distinct(sessions_of[value])
                )
    return tallies


def _counted(column: Iterable[str | None], events: Iterable[int]) -> Counter[str]:
    """Value -> events."""
    counts: Counter[Any] = Counter()
    for value, number in zip(column, events, strict=True):
        counts[value] += number
    counts.pop(None, None)
    return counts


def _by_value(column: Sequence[str | None], ids: Sequence[str | None]) -> dict[str | None, set[str]]:
    """Value of a dimension -> the ids seen with it."""
    found: defaultdict[str | None, set[str | None]] = defaultdict(set)
    for value, identity in zip(column, ids, strict=True):
        found[value].add(identity)
    return {value: _known(known) for value, known in found.items()}


def _known(ids: set[str | None]) -> set[str]:
    ids.discard(None)
    return ids  # type: ignore[return-value]


def summed(parts: Iterable[tuple[Key, Tally]]) -> Tallies:
    """Tallies summed by key."""
    total: Tallies = {}
    for key, tally in parts:
        known = total.get(key)
        total[key] = tally if known is None else known.plus(tally)
    return total


def coarser(tallies: Mapping[Key, Tally], granularity: str) -> Tallies:
    """The same tallies in longer buckets."""
    begin = BEGINNINGS[granularity]
    return summed(((granularity, begin(bucket), *rest), tally) for (_, bucket, *rest), tally in tallies.items())  # type: ignore[misc]


def _week(moment: datetime) -> datetime:
    return _day(moment) - timedelta(days=moment.weekday())


def _day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


BEGINNINGS: Final[Mapping[str, Callable[[datetime], datetime]]] = {
    "minute": lambda moment: moment.replace(second=0, microsecond=0),
    "hour": lambda moment: moment.replace(minute=0, second=0, microsecond=0),
    "day": _day,
    "week": _week,
    "month": lambda moment: _day(moment).replace(day=1),
}
"""Granularity -> function from a moment in UTC to the start of its bucket."""


def following(granularity: str, start: datetime) -> datetime:
    """The start of the bucket after the one that begins at `start`."""
    if granularity == "month":
        return BEGINNINGS["month"](start + timedelta(days=31))
    return start + {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}.get(
        granularity, timedelta(weeks=1)
    )
