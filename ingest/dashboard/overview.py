"""The overview: how many people came, what they did, and where they came from, over a range."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import asyncpg

from ingest.dashboard import words
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Page, Panel, Table
from ingest.dashboard.figures import Figures, Visits, figures, visits
from ingest.dashboard.rankings import COUNTED, ranking
from ingest.dashboard.series import series
from ingest.dashboard.view import View
from ingest.features.stats.query import Refused

METRICS: Final = {
    "visitors": "Visitors",
    "sessions": "Sessions",
    "page_views": "Page views",
    "conversions": "Conversions",
}
"""Those that the chart shows, and what they are called."""
_VISITS: Final = {"bounce_rate": "Bounce rate", "session_seconds": "Session length"}
_TITLES: Final = {
    "page_path": "Pages",
    "entry_page": "Entry pages",
    "referrer_host": "Referrers",
    "utm_source": "Sources",
    "utm_medium": "Mediums",
    "utm_campaign": "Campaigns",
    "country": "Countries",
    "device_type": "Devices",
    "browser": "Browsers",
    "os": "Systems",
    "event": "Events",
}
_COUNTS: Final = {"events": "Events", "page_views": "Views", "sessions": "Sessions"}
_OF_FIRST_PAGES: Final = ("referrer_host", "utm_source", "utm_medium", "utm_campaign")
"""Usually only the first page of a visit has these. Their lists leave out events without one, which are most."""
_ROWS: Final = 10
_ANY: Final = """
SELECT EXISTS (SELECT FROM analytics.events) AS any_event,
    EXISTS (SELECT FROM analytics.events WHERE device_type IS DISTINCT FROM 'bot') AS people
"""
_CSV_ROWS: Final = 1000


async def _figures(ask: Ask) -> Mapping[str, Any]:
    async def load(connection: asyncpg.Connection, view: View) -> Figures:
        return await figures(connection, view, ask.desk.site.rolled_up)

    of_first = any(name in ask.view.filters for name in _OF_FIRST_PAGES)
    shown = {"titles": METRICS, "metric": metric_of(ask), "of_first": of_first}
    return {**shown, **await _compared(ask, load)}


async def _visits(ask: Ask) -> Mapping[str, Any]:
    async def load(connection: asyncpg.Connection, view: View) -> Visits:
        return await visits(connection, view, ask.now)

    return {"titles": _VISITS, **await _compared(ask, load)}


async def _compared(
    ask: Ask, load: Callable[[asyncpg.Connection, View], Awaitable[Figures | Visits]]
) -> Mapping[str, Any]:
    """`now` and `before`, which is None if it is not compared, or is too long ago."""
    async with ask.counting() as connection:
        now, before = await load(connection, ask.view), None
    with contextlib.suppress(Refused):
        if ask.view.compares:
            async with ask.counting() as connection:
                before = await load(connection, ask.view.before)
    return {"now": now, "before": before}


def _figures_table(found: Mapping[str, Any]) -> Table:
    before = found["before"]
    rows = [
        (
            title,
            getattr(found["now"], name).value,
            getattr(before, name).value if before is not None else None,
            "yes" if getattr(found["now"], name).estimated else "no",
        )
        for name, title in found["titles"].items()
    ]
    return ("Figure", "Value", "Before", "Estimated"), rows


def metric_of(ask: Ask) -> str:
    """What the chart shows. Raises Refused."""
    metric = ask.more.get("metric", "visitors")
    if metric not in METRICS:
        raise Refused("bad_parameter", f"metric must be one of {', '.join(METRICS)}")
    return metric


async def _chart(ask: Ask) -> Mapping[str, Any]:
    metric = metric_of(ask)
    async with ask.counting() as connection:
        found = await series(connection, ask.view, metric, ask.desk.site.rolled_up, ask.now)
    return {"found": found, "title": METRICS[metric], "zone": ask.view.zone}


def _chart_table(found: Mapping[str, Any]) -> Table:
    points, before = found["found"].points, found["found"].before or []
    rows = [
        (
            point.start.astimezone(found["zone"]),
            point.value,
            before[index].value if index < len(before) else None,
            "yes" if point.partial else "no",
        )
        for index, point in enumerate(points)
    ]
    return ("From", found["title"], "Before", "Incomplete"), rows


def _ranking(what: str) -> Callable[[Ask], Awaitable[Mapping[str, Any]]]:
    async def load(ask: Ask) -> Mapping[str, Any]:
        limit = _CSV_ROWS if ask.request.match_info.get("form") else _ROWS
        async with ask.counting() as connection:
            found = await ranking(connection, ask.view, what, ask.desk.site.rolled_up, ask.now, limit)
        of_first = what in _OF_FIRST_PAGES
        return {"found": found, "dimension": what, "count_title": _COUNTS[COUNTED[what]], "of_first": of_first}

    return load


def _ranking_table(found: Mapping[str, Any]) -> Table:
    what = found["dimension"]
    rows = [
        (
            row.value if what == "country" and isinstance(row.value, str) else words.value(what, row.value),
            row.number,
            row.visitors.number if row.visitors is not None else None,
            ("yes" if row.visitors.estimated else "no") if row.visitors is not None else None,
            round(row.share, 6),
        )
        for row in found["found"].rows
    ]
    return (words.DIMENSIONS[what], found["count_title"], "Visitors", "Estimated", "Share"), rows


async def _overview(ask: Ask) -> Mapping[str, Any]:
    """Whether there is any event yet: if not, the page says how to send the first."""
    async with ask.counting() as connection:
        row = await connection.fetchrow(_ANY)
    return {"is_empty": not row["people"], "has_bots": row["any_event"]}


PANELS: Final = (
    Panel("figures", "Figures", _figures, _figures_table),
    # On their own, as with filters they are read from events.
    Panel("visits", "Visits", _visits, _figures_table),
    Panel("chart", "Over time", _chart, _chart_table),
    *[
        Panel(f"top-{what}", title, _ranking(what), _ranking_table, template="ranking")
        for what, title in _TITLES.items()
    ],
)
PAGES: Final = (
    Page(
        "/",
        "Overview",
        "overview.html",
        panels=[panel.name for panel in PANELS],
        load=_overview,
        parameters=["metric"],
        is_shareable=True,
    ),
)
