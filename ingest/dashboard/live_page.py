"""Live: who is there now, and the newest events and refusals as they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import asyncpg

from ingest.dashboard import counting
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Page, Panel, Table
from ingest.dashboard.counting import NOTHING, Measures
from ingest.dashboard.rankings import ranking
from ingest.dashboard.view import View
from ingest.features.stats import times
from ingest.postgres.queries import load_queries

_QUERIES: Final = load_queries("dashboard_live")
_NOW: Final = timedelta(minutes=5)
_BEFORE: Final = timedelta(minutes=30)
_ROWS: Final = 20
_PAGES: Final = 8


def _last(ask: Ask, length: timedelta) -> View:
    """The view of the last minutes, up to the end of this one, of everything."""
    end = times.up(ask.now, "minute")
    return replace(ask.view, start=end - length, end=end, filters={}, event=None, compares=False)


async def _now(ask: Ask) -> Mapping[str, Any]:
    async with ask.counting() as connection:
        return {"five": await _measured(connection, ask, _NOW), "thirty": await _measured(connection, ask, _BEFORE)}


async def _measured(connection: asyncpg.Connection, ask: Ask, length: timedelta) -> Measures:
    view = _last(ask, length)
    measured = await counting.measure(connection, view.as_query(), ask.desk.site.rolled_up, [view.start])
    return measured.found.get(0, NOTHING)


async def _pages(ask: Ask) -> Mapping[str, Any]:
    async with ask.counting() as connection:
        view = _last(ask, _BEFORE)
        return {"found": await ranking(connection, view, "page_path", ask.desk.site.rolled_up, ask.now, _PAGES)}


def _pages_table(found: Mapping[str, Any]) -> Table:
    return ("Page", "Views"), [(row.value, row.number) for row in found["found"].rows]


async def _live(ask: Ask) -> Mapping[str, Any]:
    """The newest of both for viewers without scripts; with them, the stream has the same and what follows."""
    async with ask.reading() as connection:
        events = await connection.fetch(_QUERIES["newest_events"], ask.now - timedelta(days=1), _ROWS)
        refused = await connection.fetch(_QUERIES["newest_refused"], _ROWS)
    return {"events": events, "refused": refused}


PANELS: Final = (
    Panel("now", "Now", _now),
    Panel("now-pages", "Pages of the last half hour", _pages, _pages_table),
)
PAGES: Final = (
    Page(
        "/live",
        "Live",
        "live.html",
        panels=[panel.name for panel in PANELS],
        load=_live,
        has_range=False,
        has_filters=False,
    ),
)
