"""The window of recent message ids, which catches most retries before the database has to.

An id counts as seen only once its record is durable: a retry after a failed fsync is not a duplicate. While the
record is on its way, the retry waits for it. Nor is an event seen that the table refused: it can be sent again.
"""

from __future__ import annotations

from collections.abc import Iterable

from ingest.journal.open_record import OpenRecord


class DedupeWindow:
    """The last ids, between half and all of `capacity`; 16 bytes each. Changed on the event loop's thread."""

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
        """The record that is being made durable with this id in it."""
        return self._in_flight.get(key)

    def sets(self) -> tuple[set[bytes], set[bytes], dict[bytes, OpenRecord]]:
        """(durable, durable, in flight) for many questions in a row; to be read only, and before the next await."""
        return self._current, self._previous, self._in_flight

    def forget(self, keys: Iterable[bytes]) -> None:
        """These events turned out not to be kept: the next with their ids are new."""
        for key in keys:
            self._current.discard(key)
            self._previous.discard(key)

    def clear(self) -> None:
        """Forget all durable ids: some of them are not kept, nobody knows which."""
        self._current.clear()
        self._previous.clear()

    def begin(self, keys: Iterable[bytes], record: OpenRecord) -> None:
        """These ids were appended to this record."""
        if self._half:
            self._in_flight.update(dict.fromkeys(keys, record))

    def settle(self, record: OpenRecord) -> None:
        """The record is durable, or never will be."""
        if not self._half:
            return
        for key in record.keys:
            self._in_flight.pop(key, None)
        if not record.outcome:
            return
        self._current.update(record.keys)
        if len(self._current) >= self._half:
            self._previous, self._current = self._current, set()
