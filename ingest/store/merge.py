"""The slow way into a table, for flushes that COPY cannot take: inserts new rows, leaves out duplicates, and returns
the rows that the table refuses.

Lines go through a temporary table, many at a time while that works, otherwise one by one, each in its own
subtransaction. An error is blamed on a row unless its SQLSTATE says that the server or the network is at fault.
`Merge.is_tables_fault` finds out whether the table refuses every row because it has been changed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import asyncpg

from ingest.base.errors import DatabaseError
from ingest.postgres.queries import fill, load_queries

_COPY_PIECE_BYTES: Final = 256 * 1024
_FAN_OUT: Final = 16
_ONE_BY_ONE: Final = 640
"""Up to this many lines are tried one by one if one of them is refused. More are split first, as most parts will go
in together."""

_SERVERS: Final = re.compile("^(08|25|26|28|2D|3B|3D|40|53|57|58|F0|55006|55P03|XX001|XX002)")
"""SQLSTATEs, or their classes, of errors caused by the server or the network, not by rows: connections, transaction
state, deadlocks, resources, shutdown, disk, locks, damaged files. The same rows are tried again later.
https://www.postgresql.org/docs/current/errcodes-appendix.html"""


TIMED_OUT: Final = "57014"
_SHARE_OF_PIECES: Final = 8
"""Several lines together get this fraction of the time that one line may take: a hundred healthy ones take
milliseconds."""
_MOST_SLOW: Final = 5
_MOST_HALVED: Final = 100
"""Pieces that may time out in one merge. If more do, the problem is not just a few slow lines."""


class Reason(NamedTuple):
    """Identifies one cause of refusal. The message cannot be used for that, as it often contains the row's values."""

    sqlstate: str
    table: str
    column: str
    constraint: str
    where: str


class Bad(NamedTuple):
    """A line the table refused, with Postgres' message. `unread`: it could not even be parsed as a row."""

    line: bytes
    message: str
    reason: Reason
    unread: bool


class Merged(NamedTuple):
    """`stored`: how many lines were new and are now inserted; `bad`: those refused. The rest were duplicates."""

    stored: int
    bad: list[Bad]


def is_servers(error: asyncpg.PostgresError) -> bool:
    """Whether the error is the fault of the server or the network, not of a row."""
    return _SERVERS.match(error.sqlstate or "") is not None


async def copy_lines(
    connection: asyncpg.Connection,
    table: tuple[str | None, str],
    columns: tuple[str, ...],
    lines: Iterable[bytes],
    timeout_seconds: float,
) -> None:
    """COPY text lines into a table, given as (schema, name); schema None for a temporary one. Raises DatabaseError if
    the connection breaks while the server does not read."""
    schema, name = table
    try:
        # asyncpg's own time-out is not in effect while it waits for a server that has stopped reading.
        async with asyncio.timeout(timeout_seconds):
            await connection.copy_to_table(name, schema_name=schema, columns=columns, source=_pieces(lines))
    except RuntimeError as error:
        if not connection.is_closed():
            raise
        # When a COPY is cancelled, by our time-out or by others, asyncpg tells the server. Without a connection that
        # fails on uvloop, and this error is in the place of the cancellation.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        raise DatabaseError("the connection broke in the middle of a COPY") from error


class Merge:
    """Merges lines of one layout into one table of the schema `analytics`, in the caller's transaction.

    Made by `begin`; one at a time per transaction.
    """

    def __init__(
        self, connection: asyncpg.Connection, table: str, columns: tuple[str, ...], timeout_seconds: float
    ) -> None:
        names = ", ".join(f'"{column}"' for column in columns)
        self._connection = connection
        self._table = table
        self._columns = columns
        self._timeout_seconds = timeout_seconds
        self._queries = {
            name: fill(query, table=f"analytics.{table}", columns=names, servers=f"'{_SERVERS.pattern}'")
            for name, query in load_queries("merge").items()
        }

    @classmethod
    async def begin(
        cls, connection: asyncpg.Connection, table: str, columns: tuple[str, ...], timeout_seconds: float
    ) -> Merge:
        """Create the temporary tables; they live until `end` or the end of the transaction."""
        merge = cls(connection, table, columns, timeout_seconds)
        await connection.execute(merge._queries["begin"])
        return merge

    async def end(self) -> None:
        """Drop the temporary tables, so that another merge can begin in the same transaction."""
        await self._connection.execute(self._queries["end"])

    # Inserting.

    async def insert(self, lines: Sequence[bytes]) -> Merged:
        """Insert the lines that are new."""
        if len(lines) > _ONE_BY_ONE:
            stored = await self._insert_together(lines)
            if stored is not None:
                return Merged(stored, [])
        else:
            error = await self._fill(lines)
            if error is None:
                return await self._insert_each(lines)
            if len(lines) == 1:
                return Merged(0, [Bad(lines[0], str(error), _reason_of_reading(error), unread=True)])
        size = -(-len(lines) // _FAN_OUT)
        pieces = [await self.insert(lines[at : at + size]) for at in range(0, len(lines), size)]
        return Merged(sum(piece.stored for piece in pieces), [bad for piece in pieces for bad in piece.bad])

    async def insert_slowly(self, lines: Sequence[bytes], seconds: float) -> tuple[Merged, list[bytes]]:
        """Insert the lines, and return also some of those that took longer than `seconds` on their own. If there are
        any, not all of the others need have been inserted.

        Waiting for another transaction's lock counts as the server's fault, not the line's. Raises TimeoutError if so
        much is slow that a few lines cannot be the cause.
        """
        stored, bad, slow = 0, list[Bad](), list[bytes]()
        waiting, halved = [lines], 0
        while waiting:
            piece = waiting.pop()
            if not piece:
                continue
            merged = await self._insert_within(piece, seconds / (1 if len(piece) == 1 else _SHARE_OF_PIECES))
            if merged is not None:
                stored, bad = stored + merged.stored, bad + merged.bad
            elif len(piece) == 1:
                slow.append(piece[0])
                if len(slow) == _MOST_SLOW:
                    break
            else:
                halved += 1
                if halved > _MOST_HALVED:
                    raise TimeoutError("the server is too slow")
                # The first half comes first.
                waiting += [piece[len(piece) // 2 :], piece[: len(piece) // 2]]
        return Merged(stored, bad), slow

    async def _insert_within(self, lines: Sequence[bytes], seconds: float) -> Merged | None:
        """Like `insert`, but if a statement takes longer than `seconds`, everything is undone and None returned."""
        limit = max(1, round(seconds * 1000))
        await self._connection.execute(
            "SAVEPOINT patience;"
            f" SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {max(1, limit // 2)}"
        )
        try:
            merged = await self.insert(lines)
        except asyncpg.QueryCanceledError:
            await self._connection.execute("ROLLBACK TO SAVEPOINT patience; RELEASE SAVEPOINT patience")
            return None
        await self._connection.execute(
            "RELEASE SAVEPOINT patience; SET LOCAL statement_timeout TO DEFAULT; SET LOCAL lock_timeout TO DEFAULT"
        )
        return merged

    async def answers(self, columns: tuple[str, ...], line: bytes, seconds: float) -> bool:
        """Whether the table accepts or refuses this line within `seconds`. The insert is rolled back."""
        merge = Merge(self._connection, self._table, columns, self._timeout_seconds)
        await self._connection.execute("SAVEPOINT probe")
        merged = await merge._insert_within([line], seconds)
        await self._connection.execute("ROLLBACK TO SAVEPOINT probe; RELEASE SAVEPOINT probe")
        return merged is not None

    async def _insert_together(self, lines: Sequence[bytes]) -> int | None:
        """Insert all lines in one statement; returns how many were new, None if one of them is refused."""
        if await self._fill(lines) is not None:
            return None
        try:
            status = await self._connection.execute(self._queries["insert_all"])
        except asyncpg.PostgresError as error:
            await self._undo(error)
            return None
        await self._connection.execute(self._queries["empty"])
        return int(status.split()[-1])

    async def _insert_each(self, lines: Sequence[bytes]) -> Merged:
        """Insert what is in the temporary table (`lines`, in this order) one by one."""
        await self._connection.execute(self._queries["insert_each"])
        rows = await self._connection.fetch(self._queries["outcome"])
        await self._connection.execute(self._queries["empty"])
        refused = [row for row in rows if row["place"] is not None]
        return Merged(
            sum(row["stored"] for row in rows),
            [Bad(lines[row["place"] - 1], row["message"], _reason(row), unread=False) for row in refused],
        )

    async def _fill(self, lines: Sequence[bytes]) -> asyncpg.PostgresError | None:
        """Begin a subtransaction and put the lines into the temporary table. If one cannot be parsed, undo it and
        return the error."""
        await self._connection.execute("SAVEPOINT merge")
        try:
            await copy_lines(self._connection, (None, "incoming"), self._columns, lines, self._timeout_seconds)
        except asyncpg.PostgresError as error:
            await self._undo(error)
            return error
        return None

    async def _undo(self, error: asyncpg.PostgresError) -> None:
        if is_servers(error):
            raise error
        await self._connection.execute("ROLLBACK TO SAVEPOINT merge; RELEASE SAVEPOINT merge")

    # Whose fault it is.

    async def is_tables_fault(self, bad: Sequence[Bad], good: Mapping[tuple[str, ...], Sequence[bytes]]) -> bool:
        """Whether the table now refuses every row for the reasons it refused these. Call it when it accepted none.

        Tries, and rolls back, `good` lines that the caller expects to be accepted, by their columns (a subset of this
        merge's), and copies of recently stored events. If one is accepted, or all are refused for other reasons,
        the rows are at fault.
        """
        await self._connection.execute("SAVEPOINT probe")
        tried = 0
        refused: list[Bad] = []
        for columns, lines in good.items():
            merge = Merge(self._connection, self._table, columns, self._timeout_seconds)
            tried += len(lines)
            refused += [one for line in lines for one in (await merge.insert([line])).bad]
        # Stored rows are not parsed as lines, so they cannot show why a line was unreadable.
        if len(refused) == tried and not all(one.unread for one in bad):
            await self._connection.execute("SAVEPOINT merge")
            status = await self._connection.execute(self._queries["copy_recent"])
            recent = int(status.split()[-1])
            tried += recent
            refused += (await self._insert_each([b""] * recent)).bad
        await self._connection.execute("ROLLBACK TO SAVEPOINT probe; RELEASE SAVEPOINT probe")
        return len(refused) == tried and not {one.reason for one in bad}.isdisjoint(one.reason for one in refused)


def _reason_of_reading(error: asyncpg.PostgresError) -> Reason:
    # 'COPY incoming, line 1, column ip_address: "…"': the value is not part of the reason.
    where = (error.context or "").split('"')[0].split(":")[0]
    return Reason(error.sqlstate or "", "", "", "", where)


def _reason(row: Mapping[str, Any]) -> Reason:
    first = (row["context"] or "").partition("\n")[0]
    # Unless a function raised the error, the context is our own statement.
    where = first if first.startswith("PL/pgSQL function") else ""
    return Reason(row["sqlstate"], row["relation"], row["attribute"], row["rule"], where)


async def _pieces(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Join lines into pieces large enough for a protocol message. (asyncpg would read a file-like source in a thread,
    and each time leave behind a class that keeps it alive until the garbage collector runs.)"""
    gathered: list[bytes] = []
    size = 0
    for piece in lines:
        gathered.append(piece)
        size += len(piece)
        if size >= _COPY_PIECE_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)
