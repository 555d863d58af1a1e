"""Totals over all names: charts are the same with and without, whatever happens to a bucket afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.dashboard import covering
from ingest.dashboard.series import METRICS, series
from ingest.dashboard.view import View
from ingest.features.stats.times import Part
from ingest.postgres import connections
from ingest.rollup import rebuild, sketches, stale_metrics, totals
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup, turn
from tests.dashboard.test_series import by_sql
from tests.support.aggregates import Event, Ledger, make_partitions, recognise

pytestmark = pytest.mark.long

NOW = datetime.now(UTC)
HOUR = NOW.replace(minute=0, second=0, microsecond=0) - timedelta(days=2, hours=1)
"""When the events begin; an hour later there are none."""
QUIET = HOUR + timedelta(hours=1)
LATER = HOUR + timedelta(hours=20)
ROOM = Room(names=4, values=100)
"""Less than there are names."""
ADDRESS = "ada@example.com"
COUNT = "SELECT count(*) FROM analytics.bucket_totals WHERE granularity = $1 AND time_bucket = $2"


def events() -> list[Event]:
    """People who do several things each, in two hours of different local days."""
    names = (("view", "page_view"), ("click", "user_action"), ("order", "conversion"), ("scroll", "user_action"))
    found = []
    for hour in (HOUR, LATER):
        for place in range(60):
            name, kind = names[place % 4]
            at = hour + timedelta(seconds=50 * place)
            found += [
                Event(at, name, kind, anonymous_id=f"browser {place % 17}", country="DE"),
                Event(at, f"rare {place % 3}", anonymous_id=f"browser {place % 13}"),
                Event(at, name, kind, anonymous_id="robot", device_type="bot"),
            ]
    return found


@pytest.fixture
async def counted(connection: asyncpg.Connection) -> asyncpg.Connection:
    days = {HOUR.date() + timedelta(days=number) for number in range(-1, 4)}
    await make_partitions(connection, sorted(days))
    await connection.execute("CREATE VIEW public.plain AS SELECT * FROM analytics.activity")
    # First, so that there is room for her name.
    await store(connection, [Event(LATER, f"written by {ADDRESS}", user_id=ADDRESS, anonymous_id="hers")])
    await store(connection, events())
    return connection


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await connections.connect(database_url, purpose="tests")
    yield opened
    await opened.close()


async def store(connection: asyncpg.Connection, some: Sequence[Event]) -> None:
    await Ledger(connection).flush(some)
    assert await Rollup(DIMENSION_NAMES, ROOM).run_once(connection) is not None


def view_of(more: str = "") -> View:
    query = f"period=custom&from={HOUR.date() - timedelta(days=1)}&to={NOW.date()}&interval=day{more}"
    zone = "" if "timezone=" in more else "&timezone=Europe/Berlin"
    return View.parse(parse_qsl(query + zone, keep_blank_values=True), NOW, dimensions=DIMENSION_NAMES)


async def chart(connection: asyncpg.Connection, metric: str = "visitors", more: str = "") -> list[int | None]:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = await series(connection, view_of(more), metric, DIMENSION_NAMES, NOW)
    assert found.source == "aggregates"
    return [point.value for point in found.points]


async def check(connection: asyncpg.Connection) -> None:
    """Charts equal SQL on events, with whatever totals there are now, and with all of them; by days of UTC, too,
    which are read from days instead of hours."""
    zones = ("", "&timezone=UTC")
    expected = {
        (metric, zone): await by_sql(connection, view_of(zone), metric) for metric in METRICS for zone in zones
    }
    assert sum(expected["visitors", ""]) > 0
    assert {one: await chart(connection, *one) for one in expected} == expected
    await totals.run_once(connection, NOW)
    assert await connection.fetchval(COUNT, "hour", HOUR) == 1
    assert await connection.fetchval(COUNT, "day", HOUR.replace(hour=0)) == 1
    assert {one: await chart(connection, *one) for one in expected} == expected


async def test_charts_are_the_same_with_and_without(counted: asyncpg.Connection):
    assert await counted.fetchval("SELECT count(*) FROM analytics.bucket_totals") == 0
    await check(counted)
    # Each hour and day that is over, also where nothing happened; once.
    hours = (NOW.replace(minute=0, second=0, microsecond=0) - HOUR) // timedelta(hours=1)
    settled = hours - (NOW.minute < 2)
    assert (
        await counted.fetchval("SELECT count(*) FROM analytics.bucket_totals WHERE granularity = 'hour'") == settled
    )
    assert await totals.run_once(counted, NOW) == 0


async def test_a_total_is_what_its_bucket_has_without_bots(counted: asyncpg.Connection):
    await totals.run_once(counted, NOW)
    row = await counted.fetchrow(
        "SELECT * FROM analytics.bucket_totals WHERE (granularity, time_bucket) = ('hour', $1)", HOUR
    )
    assert (row["event_count"], row["page_views"], row["conversions"]) == (120, 15, 15)
    assert sketches.count_union([row["users_sketch"]]) == 17
    empty = await counted.fetchrow(
        "SELECT * FROM analytics.bucket_totals WHERE (granularity, time_bucket) = ('hour', $1)", QUIET
    )
    assert (empty["event_count"], empty["users_sketch"], empty["sessions_sketch"]) == (0, None, None)


async def test_many_names_are_summed_in_batches(counted: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(totals, "_ROWS_AT_ONCE", 2)
    await check(counted)


async def test_late_events_are_in_it_at_once(counted: asyncpg.Connection):
    await check(counted)
    await store(counted, [Event(at, "late", anonymous_id="newcomer") for at in (HOUR, QUIET)])
    for granularity, bucket, there in (("hour", HOUR, 0), ("hour", QUIET, 0), ("hour", LATER, 1)):
        assert await counted.fetchval(COUNT, granularity, bucket) == there
    assert await counted.fetchval(COUNT, "day", HOUR.replace(hour=0)) == 0
    await check(counted)


async def test_after_a_rebuild(counted: asyncpg.Connection):
    await check(counted)
    await counted.execute("DELETE FROM analytics.events WHERE anonymous_id IN ('browser 1', 'browser 2')")
    assert await rebuild.note(counted, HOUR, HOUR + timedelta(hours=23)) > 0
    await rebuild.run_once(counted, DIMENSION_NAMES, ROOM)
    await check(counted)


async def test_an_hour_whose_events_are_all_gone(counted: asyncpg.Connection):
    await check(counted)
    await counted.execute("DELETE FROM analytics.events WHERE created_at < $1", QUIET)
    await rebuild.note(counted, HOUR, QUIET)
    await rebuild.run_once(counted, DIMENSION_NAMES, ROOM)
    assert await counted.fetchval(COUNT, "hour", HOUR) == 0
    expected = await by_sql(counted, view_of(), "visitors")
    assert await chart(counted) == expected
    await totals.run_once(counted, NOW)
    assert await chart(counted) == expected


async def test_after_people_were_recognised(counted: asyncpg.Connection):
    await check(counted)
    before = await chart(counted)
    # Three browsers turn out to be one person's, after they were counted as three.
    await store(counted, [Event(LATER, user_id="ada", anonymous_id=f"browser {number}") for number in (3, 4, 5)])
    await recognise(counted, DIMENSION_NAMES, ROOM)
    await check(counted)
    assert sum(filter(None, await chart(counted))) < sum(filter(None, before))


async def test_after_an_erasure(counted: asyncpg.Connection):
    await check(counted)
    before = await chart(counted)
    await counted.execute("SELECT public.gdpr_delete_user_data($1, true)", ADDRESS)
    # Their row by name is gone at once, so is the total; the other hour's stays.
    assert await counted.fetchval(COUNT, "hour", LATER) == 0
    assert await counted.fetchval(COUNT, "day", LATER.replace(hour=0)) == 0
    assert await counted.fetchval(COUNT, "hour", HOUR) == 1
    await recognise(counted, DIMENSION_NAMES, ROOM)
    await check(counted)
    assert sum(filter(None, await chart(counted))) == sum(filter(None, before)) - 1


# Which are used.


async def spoil(connection: asyncpg.Connection) -> None:
    """Totals that nobody could mistake for right."""
    await totals.run_once(connection, NOW)
    await connection.execute(
        "UPDATE analytics.bucket_totals SET event_count = 5000, page_views = 1000, conversions = 0"
    )
    many = sketches.dump(sketches.new(f"nobody {number}" for number in range(150)))
    await connection.execute(
        "UPDATE analytics.bucket_totals SET users_sketch = $1 WHERE time_bucket = $2", many, LATER
    )


async def test_totals_are_used(counted: asyncpg.Connection):
    visitors = await chart(counted)
    await spoil(counted)
    assert max(filter(None, await chart(counted))) >= 150 > max(filter(None, visitors))
    assert max(filter(None, await chart(counted, "page_views"))) >= 1000


@pytest.mark.parametrize("more", ["&event=view", "&country=DE", "&device_type=bot"])
async def test_they_are_not_used_for_less_than_everything(counted: asyncpg.Connection, more: str):
    before = {metric: await chart(counted, metric, more) for metric in METRICS}
    assert sum(filter(None, before["visitors"])) > 0
    await spoil(counted)
    assert {metric: await chart(counted, metric, more) for metric in METRICS} == before


async def test_one_of_a_bucket_that_has_changed_is_not_used(counted: asyncpg.Connection):
    await spoil(counted)
    # Only the hours that change are right again; nothing but the rollup has run.
    hours = [Event(NOW - timedelta(hours=number), "late", anonymous_id="newcomer") for number in range(1, 50)]
    await store(counted, hours)
    for metric in METRICS:
        assert await chart(counted, metric) == await by_sql(counted, view_of(), metric)


async def test_a_change_meanwhile_is_waited_for(counted: asyncpg.Connection, other: asyncpg.Connection):
    total = "SELECT event_count FROM analytics.bucket_totals WHERE (granularity, time_bucket) = ('hour', $1)"
    async with turn(other):
        making = asyncio.ensure_future(totals.run_once(counted, NOW))
        try:
            await other.execute(
                "UPDATE analytics.event_aggregations SET event_count = event_count + 7"
                " WHERE granularity = 'hour' AND time_bucket = $1 AND dimensions = '{}' AND event_name = 'click'",
                HOUR,
            )
            await stale_metrics.note_buckets(other, [("hour", HOUR)])
            # Whoever did not wait would be done by now.
            await asyncio.wait([making], timeout=0.5)
            assert await other.fetchval(total, HOUR) is None
        except BaseException:
            making.cancel()
            raise
    assert await making > 0
    assert await counted.fetchval(total, HOUR) == 127


async def test_a_run_takes_a_limited_time_and_the_latest_come_first(counted: asyncpg.Connection):
    assert await totals.run_once(counted, NOW, seconds=0) == 0
    made = "SELECT time_bucket FROM analytics.bucket_totals ORDER BY ctid"
    await totals.run_once(counted, NOW)
    found = [row[0] for row in await counted.fetch(made)]
    assert found == sorted(found, reverse=True) and len(found) > 40


async def test_old_buckets_have_none(counted: asyncpg.Connection):
    await counted.execute(
        "INSERT INTO analytics.event_aggregations (event_type, event_name, time_bucket, granularity, event_count)"
        " VALUES ('system', 'x', '1970-01-01', 'hour', 1), ('system', 'x', '1970-01-01', 'day', 1)"
    )
    await totals.run_once(counted, NOW)
    assert await counted.fetchval("SELECT min(time_bucket) FROM analytics.bucket_totals") >= HOUR - timedelta(days=1)


def test_gaps():
    def at(hour: int) -> datetime:
        return datetime(2026, 1, 2, tzinfo=UTC) + timedelta(hours=hour)

    week, minutes = Part("week", at(0), at(168)), Part("minute", at(1), at(2))
    hours, days = Part("hour", at(0), at(5)), Part("day", at(0), at(72))
    assert covering.gaps([week, minutes, hours, days], set()) == [week, minutes, hours, days]
    found = {("hour", at(0)), ("hour", at(2)), ("day", at(24)), ("week", at(0)), ("minute", at(1))}
    assert covering.gaps([week, minutes, hours, days], found) == [
        week,
        minutes,
        Part("hour", at(1), at(2)),
        Part("hour", at(3), at(5)),
        Part("day", at(0), at(24)),
        Part("day", at(48), at(72)),
    ]
    assert covering.gaps([hours], {("hour", at(hour)) for hour in range(5)}) == []
