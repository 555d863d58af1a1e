"""The parameters of statistics, as one table: how each is read, and which an endpoint takes. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple

from ingest.events.limits import EVENT_TYPES, MAX_NAME_CHARACTERS, MAX_VALUE_CHARACTERS
from ingest.features.stats import cursors, times
from ingest.features.stats.query import MAX_EVENTS_RANGE, MAX_PERIODS

MAX_ROWS: Final = 1000
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
BOTS: Final = ("exclude", "only", "include")


class Parameter(NamedTuple):
    """How a text is read (raises ValueError), and what it must be."""

    read: Callable[[str], Any]
    what: str


def _name(text: str) -> str:
    if len(text) > MAX_NAME_CHARACTERS:
        raise ValueError
    return text


def _value(text: str) -> str:
    if len(text) > MAX_VALUE_CHARACTERS:
        raise ValueError
    return text


def one_of(words: Sequence[str]) -> Parameter:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return Parameter(read, f"one of {', '.join(words)}")


def _whole(low: int, high: int) -> Parameter:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Parameter(read, f"a whole number from {low} to {high}")


def _moment(text: str) -> date | datetime:
    try:
        if len(text) <= 10:
            return date.fromisoformat(text)
    except ValueError:
        pass
    # In a query string "+" means a space: an offset's sign that was not encoded arrives as one.
    return datetime.fromisoformat(re.sub(r"(T.+) (?=[0-9:]+$)", r"\1+", text))


def _duration(text: str) -> timedelta:
    parts = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if parts is None:
        raise ValueError
    length = timedelta(seconds=int(parts[1]) * _UNITS[parts[2]])
    if not timedelta() < length <= MAX_EVENTS_RANGE:
        raise ValueError
    return length


_EVENT = Parameter(_name, f"an event's name of 1 to {MAX_NAME_CHARACTERS} characters")
DIMENSION_VALUE = Parameter(_value, f"a value of 1 to {MAX_VALUE_CHARACTERS} characters")
FILTER_VALUE = Parameter(_value, f"a value of at most {MAX_VALUE_CHARACTERS} characters")
_MOMENT = Parameter(_moment, "an ISO 8601 date or time such as 2026-01-31 or 2026-01-31T12:00:00Z")
PARAMETERS: Final[Mapping[str, Parameter]] = {
    "event": _EVENT,
    "return_event": _EVENT,
    "type": one_of(EVENT_TYPES),
    "bots": one_of(BOTS),
    "from": _MOMENT,
    "to": _MOMENT,
    "granularity": one_of(times.GRANULARITIES),
    "timezone": Parameter(times.zone_of, "an IANA time zone such as Europe/Berlin or UTC"),
    "limit": _whole(1, MAX_ROWS),
    "after": Parameter(cursors.decode, 'the "next" of the previous page'),
    "within": Parameter(_duration, "seconds, or a duration such as 30m, 12h or 7d, of at most 31 days"),
    "periods": _whole(1, MAX_PERIODS),
    "name": Parameter(_name, f"a metric's name of 1 to {MAX_NAME_CHARACTERS} characters"),
}
_RANGE: Final = ("from", "to", "timezone")
_PICK: Final = ("event", "type")
REPEATABLE: Final = ("steps", "step", "none", "other")
"""Parameters that may be given several times."""


class Endpoint(NamedTuple):
    """An endpoint's parameters, whether it also takes filters, and the default number of rows."""

    parameters: tuple[str, ...]
    filters: bool
    limit: int = 100


ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    "timeseries": Endpoint(
        (*_PICK, *_RANGE, "granularity", "none", "other", "bots", "limit", "after"), True, MAX_ROWS
    ),
    "totals": Endpoint((*_PICK, *_RANGE, "none", "other", "bots"), True),
    "top": Endpoint(("dimension", *_PICK, *_RANGE, "none", "other", "bots", "limit", "after"), True),
    "funnel": Endpoint(("steps", "step", "within", "type", *_RANGE, "none", "bots"), True),
    "retention": Endpoint((*_PICK, "return_event", *_RANGE, "granularity", "periods", "none", "bots"), True),
    "metrics": Endpoint(("name", *_RANGE, "granularity", "limit", "after"), False),
}
