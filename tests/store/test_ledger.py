"""Who holds a journal's position, and what the ledger can prove: the file `owners`, the token, and the flushes."""

from __future__ import annotations

import asyncio
import random
import shutil
import uuid
from pathlib import Path

import asyncpg
import pytest

from ingest.base.errors import DatabaseError
from ingest.journal import journals
from ingest.journal.journals import Claimed
from ingest.journal.ownership import RECORD_LIMIT, Ownership
from ingest.journal.segments import Record
from ingest.store.ledger import JournalTaken, JournalUnknown, Ledger, create_journal, look
from tests.support.amounts import some_of
from tests.support.collector import Client, Start, errors
from tests.support.events import batch

# The file.


def test_ownership_outlives_the_process(tmp_path: Path):
    first, second = uuid.uuid4(), uuid.uuid4()
    Ownership.begin(tmp_path, first)
    ownership = Ownership(tmp_path)
    assert (ownership.owners, ownership.unclaimed_from, ownership.is_copy) == ([first], None, False)
    ownership.add(second)
    ownership.add(second)
    number = ownership.leave_gap(100)
    again = Ownership(tmp_path)
    assert (again.owners, again.unclaimed_from) == ([first, second], number)
    again.set_claimed()
    again.set_claimed()
    assert Ownership(tmp_path).unclaimed_from is None


def test_a_torn_file_never_says_more_than_the_whole_one(tmp_path: Path):
    """Cut anywhere, as by a crash or in a copy, and then appended to."""
    (whole := tmp_path / "whole").mkdir()
    Ownership.begin(whole, uuid.uuid4())
    ownership = Ownership(whole)
    numbers = {None, ownership.leave_gap(5)}
    ownership.add(uuid.uuid4())
    ownership.set_claimed()
    numbers.add(ownership.leave_gap(9))
    content = (whole / "owners").read_bytes()
    states = []
    for size in range(len(content) + 1):
        folder = tmp_path / f"cut-{size}"
        folder.mkdir()
        (folder / "owners").write_bytes(content[:size])
        cut = Ownership(folder)
        assert cut.owners == ownership.owners[: len(cut.owners)]
        states.append(cut.unclaimed_from)
        token = uuid.uuid4()
        cut.add(token)
        appended = Ownership(folder)
        assert appended.owners == [*cut.owners] and appended.owners[-1] == token
        assert appended.unclaimed_from == states[-1]
    # A number is read in full or not at all.
    assert set(states) == numbers


def test_any_bytes_can_be_read(tmp_path: Path):
    chance = random.Random(5)
    for at in range(200):
        folder = tmp_path / str(at)
        folder.mkdir()
        words = [
            b"owner ",
            str(uuid.uuid4()).encode(),
            b"\n",
            b"unclaimed ",
            b"0000000000009",
            b"claimed\n",
            b"\xff\x00",
        ]
        (folder / "owners").write_bytes(b"".join(chance.choices(words, k=chance.randint(0, 30))))
        ownership = Ownership(folder)
        ownership.add(token := uuid.uuid4())
        ownership.set_claimed()
        assert Ownership(folder).owners[-1] == token and Ownership(folder).unclaimed_from is None


def test_it_stays_small_and_keeps_its_newest_tokens(tmp_path: Path):
    Ownership.begin(tmp_path, uuid.uuid4())
    tokens = [uuid.uuid4() for _ in range(300)]
    for token in tokens:
        # Each is one start.
        ownership = Ownership(tmp_path)
        ownership.add(token)
        ownership.set_claimed()
    assert Ownership(tmp_path).owners[-40:] == tokens[-40:]
    assert (tmp_path / "owners").stat().st_size < 4096


def test_a_copy_is_recognized_until_it_has_the_position(tmp_path: Path):
    (original := tmp_path / "original").mkdir()
    Ownership.begin(original, uuid.uuid4())
    shutil.copytree(original, tmp_path / "copy")
    moved = original.rename(tmp_path / "moved")
    assert not Ownership(moved).is_copy, "the same folder, moved"
    copy = Ownership(tmp_path / "copy")
    assert copy.is_copy
    for _ in range(200):
        copy.add(uuid.uuid4())
    assert Ownership(tmp_path / "copy").is_copy, "even after its file was compacted"
    copy.set_claimed()
    assert not Ownership(tmp_path / "copy").is_copy


def test_numbers_after_a_start_without_the_ledger_are_far_away_random_and_never_too_high(tmp_path: Path):
    last = 1000
    (tmp_path / "0").mkdir()
    Ownership.begin(tmp_path / "0", uuid.uuid4())
    firsts = set()
    for at in range(50):
        shutil.copytree(tmp_path / "0", tmp_path / f"copy-{at}")
        firsts.add(Ownership(tmp_path / f"copy-{at}").leave_gap(last))
    assert len(firsts) == 50 and min(firsts) > last + 50_000_000
    ownership = Ownership(tmp_path / "0")
    first = ownership.leave_gap(last)
    # Whether nothing or a lot was written, each start begins at a different, higher number.
    assert first < (second := ownership.leave_gap(last)) < ownership.leave_gap(second + 5)
    for _ in range(20_000):
        number = ownership.leave_gap(last)
        assert last < number < RECORD_LIMIT
        ownership.unclaimed_from, last = None, number
        if last > RECORD_LIMIT - 1000:
            break
        last += 1 << 28
        last = min(last, RECORD_LIMIT - 2000)


# The position.


async def made(data_dir: Path, connection: asyncpg.Connection) -> Claimed:
    return await create_journal(data_dir, connection)


def reopened(claimed: Claimed) -> Claimed:
    """The next process on the same folder."""
    claimed.release()
    again = journals.claim_folder(claimed.folder)
    assert again is not None
    return again


def copied(claimed: Claimed, name: str) -> Claimed:
    """A process on a copy that cannot be told from the original."""
    folder = claimed.folder.parent / name
    shutil.copytree(claimed.folder, folder)
    with (folder / "owners").open("a") as file:
        file.write(f"inode {folder.stat().st_ino:020d}\n")
    other = journals.claim_folder(folder)
    assert other is not None
    return other


def ledger_of(claimed: Claimed) -> Ledger:
    return Ledger(claimed.layout, claimed.ownership)


def record(number: int) -> Record:
    return Record(number, 1, 0, 0, 0, b"", b"", None)  # type: ignore[arg-type]


async def flush(ledger: Ledger, connection: asyncpg.Connection, position: int, number: int) -> None:
    async with connection.transaction():
        await ledger.advance(connection, [record(number)], days=[], position=position)


async def test_the_process_that_opened_the_journal_last_has_the_position(
    connection: asyncpg.Connection, tmp_path: Path
):
    one = await made(tmp_path, connection)
    first = ledger_of(one)
    assert await first.open(connection) == 0
    await flush(first, connection, 0, 5)
    second = copied(one, "two")
    two = ledger_of(second)
    assert await two.open(connection) == 5
    with pytest.raises(DatabaseError, match="has moved"):
        await flush(first, connection, 5, 6)
    await flush(two, connection, 5, 9)
    with pytest.raises(JournalTaken) as taken:
        await first.ask(connection)
    # What the first one has stored stays stored.
    assert taken.value.stored_through == 5 and "another process" in str(taken.value)
    assert [
        one["owner"] for one in await connection.fetch("SELECT owner FROM analytics.flushes ORDER BY last_record")
    ] == [
        first.token,
        two.token,
    ]
    # A restart does not help it, and the other may restart as often as it likes.
    with pytest.raises(JournalTaken):
        await ledger_of(reopened(one)).open(connection)
    assert await ledger_of(reopened(second)).open(connection) == 9


async def test_a_ledger_with_an_older_token_of_the_folder_can_be_taken_over(
    connection: asyncpg.Connection, tmp_path: Path
):
    """As after restoring a backup of the database, or a failover that lost the last commits."""
    claimed = await made(tmp_path, connection)
    tokens = []
    for _ in range(3):
        ledger = ledger_of(claimed)
        await ledger.open(connection)
        tokens.append(ledger.token)
        claimed = reopened(claimed)
    for token in tokens:
        await connection.execute("UPDATE analytics.journals SET owner = $1", token)
        assert await ledger_of(claimed).open(connection) == 0
    await connection.execute("UPDATE analytics.journals SET owner = $1", uuid.uuid4())
    with pytest.raises(JournalTaken):
        await ledger_of(claimed).open(connection)
    await connection.execute("UPDATE analytics.journals SET identity = gen_random_uuid()")
    with pytest.raises(JournalUnknown, match="another database"):
        await ledger_of(claimed).open(connection)


async def test_a_position_beyond_the_folders_unclaimed_records_is_not_taken_over(
    connection: asyncpg.Connection, tmp_path: Path
):
    one = await made(tmp_path, connection)
    ledger = ledger_of(one)
    await ledger.open(connection)
    two = copied(one, "two")
    first = two.ownership.leave_gap(0)
    await flush(ledger, connection, 0, first + 3)
    with pytest.raises(JournalTaken, match="written before the ledger was asked") as taken:
        await ledger_of(two).open(connection)
    assert taken.value.stored_through < first, "its own records from there on are stored nowhere"
    # The other still has the position.
    await flush(ledger, connection, first + 3, first + 4)


async def test_a_copy_leaves_the_position_to_an_original_that_moves_it(
    connection: asyncpg.Connection, tmp_path: Path
):
    one = await made(tmp_path, connection)
    ledger = ledger_of(one)
    await ledger.open(connection)
    await flush(ledger, connection, 0, 1)
    folders = [one.folder.parent / name for name in ("two", "three")]
    for folder in folders:
        shutil.copytree(one.folder, folder)
    second, third = map(journals.claim_folder, folders)
    assert second is not None and third is not None
    two, three = ledger_of(second), ledger_of(third)
    assert await two.open(connection) == await three.open(connection) == 1
    await flush(ledger, connection, 1, 2)
    with pytest.raises(JournalTaken, match="another process is storing"):
        await two.ask(connection)
    await flush(ledger, connection, 2, 3)
    # The original is gone; the first to start and store gets the position.
    again = ledger_of(reopened(third))
    assert await again.open(connection) == 3
    assert await again.ask(connection) == 3
    await flush(again, connection, 3, 1 << 30)
    with pytest.raises(JournalTaken):
        await ledger.ask(connection)


async def test_looking_takes_nothing_over(connection: asyncpg.Connection, tmp_path: Path):
    one = await made(tmp_path, connection)
    ledger = ledger_of(one)
    await ledger.open(connection)
    two = copied(one, "two")
    await flush(ledger, connection, 0, 4)
    for _ in range(2):
        standing = await look(connection, two.layout, two.ownership)
        assert (standing.position, standing.stored_through, standing.may_hold) == (4, 4, True)
    await flush(ledger, connection, 4, 5)


# Positions that no flush has reached.


@pytest.mark.parametrize("rows", ["kept", "gone"])
@pytest.mark.parametrize("while_running", [True, False])
@pytest.mark.parametrize("ahead", some_of([1, 3, 1000], 1))
@pytest.mark.parametrize("before", [0, 8])
async def test_a_position_that_no_flush_has_reached_loses_no_events(
    start: Start,
    connection: asyncpg.Connection,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    before: int,
    ahead: int,
    while_running: bool,
    rows: str,
):
    client = await start()
    for _ in range(before):
        await client.post(batch(2))
        await client.settled()
    other = await asyncpg.connect(database_url)
    lock = other.transaction()
    await lock.start()
    # Events sent now have to wait, while the position is raised past them.
    await other.execute("LOCK TABLE analytics.journals IN EXCLUSIVE MODE")
    for _ in range(4):
        assert (await client.post(batch(10))).status == 200
    if not while_running:
        stopping = asyncio.ensure_future(client.worker.stop())
        await stopping
    await other.execute("UPDATE analytics.journals SET stored_through = stored_through + $1", ahead)
    if rows == "gone":
        await other.execute("DELETE FROM analytics.flushes")
    await lock.commit()
    await other.close()
    if not while_running:
        client = await start(data_dir=client.worker.config.data_dir)
    assert len(await client.events()) == before * 2 + 40
    assert any("treated as not stored" in text for text in errors(caplog))
    assert client.worker.accounts.stored >= 40 and client.worker.accounts.unaccounted == 0
    assert client.worker.journal.stored_through == await connection.fetchval(
        "SELECT max(last_record) FROM analytics.flushes"
    )
    assert (await client.get("/readyz")).status == 200


async def test_the_flush_that_proves_a_position_outlives_its_retention(
    client: Client, connection: asyncpg.Connection
):
    for _ in range(3):
        await client.post(batch(2))
        await client.settled()
    await connection.execute(
        "UPDATE analytics.flushes SET rolled_up_at = now(), flushed_at = now() - interval '1 year'"
    )
    await connection.execute("SELECT public.cleanup_old_data()")
    left = await connection.fetch("SELECT last_record FROM analytics.flushes")
    position = await connection.fetchval("SELECT stored_through FROM analytics.journals WHERE owner IS NOT NULL")
    assert [one["last_record"] for one in left] == [position]
