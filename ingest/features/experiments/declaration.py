"""What is written of an experiment: fields, bounds and the grammar of targeting rules, as the database has them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ingest.api.fields import FieldError, about, number, text

MAX_TESTS: Final = 50
"""Variants beside the control."""

Name = Annotated[
    str, text("What applications know it by; a flag's key", low=1, high=100, examples=["checkout-button"])
]
Description = Annotated[str, text("What it is about", high=5000)]
Hypothesis = Annotated[str, text("What is expected, and why", high=5000)]
Traffic = Annotated[float, number("How many of 100 units that match the targeting rules take part", 0, 100)]
Active = Annotated[bool, about("The switch to stop it at once: false assigns nobody while it is running")]
Moment = Annotated[datetime, Meta(tz=True, extra={"what": "a time with its zone such as 2026-01-31T18:00:00Z"})]


class Variant(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a unit may be given."""

    id: Annotated[str, text("Its name", low=1, high=100, examples=["control"])]
    weight: Annotated[float, number("Relative to the sum of all weights; 1 if absent", 0, 1_000_000)] | UnsetType = (
        UNSET
    )
    payload: Annotated[Any, about("For the application: any JSON; the value of the flag")] | UnsetType = UNSET


Country = Annotated[str, text("ISO 3166-1 alpha-2", low=2, high=2, pattern="^[A-Z]{2}$", examples=["DE"])]
Device = Annotated[str, text("A kind of device", pattern="^(desktop|mobile|tablet|bot|other)$", high=7)]
UrlPattern = Annotated[
    str,
    text(
        "For the whole URL: * stands for any characters or none",
        low=1,
        high=2048,
        pattern="^[!-~]+$",
        examples=["https://example.com/pricing*"],
    ),
]
Scalar = str | int | float | bool


class TargetingRules(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Who may take part: rules that must all hold; none is everybody. A rule about what is not known of a unit does
    not hold."""

    country: Country | Annotated[list[Country], Meta(min_length=1, max_length=300)] | UnsetType = UNSET
    device: Device | Annotated[list[Device], Meta(min_length=1, max_length=10)] | UnsetType = UNSET
    url: UrlPattern | Annotated[list[UrlPattern], Meta(min_length=1, max_length=100)] | UnsetType = UNSET
    attributes: (
        Annotated[
            dict[str, Scalar | Annotated[list[Scalar], Meta(min_length=1, max_length=1000)]],
            about("Each must be among the unit's attributes, with that value or one of that list"),
        ]
        | UnsetType
    ) = UNSET
    percentage: (
        Annotated[float, number("How many of 100 units, chosen by a hash of their own", 0, 100)] | UnsetType
    ) = UNSET


class NewExperiment(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An experiment as it is drafted."""

    name: Name
    test_variants: Annotated[list[Variant], Meta(max_length=MAX_TESTS, description="What is tried instead")] = []
    control_variant: Variant = msgspec.field(default_factory=lambda: Variant("control"))
    description: Description | None = None
    hypothesis: Hypothesis | None = None
    is_active: Active | UnsetType = UNSET
    traffic_percentage: Traffic | UnsetType = UNSET
    targeting_rules: TargetingRules | UnsetType = UNSET
    start_date: Moment | None = None
    end_date: Moment | None = None


class Changes(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be different; null empties what may be empty."""

    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    hypothesis: Hypothesis | UnsetType | None = UNSET
    is_active: Active | UnsetType = UNSET
    traffic_percentage: Traffic | UnsetType = UNSET
    control_variant: Variant | UnsetType = UNSET
    test_variants: Annotated[list[Variant], Meta(max_length=MAX_TESTS)] | UnsetType = UNSET
    targeting_rules: TargetingRules | UnsetType = UNSET
    start_date: Moment | UnsetType | None = UNSET
    end_date: Moment | UnsetType | None = UNSET
    results: Annotated[dict[str, Any], about("What was found, as the analyst writes it down")] | UnsetType = UNSET


def columns(given: NewExperiment | Changes) -> dict[str, Any]:
    """The columns that are named, as JSON has them."""
    found: dict[str, Any] = msgspec.to_builtins(given)
    if isinstance(given, NewExperiment):
        # Also where they are the defaults, which `to_builtins` leaves out.
        found["control_variant"] = msgspec.to_builtins(given.control_variant)
        found["test_variants"] = [msgspec.to_builtins(variant) for variant in given.test_variants]
    return found


def wrong_together(row: dict[str, Any]) -> Iterator[FieldError]:
    """What is wrong with fields of a whole row that are well each for themselves."""
    variants = [row["control_variant"], *row["test_variants"]]
    ids = [variant["id"] for variant in variants]
    if len(set(ids)) < len(ids):
        yield FieldError("test_variants", "each variant must have an id of its own, other than the control's")
    if not any(variant.get("weight", 1) > 0 for variant in variants):
        yield FieldError("control_variant", "the weights must not all be 0: nobody could be given anything")
    start, end = _moment(row.get("start_date")), _moment(row.get("end_date"))
    if start is not None and end is not None and end <= start:
        yield FieldError("end_date", "must be after start_date")


def _moment(value: Any) -> datetime | None:
    return None if value is None else msgspec.convert(value, datetime)
