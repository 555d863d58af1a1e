"""From the journal to the table: one transaction = ledger row + COPY, and never twice.

The first statement of a flush moves the journal's position in `analytics.journals`, the rest stores the rows, so
that position and rows are one. Whatever happens to the connection, the next attempt begins by asking the ledger. If
the position is another process's by then, nothing more is stored.

A flush that meets a duplicate, or a row that the table refuses, is done again by Merge: duplicates are left out, and
what is refused is kept in `analytics.rejected_events`. If the table refuses every row, because somebody has changed
it, nothing is stored until that is mended, as in an outage.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from uuid import uuid4

import asyncpg

from ingest.base.errors import DatabaseError, IngestError, one_line
from ingest.base.logs import Quiet
from ingest.base.refusals import RejectReason
from ingest.events import row
from ingest.journal.accounts import Accounts
from ingest.journal.batch_ids import batch_id
from ingest.journal.journal import Journal
from ingest.journal.segments import Record
from ingest.journal.survey import Gap
from ingest.postgres.connections import FAILURES, close
from ingest.postgres.queries import load_queries
from ingest.store import event_keys, partitions
from ingest.store.ledger import JournalTaken, Ledger
from ingest.store.merge import TIMED_OUT, Bad, Merge, Merged, Reason, copy_lines, is_servers

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 5.0
MERGES_AFTER_DUPLICATE: Final = 8
"""Retries come in waves: after a duplicate the next flushes are merged at once, not copied for nothing first."""
_TIMEOUTS_BEFORE_BLAME: Final = 3
_TIMES_BLAMED: Final = 3
"""On as many connections, with a pause between: a server that is slow for minutes refuses nobody's row."""
_SHARE_OF_ONE: Final = 0.8
_SHARE_OF_PROBE: Final = 0.25
"""Of the time-out: for a row alone, and for the row that shows that the table is well."""
_COMPLAINT_SECONDS: Final = 30.0
_NO_LIMIT: Final = 1 << 30
_NEWEST_PROBED: Final = 20
FLUSH_INTERVAL_SECONDS: Final = 0.1
"""Flushes begin this far apart unless there is a full one to store. A flush costs a millisecond of this process
and a commit of the server's disk, which the journal's fsyncs wait for, however little is in it."""


class TableRefuses(IngestError):
    """The table refuses every row: somebody has changed it, or what stands around it."""


class Outcome(NamedTuple):
    """What one flush did, in events; `refused` were accepted and then refused by the table. `bad` tells which, by
    their ids, and why; None that nobody knows any more."""

    stored: int
    duplicate: int = 0
    refused: int = 0
    bad: Mapping[bytes, str] | None = MappingProxyType({})


class Writer:
    """Stores one journal. `run` loops over `run_once` until it is told to stop."""

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
        """`on_stored` is told through which record everything is stored, and the `bad` of the Outcome. `is_kept` is
        asked whether a refused event is in `analytics.rejected_events` already."""
        self.journal = journal
        self._ledger = ledger
        self.postgres_up = False
        # Why the table takes no row at all, while that is so.
        self.table_refuses: str | None = None
        self.last_stored_at: float | None = None
        self._connect = connect
        self._accounts = accounts
        self._flush_max_bytes = flush_max_bytes
        self._timeout_seconds = statement_timeout_seconds
        self._on_flush = on_flush
        self._on_stored = on_stored
        self._is_kept = is_kept
        self._queries = load_queries("writer")
        self._connection: asyncpg.Connection | None = None
        # Whether a connection was cut whose transaction may go on in the server.
        self._gave_up = False
        # The records taken from the journal and not stored yet, kept over retries; those of them that the flush
        # at hand stores; and where the ledger stands, as far as we know.
        self._taken: list[Record] = []
        self._records: list[Record] = []
        self._contents = event_keys.examine([])
        self._position = 0
        self._flushed_at = 0.0
        # How many records a flush may have: fewer after a time-out, so that a slow server gets somewhere.
        self._limit = _NO_LIMIT
        self._merges_left = 0
        # How often one record alone has timed out, and how often a row of it was found to be why.
        self._timeouts_of_one = 0
        self._blamed = Counter[bytes]()
        self._quiet = Quiet(_COMPLAINT_SECONDS)
        self._table_quiet = Quiet(_COMPLAINT_SECONDS)
        journal.on_already_stored = self._count_already_stored

    async def run(self, stop: asyncio.Event) -> None:
        """Store what the journal has, until `stop` is set; errors are logged and retried with back-off."""
        delay = FIRST_RETRY_SECONDS
        while not stop.is_set():
            if self.journal.is_taken:
                await stop.wait()
                return
            try:
                stored = await self.run_once()
            except (DatabaseError, *FAILURES) as error:
                self._complain(error)
            except TableRefuses as error:
                self._complain_of_table(error)
            except JournalTaken as error:
                self.give_up(error)
                continue
            except IngestError as error:
                logger.error("%s", error)
            except Exception:
                logger.exception("the writer of journal %d failed; its records stay pending", self.journal.number)
            else:
                delay = FIRST_RETRY_SECONDS
                if not stored:
                    await _first_of(self.journal.wait_readable(), stop.wait())
                await self._pace(stop)
                continue
            if self.table_refuses is None:
                self.drop_connection()
            await _first_of(stop.wait(), asyncio.sleep(delay * random.uniform(0.75, 1.25)))
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    async def _pace(self, stop: asyncio.Event) -> None:
        """Wait until the next flush is due: at once when enough waits, else when the last one is long ago."""
        while not stop.is_set() and self.journal.backlog.bytes < self._flush_max_bytes // 4:
            remaining = self._flushed_at + FLUSH_INTERVAL_SECONDS - time.monotonic()
            if remaining <= 0:
                return
            await asyncio.sleep(min(remaining, 0.02))

    async def run_once(self) -> bool:
        """Store one flush; False when there was nothing to store. Raises what went wrong; then `drop_connection`
        and call again: the records stay taken and the ledger decides what is left of them."""
        if not self._taken:
            self._taken = await self.journal.take(self._flush_max_bytes)
            if not self._taken and not self.journal.awaits_ledger:
                return False
        connection = await self._connected()
        if not self._taken:
            return True  # The ledger had them all.
        self._records = self._taken[: self._limit]
        self._contents = event_keys.examine(self._records)
        started = time.perf_counter()
        self._flushed_at = time.monotonic()
        try:
            outcome = await self._store(connection)
        except (TimeoutError, asyncpg.QueryCanceledError):
            # By our limit, or by one that the server has for our user.
            self._timeouts_of_one += len(self._records) == 1
            self._limit = max(1, len(self._records) // 2)
            raise
        self._limit = _NO_LIMIT
        self._timeouts_of_one = 0
        self._blamed.clear()
        self.table_refuses = None
        self._position = self._records[-1].number
        self._settle(outcome, len(self._records))
        self._on_flush(time.perf_counter() - started, outcome)
        self._quiet.over()
        if self._table_quiet.over():
            logger.info("the table takes events again")
        return True

    async def drain(self, seconds: float) -> bool:
        """Store what is left, for at most so many seconds; True when nothing is left."""
        if self.journal.is_taken:
            return False
        try:
            async with asyncio.timeout(seconds):
                while await self.run_once():
                    pass
                return True
        except (IngestError, *FAILURES) as error:
            self._complain(error)
            self.drop_connection()
            return False

    def give_up(self, error: JournalTaken) -> None:
        """Accept and store nothing more, and say so once. What waits stays where it is, and pending."""
        self.drop_connection()
        self.postgres_up = True  # It is, and has said so.
        self.journal.is_taken = True
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

    # The ledger.

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            connection = await self._connect()
            self._connection = connection
            if self._gave_up:
                await connection.execute(self._queries["end_given_up"], self._ledger.transaction_name)
                self._gave_up = False
            await self._ask_ledger(connection)
        self.postgres_up = True
        return self._connection

    async def _ask_ledger(self, connection: asyncpg.Connection) -> None:
        """Learn how far the journal is stored, and leave out of the taken records what is: our last COMMIT may
        have succeeded although we did not see its answer."""
        try:
            position = await self._ledger.ask(connection)
        except JournalTaken as error:
            await self._settle_stored(connection, error.stored_through)
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
        await self._settle_stored(connection, position)
        self.journal.advance(position)

    async def _settle_stored(self, connection: asyncpg.Connection, position: int) -> None:
        covered = [record for record in self._taken if record.number <= position]
        if not covered:
            return
        counts = await self._ledger.counts(connection, covered[-1].number)
        events = sum(record.events for record in covered)
        duplicate, refused = (counts.duplicate, counts.rejected) if counts else (0, 0)
        refused = max(0, refused - sum(record.rejected for record in covered))
        bad: dict[bytes, str] | None = {} if counts and not refused else None
        self._settle(Outcome(events - duplicate - refused, duplicate, refused, bad), len(covered))

    def _count_already_stored(self, stored: Record | Gap) -> None:
        self._accounts.stored += stored.events

    # Storing.

    async def _store(self, connection: asyncpg.Connection) -> Outcome:
        """The COPY, and when it meets a duplicate or a bad row, the merge."""
        try:
            if self._timeouts_of_one >= _TIMEOUTS_BEFORE_BLAME:
                pass
            elif self._merges_left:
                self._merges_left -= 1
            elif (outcome := await self._try_copy(connection)) is not None:
                return outcome
            # The merge puts aside what the table refuses, so a day must not be missing by then.
            await self._make_partitions(connection)
            return await self._in_transaction(connection, self._merge)
        except asyncpg.PostgresError as error:
            if is_servers(error):
                raise
            # Not of a row: what the merge itself needs is refused.
            raise TableRefuses(str(error)) from error

    async def _try_copy(self, connection: asyncpg.Connection) -> Outcome | None:
        """None when something in the flush is a duplicate or is refused."""
        try:
            return await self._in_transaction(connection, self._copy)
        except asyncpg.UniqueViolationError:
            self._merges_left = MERGES_AFTER_DUPLICATE
        except asyncpg.PostgresError as error:
            if is_servers(error):
                raise
            if isinstance(error, asyncpg.CheckViolationError) and await self._make_partitions(connection):
                return await self._try_copy(connection)
            if self.table_refuses is None:
                logger.warning("a flush holds a row that the table refuses, looking for it: %s", error)
        return None

    async def _in_transaction(
        self, connection: asyncpg.Connection, store: Callable[[asyncpg.Connection], Awaitable[Outcome]]
    ) -> Outcome:
        # The journal forgets what is committed, so the commit must be on disk whatever the server's default is.
        await connection.execute(
            "BEGIN; SET LOCAL synchronous_commit = on;"
            f" SET LOCAL application_name = '{self._ledger.transaction_name}'"
        )
        try:
            await self._ledger.advance(connection, self._position, self._records, self._contents.days)
            outcome = await store(connection)
            # A constraint that waits for the end of the transaction is asked first: it may refuse a row, too.
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE; COMMIT")
        except (asyncpg.PostgresError, IngestError):
            if not connection.is_closed():
                await connection.execute("ROLLBACK")
            raise
        return outcome

    async def _copy(self, connection: asyncpg.Connection) -> Outcome:
        columns = self._records[0].layout.event_columns
        plain, keyed, _ = self._contents
        await copy_lines(connection, ("analytics", "events"), columns, plain, self._timeout_seconds)
        if new := await event_keys.claim(connection, keyed):
            lines = [one.line for one in new]
            await copy_lines(connection, ("analytics", "events"), columns, lines, self._timeout_seconds)
        if any(record.rejected for record in self._records):
            columns = self._records[0].layout.rejected_columns
            refused = (record.rejected_lines for record in self._records)
            await copy_lines(connection, ("analytics", "rejected_events"), columns, refused, self._timeout_seconds)
        duplicate = len(keyed) - len(new) + await self._drop_known(connection)
        if duplicate:
            await self._ledger.correct(connection, self._records[-1].number, duplicate, 0)
        return Outcome(sum(record.events for record in self._records) - duplicate, duplicate)

    async def _merge(self, connection: asyncpg.Connection) -> Outcome:
        columns = self._records[0].layout.event_columns
        plain = [line for lines in self._contents.plain for line in lines.splitlines(keepends=True)]
        merge = await Merge.begin(connection, "events", columns, self._timeout_seconds)
        stored, bad = await self._insert(merge, plain)
        if new := await event_keys.claim(connection, self._contents.keyed):
            merged = await self._insert(merge, [one.line for one in new])
            lost = {one.line for one in merged.bad}
            await event_keys.release(connection, [one for one in new if one.line in lost])
            stored, bad = stored + merged.stored, bad + merged.bad
        none_stored = bad and len(bad) == len(plain) + len(new)
        # Where a row was too slow, the table has answered for another.
        is_suspect = none_stored and not any(one.reason.sqlstate == TIMED_OUT for one in bad)
        if is_suspect and await merge.is_tables_fault(bad, self._good(columns, bad[0].line)):
            raise TableRefuses(f"analytics.events refuses every row: {bad[0].message}")
        await merge.end()
        stored -= await self._drop_known(connection)
        await self._merge_rejected(connection)
        if bad:
            await self._keep_bad(connection, bad)
        duplicate = len(plain) + len(self._contents.keyed) - stored - len(bad)
        if duplicate or bad:
            await self._ledger.correct(connection, self._records[-1].number, duplicate, len(bad))
        if duplicate:
            self._merges_left = MERGES_AFTER_DUPLICATE
        return Outcome(
            stored, duplicate, len(bad), {event_keys.known_by(one.line, columns): one.message for one in bad}
        )

    async def _insert(self, merge: Merge, lines: Sequence[bytes]) -> Merged:
        """Insert the lines. When one record has timed out again and again, it is looked whether one of its rows is to
        blame: one that alone takes too long each time, while the table answers at once for another row of its day."""
        if self._timeouts_of_one < _TIMEOUTS_BEFORE_BLAME:
            return await merge.insert(lines)
        columns, seconds = self._records[0].layout.event_columns, self._timeout_seconds * _SHARE_OF_ONE
        refused = [line for line in lines if self._blamed[line] >= _TIMES_BLAMED]
        others = [line for line in lines if self._blamed[line] < _TIMES_BLAMED]
        merged, slow = await merge.insert_slowly(others, seconds)
        for line in slow:
            probed, [probe, *_] = next(iter(self._good(columns, line).items()))
            if not await merge.answers(probed, probe, self._timeout_seconds * _SHARE_OF_PROBE):
                raise TimeoutError("the table of events takes nothing in time")
            self._blamed[line] += 1
        if slow:
            raise TimeoutError(f"{len(slow)} rows alone take longer than {seconds:g} s to store")
        message = f"it alone took longer than {seconds:g} s to store, {_TIMES_BLAMED} times"
        reason = Reason(TIMED_OUT, "", "", "", "")
        return Merged(merged.stored, merged.bad + [Bad(line, message, reason, unread=False) for line in refused])

    async def _drop_known(self, connection: asyncpg.Connection) -> int:
        first, last = (batch_id(self.journal.number, self._records[end].number) for end in (0, -1))
        return await event_keys.drop_known(connection, self._contents.minutes, first, last)

    def _good(self, columns: tuple[str, ...], line: bytes) -> dict[tuple[str, ...], list[bytes]]:
        """Lines, by their columns, that a table would take if nobody had changed it: the least that an event can be,
        on the day of `line`; and what came last, unless it is in the flush that was just refused."""
        least = {
            "id": str(uuid4()),
            "created_at": row.split_line(line, columns)["created_at"],
            "received_at": datetime.now(UTC).isoformat(),
            "type": "system",
            "name": "ingest_probe",
            "properties": "{}",
            "context": "{}",
            # Without a batch it would be taken for a plain INSERT, and be given all sorts of values.
            "batch_id": str(batch_id(self.journal.number, 0)),
        }
        good = {tuple(least): [f"{row.fields(*least.values())}\n".encode()]}
        newest = self.journal.backlog.newest
        if newest is not None and newest.layout.event_columns == columns:
            good[columns] = newest.event_lines.splitlines(keepends=True)[-_NEWEST_PROBED:]
        return good

    async def _merge_rejected(self, connection: asyncpg.Connection) -> None:
        """Keep the refused events of the flush. They are counted already: one that cannot be kept is only told of."""
        lines = [line for record in self._records for line in record.rejected_lines.splitlines(keepends=True)]
        if lines:
            for bad in await self._keep(connection, self._records[0].layout.rejected_columns, lines):
                logger.error("a refused event cannot be kept in analytics.rejected_events: %s", bad.message)

    async def _keep_bad(self, connection: asyncpg.Connection, bad: Sequence[Bad]) -> None:
        logger.error("the table refused %d accepted events; they are in analytics.rejected_events", len(bad))
        number = batch_id(self.journal.number, self._records[-1].number)
        columns = self._records[0].layout.event_columns
        lines = [
            _rejected_line(one, columns, number)
            for one in bad
            if not self._is_kept(event_keys.known_by(one.line, columns))
        ]
        if refused := await self._keep(connection, row.REJECTED_COLUMNS, lines):
            raise TableRefuses(f"analytics.rejected_events refuses what analytics.events does: {refused[0].message}")

    async def _keep(
        self, connection: asyncpg.Connection, columns: tuple[str, ...], lines: Sequence[bytes]
    ) -> list[Bad]:
        """Put lines into analytics.rejected_events; those that it refuses."""
        merge = await Merge.begin(connection, "rejected_events", columns, self._timeout_seconds)
        merged = await merge.insert(lines)
        await merge.end()
        return merged.bad

    async def _make_partitions(self, connection: asyncpg.Connection) -> int:
        """Make the partitions of the days in the taken records; how many were missing."""
        return await partitions.ensure(connection, self._contents.days)

    # Settling.

    def _settle(self, outcome: Outcome, count: int) -> None:
        """Book what became of the first `count` of the taken records and let them go."""
        last = self._taken[count - 1].number
        self.journal.forget(count)
        self._taken = self._taken[count:]
        self._accounts.stored += outcome.stored
        self._accounts.duplicate_in_database += outcome.duplicate
        if outcome.refused:
            self._accounts.reject(RejectReason.DATABASE_REFUSED, outcome.refused)
        self.last_stored_at = time.time()
        self._on_stored(last, outcome.bad)

    def _complain(self, error: BaseException) -> None:
        if self._quiet.due():
            logger.warning(
                "cannot store now, %d events wait in journal %d: %s",
                self.journal.backlog.events,
                self.journal.number,
                one_line(error),
            )

    def _complain_of_table(self, error: TableRefuses) -> None:
        self.table_refuses = str(error)
        if self._table_quiet.due():
            logger.error(
                "nothing can be stored until this is mended, %d events wait in journal %d: %s",
                self.journal.backlog.events,
                self.journal.number,
                error,
            )


def _rejected_line(bad: Bad, columns: tuple[str, ...], number: int) -> bytes:
    values = row.split_line(bad.line, columns)
    payload = row.event_of_line(values)
    received_at = values["received_at"] or datetime.now(UTC).isoformat()
    text = row.fields(
        received_at,
        _sent_at(values, received_at),
        RejectReason.DATABASE_REFUSED.value,
        bad.message,
        "/v1/events",
        payload,
        "f",
        values.get("ip_address"),
        values.get("user_agent"),
        str(number),
    )
    return f"{text}\n".encode()


def _sent_at(values: dict[str, str | None], received_at: str) -> str | None:
    """When an event was sent by a client's clock that is as wrong as it was found: a replay corrects it as much."""
    told, created_at = values.get("client_time"), values.get("created_at")
    if told is None or told == row.NO_TIME or created_at is None:
        return None
    moments = [datetime.fromisoformat(text) for text in (received_at, told, created_at)]
    return (moments[0] + (moments[1] - moments[2])).isoformat()


async def _first_of(*waits: Awaitable[Any]) -> None:
    """Return when the first of them is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
