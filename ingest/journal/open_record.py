"""What requests hold while their lines are on the way to stable storage."""

from __future__ import annotations

import asyncio


class OpenRecord:
    """The record that requests are added to until the fsync in flight returns; then a handle to wait on.

    Changed by the journal only. `outcome` is None until the record is settled, then whether it is durable.
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
        # As they will stand in the record, so that `size` is bytes.
        self.lines: list[bytes] = []
        self.rejected_lines: list[bytes] = []
        # How many places in it were given to events, which may not all have become lines.
        self.positions = 0
        self.events = 0
        self.rejected = 0
        self.size = 0
        self.keys: list[bytes] = []
        self.waiters: list[asyncio.Future[None]] = []
        # Whether it is to be the first of a new segment, however small the last one is.
        self.begins_segment = False
        self.outcome: bool | None = None
