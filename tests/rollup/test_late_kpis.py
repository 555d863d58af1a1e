"""KPIs of past windows are recomputed after late events and erasures, once each, whatever crashes in between."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.base.config import DIMENSION_NAMES
from ingest.base.errors import IngestError
from ingest.rollup import kpis, rebuild, stale_metrics, tallies
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from ingest.rollup.stale_metrics import Note
from tests.support.aggregates import Event, Ledger, make_partitions, recognise
from tests.support.amounts import amount
from tests.support.rollups import connected

ROOM = Room(100, 100)
# Those that events change; the others are far more windows of nothing.
ALL = [kpi for kpi in kpis.load() if kpi.source]
NOW = datetime.now(UTC)
EVERY_DAY = [(NOW - timedelta(days=ago)).date() for ago in (-1, 0, 1, 2, 5, 6, 8, 9, 39, 40)]
TABLES = (
    "events", "event_aggregations", "stale_buckets", "flushes", "journals", "identities", "people", "visits",
    "stale_identities", "metrics", "stale_metrics",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _few_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that are computed anyway; these tests are about the others."""
    monkeypatch.setattr(kpis, "_BACK", kpis._RECENT)


async def roll_up(connection: asyncpg.Connection) -> None:
    rollup = Rollup(DIMENSION_NAMES, ROOM)
    while await rollup.run_once(connection):
        pass
    await recognise(connection, DIMENSION_NAMES, ROOM)


async def kept(connection: asyncpg.Connection) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Every row of a KPI that events may change."""
    rows = await connection.fetch(
        "SELECT name, granularity::text, time_window_start, dimensions::text, time_window_end, value_numeric,"
        " value_json::text, sample_count FROM analytics.metrics WHERE name = ANY ($1::text[])",
        [kpi.name for kpi in ALL],
    )
    return {tuple(row)[:4]: tuple(row)[4:] for row in rows}


async def from_scratch(connection: asyncpg.Connection, now: datetime) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The rows of `stored` after everything was deleted and rebuilt, as by `ingest rollup rebuild`."""
    for table in ("metrics", "event_aggregations", "stale_metrics"):
        await connection.execute(f"DELETE FROM analytics.{table}")
    hours = await connection.fetch("SELECT DISTINCT date_trunc('hour', created_at, 'UTC') FROM analytics.events")
    for (hour,) in hours:
        await rebuild.note(connection, hour, hour + timedelta(hours=1))
    while await rebuild.run_once(connection, DIMENSION_NAMES, ROOM):
        pass
    await kpis.run_once(connection, now, ALL, seconds=600)
    return await kept(connection)


async def page_views(connection: asyncpg.Connection, now: datetime) -> dict[tuple[str, datetime], int]:
    """Page views per window, from events only: independent of the KPI's query."""
    rows = await connection.fetch(
        "SELECT granularity, date_trunc(granularity, created_at, 'UTC'), count(*) FROM analytics.events,"
        " unnest('{hour,day,week,month}'::text[]) AS granularity WHERE type = 'page_view' AND created_at < $1"
        " GROUP BY 1, 2",
        now,
    )
    return {(row[0], row[1]): row[2] for row in rows}


async def check(connection: asyncpg.Connection, now: datetime) -> None:
    found = await kept(connection)
    views = {(key[1], key[2]): row[1] for key, row in found.items() if key[0] == "page_views" and key[1] != "minute"}
    assert views == await page_views(connection, now)
    left = await connection.fetch("SELECT granularity::text, time_window_start FROM analytics.stale_metrics")
    assert all(tallies.following(*row) > now for row in left)
    recomputed = await from_scratch(connection, now)
    assert found == recomputed


# Various ages: within the windows that are recomputed anyway, hours, days with and without a row, near borders.
AGES = st.one_of(
    st.integers(1, 4 * 3600).map(lambda second: timedelta(seconds=second)),
    st.integers(4, 40).map(lambda hour: timedelta(hours=hour, minutes=hour)),
    st.sampled_from([timedelta(days=day) for day in (5, 8, 9, 40)]),
    st.sampled_from([timedelta(days=5, minutes=minute) for minute in (20, 31, 49, 80)]),
)
EVENTS = st.builds(
    lambda age, **rest: Event(NOW - age, **rest),
    age=AGES,
    name=st.sampled_from(["page_view", "click"]),
    type=st.sampled_from(["page_view", "page_view", "user_action", "system"]),
    user_id=st.sampled_from([None, "ada", "bob"]),
    anonymous_id=st.sampled_from([None, "a1", "a2"]),
    session_id=st.sampled_from([None, None, "s1", "s2"]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("flush"), st.lists(EVENTS, min_size=1, max_size=8)),
        st.tuples(st.just("kpis"), st.sampled_from([0, 1, 30])),
        st.tuples(st.just("die"), st.integers(3, 120)),
        st.tuples(st.just("erase"), st.sampled_from(["ada", "bob"])),
    ),
    min_size=2,
    max_size=8,
)


@pytest.mark.longer
@settings(max_examples=amount(3, long=20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_late_events_in_any_order(module_database: str, steps: list[tuple[str, Any]]):
    asyncio.run(take(module_database, steps))


async def take(url: str, steps: list[tuple[str, Any]]) -> None:
    async with connected(url) as connection:
        for table in TABLES:
            await connection.execute(f"DELETE FROM analytics.{table}")
        await make_partitions(connection, EVERY_DAY)
        ledger = Ledger(connection)
        for step, argument in steps:
            match step:
                case "flush":
                    await ledger.flush(argument)
                    await roll_up(connection)
                case "kpis":
                    # As if it were some days ago: most windows are over and computed when the next event arrives.
                    await kpis.run_once(connection, NOW - timedelta(days=argument), ALL)
                case "die":
                    await die_while_computing(url, argument)
                case "erase":
                    await connection.execute("SELECT gdpr_delete_user_data($1)", f"{argument}@example.com")
                    await connection.execute(
                        "WITH gone AS (DELETE FROM analytics.events WHERE user_id = $1 RETURNING created_at)"
                        " INSERT INTO analytics.stale_buckets (granularity, time_bucket)"
                        " SELECT DISTINCT 'hour'::analytics.granularity, date_trunc('hour', created_at, 'UTC')"
                        " FROM gone ON CONFLICT DO NOTHING",
                        argument,
                    )
                    await roll_up(connection)
        await roll_up(connection)
        await kpis.run_once(connection, NOW, ALL, seconds=600)
        await check(connection, NOW)


async def die_while_computing(url: str, statements: int) -> None:
    """A worker whose connection is cut after this many statements."""
    async with connected(url) as connection:
        done = 0

        def cut(query: Any) -> None:
            nonlocal done
            done += 1
            if done > statements:
                connection.terminate()

        with connection.query_logger(cut):
            try:
                await kpis.run_once(connection, NOW, ALL)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, IngestError):
                pass


async def test_fifty_page_views_of_five_hours_ago(connection: asyncpg.Connection):
    """And of forty days ago, when there was nothing."""
    late, long_ago = NOW - timedelta(hours=5), NOW - timedelta(days=40)
    await make_partitions(connection, [NOW.date(), late.date(), long_ago.date()])
    ledger = Ledger(connection)
    await ledger.flush([Event(late, "page_view", "page_view", session_id="early"), Event(NOW - timedelta(seconds=1))])
    await roll_up(connection)
    await kpis.run_once(connection, NOW, ALL)
    await ledger.flush(
        [
            Event(moment, "page_view", "page_view", session_id=f"s{number}")
            for moment in (late, long_ago)
            for number in range(50)
        ]
    )
    await roll_up(connection)
    await kpis.run_once(connection, NOW, ALL)
    found = await kept(connection)

    def row(name: str, granularity: str, moment: datetime) -> Any:
        start = kpis.open_window(granularity, moment).start
        return found[name, granularity, start, "{}"][1:]

    assert row("page_views", "hour", late)[0] == 51
    assert row("page_views", "minute", late)[0] == 51
    assert row("bounce_rate", "hour", late)[2] == 51
    for granularity in ("hour", "day", "month"):
        assert row("page_views", granularity, long_ago)[0] == 50
        assert row("sessions", granularity, long_ago)[0] == 50
    assert row("bounce_rate", "day", long_ago) == (1, None, 50)


async def test_a_window_noted_while_it_is_computed_stays_noted(connection: asyncpg.Connection, database_url: str):
    """Only the note that was read is forgotten, not one that replaced it."""
    bucket = ("hour", kpis.open_window("hour", NOW - timedelta(days=9)).start)
    await stale_metrics.note_buckets(connection, [bucket])
    (read,) = await stale_metrics.noted(connection, "aggregates", NOW)
    async with connected(database_url) as other, other.transaction():
        await stale_metrics.note_buckets(other, [bucket])
        # Waits for the other, and then finds another note.
        forgetting = asyncio.ensure_future(stale_metrics.forget(connection, "aggregates", read))
        await asyncio.sleep(0.2)
        assert not forgetting.done()
    await forgetting
    (again,) = await stale_metrics.noted(connection, "aggregates", NOW)
    assert (again.granularity, again.start) == bucket and again.token != read.token
    await stale_metrics.forget(connection, "aggregates", again)
    # Forgotten and noted again in between: still not the one that was read.
    await stale_metrics.note_buckets(connection, [bucket])
    await stale_metrics.forget(connection, "aggregates", again)
    assert len(await stale_metrics.noted(connection, "aggregates", NOW)) == 1


@pytest.mark.parametrize("source", kpis.SOURCES)
async def test_a_failing_kpi_is_tried_again(connection: asyncpg.Connection, source: str):
    late = NOW - timedelta(days=9)
    await make_partitions(connection, [late.date()])
    await Ledger(connection).flush([Event(late, "page_view", "page_view", session_id="s")])
    await roll_up(connection)
    name = next(kpi.name for kpi in ALL if kpi.source == source and "hour" in kpi.granularities)
    fails = [kpi._replace(query="SELECT '{}', 1 / 0") if kpi.name == name else kpi for kpi in ALL]
    with pytest.raises(IngestError, match=name):
        await kpis.run_once(connection, NOW, fails)
    noted = await stale_metrics.noted(connection, source, NOW)
    assert Note("hour", kpis.open_window("hour", late).start, noted[0].token)[:2] in [note[:2] for note in noted]
    assert not any(key[0] == name for key in await kept(connection))
    await kpis.run_once(connection, NOW, ALL)
    assert any(key[:3] == (name, "hour", kpis.open_window("hour", late).start) for key in await kept(connection))
    await check(connection, NOW)


async def test_kpis_whose_source_is_gone_stay(connection: asyncpg.Connection):
    """Minutes are kept for a week, events for some months: their KPIs stay as they were."""
    long_ago = NOW - timedelta(days=40)
    day = date(long_ago.year, long_ago.month, long_ago.day)
    await make_partitions(connection, [day, NOW.date()])
    await Ledger(connection).flush([Event(long_ago, "page_view", "page_view", session_id="s")])
    await roll_up(connection)
    await kpis.run_once(connection, NOW, ALL)
    minute = long_ago.replace(second=0, microsecond=0)
    await connection.execute(
        "INSERT INTO analytics.metrics"
        " (name, type, granularity, time_window_start, time_window_end, source, value_numeric)"
        " VALUES ('page_views', 'counter', 'minute', $1, $1::timestamptz + interval '1 minute', 'kpis', 7)",
        minute,
    )
    before = await kept(connection)
    await connection.execute(f"DROP TABLE analytics.events_{day:%Y%m%d}")
    await stale_metrics.note_buckets(connection, [("minute", minute)])
    await stale_metrics.note_events(connection, [minute])
    await kpis.run_once(connection, NOW, ALL)
    assert await kept(connection) == before
    assert await stale_metrics.noted(connection, "aggregates", NOW - timedelta(days=2)) == []
