"""Which variant a unit is given: the functions experiments.bucket, choose_variant and is_target of the database, to
the last digit, without asking it.

Everything that can be is worked out once for an experiment. What is left for a unit is one hash for each salt, and
comparing whole numbers.
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
"""A unit falls on one of so many points: the first 48 bits of a hash."""
_UUID: Final = re.compile(r"(?:[0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}|\{(?:[0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}\}")
_NUMERIC_BASE: Final = 10_000
_SIGNIFICANT_DIGITS: Final = 16


class Context(NamedTuple):
    """What is known of a unit beside its id; None for what is not. `country` is two capitals."""

    country: str | None = None
    device: str | None = None
    url: str | None = None
    attributes: Mapping[str, Any] | None = None


NOTHING_KNOWN: Final = Context()


def country_code(text: object) -> str | None:
    """Two letters in capitals, as the database has a country; None: it is not one. Letters beyond ASCII are none:
    what capitals they have depends on whom one asks."""
    if isinstance(text, str) and len(text) == 2 and text.isascii() and text.isalpha():
        return text.upper()
    return None


def canonical_id(text: str) -> str:
    """The one form of a unit's id: a UUID, in any spelling that the database reads, in lower case with dashes;
    any other id as it is. A telephone spells the same id in capitals that its server has without."""
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
    """What the database makes of `point::numeric / POINTS`, which it rounds: to 16 significant digits at least,
    counted in its own digits of base 10,000 (select_div_scale in PostgreSQL's numeric.c)."""
    weight, first = _leading(point)
    divisor_weight, divisor_first = _leading(POINTS)
    quotient_weight = weight - divisor_weight - (first <= divisor_first)
    scale = 10 ** max(0, _SIGNIFICANT_DIGITS - 4 * quotient_weight)
    return Fraction((2 * point * scale + POINTS) // (2 * POINTS), scale)


def _leading(number: int) -> tuple[int, int]:
    """The weight and the value of the first digit in base 10,000."""
    weight = 0
    while number >= _NUMERIC_BASE:
        number //= _NUMERIC_BASE
        weight += 1
    return weight, number


def first_point_at(limit: Fraction, factor: Fraction) -> int:
    """The first point where `bucket * factor < limit` does not hold any more; POINTS if it holds everywhere."""
    near = ceil(limit * POINTS / factor)
    # The rounding of a bucket moves it by less than a point.
    for point in range(max(0, near - 2), min(near + 2, POINTS)):
        if bucket(point) * factor >= limit:
            return point
    return max(0, min(near + 2, POINTS))


def first_point_of_percentage(percentage: Decimal) -> int:
    """Units at points below it are among so many of 100."""
    return first_point_at(Fraction(percentage), Fraction(100))


class Rules:
    """Targeting rules, ready to be asked. Their grammar is told at experiments.experiments.targeting_rules."""

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
        """Whether the unit may take part. A rule about what is not known of it does not hold."""
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
    """What JSON values that are equal have in common: 1 and 1.0, but not 1 and true."""
    kind = type(value)
    if kind is str:
        return value
    if kind is bool:
        return kind, value
    if kind is float:
        return Decimal(repr(value))
    return value if kind is int or kind is Decimal else None


class _Pattern:
    """A pattern for a whole URL, in which * stands for any characters or none. Linear in the URL."""

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
    """Tells the variant of any unit in one experiment, by what never changes while it runs."""

    __slots__ = ("_reaches", "_traffic", "_traffic_hash", "_variant_hash", "rules")

    def __init__(
        self, experiment_id: str, weights: Sequence[Decimal], traffic_percentage: Decimal, rules: Mapping[str, Any]
    ) -> None:
        """`weights`: those of the variants in their order, the control's first; not all are zero."""
        self._traffic_hash = Hash(experiment_id, "traffic")
        self._traffic = first_point_of_percentage(traffic_percentage)
        self._variant_hash = Hash(experiment_id, "variant")
        total = sum(map(Fraction, weights), Fraction(0))
        reach = Fraction(0)
        # The first point behind each variant's.
        self._reaches: list[int] = []
        for weight in weights:
            reach += Fraction(weight)
            self._reaches.append(first_point_at(reach, total))
        self.rules = Rules(rules, experiment_id)

    def takes_part(self, unit: bytes, context: Context) -> bool:
        """Whether the unit is within traffic and rules."""
        if self._traffic < POINTS and self._traffic_hash.point(unit) >= self._traffic:
            return False
        return self.rules.are_none or self.rules.hold(unit, context)

    def place(self, unit: bytes) -> int:
        """Which of the variants is the unit's, if it takes part."""
        return bisect_right(self._reaches, self._variant_hash.point(unit))

    def assign(self, unit: bytes, context: Context) -> int | None:
        """Which of the variants the unit is given; None: it takes no part."""
        return self.place(unit) if self.takes_part(unit, context) else None
