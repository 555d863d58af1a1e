"""What collector and writer say to each other, and what either does when the other one stops."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from ingest.base.refusals import RejectReason
from ingest.journal import places
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal
from ingest.journal.journals import Claimed
from ingest.store import channel, feeder, writer_process
from ingest.store.channel import (
    Channel,
    Close,
    Closed,
    Failed,
    Given,
    Lost,
    Message,
    Newest,
    Open,
    Position,
    Stored,
    Want,
)
from ingest.store.feeder import Feeder
from ingest.store.flush import Outcome, TableRefuses
from ingest.store.follower import Follower
from ingest.store.ledger import Ledger
from ingest.store.writer_process import Settings
from tests.support.journals import LAYOUT, lines_of, put
from tests.support.journals import claimed as claim

MIB = 1 << 20


# The channel.


def some_messages(chance: random.Random) -> list[Message]:
    spans = [places.Span(number, number * 100, number * 100 + 99) for number in range(chance.randrange(50))]
    run = places.Run("/some/segment", LAYOUT, spans)
    return [
        Want(7, chance.randrange(1 << 40)),
        Given(7, [run, run], None, [bytes(16), b"\xff" * 40], chance.random() < 0.5),
        Given(7, [], run, [], True),
        Stored(7, 1 << 39, 5, 4, 3, {bytes(16): "no\nway \U0001f600"}, 0.25),
        Stored(7, 1, 0, 0, 0, None, None),
        Lost(7, [1, 1 << 39]),
        Position(7, 0),
        Failed(7, "x" * chance.randrange(100_000), True, False),
        Open(7, "/a/folder", LAYOUT, uuid.uuid4(), None, True, 12),
        Close(7),
    ]


@pytest.mark.parametrize("seed", range(5))
async def test_messages_arrive_whole_and_in_order_however_they_are_cut(seed: int):
    chance = random.Random(seed)
    messages = chance.choices(some_messages(chance), k=40)
    text = b"".join(channel._LENGTH.pack(len(each)) + each for each in map(channel._encode, messages))
    received: list[Message] = []
    one = Channel(received.append, lambda: None)
    at = 0
    while at < len(text):
        size = chance.choice([1, 2, 3, 50, 5000, 1 << 20])
        one.data_received(text[at : at + size])
        at += size
    assert received == messages


async def test_either_end_learns_of_the_end_of_the_other():
    ended: list[str] = []
    ours, theirs = socket.socketpair()
    one, other = (Channel(lambda message: None, lambda who=who: ended.append(who)) for who in ("one", "other"))  # type: ignore[misc]
    await one.open(ours)
    await other.open(theirs)
    one.close()
    async with asyncio.timeout(60):
        while not ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert ended == ["other"], "who hangs up knows"
    one.send(Close(1))
    other.send(Close(1))


async def test_a_message_that_cannot_be_handled_ends_the_connection(caplog: pytest.LogCaptureFixture):
    """To go on would leave both ends with different ideas of what is stored."""
    handled, ended = list[Message](), list[str]()

    def handle(message: Message) -> None:
        handled.append(message)
        raise ValueError("a bug")

    ours, theirs = socket.socketpair()
    one = Channel(lambda message: None, lambda: ended.append("one"))
    other = Channel(handle, lambda: ended.append("other"))
    await one.open(ours)
    await other.open(theirs)
    for _ in range(3):
        one.send(Close(1))
    async with asyncio.timeout(60):
        while len(ended) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(handled) == 1 and "could not be handled" in caplog.text


# A journal between feeder and follower, without a database.


class Pair:
    """A feeder and a follower that hear each other at once."""

    def __init__(self, claimed: Claimed, most_places: int = 1000, position: int | None = 0) -> None:
        self.lost: list[int] = []
        self.journal = Journal(
            claimed,
            segment_bytes=2000,
            max_bytes=64 * MIB,
            memory_max_bytes=most_places * places.PLACE_BYTES,
            on_lost=self._lose,
        )
        self.journal.recover(position)
        self.accounts = Accounts()
        self.accounts.watch_pending(lambda: self.journal.backlog.events)
        self.kept = {b"kept"}
        self.feeder = Feeder(
            self.journal,
            Ledger(claimed.layout, claimed.ownership),
            self.accounts,
            flush_max_bytes=4000,
            kept=lambda: self.kept,
        )
        self.follower: Follower
        self.sent: list[Message] = []

    def _lose(self, events: int) -> None:
        self.lost.append(events)
        self.accounts.reject(RejectReason.JOURNAL_CORRUPT, events)

    def connect(self) -> None:
        """A writer is there, or there again."""

        def to_writer(message: Message) -> None:
            self.sent.append(message)
            if isinstance(message, Given):
                self.follower.given(message)
            elif isinstance(message, Newest):
                self.follower.note_newest(message.run)

        def to_collector(message: Message) -> None:
            self.sent.append(message)
            self.feeder.receive(message)  # type: ignore[arg-type]

        self.feeder.attach(to_writer)
        opened = self.sent[-1]
        assert isinstance(opened, Open)
        self.follower = Follower(opened, 4000, to_collector)

    async def put(self, *texts: str) -> None:
        for text in texts:
            self.accounts.received += 1
            await put(self.journal, text)

    async def take(self) -> list[str]:
        async with asyncio.timeout(60):
            while not (records := await self.follower.take(4000)):
                await self.follower.wait_readable()
        self.last = records[-1].number
        return lines_of(records)

    def store(self, events: int) -> None:
        self.follower.release(self.last, Outcome(events), 0.1)


@asynccontextmanager
async def pair(folder: Path, **limits: int | None) -> AsyncIterator[Pair]:
    # Whatever is in the lines, the follower reads when it happened.
    layout = msgspec.structs.replace(LAYOUT, event_columns=("created_at",))
    made = Pair(claim(folder, layout), **limits)  # type: ignore[arg-type]
    made.connect()
    try:
        yield made
    finally:
        made.follower.close()
        made.feeder.detach()
        await made.journal.close()


@pytest.mark.parametrize("most_places", [3, 1000])
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_dies_when_each_record_is_read_until_it_is_stored(tmp_path: Path, seed: int, most_places: int):
    """A model: what was taken and not stored when the writer died comes again, in the same order."""
    chance = random.Random(seed)
    async with pair(tmp_path / "j", most_places=most_places) as one:
        waiting: list[str] = []
        taken: list[str] = []
        count = 0
        for _ in range(60):
            what = chance.choice(["put", "put", "take", "store", "die"])
            if what == "put":
                texts = [f"{count + n} {'x' * chance.randrange(900)}" for n in range(chance.randrange(1, 6))]
                count += len(texts)
                await one.put(*texts)
                waiting += texts
            elif what == "take" and waiting and not taken:
                taken = await one.take()
                assert taken == waiting[: len(taken)]
            elif what == "store" and taken:
                one.store(len(taken))
                waiting, taken = waiting[len(taken) :], []
            elif what == "die":
                one.follower.close()
                one.feeder.detach()
                one.connect()
                taken = []
            assert one.journal.backlog.events == len(waiting)
        if taken:
            one.store(len(taken))
            waiting = waiting[len(taken) :]
        while waiting:
            texts = await one.take()
            assert texts == waiting[: len(texts)]
            one.store(len(texts))
            waiting = waiting[len(texts) :]
        assert not one.journal.has_backlog and one.accounts.stored == count and not one.lost
        assert one.accounts.unaccounted == 0


async def test_a_record_that_is_not_there_any_more_is_lost_and_counted(tmp_path: Path):
    async with pair(tmp_path / "j") as one:
        await one.put("a", "b", "c")
        (path,) = sorted((tmp_path / "j").glob("*.segment"))
        content = path.read_bytes()
        path.write_bytes(content.replace(b"b\n", b"B\n"))
        assert await one.take() == ["a", "c"]
        assert one.lost == [1] and one.journal.backlog.events == 2
        assert any(isinstance(message, Lost) for message in one.sent)
        one.store(2)
        assert not one.journal.has_backlog and one.accounts.unaccounted == 0


async def test_keys_of_replays_and_the_newest_record_are_known_to_the_writer(tmp_path: Path):
    async with pair(tmp_path / "j") as one:
        await one.put(*(f"{n} {'x' * 900}" for n in range(12)))
        first = await one.take()
        assert one.follower.is_kept(b"kept") and not one.follower.is_kept(b"other")
        newest = one.follower.newest
        assert newest is not None and lines_of([newest])[0] not in first
        one.store(len(first))


async def test_a_writer_that_dies_before_it_has_asked_the_ledger_is_asked_again(tmp_path: Path):
    """Nothing can be read any more, and only the ledger knows whether it was stored."""
    async with pair(tmp_path / "j") as one:
        await one.put("a", "b")
    for path in (tmp_path / "j").glob("*.segment"):
        path.unlink()
    async with pair(tmp_path / "j", position=None) as one:
        assert one.journal.awaits_ledger and one.journal.backlog.events == 2
        for _ in range(3):
            async with asyncio.timeout(60):
                while not one.follower.awaits_ledger:
                    assert await one.follower.take(4000) == []
                    await one.follower.wait_readable()
            one.follower.close()
            one.feeder.detach()
            one.connect()
            assert not one.follower.awaits_ledger
        one.follower.advance(2)
        assert not one.journal.has_backlog and not one.lost


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't start new thread")]
)
async def test_records_that_cannot_be_looked_up_now_are_looked_up_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    monkeypatch.setattr(feeder, "_RETRY_SECONDS", 0.01)
    async with pair(tmp_path / "j", most_places=2) as one:
        texts = [f"{n} {'x' * 300}" for n in range(8)]
        await one.put(*texts)
        real, failed = one.journal.backlog._reading.run, 0

        async def run(work):
            nonlocal failed
            failed += 1
            if failed <= 3:
                raise error
            return await real(work)

        monkeypatch.setattr(one.journal.backlog._reading, "run", run)
        taken: list[str] = []
        while len(taken) < len(texts):
            some = await one.take()
            one.store(len(some))
            taken += some
        assert taken == texts and failed > 3 and one.accounts.unaccounted == 0


async def test_a_folder_that_cannot_be_read_is_the_trouble_of_its_journal_alone(tmp_path: Path):
    """The writer process goes on for the others, and tries again."""
    ours, theirs = socket.socketpair()
    settings = Settings(
        database_url="postgresql://nobody@127.0.0.1:1/none",
        statement_timeout_seconds=1,
        flush_max_bytes=4000,
        log_level="info",
        log_format="text",
    )
    received: list[Message] = []
    ended: list[bool] = []
    one = Channel(received.append, lambda: ended.append(True))
    serving = asyncio.create_task(writer_process.serve(settings, theirs))
    await one.open(ours)
    for number, folder in ((7, tmp_path / "missing"), (8, tmp_path)):
        one.send(Open(number, str(folder), LAYOUT, uuid.uuid4(), None, False, 0))
    async with asyncio.timeout(60):
        while not ({Failed, Want} <= {type(message) for message in received}):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert {message.journal for message in received if isinstance(message, Failed)} == {7}
    assert {message.journal for message in received if isinstance(message, Want)} == {8}
    one.send(Close(7))
    async with asyncio.timeout(60):
        while Closed(7) not in received:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not ended
    one.close()
    await asyncio.wait_for(serving, 60)


async def test_after_a_failure_the_writer_knows_the_newest_record_of_then(tmp_path: Path):
    """With it, the writer finds out whether the table refuses every row, or only those of one client."""
    async with pair(tmp_path / "j") as one:
        await one.put("first", "second")
        await one.take()
        assert one.follower.newest is None
        for error in (TableRefuses("no row"), ValueError("a bug")):
            text = f"after {error}"
            await one.put(text)
            one.follower.note_failure(error)
            newest = one.follower.newest
            assert newest is not None and lines_of([newest]) == [text]
            assert isinstance(one.sent[-1], Newest)
