"""Every row of every ranking equals SQL on events."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.dashboard.rankings import COUNTED, ENTRY_PAGE, Ranking, ranking
from ingest.dashboard.view import View
from ingest.features.stats.query import OTHER, Refused
from tests.dashboard.world import NOW, close, matching, parts_of_hours, quoted, view_of

VIEWS = (
    "period=7d",
    "period=30d&timezone=Asia/Kolkata",
    "period=custom&from=2025-03-29&to=2025-03-30&timezone=Europe/Berlin",
    "period=30d&timezone=Europe/Berlin&event=click",
    "period=7d&timezone=Asia/Kolkata&country=DE",
    "period=custom&from=2025-03-14&to=2025-04-10&none=utm_source&os=Linux",
    "period=7d&device_type=bot",
)


async def by_sql(plain: asyncpg.Connection, view: View, what: str) -> Any:
    """(value, number, people), in order."""
    if what == ENTRY_PAGE:
        return await (filtered_entries_by_sql if view.filters or view.event else entries_by_sql)(plain, view)
    value = "name" if what == "event" else f"left({what}::text, 255)"
    kind = "type = 'page_view'" if what == "page_path" else "true"
    return await plain.fetch(
        f"SELECT {value} AS value, count(*) AS number, count(DISTINCT person) AS people FROM plain"
        f" WHERE created_at >= $1 AND created_at < $2 AND {kind} AND {matching(view)}"
        f' GROUP BY 1 ORDER BY number DESC, {value} COLLATE "C" NULLS LAST',
        view.start,
        view.until,
    )


async def entries_by_sql(plain: asyncpg.Connection, view: View) -> Any:
    """Hour by hour, as ingest/dashboard/entries.py defines it."""
    return await plain.fetch(
        """
        SELECT value, count(*) AS number, count(DISTINCT person) AS people
        FROM unnest($1::timestamptz[], $2::timestamptz[]) AS part (low, high)
        CROSS JOIN LATERAL (
            SELECT visit, min(created_at) AS began, bool_or(type = 'page_view') AS viewed,
                (array_agg(left(page_path, 255) ORDER BY created_at, received_at, batch_id, batch_position)
                    FILTER (WHERE type = 'page_view'))[1] AS value,
                (array_agg(person ORDER BY created_at, received_at, batch_id, batch_position)
                    FILTER (WHERE type = 'page_view'))[1] AS person
            FROM plain
            WHERE created_at >= low - interval '30 minutes' AND created_at < high + interval '30 minutes'
                AND visit IS NOT NULL AND device_type IS DISTINCT FROM 'bot'
            GROUP BY visit
        ) AS visits
        WHERE began >= low AND began < high AND viewed
        GROUP BY value ORDER BY number DESC, value COLLATE "C" NULLS LAST
        """,
        *await parts_of_hours(plain, view),
    )


async def filtered_entries_by_sql(plain: asyncpg.Connection, view: View) -> Any:
    bots = "true" if view.filters.get("device_type") == "bot" else "device_type IS DISTINCT FROM 'bot'"
    return await plain.fetch(
        f"""
        WITH visits AS (
            SELECT visit,
                (array_agg(left(page_path, 255) ORDER BY created_at, received_at, batch_id, batch_position)
                    FILTER (WHERE type = 'page_view' AND created_at < $2::timestamptz AND {bots}))[1] AS value,
                (array_agg(person ORDER BY created_at, received_at, batch_id, batch_position)
                    FILTER (WHERE type = 'page_view' AND created_at < $2::timestamptz AND {bots}))[1] AS person,
                min(created_at) FILTER (WHERE type = 'page_view' AND {bots}) AS viewed_at,
                bool_or({matching(view)}) AS matches
            FROM plain
            WHERE created_at >= $1::timestamptz - interval '30 minutes'
                AND created_at < $2::timestamptz + interval '30 minutes'
                AND visit IS NOT NULL
            GROUP BY visit
        )
        SELECT value, count(*) AS number, count(DISTINCT person) AS people FROM visits
        WHERE viewed_at >= $1 AND viewed_at < $2 AND matches
        GROUP BY value ORDER BY number DESC, value COLLATE "C" NULLS LAST
        """,
        view.start,
        view.until,
    )


async def ranked(connection: asyncpg.Connection, view: View, what: str, **more: Any) -> Ranking:
    return await ranking(connection, view, what, DIMENSION_NAMES, NOW, **more)


@pytest.mark.parametrize("query", VIEWS)
@pytest.mark.parametrize("what", COUNTED)
async def test_rankings_equal_sql(plain: asyncpg.Connection, reading: asyncpg.Connection, query: str, what: str):
    view = view_of(query)
    if view.filters.get("device_type") == "bot" and what == "device_type":
        view = view.with_filter("device_type", "mobile")
    expected = await by_sql(plain, view, what)
    found = await ranked(reading, view, what, limit=1000)
    assert expected or (what == "page_path" and view.event == "click")
    assert found.after is None
    assert found.total == sum(row["number"] for row in expected)
    crowded = view.start.isoformat() < "2025-03-12T09"
    if not (crowded and what in ("page_path", ENTRY_PAGE, "event") and found.source == "aggregates"):
        assert [(row.value, row.number) for row in found.rows] == [(row["value"], row["number"]) for row in expected]
        assert not found.at_least or crowded
    people = {row["value"]: row["people"] for row in expected}
    for row in found.rows:
        assert row.share == row.number / found.total
        if what == ENTRY_PAGE and found.source == "aggregates":
            assert row.visitors is None
        elif row.value is not OTHER and not (crowded and what in ("page_path", "event")):
            assert row.visitors is None if row.visitors is None else close(row.visitors.number, people[row.value])
            assert row.visitors is not None or (row.value is None and found.source == "aggregates")


@pytest.mark.parametrize("what", ["page_path", "event"])
async def test_where_there_was_no_room_nothing_is_lost(
    plain: asyncpg.Connection, reading: asyncpg.Connection, what: str
):
    view = view_of("period=custom&from=2025-03-12&to=2025-03-12")
    true = {row["value"]: row["number"] for row in await by_sql(plain, view, what)}
    found = await ranked(reading, view, what, limit=1000)
    *rows, other = found.rows
    assert other.value is OTHER and other.number > 0 and other.visitors is not None
    assert found.at_least and found.source == "aggregates"
    assert sum(row.number for row in found.rows) == found.total == sum(true.values())
    assert all(row.value is not OTHER and row.number <= true[row.value] for row in rows)
    assert len(true) > len(rows)
    assert sum(row.share for row in found.rows) == pytest.approx(1)


@pytest.mark.parametrize("query", ["period=30d&timezone=Asia/Kolkata", "period=7d&os=Linux"])
@pytest.mark.parametrize("what", ["page_path", "event", "utm_source", ENTRY_PAGE])
async def test_pages_of_a_ranking_make_up_the_whole(reading: asyncpg.Connection, query: str, what: str):
    view = view_of(query)
    whole = await ranked(reading, view, what, limit=1000)
    rows, after = [], None
    for _ in range(100):
        page = await ranked(reading, view, what, limit=30 if what in ("page_path", ENTRY_PAGE) else 2, after=after)
        assert page.total == whole.total
        rows += page.rows
        after = page.after
        if after is None:
            break
    assert [row for row in rows if row.value is not OTHER] == [row for row in whole.rows if row.value is not OTHER]
    assert sum(row.value is OTHER for row in rows) == sum(row.value is OTHER for row in whole.rows)


@pytest.mark.parametrize("value", ["DE", None])
async def test_a_dimension_that_is_filtered_by_has_one_row(
    plain: asyncpg.Connection, reading: asyncpg.Connection, value: str | None
):
    view = view_of("").with_filter("country", value)
    found = await ranked(reading, view, "country")
    number = await plain.fetchval(
        f"SELECT count(*) FROM plain WHERE created_at >= $1 AND country IS NOT DISTINCT FROM {quoted(value)}"
        " AND device_type IS DISTINCT FROM 'bot'",
        view.start,
    )
    assert [(row.value, row.number, row.share) for row in found.rows] == [(value, number, 1.0)]


async def test_what_only_events_have_is_refused_for_longer(reading: asyncpg.Connection):
    view = view_of("period=custom&from=2025-02-27&to=2025-04-10")
    with pytest.raises(Refused, match="entry pages with filters are read from events, which is possible for at most"):
        await ranked(reading, view.with_filter("os", "iOS"), ENTRY_PAGE)
    with pytest.raises(Refused, match="a ranking by a dimension with a filter"):
        await ranked(reading, view.with_filter("os", "iOS"), "country")
