"""Whether waiting flushes are being rolled up, whichever worker does it and whatever may prevent it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Waiting(NamedTuple):
    """What is not rolled up yet. `first` identifies the flush that is next; `leader` is the worker in the lead."""

    flushes: int
    events: int
    seconds: float
    first: str | None
    leader: str | None


class Progress:
    """Knows for how long the same flush has been first in line. Call `see` or `cannot_see` every second or so."""

    def __init__(self, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_seconds = limit_seconds
        self._clock = clock
        # All are changed by `see` and `cannot_see`. The last reading; why there is none now; since when the first
        # flush has been first or, if none is known to be waiting, since when there has been no reading.
        self._waiting = Waiting(0, 0, 0.0, None, None)
        self._blind: str | None = None
        self._since: float | None = None

    def see(self, waiting: Waiting) -> None:
        """Record what is waiting now."""
        if waiting.first is None:
            self._since = None
        elif waiting.first != self._waiting.first or self._since is None:
            self._since = self._clock()
        self._waiting, self._blind = waiting, None

    def cannot_see(self, reason: str) -> None:
        """Record that the database does not say what is waiting: it may be anything."""
        if self._since is None:
            self._since = self._clock()
        self._blind = reason

    @property
    def stalled(self) -> bool:
        """Whether there has been no progress for longer than the limit."""
        return self._since is not None and self._clock() - self._since > self._limit_seconds

    @property
    def reason(self) -> str:
        """Why there is no progress, in a line."""
        seconds = self._clock() - self._since if self._since is not None else 0.0
        if self._blind is not None:
            return f"for {seconds:.0f} s the database has not reported what is waiting: {self._blind}"
        waiting = self._waiting
        return (
            f"nothing rolled up for {seconds:.0f} s while {waiting.flushes} flushes with {waiting.events} events"
            f" are waiting, the first for {waiting.seconds:.0f} s; the lead is"
            f" {'taken by ' + waiting.leader if waiting.leader else 'free'}"
        )

    def details(self) -> Mapping[str, object]:
        """For /readyz."""
        seen = {
            "flushes_waiting": self._waiting.flushes,
            "events_waiting": self._waiting.events,
            "oldest_waiting_seconds": round(self._waiting.seconds, 3),
        }
        return {**seen, "reason": self.reason} if self.stalled else seen
