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
        on_behalf = self._on_behalf(caller, address, user_agent, settings)
        async with self._pool.lent(feature) as connection, connection.begun_with(on_behalf):
            yield connection

    @asynccontextmanager
    async def reading(self, caller: Caller) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a read-only transaction with a single snapshot of the database. Raises as `on_behalf`."""
        begin = f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; {self._on_behalf(caller, '', '', {})}"
        async with self._pool.lent() as connection, connection.begun_with(begin):
            yield connection

    def _on_behalf(self, caller: Caller, address: str, user_agent: str, settings: Mapping[str, str]) -> str:
        """The statement that makes a transaction the caller's."""
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
        return fill(_ON_BEHALF, **{name: quoted(value) for name, value in values.items()})


def quoted(text: str) -> str:
    """A constant of SQL, whatever the text holds and whatever standard_conforming_strings says: in E'', where a
    backslash and a quote are the only characters that mean something, and these are doubled."""
    if "\0" in text:
        raise ValueError("a text for Postgres cannot hold U+0000")
    doubled = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{doubled}'"
