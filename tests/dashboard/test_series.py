"""Every point of the chart equals SQL on events."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import pairwise

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.dashboard.series import METRICS, Point, buckets, series
from ingest.dashboard.view import View
from ingest.features.stats import times
from ingest.postgres import connections
from tests.dashboard.world import NOW, close, matching, view_of

OF_METRIC = {
    "visitors": "count(DISTINCT person)",
    "sessions": "count(DISTINCT visit)",
    "page_views": "count(*) FILTER (WHERE type = 'page_view')",
    "conversions": "count(*) FILTER (WHERE type = 'conversion')",
}
URL_FILTERS = re.compile("&(event|country|device_type|none|referrer_host)=")
VIEWS = (
    "period=today&timezone=Europe/Berlin",
    "period=today&timezone=Asia/Kolkata&country=BR",
    "period=7d",
    "period=7d&timezone=Asia/Kolkata&interval=hour",
    "period=30d&timezone=Europe/Berlin",
    "period=30d&timezone=Asia/Kolkata",
    "period=30d&timezone=Asia/Kolkata&event=order",
    "period=30d&interval=week&timezone=Europe/Berlin&device_type=mobile",
    "period=custom&from=2025-03-01&to=2025-04-20&interval=month",
    "period=custom&from=2025-03-28&to=2025-04-01&interval=hour&timezone=Europe/Berlin",
    "period=custom&from=2025-03-28&to=2025-04-01&interval=hour&timezone=Australia/Lord_Howe&none=os&country=DE",
    "period=custom&from=2025-03-05&to=2025-04-10&interval=week&timezone=Asia/Kathmandu&referrer_host=example.org",
)


async def by_sql(plain: asyncpg.Connection, view: View, metric: str) -> list[int]:
    """The buckets of the database's own calendar, cut off by the range."""
    rows = await plain.fetch(
        f"SELECT date_trunc($1, created_at AT TIME ZONE $2)::text AS bucket, {OF_METRIC[metric]} AS value"
        f" FROM plain WHERE created_at >= $3 AND created_at < $4 AND {matching(view)} GROUP BY bucket",
        view.interval,
        view.zone_name,
        view.start,
        view.until,
    )
    values = {row["bucket"]: row["value"] for row in rows}
    found = []
    for start in buckets(view)[0]:
        local = times.begin(start, view.interval, view.zone).astimezone(view.zone)
        found.append(values.pop(f"{local:%Y-%m-%d %H:%M:%S}", 0))
    assert not values
    return found


@pytest.mark.parametrize("query", VIEWS)
@pytest.mark.parametrize("metric", METRICS)
async def test_points_equal_sql(plain: asyncpg.Connection, reading: asyncpg.Connection, query: str, metric: str):
    view = view_of(query)
    found = await series(reading, view, metric, DIMENSION_NAMES, NOW)
    assert found.before is not None, found.why_no_comparison
    for one, points in ((view, found.points), (view.before, found.before)):
        expected = await by_sql(plain, one, metric)
        assert len(points) == len(expected) <= 400
        for point, number in zip(points, expected, strict=True):
            assert point.value == number or (found.estimated and close(point.value, number)), (point, number)
        assert points[0].start == one.start
        assert all(before.start < after.start for before, after in pairwise(points))
    assert sum(point.value or 0 for point in found.points) > 0 or (view.event == "order" and metric == "page_views")


@pytest.mark.parametrize("query", [query for query in VIEWS if not URL_FILTERS.search(query)])
@pytest.mark.parametrize("metric", METRICS)
async def test_points_from_totals_equal_sql_as_well(
    totalled_url: str, plain: asyncpg.Connection, query: str, metric: str
):
    view = view_of(query)
    connection = await connections.connect(totalled_url, purpose="tests")
    try:
        found = await series(connection, view, metric, DIMENSION_NAMES, NOW)
    finally:
        await connection.close()
    expected = await by_sql(plain, view, metric)
    for point, number in zip(found.points, expected, strict=True):
        assert point.value == number or (found.estimated and close(point.value, number)), (point, number)
    # Exactly the same, estimates too: nothing is lost when sketches are merged in two steps.
    assert found.points == (await series(plain, view, metric, DIMENSION_NAMES, NOW)).points


async def test_cut_off_points_are_marked(reading: asyncpg.Connection):
    async def partial(query: str) -> list[bool]:
        found = await series(reading, view_of(query), "sessions", DIMENSION_NAMES, NOW)
        return [point.partial for point in found.points]

    assert await partial("period=7d") == [False] * 6 + [True]
    # From a Wednesday to a Thursday.
    assert await partial("period=30d&interval=week") == [True, False, False, False, True]
    assert await partial("period=custom&from=2025-03-01&to=2025-03-31&interval=day") == [False] * 31
    assert await partial("period=custom&from=2025-03-03&to=2025-04-04&interval=month") == [True, True]


async def test_without_comparison_there_is_none(reading: asyncpg.Connection):
    found = await series(reading, view_of("period=7d&compare=no"), "visitors", DIMENSION_NAMES, NOW)
    assert found.before is None and not found.why_no_comparison
    assert isinstance(found.points[0], Point)


async def test_the_reason_is_given_where_only_the_period_before_is_unknown(plain: asyncpg.Connection):
    async with plain.transaction():
        view = view_of("period=30d&country=DE&os=Linux")
        kept = datetime.now(UTC) - view.start
        await plain.execute(f"SET LOCAL app.retention_events = '{kept.total_seconds()} seconds'")
        found = await series(plain, view, "page_views", DIMENSION_NAMES, NOW)
        assert found.source == "events" and found.before is None
        assert "which are kept from" in found.why_no_comparison
