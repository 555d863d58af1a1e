"""Time buckets in a time zone, and the stored buckets that cover a range. Pure.

Times are aware and in UTC. A day lasts from one local midnight to the next: 23, 24 or 25 hours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import islice
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

GRANULARITIES: Final = ("minute", "hour", "day", "week", "month")
_LENGTHS: Final = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
    "month": timedelta(days=30),
}
_DEFAULTS: Final = (
    (timedelta(hours=3), "minute"),
    (timedelta(days=3), "hour"),
    (timedelta(days=93), "day"),
    (timedelta(days=730), "week"),
)
# Neither zones with leap seconds (right/) nor the server's own (localtime).
_ZONE: Final = re.compile(r"(?!posix|right|local)[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")


def zone_of(name: str) -> tzinfo:
    """The IANA time zone with this name. Raises ValueError if there is none."""
    if name == "UTC":
        return UTC
    if len(name) > 64 or not _ZONE.fullmatch(name):
        raise ValueError
    try:
        return ZoneInfo(name)
    except (LookupError, OSError):  # Unknown, or a folder such as "Europe".
        raise ValueError from None


def midnight(day: date, zone: tzinfo) -> datetime:
    """When the day begins: at one o'clock if clocks are put forward at midnight."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def begin(moment: datetime, granularity: str, zone: tzinfo = UTC) -> datetime:
    """The start of the bucket that contains the moment."""
    local = moment.astimezone(zone)
    if granularity in ("minute", "hour"):
        minutes = local.minute if granularity == "hour" else 0
        return moment - timedelta(minutes=minutes, seconds=local.second, microseconds=local.microsecond)
    day = local.date()
    if granularity == "week":
        day -= timedelta(days=day.weekday())
    elif granularity == "month":
        day = day.replace(day=1)
    return midnight(day, zone)


def after(start: datetime, granularity: str, zone: tzinfo = UTC) -> datetime:
    """The start of the next bucket."""
    if granularity == "minute":
        return start + timedelta(minutes=1)
    local = start.astimezone(zone)
    if granularity == "hour":
        # Not always 60: after a clock change of half an hour, the next whole hour is nearer.
        return start + timedelta(minutes=60 - local.minute)
    day = local.date()
    if granularity == "month":
        return midnight((day.replace(day=1) + timedelta(days=32)).replace(day=1), zone)
    return midnight(day + _LENGTHS[granularity], zone)


def up(moment: datetime, granularity: str, zone: tzinfo = UTC) -> datetime:
    """The first start of a bucket that is not before the moment."""
    start = begin(moment, granularity, zone)
    return start if start == moment else after(start, granularity, zone)


def starts(start: datetime, end: datetime, granularity: str, zone: tzinfo = UTC) -> Iterator[datetime]:
    """The starts of the buckets from `start`, itself one, to before `end`."""
    while start < end:
        yield start
        start = after(start, granularity, zone)


def page_of(
    start: datetime, end: datetime, granularity: str, zone: tzinfo, most: int
) -> tuple[list[datetime], datetime]:
    """The starts of the first buckets, at most `most`, and the end of the last of these."""
    found = list(islice(starts(start, end, granularity, zone), most))
    return found, after(found[-1], granularity, zone) if found else start


def bucket_count(start: datetime, end: datetime, granularity: str) -> int:
    """About how many buckets a range has, in constant time."""
    return -((start - end) // _LENGTHS[granularity])


def default_granularity(length: timedelta) -> str:
    """A granularity that divides a range of this length into some dozens of points."""
    return next((granularity for longest, granularity in _DEFAULTS if length <= longest), "month")


# Covering a range.


class Part(NamedTuple):
    """The stored buckets of one granularity that begin in [start, end)."""

    granularity: str
    start: datetime
    end: datetime


Stale = Collection[tuple[str, datetime]]
"""(granularity, bucket) of stored weeks and months waiting to be rebuilt: their days are read instead."""


def cover(start: datetime, end: datetime, stale: Stale) -> list[Part] | None:
    """The fewest stored buckets that make up [start, end); None if it does not begin and end at whole minutes."""
    if start != begin(start, "minute") or end != begin(end, "minute"):
        return None
    parts: list[Part] = []
    _cover(parts, start, end, GRANULARITIES[::-1], stale)
    return parts


def _cover(parts: list[Part], start: datetime, end: datetime, granularities: Sequence[str], stale: Stale) -> None:
    if start >= end:
        return
    granularity, *finer = granularities
    low, high = up(start, granularity), begin(end, granularity)
    if low >= high:
        _cover(parts, start, end, finer, stale)
        return
    _cover(parts, start, low, finer, stale)
    if granularity in ("week", "month"):
        for one in starts(low, high, granularity):
            if (granularity, one) in stale:
                _cover(parts, one, after(one, granularity), finer, stale)
            else:
                parts.append(Part(granularity, one, after(one, granularity)))
    else:
        parts.append(Part(granularity, low, high))
    _cover(parts, high, end, finer, stale)


def cover_each(found: Sequence[datetime], end: datetime, granularity: str, stale: Stale) -> list[Part] | None:
    """The stored buckets that make up these buckets, none of them across two. None as in `cover`."""
    if len(found) > 1 and granularity in ("minute", "hour") and all(map(_is_whole(granularity), [*found, end])):
        return [Part(granularity, found[0], end)]
    parts: list[Part] = []
    for start, stop in zip(found, [*found[1:], end], strict=True):
        some = cover(start, stop, stale)
        if some is None:
            return None
        parts += some
    return joined(parts)


def _is_whole(granularity: str) -> Callable[[datetime], bool]:
    return lambda moment: moment == begin(moment, granularity)


def joined(parts: Iterable[Part]) -> list[Part]:
    """Adjacent parts of the same granularity, joined."""
    found: list[Part] = []
    for part in parts:
        if found and (found[-1].granularity, found[-1].end) == (part.granularity, part.start):
            found[-1] = found[-1]._replace(end=part.end)
        else:
            found.append(part)
    return found
