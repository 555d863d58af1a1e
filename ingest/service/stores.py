"""The journals of one collector, its own and those of workers that are gone, and the writer that stores them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg

from ingest.base.config import Config
from ingest.base.errors import DatabaseError, IngestError, one_line
from ingest.base.logs import Quiet, fields
from ingest.base.refusals import RejectReason
from ingest.intake.dedupe import DedupeWindow
from ingest.intake.recent import Recent
from ingest.journal import journals
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal, JournalFailed, JournalFull
from ingest.journal.open_record import OpenRecord
from ingest.journal.replays import Replays
from ingest.postgres import connections, migrations
from ingest.service.loops import run_every
from ingest.service.metrics import Metrics
from ingest.service.storing import Launch, Process, Storing
from ingest.store import partitions
from ingest.store.feeder import Feeder
from ingest.store.flush import Outcome
from ingest.store.ledger import JournalTaken, Ledger, create_journal

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.05
_DRAINED_SECONDS: Final = 0.2
_LOOKS_BETWEEN_ADOPTIONS: Final = 20


class Stores:
    """`journal` and `feeder` exist after `open_own`; `adopt` adds to `adopted`.

    The outcome of records is reported to the accounts, the metrics, the window of recent ids, the newest events and
    the replays.
    """

    def __init__(
        self,
        config: Config,
        index: int,
        *,
        accounts: Accounts,
        metrics: Metrics,
        window: DedupeWindow,
        replays: Replays,
        recent: Recent,
        stopping: asyncio.Event,
        launch: Launch = Process,
    ) -> None:
        """`stopping` ends the draining of adopted journals. `index`: the worker's, for the log. `launch`: starts a
        writer."""
        self._config = config
        self._index = index
        self._accounts = accounts
        self._metrics = metrics
        self._window = window
        self._replays = replays
        self._recent = recent
        self._stopping = stopping
        self.journal: Journal
        self.feeder: Feeder
        self.storing = Storing(config, launch, on_death=metrics.writer_deaths.inc)
        # Whether the last write to a journal failed; settling a record changes it.
        self.write_failing = False
        # Journals of workers that are gone, being drained; the adopting loop changes it.
        self.adopted: dict[Path, tuple[Journal, Feeder]] = {}
        # One for each of those, even if it is done.
        self.tasks: list[asyncio.Task[None]] = []
        # When a journal that we drained was last changed: no need to look again until it does.
        self._drained: dict[Path, float] = {}

    @property
    def is_open(self) -> bool:
        return hasattr(self, "journal")

    def all(self) -> list[tuple[Journal, Feeder]]:
        """Its own, once it is open, then those adopted."""
        own = [(self.journal, self.feeder)] if self.is_open else []
        return [*own, *self.adopted.values()]

    async def open_own(self, *, is_replacement: bool = False) -> None:
        """Take a journal that is on disk, or make one with a number from the database.

        `is_replacement`: of a worker that died or was stopped. Its siblings go on when the database is migrated for
        the next release, and so does it: until the service is restarted, its place must not stay empty.
        """
        config = self._config
        position = ledger = taken = None
        claimed, connection = await self._claim_and_connect()
        try:
            if connection is not None:
                try:
                    await migrations.check(connection, may_be_newer=is_replacement)
                    await _report_missing_roles(connection)
                    await partitions.ensure_ahead(
                        connection, today=datetime.now(UTC).date(), days_ahead=config.partitions_ahead_days
                    )
                    if claimed is None:
                        claimed = await create_journal(config.data_dir, connection)
                    ledger = Ledger(claimed.layout, claimed.ownership)
                    try:
                        position = await ledger.open(connection)
                    except JournalTaken as error:
                        position, taken = error.stored_through, error
                except connections.FAILURES as error:
                    # Lost since it was opened. Any other error would be the same without a connection, or worse.
                    if claimed is None or not (connection.is_closed() or isinstance(error, TimeoutError)):
                        raise
                    # The ledger may have its token: it is asked again, with another one.
                    ledger = None
                    logger.warning("starting without the database, events wait in the journal: %s", one_line(error))
                finally:
                    await connections.close(connection)
        except BaseException:
            if claimed is not None:
                claimed.release()
            raise
        assert claimed is not None
        ledger = ledger or Ledger(claimed.layout, claimed.ownership)
        self.journal, self.feeder = await self._open(claimed, ledger, position, self._replays)
        self.feeder.postgres_up = position is not None
        if taken is not None:
            # Not an end: what waits in it is counted, and callers get an answer.
            self.feeder.give_up(taken)
        elif position is None or claimed.ownership.is_copy:
            self.journal.skip_to(await asyncio.to_thread(claimed.ownership.leave_gap, self.journal.last_record))

    async def _claim_and_connect(self) -> tuple[journals.Claimed | None, asyncpg.Connection | None]:
        """A journal that is on disk and free, and a connection, or one of both.

        A worker that has a journal goes on without the database. One that needs a new one waits for it: not forever
        at the very first start; but if there are journals, others work with them and must not be taken down.
        """
        folder = self._config.data_dir
        deadline = time.monotonic() + self._config.database_wait_seconds
        quiet = Quiet()
        while True:
            claimed = journals.claim(folder)
            try:
                return claimed, await self.connect("start")
            except DatabaseError as error:
                if claimed is not None:
                    logger.warning("starting without the database, events wait in the journal: %s", error)
                    return claimed, None
                if time.monotonic() >= deadline and not journals.folders(folder):
                    raise
                if quiet.due():
                    logger.warning(
                        "worker %d is waiting for the database, a new journal needs a number from it: %s",
                        self._index,
                        error,
                    )
            except BaseException:
                if claimed is not None:
                    claimed.release()
                raise
            await asyncio.sleep(0.5)

    async def connect(self, purpose: str) -> asyncpg.Connection:
        assert self._config.database_url is not None
        return await connections.connect(
            self._config.database_url,
            purpose=purpose,
            timeout_seconds=min(10.0, self._config.statement_timeout_seconds),
            statement_timeout_seconds=self._config.statement_timeout_seconds,
        )

    async def _open(
        self, claimed: journals.Claimed, ledger: Ledger, position: int | None, replays: Replays
    ) -> tuple[Journal, Feeder]:
        config = self._config
        journal = Journal(
            claimed,
            segment_bytes=config.segment_bytes,
            max_bytes=config.journal_max_bytes,
            memory_max_bytes=config.memory_max_bytes,
            on_settled=self._on_settled,
            on_lost=self._on_lost,
        )
        journal.on_fsync = lambda seconds, _: self._metrics.fsync.observe(seconds)
        await asyncio.to_thread(journal.recover, position)
        self._accounts.recovered += journal.backlog.events
        self._accounts.watch_pending(lambda: journal.backlog.events)
        if journal.backlog.events:
            logger.info(
                "found events in the journal that are not stored yet",
                extra=fields(journal=journal.number, events=journal.backlog.events),
            )
        feeder = Feeder(
            journal,
            ledger,
            self._accounts,
            flush_max_bytes=config.flush_max_bytes,
            on_flush=self._on_flush,
            on_stored=lambda through, bad: self._on_stored(replays, through, bad),
            kept=replays.keys,
        )
        return journal, feeder

    def _on_settled(self, record: OpenRecord) -> None:
        self._window.settle(record)
        self.write_failing = not record.outcome
        if not record.outcome:
            self._accounts.reject(RejectReason.JOURNAL_UNAVAILABLE, record.events)
        self._recent.settle(record)

    def _on_flush(self, seconds: float, outcome: Outcome) -> None:
        self._metrics.flush.observe(seconds)
        self._metrics.flush_rows.observe(outcome.stored + outcome.duplicate + outcome.refused)

    def _on_stored(self, replays: Replays, through: int, bad: Mapping[bytes, str] | None) -> None:
        if bad is None:
            # The database catches the retries instead.
            self._window.clear()
        elif bad:
            self._window.forget(bad)
        replays.flushed(through, bad)

    def _on_lost(self, events: int) -> None:
        self._accounts.reject(RejectReason.JOURNAL_CORRUPT, events)
        self._replays.give_up()

    # Journals of others.

    async def adopt(self) -> None:
        """Drain the journals that nobody holds: there are fewer workers now, or one could not come back."""
        held = {journal.folder for journal, _ in self.all()}
        free = [
            folder
            for folder in journals.folders(self._config.data_dir)
            if folder not in held
            and self._drained.get(folder) != journals.changed_at(folder)
            and journals.is_free(folder)
        ]
        if not free:
            return
        # Without the database we could not drain it, and a worker that is just starting could not make another.
        connection = await self.connect("adopt")
        failed: IngestError | None = None
        try:
            for folder in free:
                try:
                    claimed = journals.claim_folder(folder)
                    if claimed is not None:
                        await self._adopt(folder, claimed, connection)
                except IngestError as error:
                    failed = error
        finally:
            await connections.close(connection)
        if failed is not None:
            raise failed

    async def _adopt(self, folder: Path, claimed: journals.Claimed, connection: asyncpg.Connection) -> None:
        ledger, taken = Ledger(claimed.layout, claimed.ownership), None
        try:
            position = await ledger.open(connection)
        except JournalTaken as error:
            position, taken = error.stored_through, error
        except BaseException:
            claimed.release()
            raise
        journal, feeder = await self._open(claimed, ledger, position, Replays())
        self.adopted[folder] = journal, feeder
        if taken is not None:
            feeder.give_up(taken)
        elif journal.backlog.events:
            logger.info("adopted journal %d with %d events", journal.number, journal.backlog.events)
        self.tasks.append(asyncio.ensure_future(self._drain_adopted(folder, journal, feeder)))

    async def _drain_adopted(self, folder: Path, journal: Journal, feeder: Feeder) -> None:
        empty = asyncio.Event()

        async def check() -> None:
            if self._stopping.is_set() or not journal.has_backlog:
                empty.set()

        try:
            await self.storing.feed(feeder)
        except OSError as error:
            logger.error("the writer cannot be started: %s", error)
            empty.set()
        await run_every(_DRAINED_SECONDS, check, empty, what="draining a journal")
        await self.storing.leave(feeder)
        is_clean = await self._leave_no_lines(journal)
        await journal.close()
        if is_clean:
            self._drained[folder] = journals.changed_at(folder)
        if not journal.has_backlog:
            del self.adopted[folder]

    async def _leave_no_lines(self, journal: Journal) -> bool:
        """Delete what a journal still has on disk once all of it is stored: perhaps nobody ever writes to it again.
        False if that cannot be done now."""
        if journal.has_backlog or journal.is_taken or not journal.backlog.holds_lines:
            return True
        try:
            await journal.rotate()
        except (JournalFull, JournalFailed) as error:
            logger.warning("journal %d is stored, and its files cannot be deleted yet: %s", journal.number, error)
            return False
        journal.delete_stored()
        return True

    async def drain_only(self, patience_seconds: float) -> int:
        """Store what the journals of the data folder hold, without serving; returns how many are not done.

        Gives up when nothing has been stored for that long. Raises DatabaseError when the database cannot be reached.
        """
        await self.adopt()
        left, deadline = self._accounts.pending, time.monotonic() + patience_seconds
        while self.adopted and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            if self._accounts.pending < left:
                left, deadline = self._accounts.pending, time.monotonic() + patience_seconds
        self._stopping.set()
        _, late = await asyncio.wait(self.tasks, timeout=5) if self.tasks else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.storing.stop()
        undone = set(journals.folders(self._config.data_dir)) - self._drained.keys()
        return len(undone | self.adopted.keys())

    # Its own.

    async def probe(self) -> None:
        """After a failed write, see whether the disk is well again. No balancer would send a request to find out
        while /readyz says no."""
        if self.write_failing:
            with contextlib.suppress(JournalFull, JournalFailed):
                await self.journal.wait(self.journal.append((), 0, []))

    async def clear(self, seconds: float) -> None:
        """Store what its own journal and those that nobody holds have now, and delete the files it is in; gives up
        after that time."""
        deadline = time.monotonic() + seconds
        through: int | None = None
        with contextlib.suppress(JournalFull, JournalFailed):
            through = await self.journal.rotate() - 1
        while time.monotonic() < deadline:
            with contextlib.suppress(IngestError):
                await self.adopt()
            for _ in range(_LOOKS_BETWEEN_ADOPTIONS):
                if through is not None and self.journal.is_stored(through):
                    self.journal.delete_stored()
                    through = None
                if through is None and not self.adopted:
                    return
                await asyncio.sleep(_LOOK_SECONDS)


async def _report_missing_roles(connection: asyncpg.Connection) -> None:
    """Without them requests are refused, and nobody would know why."""
    if missing := await connections.missing_roles(connection):
        user, names = await connection.fetchval("SELECT quote_ident(session_user)"), ", ".join(missing)
        logger.error(
            "the user %s may not take on the roles %s, so requests in their name are answered 403;"
            " as an administrator: GRANT %s TO %s",
            user,
            names,
            names,
            user,
        )
