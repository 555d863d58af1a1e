"""A journal as the writer process has it: records are read where the collector says they are, ahead of need.

While a flush is being stored, the next records are asked for, read and examined, so that Postgres does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from ingest.base.disk_thread import WorkThread
from ingest.base.errors import DatabaseError, IngestError
from ingest.journal import places
from ingest.journal.places import Run
from ingest.journal.segments import Record
from ingest.postgres.connections import FAILURES
from ingest.store import event_keys
from ingest.store.channel import Failed, Given, Lost, Message, Open, Position, Standing, Stored, Taken, Want
from ingest.store.event_keys import Contents
from ingest.store.flush import Outcome, TableRefuses
from ingest.store.ledger import JournalTaken

logger = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 0.5
_AFTER_BUG_SECONDS: Final = 5.0


class Follower:
    """The source of one writer; see source.py. `send` takes messages for the collector."""

    def __init__(self, opened: Open, flush_max_bytes: int, send: Callable[[Message], None]) -> None:
        self.number = opened.journal
        self.stored_through = opened.stored_through
        # As the newest answer has it.
        self.awaits_ledger = False
        self._send = send
        self._flush_max_bytes = flush_max_bytes
        self._reading = WorkThread(f"journal-{self.number}-read")
        # Read and not taken, oldest first.
        self._records: deque[Record] = deque()
        # Of those, and of those that are not stored yet, by number.
        self._contents: dict[int, Contents] = {}
        self._newest: Run | None = None
        # Keys in the newest answers: those for the records that are being stored, and those that were read ahead.
        self._kept: deque[frozenset[bytes]] = deque(maxlen=3)
        # Whether an answer is expected, or being read; set as soon as there is one to look at.
        self._asked = False
        self._readable = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Stop reading. Repeatable."""
        for task in self._tasks:
            task.cancel()
        self._reading.close()

    def given(self, answer: Given) -> None:
        """The collector has answered."""
        task = asyncio.ensure_future(self._read(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def note_newest(self, run: Run | None) -> None:
        """The collector has a newer record at hand, or none."""
        self._newest = run

    async def _read(self, answer: Given) -> None:
        self._newest = answer.newest
        self._kept.append(frozenset(answer.kept))
        for run in answer.runs:
            read = await self._read_run(run)
            records = [record for record, _ in read]
            self._contents.update({record.number: contents for record, contents in read})
            found = {record.number for record in records}
            if lost := [span.number for span in run.spans if span.number not in found]:
                self._send(Lost(self.number, lost))
            self._records += records
        self.awaits_ledger = answer.awaits_ledger
        self._asked = False
        self._readable.set()

    async def _read_run(self, run: Run) -> list[tuple[Record, Contents]]:
        while True:
            try:
                return await self._reading.run(partial(_read_in_thread, run))
            except OSError as error:
                logger.warning("segment %s cannot be read now: %s", run.path, error.strerror)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:
                logger.exception("records of segment %s cannot be examined; they stay pending", run.path)
                await asyncio.sleep(_AFTER_BUG_SECONDS)

    def _ask(self) -> None:
        if not self._asked and not self._records:
            self._asked = True
            self._readable.clear()
            self._send(Want(self.number, self._flush_max_bytes))

    # As in source.py.

    @property
    def newest(self) -> Record | None:
        ahead = self._records[-1] if self._records else None
        if self._newest is not None and (ahead is None or ahead.number < self._newest.spans[-1].number):
            # It only helps to judge the table: without it, or if it cannot be read now, another one will do.
            with contextlib.suppress(OSError):
                return next(iter(places.read(self._newest)), ahead)
        return ahead

    async def wait_readable(self) -> None:
        self._ask()
        await self._readable.wait()

    async def take(self, max_bytes: int) -> list[Record]:
        taken: list[Record] = []
        size = 0
        records = self._records
        while records and (
            not taken or (size + records[0].size <= max_bytes and records[0].layout == taken[0].layout)
        ):
            taken.append(records.popleft())
            size += taken[-1].size
        self._ask()
        return taken

    def contents_of(self, record: Record) -> Contents:
        return self._contents[record.number]

    def is_kept(self, key: bytes) -> bool:
        return any(key in kept for kept in self._kept)

    def release(self, through: int, outcome: Outcome, seconds: float | None) -> None:
        self.stored_through = max(self.stored_through, through)
        self._contents = {number: each for number, each in self._contents.items() if number > through}
        bad = None if outcome.bad is None else dict(outcome.bad)
        self._send(Stored(self.number, through, outcome.stored, outcome.duplicate, outcome.refused, bad, seconds))

    def advance(self, position: int) -> None:
        self.stored_through = max(self.stored_through, position)
        self.awaits_ledger = False
        self._send(Position(self.number, position))

    def note_state(self, postgres_up: bool, table_refuses: str | None) -> None:
        self._send(Standing(self.number, postgres_up, table_refuses))

    def note_failure(self, error: Exception) -> None:
        is_outage, is_table = isinstance(error, (DatabaseError, *FAILURES)), isinstance(error, TableRefuses)
        if not isinstance(error, (IngestError, *FAILURES)):
            logger.exception("the writer of journal %d failed; its records stay pending", self.number)
        self._send(Failed(self.number, str(error) or type(error).__name__, is_outage, is_table))

    def note_taken(self, error: JournalTaken) -> None:
        self._send(Taken(self.number, str(error)))


def _read_in_thread(run: Run) -> list[tuple[Record, Contents]]:
    """The records, examined here and now, because the writer is waiting for Postgres."""
    return [(record, event_keys.examine(record)) for record in places.read(run)]
