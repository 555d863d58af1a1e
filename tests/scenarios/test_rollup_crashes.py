"""Rollup workers under kill -9: whichever dies when, each stored event is counted once."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from bench.chaos.load import varied_event
from ingest.store import partitions
from tests.support.amounts import amount
from tests.support.rollup_process import (
    RollupProcess,
    insert_today,
    rolling_up,
    the_leader,
    total,
    verify,
    wait_rolled_up,
)
from tests.support.service import Service, request, running, wait_until

KILLS = amount(12, long=50)
MAX_KILLS = 100
ENOUGH_INTERRUPTED = 3
"""Kills that interrupted a transaction; without them the test proves nothing."""
EVENTS_A_REQUEST = 100
COUNTRIES = ("DE", "US", "BR", "XX")


class VariedClient(threading.Thread):
    """Sends events of several names, people, pages and days, and every fifth request twice.

    `sent` are the acknowledged ids, `repeated` how many of them were sent twice.
    """

    def __init__(self, url: str, chance: random.Random, pause_seconds: float) -> None:
        super().__init__(daemon=True)
        self._url = f"{url}/v1/events"
        self._chance = chance
        self._pause_seconds = pause_seconds
        self._stop_asked = threading.Event()
        self._began = datetime.now(UTC)
        self.sent: set[str] = set()
        self.repeated = 0
        self.failure: str | None = None

    def __enter__(self) -> VariedClient:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asked.set()
        self.join(60)

    def run(self) -> None:
        number = 0
        while not self._stop_asked.wait(self._pause_seconds):
            number += 1
            events = [varied_event(self._chance, self._began) for _ in range(EVENTS_A_REQUEST)]
            body, country = json.dumps(events).encode(), self._chance.choice(COUNTRIES)
            for _ in range(1 + (number % 5 == 0)):
                status, answer = request(self._url, body, 20, {"CF-IPCountry": country})
                if status != 200:
                    self.failure = f"{status}: {answer}"
                    return
            self.sent |= {str(event["id"]) for event in events}
            self.repeated += EVENTS_A_REQUEST * (number % 5 == 0)

    def finish(self) -> None:
        self._stop_asked.set()
        self.join(60)
        assert not self.is_alive() and self.failure is None, self.failure


async def insert_plainly(connection: asyncpg.Connection, number: int) -> int:
    """Insert rows with plain SQL, from now and from the day before yesterday. Returns how many."""
    await connection.execute(
        "INSERT INTO analytics.events (type, name, session_id, user_id, created_at, properties)"
        " SELECT 'system', 'inserted', 'plain-' || n % 7, 'user-' || n, now() - interval '50 hours' * (n % 2), '{}'"
        " FROM generate_series($1::int, $1 + 9) AS n",
        number,
    )
    return 10


async def in_the_middle(connection: asyncpg.Connection) -> bool:
    """Whether the leader has an open transaction now."""
    busy: bool = await connection.fetchval(
        "SELECT count(*) > 0 FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE relation = 'analytics.leases'::regclass AND mode = 'ShareUpdateExclusiveLock' AND granted"
        " AND datname = current_database()"
    )
    return busy


@pytest.mark.long
async def test_random_kills_of_rollup_workers_count_each_event_once(connection, database_url, tmp_path):
    """kill -9 of one of two workers, at random moments while a collector and plain SQL store events of several days:
    minutes, hours and days equal one count over the events, and so do their uniques."""
    chance = random.Random(20260304)
    workers = [RollupProcess(tmp_path / f"rollup-{number}", database_url) for number in range(2)]
    inserted = interrupted = 0
    await partitions.ensure(connection, [(datetime.now(UTC) - timedelta(days=days)).date() for days in range(-1, 5)])
    with ExitStack() as stack:
        service = stack.enter_context(
            running(Service(tmp_path / "collector", database_url, "--trusted-proxies", "127.0.0.1"))
        )
        for worker in workers:
            stack.enter_context(rolling_up(worker))
        client = stack.enter_context(VariedClient(service.url, random.Random(5), 0.05))
        for number in range(MAX_KILLS):
            if number >= KILLS and interrupted >= ENOUGH_INTERRUPTED:
                break
            inserted += await insert_plainly(connection, number * 10)
            if chance.random() < 0.7:
                await connection.execute("SELECT public.process_pending_events()")
            # Half of the kills hit a worker during or just after a transaction; the others at any moment.
            victim = await the_leader(workers) if number % 2 else chance.choice(workers)
            await asyncio.sleep(chance.uniform(0.0, 0.4))
            interrupted += victim.leads and await in_the_middle(connection)
            victim.kill()
            victim.start()
        client.finish()
        service.wait_stored(60)
        await wait_rolled_up(connection, 60)
    for worker in workers:
        assert "Traceback" not in worker.all_logs(), worker.all_logs()
    assert interrupted >= ENOUGH_INTERRUPTED, "too few kills interrupted a transaction"
    events = await connection.fetchval("SELECT count(*) FROM analytics.events")
    assert events == len(client.sent) + inserted and client.repeated > 0
    assert await total(connection, "day") == events
    assert await total(connection, "hour") == events
    assert await total(connection, "minute") == events, "none is so late that its minute is not kept"
    assert await connection.fetchval("SELECT sum(events_stored) FROM analytics.flushes") == events
    assert " 0 differences" in verify(database_url)


async def test_another_takes_over_when_the_leader_is_killed(connection, database_url, tmp_path):
    """Events stored since the leader died are counted by the one on standby."""
    await partitions.ensure_ahead(connection, today=datetime.now(UTC).date(), days_ahead=1)
    first, second = (RollupProcess(tmp_path / f"rollup-{number}", database_url) for number in range(2))
    with rolling_up(first):
        await the_leader([first])
        with rolling_up(second):
            wait_until(second.is_up, 60, "the second worker is up")
            first.kill()
            await insert_today(connection)
            assert await the_leader([second]) is second
            await wait_rolled_up(connection, 30)
            assert await total(connection, "day") == await total(connection, "minute") == 10
            wait_until(lambda: second.metrics()["ingest_rollup_events_total"] == 10, 60, "its metrics tell of it")
            assert second.metrics()["ingest_rollup_leader"] == 1


async def test_sigterm_ends_a_leader_and_one_that_stands_by_with_success(connection, database_url, tmp_path):
    """Both exit with 0, and another takes the lead."""
    await partitions.ensure_ahead(connection, today=datetime.now(UTC).date(), days_ahead=1)
    leader, standby, third = (RollupProcess(tmp_path / f"rollup-{number}", database_url) for number in range(3))
    with rolling_up(leader), rolling_up(standby):
        await the_leader([leader, standby])
        wait_until(lambda: leader.is_up() and standby.is_up(), 60, "both workers are up")
        await insert_today(connection)
        assert (leader.stop(), standby.stop()) == (0, 0), leader.all_logs() + standby.all_logs()
        assert "Traceback" not in leader.all_logs() + standby.all_logs()
    with rolling_up(third):
        await the_leader([third])
        await wait_rolled_up(connection, 30)
        assert await total(connection, "hour") == 10
