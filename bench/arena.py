"""Where `bench.compare` measures: one Postgres, a fresh database for each contender, and meters of CPU and disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import psutil

from bench.contenders import Contender, Kind, running_contender
from bench.database import Database
from bench.rivals import table
from ingest.events.row import EVENT_COLUMNS
from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres

TEMPLATE: Final = "migrated"
POLL_SECONDS: Final = 0.05
SAMPLE_SECONDS: Final = 0.25
STATEMENT_SECONDS: Final = 600.0


class Session:
    """A connection of our own, for counting: what its backend does is on nobody's bill. Opened when it is needed, and
    again after Postgres was killed."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._runner = asyncio.Runner()
        self._connection: asyncpg.Connection | None = None

    def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        for attempt in (1, 2):
            try:
                return self._runner.run(self._fetch(sql, arguments))
            except table.UNAVAILABLE:
                self.forget()
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def value(self, sql: str, *arguments: object) -> Any:
        return self.fetch(sql, *arguments)[0][0]

    def execute(self, *statements: str) -> None:
        """Each in its own transaction."""
        for statement in statements:
            self.fetch(statement)

    async def _fetch(self, sql: str, arguments: Sequence[object]) -> list[asyncpg.Record]:
        found: list[asyncpg.Record] = await (await self._opened()).fetch(sql, *arguments)
        return found

    async def _opened(self) -> asyncpg.Connection:
        if self._connection is None:
            # Without other processes, which nobody would know to be ours.
            settings = {"max_parallel_workers_per_gather": "0"}
            self._connection = await asyncpg.connect(
                self._dsn, server_settings=settings, command_timeout=STATEMENT_SECONDS
            )
        return self._connection

    def copy_out(self, file: Path) -> None:
        """Write all rows of analytics.events to a file, in COPY's text format."""
        self._runner.run(self._copy_out(file))

    async def _copy_out(self, file: Path) -> None:
        await (await self._opened()).copy_from_query(
            f"SELECT {', '.join(EVENT_COLUMNS)} FROM analytics.events", output=file
        )

    def copy_in(self, file: Path) -> None:
        """Store the rows of such a file with one COPY."""
        self._runner.run(self._copy_in(file))

    async def _copy_in(self, file: Path) -> None:
        await (await self._opened()).copy_to_table(
            "events", schema_name="analytics", source=file, columns=EVENT_COLUMNS, timeout=STATEMENT_SECONDS
        )

    @property
    def backend(self) -> int | None:
        """The process id of its backend."""
        return self._connection.get_server_pid() if self._connection is not None else None

    def forget(self) -> None:
        """Close the connection; Postgres may be gone."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def close(self) -> None:
        self.forget()
        self._runner.close()


@contextmanager
def copying(dsn: str) -> Iterator[Session]:
    """A session of its own, so that what it does is on Postgres' bill."""
    session = Session(dsn)
    try:
        yield session
    finally:
        session.close()


class Used(NamedTuple):
    """CPU seconds, and bytes that were written to files and left the page cache or are to leave it."""

    cpu: float
    written: float

    def since(self, before: Used) -> Used:
        return Used(self.cpu - before.cpu, self.written - before.written)

    def an_event(self, events: int) -> Used:
        """Seconds become microseconds."""
        return Used(1e6 * self.cpu / events, self.written / events) if events else Used(0.0, 0.0)


class Meter:
    """What a group of processes has used. In its `with` block it looks four times a second, as the account of a
    process is gone when it ends."""

    def __init__(self, processes: Callable[[], Sequence[psutil.Process]]) -> None:
        self._processes = processes
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        # The most that was seen of each process; changed by `look`.
        self._used: dict[psutil.Process, Used] = {}

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> Used:
        """All that they have used so far, before this meter, too."""
        with self._lock:
            for process in self._processes():
                with contextlib.suppress(psutil.Error):
                    times, written = process.cpu_times(), process.io_counters().write_bytes
                    self._used[process] = Used(times.user + times.system, written)
            return Used(
                sum(each.cpu for each in self._used.values()), sum(each.written for each in self._used.values())
            )

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.look()


class Ring:
    """A contender and its database. Made by `Arena.ring`."""

    def __init__(self, contender: Contender, session: Session, arena: Arena) -> None:
        self.contender = contender
        self.session = session
        self.arena = arena

    def postgres_processes(self) -> list[psutil.Process]:
        """Without the backend that counts."""
        return [each for each in self.arena.database.processes() if each.pid != self.session.backend]

    def forget_events(self) -> None:
        """Empty the table and take a checkpoint, so that all measurements begin alike."""
        self.session.execute(f"TRUNCATE {self.contender.kind.table}", "CHECKPOINT")

    def rows(self) -> int:
        return int(self.session.value(f"SELECT count(*) FROM {self.contender.kind.table}"))

    def waiting(self) -> int:
        """Events or requests that the contender knows to be not stored, or not rolled up."""
        waiting = self.contender.waiting()
        if self.contender.kind.rollup:
            waiting += self.session.value("SELECT count(*) FROM analytics.flushes WHERE rolled_up_at IS NULL")
        return waiting

    def kill(self, *, with_postgres: bool) -> None:
        """kill -9 of everything, and start it again."""
        self.contender.kill(self.arena.database.processes() if with_postgres else ())
        if with_postgres:
            self.session.forget()
            self.arena.postgres.start()
        self.contender.start()


class Arena:
    """One Postgres for all. Made by `running_arena`."""

    def __init__(self, folder: Path, postgres: EmbeddedPostgres) -> None:
        self.folder = folder
        self.postgres = postgres
        self.database = Database(postgres)
        self._session = Session(postgres.dsn)
        self._names = iter(range(1, 10**6))

    def prepare(self) -> None:
        """Make the database that all others are copies of."""
        self._session.execute(f"CREATE DATABASE {TEMPLATE}")
        asyncio.run(_migrate(self.dsn(TEMPLATE)))

    def dsn(self, name: str) -> str:
        parts = urlsplit(self.postgres.dsn)
        return f"{parts.scheme}://{parts.netloc}/{name}?{parts.query}"

    @contextmanager
    def fresh_database(self) -> Iterator[tuple[str, Session]]:
        """(URL, a session): the service's schema and the rivals' table, without an event."""
        name = f"contender_{next(self._names)}"
        self._session.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        session = Session(self.dsn(name))
        try:
            yield self.dsn(name), session
        finally:
            session.close()
            self._session.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def ring(self, kind: Kind) -> Iterator[Ring]:
        """A running contender on a fresh database and folder; all are gone afterwards."""
        with self.fresh_database() as (dsn, session):
            if not kind.is_ours:
                session.execute(table.MAKE_SCHEMA, table.MAKE)
            with (
                tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder,
                running_contender(kind, Path(folder), dsn) as contender,
            ):
                yield Ring(contender, session, self)

    def start_copy(self, dsn: str, file: Path) -> psutil.Popen:
        """A running psql with a raw COPY of a file into analytics.events."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        command = f"\\copy analytics.events ({', '.join(EVENT_COLUMNS)}) FROM '{file}'"
        return psutil.Popen([str(self.postgres.psql_path), "-Xq", "-d", dsn, "-c", command], env=environment)

    def close(self) -> None:
        self._session.close()


async def _migrate(dsn: str) -> None:
    connection = await connections.connect(dsn, purpose="bench")
    try:
        await migrations.migrate(connection)
    finally:
        await connection.close()


@contextmanager
def running_arena(settings: dict[str, str] | None = None) -> Iterator[Arena]:
    """A fresh Postgres in a fresh folder; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ingest-compare-", ignore_cleanup_errors=True) as name:
        # Postgres may be another user's.
        folder = Path(name)
        folder.chmod(0o755)
        postgres = EmbeddedPostgres(folder / "postgres", settings)
        postgres.start()
        arena = Arena(folder, postgres)
        try:
            arena.prepare()
            yield arena
        finally:
            arena.close()
            postgres.stop()


def until(reached: Callable[[], bool], seconds: float) -> bool:
    """Whether it is so within that time."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
