"""The number of a record across all journals: `analytics.events.batch_id`."""

from __future__ import annotations

from typing import Final

RECORD_BITS: Final = 40


def batch_id(journal: int, record: int) -> int:
    """The journal's number, followed by the record's number in 40 bits."""
    return journal << RECORD_BITS | record
