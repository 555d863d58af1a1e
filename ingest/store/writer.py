"""From the journal to the table: one transaction = ledger row + COPY, and never twice.

    ┌──────────────────────────────────────────────────────────────────────────┐
    ▼                                                                          │
   TAKE ──────────────────▶ COPY ───────────────────────────────▶ SETTLE ──────┘
    │                       ▲  └─ duplicate or bad row ─▶ MERGE ────▲
    │ no connection         │     (rolled back)
    ▼                       │
   DOUBT ── ask the ledger ─┘
    ▲  └─── another process holds the position ─▶ STOPPED
    │
   any error: the connection is cut

Why each record is stored once:

* The ledger is a row of `analytics.journals`: all records up to this one are stored. COPY and MERGE move it and send
  the rows in one transaction (`_in_transaction`): a record's rows are in the table exactly if the ledger covers it.
* The first statement moves the ledger from where we believe it to be. If an earlier try of ours had succeeded after
  all, or another process holds the journal, it moves nothing, and the transaction is rolled back.
* A record is let go in two places only: SETTLE, which follows a COMMIT that was answered, and DOUBT, for what the
  ledger covers. Until then it stays in `_taken`, and in the journal's files.
* After anything else, such as a COMMIT whose answer never came, the connection is cut, and DOUBT comes before the
  next COPY.

MERGE leaves duplicates out and keeps what the table refuses in `analytics.rejected_events`. If the table refuses
every row, because somebody has changed it, nothing is stored until that is mended, as in an outage.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Final

import asyncpg

from ingest.base.errors import DatabaseError, IngestError
from ingest.base.refusals import RejectReason
from ingest.base.waits import first_of
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal
from ingest.journal.segments import Record
from ingest.journal.survey import Gap
from ingest.postgres.connections import FAILURES, close
from ingest.store import copying, partitions
from ingest.store.complaints import Complaints
from ingest.store.flush import Flush, Outcome, TableRefuses
from ingest.store.ledger import JournalTaken, Ledger
from ingest.store.merge import is_servers
from ingest.store.patience import Patience

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 5.0
MERGES_AFTER_DUPLICATE: Final = 8
"""Retries come in waves: after a duplicate the next flushes are merged at once, not copied for nothing first."""
FLUSH_INTERVAL_SECONDS: Final = 0.1
"""Flushes begin this far apart unless there is a full one to store. A flush costs a millisecond of this process
and a commit of the server's disk, which the journal's fsyncs wait for, however little is in it."""


class State(Enum):
    """What the writer does next; see the picture at the top."""

    TAKE = "take"
    DOUBT = "doubt"
    COPY = "copy"
    MERGE = "merge"
    SETTLE = "settle"
    STOPPED = "stopped"


class Writer:
    """Stores one journal. `run` loops over `run_once` until it is stopped; `step` is one arrow of the picture."""

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        accounts: Accounts,
        *,
        flush_max_bytes: int,
        statement_timeout_seconds: float,
        on_flush: Callable[[float, Outcome], None] = lambda seconds, outcome: None,
        on_stored: Callable[[int, Mapping[bytes, str] | None], None] = lambda through, bad: None,
        is_kept: Callable[[bytes], bool] = lambda message_id: False,
    ) -> None:
        """`on_stored` gets the number of the record up to which everything is stored, and the `bad` of the Outcome.
        `is_kept` is asked whether a refused event is in `analytics.rejected_events` already."""
        self.journal = journal
        self._ledger = ledger
        self._connect = connect
        self._accounts = accounts
        self._flush_max_bytes = flush_max_bytes
        self._timeout_seconds = statement_timeout_seconds
        self._on_flush = on_flush
        self._on_stored = on_stored
        self._merge_rows = partial(
            copying.merge,
            patience=(patience := Patience()),
            newest=lambda: journal.backlog.newest,
            is_kept=is_kept,
        )
        self._transitions = {
            State.TAKE: self._take,
            State.DOUBT: self._ask_ledger,
            State.COPY: self._copy,
            State.MERGE: self._merge,
            State.SETTLE: self._settle,
        }
        # Changed by `step`, and by `give_up`.
        self.state = State.TAKE
        # Records that were taken from the journal and are not stored: filled by TAKE, emptied by SETTLE and DOUBT.
        self._taken: list[Record] = []
        # What is being stored, the first of the taken records, and since when: set where COPY or MERGE comes next.
        self._flush = Flush.of(journal.number, [])
        self._started = self._flushed_at = 0.0
        # What became of it: set by COPY and MERGE once COMMIT was answered, read by SETTLE.
        self._outcome = Outcome(stored=0)
        # Where the ledger is, as far as we know: set by DOUBT and SETTLE.
        self._position = 0
        # On which the ledger was asked: set by DOUBT, None again once it is cut.
        self._connection: asyncpg.Connection | None = None
        # Whether a connection was cut whose transaction may go on in the server: until DOUBT has ended that.
        self._gave_up = False
        # How many flushes still go to MERGE at once: set where a duplicate is met, one less with each flush.
        self._merges_left = 0
        self._patience = patience
        # For others to read. Whether the last connection worked: set by DOUBT, and where a connection is cut.
        self.postgres_up = False
        # Why the table takes no row at all: set by `run`, None again at the next SETTLE, or without a connection.
        self.table_refuses: str | None = None
        # When SETTLE or DOUBT last let a record go, Unix time.
        self.last_stored_at: float | None = None
        self._complaints = Complaints(journal)
        journal.on_already_stored = self._count_already_stored

    def __repr__(self) -> str:
        return f"Writer({self.state.name}, taken={len(self._taken)}, position={self._position}, {self.journal})"

    async def run(self, stop: asyncio.Event) -> None:
        """Store what the journal has, until `stop` is set; errors are logged and retried with back-off."""
        delay = FIRST_RETRY_SECONDS
        while not stop.is_set():
            if self.state is State.STOPPED:
                await stop.wait()
                return
            try:
                stored = await self.run_once()
            except JournalTaken as error:
                self.give_up(error)
            except Exception as error:
                if isinstance(error, TableRefuses):
                    self.table_refuses = str(error)
                self._complaints.report(error)
                await first_of(stop.wait(), asyncio.sleep(delay * random.uniform(0.75, 1.25)))
                delay = min(delay * 2, LAST_RETRY_SECONDS)
            else:
                delay = FIRST_RETRY_SECONDS
                if not stored:
                    await first_of(self.journal.wait_readable(), stop.wait())
                await self._pace(stop)

    async def _pace(self, stop: asyncio.Event) -> None:
        """Wait until the next flush is due: at once when enough waits, else when the last one is long ago."""
        while not stop.is_set() and self.journal.backlog.bytes < self._flush_max_bytes // 4:
            remaining = self._flushed_at + FLUSH_INTERVAL_SECONDS - time.monotonic()
            if remaining <= 0:
                return
            await asyncio.sleep(min(remaining, 0.02))

    async def run_once(self) -> bool:
        """Store one flush, or learn that there is nothing left to store of what was taken; False when there was
        nothing to take. Raises what went wrong; then call again."""
        before = self.state
        while await self.step() is not State.TAKE:
            before = self.state
        return before is not State.TAKE

    async def step(self) -> State:
        """Do what the state says: the next state. Raises what went wrong, and is in DOUBT then."""
        try:
            self.state = await self._transitions[self.state]()
        except TableRefuses:
            # Postgres has answered and rolled back, so nothing is in doubt.
            self.state = State.TAKE
            raise
        except BaseException:
            self.drop_connection()
            self.state = State.DOUBT if self._taken else State.TAKE
            raise
        return self.state

    async def drain(self, seconds: float) -> bool:
        """Store what is left, for at most this long; True when nothing is left."""
        if self.state is State.STOPPED:
            return False
        try:
            async with asyncio.timeout(seconds):
                while await self.run_once():
                    pass
                return True
        except (IngestError, *FAILURES) as error:
            self._complaints.cannot_store(error)
            self.drop_connection()
            return False

    def give_up(self, error: JournalTaken) -> None:
        """Accept and store nothing more, and say so once. What waits stays where it is, and pending."""
        self.drop_connection()
        self.postgres_up = True  # It is, and has said so.
        self.journal.is_taken = True
        self.state = State.STOPPED
        logger.error("%s (%d events wait)", error, self.journal.backlog.events)

    def drop_connection(self) -> None:
        """Cut the connection without a word, so that nothing can hang on a server that does not answer."""
        if self._connection is not None:
            if not self._connection.is_closed():
                self._gave_up = True
            self._connection.terminate()
            self._connection = None
        self.postgres_up = False
        self.table_refuses = None

    async def close(self) -> None:
        """Let the connection go. Repeatable."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection)

    # The states.

    async def _take(self) -> State:
        """Hold some records: those that an earlier try could not store, or else the next of the journal."""
        if not self._taken:
            self._taken = await self.journal.take(self._flush_max_bytes)
            if not self._taken and not self.journal.awaits_ledger:
                return State.TAKE
        if self._connection is None or self._connection.is_closed():
            return State.DOUBT
        return self._next_flush()

    async def _ask_ledger(self) -> State:
        """Learn on a new connection how far the journal is stored, and let go of what is: our last COMMIT may have
        succeeded although we did not see its answer."""
        connection = self._connection = await self._connect()
        if self._gave_up:
            await self._ledger.end_given_up(connection)
            self._gave_up = False
        try:
            position = await self._ledger.ask(connection)
        except JournalTaken as error:
            await self._let_go_stored(connection, error.stored_through)
            raise
        if position < self.journal.stored_through:
            logger.error(
                "the ledger of journal %d went back from record %d to %d, as after restoring a backup: what was"
                " stored in between is no longer in the journal",
                self.journal.number,
                self.journal.stored_through,
                position,
            )
        self._position = position
        await self._let_go_stored(connection, position)
        self.journal.advance(position)
        self.postgres_up = True
        return self._next_flush()

    def _next_flush(self) -> State:
        """Decide what is stored next, and how."""
        if not self._taken:
            return State.TAKE  # The ledger had them all.
        self._flush = Flush.of(self.journal.number, self._taken[: self._patience.most_records])
        self._started, self._flushed_at = time.perf_counter(), time.monotonic()
        if self._patience.is_over:
            return State.MERGE
        if self._merges_left:
            self._merges_left -= 1
            return State.MERGE
        return State.COPY

    async def _copy(self) -> State:
        """The fast way. It takes all of the flush, or nothing."""
        with self._errors_of_a_flush():
            try:
                self._outcome = await self._in_transaction(copying.copy)
            except asyncpg.UniqueViolationError:
                self._merges_left = MERGES_AFTER_DUPLICATE
                return State.MERGE
            except asyncpg.PostgresError as error:
                if is_servers(error):
                    raise
                if isinstance(error, asyncpg.CheckViolationError) and await self._make_partitions():
                    return State.COPY
                if self.table_refuses is None:
                    logger.warning("a flush holds a row that the table refuses, looking for it: %s", error)
                return State.MERGE
        return State.SETTLE

    async def _merge(self) -> State:
        """The slow way, which leaves out duplicates and bad rows."""
        with self._errors_of_a_flush():
            # The merge puts aside what the table refuses, so a day must not be missing by then.
            await self._make_partitions()
            self._outcome = await self._in_transaction(self._merge_rows)
        if self._outcome.duplicate:
            self._merges_left = MERGES_AFTER_DUPLICATE
        return State.SETTLE

    async def _in_transaction(
        self, store: Callable[[asyncpg.Connection, Flush, float], Awaitable[Outcome]]
    ) -> Outcome:
        """Move the ledger and store the rows, both or neither. Only what this returns is known to be stored."""
        connection, flush = self._asked_connection(), self._flush
        await self._ledger.begin(connection)
        try:
            await self._ledger.advance(connection, flush.records, days=flush.contents.days, position=self._position)
            outcome = await store(connection, flush, self._timeout_seconds)
            if outcome.duplicate or outcome.refused:
                await self._ledger.correct(
                    connection, last=flush.last, duplicate=outcome.duplicate, refused=outcome.refused
                )
            # A constraint that waits for the end of the transaction is asked first: it may refuse a row, too.
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE; COMMIT")
        except (asyncpg.PostgresError, IngestError):
            if not connection.is_closed():
                await connection.execute("ROLLBACK")
            raise
        return outcome

    async def _settle(self) -> State:
        """COMMIT was answered: the flush is stored."""
        flush, outcome = self._flush, self._outcome
        self._patience.restore()
        self.table_refuses = None
        self._position = flush.last
        self._let_go(len(flush.records), outcome)
        self._on_flush(time.perf_counter() - self._started, outcome)
        self._complaints.over()
        return State.TAKE

    def _asked_connection(self) -> asyncpg.Connection:
        if self._connection is None:
            raise DatabaseError("the connection was cut meanwhile")
        return self._connection

    async def _make_partitions(self) -> int:
        """Make the partitions of the days in the flush; how many were missing."""
        return await partitions.ensure(self._asked_connection(), self._flush.contents.days)

    @contextmanager
    def _errors_of_a_flush(self) -> Iterator[None]:
        """After a time-out the next flush is smaller; what is no row's fault and not the server's is the table's."""
        try:
            yield
        except (TimeoutError, asyncpg.QueryCanceledError):
            # By our limit, or by one that the server has for our user.
            self._patience.timed_out(len(self._flush.records))
            raise
        except asyncpg.PostgresError as error:
            if is_servers(error):
                raise
            # Not of a row: what the merge itself needs is refused.
            raise TableRefuses(str(error)) from error

    # Letting records go.

    async def _let_go_stored(self, connection: asyncpg.Connection, position: int) -> None:
        """Let those of the taken records go that the ledger covers."""
        covered = [record for record in self._taken if record.number <= position]
        if covered:
            counts = await self._ledger.counts(connection, covered[-1].number)
            self._let_go(len(covered), Outcome.of_stored(covered, counts))

    def _let_go(self, count: int, outcome: Outcome) -> None:
        """Book what became of the first `count` of the taken records, and hold them no longer."""
        last = self._taken[count - 1].number
        self.journal.forget(count)
        self._taken = self._taken[count:]
        self._accounts.stored += outcome.stored
        self._accounts.duplicate_in_database += outcome.duplicate
        if outcome.refused:
            self._accounts.reject(RejectReason.DATABASE_REFUSED, outcome.refused)
        self.last_stored_at = time.time()
        self._on_stored(last, outcome.bad)

    def _count_already_stored(self, stored: Record | Gap) -> None:
        self._accounts.stored += stored.events
