"""How long a migration waits for locks held by others, and how it reports who they are.

A transaction waits only a few seconds for each lock and is then retried, because later requests for the same table
queue behind it, whatever lock they need. A second connection finds out who is blocking.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg

from ingest.base.errors import IngestError, MigrationError
from ingest.postgres.connections import FAILURES, close
from ingest.postgres.queries import load_queries

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_SECONDS: Final = 60
LOCKED: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
"""What a statement raises if it is blocked, or deadlocked."""
_TRY_SECONDS: Final = 5.0
_LEAST_TRY_SECONDS: Final = 1.0
"""Long enough to see who is blocking."""
_PAUSE_SECONDS: Final = 0.5
"""Between two tries, so that those queued behind us get their turn."""
_LOOK_SECONDS: Final = 0.5
_REPEAT_SECONDS: Final = 5.0
"""How often an unchanged report is repeated."""
_ANSWER_SECONDS: Final = 3.0


class Patience:
    """Waits at most `seconds` for others at each step. `connect` opens the connection that finds out who they are,
    and `report` takes one line."""

    def __init__(
        self,
        seconds: float = DEFAULT_SECONDS,
        connect: Callable[[], Awaitable[asyncpg.Connection]] | None = None,
        report: Callable[[str], None] = logger.warning,
    ) -> None:
        self._seconds = seconds
        self._connect = connect
        self._report = report
        self._onlooker: asyncpg.Connection | None = None
        # Of the current step: its backend's pid, how long it was blocked, and by whom; how long this try may wait for
        # a lock.
        self._pid: int | None = None
        self._waited = 0.0
        self._whom = ""
        self._try_seconds = 0.0
        # The pids of those who block; the pids last reported, and when.
        self._pids: list[int] = []
        self._reported_pids: list[int] | None = None
        self._reported_at = 0.0

    async def begin(self, connection: asyncpg.Connection) -> None:
        """Limit how long the current transaction waits for locks. Call this first in it."""
        self._try_seconds = max(_LEAST_TRY_SECONDS, min(_TRY_SECONDS, self._seconds - self._waited))
        # An index may take longer than a hosted server lets an ordinary statement run.
        await connection.execute(
            "SET LOCAL statement_timeout = 0; SET LOCAL client_min_messages = warning;"
            f" SET LOCAL lock_timeout = {round(self._try_seconds * 1000)}"
        )
        self._pid = await connection.fetchval("SELECT pg_backend_pid()")

    async def through(self, step: Callable[[], Awaitable[T]]) -> T:
        """Retry the step until nobody blocks it, and return its result. It is one transaction that calls `begin`.

        Raises MigrationError if it was blocked for too long.
        """
        self._waited, self._reported_pids, self._whom = 0.0, None, "another transaction"
        try:
            while True:
                before = self._waited
                try:
                    return await self._watched(step)
                except LOCKED:
                    # At least the whole try: the watching connection may not have seen all of it, or nothing.
                    self._waited = max(self._waited, before + self._try_seconds)
                    if self._waited >= self._seconds:
                        raise self._given_up() from None
                await asyncio.sleep(_PAUSE_SECONDS)
                self._waited += _PAUSE_SECONDS
        finally:
            onlooker, self._onlooker = self._onlooker, None
            if onlooker is not None:
                await close(onlooker)

    async def _watched(self, step: Callable[[], Awaitable[T]]) -> T:
        self._pid, looked_at = None, time.monotonic()
        trying = asyncio.ensure_future(step())
        try:
            while not (await asyncio.wait({trying}, timeout=_LOOK_SECONDS))[0]:
                waits = await self._look()
                before, looked_at = looked_at, time.monotonic()
                if not waits:
                    continue
                self._waited += looked_at - before
                self._report_waiting()
                if self._waited > self._seconds + _LEAST_TRY_SECONDS:
                    raise self._given_up()
            return trying.result()
        finally:
            if not trying.done():
                trying.cancel()
                await asyncio.wait({trying}, timeout=_ANSWER_SECONDS)
                if trying.done() and not trying.cancelled():
                    # Ignored, but asyncio complains about exceptions that are never retrieved.
                    trying.exception()

    def _given_up(self) -> MigrationError:
        return MigrationError(
            f"gave up after waiting {max(1, round(self._waited))} s for {self._whom};"
            " use `ingest migrate --wait SECONDS` to wait longer"
        )

    async def _look(self) -> bool:
        """Whether the step is blocked now; remembers by whom."""
        if self._pid is None:
            # BEGIN itself has not been answered.
            self._whom, self._pids = "an answer from the database, or from a pooler in front of it", []
            return True
        try:
            rows = await asyncio.wait_for(self._blockers(), _ANSWER_SECONDS)
        except (*FAILURES, IngestError) as error:
            # A pooler may have no second connection for us. Then lock_timeout ends the wait.
            logger.debug("cannot find out who holds a lock: %s", error)
            if self._onlooker is not None:
                self._onlooker.terminate()
                self._onlooker = None
            return False
        if rows:
            self._pids = [row["pid"] for row in rows]
            self._whom = f"{rows[0]['what']}, held by {' and '.join(_described(row) for row in rows)}"
        return bool(rows)

    async def _blockers(self) -> list[asyncpg.Record]:
        if self._connect is None:
            return []
        if self._onlooker is None:
            self._onlooker = await self._connect()
        rows: list[asyncpg.Record] = await self._onlooker.fetch(_QUERIES["blockers"], self._pid)
        return rows

    def _report_waiting(self) -> None:
        now = time.monotonic()
        if self._pids == self._reported_pids and now - self._reported_at < _REPEAT_SECONDS:
            return
        self._reported_pids, self._reported_at = self._pids, now
        self._report(f"waiting for {self._whom}; {round(self._waited)} s so far, {self._seconds:g} s at most")


def _described(row: asyncpg.Record) -> str:
    """A description of a blocking session, as far as our role may see it."""
    if not row["pid"]:
        return "a prepared transaction (see pg_prepared_xacts)"
    known = [f"application {row['application_name'] or 'unnamed'}", f"user {row['usename'] or 'unknown'}"]
    if row["backend_type"] not in (None, "client backend"):
        known.append(row["backend_type"])
    if row["state"]:
        known.append(row["state"])
    if row["began"] is not None:
        known.append(f"in a transaction since {row['began']:%H:%M:%S} UTC, {round(row['seconds'])} s ago")
    else:
        known.append("its activity is visible to pg_read_all_stats only")
    return f"process {row['pid']} ({', '.join(known)})"


_QUERIES: Final = load_queries("migrations")
