"""Views that are shared by a link: a page with its range and filters, for anybody who has the link, until revoked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from ingest.dashboard import tokens
from ingest.dashboard.tokens import InvalidSession
from ingest.dashboard.vault import Vault
from ingest.postgres.pool import Pool
from ingest.postgres.queries import load_queries

_QUERIES: Final = load_queries("dashboard")
MOST: Final = 200
"""Links that may work at a time: as many as the page lists."""


class SharedView(NamedTuple):
    """What a link shows. page: its path.  query: of its URL."""

    id: UUID
    name: str
    page: str
    query: str


class Share(NamedTuple):
    """A shared view as those who share see it. path: of its link."""

    id: UUID
    name: str
    page: str
    query: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    path: str


class Shares:
    """Shared views in the database. All methods raise Unavailable and TooSlow."""

    def __init__(self, pool: Pool, vault: Vault) -> None:
        self._pool = pool
        self._vault = vault

    async def create(self, name: str, page: str, query: str, created_by: str, expires_at: datetime | None) -> None:
        async with self._pool.lent() as connection:
            await connection.execute(_QUERIES["share"], name, page, query, created_by, expires_at)

    async def find(self, token: str) -> SharedView | None:
        """What this link shows; None if there is no such link, or it was revoked or has expired."""
        try:
            share_id = tokens.share_of(token, await self._vault.secret())
        except InvalidSession:
            return None
        async with self._pool.lent() as connection:
            row = await connection.fetchrow(_QUERIES["shared"], share_id)
        return SharedView(*row) if row is not None else None

    async def listed(self) -> Sequence[Share]:
        """Those that work now, the latest first, at most 200."""
        secret = await self._vault.secret()
        async with self._pool.lent() as connection:
            rows = await connection.fetch(_QUERIES["shares"])
        return [Share(**row, path=f"/shared/{tokens.token_of_share(row['id'], secret)}") for row in rows]

    async def revoke(self, share_id: UUID, only_of: str | None) -> None:
        """Revoke a link, whoever made it, or only if this one did."""
        async with self._pool.lent() as connection:
            await connection.execute(_QUERIES["revoke_share"], share_id, only_of)
