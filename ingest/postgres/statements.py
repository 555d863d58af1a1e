"""Statements that a transaction pooler (PgBouncer, Supabase's) may stand in the way of.

A pooler gives each transaction another server connection, and what one leaves behind there meets the next. So nothing
of ours outlives its transaction: no lock, no setting, no temporary table and no prepared statement.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

import asyncpg

_ROLLBACK_SECONDS: Final = 2.0
_numbers: Final = itertools.count(1)


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's, but that a statement outside a transaction gets one of its own.

    asyncpg sends such a statement in several messages: it is described, types that are new are looked up, for which
    asyncpg turns `jit` off and on again, and then it is executed. Without a transaction each may meet another server
    connection. One without arguments that goes through `execute` is a single message and needs none.
    """

    async def execute(self, query: str, *args: Any, **given: Any) -> str:
        """As asyncpg's."""
        if not args:
            return await super().execute(query, **given)  # type: ignore[no-any-return]
        async with self._whole():
            return await super().execute(query, *args, **given)  # type: ignore[no-any-return]

    async def executemany(self, command: str, args: Iterable[Any], **given: Any) -> None:
        """As asyncpg's."""
        async with self._whole():
            await super().executemany(command, args, **given)

    async def fetch(self, query: str, *args: Any, **given: Any) -> list[asyncpg.Record]:
        """As asyncpg's."""
        async with self._whole():
            return await super().fetch(query, *args, **given)  # type: ignore[no-any-return]

    async def fetchrow(self, query: str, *args: Any, **given: Any) -> asyncpg.Record | None:
        """As asyncpg's."""
        async with self._whole():
            return await super().fetchrow(query, *args, **given)

    async def fetchval(self, query: str, *args: Any, **given: Any) -> Any:
        """As asyncpg's."""
        async with self._whole():
            return await super().fetchval(query, *args, **given)

    def cursor(self, *args: Any, **given: Any) -> NoReturn:
        """Not to be used: it prepares a statement under a name that another process may have given as well."""
        raise NotImplementedError("`statements.batches` reads a query bit by bit")

    async def prepare(self, *args: Any, **given: Any) -> NoReturn:
        """Not to be used, likewise."""
        raise NotImplementedError("a prepared statement is the session's, and a pooler's sessions are nobody's")

    @asynccontextmanager
    async def _whole(self) -> AsyncIterator[None]:
        if self.is_in_transaction():
            yield
            return
        await super().execute("BEGIN")
        try:
            yield
        except BaseException:
            await self._roll_back()
            raise
        await super().execute("COMMIT")

    async def _roll_back(self) -> None:
        """Leave no transaction open, if need be by ending the connection; what went wrong is raised by who calls."""
        if self.is_closed():
            return
        try:
            await super().execute("ROLLBACK", timeout=_ROLLBACK_SECONDS)
        except BaseException:
            self.terminate()


async def batches(
    connection: asyncpg.Connection, query: str, *args: Any, size: int
) -> AsyncIterator[list[asyncpg.Record]]:
    """The rows of a query, `size` of them at a time, none empty. Within a transaction, whose end is the cursor's."""
    name = f"batches_{next(_numbers)}"
    await connection.execute(f"DECLARE {name} NO SCROLL CURSOR FOR {query}", *args)
    while rows := await connection.fetch(f"FETCH FORWARD {size} FROM {name}"):
        yield rows
        if len(rows) < size:
            break
    await connection.execute(f"CLOSE {name}")
