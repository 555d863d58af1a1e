"""Replays of refused events: done only once their rows are stored, and as often as it takes."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import ingest.journal.replays
from ingest.base import config_sources
from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.rejected_replay import replay_on
from ingest.intake.dedupe import DedupeWindow
from ingest.journal.open_record import OpenRecord
from ingest.postgres import connections
from tests.support.collector import Client, Start
from tests.support.events import batch
from tests.support.service import Service, running, wait_until

REFUSE = "ALTER TABLE analytics.events ADD CONSTRAINT no_bad CHECK (NOT properties ? 'bad') NOT VALID"
ALLOW = "ALTER TABLE analytics.events DROP CONSTRAINT IF EXISTS no_bad"


async def replay(client: Client, reason: str | None = "database_refused") -> tuple[int, int]:
    config = client.worker.config
    assert config.database_url is not None
    return await replay_with(config, config.database_url, reason)


async def replay_with(config: Config, url: str, reason: str | None) -> tuple[int, int]:
    connection = await connections.connect(url, purpose="tests")
    try:
        return await replay_on(connection, config, reason, None)
    finally:
        await connections.close(connection)


async def not_replayed(connection: asyncpg.Connection) -> int:
    found = await connection.fetchval("SELECT count(*) FROM analytics.rejected_events WHERE replayed_at IS NULL")
    assert isinstance(found, int)
    return found


def bad(count: int) -> list[dict[str, Any]]:
    return [{**one, "properties": {"bad": n}} for n, one in enumerate(batch(count))]


async def test_events_refused_by_the_table_are_stored_by_a_replay_once_the_cause_is_gone(
    client: Client, connection: asyncpg.Connection
):
    """Their ids are not in the window of recent ids by then."""
    await connection.execute(REFUSE)
    events = bad(650)
    await client.post([*events, *batch(3)])
    assert len(await client.events()) == 3 and await not_replayed(connection) == 650
    await connection.execute(ALLOW)
    assert await replay(client) == (650, 0)
    # Immediately, not only when the journal gets to it.
    stored = await connection.fetch("SELECT id::text FROM analytics.events WHERE properties ? 'bad'")
    assert sorted(one["id"] for one in stored) == sorted(one["id"] for one in events)
    assert await not_replayed(connection) == 0
    assert client.worker.accounts.duplicate_at_door == 0
    assert await replay(client) == (0, 0)


@pytest.mark.parametrize("again", ["client", "replay"])
async def test_a_refused_event_is_no_duplicate_when_it_is_sent_again(
    client: Client, connection: asyncpg.Connection, again: str
):
    await connection.execute(REFUSE)
    (event,) = bad(1)
    for _ in range(2):
        await client.post(event)
        await client.settled()
    assert client.worker.accounts.duplicate_at_door == 0, "none of it is stored"
    await connection.execute(ALLOW)
    if again == "client":
        assert (await client.post(event)).json() == {"accepted": 1, "rejected": []}
        assert [str(one["id"]) for one in await client.events()] == [event["id"]]
    # Stored in the meantime, or by the first of the two: the same event, and done.
    assert await replay(client) == (2, 0)
    assert [str(one["id"]) for one in await client.events()] == [event["id"]]
    assert await not_replayed(connection) == 0


async def test_an_event_refused_again_can_be_replayed_again_and_is_kept_once(
    client: Client, connection: asyncpg.Connection
):
    await connection.execute(REFUSE)
    await client.post(bad(120))
    await client.settled()
    for _ in range(3):
        assert await replay(client) == (0, 120)
        assert await not_replayed(connection) == len(await client.rejected()) == 120
    await connection.execute(ALLOW)
    assert await replay(client) == (120, 0)
    assert len(await client.events()) == 120 and await not_replayed(connection) == 0


async def test_an_event_without_an_id_that_is_refused_again_is_not_replayed_forever(
    client: Client, connection: asyncpg.Connection
):
    """In a payload with several events, those without ids get new ones each time."""
    await connection.execute(
        "INSERT INTO analytics.rejected_events (reason, route, payload) VALUES ('malformed_json', '/v1/events', $1)",
        json.dumps({"batch": [{"name": "a", "properties": {"bad": 1}}, {"name": "b", "properties": {"bad": 2}}]}),
    )
    await connection.execute(REFUSE)
    async with asyncio.timeout(60):
        await replay(client, None)
    assert await client.events() == []


async def test_a_replay_is_not_marked_while_its_row_is_not_stored(
    start: Start, connection: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ingest.journal.replays, "WAIT_SECONDS", 0.5)
    client = await start()
    await connection.execute(REFUSE)
    await client.post(bad(40))
    await client.settled()
    await connection.execute(ALLOW)
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("LOCK TABLE analytics.events IN EXCLUSIVE MODE")
        assert await replay(client) == (0, 40)
        assert await not_replayed(connection) == 40
        # Again, while the first is still on its way.
        assert await replay(client) == (0, 40)
    await other.close()
    assert len(await client.events()) == 40
    assert await replay(client) == (40, 0)
    assert len(await client.events()) == 40 and await not_replayed(connection) == 0


@pytest.mark.long
async def test_a_collector_that_dies_before_it_stores_a_replay_loses_nothing(
    database_url: str, connection: asyncpg.Connection, tmp_path: Path
):
    service = Service(tmp_path / "data", database_url)
    config = config_sources.load({"database_url": database_url, "data_dir": service.data_dir}, {}, tmp_path)

    def run() -> tuple[int, int]:
        return asyncio.run(replay_with(config, database_url, None))

    with running(service):
        await connection.execute(REFUSE)
        service.post("/v1/events", bad(30))
        service.wait_stored()
        await connection.execute(ALLOW)
        lock = connection.transaction()
        await lock.start()
        await connection.execute("LOCK TABLE analytics.events IN EXCLUSIVE MODE")
        running_replay = asyncio.ensure_future(asyncio.to_thread(run))
        await asyncio.to_thread(
            wait_until, lambda: service.metrics()["ingest_events_pending"] == 30, 20, "they are accepted"
        )
        service.kill()
        with pytest.raises(IngestError, match="went away"):
            await running_replay
        await lock.rollback()
        assert await not_replayed(connection) == 30
        await asyncio.to_thread(service.start)
        await asyncio.to_thread(service.wait_stored)
        assert await asyncio.to_thread(run) == (30, 0)
    assert await not_replayed(connection) == 0
    assert await connection.fetchval("SELECT count(*) FROM analytics.events") == 30


@pytest.mark.parametrize("seed", range(4))
async def test_in_any_order_every_event_is_eventually_stored_once(
    client: Client, connection: asyncpg.Connection, seed: int
):
    """Rules come and go while events are sent, sent again and replayed."""
    chance = random.Random(seed)
    sent: list[dict[str, Any]] = []
    for _ in range(25):
        match chance.choice(["send", "send", "again", "replay", "refuse", "allow", "settle"]):
            case "send":
                new = [chance.choice([bad(1), batch(1)])[0] for _ in range(chance.randint(1, 20))]
                sent += new
                assert (await client.post(new)).status == 200
            case "again" if sent:
                assert (await client.post(chance.choices(sent, k=5))).status == 200
            case "replay":
                await replay(client, None)
            case "refuse":
                await connection.execute(f"{ALLOW}; {REFUSE}")
            case "allow":
                await connection.execute(ALLOW)
            case "settle":
                await client.settled()
    await client.settled()
    await connection.execute(ALLOW)
    waiting = await not_replayed(connection)
    assert await replay(client, None) == (waiting, 0)
    assert sorted(str(one["id"]) for one in await client.events()) == sorted(one["id"] for one in sent)
    assert await not_replayed(connection) == 0


def test_the_window_forgets_the_given_keys():
    window = DedupeWindow(4)
    keys = [uuid.uuid4().bytes for _ in range(3)]
    for at, key in enumerate(keys):
        record = OpenRecord(at + 1)
        record.keys, record.outcome = [key], True
        window.begin([key], record)
        window.settle(record)
    assert all(map(window.seen, keys))
    window.forget([keys[0], keys[2], bytes(16)])
    assert [window.seen(key) for key in keys] == [False, True, False]
    window.clear()
    assert not any(map(window.seen, keys)) and len(window) == 0


def test_watches_end_once_and_leave_nothing_behind():
    async def check() -> None:
        replays = ingest.journal.replays.Replays()
        one, two, three = (replays.watch(at, [bytes([at]) * 16]) for at in (1, 2, 3))
        assert replays.keys() == {bytes([at]) * 16 for at in (1, 2, 3)}
        replays.flushed(2, {bytes([2]) * 16: "no"})
        assert (await ingest.journal.replays.outcome(one), one.refused) == (True, {})
        assert (await ingest.journal.replays.outcome(two), two.refused) == (True, {bytes([2]) * 16: "no"})
        replays.flushed(5, None)
        assert not await ingest.journal.replays.outcome(three), "what that flush refused is unknown"
        assert not replays._watches

    asyncio.run(check())
