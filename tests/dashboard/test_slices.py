"""Slices of visits: what is counted with them is what SQL counts, whatever happens to an hour afterwards.

All of the other tests of figures, lists and retention have them for four hours of five; see world.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import parse_qsl

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.base.errors import IngestError
from ingest.dashboard.figures import visits
from ingest.dashboard.rankings import COUNTED, ranking
from ingest.dashboard.series import METRICS, series
from ingest.dashboard.view import View
from ingest.features.stats import journeys
from ingest.features.stats.query import Query
from ingest.features.stats.slices import HALF_HOUR, sliced
from ingest.postgres import connections
from ingest.rollup import rebuild, slices
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from tests.dashboard.test_series import by_sql
from tests.support.aggregates import Event, Ledger, make_partitions, recognise

NOW = datetime.now(UTC)
HOUR = NOW.replace(minute=0, second=0, microsecond=0) - timedelta(days=2, hours=1)
LATER = HOUR + timedelta(hours=20)
ROOM = Room(names=50, values=100)
ADDRESS = "ada@example.com"
FILTERS = "&country=DE&none=utm_source"
"""Two, so that aggregates do not have it."""
THERE = "SELECT is_complete FROM analytics.sliced_hours WHERE hour = $1"
ROWS = "SELECT count(*) FROM analytics.visit_slices WHERE hour = $1"
ZONES = ("Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu")
"""Whole hours, half hours and three quarters of one from UTC."""


def events() -> list[Event]:
    """People who do several things each, across hours and half hours; several at the same moment."""
    found = []
    for hour in (HOUR, LATER):
        for place in range(120):
            at = hour + timedelta(seconds=45 * (place // 2))
            path = f"/{place % 7}" if place % 5 else None
            kind = ("page_view", "user_action", "page_view", "conversion", "system")[place % 5]
            who = f"browser {place % 17}"
            session = f"{who} at {hour}" if place % 17 < 5 else None
            country = ("DE", "BR")[place % 4 == 0]
            found.append(Event(at, kind, kind, None, who, session, country=country, page_path=path))
            found.append(Event(at, "view", "page_view", None, "robot", device_type="bot", country="DE"))
    return found


@pytest.fixture
async def counted(connection: asyncpg.Connection) -> asyncpg.Connection:
    days = {HOUR.date() + timedelta(days=number) for number in range(-1, 4)}
    await make_partitions(connection, sorted(days))
    await connection.execute("CREATE VIEW public.plain AS SELECT * FROM analytics.activity")
    await store(connection, [Event(LATER, "view", "page_view", ADDRESS, "hers", country="DE", page_path="/hers")])
    await store(connection, events())
    return connection


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await connections.connect(database_url, purpose="tests")
    yield opened
    await opened.close()


@pytest.fixture
async def holder(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await connections.connect(database_url, purpose="tests")
    yield opened
    await opened.close()


async def store(connection: asyncpg.Connection, some: Sequence[Event]) -> None:
    await Ledger(connection).flush(some)
    assert await Rollup(DIMENSION_NAMES, ROOM).run_once(connection) is not None


def view_of(zone: str = ZONES[0], filters: str = FILTERS) -> View:
    query = f"period=custom&from={HOUR.date() - timedelta(days=1)}&to={NOW.date()}&interval=day&timezone={zone}"
    return View.parse(parse_qsl(query + filters, keep_blank_values=True), NOW, dimensions=DIMENSION_NAMES)


async def answers(connection: asyncpg.Connection, zone: str = ZONES[0], filters: str = FILTERS) -> list[object]:
    """Everything that is counted from slices where there are some."""
    view = view_of(zone, filters)
    async with connection.transaction():
        found: list[object] = [
            [point.value for point in (await series(connection, view, metric, DIMENSION_NAMES, NOW)).points]
            for metric in METRICS
        ]
        for what in COUNTED:
            ranked = await ranking(connection, view, what, DIMENSION_NAMES, NOW)
            found.append((what, [(row.value, row.number, row.visitors) for row in ranked.rows], ranked.total))
        began = await visits(connection, view, NOW)
        found.append((began.bounce_rate.value, began.session_seconds.value))
        kept = await journeys.retention(connection, view.as_query(granularity="day"), NOW)
        return [*found, [(cohort["people"], cohort["periods"]) for cohort in kept["cohorts"]]]


async def check(connection: asyncpg.Connection) -> None:
    """Nothing else with slices, as many as there are now and all of them, than without any; and charts equal SQL."""
    async with connection.transaction():
        now = [await answers(connection, zone) for zone in ZONES]
        await connection.execute("DELETE FROM analytics.sliced_hours; DELETE FROM analytics.visit_slices")
        without = [await answers(connection, zone) for zone in ZONES]
        await connection.execute("ROLLBACK; BEGIN")
    assert now == without
    await slices.run_once(connection, NOW)
    assert await connection.fetchval(THERE, HOUR) and await connection.fetchval(THERE, LATER)
    assert [await answers(connection, zone) for zone in ZONES] == without
    for number, metric in enumerate(METRICS):
        assert without[0][number] == await by_sql(connection, view_of(), metric)


async def test_with_and_without(counted: asyncpg.Connection):
    await check(counted)
    # Each hour that is over, also where nothing happened; once.
    assert await counted.fetchval(THERE, HOUR + timedelta(hours=3))
    assert await slices.run_once(counted, NOW) == 0


@pytest.mark.parametrize(
    "filters", ["&page_path=/3", "&none=page_path", "&device_type=bot&country=DE", "&country=BR"]
)
async def test_other_filters(counted: asyncpg.Connection, filters: str):
    without = [await answers(counted, zone, filters) for zone in ZONES]
    await slices.run_once(counted, NOW)
    assert [await answers(counted, zone, filters) for zone in ZONES] == without


async def test_slices_are_read(counted: asyncpg.Connection):
    """Without this, everything could be from events: here all that they say is wrong."""
    await slices.run_once(counted, NOW)
    right = await answers(counted)
    await counted.execute(
        "UPDATE analytics.visit_slices SET person = number, visit = number, browser = 'none', events = 7,"
        " page_views = 7, conversions = 7, acts = 1"
    )
    for one, wrong in zip(right, await answers(counted), strict=True):
        # They have no names.
        is_from_events = isinstance(one, tuple) and one[0] == "event"
        assert (wrong == one) == is_from_events, one


async def test_many_pages_are_divided(counted: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slices, "MAX_PAGES", 2)
    await check(counted)
    assert await counted.fetchval("SELECT max(cardinality(pages)) FROM analytics.visit_slices") == 2


async def test_late_events_are_in_it_at_once(counted: asyncpg.Connection):
    await check(counted)
    await store(counted, [Event(HOUR, "late", anonymous_id="newcomer", country="DE")])
    assert await counted.fetchval(THERE, HOUR) is None
    assert await counted.fetchval(ROWS, HOUR) == 0
    assert await counted.fetchval(THERE, LATER)
    await check(counted)


async def test_after_a_rebuild(counted: asyncpg.Connection):
    await check(counted)
    await counted.execute("DELETE FROM analytics.events WHERE anonymous_id IN ('browser 1', 'browser 2')")
    assert await rebuild.note(counted, HOUR, HOUR + timedelta(hours=23)) > 0
    # At once, and not only when they are rebuilt.
    await check(counted)
    await rebuild.run_once(counted, DIMENSION_NAMES, ROOM)
    await check(counted)


async def test_after_people_were_recognised(counted: asyncpg.Connection):
    await check(counted)
    before = await answers(counted)
    who = (5, 7, 9)
    await store(counted, [Event(LATER, user_id="ada", anonymous_id=f"browser {each}", country="DE") for each in who])
    await recognise(counted, DIMENSION_NAMES, ROOM)
    await check(counted)
    assert (await answers(counted))[0] != before[0]


async def test_after_an_erasure(counted: asyncpg.Connection):
    await check(counted)
    person = "SELECT count(*) FROM analytics.visit_slices WHERE pages = '{/hers}'"
    assert await counted.fetchval(person) == 1
    await counted.execute("SELECT public.gdpr_delete_user_data($1, true)", ADDRESS)
    # In the same transaction; the other hour's stay.
    assert await counted.fetchval(ROWS, LATER) == 0
    assert await counted.fetchval(THERE, HOUR)
    await check(counted)
    assert await counted.fetchval(person) == 0


async def test_a_change_meanwhile_is_noticed(
    counted: asyncpg.Connection,
    other: asyncpg.Connection,
    holder: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
):
    """An event that is stored and counted while its hour is made, from a snapshot that does not have it."""
    await slices.run_once(counted, NOW)
    await counted.execute("DELETE FROM analytics.sliced_hours WHERE hour = $1", HOUR)
    # Instead of the first statement of the snapshot: it waits in it.
    waiting = "SELECT pg_advisory_xact_lock(7) WHERE $1::timestamptz IS NOT NULL"
    monkeypatch.setitem(slices._QUERIES, "clear", waiting)
    await counted.execute("DELETE FROM analytics.visit_slices WHERE hour = $1", HOUR)
    async with asyncio.timeout(60):
        async with holder.transaction():
            await holder.execute("SELECT pg_advisory_xact_lock(7)")
            making = asyncio.ensure_future(slices.run_once(counted, NOW))
            await until_waiting(other)
            await store(other, [Event(HOUR, "late", anonymous_id="newcomer", country="DE")])
        assert await making == 0
    assert await counted.fetchval(THERE, HOUR) is None
    assert await counted.fetchval(ROWS, HOUR) == 0
    await check(counted)


async def until_waiting(connection: asyncpg.Connection) -> None:
    """Return once somebody waits for an advisory lock in this database; tests in others have theirs."""
    while not await connection.fetchval(  # noqa: ASYNC110
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
        " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    ):
        await asyncio.sleep(0.01)


async def test_an_hour_that_fails_stops_no_other_and_is_told(counted: asyncpg.Connection):
    await counted.execute(
        f"ALTER TABLE analytics.visit_slices ADD CONSTRAINT no CHECK (hour <> '{LATER.isoformat()}')"
    )
    with pytest.raises(IngestError, match=rf"slices of 1 hours .* {LATER:%Y-%m-%dT%H}.*violates check constraint"):
        await slices.run_once(counted, NOW)
    assert await counted.fetchval("SELECT count(*) FROM analytics.sliced_hours WHERE is_complete") > 40
    assert await counted.fetchval(THERE, HOUR) and not await counted.fetchval(THERE, LATER)
    await counted.execute("ALTER TABLE analytics.visit_slices DROP CONSTRAINT no")
    await check(counted)


async def test_a_run_takes_a_limited_time_and_the_latest_come_first(counted: asyncpg.Connection):
    assert await slices.run_once(counted, NOW, seconds=0) == 0
    await slices.run_once(counted, NOW)
    made = [row[0] for row in await counted.fetch("SELECT hour FROM analytics.sliced_hours ORDER BY ctid")]
    assert made == sorted(made, reverse=True) and len(made) > 40


@pytest.mark.parametrize("how", ["the database's setting", "their partitions"])
async def test_they_go_with_their_events(counted: asyncpg.Connection, how: str):
    await slices.run_once(counted, NOW)
    if how == "their partitions":
        for ago in range(2, 6):
            await counted.execute(f"DROP TABLE IF EXISTS analytics.events_{NOW - timedelta(days=ago):%Y%m%d}")
    else:
        await counted.execute("SET app.retention_events = '1 day'")
    await slices.run_once(counted, NOW)
    assert await counted.fetchval(THERE, HOUR) is None
    assert await counted.fetchval(ROWS, HOUR) == 0
    assert await counted.fetchval("SELECT count(*) FROM analytics.sliced_hours") > 20


async def test_each_moment_is_read_once(counted: asyncpg.Connection):
    """Whatever the spans and bounds are: by slices or as events, and no slice goes over a bound."""
    await slices.run_once(counted, NOW)
    gone = {HOUR + timedelta(hours=number) for number in (2, 3, 7)}
    await counted.execute("DELETE FROM analytics.sliced_hours WHERE hour = ANY($1)", list(gone))
    minute = timedelta(minutes=1)
    start, end = HOUR - 5 * minute, HOUR + timedelta(hours=9, minutes=40)
    cases: list[tuple[list[tuple[datetime, datetime]], list[datetime]]] = [
        ([(HOUR, HOUR + timedelta(hours=1))], []),
        ([(start, end)], [HOUR + 45 * minute, HOUR + timedelta(hours=5)]),
        ([(start, HOUR + 70 * minute), (HOUR + timedelta(hours=4), end)], []),
        ([(HOUR + 61 * minute, HOUR + 62 * minute)], []),
        ([(HOUR, HOUR)], []),
        ([(NOW - 90 * minute, NOW + timedelta(hours=5))], []),
    ]
    for spans, bounds in cases:
        for around in (timedelta(), HALF_HOUR):
            query = Query(start=start, end=end, zone=UTC, granularity="day")
            read = await sliced(counted, query, spans, bounds, around=around)
            first, last, hours, halves, low, high, starts, ends = cast("Any", read.arguments[7:])
            by_slices = [
                half
                for hour in times_from(first, last, timedelta(hours=1))
                if hour not in hours and hour not in gone
                for half in (hour, hour + HALF_HOUR)
                if half not in halves
            ]
            by_events = [(low, high), *zip(starts, ends, strict=True)]
            wide = [(one - around, another + around) for one, another in spans]
            for moment in times_from(start - timedelta(hours=2), NOW + timedelta(hours=6), minute):
                wanted = any(one <= moment < another for one, another in wide)
                found = sum(half <= moment < half + HALF_HOUR for half in by_slices)
                found += sum(one <= moment < another for one, another in by_events)
                assert found == wanted, (moment, spans, read.arguments)
            for bound in (*bounds, *(each for span in spans for each in span)):
                assert not any(half < bound < half + HALF_HOUR for half in by_slices), (bound, by_slices)


def times_from(start: datetime, end: datetime, step: timedelta) -> list[datetime]:
    return [start + number * step for number in range(max(0, -((start - end) // step)))]
