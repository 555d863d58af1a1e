"""What the live view knows: the snapshots of all workers, put together. Pure: the clock is the caller's.

Seconds are those of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

from collections import Counter, deque
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from ingest.intake.recent import SNAPSHOT_SECONDS, Snapshot
from ingest.intake.recent_entries import KEPT, ShownEvent, ShownRefusal

KEPT_SECONDS: Final = 60
_MOST_NEW: Final = 25 * KEPT
"""Entries that wait for the next message, if it is late."""


class _Counts(NamedTuple):
    """A worker's numbers when it was last heard."""

    run: str
    accepted: int
    noted: int
    rejected: dict[str, int]


class Picture:
    """Changed by `take` as snapshots come, and by `update` once per message.

    It counts from its beginning: what workers had counted before is left out, their newest entries are not.
    """

    def __init__(self, now: float) -> None:
        self._first_second = int(now) + 1
        self._workers: dict[str, _Counts] = {}
        self._accepted = 0
        self._rejected: Counter[str] = Counter()
        self._of_second: Counter[int] = Counter()
        # Since the last message, and up to then.
        self._new_events: list[ShownEvent] = []
        self._new_refusals: list[ShownRefusal] = []
        self._events: deque[ShownEvent] = deque(maxlen=KEPT)
        self._refusals: deque[ShownRefusal] = deque(maxlen=KEPT)
        self._told: dict[str, Any] = self._numbers(now)

    def take(self, worker: str, snapshot: Snapshot, now: float) -> None:
        """Add what a worker says, which has just come."""
        before = self._workers.get(worker)
        self._workers[worker] = _Counts(snapshot.run, snapshot.accepted, snapshot.noted, snapshot.rejected)
        if before is None:
            # Not heard before: only its newest entries are news.
            before = _Counts(snapshot.run, snapshot.accepted, snapshot.noted, snapshot.rejected)
            events, refusals = snapshot.events, snapshot.refused
        else:
            if before.run != snapshot.run:
                # It has been restarted since: it began to count anew, and we have seen none of it.
                before = _Counts(snapshot.run, 0, 0, {})
            # A connection's first snapshot repeats what an earlier connection has brought.
            events = _newest(snapshot.events, snapshot.accepted - before.accepted)
            refusals = _newest(snapshot.refused, snapshot.noted - before.noted)
        accepted = snapshot.accepted - before.accepted
        self._accepted += accepted
        # A snapshot is of the half second that ends now, a little before it arrives here.
        self._of_second[int(now - SNAPSHOT_SECONDS / 2)] += accepted
        for reason, count in snapshot.rejected.items():
            self._rejected[reason] += count - before.rejected.get(reason, 0)
        self._new_events = [*self._new_events, *events][-_MOST_NEW:]
        self._new_refusals = [*self._new_refusals, *refusals][-_MOST_NEW:]

    def update(self, now: float) -> bytes | None:
        """The message for those who have had the ones before it; None if nothing has changed."""
        events = _in_order(self._new_events)
        refusals = _in_order(self._new_refusals)
        self._new_events, self._new_refusals = [], []
        numbers = self._numbers(now)
        if not events and not refusals and numbers == self._told:
            return None
        self._told = numbers
        self._events.extend(events)
        self._refusals.extend(refusals)
        return _encoded({**numbers, "events": events, "refused": refusals})

    def whole(self) -> bytes:
        """The first message for a new viewer: all that has been told so far."""
        return _encoded({"first": True, **self._told, "events": list(self._events), "refused": list(self._refusals)})

    def _numbers(self, now: float) -> dict[str, Any]:
        current = int(now)
        for second in [each for each in self._of_second if each < current - KEPT_SECONDS]:
            del self._of_second[second]
        seconds = range(max(self._first_second, current - KEPT_SECONDS), current)
        return {
            "accepted": self._accepted,
            "rejected": {reason: count for reason, count in self._rejected.items() if count},
            "per_second": [self._of_second[second] for second in seconds],
        }


def _newest(entries: list[Any], count: int) -> list[Any]:
    return entries[max(0, len(entries) - count) :]


def _in_order(entries: list[Any]) -> list[Any]:
    """The newest of several workers' entries, oldest first."""
    return sorted(entries, key=attrgetter("at"))[-KEPT:]


def _encoded(content: dict[str, Any]) -> bytes:
    return b"event: live\ndata: " + msgspec.json.encode(content) + b"\n\n"
