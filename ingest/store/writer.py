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
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Final

import asyncpg

from ingest.base.errors import DatabaseError, IngestError
from ingest.base.waits import first_of
from ingest.journal.segments import Record
from ingest.postgres.connections import close
from ingest.store import copying, partitions
from ingest.store.flush import Flush, Outcome, TableRefuses
from ingest.store.ledger import JournalTaken, Ledger
from ingest.store.merge import is_servers
from ingest.store.patience import Patience
from ingest.store.source import Source

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 5.0
MERGES_AFTER_DUPLICATE: Final = 8
"""Retries come in waves: after a duplicate, this many flushes are merged right away, without a futile COPY first."""


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
        source: Source,
        ledger: Ledger,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        *,
        flush_max_bytes: int,
        statement_timeout_seconds: float,
        gave_up: bool = False,
    ) -> None:
        """`gave_up`: whether a transaction of an earlier writer with this ledger's token may still run."""
        self._source = source
        self._ledger = ledger
        self._connect = connect
        self._flush_max_bytes = flush_max_bytes
        self._timeout_seconds = statement_timeout_seconds
        self._merge_rows = partial(
            copying.merge,
            patience=(patience := Patience()),
            newest=lambda: source.newest,
            is_kept=source.is_kept,
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
        self._flush = Flush.of(source.number, [])
        self._started = 0.0
        # Its outcome: set by COPY and MERGE once COMMIT is confirmed, read by SETTLE.
        self._outcome = Outcome(stored=0)
        # The ledger's position, as far as we know: set by DOUBT and SETTLE.
        self._position = 0
        # The connection on which the ledger was asked: set by DOUBT, None once it is cut.
        self._connection: asyncpg.Connection | None = None
        # Whether a connection was cut whose transaction may still run in the server; DOUBT ends it.
        self._gave_up = gave_up
        # How many flushes still go straight to MERGE: set when a duplicate is met, one less with each flush.
        self._merges_left = 0
        self._patience = patience
        # Set by `try_now`: errors are still retried, but at once.
        self._hurry = asyncio.Event()
        # For others to read. Whether the last connection worked: set by DOUBT, and when a connection is cut.
        self.postgres_up = False
        # Why the table accepts no row at all: set by `run`, None after the next SETTLE, or without a connection.
        self.table_refuses: str | None = None

    def __repr__(self) -> str:
        taken, journal = len(self._taken), self._source.number
        return f"Writer({self.state.name}, taken={taken}, position={self._position}, journal={journal})"

    async def run(self, stop: asyncio.Event) -> None:
        """Store the journal's records until `stop` is set; errors are reported and retried with back-off."""
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
                    self._note(self.postgres_up, str(error))
                self._source.note_failure(error)
                await first_of(stop.wait(), self._hurry.wait(), asyncio.sleep(delay * random.uniform(0.75, 1.25)))
                self._hurry.clear()
                delay = min(delay * 2, LAST_RETRY_SECONDS)
            else:
                delay = FIRST_RETRY_SECONDS
                if not stored:
                    await first_of(self._source.wait_readable(), stop.wait())

    def try_now(self) -> None:
        """Do not wait any longer before the next try."""
        self._hurry.set()

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

    def give_up(self, error: JournalTaken) -> None:
        """Store nothing more. Pending records stay in the journal."""
        self.drop_connection()
        self._note(True, None)  # The refusal came from Postgres.
        self.state = State.STOPPED
        self._source.note_taken(error)

    def drop_connection(self) -> None:
        """Cut the connection without a farewell, so that nothing can hang on a server that does not respond."""
        if self._connection is not None:
            if not self._connection.is_closed():
                self._gave_up = True
            self._connection.terminate()
            self._connection = None
        self._note(False, None)

    async def close(self) -> None:
        """Close the connection. Repeatable."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection)

    def _note(self, postgres_up: bool, table_refuses: str | None) -> None:
        if (postgres_up, table_refuses) != (self.postgres_up, self.table_refuses):
            self.postgres_up, self.table_refuses = postgres_up, table_refuses
            self._source.note_state(postgres_up, table_refuses)

    # The states.

    async def _take(self) -> State:
        """Get records: those that an earlier attempt could not store, or else the journal's next."""
        if not self._taken:
            self._taken = await self._source.take(self._flush_max_bytes)
            if not self._taken and not self._source.awaits_ledger:
                return State.TAKE
        if self._connection is None or self._connection.is_closed():
            return State.DOUBT
        if self._taken and self._taken[0].number <= self._position:
            # Read before the ledger was asked.
            await self._release_stored(self._connection, self._position)
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
        if position < self._source.stored_through:
            logger.error(
                "the ledger of journal %d went back from record %d to %d, as after restoring a backup: the records"
                " in between are no longer in the journal",
                self._source.number,
                self._source.stored_through,
                position,
            )
        self._position = position
        await self._release_stored(connection, position)
        self._source.advance(position)
        self._note(True, self.table_refuses)
        return self._next_flush()

    def _next_flush(self) -> State:
        """Decide what to store next, and how."""
        if not self._taken:
            return State.TAKE  # The ledger covered them all.
        self._started = time.perf_counter()
        records = self._taken[: self._patience.most_records]
        self._flush = Flush.of(self._source.number, records, map(self._source.contents_of, records))
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
        self._note(True, None)
        self._position = flush.last
        self._release(len(flush.records), outcome, time.perf_counter() - self._started)
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
            self._release(len(covered), Outcome.of_stored(covered, counts), None)

    def _release(self, count: int, outcome: Outcome, seconds: float | None) -> None:
        """Release the first `count` taken records."""
        last = self._taken[count - 1].number
        self._taken = self._taken[count:]
        self._source.release(last, outcome, seconds)
