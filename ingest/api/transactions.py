"""Transactions on a caller's behalf: under their database role, with their claims, so that row security decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from ingest.api.access import Caller
from ingest.postgres.pool import Pool
from ingest.postgres.queries import fill, load_queries

_ON_BEHALF: Final = load_queries("transactions")["on_behalf"]
SETTINGS: Final = ("session_token", "user_email", "session_id")
LOCK_SECONDS: Final = 3.0
"""How long a caller waits for who has locked what it needs; requests that need it, too, change a row within
milliseconds. Who locks a whole table for longer shall not hold our connections all that time."""


class Transactions:
    """Begins transactions for callers."""

    def __init__(self, pool: Pool, assignments_per_hour: int, conceals: bool) -> None:
        """`conceals`: whether addresses are stored without their last part.  `assignments_per_hour`: new units of
        experiments that one address may bring in an hour; 0 is no limit."""
        self._pool = pool
        self._anonymise_ip = "on" if conceals else "off"
        self._assignments_per_hour = str(assignments_per_hour)

    @asynccontextmanager
    async def on_behalf(
        self, caller: Caller, address: str, user_agent: str, settings: Mapping[str, str], feature: str = "any"
    ) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a transaction, committed at the end of the block. `feature`: whose share of the connections
        it is. `settings`: some of SETTINGS.

        Raises Unavailable and TooSlow; what the database says of the rows themselves is raised as it is.
        """
        unknown = settings.keys() - set(SETTINGS)
        assert not unknown, unknown
        statement_ms = str(round(self._pool.timeout_seconds * 1000))
        lock_ms = str(round(min(LOCK_SECONDS, self._pool.timeout_seconds) * 1000))
        values = {
            "role": caller.role,
            "claims": caller.claims,
            "client_ip": address,
            "user_agent": user_agent,
            **{name: settings.get(name, "") for name in SETTINGS},
            "anonymise_ip": self._anonymise_ip,
            "assignments_per_hour": self._assignments_per_hour,
            "statement_ms": statement_ms,
            "lock_ms": lock_ms,
        }
        on_behalf = fill(_ON_BEHALF, **{name: quoted(value) for name, value in values.items()})
        async with self._pool.lent(feature) as connection, connection.transaction():
            await connection.execute(on_behalf)
            yield connection


def quoted(text: str) -> str:
    """A constant of SQL, whatever the text holds and whatever standard_conforming_strings says: in E'', where a
    backslash and a quote are the only characters that mean something, and these are doubled."""
    if "\0" in text:
        raise ValueError("a text for Postgres cannot hold U+0000")
    doubled = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{doubled}'"
