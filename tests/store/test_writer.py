"""The writer's states, arrow by arrow, on a real Postgres: whatever goes wrong, a record is stored once."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from ingest.base.errors import DatabaseError
from ingest.base.refusals import RejectReason
from ingest.events import row
from ingest.journal import journals
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal, JournalClosed
from ingest.postgres import connections
from ingest.store import copying, partitions
from ingest.store.feeder import Feeder
from ingest.store.flush import Flush, Outcome, TableRefuses
from ingest.store.ledger import JournalTaken, Ledger, create_journal
from ingest.store.writer import MERGES_AFTER_DUPLICATE, State, Writer
from tests.support.faults import CuttingProxy
from tests.support.journals import JournalSource

TAKE, DOUBT, COPY, MERGE, SETTLE, STOPPED = State


class Store:
    """A journal, its writer, and what the writer's callbacks report."""

    def __init__(self, journal: Journal, ledger: Ledger, dsn: str) -> None:
        self.journal = journal
        self.ledger = ledger
        self.accounts = Accounts()
        self.accounts.watch_pending(lambda: journal.backlog.events)
        self.connections = 0
        self.outcomes: list[Outcome] = []
        self.stored: list[tuple[int, list[str] | None]] = []
        self.feeder = Feeder(
            journal,
            ledger,
            self.accounts,
            flush_max_bytes=1 << 20,
            on_flush=lambda seconds, outcome: self.outcomes.append(outcome),
            on_stored=lambda through, bad: self.stored.append((through, None if bad is None else [*bad.values()])),
        )
        self.source = JournalSource(self.feeder)
        self.writer = Writer(
            self.source,
            ledger,
            lambda: self._connect(dsn),
            flush_max_bytes=1 << 20,
            statement_timeout_seconds=1,
        )

    async def _connect(self, dsn: str) -> asyncpg.Connection:
        self.connections += 1
        return await connections.connect(dsn, purpose="writer", statement_timeout_seconds=1)

    async def put(self, *names: str, id: uuid.UUID | None = None, at: datetime | None = None) -> int:
        """Append events with these names as one record; returns its number."""
        now = datetime.now(UTC).isoformat()
        lines = []
        for name in names:
            values = {
                "id": str(id or uuid.uuid4()),
                "created_at": (at or datetime.now(UTC)).isoformat(),
                "received_at": now,
                "type": "system",
                "name": name,
                "properties": "{}",
                "context": "{}",
                "batch_id": str(self.journal.batch_id),
            }
            lines.append("\t".join(row.field(values.get(column)) for column in row.EVENT_COLUMNS) + "\n")
        record = self.journal.append(lines, len(lines), [])
        self.accounts.received += len(lines)
        await self.journal.wait(record)
        return record.number

    async def steps(self, count: int = 20) -> list[State]:
        """Step until the state is TAKE; returns the states on the way."""
        found = [await self.writer.step()]
        while found[-1] is not TAKE and len(found) < count:
            found.append(await self.writer.step())
        return found

    async def reach(self, state: State) -> None:
        """Step until this state is reached."""
        async with asyncio.timeout(60):
            while self.writer.state is not state:
                await self.writer.step()


Make = Callable[..., Awaitable[Store]]


@pytest.fixture
async def make(database_url: str, connection: asyncpg.Connection, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Store] = []
    await partitions.ensure_ahead(connection, today=datetime.now(UTC).date(), days_ahead=1)

    async def make_one(dsn: str = database_url, folder: Path | None = None) -> Store:
        claimed = await create_journal(tmp_path, connection) if folder is None else journals.claim_folder(folder)
        assert claimed is not None
        ledger = Ledger(claimed.layout, claimed.ownership)
        journal = Journal(claimed, segment_bytes=1 << 20, max_bytes=1 << 26, memory_max_bytes=1 << 20)
        journal.recover(await ledger.open(connection))
        made.append(Store(journal, ledger, dsn))
        made[-1].accounts.recovered = journal.backlog.events
        return made[-1]

    yield make_one
    for store in made:
        assert store.accounts.unaccounted == 0, store.accounts
        await store.writer.close()
        await store.journal.close()


@pytest.fixture
async def store(make: Make) -> Store:
    return await make()


async def names(connection: asyncpg.Connection) -> list[str]:
    return [found["name"] for found in await connection.fetch("SELECT name FROM analytics.events ORDER BY name")]


async def position(connection: asyncpg.Connection, store: Store) -> int:
    found: int = await connection.fetchval(
        "SELECT stored_through FROM analytics.journals WHERE number = $1", store.journal.number
    )
    return found


# When all is well.


async def test_the_ledger_is_asked_on_a_new_connection_and_not_again(store: Store, connection: asyncpg.Connection):
    await store.put("a")
    assert await store.steps() == [DOUBT, COPY, SETTLE, TAKE]
    last = await store.put("b", "c")
    assert await store.steps() == [COPY, SETTLE, TAKE]
    assert await names(connection) == ["a", "b", "c"]
    assert await position(connection, store) == store.journal.stored_through == last
    assert store.connections == 1 and [outcome.stored for outcome in store.outcomes] == [1, 2]


async def test_without_anything_to_store_no_connection_is_needed(store: Store):
    assert await store.steps() == [TAKE] and not await store.writer.run_once()
    assert store.connections == 0


async def test_a_lost_connection_leads_to_doubt(store: Store, connection: asyncpg.Connection):
    await store.put("a")
    await store.reach(SETTLE)
    await store.steps()
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'ingest writer' AND datname = current_database()"
    )
    await store.put("b")
    async with asyncio.timeout(60):
        while not store.writer._connection.is_closed():  # type: ignore[union-attr]  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await store.steps() == [DOUBT, COPY, SETTLE, TAKE]
    assert await names(connection) == ["a", "b"] and store.connections == 2


async def test_a_missing_partition_is_created_and_the_copy_repeated(store: Store, connection: asyncpg.Connection):
    await store.put("old", at=datetime.now(UTC) - timedelta(days=50))
    assert await store.steps() == [DOUBT, COPY, COPY, SETTLE, TAKE]
    assert await names(connection) == ["old"]


# The response to COMMIT is lost.


@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize("what", ["cut before", "cut after", "stall"])
async def test_after_a_commit_without_a_response_the_ledger_decides(
    make: Make, connection: asyncpg.Connection, database_url: str, tmp_path: Path, what: str, records: int
):
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        store = await make(proxy.dsn)
        for number in range(records):
            await store.put(f"event {number}")
        store.writer._patience.most_records = 1
        await store.reach(COPY)
        proxy.at_commit = lambda: what
        with pytest.raises(connections.FAILURES):
            await store.writer.step()
        assert store.writer.state is DOUBT and store.outcomes == [] and not store.writer.postgres_up
        proxy.at_commit = lambda: "pass"
        async with asyncio.timeout(60):
            while store.writer.state is DOUBT:
                # A transaction still running holds the ledger's row: it is waited for, then ended, and asked again.
                with contextlib.suppress(TimeoutError):
                    await store.writer.step()
        if what == "cut before":
            assert store.writer.state is COPY and store.accounts.stored == 0
        elif what == "cut after":
            # It had succeeded: the first record is released, and not sent again.
            assert store.writer.state is (COPY if records > 1 else TAKE) and store.accounts.stored == 1
        while await store.writer.run_once():
            pass
        assert await names(connection) == [f"event {number}" for number in range(records)]
        assert store.accounts.stored == records and not store.journal.has_backlog
        await store.writer.close()


async def test_records_that_the_ledger_covers_are_counted_by_the_ledger(
    make: Make, connection: asyncpg.Connection, database_url: str, tmp_path: Path
):
    """Even if the flush was a merge: the ledger has its duplicates and refused rows."""
    await connection.execute("ALTER TABLE analytics.events ADD CONSTRAINT t CHECK (name <> 'bad') NOT VALID")
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        store = await make(proxy.dsn)
        at, known = datetime.now(UTC), uuid.uuid4()
        await store.put("a", id=known, at=at)
        await store.steps()
        await store.put("a", id=known, at=at)
        await store.put("good", "bad")
        await store.reach(MERGE)
        # The first COMMIT is that of the day's partition.
        plan = iter(["pass", "cut after"])
        proxy.at_commit = lambda: next(plan, "pass")
        with pytest.raises(connections.FAILURES):
            await store.writer.step()
        assert await store.steps() == [TAKE]
        assert await names(connection) == ["a", "good"]
        assert (store.accounts.stored, store.accounts.duplicate_in_database) == (2, 1)
        assert store.accounts.rejected[RejectReason.DATABASE_REFUSED] == 1
        # Which one was refused is no longer known.
        assert store.stored[-1] == (store.journal.stored_through, None)
        await store.writer.close()


async def test_a_ledger_that_has_moved_stops_the_copy(
    store: Store, connection: asyncpg.Connection, database_url: str
):
    """As when a transaction that we gave up on commits after we have asked the ledger."""
    number = await store.put("a", "b")
    await store.reach(COPY)
    flush = Flush.of(store.journal.number, store.writer._taken)
    await store.ledger.begin(connection)
    await store.ledger.advance(connection, flush.records, days=flush.contents.days, position=0)
    await copying.copy(connection, flush, 10)
    await connection.execute("COMMIT")
    with pytest.raises(DatabaseError, match="has moved"):
        await store.writer.step()
    assert store.writer.state is DOUBT and store.accounts.stored == 0
    assert await store.steps() == [TAKE]
    assert await names(connection) == ["a", "b"] and store.accounts.stored == 2
    assert await position(connection, store) == store.journal.stored_through == number


@pytest.mark.parametrize("state", [DOUBT, COPY])
async def test_a_cancelled_flush_is_in_doubt(store: Store, connection: asyncpg.Connection, state: State):
    await store.put("a")
    await store.reach(state)
    async with connection.transaction():
        await connection.execute("LOCK TABLE analytics.journals IN ACCESS EXCLUSIVE MODE")
        task = asyncio.create_task(store.writer.step())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.writer.state is DOUBT
    assert await store.steps() == [COPY, SETTLE, TAKE]
    assert await names(connection) == ["a"]


# Another holder.


@pytest.mark.parametrize("state", [TAKE, COPY])
async def test_another_holder_stops_it_and_records_stored_before_are_settled(
    store: Store, make: Make, connection: asyncpg.Connection, state: State
):
    await store.put("before")
    await store.steps()
    await store.put("ours")
    if state is COPY:
        await store.reach(COPY)
    folder = store.journal.folder.parent / "copied"
    shutil.copytree(store.journal.folder, folder)
    other = await make(folder=folder)
    await other.put("theirs")
    while await other.writer.run_once():
        pass
    with pytest.raises(DatabaseError, match="has moved"):
        await store.writer.run_once()
    with pytest.raises(JournalTaken):
        await store.writer.run_once()
    stop = asyncio.Event()
    running = asyncio.create_task(store.writer.run(stop))
    async with asyncio.timeout(60):
        while store.writer.state is not STOPPED:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(JournalClosed):
        store.journal.append([], 0, [])
    assert store.journal.is_taken and not await store.feeder.drain(5)
    stop.set()
    await running
    # "ours" is in both folders and stored from the copy; here it stays pending, and is counted as such.
    assert await names(connection) == ["before", "ours", "theirs"]
    assert store.accounts.stored == 1 and store.accounts.pending == 1


async def test_stored_records_are_settled_even_if_another_process_now_holds_the_position(
    make: Make, connection: asyncpg.Connection, database_url: str, tmp_path: Path
):
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        store = await make(proxy.dsn)
        await store.put("ours")
        await store.reach(COPY)
        proxy.at_commit = lambda: "cut after"
        with pytest.raises(connections.FAILURES):
            await store.writer.step()
        proxy.at_commit = lambda: "pass"
        async with asyncio.timeout(60):
            # The server is done with the COMMIT some time after the connection was cut.
            while await names(connection) != ["ours"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        folder = store.journal.folder.parent / "copied"
        shutil.copytree(store.journal.folder, folder)
        other = await make(folder=folder)
        await other.put("theirs")
        while await other.writer.run_once():
            pass
        with pytest.raises(JournalTaken):
            await store.writer.step()
        assert store.accounts.stored == 1 and store.accounts.pending == 0
        assert await names(connection) == ["ours", "theirs"]
        await store.writer.close()


# Duplicates and refused rows.


async def test_after_a_duplicate_the_next_flushes_are_merged(store: Store, connection: asyncpg.Connection):
    at, known = datetime.now(UTC), uuid.uuid4()
    await store.put("first", id=known, at=at)
    await store.steps()
    await store.put("again", id=known, at=at)
    assert await store.steps() == [COPY, MERGE, SETTLE, TAKE]
    assert (store.outcomes[-1].stored, store.outcomes[-1].duplicate) == (0, 1)
    for number in range(MERGES_AFTER_DUPLICATE):
        await store.put(f"later {number}")
        assert await store.steps() == [MERGE, SETTLE, TAKE]
    await store.put("last")
    assert await store.steps() == [COPY, SETTLE, TAKE]
    assert len(await names(connection)) == 2 + MERGES_AFTER_DUPLICATE
    assert store.accounts.duplicate_in_database == 1


async def test_a_bad_row_goes_through_the_merge_and_is_kept(store: Store, connection: asyncpg.Connection):
    await connection.execute("ALTER TABLE analytics.events ADD CONSTRAINT t CHECK (name <> 'bad') NOT VALID")
    last = await store.put("good", "bad")
    assert await store.steps() == [DOUBT, COPY, MERGE, SETTLE, TAKE]
    assert await names(connection) == ["good"]
    assert await connection.fetchval("SELECT count(*) FROM analytics.rejected_events") == 1
    (through, bad) = store.stored[-1]
    assert through == last and bad is not None and "violates check constraint" in bad[0]
    assert store.accounts.rejected[RejectReason.DATABASE_REFUSED] == 1
    # A refused row is not a duplicate: the next flush is copied.
    await store.put("next")
    assert await store.steps() == [COPY, SETTLE, TAKE]


async def test_a_table_that_refuses_every_row_leaves_nothing_in_doubt(store: Store, connection: asyncpg.Connection):
    await connection.execute("ALTER TABLE analytics.events ADD CONSTRAINT t CHECK (name = '') NOT VALID")
    last = await store.put("a")
    await store.reach(MERGE)
    with pytest.raises(TableRefuses):
        await store.writer.step()
    assert store.writer.state is TAKE and store.accounts.pending == 1
    assert await position(connection, store) == 0, "rolled back with the rows"
    await connection.execute("ALTER TABLE analytics.events DROP CONSTRAINT t")
    assert await store.steps() == [COPY, SETTLE, TAKE]
    assert await names(connection) == ["a"] and await position(connection, store) == last
    assert store.connections == 1


# Time-outs.


async def test_a_time_out_makes_the_next_flush_smaller(store: Store, connection: asyncpg.Connection):
    for number in range(4):
        await store.put(f"event {number}")
    async with connection.transaction():
        await connection.execute("LOCK TABLE analytics.events IN ACCESS EXCLUSIVE MODE")
        sizes = []
        for _ in range(3):
            await store.reach(COPY)
            sizes.append(len(store.writer._flush.records))
            with pytest.raises((TimeoutError, asyncpg.QueryCanceledError)):
                await store.writer.step()
            assert store.writer.state is DOUBT
    assert sizes == [4, 2, 1]
    # One record is stored, then all the others together.
    assert await store.steps() == [COPY, SETTLE, TAKE] and store.outcomes[-1].stored == 1
    assert await store.steps() == [COPY, SETTLE, TAKE] and store.outcomes[-1].stored == 3
    assert await names(connection) == [f"event {number}" for number in range(4)]


async def test_a_time_out_while_the_table_refuses_every_row_does_not_keep_the_connection(
    store: Store, connection: asyncpg.Connection, database_url: str
):
    """Its transaction is still open, and repairing the table may lock it for longer than we wait."""
    await connection.execute("ALTER TABLE analytics.events ADD CONSTRAINT t CHECK (name = '') NOT VALID")
    await store.put("a")
    stop = asyncio.Event()
    running = asyncio.create_task(store.writer.run(stop))
    async with asyncio.timeout(60):
        while store.writer.table_refuses is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with connection.transaction():
            await connection.execute("ALTER TABLE analytics.events DROP CONSTRAINT t")
            while store.writer.table_refuses is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        while store.journal.has_backlog:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    stop.set()
    await running
    assert await names(connection) == ["a"]
