"""A model of the database as far as the writer relies on it: transactions, the ledger's statements, and a table whose
every row shows when something is stored twice, out of order, or without the ledger.

The statements themselves are tested on real servers (tests/store, tests/scenarios).
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple, cast

import asyncpg

from ingest.base.errors import DatabaseError
from ingest.journal.ownership import Ownership
from ingest.journal.segments import Layout, Record
from ingest.store.flush import Flush, Outcome
from ingest.store.ledger import Counts, Ledger


class Position:
    """A row of analytics.journals, and its flushes: how many events each stored, by its last record and its owner."""

    def __init__(self, owner: uuid.UUID) -> None:
        self.owner = owner
        self.stored_through = 0
        self.flushes: dict[tuple[int, uuid.UUID], Counts] = {}


class _Move(NamedTuple):
    journal: int
    owner: uuid.UUID
    position: int
    last: int
    counts: Counts


class _Transaction:
    def __init__(self) -> None:
        self.move: _Move | None = None
        self.rows: list[bytes] = []
        self.refused: list[bytes] = []


class Database:
    """`rows` and `refused` are what is committed to the two tables. `commit_is`: what becomes of the next COMMIT:
    "confirmed", "done" or "lost" without an answer, or "late": it is done or not once somebody waits for it.
    `breaks_at`: the statement at which the next transaction loses its connection, "" for none."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.is_up = True
        self.commit_is = "confirmed"
        self.breaks_at = ""
        self.rows: list[bytes] = []
        self.refused: list[bytes] = []
        self.positions: dict[int, Position] = {}
        # Their connections are cut, and they still hold their rows.
        self._late: list[_Transaction] = []

    def register(self, owner: uuid.UUID) -> int:
        number = len(self.positions) + 1
        self.positions[number] = Position(owner)
        return number

    def connect(self) -> Connection:
        if not self.is_up:
            raise ConnectionRefusedError("the database is down")
        return Connection(self)

    def settle_late(self) -> None:
        """Transactions whose connections were cut come to an end."""
        while self._late:
            transaction = self._late.pop(0)
            if self.chance.randrange(2):
                self.commit(transaction)

    def keep(self, transaction: _Transaction) -> None:
        self._late.append(transaction)

    def commit(self, transaction: _Transaction) -> None:
        if transaction.move is not None:
            journal, owner, position, last, counts = transaction.move
            standing = self.positions[journal]
            assert standing.stored_through == position < last, "the row was not locked"
            standing.stored_through = last
            standing.flushes[last, owner] = counts
        self.rows += transaction.rows
        self.refused += transaction.refused


class Connection:
    """In place of asyncpg's; `transaction` is the one that is open."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.transaction: _Transaction | None = None
        self._is_closed = False

    def is_closed(self) -> bool:
        return self._is_closed

    def terminate(self) -> None:
        self._is_closed = True
        self.transaction = None

    def reach(self, statement: str) -> None:
        """At the begin of a statement. Raises ConnectionResetError if it gets no answer."""
        breaks = self.database.breaks_at == statement
        if breaks:
            self.database.breaks_at = ""
        if breaks or self._is_closed or not self.database.is_up:
            self.terminate()
            raise ConnectionResetError("the connection was lost")

    @property
    def open(self) -> _Transaction:
        assert self.transaction is not None, "there is no transaction"
        return self.transaction

    async def execute(self, statement: str) -> None:
        command = statement.rpartition(" ")[2]
        assert command in ("COMMIT", "ROLLBACK"), statement
        self.reach(command)
        transaction, self.transaction = self.open, None
        if command == "ROLLBACK":
            return
        fate, self.database.commit_is = self.database.commit_is, "confirmed"
        if fate in ("confirmed", "done"):
            self.database.commit(transaction)
        elif fate == "late":
            self.database.keep(transaction)
        if fate != "confirmed":
            self.terminate()
            raise ConnectionResetError("the connection was lost")


def _as_model(connection: asyncpg.Connection) -> Connection:
    return cast("Connection", connection)


class ModelLedger(Ledger):
    """The real ledger, with a model of its statements."""

    def __init__(self, database: Database, layout: Layout, ownership: Ownership) -> None:
        super().__init__(layout, ownership)
        self._database = database

    async def _claim(self, connection: asyncpg.Connection) -> int | None:
        _as_model(connection).reach("claim")
        self._database.settle_late()
        standing, ownership = self._database.positions[self._layout.journal], self._ownership
        unclaimed = ownership.unclaimed_from
        assert standing.owner in ownership.owners, "the folder has forgotten that it owns the journal"
        assert unclaimed is None or standing.stored_through < unclaimed, "its numbers are used by others"
        assert not ownership.is_copy, "no folder was copied"
        standing.owner = self.token
        return standing.stored_through

    async def _proved(self, connection: asyncpg.Connection, position: int) -> int:
        flushes = self._database.positions[self._layout.journal].flushes
        return max((last for last, _ in flushes if last <= position), default=0)

    async def _put_back(self, connection: asyncpg.Connection, position: int, proved: int) -> None:
        raise AssertionError("the position was moved by no flush")

    async def end_given_up(self, connection: asyncpg.Connection) -> None:
        _as_model(connection).reach("end given up")
        self._database.settle_late()

    async def begin(self, connection: asyncpg.Connection) -> None:
        _as_model(connection).reach("BEGIN")
        _as_model(connection).transaction = _Transaction()

    async def advance(
        self, connection: asyncpg.Connection, records: Sequence[Record], *, days: list[date], position: int
    ) -> None:
        _as_model(connection).reach("advance")
        # They hold the row.
        self._database.settle_late()
        standing = self._database.positions[self._layout.journal]
        if standing.owner != self.token or not position == standing.stored_through < records[-1].number:
            raise DatabaseError("the ledger has moved")
        counts = Counts(sum(one.events for one in records), 0, sum(one.rejected for one in records))
        move = _Move(self._layout.journal, self.token, position, records[-1].number, counts)
        model = _as_model(connection)
        if model.transaction is None:
            # On its own, it is a transaction of its own.
            alone = _Transaction()
            alone.move = move
            self._database.commit(alone)
        else:
            model.transaction.move = move

    async def counts(self, connection: asyncpg.Connection, last: int) -> Counts | None:
        _as_model(connection).reach("counts")
        return self._database.positions[self._layout.journal].flushes.get((last, self.token))


async def copy(connection: asyncpg.Connection, flush: Flush, timeout_seconds: float) -> Outcome:
    """In place of copying.copy."""
    model = _as_model(connection)
    model.reach("COPY")
    for record in flush.records:
        model.open.rows += record.event_lines.splitlines()
        model.open.refused += record.rejected_lines.splitlines()
    return Outcome(stored=flush.events)
