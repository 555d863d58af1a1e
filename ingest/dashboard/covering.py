"""How a range is read: stored buckets for most of it, events for what these do not have. Pure.

Aggregates have whole hours of UTC, and minutes for a week. The rest of a bucket that begins or ends within an hour,
as where clocks differ from UTC by half an hour, is read from events: at most two hours of each. Where events are no
longer kept either, the bucket begins or ends with the hour.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from ingest.features.stats import times
from ingest.features.stats.query import check_events_range
from ingest.features.stats.times import Part, Stale


class Kept(NamedTuple):
    """From when on minutes and events are there."""

    minutes_from: datetime
    events_from: datetime


class Edge(NamedTuple):
    """A time to be read from events, for the bucket at `place`."""

    start: datetime
    end: datetime
    place: int


class Cover(NamedTuple):
    """The stored buckets and the events that make up some buckets.

    `bounds` are the starts of these and the end of the last; `shifted`: some are earlier than what was asked for.
    """

    bounds: list[datetime]
    parts: list[Part]
    edges: list[Edge]
    shifted: bool

    @property
    def starts(self) -> list[datetime]:
        return self.bounds[:-1]


def cover(starts: Sequence[datetime], end: datetime, kept: Kept, stale: Stale, *, from_events: bool) -> Cover:
    """The cover of the buckets that start at `starts`, the last of which ends at `end`.

    `from_events`: whether events may be read. Raises Refused if they would have to be for too long a time.
    """
    asked = [*starts, end]
    bounds = [_kept_bound(bound, kept, from_events) for bound in asked]
    parts: list[Part] = []
    edges: list[Edge] = []
    for place, (low, high) in enumerate(pairwise(bounds)):
        first = times.up(low, "hour") if _splits(low, kept) else low
        last = times.begin(high, "hour") if _splits(high, kept) else high
        if first > last:
            edges.append(Edge(low, high, place))
            continue
        edges += [Edge(*edge, place) for edge in ((low, first), (last, high)) if edge[0] < edge[1]]
        parts += times.cover(first, last, stale) or []
    if edges:
        length = sum((edge.end - edge.start for edge in edges), timedelta())
        check_events_range(end - length, end, "hours that are not whole hours of UTC are answered from events")
    return Cover(bounds, times.joined(parts), edges, bounds != asked)


def _splits(bound: datetime, kept: Kept) -> bool:
    """Whether stored buckets can neither begin nor end here."""
    hour = times.begin(bound, "hour")
    return bound != hour and (hour < kept.minutes_from or bound != times.begin(bound, "minute"))


def _kept_bound(bound: datetime, kept: Kept, from_events: bool) -> datetime:
    hour = times.begin(bound, "hour")
    if not _splits(bound, kept):
        return bound
    return bound if from_events and hour >= kept.events_from else hour


def gaps(parts: Sequence[Part], found: Collection[tuple[str, datetime]]) -> list[Part]:
    """What is left of some parts without the hours and days that were found, (granularity, start)."""
    left: list[Part] = []
    for part in parts:
        if part.granularity not in ("hour", "day"):
            left.append(part)
            continue
        length = timedelta(hours=1) if part.granularity == "hour" else timedelta(days=1)
        start = part.start
        while start < part.end:
            if (part.granularity, start) not in found:
                left.append(Part(part.granularity, start, start + length))
            start += length
    return times.joined(left)
