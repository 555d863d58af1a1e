"""Records read before the ledger was asked, and stored already: counted once, and never sent again."""

from __future__ import annotations

import asyncio
import random
import uuid
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import asyncpg
import pytest

from ingest.events import row
from ingest.journal import journals
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal
from ingest.postgres import connections
from ingest.store import partitions
from ingest.store.channel import Given, Message, Open
from ingest.store.feeder import Feeder
from ingest.store.follower import Follower
from ingest.store.ledger import Ledger, create_journal
from ingest.store.writer import Writer

RECORDS = 40


def line(journal: Journal, name: str) -> str:
    now = datetime.now(UTC).isoformat()
    values = {
        "id": str(uuid.uuid4()),
        "created_at": now,
        "received_at": now,
        "type": "system",
        "name": name,
        "properties": "{}",
        "context": "{}",
        "batch_id": str(journal.batch_id),
    }
    return "\t".join(row.field(values.get(column)) for column in row.EVENT_COLUMNS) + "\n"


class Storing:
    """A journal with its writer, as if they were two processes."""

    def __init__(self, folder: Path, dsn: str, flush_max_bytes: int, most_places: int) -> None:
        claimed = journals.claim_folder(folder)
        assert claimed is not None
        self.journal = Journal(claimed, segment_bytes=4000, max_bytes=1 << 26, memory_max_bytes=most_places * 512)
        # The database cannot be reached, so what the files note is all that is known.
        self.journal.recover(None)
        self.accounts = Accounts()
        self.accounts.watch_pending(lambda: self.journal.backlog.events)
        self.accounts.recovered = self.journal.backlog.events
        ledger = Ledger(claimed.layout, claimed.ownership)
        self.feeder = Feeder(self.journal, ledger, self.accounts, flush_max_bytes=flush_max_bytes)
        opened: list[Open] = []

        def to_writer(message: Message) -> None:
            if isinstance(message, Open):
                opened.append(message)
            elif isinstance(message, Given):
                self.follower.given(message)

        self.feeder.attach(to_writer)
        self.follower = Follower(opened[0], flush_max_bytes, self.feeder.receive)  # type: ignore[arg-type]
        self.writer = Writer(
            self.follower,
            ledger,
            lambda: connections.connect(dsn, purpose="writer", statement_timeout_seconds=5),
            flush_max_bytes=flush_max_bytes,
            statement_timeout_seconds=5,
        )

    async def run_until(self, stored: int) -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(self.writer.run(stop))
        async with asyncio.timeout(60):
            while self.accounts.stored < stored:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        stop.set()
        await running

    async def close(self) -> None:
        self.follower.close()
        self.feeder.detach()
        await self.writer.close()
        await self.journal.close()


@pytest.mark.parametrize("most_places", [2, 1000])
@pytest.mark.parametrize("seed", range(4))
async def test_what_was_read_ahead_and_is_stored_is_not_sent_again(
    database_url: str, connection: asyncpg.Connection, tmp_path: Path, seed: int, most_places: int
):
    chance = random.Random(seed)
    await partitions.ensure_ahead(connection, today=datetime.now(UTC).date(), days_ahead=1)
    made = await create_journal(tmp_path, connection)
    made.release()
    first = Storing(made.folder, database_url, chance.choice([600, 1500, 5000]), 1000)
    for number in range(RECORDS):
        await first.journal.wait(first.journal.append([line(first.journal, f"event {number}")], 1, []))
    # Stored in part, and then killed: the files note nothing of it.
    part = chance.randrange(1, RECORDS)
    first.writer._patience.most_records = chance.randrange(1, 12)
    await first.run_until(part)
    stored = await connection.fetchval("SELECT count(*) FROM analytics.events")
    first.feeder.detach()
    first.journal.backlog.stored_through = first.journal._noted
    await first.close()
    second = Storing(made.folder, database_url, chance.choice([600, 1500, 5000]), most_places)
    assert second.journal.backlog.events > RECORDS - stored
    await second.run_until(second.accounts.recovered)
    assert await connection.fetchval("SELECT count(*) FROM analytics.events") == RECORDS
    flushes = await connection.fetch("SELECT first_record, last_record FROM analytics.flushes ORDER BY last_record")
    assert all(before["last_record"] < after["first_record"] for before, after in pairwise(flushes))
    assert second.accounts.unaccounted == 0 and second.accounts.duplicate_in_database == 0
    assert not second.journal.has_backlog
    await second.close()
