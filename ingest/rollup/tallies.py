"""Events counted by time bucket, type, name and dimension, before they are added to what is stored. Pure.

A key is (granularity, time_bucket, event_type, event_name, dimension, value); a total's dimension and value are "".
Events of bots are in no total and no dimension; they are all under BOTS.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from ingest.rollup import sketches
from ingest.rollup.sketches import Sketch
from ingest.rollup.who import NOBODY, Row, Who

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


def count(rows: Iterable[Row], dimensions: Sequence[str], who: Who = NOBODY) -> Tallies:
    """Rows counted by minute, in total and by each dimension. A row ends with a value of each; any may be None."""
    # (minute, type, name, whether by bots) -> rows.
    groups: dict[tuple[datetime, str, str, bool], list[Row]] = {}
    for row in rows:
        group = groups.get(key := (row[0], row[1], row[2], row[8]))
        if group is None:
            groups[key] = [row]
        else:
            group.append(row)
    tallies: Tallies = {}
    for (minute, kind, name, of_bots), group in groups.items():
        _, _, _, user_ids, browsers, session_ids, moments, _, _, *columns = zip(*group, strict=True)
        users = who.counted_as(user_ids, browsers)
        sessions = who.sessions(kind, user_ids, browsers, session_ids, moments)
        total = "minute", minute, kind, name, *TOTAL
        tally = Tally(len(group), Distinct(_known(set(users))), Distinct(_known(set(sessions))))
        if of_bots:
            tallies["minute", minute, kind, name, *BOTS] = tally
            # A name takes up room by its total.
            tallies.setdefault(total, NO_TALLY)
            continue
        tallies[total] = tally
        for dimension, column in zip(dimensions, columns, strict=True):
            counts = Counter(column)
            counts.pop(None, None)
            if not counts:
                continue
            users_of = _by_value(column, users)
            sessions_of = _by_value(column, sessions)
            for value, times in counts.items():
                tallies["minute", minute, kind, name, dimension, value] = Tally(
                    times, Distinct(users_of[value]), Distinct(sessions_of[value])
                )
    return tallies


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
