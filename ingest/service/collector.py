"""The composition root of a collector: journal, writer and loops, from start to stop; routes.py wires its HTTP.

`start_collector` starts one collector with its journal and writer; `ingest dev`, `ingest serve` and the tests all
call it. What it returns is stopped by `stop`, which may be called again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg

from ingest.api.api_keys import REFRESH_SECONDS, KeyRing
from ingest.base import descriptors
from ingest.base.config import Config
from ingest.base.errors import DatabaseError, IngestError
from ingest.base.logs import Quiet, fields
from ingest.base.refusals import RejectReason
from ingest.events.values import user_agents
from ingest.features.experiments import definitions
from ingest.features.experiments.definitions import Definitions
from ingest.http.admission import CLOSING, SPARE
from ingest.http.binding import bind_unix
from ingest.http.budget import Budget
from ingest.http.census import Census, Seat
from ingest.http.server import Server
from ingest.intake.dedupe import DedupeWindow
from ingest.intake.tail import Tail
from ingest.journal import journals, leftovers
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal, JournalFailed, JournalFull
from ingest.journal.open_record import OpenRecord
from ingest.journal.replays import Replays
from ingest.postgres import connections, migrations
from ingest.postgres.pool import Pool
from ingest.service import control, routes
from ingest.service.loops import run_every
from ingest.service.metrics import Gauges, Metrics, merge
from ingest.service.routes import Parts
from ingest.store import partitions, watermark
from ingest.store.ledger import JournalTaken, Ledger, create_journal
from ingest.store.writer import Outcome, Writer

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 10.0
ADOPT_SECONDS: Final = 15.0
PROBE_SECONDS: Final = 1.0
READING_CONNECTIONS: Final = 4
CALLING_CONNECTIONS: Final = 10
FEATURES: Final = ("leads", "people", "onboarding", "experiments", "flags", "service")
"""Who share these: the tags of operations, and what the service asks for itself."""
RESERVED: Final = descriptors.LAST_RESERVE + READING_CONNECTIONS + CALLING_CONNECTIONS + SPARE + CLOSING + 4
"""Descriptors for all that is opened later: the journal's files, connections to Postgres (also the writer's, one to
adopt), clients beyond the limit, two of the control socket. One more is for each sibling's metrics."""
_LOOK_SECONDS: Final = 0.05
_LOOKS_BETWEEN_ADOPTIONS: Final = 20


class Collector:
    """A running collector: `port` it listens on, `stop` it. Everything else is for tests to look at."""

    def __init__(self, config: Config, index: int, census: Census | None = None) -> None:
        self.config = config
        self.index = index
        self._seat = Seat(census or Census(), index if census else 0)
        self.port = 0
        self.accounts = Accounts()
        self.tail = Tail(config.anonymise_ip)
        self.window = DedupeWindow(config.dedupe_window_events)
        self.replays = Replays()
        self.budget = Budget(config.bodies_max_bytes, time.monotonic)
        self.metrics = Metrics(self.accounts, Gauges(self._stores, self.is_ready, self.budget), index)
        self.journal: Journal
        self.writer: Writer
        # Set to end the background loops; before that, `closing` says that no more events are wanted.
        self.stopping = asyncio.Event()
        self.closing = False
        # Still serving, but not for long: balancers are to send no more.
        self.draining = False
        self._stopped = False
        # Journals of workers that are gone, being drained; the adopting loop changes it.
        self.adopted: dict[Path, tuple[Journal, Writer]] = {}
        # When a journal that we drained was last changed: no need to look again until it does.
        self._drained: dict[Path, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._server: Server | None = None
        self._control: Server | None = None
        assert config.database_url is not None
        self._reading = Pool(config.database_url, "statistics", READING_CONNECTIONS, config.stats_timeout_seconds)
        self._calling = Pool(
            config.database_url, "handlers", CALLING_CONNECTIONS, config.statement_timeout_seconds, FEATURES
        )
        self.keys = KeyRing(self._calling)
        self.experiments = Definitions(self._calling)
        self._write_failing = False

    def _stores(self) -> list[tuple[Journal, Writer]]:
        own = [(self.journal, self.writer)] if hasattr(self, "journal") else []
        return [*own, *self.adopted.values()]

    def can_accept(self) -> bool:
        """Whether an event that came now could be made durable. A database outage does not matter here."""
        if self.closing or self._write_failing:
            return False
        return self.journal.has_room and not self.journal.is_stalled and not self.journal.is_taken

    def is_ready(self) -> bool:
        """Whether clients should be sent here."""
        return self.can_accept() and not self.draining

    # Opening.

    async def open_journal(self) -> None:
        """Take a journal that is on disk, or make one with a number from the database."""
        config = self.config
        position = ledger = taken = None
        claimed, connection = await self._claim_and_connect()
        try:
            if connection is not None:
                try:
                    await migrations.check(connection)
                    await _tell_of_missing_roles(connection)
                    await partitions.ensure_ahead(
                        connection, today=datetime.now(UTC).date(), days_ahead=config.partitions_ahead_days
                    )
                    if claimed is None:
                        claimed = await create_journal(config.data_dir, connection)
                    ledger = Ledger(claimed)
                    try:
                        position = await ledger.open(connection)
                    except JournalTaken as error:
                        position, taken = error.stored_through, error
                finally:
                    await connections.close(connection)
        except BaseException:
            if claimed is not None:
                claimed.release()
            raise
        assert claimed is not None
        self.journal, self.writer = await self._open(claimed, ledger or Ledger(claimed), position, self.replays)
        self.writer.postgres_up = position is not None
        if taken is not None:
            # Not an end: what waits in it is counted, and whoever asks is told.
            self.writer.give_up(taken)
        elif position is None or claimed.ownership.is_copy:
            self.journal.skip_to(await asyncio.to_thread(claimed.ownership.leave_gap, self.journal.last_record))

    async def _claim_and_connect(self) -> tuple[journals.Claimed | None, asyncpg.Connection | None]:
        """A journal that is on disk and free, and a connection, or one of both.

        A worker that has a journal goes on without the database. One that needs a new one waits for it: not forever
        at the very first start; but if there are journals, others work with them and must not be taken down.
        """
        folder = self.config.data_dir
        deadline = time.monotonic() + self.config.database_wait_seconds
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
                        self.index,
                        error,
                    )
            except BaseException:
                if claimed is not None:
                    claimed.release()
                raise
            await asyncio.sleep(0.5)

    async def connect(self, purpose: str) -> asyncpg.Connection:
        assert self.config.database_url is not None
        return await connections.connect(
            self.config.database_url,
            purpose=purpose,
            timeout_seconds=min(10.0, self.config.statement_timeout_seconds),
            statement_timeout_seconds=self.config.statement_timeout_seconds,
        )

    async def _open(
        self, claimed: journals.Claimed, ledger: Ledger, position: int | None, replays: Replays
    ) -> tuple[Journal, Writer]:
        config = self.config
        journal = Journal(
            claimed,
            segment_bytes=config.segment_bytes,
            max_bytes=config.journal_max_bytes,
            memory_max_bytes=config.memory_max_bytes,
            on_settled=self._on_settled,
            on_lost=self._on_lost,
        )
        journal.on_fsync = lambda seconds, _: self.metrics.fsync.observe(seconds)
        await asyncio.to_thread(journal.recover, position)
        self.accounts.recovered += journal.backlog.events
        self.accounts.watch_pending(lambda: journal.backlog.events)
        if journal.backlog.events:
            logger.info(
                "found events in the journal that are not stored yet",
                extra=fields(journal=journal.number, events=journal.backlog.events),
            )
        writer = Writer(
            journal,
            ledger,
            lambda: self.connect("writer"),
            self.accounts,
            flush_max_bytes=config.flush_max_bytes,
            statement_timeout_seconds=config.statement_timeout_seconds,
            on_flush=self._on_flush,
            on_stored=lambda through, bad: self._on_stored(replays, through, bad),
            is_kept=replays.is_kept,
        )
        return journal, writer

    def _on_settled(self, record: OpenRecord) -> None:
        self.window.settle(record)
        self._write_failing = not record.outcome
        if not record.outcome:
            self.accounts.reject(RejectReason.JOURNAL_UNAVAILABLE, record.events)

    def _on_flush(self, seconds: float, outcome: Outcome) -> None:
        self.metrics.flush.observe(seconds)
        self.metrics.flush_rows.observe(outcome.stored + outcome.duplicate + outcome.refused)

    def _on_stored(self, replays: Replays, through: int, bad: Mapping[bytes, str] | None) -> None:
        if bad is None:
            # The database catches the retries instead.
            self.window.clear()
        elif bad:
            self.window.forget(bad)
        replays.flushed(through, bad)

    def _on_lost(self, events: int) -> None:
        self.accounts.reject(RejectReason.JOURNAL_CORRUPT, events)
        self.replays.give_up()

    # Running.

    def start_loops(self) -> None:
        """The background of the worker, as one table of {what, function, period}."""
        for what, run_once, seconds in (
            ("adopting journals", self.adopt, ADOPT_SECONDS),
            ("hanging up on silent connections", self._sweep, SWEEP_SECONDS),
            ("probing a journal that failed", self.probe_journal, PROBE_SECONDS),
            ("reading API keys", self.keys.refresh, REFRESH_SECONDS),
            ("reading experiments", self.experiments.refresh, definitions.REFRESH_SECONDS),
        ):
            self._start(self._loop(what, run_once, seconds))
        self._start(self.writer.run(self.stopping))

    def _start(self, coroutine: Awaitable[None]) -> None:
        self._tasks.append(asyncio.ensure_future(coroutine))

    async def _loop(self, what: str, run_once: Callable[[], Awaitable[object]], seconds: float) -> None:
        failed = self.metrics.loop_failures.labels(what)
        await run_every(seconds, run_once, self.stopping, what=what, on_failure=failed.inc)

    async def adopt(self) -> None:
        """Drain the journals that nobody holds: there are fewer workers now, or one could not come back."""
        held = {journal.folder for journal, _ in self._stores()}
        free = [
            folder
            for folder in journals.folders(self.config.data_dir)
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
        ledger, taken = Ledger(claimed), None
        try:
            position = await ledger.open(connection)
        except JournalTaken as error:
            position, taken = error.stored_through, error
        except BaseException:
            claimed.release()
            raise
        journal, writer = await self._open(claimed, ledger, position, Replays())
        self.adopted[folder] = journal, writer
        if taken is not None:
            writer.give_up(taken)
        elif journal.backlog.events:
            logger.info("adopted journal %d with %d events", journal.number, journal.backlog.events)
        self._start(self._drain_adopted(folder, journal, writer))

    async def abandon(self) -> None:
        """Undo a start that failed half-way."""
        for server in (self._server, self._control):
            if server is not None:
                await server.stop()
        if hasattr(self, "journal"):
            await self.journal.close()

    async def _drain_adopted(self, folder: Path, journal: Journal, writer: Writer) -> None:
        empty = asyncio.Event()

        async def check() -> None:
            if self.stopping.is_set() or not journal.has_backlog:
                empty.set()

        await asyncio.gather(writer.run(empty), run_every(0.2, check, empty, what="draining a journal"))
        await writer.close()
        is_clean = await self._leave_no_lines(journal)
        await journal.close()
        if is_clean:
            self._drained[folder] = journals.changed_at(folder)
        if not journal.has_backlog:
            del self.adopted[folder]

    async def _leave_no_lines(self, journal: Journal) -> bool:
        """Delete what a journal still has on disk once all of it is stored: perhaps nobody ever writes to it again.
        False if that cannot be done now."""
        if journal.has_backlog or journal.is_taken or not journal.holds_lines:
            return True
        try:
            await journal.rotate()
        except (JournalFull, JournalFailed) as error:
            logger.warning("journal %d is stored, and its files cannot be deleted yet: %s", journal.number, error)
            return False
        journal.delete_stored()
        return True

    async def drain_only(self, patience_seconds: float) -> int:
        """Store what the journals of the data folder hold, without serving; how many of them are not done.

        Gives up when nothing has been stored for so long. Raises DatabaseError when the database is not there.
        """
        await self.adopt()
        left, deadline = self.accounts.pending, time.monotonic() + patience_seconds
        while self.adopted and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            if self.accounts.pending < left:
                left, deadline = self.accounts.pending, time.monotonic() + patience_seconds
        self.stopping.set()
        _, late = await asyncio.wait(self._tasks, timeout=5) if self._tasks else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        undone = set(journals.folders(self.config.data_dir)) - self._drained.keys()
        return len(undone | self.adopted.keys())

    async def probe_journal(self) -> None:
        """After a failed write, see whether the disk is well again. No balancer would send a request to find out
        while /readyz says no."""
        if self._write_failing:
            with contextlib.suppress(JournalFull, JournalFailed):
                await self.journal.wait(self.journal.append((), 0, []))

    async def _sweep(self) -> None:
        if self._server is not None:
            await self._server.connections.sweep()

    # HTTP.

    async def listen(self, sock: socket.socket) -> None:
        """Serve HTTP on a bound socket, and the control socket for siblings and commands."""
        self.port = sock.getsockname()[1]
        parts = Parts(
            config=self.config,
            journal=self.journal,
            window=self.window,
            replays=self.replays,
            accounts=self.accounts,
            tail=self.tail,
            metrics=self.metrics,
            budget=self.budget,
            keys=self.keys,
            experiments=self.experiments,
            reading=self._reading,
            calling=self._calling,
            can_accept=self.can_accept,
            wait_stored=self.wait_stored,
            clear_journals=self.clear_journals,
            clear_own=self.clear_own,
            state=self.state,
            metrics_page=self.metrics_page,
            seat=self._seat,
            connections_allowed=descriptors.connections_allowed(RESERVED + self.config.workers),
        )
        self._server = routes.public_server(parts)
        self._control = routes.control_server(parts)
        self.metrics.watch(self._server.connections)
        # First: siblings look for it as soon as we answer.
        await self._control.start(bind_unix(control.socket_path(self.config.data_dir, self.index)))
        await self._server.start(sock)

    async def wait_stored(self, seconds: float) -> bool:
        """Whether all that the journals of this data folder hold now is in the database within so many seconds."""
        mark = await watermark.read(self.config.data_dir, [journal for journal, _ in self._stores()])
        return await watermark.wait_passed(mark, self._calling, seconds)

    async def clear_journals(self, seconds: float) -> list[Path]:
        """Store what the journals of this data folder hold now, and delete the files it is in, whichever worker holds
        them; those that are left after so many seconds."""
        own = control.socket_path(self.config.data_dir, self.index)
        siblings = [path for path in control.running(self.config.data_dir) if path != own]
        clearing = [self.clear_own(seconds), *[control.clear_journals(path, seconds) for path in siblings]]
        return await leftovers.wait_gone(self.config.data_dir, clearing, seconds)

    async def clear_own(self, seconds: float) -> None:
        """The same for the journals that this process holds, and those that nobody holds."""
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

    def state(self) -> tuple[bool, dict[str, object]]:
        """What /readyz tells."""
        told: dict[str, object] = {
            "postgres": "up" if self.writer.postgres_up else "down",
            "pending": self.accounts.pending,
        }
        if any(writer.table_refuses for _, writer in self._stores()):
            # What Postgres says of it may hold an event's values: that is for the log.
            told["not_storing"] = "the table of events refuses every row; the log says why"
        if taken := [journal.number for journal, _ in self._stores() if journal.is_taken]:
            told["taken_over"] = taken
        if self.draining:
            told["draining"] = True
        return self.is_ready(), told

    async def metrics_page(self) -> str:
        """The metrics of all workers of this service, and of the rollup workers beside them."""
        own = control.socket_path(self.config.data_dir, self.index)
        siblings = [path for path in control.running(self.config.data_dir) if path != own]
        siblings += control.rollups(self.config.data_dir)
        pages = await asyncio.gather(*[control.metrics_page(path) for path in siblings])
        return merge([self.metrics.page(), *[page for page in pages if page is not None]])

    # Stopping.

    async def drain(self, hurry: asyncio.Event) -> None:
        """Say not ready, but serve on for drain_seconds or until `hurry`; each answer ends its connection."""
        self.draining = True
        if self._server is not None:
            await self._server.drain(self.config.drain_seconds, hurry)

    async def stop(self) -> None:
        """Stop accepting, answer what is in flight, store what can be stored, close. Repeatable."""
        if self._stopped:
            return
        self._stopped = True
        self.draining = True
        # A follower would keep its connection forever.
        self.tail.close()
        self.replays.give_up()
        for server in (self._server, self._control):
            if server is not None:
                await server.stop()
        self.closing = True
        await self._reading.close()
        await self._calling.close()
        self.stopping.set()
        timeout_seconds = self.config.shutdown_timeout_seconds
        _, late = await asyncio.wait(self._tasks, timeout=timeout_seconds) if self._tasks else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if late:
            # Postgres does not answer. What it has of the last flush, the ledger will tell the next start.
            self.writer.drop_connection()
        else:
            await self.writer.drain(timeout_seconds)
        await self.writer.close()
        await self.journal.close()
        if self.journal.backlog.events and not self.journal.is_taken:
            logger.warning(
                "stopped with events that are not stored yet; they are stored at the next start",
                extra=fields(events=self.journal.backlog.events, journal=self.journal.number),
            )


async def start_collector(
    config: Config, sock: socket.socket, index: int = 0, census: Census | None = None
) -> Collector:
    """Start one collector on a bound socket: journal, writer, HTTP. It accepts events when this returns.

    `census`: the connections of all workers that share the socket; without it, this is the only one.
    """
    worker = Collector(config, index, census)
    try:
        await worker.open_journal()
        user_agents.warm_up()
        await worker.listen(sock)
    except BaseException:
        sock.close()
        await worker.abandon()
        raise
    worker.start_loops()
    return worker


async def _tell_of_missing_roles(connection: asyncpg.Connection) -> None:
    """Without them requests are refused, and nobody would know why."""
    if missing := await connections.missing_roles(connection):
        user, names = await connection.fetchval("SELECT quote_ident(session_user)"), ", ".join(missing)
        logger.error(
            "the user %s may not take on the roles %s, so that requests in their name are answered 403;"
            " as an administrator: GRANT %s TO %s",
            user,
            names,
            names,
            user,
        )
