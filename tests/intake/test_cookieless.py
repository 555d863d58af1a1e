"""Cookieless events at real collectors: one visitor for all of them, whatever restarts, and salts that go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest

import ingest.intake.intake
from ingest.events.drafts import Drafts
from ingest.events.values.visitors import Visitor, visitor_id
from ingest.intake import slices
from ingest.intake.submission import Opened
from ingest.service import maintenance
from tests.support.clocks import Clock
from tests.support.collector import Client, Start

DAY = timedelta(days=1)
PEER = "81.2.69.142"
AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
PAGE = "https://www.example.com/a"
BEHIND_PROXY = {"trusted_proxies": ["127.0.0.1"]}
SALTS = "SELECT day, salt, created_at, erased_at FROM analytics.visitor_salts ORDER BY day"
# Salts are only erased of days that are over by the database's clock, too.
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - 5 * DAY


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Clock]]:
    Clock.at = MIDNIGHT - timedelta(hours=2)
    monkeypatch.setattr("ingest.intake.intake.datetime", Clock)
    monkeypatch.setattr("ingest.service.salts.datetime", Clock)
    yield Clock


async def send(client: Client, name: str, peer: str = PEER, path: str = "/v1/events", **more: Any) -> None:
    event = {"name": name, "url": PAGE, "cookieless": True, "anonymous_id": "from the client", **more}
    answer = await client.post(event, path, X_Forwarded_For=peer, User_Agent=AGENT)
    assert answer.status == 200, answer


async def visitors(client: Client) -> dict[str, str | None]:
    """Name -> anonymous_id of the events of all collectors, none of which may have a session."""
    rows = await client.fetch("SELECT name, anonymous_id, session_id FROM analytics.events")
    assert {row["session_id"] for row in rows} == {None}
    return {row["name"]: row["anonymous_id"] for row in rows}


async def unknown(client: Client) -> float:
    return (await client.metrics())["ingest_cookieless_events_without_visitor_total"]


# One visitor.


async def test_all_collectors_agree_also_after_a_restart(
    start: Start, connection: asyncpg.Connection, clock: type[Clock]
):
    first, second = await asyncio.gather(start(**BEHIND_PROXY), start(**BEHIND_PROXY))
    await send(first, "first")
    await send(second, "second")
    await first.settled()
    await first.worker.stop()
    restarted = await start(**BEHIND_PROXY, data_dir=first.worker.config.data_dir)
    await send(restarted, "restarted")
    await send(restarted, "another", peer="81.2.69.143")
    await second.settled()
    found = await visitors(restarted)
    (row,) = await connection.fetch(SALTS)
    expected = visitor_id(row["salt"], Visitor(PEER, AGENT, "", "example.com"))
    assert found["first"] == found["second"] == found["restarted"] == expected
    assert found["another"] not in (expected, None, "from the client")


async def test_many_that_begin_at_once_agree(start: Start, connection: asyncpg.Connection, clock: type[Clock]):
    clients = await asyncio.gather(*[start(**BEHIND_PROXY) for _ in range(5)])
    for index, client in enumerate(clients):
        await send(client, str(index))
    assert len({(await visitors(client))[str(index)] for index, client in enumerate(clients)}) == 1
    assert len(await connection.fetch(SALTS)) == 1


async def test_addresses_in_full_or_not_make_no_difference(start: Start):
    one, other = await start(**BEHIND_PROXY), await start(**BEHIND_PROXY, anonymise_ip=False)
    for client, name in ((one, "concealed"), (other, "full")):
        await send(client, name)
        answer = await client.post({"name": f"{name} here", "cookieless": True}, User_Agent=AGENT)
        assert answer.status == 200
    await one.settled()
    found = await visitors(other)
    assert found["concealed"] == found["full"] != found["full here"] == found["concealed here"]


async def test_the_write_key_is_the_site(start: Start):
    client = await start(**BEHIND_PROXY, write_keys=("one", "two"))
    await send(client, "one", write_key="one")
    await send(client, "one again", path="/v1/events?write_key=one")
    await send(client, "two", write_key="two")
    found = await visitors(client)
    assert found["one"] == found["one again"] != found["two"]


async def test_events_of_several_senders_in_one_turn_are_several_visitors(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    """With addresses stored in full, single events of one turn go through the steps together."""
    together: list[int] = []
    real = slices.draft_together

    def note(several: list[Opened]) -> Drafts | None:
        together.append(len(several))
        return real(several)

    monkeypatch.setattr(ingest.intake.intake, "draft_together", note)
    client = await start(**BEHIND_PROXY, anonymise_ip=False)
    sent = [
        client.post(
            {"name": f"{kind} {index}", "cookieless": kind == "cookieless"}, X_Forwarded_For=f"81.2.69.{index}"
        )
        for index in range(60)
        for kind in ("cookieless", "other")
    ]
    assert {answer.status for answer in await asyncio.gather(*sent)} == {200}
    found = await visitors(client)
    assert len({visitor for name, visitor in found.items() if name.startswith("cookieless")}) == 60
    assert {visitor for name, visitor in found.items() if name.startswith("other")} == {None}
    assert max(together) > 1


async def test_both_ways_through_the_service_agree(start: Start):
    client = await start(**BEHIND_PROXY)
    assert client.worker._server is not None
    for is_open in (True, False):
        client.worker._server.short_way.is_open = is_open
        for index in range(3):
            await send(client, f"{is_open} {index}")
    found = await visitors(client)
    assert len(found) == 6 and len(set(found.values())) == 1


async def test_a_bot_is_one_and_a_batch_may_share_the_field(start: Start):
    client = await start(**BEHIND_PROXY)
    via = {"X_Forwarded_For": PEER, "User_Agent": "Googlebot/2.1 (+http://www.google.com/bot.html)"}
    body = {"cookieless": True, "batch": [{"name": "a", "session_id": "s"}, {"name": "b", "anonymous_id": "x"}]}
    assert (await client.post(body, **via)).json()["accepted"] == 2
    rows = await client.fetch("SELECT anonymous_id, session_id, device_type FROM analytics.events")
    assert len(rows) == 2 and len({tuple(row) for row in rows}) == 1
    assert rows[0]["device_type"] == "bot" and rows[0]["anonymous_id"] not in (None, "x")


# Over midnight.


async def test_a_page_that_was_open_before_midnight_stays_one_visitor(start: Start, clock: type[Clock]):
    client = await start(**BEHIND_PROXY)
    clock.at = MIDNIGHT - timedelta(minutes=10)
    opened = clock.at.date().isoformat()
    await send(client, "before", cookieless=opened)
    await client.worker.salts.refresh()
    clock.at = MIDNIGHT + timedelta(minutes=5)
    await send(client, "after", cookieless=opened)
    await send(client, "late", timestamp=(MIDNIGHT - timedelta(minutes=1)).isoformat())
    await send(client, "new page", cookieless=clock.at.date().isoformat())
    await send(client, "new")
    clock.at = MIDNIGHT + DAY - timedelta(minutes=5)
    await client.worker.salts.refresh()
    await send(client, "evening", cookieless=opened)
    clock.at = MIDNIGHT + DAY + timedelta(minutes=5)
    await client.worker.salts.refresh()
    # The day before yesterday: it is a visitor of today.
    await send(client, "next day", cookieless=opened)
    await send(client, "new next day")
    found = await visitors(client)
    assert found["before"] == found["after"] == found["late"] == found["evening"]
    assert found["new page"] == found["new"]
    assert found["next day"] == found["new next day"]
    assert len(set(found.values())) == 3
    assert await unknown(client) == 0


async def test_a_database_that_is_away_at_midnight_splits_nobody(
    start: Start, clock: type[Clock], connection: asyncpg.Connection
):
    """Both collectors have tomorrow's salt by then."""
    clock.at = MIDNIGHT - timedelta(hours=1, seconds=1)
    clients = [await start(**BEHIND_PROXY) for _ in range(2)]
    assert len(await connection.fetch(SALTS)) == 1
    clock.at = MIDNIGHT - timedelta(minutes=59)
    for client in clients:
        await client.worker.salts.refresh()
    assert len(await connection.fetch(SALTS)) == 2
    async with connection.transaction():
        await connection.execute("LOCK TABLE analytics.visitor_salts IN ACCESS EXCLUSIVE MODE")
        clock.at = MIDNIGHT + timedelta(seconds=1)
        for name, client in zip("ab", clients, strict=True):
            await send(client, name)
    await clients[0].settled()
    found = await visitors(clients[1])
    assert found["a"] == found["b"] is not None


async def test_salts_are_erased_on_the_day_after_the_next_and_the_row_says_when(
    start: Start, clock: type[Clock], connection: asyncpg.Connection
):
    client = await start(**BEHIND_PROXY)
    days = [(MIDNIGHT + number * DAY).date() for number in range(-1, 3)]
    known: dict[date, bytes] = {}
    for number in range(1, 4):
        # Not between 23 and 24 o'clock, when tomorrow's is made as well.
        clock.at = MIDNIGHT + (number - 1) * DAY + timedelta(hours=1)
        await client.worker.salts.refresh()
        rows = {row["day"]: row for row in await connection.fetch(SALTS)}
        assert list(rows) == days[: number + 1]
        kept = [day for day, row in rows.items() if row["salt"] is not None]
        assert kept == days[number - 1 : number + 1]
        assert [date.fromisoformat(day) for day in sorted(client.worker.visitors.salts)] == kept
        assert all((row["erased_at"] is None) == (day in kept) for day, row in rows.items())
        assert all(row["erased_at"] >= row["created_at"] for day, row in rows.items() if day not in kept)
        # Each is random, and never changes.
        known = {day: rows[day]["salt"] for day in kept} | known
        assert all(rows[day]["salt"] == known[day] for day in kept)
    assert len(set(known.values())) == 4 and {len(salt) for salt in known.values()} == {32}


async def test_old_salts_are_forgotten_though_the_database_is_away(start: Start, clock: type[Clock]):
    client = await start(**BEHIND_PROXY)
    before = set(client.worker.visitors.salts)
    await client.worker._calling.close()
    clock.at = MIDNIGHT + DAY + timedelta(hours=1)
    await client.worker.salts.refresh()
    assert before and not client.worker.visitors.salts
    await send(client, "no salt")
    assert await visitors(client) == {"no salt": None}


async def test_yesterdays_is_not_made_anew(start: Start, clock: type[Clock]):
    clock.at = MIDNIGHT + timedelta(minutes=5)
    client = await start(**BEHIND_PROXY)
    await send(client, "yesterday's", timestamp=(MIDNIGHT - timedelta(minutes=5)).isoformat())
    await send(client, "today's")
    found = await visitors(client)
    assert found["yesterday's"] is None and found["today's"] is not None
    assert await unknown(client) == 1


async def test_a_clock_that_is_ahead_erases_nothing_too_early(
    start: Start, clock: type[Clock], connection: asyncpg.Connection
):
    clock.at = datetime.now(UTC) + 3 * DAY
    today = datetime.now(UTC).date()
    for day in (today, today - DAY, today - 2 * DAY):
        await connection.execute(
            "INSERT INTO analytics.visitor_salts VALUES ($1, sha256($2))", day, str(day).encode()
        )
    await start(**BEHIND_PROXY)
    left = [row["day"] for row in await connection.fetch(SALTS) if row["salt"] is not None]
    assert left[:2] == [today - DAY, today] and today - 2 * DAY not in left


async def test_maintenance_erases_as_well(connection: asyncpg.Connection):
    today = datetime.now(UTC).date()
    for number in range(4):
        await connection.execute(
            "INSERT INTO analytics.visitor_salts VALUES ($1, sha256($2))", today - number * DAY, bytes([number])
        )
    task = next(task for task in maintenance.TASKS if task.name == "visitor-salts")
    settings = maintenance.Settings(1, 90, (), None)  # type: ignore[arg-type]
    assert await task.run(connection, datetime.now(UTC), settings) == "2 salts erased"
    assert await task.run(connection, datetime.now(UTC), settings) == ""
    rows = await connection.fetch(SALTS)
    assert [row["salt"] is None for row in rows] == [True, True, False, False]


# Without a salt.


async def test_events_are_accepted_without_a_salt_and_counted(start: Start, connection: asyncpg.Connection):
    async with connection.transaction():
        await connection.execute("LOCK TABLE analytics.visitor_salts IN ACCESS EXCLUSIVE MODE")
        client = await start(**BEHIND_PROXY)
        await send(client, "early")
    async with asyncio.timeout(60):
        while not client.worker.visitors.salts:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await send(client, "later")
    found = await visitors(client)
    assert found["early"] is None and found["later"] is not None
    assert await unknown(client) == 1


async def test_a_collector_starts_though_the_salts_cannot_be_read(
    start: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
):
    await connection.execute("ALTER TABLE analytics.visitor_salts RENAME TO elsewhere")
    client = await start(**BEHIND_PROXY)
    await send(client, "x")
    assert await visitors(client) == {"x": None}
    async with asyncio.timeout(60):
        while "visitor_salts" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# What is refused.


async def test_a_refused_event_is_kept_without_its_ids_and_replayed_without_a_visitor(start: Start):
    client = await start(**BEHIND_PROXY, anonymise_ip=False)
    ids = {"anonymous_id": "hidden-browser", "session_id": "hidden-session"}
    refused = {"name": "x", "type": "none of these", "cookieless": True, **ids}
    via = {"X_Forwarded_For": PEER, "User_Agent": AGENT}
    assert (await client.post(refused, **via)).status == 400
    shared = {"cookieless": True, "batch": [{"name": "x", "properties": 7, **ids}, {"properties": {}, **ids}]}
    assert (await client.post(shared, **via)).status == 400
    # Cut off, and too long: neither can be read, so they are only counted.
    assert (await client.post(json.dumps(refused).encode()[:-1], **via)).status == 400
    long = {**refused, "properties": {"a": "b" * 70_000}}
    assert (await client.post([{"name": "x"}, {**long, "type": "system"}], **via)).status == 200
    rows = await client.rejected()
    assert len(rows) == 3
    assert all("hidden" not in row["payload"] and "cookieless" in row["payload"] for row in rows)
    async with client.control() as session:
        replayed = json.loads(rows[0]["payload"]) | {"type": "system"}
        headers = {"X-Forwarded-For": PEER, "User-Agent": AGENT}
        async with session.post("http://worker/v1/events", json=replayed, headers=headers) as response:
            assert response.status == 200 and (await response.json())["rejected"] == []
    (row,) = await client.fetch("SELECT anonymous_id, session_id FROM analytics.events WHERE type = 'system'")
    assert tuple(row) == (None, None)


async def test_a_row_that_the_table_refuses_keeps_its_visitor(start: Start, connection: asyncpg.Connection):
    await connection.execute("ALTER TABLE analytics.events ADD CONSTRAINT strict CHECK (name <> 'bad')")
    client = await start(**BEHIND_PROXY)
    await send(client, "bad", session_id="s")
    await send(client, "good")
    good = (await visitors(client))["good"]
    (row,) = await client.rejected()
    kept = json.loads(row["payload"])
    assert (kept["anonymous_id"], kept.get("session_id"), kept.get("cookieless")) == (good, None, None)
