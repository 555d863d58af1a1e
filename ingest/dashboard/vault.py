"""The secret of the dashboard's cookies, and the ids of sessions that were signed out, as the database has them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from ingest.dashboard.tokens import SECRET_BYTES, Session
from ingest.postgres.pool import Pool, TooSlow, Unavailable
from ingest.postgres.queries import load_queries

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 5.0
"""How long a session that was signed out at another worker may go on."""
_QUERIES: Final = load_queries("dashboard")


class Vault:
    """What checks of a cookie need. While the database is away, what was read last still holds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._secret: bytes | None = None
        # Ids of ended sessions and used links; replaced whole by a refresh.
        self._spent: frozenset[UUID] = frozenset()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        # The last refresh that nobody waits for.
        self._looking: asyncio.Task[None] | None = None

    async def secret(self) -> bytes:
        """32 bytes, the same for all workers; made when they are first needed. Raises Unavailable and TooSlow if
        they were never read."""
        await self._refresh()
        if self._secret is None:
            raise Unavailable("the secret of the dashboard's cookies has not been read yet")
        return self._secret

    @property
    def known_secret(self) -> bytes:
        """The secret as it was read last, b"" before that."""
        return self._secret or b""

    def may_go_on(self, session: Session) -> bool:
        """Whether this session is not known to have ended. Reads again in the background if that was long ago."""
        if time.monotonic() - self._read_at >= REFRESH_SECONDS and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look())
        return session.id not in self._spent

    async def _look(self) -> None:
        with contextlib.suppress(Unavailable, TooSlow):
            await self._refresh()

    async def is_spent(self, session: Session) -> bool:
        await self._refresh()
        return session.id in self._spent

    async def spend(self, session: Session) -> bool:
        """End a session, or use a link up; returns whether it was not before. Raises Unavailable and TooSlow."""
        expires_at = datetime.fromtimestamp(session.expires_at, UTC)
        async with self._pool.lent() as connection:
            unspent = await connection.fetchval(_QUERIES["spend"], session.id, expires_at)
        self._spent |= {session.id}
        return bool(unspent)

    async def _refresh(self) -> None:
        if time.monotonic() - self._read_at < REFRESH_SECONDS:
            return
        async with self._reading:
            if time.monotonic() - self._read_at < REFRESH_SECONDS:
                return
            try:
                await self._read()
            except (Unavailable, TooSlow) as error:
                if self._secret is None:
                    raise
                logger.debug("the sessions of the dashboard cannot be read now: %s", error)
            # Also when it failed, so that not every request waits for a database that is away.
            self._read_at = time.monotonic()

    async def _read(self) -> None:
        async with self._pool.lent() as connection:
            # Read again each time: whoever deletes it signs everybody out.
            found = await connection.fetchval(_QUERIES["secret"], secrets.token_bytes(SECRET_BYTES))
            if found is None:
                # Another worker made it just now, so that the statement did not see it.
                found = await connection.fetchval(_QUERIES["secret"], secrets.token_bytes(SECRET_BYTES))
            spent = await connection.fetch(_QUERIES["spent"])
        self._secret = bytes(found)
        self._spent = frozenset([row["id"] for row in spent])
