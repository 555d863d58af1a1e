"""KPIs: their file, their windows, and each figure computed by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import orjson
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.base.errors import IngestError
from ingest.rollup import kpis, rebuild
from ingest.rollup.buckets import Room
from ingest.rollup.kpis import Kpi, Window, windows
from ingest.rollup.rollup import Rollup
from tests.support.aggregates import Event, Ledger, make_partitions

NOW = datetime.now(UTC).replace(hour=12, minute=30, second=0, microsecond=0) - timedelta(days=1)
DAY = NOW.replace(hour=0, minute=0)
HOUR = NOW.replace(minute=0)
ROOM = Room(100, 100)
ALL = {kpi.name: kpi for kpi in kpis.load()}


def at(**ago: float) -> datetime:
    return NOW - timedelta(**ago)


async def compute(connection: asyncpg.Connection, *names: str, now: datetime = NOW) -> int:
    return await kpis.run_once(connection, now, [ALL[name] for name in names])


async def figures(
    connection: asyncpg.Connection, name: str, granularity: str, start: datetime
) -> dict[str, tuple[Any, Any, Any]]:
    """Dimensions -> value_numeric, value_json, sample_count."""
    rows = await connection.fetch(
        "SELECT dimensions, value_numeric, value_json, sample_count FROM analytics.metrics WHERE name = $1"
        " AND granularity = $2::text::analytics.granularity AND time_window_start = $3",
        name,
        granularity,
        start,
    )
    return {
        row["dimensions"]: (
            row["value_numeric"],
            orjson.loads(row["value_json"]) if row["value_json"] else None,
            row["sample_count"],
        )
        for row in rows
    }


async def value(connection: asyncpg.Connection, name: str, granularity: str, start: datetime) -> Decimal | None:
    found = await figures(connection, name, granularity, start)
    assert found.keys() <= {"{}"}
    return found["{}"][0] if found else None


async def stored_and_rolled_up(connection: asyncpg.Connection, *events: Event) -> None:
    await make_partitions(connection, sorted({event.created_at.date() for event in events} | {DAY.date()}))
    await Ledger(connection).flush(events)
    await Rollup(DIMENSION_NAMES, ROOM).run_once(connection)
    await rebuild.run_once(connection, DIMENSION_NAMES, ROOM)


# The file.


def test_every_kpi_says_what_it_is():
    assert len(ALL) == len(kpis.load()) >= 16
    for kpi in ALL.values():
        assert kpi.description.endswith("."), kpi.name
        assert len(kpi.description) > 20, kpi.name


@pytest.mark.parametrize(
    "body",
    [
        "-- counter, sum; day\nSELECT 1",  # no sentence
        "-- A sentence.\nSELECT 1",
        "-- A sentence.\n-- counter, sum\nSELECT 1",
        "-- A sentence.\n-- counter, total; day\nSELECT 1",
        "-- A sentence.\n-- counter, sum; year\nSELECT 1",
        "-- A sentence.\n-- counter, sum; day; from tables\nSELECT 1",
        "-- A sentence.\n-- counter, sum; day\n",
    ],
)
def test_a_kpi_without_its_head_is_named(body: str):
    with pytest.raises(IngestError, match=r"^KPI revenue: "):
        kpis.parse(f"-- revenue --\n{body}\n")


def test_a_kpi_is_what_its_head_says():
    head = "-- About the file.\n\n-- a --\n-- One.\n-- Two.\n-- gauge, max; hour week; from events\n"
    text = f"{head}SELECT $1\n-- not this\n"
    assert kpis.parse(text) == [Kpi("a", "One. Two.", "gauge", "max", ("hour", "week"), "events", "SELECT $1")]


# Windows.


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


def test_windows_of_weeks_and_months_follow_the_calendar():
    now = utc(2024, 3, 1, 0, 0, 1)
    months = list(windows("month", now, utc(2024, 1, 1)))
    assert months == [
        Window(utc(2024, 2, 1), utc(2024, 3, 1)),
        Window(utc(2024, 3, 1), utc(2024, 4, 1)),
    ]
    weeks = list(windows("week", utc(2025, 1, 2), utc(2024, 12, 16)))
    # The week of the new year began in the old one.
    assert weeks == [Window(utc(2024, 12, 23), utc(2024, 12, 30)), Window(utc(2024, 12, 30), utc(2025, 1, 6))]


def test_windows_hold_their_first_microsecond_and_not_their_end():
    border = utc(2024, 2, 29)
    assert [window.start for window in windows("day", border - timedelta(microseconds=1), None)][-1] == utc(
        2024, 2, 28
    )
    assert [window.start for window in windows("day", border, None)][-1] == border


@pytest.mark.parametrize(
    ("latest", "first"),
    [
        (None, timedelta(days=2)),  # as far back as hours go
        (timedelta(days=30), timedelta(days=2)),
        (timedelta(hours=10), timedelta(hours=9)),  # an outage
        (timedelta(0), timedelta(hours=2)),  # what is recent is computed again
    ],
)
def test_windows_begin_where_something_may_be_missing(latest: timedelta | None, first: timedelta):
    found = list(windows("hour", NOW, None if latest is None else HOUR - latest))
    assert found[0].start == HOUR - first
    assert found[-1].start == HOUR
    assert [window.start for window in found[1:]] == [window.end for window in found[:-1]]


# Figures.


async def test_figures_of_aggregates(connection: asyncpg.Connection):
    await stored_and_rolled_up(
        connection,
        *[Event(at(minutes=5), "page", "page_view", user_id=f"u{n % 3}", session_id=f"s{n}") for n in range(6)],
        Event(at(minutes=5), "click", "user_action", user_id="u9", session_id="s0"),
        Event(at(hours=5), "page", "page_view", anonymous_id="u0", session_id="s5"),
        Event(at(days=3), "page", "page_view", user_id="u1"),
    )
    names = ("events_per_minute", "page_views", "sessions", "active_users")
    assert await compute(connection, *names) > 0
    assert await value(connection, "events_per_minute", "minute", at(minutes=5)) == 7
    # Over half an hour, as the hour is not over.
    assert await value(connection, "events_per_minute", "hour", HOUR) == Decimal("0.23333333")
    assert await value(connection, "page_views", "hour", HOUR) == 6
    assert await value(connection, "page_views", "day", DAY) == 7
    assert await value(connection, "page_views", "day", DAY - timedelta(days=3)) == 1
    assert await value(connection, "page_views", "day", DAY - timedelta(days=1)) is None
    assert await value(connection, "sessions", "hour", HOUR) == 6
    assert await value(connection, "sessions", "day", DAY) == 6
    assert await value(connection, "active_users", "day", DAY) == 4
    row = await connection.fetchrow("SELECT * FROM analytics.metrics WHERE name = 'page_views' LIMIT 1")
    assert (row["source"], row["type"], row["aggregation"]) == ("kpis", "counter", "sum")
    assert row["description"].startswith("Page views")


async def test_page_views_are_without_bots(connection: asyncpg.Connection):
    page = Event(at(minutes=5), "page", "page_view", device_type="mobile")
    await stored_and_rolled_up(connection, page, page, page, page._replace(device_type="bot"))
    await compute(connection, "page_views")
    assert await value(connection, "page_views", "hour", HOUR) == 3


async def test_bounces_and_lengths_of_sessions(connection: asyncpg.Connection):
    await stored_and_rolled_up(
        connection,
        Event(HOUR, "page", "page_view", session_id="bounced"),
        Event(HOUR, "ping", "system", session_id="bounced"),
        Event(HOUR + timedelta(minutes=1), "page", "page_view", session_id="stayed"),
        Event(HOUR + timedelta(minutes=1, seconds=40), "click", session_id="stayed"),
        # Begun in the hour before.
        Event(HOUR - timedelta(seconds=1), "page", "page_view", session_id="earlier"),
        Event(HOUR + timedelta(seconds=1), "page", "page_view", session_id="earlier"),
    )
    await compute(connection, "bounce_rate", "session_length")
    assert (await figures(connection, "bounce_rate", "hour", HOUR))["{}"] == (Decimal("0.5"), None, 2)
    mean, details, sessions = (await figures(connection, "session_length", "hour", HOUR))["{}"]
    assert (mean, sessions) == (20, 2)
    assert (details["p50"], details["p95"]) == (20, 38)
    assert details["histogram"] == {"10": 1, "30": 1, "60": 2, "180": 2, "600": 2, "1800": 2, "3600": 2}
    # A day is the weighted average of its hours.
    assert (await figures(connection, "bounce_rate", "day", DAY))["{}"] == (Decimal("0.33333333"), None, 3)
    mean, details, sessions = (await figures(connection, "session_length", "day", DAY))["{}"]
    assert (mean, sessions) == (Decimal("14.00000000"), 3)
    assert details["histogram"]["10"] == 2


async def test_entries_of_sessions(connection: asyncpg.Connection):
    def seen(page: str | None, session: str, **after: float) -> Event:
        return Event(HOUR + timedelta(**after), "page", "page_view", session_id=session, page_path=page)

    await stored_and_rolled_up(
        connection,
        # An action before the first page; the page after it does not count.
        Event(HOUR, "click", session_id="a"),
        seen("/", "a", minutes=1),
        seen("/docs", "a", minutes=2),
        seen("/", "b"),
        seen(None, "without"),
        Event(HOUR, "click", session_id="no page"),
        seen("/bot", "bot")._replace(device_type="bot"),
        # Begun in the hour before: there, its page in this hour is the first.
        Event(HOUR - timedelta(seconds=1), "click", session_id="earlier"),
        seen("/docs", "earlier", seconds=1),
        seen("/" + "x" * 300, "long", hours=-2),
        # An hour that has the rest of a session, and no first event.
        seen("/", "goes on", hours=-4, minutes=59),
        seen("/docs", "goes on", hours=-3, minutes=1),
    )
    await compute(connection, "session_entries")
    root, docs = '{"page_path": "/"}', '{"page_path": "/docs"}'

    async def entered(granularity: str, start: datetime) -> dict[str, tuple[Any, Any]]:
        found = await figures(connection, "session_entries", granularity, start)
        return {of: (row[0], row[2]) for of, row in found.items()}

    assert await entered("hour", HOUR) == {"{}": (3, 4), root: (2, None), '{"page_path": null}': (1, None)}
    assert await entered("hour", at(hours=1.5)) == {"{}": (1, 1), docs: (1, None)}
    assert await entered("hour", at(hours=3.5)) == {"{}": (0, 0)}
    assert await entered("hour", at(hours=1.5) - timedelta(hours=4)) == {}
    assert await entered("day", DAY) == {
        "{}": (6, 7),
        root: (3, None),
        docs: (1, None),
        '{"page_path": null}': (1, None),
        f'{{"page_path": "/{"x" * 254}"}}': (1, None),
    }


async def test_entries_by_the_first_hundred_pages(connection: asyncpg.Connection):
    def seen(page: int, session: str, hour: datetime) -> Event:
        return Event(hour, "page", "page_view", session_id=session, page_path=f"/{page}")

    early = HOUR - timedelta(hours=3)
    await stored_and_rolled_up(
        connection,
        *[seen(page, f"{page}-{number}", HOUR) for page in range(103) for number in range(2 if page > 2 else 1)],
        *[seen(page, f"early {page}", early) for page in range(3)],
    )
    await compute(connection, "session_entries")
    rest = '{"page_path": {"other": true}}'
    hour = await figures(connection, "session_entries", "hour", HOUR)
    assert hour.pop("{}")[0] == 203 and hour.pop(rest)[0] == 3
    assert {of: row[0] for of, row in hour.items()} == {f'{{"page_path": "/{page}"}}': 2 for page in range(3, 103)}
    day = await figures(connection, "session_entries", "day", DAY)
    # Again the first hundred: without those of the early hour, which add to what the other hour had no place for.
    assert day.pop("{}")[0] == 206 and day.pop(rest)[0] == 6
    assert day.keys() == hour.keys()


async def test_leads_and_their_rates(connection: asyncpg.Connection):
    await stored_and_rolled_up(connection, *[Event(at(minutes=5), user_id=f"u{n}") for n in range(8)])
    await connection.execute(
        """
        INSERT INTO marketing.leads (email, source, status, created_at, updated_at) VALUES
            ('a@example.com', 'newsletter-signup', 'new', $1, $1),
            ('b@example.com', 'newsletter-signup', 'new', $1, $1),
            ('c@example.com', 'demo-request', 'converted', $1, $1),
            ('d@example.com', 'demo-request', 'lost', $1::timestamptz - interval '3 days', $1)
        """,
        at(hours=1),
    )
    await connection.execute(
        """
        INSERT INTO onboarding.sessions (
            lead_id, status, current_step, started_at, business_info_completed_at, whatsapp_integration_completed_at,
            bot_setup_completed_at, testing_completed_at, completed_at
        )
        SELECT id, 'completed', 'complete', $1::timestamptz - interval '1 hour', $1, $1, $1, $1, $1
        FROM marketing.leads WHERE email IN ('c@example.com', 'd@example.com')
        """,
        at(hours=1),
    )
    await compute(
        connection,
        "active_users",
        "visitor_to_lead_rate",
        "lead_to_onboarded_rate",
        "onboarded_to_converted_rate",
        "leads_by_source",
        "leads_by_status",
    )
    assert await value(connection, "visitor_to_lead_rate", "day", DAY) == Decimal("0.375")
    assert await value(connection, "lead_to_onboarded_rate", "day", DAY) == Decimal("0.66666667")
    assert await value(connection, "onboarded_to_converted_rate", "day", DAY) == Decimal("0.5")
    by_source = await figures(connection, "leads_by_source", "day", DAY)
    assert {of: row[0] for of, row in by_source.items()} == {
        '{"source": "newsletter-signup"}': 2,
        '{"source": "demo-request"}': 1,
    }
    by_status = await figures(connection, "leads_by_status", "day", DAY)
    assert {of: row[0] for of, row in by_status.items()} == {
        '{"status": "new"}': 2,
        '{"status": "converted"}': 1,
        '{"status": "lost"}': 1,
    }

    # A source that no longer has leads no longer has a figure.
    await connection.execute("UPDATE marketing.leads SET deleted_at = now() WHERE source = 'demo-request'")
    await compute(connection, "leads_by_source")
    assert set(await figures(connection, "leads_by_source", "day", DAY)) == {'{"source": "newsletter-signup"}'}


async def test_onboarding(connection: asyncpg.Connection):
    await connection.execute(
        """
        INSERT INTO onboarding.sessions (
            status, current_step, created_at, business_info_completed_at, whatsapp_integration_completed_at,
            bot_setup_completed_at, testing_completed_at, completed_at
        )
        SELECT 'completed'::onboarding.session_status, 'complete'::onboarding.step, $1::timestamptz,
            $1 + interval '20 s', $1 + interval '120 s', $1 + interval '180 s', $1 + interval '240 s',
            $1 + interval '240 s'
        UNION ALL
        SELECT 'in_progress', 'whatsapp_integration', $1, $1 + interval '40 s', NULL, NULL, NULL, NULL
        UNION ALL
        SELECT 'in_progress', 'business_info', $1, NULL, NULL, NULL, NULL, NULL
        """,
        at(hours=1),
    )
    await compute(connection, "onboarding_completion_rate", "onboarding_drop_off", "onboarding_step_seconds")
    assert await value(connection, "onboarding_completion_rate", "day", DAY) == Decimal("0.33333333")
    drop_off = await figures(connection, "onboarding_drop_off", "day", DAY)
    assert {of: (row[0], row[2]) for of, row in drop_off.items()} == {
        '{"step": "business_info"}': (Decimal("0.33333333"), 3),
        '{"step": "whatsapp_integration"}': (Decimal("0.5"), 2),
        '{"step": "bot_setup"}': (0, 1),
        '{"step": "testing"}': (0, 1),
    }
    seconds = await figures(connection, "onboarding_step_seconds", "day", DAY)
    assert seconds['{"step": "whatsapp_integration"}'][0] == 100
    median, details, count = seconds['{"step": "business_info"}']
    assert (median, count, details["p50"], details["p95"]) == (30, 2, 30, 39)
    assert details["histogram"]["30"] == 1


async def test_experiments(connection: asyncpg.Connection):
    person = "00000000-0000-4000-8000-00000000000a"
    await connection.execute(
        f"""
        INSERT INTO experiments.experiments (id, name, status, test_variants)
        VALUES ('{person}', 'button', 'running', '[{{"id": "red"}}]')
        """
    )
    await connection.execute(
        f"""
        INSERT INTO experiments.assignments
            (experiment_id, user_id, session_id, variant_id, first_exposure_at, last_exposure_at, exposure_count)
        VALUES ('{person}', '{person}', NULL, 'red', $1, $1, 1), ('{person}', NULL, 's1', 'control', $1, $1, 1),
            ('{person}', NULL, 's2', 'control', NULL, NULL, 0)
        """,
        at(hours=2),
    )
    await stored_and_rolled_up(
        connection,
        Event(at(hours=3), "paid", "conversion", session_id="s1"),  # before it saw anything
        Event(at(minutes=5), "paid", "conversion", session_id="s1"),
        Event(at(minutes=5), "paid", "conversion", session_id="s2"),
        Event(at(minutes=5), "paid", "conversion", user_id=person),
        Event(at(hours=1), "paid", "conversion", user_id=person),
        Event(at(minutes=5), "click", "user_action", user_id=person),
    )
    await compute(connection, "experiment_exposures", "experiment_conversions")
    red, control = '{"variant": "red", "experiment": "button"}', '{"variant": "control", "experiment": "button"}'
    exposures = await figures(connection, "experiment_exposures", "day", DAY)
    assert {of: row[0] for of, row in exposures.items()} == {red: 1, control: 1}
    conversions = await figures(connection, "experiment_conversions", "day", DAY)
    assert {of: row[0] for of, row in conversions.items()} == {red: 2, control: 1}


async def test_ingestion_lag(connection: asyncpg.Connection):
    await stored_and_rolled_up(connection, Event(at(minutes=5)), Event(at(minutes=6)))
    await connection.execute("UPDATE analytics.events SET received_at = $1", at(minutes=5))
    await connection.execute("UPDATE analytics.flushes SET flushed_at = $1", at(minutes=5) + timedelta(seconds=1.5))
    await compute(connection, "ingestion_lag")
    assert (await figures(connection, "ingestion_lag", "hour", HOUR))["{}"] == (
        Decimal("1.5"),
        {"p50": 1.5, "max": 1.5},
        2,
    )


# Recent and closed.


async def test_recent_and_changed_windows_are_recomputed(connection: asyncpg.Connection):
    await stored_and_rolled_up(
        connection, Event(at(minutes=5), type="page_view"), Event(at(hours=20), type="page_view")
    )
    assert await compute(connection, "page_views") > 0
    before = await connection.fetch("SELECT id, name, value_numeric FROM analytics.metrics ORDER BY id")
    await compute(connection, "page_views")
    assert await connection.fetch("SELECT id, name, value_numeric FROM analytics.metrics ORDER BY id") == before

    await Ledger(connection).flush([Event(at(minutes=5), type="page_view"), Event(at(hours=20), type="page_view")])
    await Rollup(DIMENSION_NAMES, ROOM).run_once(connection)
    await compute(connection, "page_views")
    assert await value(connection, "page_views", "hour", HOUR) == 2
    closed = (NOW - timedelta(hours=20)).replace(minute=0)
    assert await value(connection, "page_views", "hour", closed) == 2


async def test_windows_missed_in_an_outage_are_computed(connection: asyncpg.Connection):
    await stored_and_rolled_up(connection, *[Event(at(hours=n), type="page_view") for n in range(30)])
    await compute(connection, "page_views", now=at(hours=20))
    # The open windows, computed every second, must not hide the missed ones.
    await kpis.run_once(connection, NOW, [ALL["page_views"]], only_open=True)
    assert await value(connection, "page_views", "hour", HOUR - timedelta(hours=10)) is None
    await compute(connection, "page_views")
    for hours in range(30):
        assert await value(connection, "page_views", "hour", HOUR - timedelta(hours=hours)) == 1


async def test_a_failing_kpi_is_named_and_stops_no_other(connection: asyncpg.Connection):
    await stored_and_rolled_up(connection, Event(at(minutes=5), type="page_view"))
    broken = ALL["leads_by_source"]._replace(name="broken", query="SELECT '{}' AS dimensions, 1 / 0 AS value_numeric")
    with pytest.raises(IngestError, match=r"^KPIs that could not be computed: broken$"):
        await kpis.run_once(connection, NOW, [broken, ALL["page_views"]])
    assert await value(connection, "page_views", "day", DAY) == 1


@pytest.mark.parametrize("name", [kpi.name for kpi in ALL.values() if kpi.from_events])
async def test_kpis_from_events_read_only_the_days_of_their_window(connection: asyncpg.Connection, name: str):
    await make_partitions(connection, [DAY.date() + timedelta(days=n) for n in range(-5, 3)])
    query, arguments = kpis._bound(ALL[name].query, HOUR, NOW, "hour")
    plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {query}", *arguments))
    assert f"events_{DAY:%Y%m%d}" in plan
    assert plan.count("events_20") <= 2 * plan.count(f"events_{DAY:%Y%m%d}")
    assert f"events_{DAY - timedelta(days=2):%Y%m%d}" not in plan
