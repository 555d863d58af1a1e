"""The service's database as the benchmark sees it: counts, and the raw COPY that everything is compared with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from ingest.events.row import EVENT_COLUMNS
from ingest.postgres.embedded import EmbeddedPostgres

_COLUMNS = ", ".join(EVENT_COLUMNS)
STATEMENT_SECONDS = 600


class Stored(NamedTuple):
    """What analytics.events holds."""

    rows: int
    distinct: int


class InLedger(NamedTuple):
    """How many events the ledger says are stored, and when it said so, by time.monotonic()."""

    events: int
    at: float


class Database:
    """The embedded Postgres of a data folder, through its own psql."""

    def __init__(self, postgres: EmbeddedPostgres, dsn: str | None = None) -> None:
        self._postgres = postgres
        self.dsn = dsn or postgres.dsn

    def beside(self, name: str) -> Database:
        """Another database of the same server."""
        parts = urlsplit(self.dsn)
        return Database(self._postgres, f"{parts.scheme}://{parts.netloc}/{name}?{parts.query}")

    def sql(self, *statements: str) -> str:
        """Run statements, each in its own transaction. Returns their unaligned output."""
        command = [str(self._postgres.psql_path), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.dsn]
        for statement in statements:
            command += ["-c", statement]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=STATEMENT_SECONDS, check=False
        )
        if done.returncode:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return str(done.stdout).strip()

    def version(self) -> str:
        return self.sql("SHOW server_version").split()[0]

    def stored(self, since: str | None = None) -> Stored:
        """All events, or those of a load that began then."""
        found = self.sql(f"SELECT count(*), count(DISTINCT id) FROM analytics.events{_received(since)}")
        rows, distinct = found.split("|")
        return Stored(int(rows), int(distinct))

    def in_ledger(self) -> InLedger:
        """Exact at its moment: an event is in the ledger from the commit that stores it."""
        offset = time.time() - time.monotonic()
        at, events = self.sql(
            "SELECT extract(epoch FROM statement_timestamp()), coalesce(sum(events_stored), 0) FROM analytics.flushes"
        ).split("|")
        return InLedger(int(events), float(at) - offset)

    def forget_events(self) -> None:
        """Empty the table and take a checkpoint, so that all measurements begin alike."""
        self.sql("TRUNCATE analytics.events", "CHECKPOINT")

    def export_events(self, path: Path, since: str | None = None) -> None:
        """Write all rows, or those of a load that began then, to a file, in the order in which they were stored, as
        COPY's text format."""
        self.sql(f"\\copy (SELECT {_COLUMNS} FROM analytics.events{_received(since)}) TO '{path}'")

    def copy_events(self, path: Path) -> float:
        """Store the rows of an exported file with one COPY. Returns the seconds it took, including the COMMIT."""
        started = time.monotonic()
        self.sql(f"\\copy analytics.events ({_COLUMNS}) FROM '{path}'")
        return time.monotonic() - started

    # Its processes.

    def processes(self) -> list[psutil.Process]:
        """The postmaster and its children."""
        pid = self._postgres.pid
        if pid is None:
            return []
        postmaster = psutil.Process(pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def freeze(self) -> list[int]:
        """Stop the server as if its machine no longer answered. Returns what `thaw` takes."""
        # The postmaster first, so that no new child is missed.
        frozen = [self.processes()[0].pid]
        os.kill(frozen[0], signal.SIGSTOP)
        frozen += [process.pid for process in self.processes()[1:]]
        for pid in frozen[1:]:
            _signal(pid, signal.SIGSTOP)
        return frozen

    @staticmethod
    def thaw(frozen: list[int]) -> None:
        """Let the server go on. Repeatable."""
        for pid in reversed(frozen):
            _signal(pid, signal.SIGCONT)


def _received(since: str | None) -> str:
    """The condition for rows of a load that began then. Its events are not older than that, but for their seconds,
    which are rounded down: so only the partitions of these days are read."""
    if since is None:
        return ""
    return f" WHERE received_at >= '{since}' AND created_at >= timestamptz '{since}' - interval '1 minute'"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
