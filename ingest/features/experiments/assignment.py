"""Which variant a unit is given: to the last digit the same as the database's functions experiments.bucket,
choose_variant and is_target, without a query.

Everything possible is computed once per experiment. What remains per unit is one hash for each salt, and comparing
whole numbers.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from hashlib import sha256
from math import ceil
from typing import Any, Final, NamedTuple
from uuid import UUID

POINTS: Final = 1 << 48
"""The number of points that a unit can fall on: the first 48 bits of a hash."""
_UUID: Final = re.compile(r"(?:[0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}|\{(?:[0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}\}")
_NUMERIC_BASE: Final = 10_000
_SIGNIFICANT_DIGITS: Final = 16


class Context(NamedTuple):
    """What is known about a unit besides its id; None where unknown. `country` is two capital letters."""

    country: str | None = None
    device: str | None = None
    url: str | None = None
    attributes: Mapping[str, Any] | None = None


NOTHING_KNOWN: Final = Context()


def country_code(text: object) -> str | None:
    """Two capital letters, as the database stores a country; None if the text is not one. Only ASCII letters count:
    how others are capitalised differs between Python and the database."""
    if isinstance(text, str) and len(text) == 2 and text.isascii() and text.isalpha():
        return text.upper()
    return None


def canonical_id(text: str) -> str:
    """The canonical form of a unit's id: a UUID, in any spelling that the database reads, in lower case with dashes;
    any other id unchanged. A phone may send an id in capitals that its server has in lower case."""
    return str(UUID(text)) if _UUID.fullmatch(text) else text


class Hash:
    """Where units fall for one salt of an experiment: sha256("<experiment id>:<salt>:<unit>")."""

    __slots__ = ("_prefix",)

    def __init__(self, experiment_id: str, salt: str) -> None:
        self._prefix = f"{experiment_id}:{salt}:".encode()

    def point(self, unit: bytes) -> int:
        """In [0, POINTS)."""
        return int.from_bytes(sha256(self._prefix + unit).digest()[:6], "big")


def bucket(point: int) -> Fraction:
    """`point::numeric / POINTS` as the database computes it: rounded to at least 16 significant digits, which it
    counts in its own digits of base 10,000 (select_div_scale in PostgreSQL's numeric.c)."""
    weight, first = _leading(point)
    divisor_weight, divisor_first = _leading(POINTS)
    quotient_weight = weight - divisor_weight - (first <= divisor_first)
    scale = 10 ** max(0, _SIGNIFICANT_DIGITS - 4 * quotient_weight)
    return Fraction((2 * point * scale + POINTS) // (2 * POINTS), scale)


def _leading(number: int) -> tuple[int, int]:
    """Weight and value of the first digit in base 10,000."""
    weight = 0
    while number >= _NUMERIC_BASE:
        number //= _NUMERIC_BASE
        weight += 1
    return weight, number


def first_point_at(limit: Fraction, factor: Fraction) -> int:
    """The first point where `bucket * factor < limit` is false; POINTS if it is true everywhere."""
    near = ceil(limit * POINTS / factor)
    # Rounding moves a bucket by less than a point.
    for point in range(max(0, near - 2), min(near + 2, POINTS)):
        if bucket(point) * factor >= limit:
            return point
    return max(0, min(near + 2, POINTS))


def first_point_of_percentage(percentage: Decimal) -> int:
    """Units at points below the result are in this percentage."""
    return first_point_at(Fraction(percentage), Fraction(100))


class Rules:
    """Targeting rules, ready to evaluate; for their grammar, see experiments.experiments.targeting_rules."""

    __slots__ = (
        "_attributes",
        "_countries",
        "_devices",
        "_percentage",
        "_urls",
        "are_none",
        "are_of_context",
        "needs_attributes",
    )

    def __init__(self, rules: Mapping[str, Any], experiment_id: str) -> None:
        """`rules`: the JSON, its numbers with all their digits (int, Decimal)."""
        self._countries = frozenset(_listed(rules["country"])) if "country" in rules else None
        self._devices = frozenset(_listed(rules["device"])) if "device" in rules else None
        self._urls = [_Pattern(one) for one in _listed(rules["url"])] if "url" in rules else None
        self._attributes = {name: _keys(_listed(wanted)) for name, wanted in rules.get("attributes", {}).items()}
        self._percentage: tuple[Hash, int] | None = None
        if "percentage" in rules:
            below = first_point_of_percentage(Decimal(rules["percentage"]))
            self._percentage = Hash(experiment_id, "percentage"), below
        self.needs_attributes = bool(self._attributes)
        self.are_of_context = bool(rules.keys() - {"percentage"})
        self.are_none = not rules

    def hold(self, unit: bytes, context: Context) -> bool:
        """Whether the unit may take part. A rule about something unknown does not hold."""
        if self._countries is not None and context.country not in self._countries:
            return False
        if self._devices is not None and context.device not in self._devices:
            return False
        if self._urls is not None and not _any_matches(self._urls, context.url):
            return False
        if self._attributes and not self._has_attributes(context.attributes or {}):
            return False
        return self._percentage is None or self._percentage[0].point(unit) < self._percentage[1]

    def _has_attributes(self, attributes: Mapping[str, Any]) -> bool:
        return all(name in attributes and _key(attributes[name]) in keys for name, keys in self._attributes.items())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _keys(values: Sequence[Any]) -> frozenset[object]:
    return frozenset(_key(value) for value in values)


def _key(value: Any) -> object:
    """Equal for JSON values that are equal: 1 and 1.0, but not 1 and true."""
    kind = type(value)
    if kind is str:
        return value
    if kind is bool:
        return kind, value
    if kind is float:
        return Decimal(repr(value))
    return value if kind is int or kind is Decimal else None


class _Pattern:
    """A pattern for a whole URL, in which * matches any characters or none. Linear in the URL's length."""

    __slots__ = ("_end", "_middle", "_start", "_whole")

    def __init__(self, pattern: str) -> None:
        self._start, *rest = pattern.split("*")
        self._whole = not rest
        *self._middle, self._end = rest or [""]

    def matches(self, url: str) -> bool:
        if self._whole:
            return url == self._start
        last = len(url) - len(self._end)
        at = len(self._start)
        if at > last or not url.startswith(self._start) or not url.endswith(self._end):
            return False
        for part in self._middle:
            found = url.find(part, at, last)
            if found < 0:
                return False
            at = found + len(part)
        return True


def _any_matches(patterns: Sequence[_Pattern], url: str | None) -> bool:
    return url is not None and any(pattern.matches(url) for pattern in patterns)


class Assigner:
    """Finds the variant of any unit in one experiment, from what never changes while it runs."""

    __slots__ = ("_reaches", "_traffic", "_traffic_hash", "_variant_hash", "rules")

    def __init__(
        self, experiment_id: str, weights: Sequence[Decimal], traffic_percentage: Decimal, rules: Mapping[str, Any]
    ) -> None:
        """`weights`: of the variants in their order, the control's first; not all of them zero."""
        self._traffic_hash = Hash(experiment_id, "traffic")
        self._traffic = first_point_of_percentage(traffic_percentage)
        self._variant_hash = Hash(experiment_id, "variant")
        total = sum(map(Fraction, weights), Fraction(0))
        reach = Fraction(0)
        # For each variant, the first point past its range.
        self._reaches: list[int] = []
        for weight in weights:
            reach += Fraction(weight)
            self._reaches.append(first_point_at(reach, total))
        self.rules = Rules(rules, experiment_id)

    def takes_part(self, unit: bytes, context: Context) -> bool:
        """Whether traffic and rules include the unit."""
        if self._traffic < POINTS and self._traffic_hash.point(unit) >= self._traffic:
            return False
        return self.rules.are_none or self.rules.hold(unit, context)

    def place(self, unit: bytes) -> int:
        """The index of the unit's variant, if it takes part."""
        return bisect_right(self._reaches, self._variant_hash.point(unit))

    def assign(self, unit: bytes, context: Context) -> int | None:
        """The index of the unit's variant; None if it takes no part."""
        return self.place(unit) if self.takes_part(unit, context) else None
