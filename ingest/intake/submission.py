"""A request's body on its way from the handler to its records: what the two say to each other about it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ingest.base.bites import Bites
from ingest.base.refusals import Refusal
from ingest.events.arrival import Arrival, Sender
from ingest.events.payload import Part, Payload, RawEvent
from ingest.http.budget import Hold
from ingest.journal.open_record import OpenRecord
from ingest.journal.replays import Watch


class Submission:
    """One request's body, and what becomes of it. Made by the handler, changed by Intake only.

    `settled` is done when the outcome is known: `refused` says that and why nothing of it was accepted; otherwise
    `durable` tells whether the journal kept its promise, and `refusals` which events were not accepted.
    """

    __slots__ = (
        "address",
        "admitted",
        "arrival",
        "body",
        "charged",
        "counted",
        "country",
        "decode",
        "duplicates",
        "grown",
        "header_key",
        "headers",
        "hold",
        "is_long",
        "keys",
        "own",
        "parts",
        "path",
        "payload",
        "position",
        "records",
        "refusals",
        "refused",
        "retry_after_seconds",
        "sender",
        "sent",
        "settled",
        "share",
        "taken",
        "unseen",
        "waits",
        "watch",
        "within",
        "work",
        "written",
    )

    def __init__(
        self,
        path: str,
        decode: Callable[[bytes], Payload | Bites[Payload]],
        body: bytes,
        address: str,
        headers: Mapping[str, str],
        header_key: str | None,
        settled: asyncio.Future[None],
    ) -> None:
        self.path = path
        self.decode = decode
        self.body = body
        self.address = address
        self.headers = headers
        self.header_key = header_key
        self.settled = settled
        # What it holds of the memory for bodies, if it is a client's.
        self.hold: Hold | None = None
        # Whose turn it is when it is, see Waiting; whether it takes bites to decode; whether it had to wait for that.
        self.share = address
        self.is_long = False
        self.admitted = False
        # Bytes that there are of it in memory beside `body`, and how many of them the budget knows of.
        self.grown = 0
        self.counted = 0
        # Bytes of lines that its address was charged for, and those that there are; 0 where there is no limit.
        self.charged = 0
        self.written = 0
        # Of the client, if a proxy that is believed named it.
        self.country: str | None = None
        # Whether it is the service's own, not a client's; whether nobody saw what it tells of.
        self.own = False
        self.unseen = False
        self.sender: Sender | None = None
        self.payload: Payload | None = None
        self.arrival: Arrival | None = None
        # What is going on: the decoding, or the steps of the events in `taken`. None in between.
        self.work: Bites[Any] | None = None
        self.taken: list[RawEvent | Refusal] = []
        # The parts that are left, how far the first of them is, and its events as they were sent, once one of them
        # is refused.
        self.parts: deque[Part] = deque()
        self.within = 0
        self.sent: list[bytes] | None = None
        # How many of its events are through the steps.
        self.position = 0
        # Events that were there already, by their id and time, as far as could be seen at once.
        self.duplicates = 0
        # The records that hold something of it, and whether the one of this turn will be another.
        self.records: list[OpenRecord] = []
        self.waits = False
        self.refusals: list[tuple[int, Refusal]] = []
        self.refused: Refusal | None = None
        self.retry_after_seconds: int | None = None
        # Of a replay: the ids in it, and what becomes of them.
        self.keys: set[bytes] = set()
        self.watch: Watch | None = None

    def bite(self) -> Any:
        """Go on with `work`: its result, after which there is none, or None if there is more."""
        assert self.work is not None
        try:
            self.grown += next(self.work) or 0
        except StopIteration as end:
            self.work = None
            return end.value
        return None

    @property
    def accepted(self) -> int:
        """How many of its events were accepted, duplicates included."""
        return self.position - len(self.refusals)

    @property
    def durable(self) -> bool:
        """Whether every record that holds something of it is on stable storage. Ask when it is settled."""
        return all(record.outcome for record in self.records)
