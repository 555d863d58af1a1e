"""Statements that work behind a transaction pooler (PgBouncer, Supabase's).

A pooler may give each transaction a different server connection, and whatever one leaves behind affects the next. So
nothing of ours outlives its transaction: no lock, no setting, no temporary table and no prepared statement.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, NoReturn

import asyncpg

_ROLLBACK_SECONDS: Final = 2.0
_numbers: Final = itertools.count(1)


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's connection, except that each statement outside a transaction runs in one of its own.

    asyncpg sends such a statement in several messages: it is described, unknown types are looked up, for which
    asyncpg turns `jit` off and on again, and then it is executed. Without a transaction, each may reach another
    server connection. A statement without arguments that goes through `execute` is a single message and needs none.
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
        """Not supported: it prepares a statement under a name that another process may use, too."""
        raise NotImplementedError("use `statements.batches` to read a query in batches")

    async def prepare(self, *args: Any, **given: Any) -> NoReturn:
        """Not supported, for the same reason."""
        raise NotImplementedError("prepared statements belong to a session, which a pooler does not keep")

    def begun_with(self, settings: str) -> AbstractAsyncContextManager[None]:
        """A transaction, committed at the end of the block. `settings`: statements without arguments at its
        beginning, which share the round trip of BEGIN. Within the block, `transaction()` is not available."""
        return self._begun(f"BEGIN; {settings}")

    @asynccontextmanager
    async def _whole(self) -> AsyncIterator[None]:
        if self.is_in_transaction():
            yield
            return
        async with self._begun("BEGIN"):
            yield

    @asynccontextmanager
    async def _begun(self, begin: str) -> AsyncIterator[None]:
        try:
            # Also this may fail after BEGIN itself.
            await super().execute(begin)
            yield
        except BaseException:
            await self._roll_back()
            raise
        await super().execute("COMMIT")

    async def _roll_back(self) -> None:
        """Leave no transaction open, if need be by closing the connection. The caller raises what went wrong."""
        if self.is_closed():
            return
        try:
            await super().execute("ROLLBACK", timeout=_ROLLBACK_SECONDS)
        except BaseException:
            self.terminate()


async def batches(
    connection: asyncpg.Connection, query: str, *args: Any, size: int
) -> AsyncIterator[list[asyncpg.Record]]:
    """The rows of a query in batches of up to `size`, none empty. Call within a transaction, with which it ends."""
    name = f"batches_{next(_numbers)}"
    await connection.execute(f"DECLARE {name} NO SCROLL CURSOR FOR {query}", *args)
    while rows := await connection.fetch(f"FETCH FORWARD {size} FROM {name}"):
        yield rows
        if len(rows) < size:
            break
    await connection.execute(f"CLOSE {name}")
