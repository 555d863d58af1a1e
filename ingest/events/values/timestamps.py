"""Parses times in the forms in which clients send them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_DIGITS = 8
_UNIX_TIME = re.compile(r"-?[0-9]{1,17}(\.[0-9]{1,9})?")
_RFC_2822 = re.compile(
    r"(?:[A-Z][a-z]{2}, )?([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)"
    r" (GMT|UTC?|[+-][0-9]{4})"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def parse_time(value: str | int | float) -> datetime | None:
    """Parse an ISO 8601 text (UTC if it names no zone), an RFC 2822 date, or a Unix time in seconds, milliseconds or
    microseconds, distinguished by size, as a number or as text; None for anything else."""
    try:
        if isinstance(value, str):
            # Some Unix times would pass for ISO 8601 without separators. A date of that form has eight digits.
            if value.isdigit() and len(value) != _DAY_DIGITS:
                return _parse_unusual(value)
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds = value / 1e6 if abs(value) > 1e14 else value / 1e3 if abs(value) > 1e11 else value
        return _EPOCH + timedelta(seconds=seconds)
    except ValueError:
        return _parse_unusual(value) if isinstance(value, str) else None
    except OverflowError:
        return None


def _parse_unusual(text: str) -> datetime | None:
    """A Unix time as text, or an RFC 2822 date, as in mail and HTTP."""
    if _UNIX_TIME.fullmatch(text):
        return parse_time(float(text) if "." in text else int(text))
    parts = _RFC_2822.fullmatch(text)
    if parts is None or parts[2] not in _MONTHS:
        return None
    day, month, year, time, zone = parts.groups()
    zone = "Z" if zone in ("GMT", "UT", "UTC") else zone
    return _parse_iso(f"{year}-{_MONTHS.index(month) + 1:02}-{day:0>2}T{time}{zone}")


def _parse_iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def is_javascript_time(text: str) -> bool:
    """Whether it looks like 2026-01-02T03:04:05.678Z, from Date.toISOString(): Postgres and Python read it alike.

    Other forms are rewritten: Python reads some that Postgres does not, and the other way round.
    """
    return len(text) == 24 and text[23] == "Z" and text[19] == "." and text[10] == "T" and text[7] == "-"


def javascript_span(values: Sequence[object]) -> tuple[datetime, datetime] | None:
    """The first and the last of some times, if all are valid and `is_javascript_time`; else None."""
    try:
        together = "".join(values)  # type: ignore[arg-type]
    except TypeError:
        return None
    count = len(values)
    if (
        together[23::24] != "Z" * count
        or together[19::24] != "." * count
        or together[10::24] != "T" * count
        or together[7::24] != "-" * count
        or {*map(len, values)} != {24}  # type: ignore[arg-type]
    ):
        return None
    try:
        moments = list(map(datetime.fromisoformat, values))  # type: ignore[arg-type]
    except ValueError:
        return None
    return min(moments), max(moments)


def one_text_of(moment: datetime, text: str) -> str:
    """One text per moment, however the client wrote it: for whole milliseconds JavaScript's, else `text`, which is
    its ISO 8601 text in UTC."""
    milliseconds, rest = divmod(moment.microsecond, 1000)
    return text if rest else f"{text[:19]}.{milliseconds:03}Z"
