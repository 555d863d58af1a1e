"""The window of recent message ids, which catches most retries before the database has to.

An id counts as seen only once its record is durable: a retry after a failed fsync is not a duplicate. While the
record is in flight, the retry waits for it. An event that the table refused does not count as seen: it can be sent
again.
"""

from __future__ import annotations

from collections.abc import Iterable

from ingest.journal.open_record import OpenRecord


class DedupeWindow:
    """The most recent ids, between half of `capacity` and all of it; 16 bytes each. Changed on the event loop's
    thread."""

    __slots__ = ("_current", "_half", "_in_flight", "_previous")

    def __init__(self, capacity: int) -> None:
        self._half = capacity // 2
        self._current: set[bytes] = set()
        self._previous: set[bytes] = set()
        self._in_flight: dict[bytes, OpenRecord] = {}

    def __len__(self) -> int:
        return len(self._current) + len(self._previous)

    def seen(self, key: bytes) -> bool:
        """Whether an event with this id is durable."""
        return key in self._current or key in self._previous

    def in_flight(self, key: bytes) -> OpenRecord | None:
        """The record with this id that is not durable yet, if any."""
        return self._in_flight.get(key)

    def sets(self) -> tuple[set[bytes], set[bytes], dict[bytes, OpenRecord]]:
        """(durable, durable, in flight) for many lookups in a row. Read only, and valid until the next await."""
        return self._current, self._previous, self._in_flight

    def forget(self, keys: Iterable[bytes]) -> None:
        """Forget the ids of events that turned out not to be stored: the next events with these ids are new."""
        for key in keys:
            self._current.discard(key)
            self._previous.discard(key)

    def clear(self) -> None:
        """Forget all durable ids, because unknown ones among them were not stored."""
        self._current.clear()
        self._previous.clear()

    def begin(self, keys: Iterable[bytes], record: OpenRecord) -> None:
        """Mark these ids, which were appended to this record, as in flight."""
        if self._half:
            self._in_flight.update(dict.fromkeys(keys, record))

    def settle(self, record: OpenRecord) -> None:
        """Move the ids of the record to the durable ones, or drop them if it failed."""
        if not self._half:
            return
        for key in record.keys:
            self._in_flight.pop(key, None)
        if not record.outcome:
            return
        self._current.update(record.keys)
        if len(self._current) >= self._half:
            self._previous, self._current = self._current, set()
