"""What may be asked: one table of parameters, read and checked before the database hears of any. Pure."""

from __future__ import annotations

import base64
import binascii
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple

import orjson

from ingest.events.limits import EVENT_TYPES, MAX_NAME_CHARACTERS, MAX_VALUE_CHARACTERS
from ingest.events.values.texts import is_well_formed
from ingest.features.stats import times

MAX_ROWS: Final = 1000
MAX_BUCKETS: Final = 10_000
MAX_EVENTS_RANGE: Final = timedelta(days=31)
MAX_PERIODS: Final = 31
_DEFAULT_DAYS: Final = 7
_EARLIEST: Final = datetime(1970, 1, 2, tzinfo=UTC)
_LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_METRIC_DIMENSION: Final = "dimension."
BOTS: Final = ("exclude", "only", "include")
OTHER_EVENT: Final = ""
"""The name of a query for events whose names a bucket had no room for, as aggregates store it."""
STEP_KINDS: Final = ("event", "type", "page")
"""What may stand before the colon of a funnel's step."""
_UP_TO_COMMA: Final = re.compile(r'(?:("(?:[^"]|"")*")|((?!")[^,]*))(,|\Z)')
_STEPS: Final = (
    "2 to 10 steps such as page_view,type:page_view,page:/pricing: the name of an event, of 1 to"
    f" {MAX_NAME_CHARACTERS} characters; type: and one of {', '.join(EVENT_TYPES)}; or page: and the path of a page"
    f" view, of at most {MAX_VALUE_CHARACTERS}. event: stands before a name that begins like another, and"
    ' "double quotes" around a step with a comma, unless each step has a parameter of its own: step=a&step=b,c'
)


class Refused(Exception):
    """A question that is not answered: status, code and a sentence with what is allowed."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Other:
    """In place of a filter's value: those for which a bucket had no room."""


OTHER: Final = Other()
Value = str | Other | None
"""What a filter asks for; None: that there is no value."""


class Step(NamedTuple):
    """A step of a funnel, as it was given, and which events are it: `kind` is what of them (event, type, page) is
    `value`."""

    text: str
    kind: str
    value: str


@dataclass(frozen=True)
class Query:
    """A question, checked. `start` and `end` are in UTC; what was not given has its default, or is None."""

    start: datetime
    end: datetime
    zone: tzinfo
    granularity: str
    granularity_given: bool = False
    event: str | None = None
    type: str | None = None
    filters: Mapping[str, Value] = field(default_factory=dict)
    bots: str = "exclude"
    limit: int = 100
    after: Sequence[Any] | None = None
    dimension: str = ""
    steps: Sequence[Step] = ()
    within: timedelta = timedelta(days=7)
    return_event: str | None = None
    periods: int = MAX_PERIODS
    name: str | None = None
    metric_dimensions: Mapping[str, str] = field(default_factory=dict)

    @property
    def asks_others(self) -> bool:
        """Whether it is about what a bucket had no room for, which only aggregates know."""
        return self.event == OTHER_EVENT or OTHER in self.filters.values()

    @property
    def types(self) -> list[str]:
        return [self.type] if self.type else list(EVENT_TYPES)


# The table of parameters.


class Parameter(NamedTuple):
    """How a text is read (ValueError if it cannot be), and what it must be."""

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


def _one_of(words: Sequence[str]) -> Parameter:
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
    # In a query, "+" is a space: the offset's sign comes as one when it was not encoded.
    return datetime.fromisoformat(re.sub(r"(T.+) (?=[0-9:]+$)", r"\1+", text))


def _duration(text: str) -> timedelta:
    parts = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if parts is None:
        raise ValueError
    length = timedelta(seconds=int(parts[1]) * _UNITS[parts[2]])
    if not timedelta() < length <= MAX_EVENTS_RANGE:
        raise ValueError
    return length


def _cursor(text: str) -> list[Any]:
    try:
        read = orjson.loads(base64.urlsafe_b64decode(text.encode("ascii")))
    except (UnicodeEncodeError, binascii.Error, orjson.JSONDecodeError):
        raise ValueError from None
    if not isinstance(read, list):
        raise ValueError
    return read


def _step(text: str) -> Step:
    kind, _, value = text.partition(":")
    if kind not in STEP_KINDS:
        kind, value = "event", text
    if not 1 <= len(value) <= (MAX_VALUE_CHARACTERS if kind == "page" else MAX_NAME_CHARACTERS):
        raise ValueError
    if kind == "type" and value not in EVENT_TYPES:
        raise ValueError
    return Step(text, kind, value)


def _split(text: str) -> list[str]:
    """The texts between commas. One in double quotes may have commas in it, and "" for a quote."""
    texts = []
    place = 0
    while found := _UP_TO_COMMA.match(text, place):
        quoted, plain, comma = found.groups()
        texts.append(quoted[1:-1].replace('""', '"') if quoted else plain)
        if not comma:
            return texts
        place = found.end()
    raise ValueError


_EVENT = Parameter(_name, f"an event's name of 1 to {MAX_NAME_CHARACTERS} characters")
_DIMENSION_VALUE = Parameter(_value, f"a value of 1 to {MAX_VALUE_CHARACTERS} characters")
_FILTER_VALUE = Parameter(_value, f"a value of at most {MAX_VALUE_CHARACTERS} characters")
_MOMENT = Parameter(_moment, "an ISO 8601 date or time such as 2026-01-31 or 2026-01-31T12:00:00Z")
PARAMETERS: Final[Mapping[str, Parameter]] = {
    "event": _EVENT,
    "return_event": _EVENT,
    "type": _one_of(EVENT_TYPES),
    "bots": _one_of(BOTS),
    "from": _MOMENT,
    "to": _MOMENT,
    "granularity": _one_of(times.GRANULARITIES),
    "timezone": Parameter(times.zone_of, "a time zone of the IANA's such as Europe/Berlin or UTC"),
    "limit": _whole(1, MAX_ROWS),
    "after": Parameter(_cursor, 'the "next" of the page before'),
    "within": Parameter(_duration, "seconds, or a duration such as 30m, 12h or 7d, of at most 31 days"),
    "periods": _whole(1, MAX_PERIODS),
    "name": Parameter(_name, f"a metric's name of 1 to {MAX_NAME_CHARACTERS} characters"),
}
_RANGE: Final = ("from", "to", "timezone")
_PICK: Final = ("event", "type")
_SEVERAL: Final = ("steps", "step", "none", "other")
"""What may be given several times."""


class Endpoint(NamedTuple):
    """What an endpoint takes beside the filters, and how many rows it gives by default."""

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
_COHORTS: Final = ("day", "week")
_CURSORS: Final[Mapping[str, tuple[type, ...]]] = {
    "timeseries": (str,),
    "top": (int, str, bool),
    "metrics": (str, int),
}
"""What is in the cursor of an endpoint."""


# Reading.


def parse(endpoint: str, given: Iterable[tuple[str, str]], dimensions: Sequence[str], now: datetime) -> Query:
    """The question that these parameters of an endpoint ask. Raises Refused."""
    takes = ENDPOINTS[endpoint]
    texts, steps, absent, metric_dimensions = _sorted_out(endpoint, given, dimensions)
    values: dict[str, Any] = dict(absent)
    for name, text in texts.items():
        values[name] = _read(name, text, _parameter(name, dimensions))
    zone = values.pop("timezone", UTC)
    start, end = _range(values.pop("from", None), values.pop("to", None), zone, now)
    filters = {name: values[name] for name in dimensions if name in values}
    # Who asks for bots by their device means to see them.
    bots = values.get("bots") or ("include" if filters.get("device_type") == "bot" else "exclude")
    query = Query(
        start=start,
        end=end,
        zone=zone,
        granularity=values.get("granularity") or _default_granularity(endpoint, end - start),
        granularity_given="granularity" in values,
        filters=filters,
        bots=bots,
        limit=values.get("limit", takes.limit),
        steps=steps,
        metric_dimensions=metric_dimensions,
        after=_checked_cursor(endpoint, values.get("after")),
        **{
            name: values[name]
            for name in ("event", "type", "dimension", "within", "return_event", "periods", "name")
            if name in values
        },
    )
    _check(endpoint, query, dimensions)
    return query


def _sorted_out(
    endpoint: str, given: Iterable[tuple[str, str]], dimensions: Sequence[str]
) -> tuple[dict[str, str], list[Step], dict[str, Value], dict[str, str]]:
    """Parameters by name, a funnel's steps, what is asked for in place of a value, and the dimensions of metrics;
    each known, and once."""
    takes = ENDPOINTS[endpoint]
    allowed = (*takes.parameters, *(dimensions if takes.filters else ()))
    texts: dict[str, str] = {}
    several: dict[str, list[str]] = {name: [] for name in _SEVERAL}
    of_metrics: dict[str, str] = {}
    for name, text in given:
        _check_text(name, text)
        if name in several and name in allowed:
            several[name].append(text)
        elif endpoint == "metrics" and name.startswith(_METRIC_DIMENSION):
            of_metrics[name.removeprefix(_METRIC_DIMENSION)] = _read(name, text, _DIMENSION_VALUE)
        elif name not in allowed:
            raise _unknown("parameter", name, (*allowed, "dimension.<key>") if endpoint == "metrics" else allowed)
        elif name in texts:
            raise Refused("bad_parameter", f"{name} is given twice")
        else:
            texts[name] = text
    absent: dict[str, Value] = {}
    for name, value in (("none", None), ("other", OTHER)):
        for text in several[name]:
            # What is told of events is their name, which each has.
            of = _read(name, text, _one_of((*dimensions, "event") if name == "other" else dimensions))
            if of in texts or of in absent:
                raise Refused("bad_parameter", f"{of} is given twice")
            absent[of] = OTHER_EVENT if of == "event" else value
    return texts, _read_steps(several) if endpoint == "funnel" else [], absent, of_metrics


def _read_steps(several: Mapping[str, list[str]]) -> list[Step]:
    together, single = several["steps"], several["step"]
    try:
        if together and single:
            raise ValueError
        # Both are steps as they are if there are several: steps=a&steps=b,c
        texts = _split(together[0]) if len(together) == 1 else together or single
        if not 2 <= len(texts) <= 10:
            raise ValueError
        return [_step(text) for text in texts]
    except ValueError:
        raise Refused("bad_parameter", f"steps must be {_STEPS}") from None


def _check_text(name: str, text: str) -> None:
    if not is_well_formed(name + text):
        raise Refused("bad_parameter", f"{_shown(name)} is not UTF-8")
    if "\0" in name or "\0" in text:
        raise Refused("bad_parameter", f"{_shown(name)} has a NUL in it")


def _parameter(name: str, dimensions: Sequence[str]) -> Parameter:
    if name == "dimension":
        return _one_of((*dimensions, "event"))
    return PARAMETERS.get(name, _FILTER_VALUE)


def _read(name: str, text: str, parameter: Parameter) -> Any:
    try:
        if not text and parameter is not _FILTER_VALUE:
            raise ValueError
        return parameter.read(text)
    except (ValueError, OverflowError):
        message = f"{name} must be {parameter.what}, not {_shown(text)}"
        raise Refused("bad_parameter", message) from None


def _unknown(what: str, name: str, allowed: Sequence[str]) -> Refused:
    close = difflib.get_close_matches(name[:100].lower(), allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return Refused(f"unknown_{what}", f"unknown {what} {_shown(name)}; {hint}Allowed are {', '.join(allowed)}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")


def _range(
    given_start: date | datetime | None, given_end: date | datetime | None, zone: tzinfo, now: datetime
) -> tuple[datetime, datetime]:
    """By default the last seven days, today included, to the end of this minute."""
    end = times.up(now, "minute") if given_end is None else _instant("to", given_end, zone)
    if given_start is None:
        last = (end - timedelta(microseconds=1)).astimezone(zone).date()
        start = times.midnight(last - timedelta(days=_DEFAULT_DAYS - 1), zone)
    else:
        start = _instant("from", given_start, zone)
    if start >= end:
        raise Refused("bad_range", "from must be before to, which is now if not given")
    return start, end


def _instant(name: str, moment: date | datetime, zone: tzinfo) -> datetime:
    try:
        if not isinstance(moment, datetime):
            found = times.midnight(moment, zone)
        else:
            found = (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except OverflowError:
        found = _LATEST
    if not _EARLIEST <= found < _LATEST:
        raise Refused("bad_range", f"{name} must be from 1970-01-02 to 2199-12-31")
    return found


def _default_granularity(endpoint: str, length: timedelta) -> str:
    return "day" if endpoint == "retention" else times.default_granularity(length)


def _checked_cursor(endpoint: str, cursor: list[Any] | None) -> list[Any] | None:
    if cursor is None:
        return None
    read: list[Any] = list(cursor)
    kinds = _CURSORS[endpoint]
    try:
        if tuple(map(type, read)) != kinds or any(isinstance(one, int) and abs(one) >= 2**63 for one in read):
            raise ValueError
        if endpoint != "top":
            read[0] = datetime.fromisoformat(read[0])
            if not _EARLIEST <= read[0] < _LATEST:
                raise ValueError
        elif "\0" in read[1]:
            raise ValueError
    except (ValueError, TypeError):
        raise Refused("bad_parameter", f"after must be {PARAMETERS['after'].what}") from None
    return read


def _check(endpoint: str, query: Query, dimensions: Sequence[str]) -> None:
    if endpoint == "timeseries":
        count = times.bucket_count(query.start, query.end, query.granularity)
        if count > MAX_BUCKETS:
            message = (
                f"that are {count} points, and {MAX_BUCKETS} are allowed: ask for less time or a larger granularity"
            )
            raise Refused("range_too_large", message)
    elif endpoint == "top" and not query.dimension:
        raise Refused("bad_parameter", f"dimension is needed: one of {', '.join((*dimensions, 'event'))}")
    elif endpoint == "retention" and query.granularity not in _COHORTS:
        raise Refused("bad_parameter", f"granularity must be one of {', '.join(_COHORTS)} here")


def check_events_range(start: datetime, end: datetime, why: str) -> None:
    """Raise Refused unless so much time may be read from events; `why` it would have to be."""
    # An hour more: 31 days of a time zone may have been made longer by the end of summer time.
    if end - start > MAX_EVENTS_RANGE + timedelta(hours=1):
        raise Refused("range_too_large", f"{why}, which is allowed for at most {MAX_EVENTS_RANGE.days} days")


def cursor(*values: object) -> str:
    """The `next` that `after` reads."""
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode()
