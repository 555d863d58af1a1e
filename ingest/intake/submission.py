"""A request's body on its way from the handler to its records: what the two say to each other about it.

What does not change is a Struct: the constructor is no Python call, and these are made for each request. What
changes is a class with slots, which are seven times as fast to set as a Struct's fields.
"""

from __future__ import annotations

import asyncio
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
    """What came: a body, and what the request says besides.

    share: whose turn it is when it is this body's, see Waiting.  is_long: whether it takes bites to decode.
    country: of the client, if a trusted proxy named it.  own: whether it is the service's, not a client's.
    unseen: whether nobody saw what it is about.  hold: on the memory for bodies, if it is a client's.
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
    """A request that is decoded and may come in: what its events share. `arrival` is of the part that is next."""

    payload: Payload
    arrival: Arrival


class Submission:
    """A request, and what becomes of it. Made by the handler, changed by the intake only.

    `settled` is done when the outcome is known: `refused` says that and why nothing of it was accepted; otherwise
    `durable` says whether the journal kept its promise, and `refusals` which events were not accepted.
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

    def __init__(self, request: Request, settled: asyncio.Future[None]) -> None:
        self.request = request
        self.settled = settled

        # The outcome.
        self.refused: Refusal | None = None
        self.retry_after_seconds: int | None = None
        self.refusals: list[tuple[int, Refusal]] = []
        # Events that were there already, by their id and time, as far as could be seen at once.
        self.duplicates = 0
        # How many of its events are through the steps.
        self.position = 0
        # The records that hold something of it, and whether the one of this turn will be another.
        self.records: list[OpenRecord] = []
        self.waits = False
        # Of a replay: the ids in it, and what becomes of them.
        self.keys: list[bytes] = []
        self.watch: Watch | None = None

        # The way there. `sender` is set when the decoding begins, `opened` when it is done.
        self.sender: Sender | None = None
        self.opened: Opened | None = None
        # What is going on: the decoding, or the steps of the events in `taken`. None in between.
        self.work: Bites[Any] | None = None
        self.taken: list[RawEvent | Refusal] = []
        # Which part is next, how far it is, and its events as they were sent, once one of them is refused.
        self.part = 0
        self.within = 0
        self.sent: list[bytes] | None = None
        # Whether it had to wait until it could begin.
        self.admitted = False
        # Bytes that there are of it in memory besides the body, and how many of them the budget knows of.
        self.grown = 0
        self.counted = 0
        # Bytes of lines that its address was charged for, and those that there are; 0 where there is no limit.
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
        """Whether every record that holds something of it is on stable storage. Ask when it is settled."""
        for record in self.records:  # noqa: SIM110 - a generator is two more calls for each request.
            if not record.outcome:
                return False
        return True

    def bite(self) -> Any:
        """Go on with `work`: its result, after which there is none, or None if there is more."""
        if self.work is None:
            raise RuntimeError("nothing was begun")
        try:
            self.grown += next(self.work) or 0
        except StopIteration as end:
            self.work = None
            return end.value
        return None

    def pass_taken(self, opened: Opened) -> bool:
        """Go on behind the events that were taken; whether there are no more."""
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
        """Its events are appended or refused: what waits for an fsync need not hold what was decoded."""
        self.opened = self.sent = self.work = None
        self.taken = []
