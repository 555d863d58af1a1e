"""Accounting: every event received is stored, a duplicate, rejected with a reason, or pending. Always.

One Accounts per process, changed only on the event loop's thread, in the same turn of the loop as the thing it
counts, so a reader on that thread always finds it balanced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ingest.base.refusals import RejectReason


class Accounts:
    """Events counted since the process started. `recovered`: events found in journals, received by an earlier
    process. `duplicate_at_door` and `duplicate_in_database`: where the retry was caught."""

    def __init__(self) -> None:
        self.received = 0
        self.recovered = 0
        self.stored = 0
        self.duplicate_at_door = 0
        self.duplicate_in_database = 0
        self.rejected: Counter[RejectReason] = Counter()
        self.cleaned = 0
        # Cookieless events that were accepted without a visitor.
        self.without_visitor = 0
        # Callbacks, not counters: each journal counts its own pending events.
        self._pending: list[Callable[[], int]] = []

    def watch_pending(self, pending: Callable[[], int]) -> Callable[[], None]:
        """Add a journal's count of pending events; returns a function that removes it again."""
        self._pending.append(pending)
        return lambda: self._pending.remove(pending)

    def reject(self, reason: RejectReason, events: int = 1) -> None:
        self.rejected[reason] += events

    @property
    def pending(self) -> int:
        return sum(count() for count in self._pending)

    @property
    def unaccounted(self) -> int:
        """received - (stored + duplicate + rejected + pending). Anything but zero is a bug."""
        duplicate = self.duplicate_at_door + self.duplicate_in_database
        settled = self.stored + duplicate + self.rejected.total() + self.pending
        return self.received + self.recovered - settled

    def __repr__(self) -> str:
        return (
            f"Accounts(received={self.received}, recovered={self.recovered}, stored={self.stored}, "
            f"duplicate={self.duplicate_at_door}+{self.duplicate_in_database}, "
            f"rejected={dict(self.rejected)}, pending={self.pending})"
        )
