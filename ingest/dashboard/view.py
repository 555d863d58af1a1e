"""What a page shows: a range, its interval, and filters. All of it is in the URL's query. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any, Final
from urllib.parse import urlencode

from ingest.features.stats import parsing, times
from ingest.features.stats.parameters import FILTER_VALUE, PARAMETERS, Parameter, one_of
from ingest.features.stats.query import EARLIEST, OTHER, OTHER_EVENT, Other, Query, Refused, Value

PERIODS: Final[Mapping[str, int]] = {"today": 1, "7d": 7, "30d": 30, "90d": 90}
"""The periods that end now, and their number of local days, including today."""
DEFAULT_PERIOD: Final = "30d"
CUSTOM: Final = "custom"
MAX_DAYS: Final = 400
_INTERVALS: Final[Mapping[str, tuple[int, int, int]]] = {
    "hour": (1, 16, 2),
    "day": (2, MAX_DAYS, 92),
    "week": (8, MAX_DAYS, MAX_DAYS),
    "month": (32, MAX_DAYS, 0),
}
"""The fewest and the most days of a range that an interval divides into some points, and no more than about 400; and
up to how many days it is the default."""


def _day(text: str) -> date:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError
    return date.fromisoformat(text)


_DAY: Final = Parameter(_day, "a date such as 2026-01-31")
_READERS: Final[Mapping[str, Parameter]] = {
    "period": one_of((*PERIODS, CUSTOM)),
    "from": _DAY,
    "to": _DAY,
    "interval": one_of(tuple(_INTERVALS)),
    "timezone": PARAMETERS["timezone"],
    "compare": one_of(("yes", "no")),
    "event": PARAMETERS["event"],
}
_REPEATABLE: Final = ("none", "other")


@dataclass(frozen=True, kw_only=True)
class View:
    """A range of whole local days, cut off at the end of the current minute; and what of it is shown.

    `start` and `end` are in UTC. `first` and `last` are its days, which only a custom range has in its URL; of one
    that ends today or later, `end` is the end of the current minute, too.
    """

    period: str
    first: date
    last: date
    start: datetime
    end: datetime
    zone: tzinfo
    zone_name: str
    interval: str
    filters: Mapping[str, Value] = field(default_factory=dict)
    """By dimension; None: events without a value; OTHER: those whose values aggregates had no room for."""
    event: str | None = None
    """A name, or OTHER_EVENT for those that aggregates had no room for."""
    compares: bool = True
    """Whether it is compared with the period before."""
    now: datetime = field(compare=False, repr=False)
    default_zone: str = field(default="UTC", compare=False, repr=False)
    """The zone of a URL that names none."""

    @classmethod
    def parse(
        cls, given: Iterable[tuple[str, str]], now: datetime, *, dimensions: Sequence[str], zone_name: str = "UTC"
    ) -> View:
        """The view of a URL's query. `dimensions`: all that may be filtered by; `zone_name`: the zone of one without.

        Raises Refused, with a sentence that says what is allowed.
        """
        texts, filters = _sorted_out(given, dimensions)
        values = {name: parsing.read(name, text, _READERS.get(name, FILTER_VALUE)) for name, text in texts.items()}
        name = texts.get("timezone", zone_name)
        zone = parsing.read("timezone", name, _READERS["timezone"])
        period = values.get("period", DEFAULT_PERIOD)
        first, last = _days(period, values.get("from"), values.get("to"), now.astimezone(zone).date())
        start, end = _range(first, last, zone, now)
        filters |= {dimension: values[dimension] for dimension in dimensions if dimension in values}
        event = OTHER_EVENT if "event" in filters else values.get("event")
        view = cls(
            period=period,
            first=first,
            last=last,
            start=start,
            end=end,
            zone=zone,
            zone_name=name,
            interval=_default_interval(_length(first, last)),
            filters={dimension: filters[dimension] for dimension in sorted(filters.keys() - {"event"})},
            event=event,
            compares=values.get("compare", "yes") == "yes",
            now=now.astimezone(UTC),
            default_zone=zone_name,
        )
        return view.with_interval(values["interval"]) if "interval" in values else view

    @property
    def days(self) -> int:
        """The number of local days, including the last, which may not be over."""
        return _length(self.first, self.last)

    @property
    def until(self) -> datetime:
        """Up to when events are counted: of a range that has not ended, those of senders whose clocks are ahead, too.
        Where buckets are not over, the longest can then be read."""
        return times.up(self.end, "day") if self.end > self.now else self.end

    @property
    def intervals(self) -> tuple[str, ...]:
        """The intervals that divide this range into a number of points that a chart can show."""
        return _intervals(self.days)

    @property
    def before(self) -> View:
        """The period before, for comparison: as many local days earlier, up to the same local time of day.

        It cannot be told by a URL, as it may end within a day.
        """
        back = timedelta(days=self.days)
        return replace(
            self,
            period=CUSTOM,
            first=self.first - back,
            last=self.last - back,
            start=_earlier(self.start, back, self.zone),
            end=_earlier(self.end, back, self.zone),
            compares=False,
        )

    # Other views.

    def with_period(self, period: str, first: date | None = None, last: date | None = None) -> View:
        """Another range; `first` and `last` for a custom one. The interval stays if it was chosen and still fits.
        Raises Refused."""
        first, last = _days(period, first, last, self.now.astimezone(self.zone).date())
        start, end = _range(first, last, self.zone, self.now)
        length = _length(first, last)
        interval = self.interval
        if interval == _default_interval(self.days) or interval not in _intervals(length):
            interval = _default_interval(length)
        return replace(self, period=period, first=first, last=last, start=start, end=end, interval=interval)

    def with_interval(self, interval: str) -> View:
        """Another interval. Raises Refused if it is not one of `intervals`."""
        if interval not in self.intervals:
            message = f"interval must be one of {', '.join(self.intervals)} for a range of {self.days} days"
            raise Refused("bad_parameter", message)
        return replace(self, interval=interval)

    def with_filter(self, dimension: str, value: Value) -> View:
        """Only events with this value, which is checked when the URL is opened; `event` for the name of events."""
        if dimension == "event":
            return replace(self, event=OTHER_EVENT if isinstance(value, Other) else value)
        filters = {**self.filters, dimension: value}
        return replace(self, filters={name: filters[name] for name in sorted(filters)})

    def without_filter(self, dimension: str) -> View:
        """The same whether or not it is filtered by this dimension, or by `event`."""
        if dimension == "event":
            return replace(self, event=None)
        return replace(self, filters={name: value for name, value in self.filters.items() if name != dimension})

    def with_comparison(self, compares: bool) -> View:
        """With or without the period before."""
        return replace(self, compares=compares)

    # As other things.

    def query_string(self, **changes: Any) -> str:
        """The URL's query, without "?": always the same for the same view, without what is the default.

        `changes`: other values of `filters`, `event`, `compares`, `period` (none of them custom) or `interval`.
        """
        view = self
        if "period" in changes:
            view = view.with_period(changes.pop("period"))
        if "interval" in changes:
            view = view.with_interval(changes.pop("interval"))
        return urlencode(replace(view, **changes)._parameters(), safe="/:")

    def _parameters(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if self.period != DEFAULT_PERIOD:
            found.append(("period", self.period))
        if self.period == CUSTOM:
            found += [("from", self.first.isoformat()), ("to", self.last.isoformat())]
        if self.interval != _default_interval(self.days):
            found.append(("interval", self.interval))
        if self.zone_name != self.default_zone:
            found.append(("timezone", self.zone_name))
        if not self.compares:
            found.append(("compare", "no"))
        if self.event:
            found.append(("event", self.event))
        filters = [*sorted(self.filters.items(), key=lambda pair: pair[0])]
        found += [(name, value) for name, value in filters if isinstance(value, str)]
        found += [("none", name) for name, value in filters if value is None]
        found += [("other", name) for name, value in filters if isinstance(value, Other)]
        return [*found, ("other", "event")] if self.event == OTHER_EVENT else found

    def as_query(self, **more: Any) -> Query:
        """The query for statistics. Bots count only where they are asked for, by a filter."""
        bots = "include" if self.filters.get("device_type") == "bot" else "exclude"
        given: dict[str, Any] = {
            "start": self.start,
            "end": self.until,
            "zone": self.zone,
            "granularity": self.interval,
            "event": self.event,
            "filters": self.filters,
            "bots": bots,
        }
        return Query(**(given | more))


def _sorted_out(
    given: Iterable[tuple[str, str]], dimensions: Sequence[str]
) -> tuple[dict[str, str], dict[str, Value]]:
    """Parameters by name, and the filters `none` and `other`, among which may be `event`. Each given once."""
    allowed = (*_READERS, *dimensions, *_REPEATABLE)
    texts: dict[str, str] = {}
    filters: dict[str, Value] = {}
    of = {"none": one_of(tuple(dimensions)), "other": one_of((*dimensions, "event"))}
    for name, text in given:
        parsing.check_text(name, text)
        if name not in allowed:
            raise parsing.unknown("parameter", name, allowed)
        filtered = parsing.read(name, text, of[name]) if name in _REPEATABLE else name
        if filtered in texts or filtered in filters:
            raise Refused("bad_parameter", f"{filtered} is given twice")
        if name in _REPEATABLE:
            filters[filtered] = OTHER if name == "other" else None
        else:
            texts[name] = text
    return texts, filters


def _days(period: str, first: date | None, last: date | None, today: date) -> tuple[date, date]:
    """The first and the last day of a period. Raises Refused."""
    if period != CUSTOM:
        if first is not None or last is not None:
            raise Refused("bad_parameter", "from and to are only for period=custom")
        return today - timedelta(days=PERIODS[period] - 1), today
    if first is None or last is None:
        raise Refused("bad_parameter", "period=custom needs from and to, the first and the last day")
    if first > last:
        raise Refused("bad_range", f"the first day, {first}, is after the last, {last}")
    if first > today:
        raise Refused("bad_range", f"from must not be after today, {today}")
    if _length(first, last) > MAX_DAYS:
        raise Refused("range_too_large", f"from and to may be at most {MAX_DAYS} days, both included")
    if first < EARLIEST.date():
        raise Refused("bad_range", f"from must not be before {EARLIEST.date()}")
    return first, last


def _length(first: date, last: date) -> int:
    return (last - first).days + 1


def _range(first: date, last: date, zone: tzinfo, now: datetime) -> tuple[datetime, datetime]:
    """When the first day begins, and when the last one ends, or the current minute. Raises Refused if never."""
    this_minute_ends = times.after(times.begin(now.astimezone(UTC), "minute"), "minute")
    start = times.midnight(first, zone)
    end = min(times.midnight(last + timedelta(days=1), zone), this_minute_ends)
    if start >= end:
        raise Refused("bad_range", f"from {first} to {last}, there was no time in this time zone")
    return start, end


def _intervals(days: int) -> tuple[str, ...]:
    return tuple(name for name, (fewest, most, _) in _INTERVALS.items() if fewest <= days <= most)


def _default_interval(days: int) -> str:
    return next(name for name, (_, _, until) in _INTERVALS.items() if days <= until)


def _earlier(moment: datetime, back: timedelta, zone: tzinfo) -> datetime:
    """The same time by the clock, some days earlier."""
    local = moment.astimezone(zone)
    return datetime.combine(local.date() - back, local.timetz()).astimezone(UTC)
