"""A query for statistics, and its refusal. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

from ingest.events.limits import EVENT_TYPES
from ingest.features.stats.steps import EventStep

MAX_EVENTS_RANGE: Final = timedelta(days=31)
MAX_PERIODS: Final = 31
EARLIEST: Final = datetime(1970, 1, 2, tzinfo=UTC)
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)
OTHER_EVENT: Final = ""
"""In place of a name: events whose names a bucket had no room for, as aggregates store them."""


class Refused(Exception):
    """A query that is not answered: status, problem code, and a sentence that says what is allowed."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Other:
    """In place of a filter's value: the values that a bucket had no room for."""


OTHER: Final = Other()
Value = str | Other | None
"""What a filter selects; None: events without a value."""


@dataclass(frozen=True)
class Query:
    """A checked query. `start` and `end` are in UTC; what was not given has its default, or is None."""

    start: datetime
    end: datetime
    zone: tzinfo
    granularity: str
    granularity_given: bool = False
    event: str | None = None
    type: str | None = None
    filters: Mapping[str, Value] = field(default_factory=dict)
    bots: str = "exclude"
    limit: int = 100
    after: Sequence[Any] | None = None
    dimension: str = ""
    steps: Sequence[EventStep] = ()
    within: timedelta = timedelta(days=7)
    return_event: str | None = None
    periods: int = MAX_PERIODS
    name: str | None = None
    metric_dimensions: Mapping[str, str] = field(default_factory=dict)

    @property
    def asks_others(self) -> bool:
        """Whether it is about what buckets had no room for, which only aggregates know."""
        return self.event == OTHER_EVENT or OTHER in self.filters.values()

    @property
    def types(self) -> list[str]:
        return [self.type] if self.type else list(EVENT_TYPES)


def check_events_range(start: datetime, end: datetime, why: str) -> None:
    """Raise Refused unless a range this long may be read from events; `why` it would have to be."""
    # One hour more: the end of summer time may fall within 31 local days.
    if end - start > MAX_EVENTS_RANGE + timedelta(hours=1):
        raise Refused("range_too_large", f"{why}, which is possible for at most {MAX_EVENTS_RANGE.days} days")
