"""The collectors' clock, for tests that set it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any


class Clock(datetime):
    """In place of `datetime` in a module; it advances by a microsecond with each call. Set `at` first."""

    at: datetime = datetime(2000, 1, 1, tzinfo=UTC)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        cls.at += timedelta(microseconds=1)
        return cls.at
