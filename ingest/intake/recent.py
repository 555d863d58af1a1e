"""The newest events and refusals of this worker, and how many there were: what the live view reads.

Always on, so that whoever opens the view sees what came before. It costs a microsecond or so per record of the
journal, however many events that has: lines are kept as they are, and only those that somebody looks at are parsed.
Kept are KEPT lines of at most LINE_BYTES, and the beginnings of as many refused events.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import islice
from typing import Final, TypeVar
from uuid import uuid4

from msgspec import Struct

from ingest.base.refusals import Refusal, RejectReason
from ingest.base.waits import wait_for
from ingest.intake.recent_entries import (
    KEPT,
    KeptRefusal,
    ShownEvent,
    ShownRefusal,
    newest_of,
    shown_event,
)
from ingest.journal.accounts import Accounts
from ingest.journal.open_record import OpenRecord

SNAPSHOT_SECONDS: Final = 0.5
_EARLY_SECONDS: Final = 0.05
_Kept = TypeVar("_Kept")
NOT_WRITTEN: Final = Refusal(RejectReason.JOURNAL_UNAVAILABLE, "the journal could not be written")


class Snapshot(Struct):
    """What has changed since the reader's last one; the first has all that is kept. Entries: oldest first."""

    run: str
    """Of this process: another one begins to count anew."""
    accepted: int
    """Events acknowledged since the process started."""
    rejected: dict[str, int]
    """Events refused since then, by reason, as in the metrics: also those refused after their acknowledgement."""
    noted: int
    """Refusals that could have been shown, since then."""
    events: list[ShownEvent]
    refused: list[ShownRefusal]


class Recent:
    """Changed by the intake as requests are refused and records settled, on the loop's thread."""

    def __init__(self, accounts: Accounts, conceals: bool = True) -> None:
        """`conceals`: whether addresses in refused events lose their last part."""
        self._accounts = accounts
        self._conceals = conceals
        self._run = uuid4().hex
        # Both only grow.
        self._accepted = self._noted = 0
        self._lines: deque[bytes] = deque(maxlen=KEPT)
        self._refusals: deque[KeptRefusal] = deque(maxlen=KEPT)
        self._closing = asyncio.Event()

    def settle(self, record: OpenRecord) -> None:
        """A record is settled; it still has its lines."""
        newest = newest_of(record.lines)
        if record.outcome:
            self._accepted += record.events
            self._lines.extend(newest)
        else:
            self.lose(newest, NOT_WRITTEN)

    def lose(self, newest: list[bytes], refusal: Refusal) -> None:
        """Lines were not kept, for this reason: these are the last of them."""
        at = time.time()
        self._noted += len(newest)
        self._refusals.extend([KeptRefusal(at, "", refusal, line) for line in newest_of(newest)])

    def refuse(self, route: str, refusals: Sequence[tuple[int, Refusal]]) -> None:
        """Events of one request were refused."""
        at = time.time()
        self._noted += len(refusals)
        self._refusals.extend([KeptRefusal(at, route, refusal) for _, refusal in refusals[-KEPT:]])

    def since(self, accepted: int, noted: int) -> Snapshot:
        """What has come since a snapshot with these numbers; all that is kept for 0 and 0."""
        return Snapshot(
            run=self._run,
            accepted=self._accepted,
            rejected={reason.value: count for reason, count in self._accounts.rejected.items()},
            noted=self._noted,
            events=[shown_event(line) for line in _last(self._lines, self._accepted - accepted)],
            refused=[each.shown(self._conceals) for each in _last(self._refusals, self._noted - noted)],
        )

    async def follow(self) -> AsyncGenerator[Snapshot, None]:
        """Yield a snapshot now and one every SNAPSHOT_SECONDS, until this is closed.

        All workers make theirs at the same moments, so that a second's events are counted as that second's."""
        snapshot = self.since(0, 0)
        yield snapshot
        while not await wait_for(self._closing, _until_next()):
            snapshot = self.since(snapshot.accepted, snapshot.noted)
            yield snapshot

    def close(self) -> None:
        """End every reader's stream, because the service stops."""
        self._closing.set()


def _until_next() -> float:
    """Seconds until the next moment that all workers share; a timer that fired early does not count as one."""
    left = SNAPSHOT_SECONDS - time.monotonic() % SNAPSHOT_SECONDS
    return left if left > _EARLY_SECONDS else left + SNAPSHOT_SECONDS


def _last(kept: deque[_Kept], count: int) -> Iterator[_Kept]:
    return islice(kept, max(0, len(kept) - count), None)
