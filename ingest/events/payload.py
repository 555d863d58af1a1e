"""A decoded body: raw events with native field names, in parts."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from ingest.base.refusals import Refusal
from ingest.events.hazards import Hazards

EVENT_BYTES: Final = 600
"""The most memory that a decoded event takes besides its text: the object, its fields, perhaps its refusal."""
NOTHING = Raw(b"")


class RawEvent(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One event as a client sent it, with native field names. Types are checked, values are not."""

    name: str | None = None
    type: str | None = None
    id: str | int | None = None
    timestamp: str | int | float | None = None
    user_id: str | int | None = None
    anonymous_id: str | int | None = None
    session_id: str | int | None = None
    properties: Raw = NOTHING
    context: Raw = NOTHING
    url: str | None = None
    referrer: str | None = None
    sentAt: str | int | float | None = None
    sent_at: str | int | float | None = None
    cookieless: bool | str | None = None


class Part(NamedTuple):
    """Consecutive events of a body, decoded; a Refusal is in the place of a malformed one.

    `text` is what they were decoded from, and `split` the text of each if it had to be split for that.
    """

    text: bytes
    events: list[Any]
    hazards: Hazards
    split: list[bytes] | None = None

    @property
    def memory_bytes(self) -> int:
        """The most memory it takes: its text, a copy of that in pieces or respelled, and the strings of its events,
        with four bytes a character if one is outside Latin-1."""
        return len(self.text) * (3 if self.text.isascii() else 7) + EVENT_BYTES * len(self.events)


class Payload(NamedTuple):
    """A decoded body: its events in order, in parts. cleaned: how many escapes were replaced.  size: in bytes.

    sent_at: of the whole body; an event may have its own, by the clock that its timestamp comes from.
    """

    parts: list[Part]
    sent_at: str | int | float | None
    write_key: str | None
    cleaned: int
    size: int

    @property
    def total(self) -> int:
        """The number of events."""
        parts = self.parts
        return len(parts[0].events) if len(parts) == 1 else sum([len(part.events) for part in parts])

    @property
    def events(self) -> list[RawEvent | Refusal]:
        """All events; a Refusal is in the place of a malformed one."""
        return [event for part in self.parts for event in part.events]
