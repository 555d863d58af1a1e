"""Journeys of people: through a funnel, and whether they come back. From events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import asyncpg

from ingest.features.stats import reading, times
from ingest.features.stats.query import Query, check_events_range
from ingest.features.stats.reading import QUERIES
from ingest.features.stats.slices import sliced
from ingest.postgres.queries import fill


async def funnel(connection: asyncpg.Connection, query: Query) -> Any:
    """How many people did the steps in this order, the last within a given time of the first."""
    check_events_range(query.start, query.end, "a funnel is answered from events")
    as_of = await connection.fetchval("SELECT now()")
    row = await connection.fetchrow(
        funnel_query(len(query.steps)),
        *reading.picked(query, query.start, query.end),
        query.within,
        [step.kind for step in query.steps],
        [step.value for step in query.steps],
    )
    people = [row[f"people_{step}"] for step in range(1, len(query.steps) + 1)]
    return {
        **_about(query, as_of, query.start, query.end),
        "within_seconds": int(query.within.total_seconds()),
        "steps": [
            {
                "step": step.text,
                "people": people[place],
                "of_first": _share(people[place], people[0]),
                "of_previous": _share(people[place], people[place - 1]) if place else None,
                "median_seconds": row[f"seconds_{place + 1}"] if place else None,
            }
            for place, step in enumerate(query.steps)
        ],
    }


def funnel_query(count: int) -> str:
    """The query for this number of steps: each is a SELECT around those before it, over one sort."""
    steps = range(1, count + 1)
    conditions = {step: fill(QUERIES["funnel_condition"], step=step) for step in steps}
    inner = fill(
        QUERIES["funnel_begin"],
        are=", ".join(f"{condition} AS is_{step}" for step, condition in conditions.items()),
        any=" OR ".join(conditions.values()),
    )
    for step in steps[1:]:
        inner = fill(QUERIES["funnel_step"], step=step, before=step - 1, inner=inner)
    firsts, counts = (
        ", ".join(fill(QUERIES[part], step=step) for step in steps) for part in ("funnel_first", "funnel_count")
    )
    return fill(QUERIES["funnel"], counts=counts, firsts=firsts, inner=inner)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


async def retention(connection: asyncpg.Connection, query: Query, now: datetime) -> Any:
    """Of the people with their first event in a bucket, how many came back in each bucket after it."""
    granularity, zone = query.granularity, query.zone
    check_events_range(query.start, query.end, "retention is answered from events")
    start, end = times.begin(query.start, granularity, zone), times.up(query.end, granularity, zone)
    found = list(times.starts(start, end, granularity, zone))
    as_of = await connection.fetchval("SELECT now()")
    read = await sliced(connection, query, [(start, end)], found)
    rows = await connection.fetch(
        QUERIES["retention"],
        *read.arguments,
        found,
        query.return_event,
        query.periods,
    )
    counts = {(row["cohort"], row["period"]): row["people"] for row in rows}
    begun = sum(one < now for one in found)
    return {
        **_about(query, as_of, start, end),
        "granularity": granularity,
        "cohorts": [
            {
                "bucket": bucket.astimezone(zone).isoformat(),
                "people": counts.get((place, None), 0),
                "periods": [
                    counts.get((place, period), 0) for period in range(min(query.periods, max(1, begun - place)))
                ],
            }
            for place, bucket in enumerate(found)
        ],
    }


def _about(query: Query, as_of: datetime, start: datetime, end: datetime) -> dict[str, Any]:
    return {
        "source": "events",
        "as_of": as_of.isoformat(),
        "from": start.astimezone(query.zone).isoformat(),
        "to": end.astimezone(query.zone).isoformat(),
    }
