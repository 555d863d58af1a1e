"""Reads a query from its parameters, which are all checked before the database sees any of them. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any, Final

from ingest.events.values.texts import is_well_formed
from ingest.features.stats import cursors, steps, times
from ingest.features.stats.parameters import (
    DIMENSION_VALUE,
    ENDPOINTS,
    FILTER_VALUE,
    PARAMETERS,
    REPEATABLE,
    Parameter,
    one_of,
)
from ingest.features.stats.query import EARLIEST, LATEST, OTHER, OTHER_EVENT, Query, Refused, Value
from ingest.features.stats.steps import EventStep

MAX_BUCKETS: Final = 10_000
_DEFAULT_DAYS: Final = 7
_METRIC_DIMENSION: Final = "dimension."
_COHORTS: Final = ("day", "week")


def parse(endpoint: str, given: Iterable[tuple[str, str]], dimensions: Sequence[str], now: datetime) -> Query:
    """The query of these parameters of an endpoint. Raises Refused."""
    takes = ENDPOINTS[endpoint]
    texts, funnel_steps, absent, metric_dimensions = _sorted_out(endpoint, given, dimensions)
    values: dict[str, Any] = dict(absent)
    for name, text in texts.items():
        values[name] = read(name, text, _parameter(name, dimensions))
    zone = values.pop("timezone", UTC)
    start, end = _range(values.pop("from", None), values.pop("to", None), zone, now)
    filters = {name: values[name] for name in dimensions if name in values}
    # A filter for bots would find nothing without them.
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
        steps=funnel_steps,
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
) -> tuple[dict[str, str], list[EventStep], dict[str, Value], dict[str, str]]:
    """Parameters by name, a funnel's steps, the filters `none` and `other`, and the dimensions of metrics.
    Each is known, and given once."""
    takes = ENDPOINTS[endpoint]
    allowed = (*takes.parameters, *(dimensions if takes.filters else ()))
    texts: dict[str, str] = {}
    several: dict[str, list[str]] = {name: [] for name in REPEATABLE}
    of_metrics: dict[str, str] = {}
    for name, text in given:
        check_text(name, text)
        if name in several and name in allowed:
            several[name].append(text)
        elif endpoint == "metrics" and name.startswith(_METRIC_DIMENSION):
            of_metrics[name.removeprefix(_METRIC_DIMENSION)] = read(name, text, DIMENSION_VALUE)
        elif name not in allowed:
            raise unknown("parameter", name, (*allowed, "dimension.<key>") if endpoint == "metrics" else allowed)
        elif name in texts:
            raise Refused("bad_parameter", f"{name} is given twice")
        else:
            texts[name] = text
    absent: dict[str, Value] = {}
    for name, value in (("none", None), ("other", OTHER)):
        for text in several[name]:
            # Every event has a name, so only `other` is possible for event.
            of = read(name, text, one_of((*dimensions, "event") if name == "other" else dimensions))
            if of in texts or of in absent:
                raise Refused("bad_parameter", f"{of} is given twice")
            absent[of] = OTHER_EVENT if of == "event" else value
    return texts, _read_steps(several) if endpoint == "funnel" else [], absent, of_metrics


def _read_steps(several: Mapping[str, list[str]]) -> list[EventStep]:
    try:
        return steps.read(several["steps"], several["step"])
    except ValueError:
        raise Refused("bad_parameter", f"steps must be {steps.WHAT}") from None


def check_text(name: str, text: str) -> None:
    """Raise Refused if Postgres could not store it as text."""
    if not is_well_formed(name + text):
        raise Refused("bad_parameter", f"{_shown(name)} is not UTF-8")
    if "\0" in name or "\0" in text:
        raise Refused("bad_parameter", f"{_shown(name)} has a NUL in it")


def _parameter(name: str, dimensions: Sequence[str]) -> Parameter:
    if name == "dimension":
        return one_of((*dimensions, "event"))
    return PARAMETERS.get(name, FILTER_VALUE)


def read(name: str, text: str, parameter: Parameter) -> Any:
    """The value of a parameter. Raises Refused, with what it must be."""
    try:
        if not text and parameter is not FILTER_VALUE:
            raise ValueError
        return parameter.read(text)
    except (ValueError, OverflowError):
        message = f"{name} must be {parameter.what}, not {_shown(text)}"
        raise Refused("bad_parameter", message) from None


def unknown(what: str, name: str, allowed: Sequence[str]) -> Refused:
    """The refusal of a name that does not exist, with the closest that does."""
    close = difflib.get_close_matches(name[:100].lower(), allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return Refused(f"unknown_{what}", f"unknown {what} {_shown(name)}; {hint}Allowed are {', '.join(allowed)}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")


def _range(
    given_start: date | datetime | None, given_end: date | datetime | None, zone: tzinfo, now: datetime
) -> tuple[datetime, datetime]:
    """By default the last seven days, including today, to the end of this minute."""
    end = times.up(now, "minute") if given_end is None else _instant("to", given_end, zone)
    if given_start is None:
        last = (end - timedelta(microseconds=1)).astimezone(zone).date()
        start = times.midnight(last - timedelta(days=_DEFAULT_DAYS - 1), zone)
    else:
        start = _instant("from", given_start, zone)
    if start >= end:
        raise Refused("bad_range", "from must be before to, which defaults to now")
    return start, end


def _instant(name: str, given: date | datetime, zone: tzinfo) -> datetime:
    try:
        if not isinstance(given, datetime):
            found = times.midnight(given, zone)
        else:
            found = (given if given.tzinfo else given.replace(tzinfo=zone)).astimezone(UTC)
    except OverflowError:
        found = LATEST
    if not EARLIEST <= found < LATEST:
        raise Refused("bad_range", f"{name} must be from 1970-01-02 to 2199-12-31")
    return found


def _default_granularity(endpoint: str, length: timedelta) -> str:
    return "day" if endpoint == "retention" else times.default_granularity(length)


def _checked_cursor(endpoint: str, cursor: list[Any] | None) -> list[Any] | None:
    try:
        return None if cursor is None else cursors.checked(endpoint, cursor)
    except ValueError:
        raise Refused("bad_parameter", f"after must be {PARAMETERS['after'].what}") from None


def _check(endpoint: str, query: Query, dimensions: Sequence[str]) -> None:
    if endpoint == "timeseries":
        count = times.bucket_count(query.start, query.end, query.granularity)
        if count > MAX_BUCKETS:
            message = (
                f"this would be {count} points, of at most {MAX_BUCKETS}: ask for less time or a larger granularity"
            )
            raise Refused("range_too_large", message)
    elif endpoint == "top" and not query.dimension:
        raise Refused("bad_parameter", f"dimension is required: one of {', '.join((*dimensions, 'event'))}")
    elif endpoint == "retention" and query.granularity not in _COHORTS:
        raise Refused("bad_parameter", f"granularity must be {' or '.join(_COHORTS)}")
