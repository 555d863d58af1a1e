"""The certificate of the accounting: it is given while the aggregates have every event once, and not otherwise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.rollup import certificate, rebuild
from ingest.rollup.buckets import Room
from ingest.rollup.certificate import AccountsDiffer
from ingest.rollup.rollup import Rollup
from tests.support.aggregates import Event, Ledger, make_partitions

NOW = datetime.now(UTC)
HOUR = NOW.replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
ROOM = Room(100, 100)
EVENTS = [Event(HOUR), Event(HOUR + timedelta(minutes=59), "pong"), Event(HOUR, device_type="bot")]
CHANGE = "UPDATE analytics.event_aggregations SET event_count = event_count + 1 WHERE time_bucket = $1 AND {}"


@pytest.fixture
async def ledger(connection: asyncpg.Connection) -> Ledger:
    """Of events of an hour that is over, some of them of bots, all rolled up."""
    await make_partitions(connection, sorted({HOUR.date(), NOW.date(), (HOUR - timedelta(hours=1)).date()}))
    ledger = Ledger(connection)
    await ledger.flush(EVENTS)
    await roll_up(connection)
    return ledger


async def roll_up(connection: asyncpg.Connection) -> None:
    assert await Rollup(DIMENSION_NAMES, ROOM).run_once(connection) is not None


async def test_it_is_given_for_the_hours_that_are_over(connection: asyncpg.Connection, ledger: Ledger):
    compared = await certificate.compare(connection, NOW)
    assert [one.hour for one in compared] == [HOUR + timedelta(hours=number) for number in (-1, 0, 1)]
    assert compared[1] == (HOUR, len(EVENTS), len(EVENTS))
    assert await certificate.certify(connection, NOW) == certificate.HOURS


@pytest.mark.parametrize("row", ["dimensions = '{}'", """dimensions = '{"device_type": "bot"}'"""])
async def test_it_is_refused_if_anything_was_counted_twice(connection: asyncpg.Connection, ledger: Ledger, row: str):
    await connection.execute(CHANGE.format(row), HOUR)
    with pytest.raises(AccountsDiffer, match=r"but 3 are stored and rolled up \(1 of 3 hours differ\)"):
        await certificate.certify(connection, NOW)


async def test_it_is_refused_if_an_event_was_not_counted(connection: asyncpg.Connection, ledger: Ledger):
    await connection.execute(
        "DELETE FROM analytics.event_aggregations WHERE granularity = 'hour' AND event_name = 'pong'"
    )
    with pytest.raises(AccountsDiffer, match="count 2 events"):
        await certificate.certify(connection, NOW)
    await rebuild.note(connection, HOUR, HOUR + rebuild.HOUR)
    assert await certificate.certify(connection, NOW) == 2, "what is due to be rebuilt is left out"
    await rebuild.run_once(connection, DIMENSION_NAMES, ROOM)
    assert await certificate.certify(connection, NOW) == 3


async def test_events_that_are_not_rolled_up_yet_are_no_difference(connection: asyncpg.Connection, ledger: Ledger):
    await ledger.flush([Event(HOUR), Event(HOUR)])
    assert (await certificate.compare(connection, NOW))[1] == (HOUR, 3, 3)
    await roll_up(connection)
    assert (await certificate.compare(connection, NOW))[1] == (HOUR, 5, 5)


async def test_hours_that_go_on_are_not_compared(connection: asyncpg.Connection, ledger: Ledger):
    await connection.execute(CHANGE.format("true"), HOUR)
    assert await certificate.certify(connection, HOUR + timedelta(minutes=59)) == 3
    assert await certificate.certify(connection, HOUR + timedelta(hours=4)) == 3
