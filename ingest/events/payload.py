"""What a body holds, decoded: raw events in our own field names, in parts."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from ingest.base.refusals import Refusal
from ingest.events.hazards import Hazards

EVENT_BYTES: Final = 600
"""What a decoded event costs at the most, beside its text: the object, its fields, perhaps its refusal."""
NOTHING = Raw(b"")


class RawEvent(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One event as a client sent it, in the native dialect's names. Types are checked, values are not."""

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


class Part(NamedTuple):
    """Neighbouring events of a body, decoded; a Refusal stands where one was malformed.

    `text` is what they were decoded from, and `split` the text of each if they had to be told apart for that.
    """

    text: bytes
    events: list[Any]
    hazards: Hazards
    split: list[bytes] | None = None

    @property
    def memory_bytes(self) -> int:
        """What it costs at the most: its text, again in pieces or with fields of other names, and as texts of events,
        where a character takes four bytes if one of them is off Latin-1."""
        return len(self.text) * (3 if self.text.isascii() else 7) + EVENT_BYTES * len(self.events)


class Payload(NamedTuple):
    """A decoded body, its events in order, in parts. cleaned: escapes that were replaced.  size: its bytes.

    sent_at: the whole body's; an event may have one of its own, which is by the clock that it was stamped by.
    """

    parts: list[Part]
    sent_at: str | int | float | None
    write_key: str | None
    cleaned: int
    size: int

    @property
    def total(self) -> int:
        """How many events it holds."""
        parts = self.parts
        return len(parts[0].events) if len(parts) == 1 else sum([len(part.events) for part in parts])

    @property
    def events(self) -> list[RawEvent | Refusal]:
        """All of them; a Refusal stands where one was malformed."""
        return [event for part in self.parts for event in part.events]
