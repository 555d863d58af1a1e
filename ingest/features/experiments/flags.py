"""An experiment as a feature flag, with the responses of OpenFeature's remote evaluation computed in advance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from ingest.features.experiments.assignment import Assigner, Context


class Reason(StrEnum):
    """Why a flag has its value, in the protocol's terms."""

    SPLIT = "SPLIT"
    TARGETING_MATCH = "TARGETING_MATCH"
    DEFAULT = "DEFAULT"
    DISABLED = "DISABLED"
    STATIC = "STATIC"


class FlagVariant(NamedTuple):
    """`payload`: JSON as the database stores it; None if there is none."""

    id: str
    weight: Decimal
    payload: str | None


class Definition(NamedTuple):
    """An experiment that was started and is not archived. Numbers in `rules` are int or Decimal."""

    id: str
    name: str
    status: str
    is_active: bool
    traffic_percentage: Decimal
    variants: Sequence[FlagVariant]
    rules: Mapping[str, Any]
    start_date: datetime | None
    end_date: datetime | None
    winner: str | None


class Evaluation(NamedTuple):
    """A flag's value for a unit. `body` is the response, as JSON."""

    variant: str
    reason: Reason
    body: bytes


_CONTROL: Final = 0


class Flag:
    """A flag. Its value is the variant's payload or, if that is absent or null, the variant's id."""

    __slots__ = (
        "_assigned",
        "_assigner",
        "_is_bounded",
        "_is_on",
        "_outside",
        "_stopped",
        "definition",
        "needs_attributes",
        "needs_context",
    )

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._assigner = Assigner(
            definition.id,
            [variant.weight for variant in definition.variants],
            definition.traffic_percentage,
            definition.rules,
        )
        self.needs_context = self._assigner.rules.are_of_context
        self.needs_attributes = self._assigner.rules.needs_attributes
        reason = Reason.TARGETING_MATCH if self.needs_context else Reason.SPLIT
        self._assigned = [self._evaluation(place, reason) for place in range(len(definition.variants))]
        self._outside = self._evaluation(_CONTROL, Reason.DEFAULT)
        self._stopped = self._evaluation_when_stopped()
        self._is_on = definition.status == "running" and definition.is_active
        # Whether evaluating needs the time; not once it has begun, if it has no end.
        self._is_bounded = definition.start_date is not None or definition.end_date is not None

    def evaluate(self, unit: bytes, context: Context, now: Callable[[], datetime]) -> Evaluation:
        """This unit's value now."""
        if not self._is_on or (self._is_bounded and not self._is_within(now())):
            return self._stopped
        place = self._assigner.assign(unit, context)
        return self._outside if place is None else self._assigned[place]

    def _is_within(self, now: datetime) -> bool:
        start, end = self.definition.start_date, self.definition.end_date
        if start is not None and start > now:
            return False
        # Once begun, only the end matters.
        self._is_bounded = end is not None
        return end is None or end > now

    def payload(self, variant_id: str) -> str | None:
        """A variant's payload; None if it has none, or there is no such variant."""
        return next((each.payload for each in self.definition.variants if each.id == variant_id), None)

    def _evaluation_when_stopped(self) -> Evaluation:
        """Everybody gets the winner or, without one, the control."""
        definition = self.definition
        if definition.status == "completed" and definition.winner is not None:
            ids = [variant.id for variant in definition.variants]
            return self._evaluation(ids.index(definition.winner), Reason.STATIC)
        return self._evaluation(_CONTROL, Reason.DISABLED)

    def _evaluation(self, place: int, reason: Reason) -> Evaluation:
        variant = self.definition.variants[place]
        is_empty = variant.payload is None or variant.payload == "null"
        # As the database wrote it: a float stays a float (1.0), which a JSON library would not keep.
        value = msgspec.json.encode(variant.id) if is_empty else str(variant.payload).encode()
        takes_part = reason in (Reason.SPLIT, Reason.TARGETING_MATCH)
        body = {
            "key": self.definition.name,
            "value": msgspec.Raw(value),
            "variant": variant.id,
            "reason": reason.value,
            "metadata": {"experiment": self.definition.id, "takes_part": takes_part},
        }
        return Evaluation(variant.id, reason, msgspec.json.encode(body))
