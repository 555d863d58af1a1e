"""The fields of an experiment, their bounds and the grammar of targeting rules, as in the database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ingest.api.fields import FieldError, about, number, text

MAX_TESTS: Final = 50
"""Variants besides the control."""

Name = Annotated[
    str, text("The name that applications use; the key of its flag", low=1, high=100, examples=["checkout-button"])
]
Description = Annotated[str, text("What the experiment is about", high=5000)]
Hypothesis = Annotated[str, text("What is expected, and why", high=5000)]
Traffic = Annotated[float, number("Percentage of the units matching the targeting rules that take part", 0, 100)]
Active = Annotated[bool, about("Switch to stop it at once: false assigns no unit, even while it is running")]
Timestamp = Annotated[datetime, Meta(tz=True, extra={"what": "a time with its zone such as 2026-01-31T18:00:00Z"})]


class Variant(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One of the alternatives that units are assigned to."""

    id: Annotated[str, text("The variant's name", low=1, high=100, examples=["control"])]
    weight: (
        Annotated[float, number("Share, relative to the sum of all weights; 1 if absent", 0, 1_000_000)] | UnsetType
    ) = UNSET
    payload: Annotated[Any, about("Any JSON, for the application; the flag's value")] | UnsetType = UNSET


Country = Annotated[str, text("ISO 3166-1 alpha-2", low=2, high=2, pattern="^[A-Z]{2}$", examples=["DE"])]
Device = Annotated[str, text("Type of device", pattern="^(desktop|mobile|tablet|bot|other)$", high=7)]
UrlPattern = Annotated[
    str,
    text(
        "Matches the whole URL; * matches any characters or none",
        low=1,
        high=2048,
        pattern="^[!-~]+$",
        examples=["https://example.com/pricing*"],
    ),
]
Scalar = str | int | float | bool


class TargetingRules(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which units may take part: all of these rules must hold; without rules every unit may. A rule about something
    unknown does not hold."""

    country: Country | Annotated[list[Country], Meta(min_length=1, max_length=300)] | UnsetType = UNSET
    device: Device | Annotated[list[Device], Meta(min_length=1, max_length=10)] | UnsetType = UNSET
    url: UrlPattern | Annotated[list[UrlPattern], Meta(min_length=1, max_length=100)] | UnsetType = UNSET
    attributes: (
        Annotated[
            dict[str, Scalar | Annotated[list[Scalar], Meta(min_length=1, max_length=1000)]],
            about("The unit must have each of these attributes, with this value or one of the list"),
        ]
        | UnsetType
    ) = UNSET
    percentage: Annotated[float, number("Percentage of units, chosen by a separate hash", 0, 100)] | UnsetType = UNSET


class NewExperiment(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A new draft."""

    name: Name
    test_variants: Annotated[
        list[Variant], Meta(max_length=MAX_TESTS, description="The alternatives to the control")
    ] = []
    control_variant: Variant = msgspec.field(default_factory=lambda: Variant("control"))
    description: Description | None = None
    hypothesis: Hypothesis | None = None
    is_active: Active | UnsetType = UNSET
    traffic_percentage: Traffic | UnsetType = UNSET
    targeting_rules: TargetingRules | UnsetType = UNSET
    start_date: Timestamp | None = None
    end_date: Timestamp | None = None


class Changes(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The fields to change; null clears a field that may be empty."""

    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    hypothesis: Hypothesis | UnsetType | None = UNSET
    is_active: Active | UnsetType = UNSET
    traffic_percentage: Traffic | UnsetType = UNSET
    control_variant: Variant | UnsetType = UNSET
    test_variants: Annotated[list[Variant], Meta(max_length=MAX_TESTS)] | UnsetType = UNSET
    targeting_rules: TargetingRules | UnsetType = UNSET
    start_date: Timestamp | UnsetType | None = UNSET
    end_date: Timestamp | UnsetType | None = UNSET
    results: Annotated[dict[str, Any], about("Findings, as the analyst records them")] | UnsetType = UNSET


def columns(given: NewExperiment | Changes) -> dict[str, Any]:
    """The columns that were given, as JSON values."""
    found: dict[str, Any] = msgspec.to_builtins(given)
    if isinstance(given, NewExperiment):
        # Defaults too, which `to_builtins` leaves out.
        found["control_variant"] = msgspec.to_builtins(given.control_variant)
        found["test_variants"] = [msgspec.to_builtins(variant) for variant in given.test_variants]
    return found


def wrong_together(row: dict[str, Any]) -> Iterator[FieldError]:
    """Contradictions between the fields of a row, each of which is valid by itself."""
    variants = [row["control_variant"], *row["test_variants"]]
    ids = [variant["id"] for variant in variants]
    if len(set(ids)) < len(ids):
        yield FieldError("test_variants", "each variant must have a different id, and none the control's")
    if not any(variant.get("weight", 1) > 0 for variant in variants):
        yield FieldError("control_variant", "the weights must not all be 0: no variant could be assigned")
    start, end = _moment(row.get("start_date")), _moment(row.get("end_date"))
    if start is not None and end is not None and end <= start:
        yield FieldError("end_date", "must be after start_date")


def _moment(value: Any) -> datetime | None:
    return None if value is None else msgspec.convert(value, datetime)
