"""A journal as the collector has it: says where its records are, to whoever stores them, and books what became of
them. The other end is a Writer with a Follower, in a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ingest.base.refusals import RejectReason
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal
from ingest.journal.places import Run, runs_of
from ingest.journal.segments import Record
from ingest.journal.survey import Gap
from ingest.store.channel import (
    Close,
    Closed,
    Failed,
    FromWriter,
    Given,
    Lost,
    Newest,
    Open,
    Position,
    Standing,
    Stored,
    Taken,
    ToWriter,
    TryNow,
    Want,
)
from ingest.store.complaints import Complaints
from ingest.store.flush import Outcome
from ingest.store.ledger import JournalTaken, Ledger

logger = logging.getLogger(__name__)

FLUSH_INTERVAL_SECONDS: Final = 0.1
"""Flushes begin this far apart unless a large one is waiting. However small, a flush costs the writer a millisecond
and the server's disk a commit, which the journal's fsyncs wait for."""
_LOOK_SECONDS: Final = 0.02
_RETRY_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0


class Feeder:
    """One journal's end in the collector. `postgres_up`, `table_refuses`: as the writer has them, changed by its
    messages. `postgres_changed_at`: when `postgres_up` last changed; `last_stored_at`: when a record was last
    released; both in Unix time, None if never."""

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        accounts: Accounts,
        *,
        flush_max_bytes: int,
        on_flush: Callable[[float, Outcome], None] = lambda seconds, outcome: None,
        on_stored: Callable[[int, Mapping[bytes, str] | None], None] = lambda through, bad: None,
        kept: Callable[[], Iterable[bytes]] = tuple,
    ) -> None:
        """`ledger`: as opened for this journal.  on_stored: gets the number of the record up to which everything is
        stored, and the Outcome's `bad`.  kept: keys of refused events that are already in
        `analytics.rejected_events`."""
        self.journal = journal
        self._postgres_up = False
        self.postgres_changed_at: float | None = None
        self.table_refuses: str | None = None
        self.last_stored_at: float | None = None
        self._ledger = ledger
        self._accounts = accounts
        self._enough_bytes = flush_max_bytes // 4
        self._on_flush = on_flush
        self._on_stored = on_stored
        self._kept = kept
        self._complaints = Complaints(journal)
        # To the writer; None while there is none. Whether there was one before, which has died.
        self._send: Callable[[ToWriter], None] | None = None
        self._gave_up = False
        self._answering: asyncio.Task[None] | None = None
        self._given_at = 0.0
        # Set when events are to be stored now, in whatever small flushes.
        self._hurry = asyncio.Event()
        # Set with each message of the writer about progress or failure, for `drain`.
        self._news = asyncio.Event()
        self._failed = False
        self._closed = asyncio.Event()
        self._is_over = False
        journal.on_already_stored = self._count_already_stored

    def __repr__(self) -> str:
        return f"Feeder(postgres_up={self.postgres_up}, {self.journal})"

    # The writer comes and goes.

    def attach(self, send: Callable[[ToWriter], None]) -> None:
        """There is a writer; `send` takes messages for it."""
        if self.journal.is_taken or self._is_over:
            return
        self._send = send
        layout = self.journal.layout
        send(
            Open(
                self.journal.number,
                str(self.journal.folder),
                layout,
                self._ledger.token,
                self._ledger.seen,
                self._gave_up,
                self.journal.stored_through,
            )
        )
        self._gave_up = True

    def detach(self) -> None:
        """There is no writer any more. What it had is not known to be stored: the next one asks the ledger."""
        self._send = None
        if self._answering is not None:
            self._answering.cancel()
            self._answering = None
        self.journal.backlog.give_back()
        self._closed.set()
        self._news.set()

    async def drain(self, seconds: float) -> bool:
        """Have the rest stored, for at most `seconds`, but do not wait for a database that cannot be reached; True if
        nothing is left."""
        self._hurry.set()
        self._failed = False
        if self._send is not None:
            self._send(TryNow(self.journal.number))
        deadline = time.monotonic() + seconds
        while self.journal.has_backlog and self._send is not None and not self._failed:
            self._news.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._news.wait()
            except TimeoutError:
                break
        return not self.journal.has_backlog

    @property
    def postgres_up(self) -> bool:
        return self._postgres_up

    @postgres_up.setter
    def postgres_up(self, is_up: bool) -> None:
        if is_up != self._postgres_up:
            self._postgres_up, self.postgres_changed_at = is_up, time.time()

    async def close(self) -> None:
        """Have the writer forget the journal. Repeatable."""
        self._is_over = True
        if self._send is not None:
            self._closed.clear()
            self._send(Close(self.journal.number))
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._closed.wait()
            except TimeoutError:
                logger.warning("the writer of journal %d does not answer", self.journal.number)
        self.detach()

    def give_up(self, reason: JournalTaken | str) -> None:
        """Accept nothing more, and log that once. Pending records stay in the journal, and pending."""
        self.postgres_up = True  # The refusal came from Postgres.
        self.table_refuses = None
        self.journal.is_taken = True
        logger.error("%s (%d events wait)", reason, self.journal.backlog.events)

    # Its messages.

    def receive(self, message: FromWriter) -> None:
        """A message about this journal."""
        match message:
            case Want():
                self._answering = asyncio.ensure_future(self._answer(message.max_bytes))
            case Stored():
                self._settle(message)
            case Lost():
                self.journal.backlog.lose(frozenset(message.numbers))
            case Position():
                self.journal.advance(message.position)
            case Standing():
                self.postgres_up, self.table_refuses = message.postgres_up, message.table_refuses
            case Failed():
                self._failed = True
                self.postgres_up &= not message.is_outage
                self._complaints.report(message)
                if self._send is not None:
                    self._send(Newest(self.journal.number, self._newest()))
            case Taken():
                self.give_up(message.reason)
                self._failed = True
            case Closed():
                self._closed.set()
        self._news.set()

    async def _answer(self, max_bytes: int) -> None:
        """Answer as soon as something is due."""
        while True:
            try:
                answer = await self._next(max_bytes)
                break
            except OSError as error:
                logger.warning("journal %d cannot be read now: %s", self.journal.number, error.strerror or error)
            except Exception:
                logger.exception("the next records of journal %d cannot be found", self.journal.number)
            await asyncio.sleep(_RETRY_SECONDS)
        if self._send is not None:
            self._send(answer)

    async def _next(self, max_bytes: int) -> Given:
        journal, backlog = self.journal, self.journal.backlog
        await journal.wait_readable()
        while not self._hurry.is_set() and backlog.waiting_bytes < self._enough_bytes:
            remaining = self._given_at + FLUSH_INTERVAL_SECONDS - time.monotonic()
            if remaining <= 0:
                break
            await asyncio.sleep(min(remaining, _LOOK_SECONDS))
        places = await journal.take(max_bytes)
        self._given_at = time.monotonic()
        return Given(
            journal.number,
            runs_of(places),
            self._newest(),
            list(self._kept()),
            journal.awaits_ledger,
        )

    def _newest(self) -> Run | None:
        newest = self.journal.backlog.newest
        return runs_of([newest])[0] if newest is not None else None

    def _settle(self, stored: Stored) -> None:
        outcome = Outcome(stored.stored, stored.duplicate, stored.refused, stored.bad)
        self.journal.forget(stored.through)
        self._accounts.stored += outcome.stored
        self._accounts.duplicate_in_database += outcome.duplicate
        if outcome.refused:
            self._accounts.reject(RejectReason.DATABASE_REFUSED, outcome.refused)
        self.last_stored_at = time.time()
        if stored.seconds is not None:
            self._on_flush(stored.seconds, outcome)
            self._complaints.over()
        self._on_stored(stored.through, outcome.bad)

    def _count_already_stored(self, stored: Record | Gap) -> None:
        self._accounts.stored += stored.events
