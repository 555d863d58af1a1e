"""A request on its way from the handler to its records: what handler and intake exchange about it.

The immutable parts are Structs: they are made for each request, and their constructor is no Python call. The mutable
one is a class with slots, which are seven times as fast to set as a Struct's fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ingest.base.bites import Bites
from ingest.base.refusals import Refusal
from ingest.events.arrival import Arrival, Sender
from ingest.events.payload import Payload, RawEvent
from ingest.http.budget import Hold
from ingest.journal.open_record import OpenRecord
from ingest.journal.replays import Watch


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A body, and what else the request says.

    share: the key for rate limits and for taking turns, see Waiting.  is_long: whether decoding takes bites.
    country: of the client, if a trusted proxy named it.  own: whether the service itself made it, not a client.
    unseen: whether no person saw what it reports.  hold: on the memory for bodies, if it comes from a client.
    """

    path: str
    decode: Callable[[bytes], Payload | Bites[Payload]]
    body: bytes
    address: str
    share: str
    headers: Mapping[str, str]
    header_key: str | None = None
    country: str | None = None
    is_long: bool = False
    own: bool = False
    unseen: bool = False
    hold: Hold | None = None


class Opened(msgspec.Struct, frozen=True):
    """A request that is decoded and admitted: what its events share. `arrival` is for the next part."""

    payload: Payload
    arrival: Arrival


class Submission:
    """A request and its outcome. Made by the handler, changed by the intake only.

    `settled` is called with it when the outcome is known: `refused` is set if the whole request was refused;
    otherwise `durable` says whether the accepted events are on stable storage, and `refusals` lists the others.
    """

    __slots__ = (
        "admitted",
        "charged",
        "counted",
        "duplicates",
        "grown",
        "keys",
        "opened",
        "part",
        "position",
        "records",
        "refusals",
        "refused",
        "request",
        "retry_after_seconds",
        "sender",
        "sent",
        "settled",
        "taken",
        "waits",
        "watch",
        "within",
        "work",
        "written",
    )

    def __init__(self, request: Request, settled: Callable[[Submission], None]) -> None:
        self.request = request
        self.settled = settled

        # The outcome.
        self.refused: Refusal | None = None
        self.retry_after_seconds: int | None = None
        self.refusals: list[tuple[int, Refusal]] = []
        # Duplicates, by id and time, that the dedupe window and the turn know of.
        self.duplicates = 0
        # How many of its events have gone through the steps.
        self.position = 0
        # The records that hold events of it, and whether this turn's record will be one of them.
        self.records: list[OpenRecord] = []
        self.waits = False
        # For a replay: its ids, and their outcome.
        self.keys: list[bytes] = []
        self.watch: Watch | None = None

        # Progress. `sender` is set when decoding begins, `opened` when it is done.
        self.sender: Sender | None = None
        self.opened: Opened | None = None
        # The work under way: decoding, or the steps of the events in `taken`. None in between.
        self.work: Bites[Any] | None = None
        self.taken: list[RawEvent | Refusal] = []
        # The next part, how many of its events were taken, and its events as sent, once one of them is refused.
        self.part = 0
        self.within = 0
        self.sent: list[bytes] | None = None
        # Whether it had to wait until it could begin.
        self.admitted = False
        # Bytes of memory that it holds besides the body, and how many of them are in the budget.
        self.grown = 0
        self.counted = 0
        # Bytes of lines that its address was charged for, and bytes written; 0 without a limit.
        self.charged = 0
        self.written = 0

    @property
    def share(self) -> str:
        return self.request.share

    @property
    def accepted(self) -> int:
        """How many of its events were accepted, duplicates included."""
        return self.position - len(self.refusals)

    @property
    def durable(self) -> bool:
        """Whether every record that holds events of it is on stable storage. Valid once it is settled."""
        for record in self.records:  # noqa: SIM110 - a generator is two more calls for each request.
            if not record.outcome:
                return False
        return True

    def bite(self) -> Any:
        """Continue `work` for one bite. Returns its result and clears it, or returns None if there is more."""
        if self.work is None:
            raise RuntimeError("no work is under way")
        try:
            self.grown += next(self.work) or 0
        except StopIteration as end:
            self.work = None
            return end.value
        return None

    def pass_taken(self, opened: Opened) -> bool:
        """Move past the events in `taken`. Returns whether they were the last."""
        count, parts = len(self.taken), opened.payload.parts
        self.position += count
        self.within += count
        self.taken = []
        if self.within < len(parts[self.part].events):
            return False
        self.part += 1
        self.within, self.sent = 0, None
        if self.part == len(parts):
            return True
        self.opened = Opened(opened.payload, opened.arrival._replace(hazards=parts[self.part].hazards))
        return False

    def let_go(self) -> None:
        """Drop what was decoded: its events are appended or refused, and only the fsync is still awaited."""
        self.opened = self.sent = self.work = None
        self.taken = []
