"""Numbers and times as people read them. Pure.

Everything takes what a database returns, also None, NaN, infinities and numbers of any size, and answers with a short
text; nothing raises. Minus is U+2212, which is as wide as a digit and no place to break a line. Times are aware; an
interval is one of `minute`, `hour`, `day`, `week` and `month`, and a bucket is named by the moment it begins.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Final, Literal, NamedTuple

Number = int | float | Decimal | None
Direction = Literal["up", "down", "none"]
Tone = Literal["good", "bad", "none"]

NOTHING: Final = "–"
"""Where there is no number."""
MINUS: Final = "−"
_SUFFIXES: Final = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTES: Final = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_ALL_DIGITS: Final = 9_999.5
_LARGE: Final = 1e15
"""From here on as a power of ten: no longer exact as a float, and too long to read."""
_MIRRORED: Final = {"<": ">", ">": "<"}
_DAY: Final = 86_400


def finite(value: Number) -> float | None:
    """As a float; None if it is none, or no finite one."""
    number = _float(value)
    return number if number is not None and math.isfinite(number) else None


def count(value: Number) -> str:
    """A whole number with all its digits: 1,234."""
    return _written(value, _counted)


def short(value: Number) -> str:
    """Three digits that count: 12.3k, 999, 0.05."""
    return _written(value, _shortened)


def number(value: Number) -> str:
    """A number to be read at a glance: all digits up to 9,999, then 12.3k."""
    return _written(value, lambda size: _counted(size) if size < _ALL_DIGITS else _shortened(size))


def percent(share: Number, digits: int = 1) -> str:
    """A share of 1 as per cent: 12.3 %. What is neither nothing nor all is never rounded to it: <0.1 %, >99.9 %."""
    return _written(share, lambda size: f"{_percentage(size, digits)} %")


def duration(seconds: Number) -> str:
    """The two largest units: 1m 23s, 4ms, 2d 3h."""
    return _written(seconds, _lasting)


def bytes_(size: Number) -> str:
    """In powers of 1,000: 512 B, 1.23 MB."""
    return _written(size, lambda size: _scaled(size, _BYTES, " ") or f"{_digits(size)} B")


class Change(NamedTuple):
    """How a number differs from the one before."""

    text: str
    """+12 %, −3 %, none before, or –."""
    direction: Direction
    tone: Tone
    """Whether that is good: none if nothing changed, or if it is neither."""
    sentence: str
    """For those who hear it: 12 % more than before."""


def change(now: Number, before: Number, rising_is_good: bool | None = True) -> Change:
    """The change from one value to the next, relative to the first."""
    new, old = finite(now), finite(before)
    if new is None or old is None:
        return Change(NOTHING, "none", "none", "nothing to compare with")
    if new == old:
        return Change("0 %", "none", "none", "as before")
    rising = new > old
    tone: Tone = "none" if rising_is_good is None else "good" if rising == rising_is_good else "bad"
    direction: Direction = "up" if rising else "down"
    if old == 0:
        return Change("none before" if rising else NOTHING, direction, tone, "none before")
    size = abs(new / abs(old) - old / abs(old)) * 100
    if size < 0.5:
        return Change("0 %", "none", "none", "nearly as before")
    amount = "∞" if math.isinf(size) else f"{size:,.0f}" if size < 99_999.5 else _shortened(size)
    sign, word = ("+", "more") if rising else (MINUS, "less")
    return Change(f"{sign}{amount} %", direction, tone, f"{amount} % {word} than before")


# Of sizes, which are finite and not negative.


def _written(value: Number, of_size: Callable[[float], str]) -> str:
    number = _float(value)
    if number is None:
        return NOTHING
    text = of_size(abs(number)) if math.isfinite(number) else "∞"
    if number >= 0 or not any(digit in text for digit in "123456789∞"):
        return text
    return f"{_MIRRORED[text[0]]}{MINUS}{text[1:]}" if text[0] in _MIRRORED else f"{MINUS}{text}"


def _float(value: Number) -> float | None:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:  # An int beyond what a float can be.
        return math.inf if value is not None and value > 0 else -math.inf
    except ValueError:  # A Decimal that is a signalling NaN.
        return None
    return None if math.isnan(number) else number


def _counted(size: float) -> str:
    return f"{size:,.0f}" if size < _LARGE else _power(size)


def _shortened(size: float) -> str:
    return _scaled(size, _SUFFIXES, "") or _digits(size)


def _scaled(size: float, units: tuple[tuple[float, str], ...], gap: str) -> str:
    """In the largest unit that it has at least one of, once rounded; "" if it is smaller than all."""
    rounded = float(f"{size:.3g}")
    if rounded >= units[0][0] * 1000:
        return _power(size) + (gap and f"{gap}B")
    return next((f"{_digits(size / unit)}{gap}{name}" for unit, name in units if rounded >= unit), "")


def _digits(size: float) -> str:
    """Three digits that count, without trailing zeros; 1e-7 instead of many zeros."""
    if size and size < 0.000_995:
        return _power(size)
    text = f"{size:#.3g}" if size < 999.5 else f"{size:.0f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _power(size: float) -> str:
    digits, _, exponent = f"{size:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def _percentage(share: float, digits: int) -> str:
    if share in (0, 1):
        return f"{share * 100:.0f}"
    if share >= 9.995:
        return _counted(min(share * 100, sys.float_info.max))
    text = f"{share * 100:.{digits}f}"
    least = 0.1**digits
    if float(text) == 0:
        return f"<{least:.{digits}f}"
    return f">{100 - least:.{digits}f}" if share < 1 and float(text) == 100 else text


def _lasting(seconds: float) -> str:
    if seconds < 0.0005:
        return "<1ms" if seconds else "0s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    if seconds < 3599.5:
        return _two(round(seconds), 60, "m", "s")
    if seconds < _DAY - 30:
        return _two(round(seconds / 60), 60, "h", "m")
    if seconds < 100 * _DAY:
        return _two(round(seconds / 3600), 24, "d", "h")
    return f"{_counted(seconds / _DAY)}d"


def _two(amount: int, per: int, large: str, small: str) -> str:
    """An amount of small units, `per` of which are a large one."""
    whole, rest = divmod(amount, per)
    return f"{whole}{large} {rest}{small}" if rest else f"{whole}{large}"


# Times.

_WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_AGO: Final = ((_DAY, "d"), (3600, "h"), (60, "min"), (1, "s"))


def ago(moment: datetime | None, now: datetime) -> str:
    """How long it is since then: 3 min ago, in 2 h. Clocks differ, so what is 5 seconds away or less is just now."""
    if moment is None:
        return NOTHING
    seconds = (now - moment).total_seconds()
    size = abs(seconds)
    if size <= 5:
        return "just now"
    amount = next(f"{size // length:,.0f} {unit}" for length, unit in _AGO if size >= length)
    return f"{amount} ago" if seconds > 0 else f"in {amount}"


def clock(moment: datetime | None, zone: tzinfo) -> str:
    """The date and the time of day, to the second: 3 Nov 2026, 14:05:09."""
    if moment is None:
        return NOTHING
    return f"{day(moment, zone)}, {local(moment, zone):%H:%M:%S}"


def time_of_day(moment: datetime | None, zone: tzinfo) -> str:
    """22:53:47, without the day."""
    return NOTHING if moment is None else f"{local(moment, zone):%H:%M:%S}"


def day(moment: datetime | None, zone: tzinfo) -> str:
    """The date there: 3 Nov 2026."""
    if moment is None:
        return NOTHING
    there = local(moment, zone)
    return f"{_date(there)} {there.year}"


def bucket(start: datetime, interval: str, zone: tzinfo, with_year: bool = False) -> str:
    """The name of a bucket, in full: Mon 3 Nov, 14:00; Mon 3 Nov; week of 3 Nov; November 2026."""
    there = local(start, zone)
    if interval == "month":
        return f"{_MONTHS[there.month - 1]} {there.year}"
    year = f" {there.year}" if with_year else ""
    if interval == "week":
        return f"week of {_date(there)}{year}"
    date = f"{_WEEKDAYS[there.weekday()]} {_date(there)}{year}"
    return date if interval == "day" else f"{date}, {there:%H:%M}"


def tick(start: datetime, interval: str, zone: tzinfo) -> str:
    """The name of a bucket on an axis, at most 8 characters: 14:00, 3 Nov, Nov, Jan 2027. Midnight is the date."""
    there = local(start, zone)
    if interval == "month":
        return _MONTHS[there.month - 1][:3] + (f" {there.year}" if there.month == 1 else "")
    if interval in ("hour", "minute") and (there.hour or there.minute):
        return f"{there:%H:%M}"
    return _date(there)


def span(first: datetime, last: datetime, interval: str, zone: tzinfo) -> str:
    """From the first to the last bucket: 3 to 30 November, 14:00 to 18:00 on 3 November, January to March 2026."""
    start, end = local(first, zone), local(last, zone)
    if interval == "month":
        words = [f"{_MONTHS[each.month - 1]} {each.year}" for each in (start, end)]
    elif interval in ("hour", "minute") and start.date() == end.date():
        between = f"{start:%H:%M} to {end:%H:%M}" if start != end else f"{start:%H:%M}"
        return f"{between} on {start.day} {_MONTHS[start.month - 1]}"
    else:
        words = [f"{each.day} {_MONTHS[each.month - 1]} {each.year}" for each in (start, end)]
        if start.year == end.year:
            words = [each.removesuffix(f" {start.year}") for each in words]
    if words[0] == words[1]:
        return words[0]
    shared = words[1].partition(" ")[2]
    return f"{words[0].removesuffix(f' {shared}')} to {words[1]}"


def local(moment: datetime, zone: tzinfo) -> datetime:
    """The moment on the clocks there. Where the calendar ends, as at Postgres' infinity, it stays as it is."""
    try:
        return moment.astimezone(zone)
    except (OverflowError, ValueError):
        return moment


def _date(there: datetime) -> str:
    return f"{there.day} {_MONTHS[there.month - 1][:3]}"
