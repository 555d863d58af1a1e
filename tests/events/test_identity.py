"""One event is one row, however often and whenever it is delivered, by any clock and to any worker; correct times are
not changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import pytest

from ingest.events import row
from ingest.journal.segments import Layout, Record
from ingest.store import event_keys, partitions
from ingest.store.event_keys import Keyed
from tests.support.clocks import Clock
from tests.support.collector import Client, Start

BASE = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
KNOWN = "SELECT id, coalesce(client_time, created_at) AS own, count(*) AS n FROM analytics.events GROUP BY 1, 2"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Clock]]:
    Clock.at = BASE
    monkeypatch.setattr("ingest.intake.intake.datetime", Clock)
    yield Clock


class Happening(NamedTuple):
    """A client's event: how far the client's clock is ahead, when it happened by the server's clock, its id, and
    whether it has a timestamp."""

    ahead: timedelta
    happened: datetime
    id: str
    timed: bool = True

    @property
    def own(self) -> datetime | None:
        """The time that the client gives it."""
        return self.happened + self.ahead if self.timed else None

    def sent(self) -> dict[str, Any]:
        time = {"timestamp": self.own.isoformat()} if self.own is not None else {}
        return {"name": "a", "id": self.id, **time}


def sent_at(rng: random.Random, one: Happening, received_at: datetime) -> str | int | None:
    """A sentAt: fixed at capture, new for each delivery, or nonsense."""
    return rng.choice(
        (
            (one.happened + one.ahead).isoformat(),
            (received_at + one.ahead).isoformat(),
            (received_at + one.ahead).isoformat(),
            rng.choice((None, 0, "soon", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "1970-01-01T00:00:00Z")),
        )
    )


def happenings(rng: random.Random, count: int) -> list[Happening]:
    """Events with clocks that are correct, slightly off, or off by more than a year; some ids twice, at different
    times."""
    found: list[Happening] = []
    for n in range(count):
        ahead = rng.choice((timedelta(), timedelta(minutes=rng.uniform(-400, 400)), DAY * rng.uniform(-400, 400)))
        happened = BASE - DAY * rng.uniform(0, 20) - timedelta(microseconds=n)
        known = rng.choice(found).id if found and rng.random() < 0.3 else str(uuid4())
        timed = rng.random() < 0.85 or any(one.id == known and not one.timed for one in found)
        found.append(Happening(ahead, happened, known, timed))
    return found


async def deliver(client: Client, events: Sequence[dict[str, Any]], sent: object) -> list[bool]:
    """Send events, and return whether each was accepted."""
    answer = await client.post({"batch": events, "sentAt": sent})
    refused = {one["index"] for one in answer.json()["rejected"]}
    assert answer.status in (200, 400), answer
    return [place not in refused for place in range(len(events))]


@pytest.mark.parametrize("seed", range(4))
async def test_each_event_is_stored_once_whatever_its_clock_and_its_deliveries(
    start: Start, clock: type[Clock], seed: int
):
    """Deliveries up to 30 days late, to workers with and without a window of recent ids, one of them restarted."""
    rng = random.Random(seed)
    workers = [await start(), await start(dedupe_window_events=0), await start(dedupe_window_events=50)]
    events = happenings(rng, 60)
    deliveries = sorted(
        (one.happened + DAY * rng.choice((0, 0, rng.uniform(0, 0.2), rng.uniform(0, 30))), rng.random(), one)
        for one in events
        for _ in range(rng.randint(1, 5))
    )
    accepted: set[Happening] = set()
    for count, (received_at, _, one) in enumerate(deliveries):
        clock.at = received_at
        client = rng.choice(workers)
        (taken,) = await deliver(client, [one.sent()], sent_at(rng, one, received_at))
        if taken:
            accepted.add(one)
        if count == len(deliveries) // 2:
            await workers[2].worker.stop()
            workers[2] = await start(data_dir=workers[2].worker.config.data_dir)
    for client in workers:
        await client.settled()

    rows = await workers[0].fetch(
        "SELECT id, created_at, coalesce(nullif(client_time, '-infinity'), created_at) AS own,"
        " client_time IS DISTINCT FROM '-infinity' AS timed FROM analytics.events"
    )
    found = [(str(row["id"]), row["own"] if row["timed"] else BASE) for row in rows]
    assert sorted(found) == sorted((one.id, one.own or BASE) for one in accepted)
    times = {key: row["created_at"] for key, row in zip(found, rows, strict=True)}
    right = [one for one in events if one.timed and not one.ahead]
    assert right and set(right) <= accepted
    assert [times[one.id, one.happened] for one in right] == [one.happened for one in right]
    # No event whose time is possible from its first to its last delivery is refused or corrected.
    steady = [one for one in events if one.own and -40 * DAY < one.ahead < timedelta(hours=1)]
    assert set(steady) <= accepted and all(times[one.id, one.own] == one.own for one in steady)
    assert len({one for one in accepted if one.own and times[one.id, one.own] != one.own}) > 3


# Two workers store two deliveries of the same events at once.

FUTURE = timedelta(hours=2)
DELIVERIES = {
    # (when it is received, the client's sentAt) of an event with the timestamp FUTURE.
    "corrected": (timedelta(), FUTURE),
    "corrected again": (timedelta(minutes=1), FUTURE),
    "possible by now": (timedelta(hours=1, minutes=30), FUTURE),
}


@pytest.mark.parametrize(
    ("first", "second", "timed"),
    [*[(one, other, True) for one in DELIVERIES for other in DELIVERIES], ("corrected", "corrected again", False)],
)
async def test_deliveries_of_one_event_that_are_stored_at_once(
    start: Start, clock: type[Clock], connection: asyncpg.Connection, first: str, second: str, timed: bool
):
    workers = [await start(), await start(dedupe_window_events=0)]
    own = (BASE + FUTURE).isoformat()
    total = 0
    for _ in range(6):
        events = [{"name": "a", "id": str(uuid4()), **({"timestamp": own} if timed else {})} for _ in range(40)]
        total += len(events)
        async with connection.transaction():
            await connection.execute("LOCK TABLE analytics.events IN ACCESS EXCLUSIVE MODE")
            for client, way in zip(workers, (first, second), strict=True):
                after, sent = DELIVERIES[way]
                clock.at = BASE + after
                assert all(await deliver(client, events, (BASE + sent).isoformat()))
                # In a different order, so that each may wait for the other.
                events = events[::-1]
        for client in workers:
            await client.settled()
    rows = await connection.fetch(KNOWN)
    assert len(rows) == total and {row["n"] for row in rows} == {1}
    assert sum(client.worker.accounts.duplicate_in_database for client in workers) == total


async def test_both_deliveries_in_one_flush(start: Start, clock: type[Clock], connection: asyncpg.Connection):
    """In either order in the journal, without a dedupe window, and without a break between them."""
    client = await start(dedupe_window_events=0)
    own = (BASE + FUTURE).isoformat()
    for ways in (
        ("corrected", "possible by now"),
        ("possible by now", "corrected"),
        ("corrected", "corrected again"),
    ):
        event = {"name": " ".join(ways), "id": str(uuid4()), "timestamp": own}
        async with connection.transaction():
            await connection.execute("LOCK TABLE analytics.events IN ACCESS EXCLUSIVE MODE")
            for way in ways:
                after, sent = DELIVERIES[way]
                clock.at = BASE + after
                assert all(await deliver(client, [event, event], (BASE + sent).isoformat()))
        await client.settled()
    rows = await connection.fetch(KNOWN)
    assert len(rows) == 3 and {row["n"] for row in rows} == {1}
    accounts = client.worker.accounts
    assert (accounts.stored, accounts.duplicate_at_door, accounts.duplicate_in_database) == (3, 6, 3)


PLAIN = "INSERT INTO analytics.events (type, name, created_at, id, batch_id) VALUES ('system', 'a', $1, $2, 7)"


async def waits_for_a_lock(connection: asyncpg.Connection, pid: int) -> None:
    """Return when this Postgres backend waits for an advisory lock."""
    query = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND locktype = 'advisory' AND NOT granted)"
    async with asyncio.timeout(60):
        while not await connection.fetchval(query, pid):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("corrected_first", [True, False])
async def test_the_later_of_two_flushes_sees_what_the_other_did(
    connection: asyncpg.Connection, database_url: str, corrected_first: bool
):
    own, id_ = BASE, uuid4()
    await partitions.ensure(connection, [own.date()])
    keyed = [Keyed(str(id_), (own - DAY).isoformat(), own.isoformat(), b"")]
    first, second = await asyncpg.connect(database_url), await asyncpg.connect(database_url)

    async def store_corrected(one: asyncpg.Connection) -> bool:
        return bool(await event_keys.claim(one, keyed))

    async def store_plain(one: asyncpg.Connection) -> bool:
        await one.execute(PLAIN, own, id_)
        return not await event_keys.drop_known(one, [own.isoformat()[:16]], 7, 7)

    ways = (store_corrected, store_plain) if corrected_first else (store_plain, store_corrected)
    try:
        await first.execute("BEGIN")
        assert await ways[0](first)
        await second.execute("BEGIN")
        later = asyncio.create_task(ways[1](second))
        await waits_for_a_lock(connection, second.get_server_pid())
        await first.execute("COMMIT")
        assert not await later
        await second.execute("COMMIT")
    finally:
        await first.close()
        await second.close()
    left = "SELECT (SELECT count(*) FROM analytics.events) + (SELECT count(*) FROM analytics.event_keys)"
    assert await connection.fetchval(left) == 1


async def test_flushes_of_plain_events_do_not_wait_for_each_other(connection: asyncpg.Connection, database_url: str):
    other = await asyncpg.connect(database_url)
    untimed = [Keyed(str(uuid4()), BASE.isoformat(), "-infinity", b"") for _ in range(2)]
    try:
        async with connection.transaction(), other.transaction(), asyncio.timeout(60):
            for one, keyed in ((connection, untimed[:1]), (other, untimed[1:])):
                assert await event_keys.claim(one, keyed) == keyed
                assert await event_keys.drop_known(one, ["2026-01-02T03:04"], 7, 7) == 0
    finally:
        await other.close()


# One id for several events.


@pytest.mark.parametrize("window", [0, 1000])
async def test_different_events_with_one_id_are_different_events(start: Start, clock: type[Clock], window: int):
    client = await start(dedupe_window_events=window)
    own = [(BASE - timedelta(minutes=n)).isoformat() for n in range(3)]
    events = [{"name": f"n{n}", "id": "the same", "timestamp": time} for n, time in enumerate(own)]
    untimed = {"name": "untimed", "id": "the same"}
    answers = [(await client.post(body)).json() for body in (events[0], events, untimed, [untimed, *events])]
    assert [answer["accepted"] for answer in answers] == [1, 3, 1, 4]
    assert [answer.get("duplicates", 0) for answer in answers] == ([0, 1, 0, 4] if window else [0] * 4)
    assert await client.names() == ["n0", "n1", "n2", "untimed"]
    accounts = client.worker.accounts
    assert (accounts.stored, accounts.duplicate_at_door + accounts.duplicate_in_database) == (4, 5)
    page = await client.metrics()
    assert page["ingest_events_unaccounted"] == 0


@pytest.mark.parametrize("batched", [True, False])
async def test_events_of_one_id_that_are_received_at_one_time(start: Start, clock: type[Clock], batched: bool):
    """Each was sent the moment it happened, by a clock at about 1970, so they all happened on arrival."""
    client = await start(dedupe_window_events=0)
    moments = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=n) for n in range(50)]
    events = [
        {"name": f"n{n}", "id": "m", "timestamp": at.isoformat(), "sentAt": at.isoformat()}
        for n, at in enumerate(moments)
    ]
    events.append({"name": "untimed", "id": "m"})
    for _ in range(2):
        for body in [events] if batched else events:
            clock.at = BASE
            assert (await client.post(body)).status == 200
    rows = await client.fetch("SELECT name, created_at FROM analytics.events")
    assert sorted(row["name"] for row in rows) == sorted(str(event["name"]) for event in events)
    assert len({row["created_at"] for row in rows}) == len(events)
    assert max(row["created_at"] for row in rows) < BASE + timedelta(milliseconds=10)
    assert client.worker.accounts.duplicate_in_database == len(events)


async def test_each_message_is_corrected_by_its_own_sent_at(start: Start, clock: type[Clock]):
    client = await start()
    ahead = (timedelta(hours=5), DAY * 30, -DAY * 200, timedelta())
    messages = []
    for n, skew in enumerate(ahead):
        stamps = {"timestamp": (BASE - timedelta(minutes=n) + skew).isoformat(), "sentAt": (BASE + skew).isoformat()}
        messages.append({"type": "track", "event": f"n{n}", "messageId": f"m{n}", **stamps})
    assert (await client.post({"batch": messages}, "/v1/batch")).json()["rejected"] == []
    natives = [{"name": f"native {m['event']}", **{k: m[k] for k in ("timestamp", "sentAt")}} for m in messages]
    assert (await client.post({"batch": natives, "sentAt": BASE.isoformat()})).json()["rejected"] == []
    rows = {row["name"]: row["created_at"] for row in await client.events()}
    for n in range(len(ahead)):
        for name in (f"n{n}", f"native n{n}"):
            assert abs(rows[name] - (BASE - timedelta(minutes=n))) < timedelta(seconds=1), name


# Events that the table refused.


@pytest.mark.parametrize("window", [0, 1000])
async def test_an_event_that_the_table_refused_is_new_when_sent_again(
    start: Start, clock: type[Clock], connection: asyncpg.Connection, window: int
):
    client = await start(dedupe_window_events=window)
    constraint = "ALTER TABLE analytics.events ADD CONSTRAINT no_poison CHECK (name NOT LIKE 'poison%') NOT VALID"
    await connection.execute(constraint)
    own = (BASE + FUTURE).isoformat()
    events = [{"name": name, "id": name, "timestamp": own} for name in ("poison", "good")]
    events += [{"name": name, "id": name} for name in ("poison too", "good too")]
    events += [{"name": "poison of now", "id": "p", "timestamp": BASE.isoformat()}]
    for _ in range(2):
        clock.at = BASE
        assert all(await deliver(client, events, own))
        assert await client.names() == ["good", "good too"]
    await connection.execute("ALTER TABLE analytics.events DROP CONSTRAINT no_poison")
    clock.at = BASE + timedelta(minutes=1)
    assert all(await deliver(client, events, (BASE + FUTURE + timedelta(minutes=1)).isoformat()))
    assert await client.names() == ["good", "good too", "poison", "poison of now", "poison too"]
    # Those kept in rejected_events are still the same events.
    query = "SELECT payload, received_at, sent_at FROM analytics.rejected_events ORDER BY id"
    for kept in await client.fetch(query):
        headers = {"X-Ingest-Received-At": kept["received_at"].isoformat()}
        if kept["sent_at"] is not None:
            headers["X-Ingest-Sent-At"] = kept["sent_at"].isoformat()
        async with (
            client.control() as session,
            session.post("http://worker/v1/events", data=kept["payload"], headers=headers) as response,
        ):
            assert response.status == 200
    assert await client.names() == ["good", "good too", "poison", "poison of now", "poison too"]
    times = {row["name"]: row["created_at"] for row in await client.events()}
    assert all(abs(at - BASE) < timedelta(minutes=2) for at in times.values()), times


async def test_keys_are_deleted_with_their_events(connection: asyncpg.Connection):
    now = datetime.now(UTC)
    for days in (0, 89, 92, 400):
        await connection.execute(
            "INSERT INTO analytics.event_keys VALUES ('-infinity', gen_random_uuid(), $1)", now - DAY * days
        )
    await connection.execute("SELECT cleanup_old_data()")
    left = await connection.fetch("SELECT created_at FROM analytics.event_keys")
    assert sorted(row["created_at"] for row in left) == [now - DAY * 89, now]


# The contents of a flush.


def record(lines: bytes, columns: tuple[str, ...] = row.EVENT_COLUMNS) -> Record:
    layout = Layout(1, str(uuid4()), columns, row.REJECTED_COLUMNS)
    return Record(
        number=1,
        events=lines.count(b"\n"),
        rejected=0,
        opened_at_us=0,
        stored_through=0,
        event_lines=lines,
        rejected_lines=b"",
        layout=layout,
    )


def line(created: str, client_time: str = "\\N", columns: tuple[str, ...] = row.EVENT_COLUMNS) -> bytes:
    known = {"id": "i", "created_at": created, "client_time": client_time, "properties": '{"-infinity":"\\\\N"}'}
    return ("\t".join(known.get(column, "\\N") for column in columns) + "\n").encode()


def test_plain_and_keyed_lines_are_distinguished():
    plain = [line("2026-01-02T03:04:05.678Z"), line("2026-01-02T03:04:59+00:00"), line("2026-01-03T00:00:00+00:00")]
    keyed = [line("2026-01-04T00:00:00+00:00", "-infinity"), line("2026-01-04T00:00:01+00:00", "1970-01-01T00:00:00")]
    records = [record(b"".join(plain)), record(plain[0] + keyed[0] + plain[1] + keyed[1]), record(b"")]
    found = event_keys.together(map(event_keys.examine, records))
    assert b"".join(found.plain) == b"".join([*plain, plain[0], plain[1]])
    assert found.keyed == [
        Keyed("i", "2026-01-04T00:00:00+00:00", "-infinity", keyed[0]),
        Keyed("i", "2026-01-04T00:00:01+00:00", "1970-01-01T00:00:00", keyed[1]),
    ]
    assert found.minutes == {"2026-01-02T03:04", "2026-01-03T00:00", "2026-01-04T00:00"}
    assert found.days == [date(2026, 1, 2), date(2026, 1, 3), date(2026, 1, 4)]


@pytest.mark.parametrize("columns", [("created_at", "id", "name"), ("name", "id", "created_at"), ("created_at",)])
def test_lines_of_an_older_release_are_all_plain(columns):
    lines = line("2026-01-02T03:04:05.678Z", columns=columns)
    assert event_keys.examine(record(lines, columns)) == ([lines], [], {"2026-01-02T03:04"})


@pytest.mark.parametrize("minutes", [3, 2000])
async def test_only_known_events_of_a_flush_are_dropped(connection: asyncpg.Connection, minutes: int):
    """In a flush over many minutes, with keys that differ from those of its events in only one respect."""
    spans = [datetime(2026, 1, 2, tzinfo=UTC) + timedelta(minutes=n) for n in range(minutes)]
    await partitions.ensure(connection, sorted({at.date() for at in spans}))
    ids = [uuid4() for _ in spans]
    insert = (
        "INSERT INTO analytics.events (type, name, created_at, id, batch_id, client_time)"
        " VALUES ('system', 'a', $1, $2, $3, $4)"
    )
    await connection.executemany(insert, [(at, id_, 7, None) for at, id_ in zip(spans, ids, strict=True)])
    other_batch, corrected = uuid4(), uuid4()
    await connection.execute(insert, spans[0], other_batch, 6, None)
    await connection.execute(insert, spans[0], corrected, 7, datetime(1970, 1, 1, tzinfo=UTC))
    keys = [
        (spans[-1], ids[-1]),
        (spans[1], ids[1]),
        (spans[1], ids[2]),
        (spans[1] + timedelta(microseconds=1), ids[1]),
    ]
    keys += [(spans[0], other_batch), (spans[0], corrected), (datetime(1970, 1, 1, tzinfo=UTC), corrected)]
    await connection.executemany("INSERT INTO analytics.event_keys VALUES ($1, $2, $1)", keys)
    texts = {at.isoformat()[:16] for at in spans}
    async with connection.transaction():
        assert await event_keys.drop_known(connection, texts, 7, 8) == 2
        assert await event_keys.drop_known(connection, texts, 7, 8) == 0
    left = {row["id"] for row in await connection.fetch("SELECT id FROM analytics.events")}
    assert left == {*ids, other_batch, corrected} - {ids[1], ids[-1]}
    assert await event_keys.drop_known(connection, [], 7, 8) == 0
