"""Every figure of the overview equals SQL on events: ranges x filters x time zones."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.dashboard.figures import figures, visits
from ingest.dashboard.view import View
from ingest.features.stats.query import OTHER, Refused
from tests.dashboard.world import NOW, close, matching, parts_of_hours, view_of, within

ZONES = ("UTC", "Asia/Kolkata", "Europe/Berlin")
RANGES = ("period=today", "period=7d", "", "period=custom&from=2025-03-29&to=2025-03-31",
          "period=custom&from=2025-03-02&to=2025-04-10")  # fmt: skip
FILTERS = ("", "country=DE", "none=utm_source", "event=click", "event=signup&device_type=mobile", "device_type=bot",
           "page_path=/pricing&country=BR&none=browser", "utm_source=", "utm_campaign={}")  # fmt: skip


async def by_sql(plain: asyncpg.Connection, view: View) -> Any:
    return await plain.fetchrow(
        "SELECT count(DISTINCT person) AS visitors, count(DISTINCT visit) AS sessions,"
        " count(*) FILTER (WHERE type = 'page_view') AS page_views,"
        " count(*) FILTER (WHERE type = 'conversion') AS conversions"
        f" FROM plain WHERE {within(view.start, view.until)} AND {matching(view)}"
    )


async def sessions_by_sql(plain: asyncpg.Connection, view: View) -> Any:
    """Hour by hour, as ingest/dashboard/sessions.py defines it."""
    bots = "true" if view.filters.get("device_type") == "bot" else "device_type IS DISTINCT FROM 'bot'"
    return await plain.fetchrow(
        f"""
        SELECT count(*) AS sessions, avg((acts <= 1)::int)::float8 AS bounce_rate,
            avg(seconds)::float8 AS seconds
        FROM unnest($1::timestamptz[], $2::timestamptz[]) AS part (low, high)
        CROSS JOIN LATERAL (
            SELECT visit, count(*) FILTER (WHERE type <> 'system') AS acts, min(created_at) AS began,
                extract(epoch FROM max(created_at) - min(created_at)) AS seconds, bool_or({matching(view)}) AS matches
            FROM plain
            WHERE created_at >= low - interval '30 minutes' AND created_at < high + interval '30 minutes'
                AND visit IS NOT NULL AND {bots}
            GROUP BY visit
        ) AS visits
        WHERE began >= low AND began < high AND matches
        """,
        *await parts_of_hours(plain, view),
    )


def some_of(zone: str, filters: str) -> list[str]:
    """Two ranges, others for each pair: in all, each filter and each zone meets each range."""
    place = ZONES.index(zone) * 2 + FILTERS.index(filters)
    return [RANGES[place % len(RANGES)], RANGES[(place + 1) % len(RANGES)]]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("filters", FILTERS)
async def test_figures_equal_sql(plain: asyncpg.Connection, reading: asyncpg.Connection, zone: str, filters: str):
    for period in some_of(zone, filters):
        view = view_of(f"{period}&timezone={zone}&{filters}")
        for one in (view, view.before):
            if one.end - one.start > timedelta(days=31) and (len(one.filters) > 1):
                with pytest.raises(Refused, match="more than one filter is answered from events"):
                    await figures(reading, one, DIMENSION_NAMES)
                continue
            found = await figures(reading, one, DIMENSION_NAMES)
            expected = await by_sql(plain, one)
            about = f"{one} {found} {expected}"
            assert not found.shifted, about
            assert (found.page_views.value, found.conversions.value) == tuple(expected)[2:], about
            for name in ("visitors", "sessions"):
                figure = getattr(found, name)
                if figure.value is None:
                    assert "without a value" in figure.why and "none=" in filters and one.days > 31, about
                else:
                    assert close(figure.value, expected[name]), about
                    assert figure.estimated or figure.value == expected[name], about
            began = await sessions_by_sql(plain, one)
            shown = await visits(reading, one, NOW)
            about = f"{one} {shown} {began}"
            if shown.bounce_rate.value is None:
                assert began["sessions"] == 0 or (filters and one.days > 31), about
                assert shown.bounce_rate.why and shown.session_seconds.value is None
            else:
                assert shown.bounce_rate.value == pytest.approx(began["bounce_rate"], abs=1e-7), about
                assert shown.session_seconds.value == pytest.approx(began["seconds"], abs=1e-5), about


async def test_hours_whose_kpis_are_settled_are_not_read_from_events(
    plain: asyncpg.Connection, reading: asyncpg.Connection
):
    """Without this, everything could be from events: here one KPI is wrong on purpose."""
    view = view_of("period=custom&from=2025-03-20&to=2025-03-20")
    right = (await visits(reading, view, NOW)).bounce_rate
    async with plain.transaction():
        await plain.execute(
            "UPDATE analytics.metrics SET value_numeric = 1 WHERE name = 'bounce_rate' AND granularity = 'hour'"
        )
        wrong = (await visits(plain, view, NOW)).bounce_rate
        await plain.execute(
            "INSERT INTO analytics.stale_metrics (source, granularity, time_window_start)"
            " SELECT 'events', 'hour', time_window_start FROM analytics.metrics"
            " WHERE name = 'bounce_rate' AND granularity = 'hour' ON CONFLICT DO NOTHING"
        )
        noted = (await visits(plain, view, NOW)).bounce_rate
        await plain.execute("ROLLBACK; BEGIN")
    assert right.source == wrong.source == "aggregates"
    assert right.value == pytest.approx(noted.value, abs=1e-7)
    assert wrong.value is not None and right.value is not None and wrong.value > right.value


@pytest.mark.parametrize("computed_from", [None, "2025-03-22", "2025-03-28"])
async def test_hours_that_wait_to_be_computed_are_read_from_events(
    plain: asyncpg.Connection, reading: asyncpg.Connection, computed_from: str | None
):
    """As after an import: all hours are noted, and the KPIs have none of them, or the latest."""
    view = view_of("period=custom&from=2025-03-15&to=2025-03-30")
    right = await visits(reading, view, NOW)
    async with plain.transaction():
        await plain.execute(
            "WITH gone AS (DELETE FROM analytics.metrics WHERE granularity = 'hour'"
            f" AND time_window_start < '{computed_from or 'infinity'}' RETURNING time_window_start)"
            " INSERT INTO analytics.stale_metrics (source, granularity, time_window_start)"
            " SELECT DISTINCT 'events', 'hour'::analytics.granularity, time_window_start FROM gone"
            " ON CONFLICT DO NOTHING"
        )
        found = await visits(plain, view, NOW)
        await plain.execute("ROLLBACK; BEGIN")
    assert right.bounce_rate.value
    assert found.bounce_rate.value == pytest.approx(right.bounce_rate.value, abs=1e-7)
    assert found.session_seconds.value == pytest.approx(right.session_seconds.value, abs=1e-5)


async def test_what_is_in_others_is_a_lower_bound(reading: asyncpg.Connection):
    view = view_of("period=custom&from=2025-03-12&to=2025-03-12&page_path=/page/129")
    found = await figures(reading, view, DIMENSION_NAMES)
    assert found.at_least or found.page_views.source == "events"
    view = view.with_filter("page_path", OTHER)
    assert (await figures(reading, view, DIMENSION_NAMES)).page_views.value
    assert (await visits(reading, view, NOW)).bounce_rate.why


async def test_where_events_are_deleted_hours_are_as_they_are(plain: asyncpg.Connection):
    """A month ago in a zone with half an hour: neither minutes nor events."""
    view = view_of("period=custom&from=2025-03-05&to=2025-03-15&timezone=Asia/Kolkata")
    async with plain.transaction():
        await plain.execute("SET LOCAL app.retention_events = '1 day'")
        found = await figures(plain, view, DIMENSION_NAMES)
        half = timedelta(minutes=30)
        expected = await by_sql(plain, replace(view, start=view.start - half, end=view.end - half))
        assert (found.page_views.value, found.conversions.value) == tuple(expected)[2:]
        assert close(int(found.visitors.value or 0), expected["visitors"])
        assert found.shifted
        with pytest.raises(Refused, match="which are kept from"):
            await figures(plain, view.with_filter("os", "iOS").with_filter("browser", None), DIMENSION_NAMES)
