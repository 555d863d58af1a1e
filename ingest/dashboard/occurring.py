"""Which events and pages occur in a range, from aggregates: what the steps of funnels are chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import asyncpg

from ingest.dashboard.funnel_steps import KNOWN, Funnel, built_in, written
from ingest.dashboard.view import View
from ingest.features.stats import reading, times
from ingest.features.stats.steps import EventStep
from ingest.postgres.queries import load_queries

MOST_NAMES: Final = 200
MOST_PAGES: Final = 100
_ALIKE: Final = 8
_QUERIES: Final = load_queries("dashboard_journeys")


class Choice(NamedTuple):
    """A step that may be chosen, as it is written, and how many events match it."""

    text: str
    value: str
    events: int


class Choices(NamedTuple):
    """What occurs in a range, the most frequent first."""

    types: Sequence[Choice]
    names: Sequence[Choice]
    pages: Sequence[Choice]


async def choices(connection: asyncpg.Connection, view: View) -> Choices:
    parts = await _parts(connection, view)
    return await _choices(connection, parts, MOST_NAMES, MOST_PAGES, None)


async def alike(connection: asyncpg.Connection, view: View, step: EventStep) -> Sequence[Choice] | None:
    """What to choose instead of a step that nothing matches in this range; None if something does."""
    if step.kind == "type":
        return None
    parts = await _parts(connection, view)
    found = await _choices(connection, parts, _ALIKE, _ALIKE, step.value)
    among = found.names if step.kind == "event" else found.pages
    return None if any(choice.value == step.value for choice in among) else [*found.names, *found.pages]


async def names(connection: asyncpg.Connection, view: View) -> Sequence[str]:
    """The most frequent names of events."""
    rows = await connection.fetch(_QUERIES["names"], *await _parts(connection, view), MOST_NAMES, None)
    return [row["name"] for row in rows if row["name"] is not None]


async def built_in_funnel(connection: asyncpg.Connection, view: View) -> Funnel:
    """The funnel that is there without being saved, of the events that occur."""
    rows = await connection.fetch(_QUERIES["occurring"], *await _parts(connection, view), list(KNOWN))
    known = {row["name"] for row in rows} & set(KNOWN)
    return built_in(known, {row["name"] for row in rows if row["is_conversion"]})


Parts = tuple[Sequence[str], Sequence[object], Sequence[object]]


async def _parts(connection: asyncpg.Connection, view: View) -> Parts:
    """The stored buckets of the range, in whole hours of UTC: minutes are not kept for long."""
    start, end = times.begin(view.start, "hour"), times.up(view.end, "hour")
    found = times.cover(start, end, await reading.stale(connection))
    assert found is not None
    return reading.columns(found)


async def _choices(
    connection: asyncpg.Connection, parts: Parts, most_names: int, most_pages: int, text: str | None
) -> Choices:
    named = await connection.fetch(_QUERIES["names"], *parts, most_names, text)
    viewed = await connection.fetch(_QUERIES["pages"], *parts, most_pages, text)
    return Choices(
        [Choice(f"type:{row['type']}", row["type"], row["events"]) for row in named if row["name"] is None],
        [
            Choice(written("event", row["name"]), row["name"], row["events"])
            for row in named
            if row["name"] is not None
        ],
        [Choice(f"page:{row['value']}", row["value"], row["events"]) for row in viewed if row["value"]],
    )
