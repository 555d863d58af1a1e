"""What people do: the way through a funnel, and whether they come back. From events."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import asyncpg

from ingest.features.stats import reading, times
from ingest.features.stats.query import Query, check_events_range
from ingest.features.stats.reading import QUERIES

ORDER: Final = "created_at, received_at, batch_id, batch_position, id"
"""The order in which events were sent; that of ids is only for rows of which nothing is known."""
_CONDITIONS: Final = {
    "event": "name = {value}",
    "type": "type = {value}::analytics.event_type",
    "page": f"(type = 'page_view' AND {reading.value_of('page_path')} = {{value}})",
}
"""Whether an event is a step of this kind."""


async def funnel(connection: asyncpg.Connection, query: Query) -> Any:
    """How many people did the steps in this order, the last within the given time of the first."""
    check_events_range(query.start, query.end, "a funnel is answered from events")
    moment = await reading.moment(connection)
    row = await connection.fetchrow(
        funnel_query(query),
        *reading.picked(query, query.start, query.end),
        query.within,
        [step.value for step in query.steps],
        *reading.filter_values(query),
    )
    people = [row[f"people_{step}"] for step in range(1, len(query.steps) + 1)]
    return {
        **_about(query, moment, query.start, query.end),
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


def funnel_query(query: Query) -> str:
    """The query for as many steps as are asked for: each is a SELECT around those before it, over one sort."""
    count = len(query.steps)
    conditions = [
        _CONDITIONS[step.kind].replace("{value}", f"($6::text[])[{place}]")
        for place, step in enumerate(query.steps, 1)
    ]
    inner = (
        reading.filtered("funnel_begin", query, 6)
        .replace("{is}", ", ".join(f"{condition} AS is_{place}" for place, condition in enumerate(conditions, 1)))
        .replace("{any}", " OR ".join(dict.fromkeys(conditions)))
    )
    for step in range(2, count + 1):
        inner = (
            QUERIES["funnel_step"]
            .replace("{step}", str(step))
            .replace("{before}", str(step - 1))
            .replace("{order}", ORDER)
            .replace("{inner}", inner)
        )
    steps = range(1, count + 1)
    firsts = ", ".join(
        f"bool_or(began_{step} IS NOT NULL) AS did_{step},"
        f" (array_agg(took_{step} ORDER BY {ORDER}) FILTER (WHERE began_{step} IS NOT NULL))[1] AS took_{step}"
        for step in steps
    )
    counts = ", ".join(
        f"count(*) FILTER (WHERE did_{step}) AS people_{step},"
        f" percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM took_{step})::float8) AS seconds_{step}"
        for step in steps
    )
    return QUERIES["funnel"].replace("{counts}", counts).replace("{firsts}", firsts).replace("{inner}", inner)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


async def retention(connection: asyncpg.Connection, query: Query, now: datetime) -> Any:
    """Of the people whose first event in the range was in a bucket, how many came back in which bucket after it."""
    granularity, zone = query.granularity, query.zone
    check_events_range(query.start, query.end, "retention is answered from events")
    start, end = times.begin(query.start, granularity, zone), times.up(query.end, granularity, zone)
    found = list(times.starts(start, end, granularity, zone))
    moment = await reading.moment(connection)
    rows = await connection.fetch(
        reading.filtered("retention", query, 7),
        start,
        end,
        query.types,
        found,
        query.event,
        query.return_event,
        query.periods,
        *reading.filter_values(query),
    )
    counts = {(row["cohort"], row["period"]): row["people"] for row in rows}
    begun = sum(one < now for one in found)
    return {
        **_about(query, moment, start, end),
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


def _about(query: Query, moment: reading.Moment, start: datetime, end: datetime) -> dict[str, Any]:
    return {
        "source": "events",
        "as_of": moment.now.isoformat(),
        "from": start.astimezone(query.zone).isoformat(),
        "to": end.astimezone(query.zone).isoformat(),
    }
