"""How long a migration waits for locks that others hold, and what is said of them meanwhile.

A transaction asks for each lock for a few seconds only and is then tried again: requests that come after it for the
same table wait behind it, whatever they want of it. A connection of its own looks who is in the way.
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
"""What a statement raises that is in somebody's way, or somebody in its."""
_TRY_SECONDS: Final = 5.0
_LEAST_TRY_SECONDS: Final = 1.0
"""Time enough to see who is in the way."""
_PAUSE_SECONDS: Final = 0.5
"""Between two tries, so that those who wait behind us get their turn."""
_LOOK_SECONDS: Final = 0.5
_REPEAT_SECONDS: Final = 5.0
"""How often the same is said again."""
_ANSWER_SECONDS: Final = 3.0


class Patience:
    """Waits at most `seconds` for others at each step. `connect` makes the connection that looks who they are, and
    `tell` takes one line."""

    def __init__(
        self,
        seconds: float = DEFAULT_SECONDS,
        connect: Callable[[], Awaitable[asyncpg.Connection]] | None = None,
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        self._seconds = seconds
        self._connect = connect
        self._tell = tell
        self._onlooker: asyncpg.Connection | None = None
        # Of the step that is being tried: the server's process, how long others were in its way, and who; the longest
        # that this try waits for a lock.
        self._pid: int | None = None
        self._waited = 0.0
        self._whom = ""
        self._try_seconds = 0.0
        # The same as numbers of processes; of whom was spoken last, and when.
        self._pids: list[int] = []
        self._told_pids: list[int] | None = None
        self._told_at = 0.0

    async def begin(self, connection: asyncpg.Connection) -> None:
        """To be called first in a transaction, which then waits for no lock too long."""
        self._try_seconds = max(_LEAST_TRY_SECONDS, min(_TRY_SECONDS, self._seconds - self._waited))
        # An index may take longer than a hosted server lets an ordinary statement run.
        await connection.execute(
            "SET LOCAL statement_timeout = 0; SET LOCAL client_min_messages = warning;"
            f" SET LOCAL lock_timeout = {round(self._try_seconds * 1000)}"
        )
        self._pid = await connection.fetchval("SELECT pg_backend_pid()")

    async def through(self, step: Callable[[], Awaitable[T]]) -> T:
        """What the step returns, as soon as nobody is in its way. It is one transaction, in which it calls `begin`.

        Raises MigrationError when others were in its way for too long.
        """
        self._waited, self._told_pids, self._whom = 0.0, None, "another transaction"
        try:
            while True:
                before = self._waited
                try:
                    return await self._watched(step)
                except LOCKED:
                    # As much as was seen, or more if nothing can be seen.
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
                self._say()
                if self._waited > self._seconds + _LEAST_TRY_SECONDS:
                    raise self._given_up()
            return trying.result()
        finally:
            if not trying.done():
                trying.cancel()
                await asyncio.wait({trying}, timeout=_ANSWER_SECONDS)
                if trying.done() and not trying.cancelled():
                    # Of no interest any more, but asyncio wants it to be asked for.
                    trying.exception()

    def _given_up(self) -> MigrationError:
        return MigrationError(
            f"gave up after {max(1, round(self._waited))} s of waiting for {self._whom};"
            " `ingest migrate --wait SECONDS` waits longer"
        )

    async def _look(self) -> bool:
        """Whether somebody is in the way now; who it is, is kept."""
        if self._pid is None:
            # BEGIN itself has no answer.
            self._whom, self._pids = "an answer of the database, or of a pooler before it", []
            return True
        try:
            rows = await asyncio.wait_for(self._blockers(), _ANSWER_SECONDS)
        except (*FAILURES, IngestError) as error:
            # As a pooler may have no second connection for us. The lock's own limit ends the wait.
            logger.debug("cannot look who holds a lock: %s", error)
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

    def _say(self) -> None:
        now = time.monotonic()
        if self._pids == self._told_pids and now - self._told_at < _REPEAT_SECONDS:
            return
        self._told_pids, self._told_at = self._pids, now
        self._tell(f"waiting for {self._whom}; {round(self._waited)} s so far, {self._seconds:g} s at most")


def _described(row: asyncpg.Record) -> str:
    """Who it is: what everybody may see of a session, and what only some may."""
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
        known.append("what it does is shown to pg_read_all_stats only")
    return f"process {row['pid']} ({', '.join(known)})"


_QUERIES: Final = load_queries("migrations")
