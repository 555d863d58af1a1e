"""Visits of people whose client sends no session_id. Pure.

A visit is a person's activity without a gap of more than 30 minutes. It keeps its id when late events extend it at
either end; where they join two visits, the earlier one's id is kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from os import urandom
from typing import Final, NamedTuple

SILENCE: Final = timedelta(minutes=30)
"""A longer gap ends a visit."""
_HOUR: Final = timedelta(hours=1)
_started_at = attrgetter("started_at")


class Visit(NamedTuple):
    """A row of analytics.visits."""

    person: str
    started_at: datetime
    ended_at: datetime
    session_id: str


class Change(NamedTuple):
    """A person's visits after more events, and the earlier rows to delete."""

    visits: list[Visit]
    """In order, including unchanged ones."""
    gone: list[Visit]
    absorbed: list[Visit]
    """Those whose id is no longer counted."""


def joined(person: str, known: Sequence[Visit], times: Sequence[datetime]) -> Change:
    """The person's visits with events at these times added. `known` may include visits of a browser that turned out
    to be theirs."""
    if not known and len(times) == 1:
        # The case for most unknown people, and by far the fastest.
        return Change([Visit(person, times[0], times[0], new_id())], [], [])
    parts: list[tuple[datetime, datetime, Visit | None]] = [(at, at, None) for at in times]
    parts += [(visit.started_at, visit.ended_at, visit) for visit in known]
    parts.sort(key=lambda part: part[0])
    change = Change([], [], [])
    island: list[Visit] = []
    start = end = None
    for low, high, visit in parts:
        if start is None or end is None or low - end > SILENCE:
            if start is not None and end is not None:
                _close(change, person, start, end, island)
            start, end, island = low, high, []
        end = max(end, high)
        if visit is not None:
            island.append(visit)
    if start is not None and end is not None:
        _close(change, person, start, end, island)
    return change


def _close(change: Change, person: str, start: datetime, end: datetime, island: Sequence[Visit]) -> None:
    session_id = island[0].session_id if island else new_id()
    change.visits.append(Visit(person, start, end, session_id))
    change.gone.extend(one for one in island if (one.person, one.started_at) != (person, start))
    change.absorbed.extend(one for one in island if one.session_id != session_id)


def new_id() -> str:
    """A unique id for a new visit: a random UUID, made in a third of the time of `uuid4`."""
    digits = urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


def at(visits: Sequence[Visit], moment: datetime) -> str | None:
    """The session_id of the visit that contains the moment. `visits`: one person's, in order."""
    place = bisect_right(visits, moment, key=_started_at) - 1
    return visits[place].session_id if place >= 0 and moment <= visits[place].ended_at else None


def hours_of(times: Sequence[datetime]) -> tuple[datetime, datetime]:
    """The starts of the hours of the earliest and the latest of these times."""
    first = last = times[0]
    if len(times) > 1:
        first, last = min(times), max(times)
    low = first.replace(minute=0, second=0, microsecond=0)
    return low, low if last - low < _HOUR else last.replace(minute=0, second=0, microsecond=0)


def hours(visits: Iterable[Visit]) -> set[datetime]:
    """The hours that these visits overlap."""
    found: set[datetime] = set()
    for visit in visits:
        hour = visit.started_at.replace(minute=0, second=0, microsecond=0)
        while hour <= visit.ended_at:
            found.add(hour)
            hour += _HOUR
    return found
