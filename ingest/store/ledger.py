"""The position of one journal in the database: every record up to it is stored.

It has one holder, identified by a token chosen at random each time the journal is opened: the newest token moves the
position, all others are refused. Only what the ledger can prove counts as stored: a position that was not reached by
a flush is put back to the last one that was.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import asyncpg

from ingest.base.errors import DatabaseError, IngestError
from ingest.journal import journals
from ingest.journal.journals import Claimed
from ingest.journal.ownership import Ownership
from ingest.journal.segments import Layout, Record
from ingest.postgres.queries import load_queries

logger = logging.getLogger(__name__)


class JournalUnknown(IngestError):
    """The database does not know the journal: the folder was used with another database."""


class JournalTaken(IngestError):
    """Another process stores under the journal's number, from a copy of its folder.

    `stored_through`: this folder's records up to this number are stored regardless.
    """

    def __init__(self, text: str, stored_through: int) -> None:
        super().__init__(text)
        self.stored_through = stored_through


class Counts(NamedTuple):
    """What a flush did: events stored, duplicate, and rejected, whether by the service or by the table."""

    stored: int
    duplicate: int
    rejected: int


async def create_journal(data_dir: Path, connection: asyncpg.Connection) -> Claimed:
    """Create a new journal, numbered by the database, and claim it; the caller releases it."""

    async def register(identity: str, owner: uuid.UUID) -> int:
        number: int = await connection.fetchval(load_queries("ledger")["register"], identity, owner)
        return number

    return await journals.create(data_dir, register)


class Ledger:
    """One journal's position, for as long as its folder is held. Nothing is stored without `advance`."""

    def __init__(
        self, layout: Layout, ownership: Ownership, *, token: uuid.UUID | None = None, seen: int | None = None
    ) -> None:
        """`token`, `seen`: those of a ledger that was opened for this folder by the process that holds it."""
        self.token = token or uuid.uuid4()
        # The application_name of our transactions in pg_stat_activity, unique to this process.
        self.transaction_name = f"ingest writer {self.token}"
        self._ownership = ownership
        self._layout = layout
        self._queries = load_queries("ledger")
        # For a copy: the position when we started.
        self.seen = seen

    async def open(self, connection: asyncpg.Connection) -> int:
        """Take the position over at the start and return it. A copy only looks at it: the original may be running.
        Raises what `ask` raises."""
        ownership = self._ownership
        if not ownership.is_copy:
            return await self.ask(connection)
        standing = await look(connection, self._layout, ownership)
        if not standing.may_hold:
            raise self._taken(standing)
        self.seen = standing.position
        return standing.stored_through

    async def ask(self, connection: asyncpg.Connection) -> int:
        """Take the position over if this folder may, and return it. Raises JournalUnknown and JournalTaken.

        Call it on each new connection: only then is it known whether the last COMMIT succeeded.
        """
        ownership = self._ownership
        await asyncio.to_thread(ownership.add, self.token)
        position = await self._claim(connection)
        if position is None:
            raise self._taken(await look(connection, self._layout, ownership))
        # From here on no other process stores under these numbers. Noted in the folder before we store anything.
        await asyncio.to_thread(ownership.set_claimed)
        proved = await self._proved(connection, position)
        if proved < position:
            logger.error(
                "the ledger says that journal %d is stored up to record %d, but its last flush ended at %d: later"
                " records are treated as not stored",
                self._layout.journal,
                position,
                proved,
            )
            await self._put_back(connection, position, proved)
        return proved

    def _taken(self, standing: Standing) -> JournalTaken:
        why = standing.objection
        if standing.may_hold:
            why = f"another process is storing: its position moved from record {self.seen} to {standing.position}"
        return JournalTaken(
            f"journal {self._layout.journal} exists twice, {self._ownership.folder} is a copy or was copied: {why}."
            " Nothing more is accepted or stored from here; pending records stay in the folder until"
            " `ingest journal resolve` decides about them",
            standing.stored_through,
        )

    # One statement each; sql/queries/ledger.sql explains them.

    async def _claim(self, connection: asyncpg.Connection) -> int | None:
        """Claim the position and return it; None if this folder may not."""
        ownership = self._ownership
        async with connection.transaction():
            await connection.execute(f"SET LOCAL application_name = '{self.transaction_name}'")
            position: int | None = await connection.fetchval(
                self._queries["claim"],
                self._layout.journal,
                self._layout.identity,
                self.token,
                ownership.owners,
                ownership.unclaimed_from,
                # Once it has held the position, nothing that was seen before matters.
                self.seen if ownership.is_copy else None,
            )
        return position

    async def _proved(self, connection: asyncpg.Connection, position: int) -> int:
        """The last record, up to this position, that a flush has stored."""
        proved: int = await connection.fetchval(self._queries["proved"], self._layout.journal, position)
        return proved

    async def _put_back(self, connection: asyncpg.Connection, position: int, proved: int) -> None:
        await connection.execute(self._queries["put_back"], self._layout.journal, self.token, position, proved)

    async def end_given_up(self, connection: asyncpg.Connection) -> None:
        """End our transactions that are still running in the server after their connections were cut."""
        await connection.execute(self._queries["end_given_up"], self.transaction_name)

    async def begin(self, connection: asyncpg.Connection) -> None:
        """Begin the transaction of a flush."""
        # The journal forgets committed records, so the commit must be on disk whatever the server's default is.
        await connection.execute(
            f"BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL application_name = '{self.transaction_name}'"
        )

    async def advance(
        self, connection: asyncpg.Connection, records: Sequence[Record], *, days: list[date], position: int
    ) -> None:
        """Move the position from `position` to the last of the records, as the first statement of their flush.
        Raises DatabaseError if it is elsewhere or no longer ours: then call `ask` again."""
        moved = await connection.fetchval(
            self._queries["advance"],
            self._layout.journal,
            self._layout.identity,
            self.token,
            position,
            records[-1].number,
            sum(record.events for record in records),
            sum(record.rejected for record in records),
            records[0].number,
            days,
        )
        if not moved:
            raise DatabaseError(f"the ledger of journal {self._layout.journal} has moved; asking it again")

    async def correct(self, connection: asyncpg.Connection, *, last: int, duplicate: int, refused: int) -> None:
        """Correct the counts of the flush up to record `last` in its transaction: some events were not stored."""
        await connection.execute(self._queries["correct"], self._layout.journal, last, duplicate, refused)

    async def counts(self, connection: asyncpg.Connection, last: int) -> Counts | None:
        """The counts of our flush up to record `last`; None if its row is no longer there."""
        row = await connection.fetchrow(self._queries["counts"], self._layout.journal, last, self.token)
        if row is None:
            return None
        return Counts(stored=row["events_stored"], duplicate=row["events_duplicate"], rejected=row["events_rejected"])


class Standing(NamedTuple):
    """A folder's standing in the ledger. `position`: the journal's. `stored_through`: this folder's records up to it
    are stored. `may_hold`: whether the folder may take the position over. `objection`: why it may not, or why that is
    uncertain; None if neither."""

    position: int
    stored_through: int
    may_hold: bool
    objection: str | None


async def look(connection: asyncpg.Connection, layout: Layout, ownership: Ownership) -> Standing:
    """The standing of a journal's folder, without taking anything over. Raises JournalUnknown.

    A position held by another folder says nothing about this one: only its own flushes count, and those of the folder
    it was copied from.
    """
    query = load_queries("ledger")["look"]
    row = await connection.fetchrow(query, layout.journal, layout.identity, ownership.owners)
    if row is None:
        raise _unknown(layout)
    position, proved, unclaimed_from = row["stored_through"], row["proved"], ownership.unclaimed_from
    objection = None
    if not row["is_known"]:
        objection = (
            f"another process has held the position since, and moved it at {row['updated_at']:%Y-%m-%d %H:%M:%S} UTC"
        )
    elif unclaimed_from is not None and position >= unclaimed_from:
        objection = (
            f"it is stored up to record {position}, but this folder's records from {unclaimed_from} on are different"
            " ones, written before the ledger was asked"
        )
    may_hold = objection is None
    if may_hold and ownership.is_copy:
        objection = "it is a copy, and the original may be running"
    # Unclaimed records cannot have been stored by any process.
    stored_through = proved if unclaimed_from is None else min(proved, unclaimed_from - 1)
    return Standing(position=position, stored_through=stored_through, may_hold=may_hold, objection=objection)


def _unknown(layout: Layout) -> JournalUnknown:
    return JournalUnknown(
        f"the database does not know journal {layout.journal} ({layout.identity}) of this data folder: the folder"
        " was used with another database. Use that database, or another data folder"
    )
