"""Leases: one holder at a time, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from ingest.postgres import connections
from ingest.postgres.leases import Lease, LeaseLost, holder
from ingest.rollup import rollup
from ingest.rollup.buckets import Room

EXPIRE = "UPDATE analytics.leases SET expires_at = clock_timestamp() - interval '1 second'"


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await connections.connect(database_url, purpose="other")
    yield opened
    await opened.close()


async def test_a_lease_has_one_holder(connection: asyncpg.Connection):
    first, second = Lease("a", 60), Lease("a", 60)
    assert await first.take(connection)
    assert not await second.take(connection)
    assert await Lease("b", 60).take(connection), "another lease is independent"
    # Taking it again does no harm, as after a lost response.
    assert await first.take(connection)
    assert await first.renew(connection)
    assert not await second.renew(connection)
    await second.release(connection)
    assert not await second.take(connection), "it was not the second's to release"
    await first.release(connection)
    await first.release(connection)
    assert await second.take(connection)
    assert not await first.renew(connection)


async def test_of_many_that_take_it_at_once_one_gets_it(database_url: str, connection: asyncpg.Connection):
    opened = [await connections.connect(database_url, purpose="tests") for _ in range(6)]
    try:
        for _ in range(10):
            leases = [Lease("a", 60) for _ in opened]
            taken = await asyncio.gather(*[lease.take(one) for lease, one in zip(leases, opened, strict=True)])
            assert sum(taken) == 1
            await connection.execute(EXPIRE)
            taken = await asyncio.gather(*[lease.take(one) for lease, one in zip(leases, opened, strict=True)])
            assert sum(taken) == 1
            await connection.execute("DELETE FROM analytics.leases")
    finally:
        for one in opened:
            await one.close()


async def test_an_expired_lease_is_free_but_the_holder_may_renew_it_first(connection: asyncpg.Connection):
    first, second = Lease("a", 60), Lease("a", 60)
    assert await first.take(connection)
    await connection.execute(EXPIRE)
    assert await first.renew(connection)
    assert not await second.take(connection)
    await connection.execute(EXPIRE)
    assert await second.take(connection)
    assert not await first.renew(connection)
    assert not await first.take(connection)
    with pytest.raises(LeaseLost, match="process"):
        async with connection.transaction():
            await first.hold(connection)
    assert await holder(connection, "a") is not None
    assert await holder(connection, "b") is None


async def test_while_a_transaction_holds_it_it_cannot_be_taken_but_can_be_renewed(
    connection: asyncpg.Connection, other: asyncpg.Connection
):
    first, second = Lease("a", 60), Lease("a", 60)
    assert await first.take(connection)
    async with connection.transaction():
        await first.hold(connection)
        await other.execute(EXPIRE)
        async with asyncio.timeout(60):
            assert not await second.take(other), "and does not wait"
            assert await first.renew(other)
        await other.execute(EXPIRE)
    assert await second.take(other)


@pytest.mark.direct(reason="ends a connection that it knows by its name, and a pooler's have everybody's names")
async def test_it_is_kept_as_long_as_the_block_runs(database_url: str, connection: asyncpg.Connection):
    lease = Lease("a", 0.5)
    assert await lease.take(connection)

    async def connect() -> asyncpg.Connection:
        return await connections.connect(database_url, purpose="keeper")

    async def renewals(number: int) -> None:
        seen: set[object] = set()
        async with asyncio.timeout(60):
            while len(seen) < number:
                seen.add(await connection.fetchval("SELECT expires_at FROM analytics.leases"))
                await asyncio.sleep(0.02)

    async with lease.kept(connect) as lost:
        await renewals(3)
        # Its connection may be terminated: it opens another.
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ingest keeper'"
        assert await connection.fetch(end)
        await renewals(3)
        assert not lost.is_set()
        await connection.execute("UPDATE analytics.leases SET token = gen_random_uuid()")
        async with asyncio.timeout(60):
            await lost.wait()
    assert not await connection.fetch("SELECT FROM pg_stat_activity WHERE application_name = 'ingest keeper'")


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
async def test_a_turn_sees_what_was_done_while_it_waited(
    connection: asyncpg.Connection, other: asyncpg.Connection, isolation: str
):
    waiting = asyncio.Event()

    async def second_turn() -> int:
        waiting.set()
        async with rollup.turn(other, isolation):
            return int(await other.fetchval("SELECT count(*) FROM analytics.stale_buckets"))

    async with rollup.turn(connection):
        counting = asyncio.ensure_future(second_turn())
        await waiting.wait()
        await connection.execute("INSERT INTO analytics.stale_buckets VALUES ('day', now()), ('week', now())")
        # Longer than a single wait, so that it has begun another.
        done, _ = await asyncio.wait((counting,), timeout=3)
        assert not done
    assert await counting == 2
    # The limit is not left in the session.
    assert await other.fetchval("SHOW lock_timeout") == await connection.fetchval("SHOW lock_timeout") == "0"


async def test_a_rollup_does_nothing_while_another_holds_the_lease(connection: asyncpg.Connection):
    await connection.execute("INSERT INTO analytics.journals (identity) VALUES (gen_random_uuid())")
    await connection.execute("INSERT INTO analytics.flushes (journal, first_record, last_record) VALUES (1, 1, 1)")
    room = Room(names=10, values=10)
    first, second = Lease("a", 60), Lease("a", 60)
    assert await first.take(connection)
    with pytest.raises(LeaseLost):
        await rollup.Rollup((), room).run_once(connection, second)
    assert await connection.fetchval("SELECT count(*) FROM analytics.flushes WHERE rolled_up_at IS NULL") == 1
    cycle = await rollup.Rollup((), room).run_once(connection, first)
    assert cycle is not None and cycle.flushes == 1
