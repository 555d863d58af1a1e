"""API keys: created, listed and revoked by `ingest keys`; collectors know only their hashes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg

from ingest.postgres.pool import Pool, TooSlow, Unavailable
from ingest.postgres.queries import load_queries

logger = logging.getLogger(__name__)

PREFIX: Final = "ing_"
SHOWN: Final = len(PREFIX) + 6
"""Characters that are shown, to tell keys apart; the other 37 keep the secret."""
REFRESH_SECONDS: Final = 5.0
"""How long a revoked key may still be accepted."""
_PAUSE_SECONDS: Final = 1.0
_QUERIES: Final = load_queries("api_keys")


class ApiKey(NamedTuple):
    """A key as the database has it; `shown` is its beginning."""

    id: UUID
    name: str
    shown: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


def hash_of(key: str) -> bytes:
    """What is stored of a key. A plain SHA-256 is enough: 256 random bits cannot be guessed, however fast."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


async def create(
    connection: asyncpg.Connection, name: str, scopes: Sequence[str], expires_at: datetime | None = None
) -> str:
    """Create a key and return its text, which is not stored anywhere."""
    key = PREFIX + secrets.token_urlsafe(32)
    await connection.execute(_QUERIES["create"], name, key[:SHOWN], hash_of(key), list(scopes), expires_at)
    return key


async def listed(connection: asyncpg.Connection) -> list[ApiKey]:
    """All keys, revoked ones too, the oldest first."""
    return [_key(row) for row in await connection.fetch(_QUERIES["listed"])]


async def revoke(connection: asyncpg.Connection, which: str) -> int:
    """Revoke the keys with this id, name or beginning; returns how many."""
    return int(await connection.fetchval(_QUERIES["revoke"], which))


def _key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        row["id"],
        row["name"],
        row["shown"],
        tuple(row["scopes"]),
        row["created_at"],
        row["expires_at"],
        row["last_used_at"],
        row["revoked_at"],
    )


class KeyRing:
    """The valid keys, read again every few seconds, so that a request need not ask the database about its key.

    While the database is away, the keys known so far are accepted.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # Hash -> key; replaced whole by `refresh`.
        self._known: dict[bytes, ApiKey] = {}
        # The same by id.
        self._by_id: dict[UUID, ApiKey] = {}
        # Ids of keys used since the last refresh, which writes them to the database.
        self._used: set[UUID] = set()
        self._reading = asyncio.Lock()
        # When the keys were last read, by the loop's clock.
        self._read_at = float("-inf")

    async def find(self, text: str) -> ApiKey | None:
        """The key with this text. An unknown one may have been created just now, so the database is asked: once for
        all who wait, and at most once a second, so that a flood of guesses is not a flood of queries."""
        key = self.known(text)
        if key is None:
            await self.refresh()
            key = self.known(text)
        return key

    def known(self, text: str) -> ApiKey | None:
        """The same without asking the database."""
        key = self._known.get(hash_of(text))
        if key is None or (key.expires_at is not None and key.expires_at <= datetime.now(UTC)):
            return None
        self._used.add(key.id)
        return key

    def known_by_id(self, key_id: UUID) -> ApiKey | None:
        """The valid key with this id, for those who have shown the key before."""
        key = self._by_id.get(key_id)
        if key is None or (key.expires_at is not None and key.expires_at <= datetime.now(UTC)):
            return None
        self._used.add(key.id)
        return key

    async def refresh(self) -> None:
        """Read the keys again, and record which were used."""
        try:
            await self._read_since(asyncio.get_running_loop().time())
        except (Unavailable, TooSlow) as error:
            # The writer logs this as an error.
            logger.debug("the keys cannot be read now: %s", error)

    async def _read_since(self, moment: float) -> None:
        loop = asyncio.get_running_loop()
        async with self._reading:
            if self._read_at >= moment:
                return
            await asyncio.sleep(max(0.0, self._read_at + _PAUSE_SECONDS - loop.time()))
            # Also when it fails, so that everybody who waits is answered.
            self._read_at = loop.time()
            async with self._pool.lent("service") as connection:
                used, self._used = self._used, set()
                rows = await connection.fetch(_QUERIES["refresh"], list(used))
            self._known = {row["hash"]: _key(row) for row in rows}
            self._by_id = {key.id: key for key in self._known.values()}
