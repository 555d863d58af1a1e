"""What is read from events: only of ranges that are not too long, and what to say where one is. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from ingest.dashboard.view import CUSTOM, PERIODS, View
from ingest.features.stats.query import MAX_EVENTS_RANGE, Refused, check_events_range

MAX_DAYS = MAX_EVENTS_RANGE.days


class Shorter(NamedTuple):
    """A range that can be read instead."""

    label: str
    view: View


def shorter(view: View, why: str) -> list[Shorter]:
    """The ranges to show instead of this one, if it is too long to be read from events; else none."""
    if _refusal(view, why) is None:
        return []
    first = view.last - timedelta(days=MAX_DAYS - 1)
    return [
        *[
            Shorter(f"last {days} days", view.with_period(name))
            for name, days in PERIODS.items()
            if 1 < days <= MAX_DAYS
        ],
        Shorter(f"{first:%-d %b} to {view.last:%-d %b %Y}", view.with_period(CUSTOM, first, view.last)),
    ]


def check(view: View, why: str) -> None:
    """Raise Refused if it is too long."""
    if (error := _refusal(view, why)) is not None:
        raise error


def _refusal(view: View, why: str) -> Refused | None:
    try:
        check_events_range(view.start, view.end, why)
    except Refused as error:
        return error
    return None
