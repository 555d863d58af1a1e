"""From the journal to the table, exactly once: the ledger row and the COPY are one transaction.

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

* The ledger is a row of `analytics.journals` with a position: all records up to it are stored. COPY and MERGE move it
  and send the rows in one transaction (`_in_transaction`), so a record's rows are in the table if and only if the
  ledger covers it.
* The first statement moves the ledger from the position we last knew. If an earlier attempt of ours succeeded after
  all, or another process holds the journal, it moves nothing, and the transaction is rolled back.
* A record is released in only two places: SETTLE, which follows a confirmed COMMIT, and DOUBT, for records that the
  ledger covers. Until then it stays in `_taken`, and in the journal's files.
* After anything else, such as a COMMIT whose response never arrived, the connection is cut, and DOUBT comes before
  the next COPY.

MERGE leaves out duplicates and keeps what the table refuses in `analytics.rejected_events`. If the table refuses
every row because it has been changed, nothing is stored until that is fixed, as in an outage.
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
"""Retries come in waves: after a duplicate, this many flushes are merged right away, without a futile COPY first."""
FLUSH_INTERVAL_SECONDS: Final = 0.1
"""Flushes begin this far apart unless a full one is waiting. However small, a flush costs this process a millisecond
and the server's disk a commit, which the journal's fsyncs wait for."""


class State(Enum):
    """What the writer does next; see the diagram at the top."""

    TAKE = "take"
    DOUBT = "doubt"
    COPY = "copy"
    MERGE = "merge"
    SETTLE = "settle"
    STOPPED = "stopped"


class Writer:
    """Stores one journal. `run` loops over `run_once` until stopped; `step` is one arrow of the diagram."""

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
        """`on_stored` gets the number of the record up to which everything is stored, and the Outcome's `bad`.
        `is_kept` returns whether a refused event is already in `analytics.rejected_events`."""
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
        # Records taken from the journal and not stored yet: filled by TAKE, emptied by SETTLE and DOUBT.
        self._taken: list[Record] = []
        # What is being stored, the first of the taken records, and since when: set on the way to COPY or MERGE.
        self._flush = Flush.of(journal.number, [])
        self._started = self._flushed_at = 0.0
        # Its outcome: set by COPY and MERGE once COMMIT is confirmed, read by SETTLE.
        self._outcome = Outcome(stored=0)
        # The ledger's position, as far as we know: set by DOUBT and SETTLE.
        self._position = 0
        # The connection on which the ledger was asked: set by DOUBT, None once it is cut.
        self._connection: asyncpg.Connection | None = None
        # Whether a connection was cut whose transaction may still run in the server; DOUBT ends it.
        self._gave_up = False
        # How many flushes still go straight to MERGE: set when a duplicate is met, one less with each flush.
        self._merges_left = 0
        self._patience = patience
        # For others to read. Whether the last connection worked: set by DOUBT, and when a connection is cut.
        self.postgres_up = False
        # Why the table accepts no row at all: set by `run`, None after the next SETTLE, or without a connection.
        self.table_refuses: str | None = None
        # When SETTLE or DOUBT last released a record, Unix time.
        self.last_stored_at: float | None = None
        self._complaints = Complaints(journal)
        journal.on_already_stored = self._count_already_stored

    def __repr__(self) -> str:
        return f"Writer({self.state.name}, taken={len(self._taken)}, position={self._position}, {self.journal})"

    async def run(self, stop: asyncio.Event) -> None:
        """Store the journal's records until `stop` is set; errors are logged and retried with back-off."""
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
        """Wait until the next flush is due: at once if enough is pending, else some time after the last one."""
        while not stop.is_set() and self.journal.backlog.bytes < self._flush_max_bytes // 4:
            remaining = self._flushed_at + FLUSH_INTERVAL_SECONDS - time.monotonic()
            if remaining <= 0:
                return
            await asyncio.sleep(min(remaining, 0.02))

    async def run_once(self) -> bool:
        """Store one flush, or find that all taken records are stored already; False if there was nothing to take.
        On any exception, call it again."""
        before = self.state
        while await self.step() is not State.TAKE:
            before = self.state
        return before is not State.TAKE

    async def step(self) -> State:
        """Do what the state says and return the next state. Raises what went wrong, which may lead to DOUBT."""
        try:
            self.state = await self._transitions[self.state]()
        except TableRefuses:
            # Postgres has confirmed the rollback, so nothing is in doubt.
            self.state = State.TAKE
            raise
        except BaseException:
            self.drop_connection()
            self.state = State.DOUBT if self._taken else State.TAKE
            raise
        return self.state

    async def drain(self, seconds: float) -> bool:
        """Store what is left, for at most `seconds`; True if nothing is left."""
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
        """Accept and store nothing more, and log that once. Pending records stay in the journal, and pending."""
        self.drop_connection()
        self.postgres_up = True  # The refusal came from Postgres.
        self.journal.is_taken = True
        self.state = State.STOPPED
        logger.error("%s (%d events wait)", error, self.journal.backlog.events)

    def drop_connection(self) -> None:
        """Cut the connection without a farewell, so that nothing can hang on a server that does not respond."""
        if self._connection is not None:
            if not self._connection.is_closed():
                self._gave_up = True
            self._connection.terminate()
            self._connection = None
        self.postgres_up = False
        self.table_refuses = None

    async def close(self) -> None:
        """Close the connection. Repeatable."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection)

    # The states.

    async def _take(self) -> State:
        """Get records: those that an earlier attempt could not store, or else the journal's next."""
        if not self._taken:
            self._taken = await self.journal.take(self._flush_max_bytes)
            if not self._taken and not self.journal.awaits_ledger:
                return State.TAKE
        if self._connection is None or self._connection.is_closed():
            return State.DOUBT
        return self._next_flush()

    async def _ask_ledger(self) -> State:
        """Find out on a new connection how far the journal is stored, and release what is: our last COMMIT may have
        succeeded even though we saw no response."""
        connection = self._connection = await self._connect()
        if self._gave_up:
            await self._ledger.end_given_up(connection)
            self._gave_up = False
        try:
            position = await self._ledger.ask(connection)
        except JournalTaken as error:
            await self._release_stored(connection, error.stored_through)
            raise
        if position < self.journal.stored_through:
            logger.error(
                "the ledger of journal %d went back from record %d to %d, as after restoring a backup: the records"
                " in between are no longer in the journal",
                self.journal.number,
                self.journal.stored_through,
                position,
            )
        self._position = position
        await self._release_stored(connection, position)
        self.journal.advance(position)
        self.postgres_up = True
        return self._next_flush()

    def _next_flush(self) -> State:
        """Decide what to store next, and how."""
        if not self._taken:
            return State.TAKE  # The ledger covered them all.
        self._flush = Flush.of(self.journal.number, self._taken[: self._patience.most_records])
        self._started, self._flushed_at = time.perf_counter(), time.monotonic()
        if self._patience.is_over:
            return State.MERGE
        if self._merges_left:
            self._merges_left -= 1
            return State.MERGE
        return State.COPY

    async def _copy(self) -> State:
        """The fast way: stores the whole flush or nothing."""
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
                    logger.warning("the table refuses a row of a flush, looking for it: %s", error)
                return State.MERGE
        return State.SETTLE

    async def _merge(self) -> State:
        """The slow way, which leaves out duplicates and bad rows."""
        with self._errors_of_a_flush():
            # The merge rejects rows that the table refuses, so no row may be refused for want of a partition.
            await self._make_partitions()
            self._outcome = await self._in_transaction(self._merge_rows)
        if self._outcome.duplicate:
            self._merges_left = MERGES_AFTER_DUPLICATE
        return State.SETTLE

    async def _in_transaction(
        self, store: Callable[[asyncpg.Connection, Flush, float], Awaitable[Outcome]]
    ) -> Outcome:
        """Move the ledger and store the rows, both or neither. They are known to be stored only if this returns."""
        connection, flush = self._asked_connection(), self._flush
        await self._ledger.begin(connection)
        try:
            await self._ledger.advance(connection, flush.records, days=flush.contents.days, position=self._position)
            outcome = await store(connection, flush, self._timeout_seconds)
            if outcome.duplicate or outcome.refused:
                await self._ledger.correct(
                    connection, last=flush.last, duplicate=outcome.duplicate, refused=outcome.refused
                )
            # Check deferred constraints before COMMIT: they may refuse a row too.
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE; COMMIT")
        except (asyncpg.PostgresError, IngestError):
            if not connection.is_closed():
                await connection.execute("ROLLBACK")
            raise
        return outcome

    async def _settle(self) -> State:
        """COMMIT was confirmed: the flush is stored."""
        flush, outcome = self._flush, self._outcome
        self._patience.restore()
        self.table_refuses = None
        self._position = flush.last
        self._release(len(flush.records), outcome)
        self._on_flush(time.perf_counter() - self._started, outcome)
        self._complaints.over()
        return State.TAKE

    def _asked_connection(self) -> asyncpg.Connection:
        if self._connection is None:
            raise DatabaseError("the connection was cut meanwhile")
        return self._connection

    async def _make_partitions(self) -> int:
        """Create missing partitions for the days of the flush; returns how many."""
        return await partitions.ensure(self._asked_connection(), self._flush.contents.days)

    @contextmanager
    def _errors_of_a_flush(self) -> Iterator[None]:
        """Make the next flush smaller after a time-out; raise TableRefuses for errors of neither rows nor server."""
        try:
            yield
        except (TimeoutError, asyncpg.QueryCanceledError):
            # By our limit, or by one that the server sets for our user.
            self._patience.timed_out(len(self._flush.records))
            raise
        except asyncpg.PostgresError as error:
            if is_servers(error):
                raise
            # Not about a row: something the merge itself needs is refused.
            raise TableRefuses(str(error)) from error

    # Releasing records.

    async def _release_stored(self, connection: asyncpg.Connection, position: int) -> None:
        """Release the taken records that the ledger covers."""
        covered = [record for record in self._taken if record.number <= position]
        if covered:
            counts = await self._ledger.counts(connection, covered[-1].number)
            self._release(len(covered), Outcome.of_stored(covered, counts))

    def _release(self, count: int, outcome: Outcome) -> None:
        """Account for the first `count` taken records, and release them."""
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
