"""The handle that requests hold while their lines are on the way to stable storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class OpenRecord:
    """The record that requests append to until the fsync in flight returns; then a handle to wait on.

    Changed only by the journal. `outcome`: None until the record is settled, then whether it is durable.
    """

    __slots__ = (
        "begins_segment",
        "events",
        "keys",
        "lines",
        "number",
        "opened_at_us",
        "outcome",
        "positions",
        "rejected",
        "rejected_lines",
        "size",
        "waiters",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.opened_at_us = 0
        # Encoded as in the record, so that `size` is in bytes.
        self.lines: list[bytes] = []
        self.rejected_lines: list[bytes] = []
        # Positions reserved for events, not all of which need have become lines.
        self.positions = 0
        self.events = 0
        self.rejected = 0
        self.size = 0
        self.keys: list[bytes] = []
        # Called when it is settled.
        self.waiters: list[Callable[[], None]] = []
        # Whether to begin a new segment with this record, however small the current one is.
        self.begins_segment = False
        self.outcome: bool | None = None


def encode(lines: Sequence[str]) -> list[bytes]:
    """Encode one by one: if they were joined first, a single character outside Latin-1 would make the whole string
    wide and slow.

    "replace" should never be needed, but one malformed text must not fail the others.
    """
    return [line.encode("utf-8", "replace") for line in lines]
