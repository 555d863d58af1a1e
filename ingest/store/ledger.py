"""The position of one journal in the database: every record up to it is stored.

It belongs to one holder, by a token that is random at each opening of the journal: whoever has the newest moves it,
and all others are refused. Only what the ledger can prove counts as stored: a position that no flush has moved to is
put back to the last one that did.
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
    """The database does not know the journal: it is another one than the folder was used with."""


class JournalTaken(IngestError):
    """Another process stores under the journal's number, from a copy of its folder.

    `stored_through`: this folder's records up to this one are stored nevertheless.
    """

    def __init__(self, text: str, stored_through: int) -> None:
        super().__init__(text)
        self.stored_through = stored_through


class Counts(NamedTuple):
    """What a flush did: events stored and duplicate, and rejected ones, by the service as well as by the table."""

    stored: int
    duplicate: int
    rejected: int


async def create_journal(data_dir: Path, connection: asyncpg.Connection) -> Claimed:
    """Make a new journal, its number from the database. Hold it, or release it."""

    async def register(identity: str, owner: uuid.UUID) -> int:
        number: int = await connection.fetchval(load_queries("ledger")["register"], identity, owner)
        return number

    return await journals.create(data_dir, register)


class Ledger:
    """One journal's position, for as long as its folder is held. Nothing is stored without `advance`."""

    def __init__(self, claimed: Claimed) -> None:
        self.token = uuid.uuid4()
        # What our transactions are called in pg_stat_activity while they last, and nobody else's.
        self.transaction_name = f"ingest writer {self.token}"
        self._claimed = claimed
        self._layout = claimed.layout
        self._queries = load_queries("ledger")
        # Of a copy: where the position was when we started.
        self._seen: int | None = None

    async def open(self, connection: asyncpg.Connection) -> int:
        """At the start: the position, which is taken over; that of a copy not yet, the original may be at work.
        Raises as `ask`."""
        ownership = self._claimed.ownership
        if not ownership.is_copy:
            return await self.ask(connection)
        standing = await look(connection, self._layout, ownership)
        if not standing.may_hold:
            raise self._taken(standing)
        self._seen = standing.position
        return standing.stored_through

    async def ask(self, connection: asyncpg.Connection) -> int:
        """Take the position over, if it is ours to take: the position. Raises JournalUnknown and JournalTaken.

        To be called on each new connection: whether the last COMMIT succeeded is only known then.
        """
        ownership = self._claimed.ownership
        await asyncio.to_thread(ownership.add, self.token)
        position = await self._claim(connection)
        if position is None:
            raise self._taken(await look(connection, self._layout, ownership))
        # From here on nobody else stores under these numbers; and nothing of ours is, before it is known here.
        await asyncio.to_thread(ownership.set_claimed)
        self._seen = None
        proved = await self._proved(connection, position)
        if proved < position:
            logger.error(
                "the ledger says that journal %d is stored up to record %d, but its last flush stored up to %d: what"
                " comes after that is taken for not stored",
                self._layout.journal,
                position,
                proved,
            )
            await self._put_back(connection, position, proved)
        return proved

    def _taken(self, standing: Standing) -> JournalTaken:
        why = standing.objection
        if standing.may_hold:
            why = f"another process stores from it, it has moved from record {self._seen} to {standing.position}"
        return JournalTaken(
            f"journal {self._layout.journal} exists twice, {self._claimed.folder} is a copy or was copied: {why}."
            " Nothing more is accepted or stored from here; what waits stays in the folder until"
            " `ingest journal resolve` is told what to do with it",
            standing.stored_through,
        )

    # One statement each; sql/queries/ledger.sql says what they are for.

    async def _claim(self, connection: asyncpg.Connection) -> int | None:
        """The position, which is ours from now on; None if it is not ours to take."""
        ownership = self._claimed.ownership
        async with connection.transaction():
            await connection.execute(f"SET LOCAL application_name = '{self.transaction_name}'")
            position: int | None = await connection.fetchval(
                self._queries["claim"],
                self._layout.journal,
                self._layout.identity,
                self.token,
                ownership.owners,
                ownership.unclaimed_from,
                self._seen,
            )
        return position

    async def _proved(self, connection: asyncpg.Connection, position: int) -> int:
        """How far, up to this position, flushes have stored."""
        proved: int = await connection.fetchval(self._queries["proved"], self._layout.journal, position)
        return proved

    async def _put_back(self, connection: asyncpg.Connection, position: int, proved: int) -> None:
        await connection.execute(self._queries["put_back"], self._layout.journal, self.token, position, proved)

    async def end_given_up(self, connection: asyncpg.Connection) -> None:
        """End the transactions of ours that live on in the server after their connections were cut."""
        await connection.execute(self._queries["end_given_up"], self.transaction_name)

    async def begin(self, connection: asyncpg.Connection) -> None:
        """Begin the transaction of a flush."""
        # The journal forgets what is committed, so the commit must be on disk whatever the server's default is.
        await connection.execute(
            f"BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL application_name = '{self.transaction_name}'"
        )

    async def advance(
        self, connection: asyncpg.Connection, records: Sequence[Record], *, days: list[date], position: int
    ) -> None:
        """Move the position from where we believe it to be to the last of the records, the first statement of their
        flush. Raises DatabaseError if it is not there, or no longer ours: then ask again."""
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
        """In the transaction of the flush up to record `last`: some of its events were duplicates or were refused."""
        await connection.execute(self._queries["correct"], self._layout.journal, last, duplicate, refused)

    async def counts(self, connection: asyncpg.Connection, last: int) -> Counts | None:
        """What our flush up to record `last` did, if its row is still there."""
        row = await connection.fetchrow(self._queries["counts"], self._layout.journal, last, self.token)
        if row is None:
            return None
        return Counts(stored=row["events_stored"], duplicate=row["events_duplicate"], rejected=row["events_rejected"])


class Standing(NamedTuple):
    """How a folder stands in the ledger, where its journal is at `position`. This folder's records up to
    `stored_through` are stored; `may_hold` tells whether it may take over the position; `objection` is what speaks
    against that, or against taking it for granted, None if nothing does."""

    position: int
    stored_through: int
    may_hold: bool
    objection: str | None


async def look(connection: asyncpg.Connection, layout: Layout, ownership: Ownership) -> Standing:
    """How a journal's folder stands, without taking anything over. Raises JournalUnknown.

    A position that is another's says nothing of this folder: what its own flushes have stored does, and those of the
    folder that it was copied from.
    """
    query = load_queries("ledger")["look"]
    row = await connection.fetchrow(query, layout.journal, layout.identity, ownership.owners)
    if row is None:
        raise _unknown(layout)
    position, proved, unclaimed_from = row["stored_through"], row["proved"], ownership.unclaimed_from
    objection = None
    if not row["is_known"]:
        objection = f"another process has held it since, and moved it at {row['updated_at']:%Y-%m-%d %H:%M:%S} UTC"
    elif unclaimed_from is not None and position >= unclaimed_from:
        objection = (
            f"it is stored up to record {position}, and those from {unclaimed_from} on are others here, written"
            " before the ledger was asked"
        )
    may_hold = objection is None
    if may_hold and ownership.is_copy:
        objection = "it is a copy, and what it was copied from may be at work"
    # Those from there on cannot be the ones that anybody has stored.
    stored_through = proved if unclaimed_from is None else min(proved, unclaimed_from - 1)
    return Standing(position=position, stored_through=stored_through, may_hold=may_hold, objection=objection)


def _unknown(layout: Layout) -> JournalUnknown:
    return JournalUnknown(
        f"the database does not know journal {layout.journal} ({layout.identity}) of this data folder: it is"
        " another database than the one the folder was used with. Use that one, or another data folder"
    )
