"""An experiment as a feature flag: what OpenFeature's remote evaluation is answered, worked out beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from ingest.features.experiments.assignment import Assigner, Context


class Reason(StrEnum):
    """Why a flag has its value, in the protocol's words."""

    SPLIT = "SPLIT"
    TARGETING_MATCH = "TARGETING_MATCH"
    DEFAULT = "DEFAULT"
    DISABLED = "DISABLED"
    STATIC = "STATIC"


class Variant(NamedTuple):
    """`payload`: JSON as the database has it, None for none."""

    id: str
    weight: Decimal
    payload: str | None


class Definition(NamedTuple):
    """An experiment that was started, and is not put away. `rules`: its numbers are int or Decimal."""

    id: str
    name: str
    status: str
    is_active: bool
    traffic_percentage: Decimal
    variants: Sequence[Variant]
    rules: Mapping[str, Any]
    start_date: datetime | None
    end_date: datetime | None
    winner: str | None


class Evaluation(NamedTuple):
    """What a unit is told. `body` is the answer, as JSON."""

    variant: str
    reason: Reason
    body: bytes


_CONTROL: Final = 0


class Flag:
    """A flag, its value the variant's payload, or the variant's id if it has none that says anything."""

    __slots__ = (
        "_assigner",
        "_given",
        "_is_bounded",
        "_is_on",
        "_kept",
        "_outside",
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
        self._given = [self._evaluation(place, reason) for place in range(len(definition.variants))]
        self._outside = self._evaluation(_CONTROL, Reason.DEFAULT)
        self._kept = self._evaluation_when_stopped()
        self._is_on = definition.status == "running" and definition.is_active
        # Whether the time must be asked for; no more once it has begun, if it has no end.
        self._is_bounded = definition.start_date is not None or definition.end_date is not None

    def evaluate(self, unit: bytes, context: Context, now: Callable[[], datetime]) -> Evaluation:
        """What this unit is told now."""
        if not self._is_on or (self._is_bounded and not self._is_within(now())):
            return self._kept
        place = self._assigner.assign(unit, context)
        return self._outside if place is None else self._given[place]

    def _is_within(self, now: datetime) -> bool:
        start, end = self.definition.start_date, self.definition.end_date
        if start is not None and start > now:
            return False
        # What has begun has begun.
        self._is_bounded = end is not None
        return end is None or end > now

    def payload(self, variant_id: str) -> str | None:
        """A variant's payload; None: it has none, or there is no such variant."""
        return next((each.payload for each in self.definition.variants if each.id == variant_id), None)

    def _evaluation_when_stopped(self) -> Evaluation:
        """Everybody has the winner, if there is one, else what there was before."""
        definition = self.definition
        if definition.status == "completed" and definition.winner is not None:
            ids = [variant.id for variant in definition.variants]
            return self._evaluation(ids.index(definition.winner), Reason.STATIC)
        return self._evaluation(_CONTROL, Reason.DISABLED)

    def _evaluation(self, place: int, reason: Reason) -> Evaluation:
        variant = self.definition.variants[place]
        says_nothing = variant.payload is None or variant.payload == "null"
        # As the database wrote it: a float stays one (1.0), which is not what a JSON library makes of it.
        value = msgspec.json.encode(variant.id) if says_nothing else str(variant.payload).encode()
        takes_part = reason in (Reason.SPLIT, Reason.TARGETING_MATCH)
        told = {
            "key": self.definition.name,
            "value": msgspec.Raw(value),
            "variant": variant.id,
            "reason": reason.value,
            "metadata": {"experiment": self.definition.id, "takes_part": takes_part},
        }
        return Evaluation(variant.id, reason, msgspec.json.encode(told))
