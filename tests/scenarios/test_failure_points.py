"""Killed at each point where it can die: before and after each write, fsync, rename, COPY, COMMIT, acknowledgement.

The points are found, not listed: those that a run passes. Random kills hardly ever come between two system calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random

import asyncpg
import pytest

from bench.chaos import judge
from bench.chaos.interposed import COMPILER, ROLES
from bench.chaos.world import World, running_world, start
from tests.support.programs import needs
from tests.support.service import wait_until

pytestmark = [needs(COMPILER), pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux'")]

logger = logging.getLogger(__name__)

BATCH = 60
"""Events of some 3 kB: six batches fill a segment."""
ENOUGH_BATCHES = 10
"""Whoever has not got to its point by then does so when it starts."""
MOST_BATCHES = 60
DEADLINE_SECONDS = 120.0
PAIRS = 60
MOST_MISSED = 0.2
"""Of the points or pairs may be such that nobody gets to them again."""
KNOWN = {
    "collector: before write segment",
    "collector: torn write segment",
    "collector: after write segment",
    "collector: before fsync folder",
    "collector: after unlink segment",
    "collector: before send acknowledgement",
    "writer: after send advance",
    "writer: before send rows",
    "writer: before send COMMIT",
    "writer: after send COMMIT",
    "writer: after receive COMMIT",
    "rollup: before send COMMIT",
    "rollup: after receive COMMIT",
}
"""Some that must be among those found."""


class Client:
    """Sends batches until each is acknowledged, and knows the ids of all."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ids: list[str] = []

    async def deliver(self) -> None:
        now = datetime.now(UTC).isoformat()
        events = [
            {"name": "point", "id": str(uuid.uuid4()), "timestamp": now, "properties": {"text": "x" * 3000}}
            for _ in range(BATCH)
        ]
        body = json.dumps(events).encode()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                status, answer = await asyncio.to_thread(self._world.service.post, "/v1/events", body)
            except OSError as error:
                status, answer = 0, repr(error)
            if status == 200:
                break
            assert status in (0, 503), answer
            assert time.monotonic() < deadline, (
                f"not acknowledged: {answer}\n{self._world.service.log_text()[-4000:]}"
            )
            await asyncio.sleep(0.05)
        assert json.loads(answer)["accepted"] == BATCH
        self.ids += [str(event["id"]) for event in events]

    async def check(self, because: object) -> None:
        """Everything is stored, each once, counted, and all is well."""
        await judge.drain(self._world, DEADLINE_SECONDS)
        connection = await asyncpg.connect(self._world.dsn)
        try:
            rows, distinct = await connection.fetchrow(
                "SELECT count(*), count(DISTINCT id) FROM analytics.events WHERE id = ANY ($1::uuid[])", self.ids
            )
            every = await connection.fetchval("SELECT count(*) FROM analytics.events")
            ledger = await connection.fetchval("SELECT sum(events_stored)::bigint FROM analytics.flushes")
            days = await connection.fetchval(
                "SELECT sum(event_count)::bigint FROM analytics.event_aggregations"
                " WHERE granularity = 'day' AND dimensions = '{}'"
            )
        finally:
            await connection.close()
        assert rows == distinct == every == ledger == days == len(self.ids), because
        assert self._world.metrics()["ingest_events_unaccounted"] == 0, because


@asynccontextmanager
async def small_world(postgres) -> AsyncIterator[tuple[World, Client]]:
    async with running_world(postgres, workers=1, rollups=1) as world:
        yield world, Client(world)


async def kill(world: World, role: str) -> None:
    """At no point in particular, and wait until others are in its place."""
    victims: list[int] = []

    def is_there() -> bool:
        return bool(set(world.pids(role)) - set(victims))

    await asyncio.to_thread(wait_until, is_there, DEADLINE_SECONDS, f"there is a {role}")
    victims += await asyncio.to_thread(world.pids, role)
    # So that the next process writes it again, shorter, as it does after some eighty starts.
    for path in (world.folder / "data").rglob("owners"):
        with path.open("ab") as file:
            file.write(b"\n" * 4000)
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(wait_until, is_there, DEADLINE_SECONDS, f"there is a {role} again")


async def found_points(world: World, client: Client) -> tuple[list[str], list[str]]:
    """Points that are passed only by a first start with an empty folder, and those that are passed later: under load,
    or by another start."""
    before = world.interposed.points()
    for _ in range(MOST_BATCHES):
        await client.deliver()
        points = world.interposed.points()
        if points.keys() >= KNOWN:
            break
    for role in ROLES:
        await kill(world, role)
        await client.deliver()
    await client.check("the run that finds the points")
    points = world.interposed.points()
    later = sorted(name for name, passed in points.items() if passed > before.get(name, 0))
    first = sorted(points.keys() - set(later))
    assert points.keys() >= KNOWN, KNOWN - points.keys()
    return first, later


async def die_at(world: World, client: Client, *plans: tuple[str, int]) -> bool:
    """Send until somebody has died at the first point and, after that, at the second. Returns whether they did: some
    points are not passed by each flush or start, such as a rollup's COPY."""
    world.interposed.kill_at(*plans)
    for number in range(1, MOST_BATCHES + 1):
        await client.deliver()
        if number % ENOUGH_BATCHES == 0 and world.interposed.fired < len(plans):
            # However fast the clients were, or slow the writer: each has had its turn.
            await judge.drain(world, DEADLINE_SECONDS)
        fired = world.interposed.fired
        if fired == len(plans):
            break
        if number % ENOUGH_BATCHES == 0:
            # A point of a start, such as those of taking over the journal: there has to be one.
            await kill(world, plans[fired][0].partition(":")[0])
    reached = world.interposed.fired == len(plans)
    world.interposed.kill_at()
    return reached


async def die_at_first_start(world: World, client: Client, point: str) -> None:
    """The same with a collector that begins with an empty folder."""
    old, fresh = world.service, world.new_service(uuid.uuid4().hex)
    world.interposed.kill_at((point, 1))
    start(fresh)
    # Before the old one ends, or it would be started again.
    world.service = fresh
    await asyncio.to_thread(old.stop)
    await client.deliver()
    assert world.interposed.fired == 1, f"nobody got to {point}"
    world.interposed.kill_at()


async def test_killed_at_points_of_each_kind_nothing_is_lost_or_stored_twice(mortal_on_disk):
    """One at random of each kind; all of them, and pairs, are in `make test-system`."""
    async with small_world(mortal_on_disk) as (world, client):
        random = Random()
        chosen = [random.choice(sorted(each for each in KNOWN if each.startswith(role)))
                  for role in ("collector", "writer", "rollup")]  # fmt: skip
        for point in chosen:
            assert await die_at(world, client, (point, 1)), point
        await client.check(chosen)


@pytest.mark.system
@pytest.mark.long
async def test_killed_once_at_each_point(mortal_on_disk):
    async with small_world(mortal_on_disk) as (world, client):
        at_first_start, later = await found_points(world, client)
        missed = set()
        for point in later:
            logger.info("%s", point)
            if not await die_at(world, client, (point, 1)):
                missed.add(point)
            await client.check(point)
        assert missed.isdisjoint(KNOWN) and len(missed) <= len(later) * MOST_MISSED, missed
        for point in at_first_start:
            logger.info("%s, at the first start", point)
            await die_at_first_start(world, client, point)
            await client.check(point)


@pytest.mark.system
@pytest.mark.long
async def test_killed_at_a_point_and_again_while_it_recovers(mortal_on_disk):
    async with small_world(mortal_on_disk) as (world, client):
        _, later = await found_points(world, client)
        random = Random(20261130)
        pairs = random.sample(list(itertools.product(later, later)), PAIRS)
        missed = []
        for first, second in pairs:
            logger.info("%s; then %s", first, second)
            if not await die_at(world, client, (first, 1), (second, 1)):
                missed.append((first, second))
            await client.check((first, second))
        assert len(missed) <= PAIRS * MOST_MISSED, missed
