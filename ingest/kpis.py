"""KPIs: the queries of sql/queries/kpis.sql, for windows of time, into analytics.metrics.

A window is computed again while it is recent, as events come late; never once it is closed. Windows are in UTC; weeks
begin on Monday.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any, Final, NamedTuple

import asyncpg

from ingest import sketches
from ingest.database import sql_folder
from ingest.errors import IngestError
from ingest.sketches import Sketch
from ingest.tallies import BEGINNINGS

logger = logging.getLogger(__name__)

QUERY_TIMEOUT_SECONDS: Final = 30
_HEADER: Final = re.compile(r"^-- (\w+) --$", re.MULTILINE)
_METADATA: Final = re.compile(
    r"(counter|gauge|histogram|rate), (sum|average|min|max|count|unique_count); ([a-z ]+?)(; from events)?"
)
GRANULARITIES: Final = ("minute", "hour", "day", "week", "month")
_RECENT: Final = {
    "minute": timedelta(minutes=10),
    "hour": timedelta(hours=2),
    "day": timedelta(hours=48),
    "week": timedelta(hours=48),
    "month": timedelta(hours=48),
}
"""A window that ended at most so long ago is computed again."""
_BACK: Final = {
    "minute": timedelta(hours=1),
    "hour": timedelta(days=2),
    "day": timedelta(days=31),
    "week": timedelta(weeks=5),
    "month": timedelta(days=90),
}
"""How far back windows are computed that were missed: at the very start, and after an outage."""


class Kpi(NamedTuple):
    name: str
    description: str
    type: str
    aggregation: str
    granularities: tuple[str, ...]
    from_events: bool
    """Whether it reads analytics.events itself, which takes longer the more there are."""
    query: str


class Window(NamedTuple):
    start: datetime
    end: datetime


# The file.


def parse(text: str) -> list[Kpi]:
    """The KPIs of a file of queries. Raises IngestError with the name of one that is not as the file's head says."""
    _, *parts = _HEADER.split(text)
    return [_parse_one(name, body) for name, body in zip(parts[::2], parts[1::2], strict=True)]


def _parse_one(name: str, body: str) -> Kpi:
    lines = body.strip().splitlines()
    comments = [line.removeprefix("--").strip() for line in takewhile(lambda line: line.startswith("--"), lines)]
    query = "\n".join(line for line in lines if not line.lstrip().startswith("--")).strip()
    match = _METADATA.fullmatch(comments[-1]) if len(comments) > 1 else None
    granularities = tuple(match[3].split()) if match else ()
    if match is None or not granularities or not query or set(granularities) - set(GRANULARITIES):
        raise IngestError(
            f"KPI {name}: below its name come a sentence and a line such as"
            ' "-- counter, sum; hour day" or "-- rate, average; hour day; from events", then its query'
        )
    return Kpi(name, " ".join(comments[:-1]), match[1], match[2], granularities, match[4] is not None, query)


def load() -> list[Kpi]:
    """Ours, in the order in which they are computed: later ones may read what earlier ones have stored."""
    return parse((sql_folder() / "queries" / "kpis.sql").read_text(encoding="utf-8"))


# Windows.


def open_window(granularity: str, now: datetime) -> Window:
    """The one that holds `now`."""
    start = BEGINNINGS[granularity](now)
    return Window(start, following(granularity, start))


def windows(granularity: str, now: datetime, latest: datetime | None) -> Iterator[Window]:
    """Those to be computed at `now`, oldest first, if `latest` is where the latest complete one begins."""
    begin = BEGINNINGS[granularity]
    oldest = now - _BACK[granularity]
    start = begin(oldest)
    if latest is not None:
        start = max(start, min(following(granularity, latest), begin(now - _RECENT[granularity])))
    while start <= now:
        end = following(granularity, start)
        yield Window(start, end)
        start = end


def following(granularity: str, start: datetime) -> datetime:
    """Where the bucket after the one that begins at `start` begins."""
    if granularity == "month":
        return BEGINNINGS["month"](start + timedelta(days=31))
    return start + {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}.get(
        granularity, timedelta(weeks=1)
    )


# Computing.


async def run_once(
    connection: asyncpg.Connection, now: datetime, kpis: Sequence[Kpi], *, only_open: bool = False
) -> int:
    """Compute the windows that are recent or missing at `now`, or only those that hold it; how many rows.

    A KPI that fails does not keep the others from being computed; IngestError names those that did, at the end.
    """
    now = now.astimezone(UTC)
    failed: list[str] = []
    rows = 0
    for kpi in kpis:
        try:
            for granularity in kpi.granularities:
                if only_open:
                    wanted = [open_window(granularity, now)]
                else:
                    latest = await connection.fetchval(_LATEST, kpi.name, granularity)
                    wanted = list(windows(granularity, now, latest))
                for window in wanted:
                    rows += await _compute(connection, kpi, granularity, window, now)
        except (asyncpg.PostgresError, ValueError) as error:
            logger.warning("KPI %s failed: %s", kpi.name, " ".join(str(error).split()))
            failed.append(kpi.name)
    if failed:
        raise IngestError(f"KPIs that could not be computed: {', '.join(failed)}")
    return rows


# Of those that were computed when they were over: an open one may be there before those that were missed.
_LATEST: Final = """
SELECT max(time_window_start) FROM analytics.metrics
WHERE name = $1 AND granularity = $2::text::analytics.granularity AND timestamp >= time_window_end
"""
_STORE: Final = """
INSERT INTO analytics.metrics (
    name, description, type, aggregation, granularity, time_window_start, time_window_end, source, timestamp,
    dimensions, value_numeric, value_json, sample_count
)
SELECT $1, $2, $3::text::analytics.metric_type, $4::text::analytics.metric_aggregation,
    $5::text::analytics.granularity, $6, $7, 'kpis', $8, dimensions::jsonb, value, json::jsonb, samples
FROM unnest($9::text[], $10::numeric[], $11::text[], $12::bigint[]) AS made (dimensions, value, json, samples)
ON CONFLICT ON CONSTRAINT metrics_window_key DO UPDATE SET
    description = excluded.description, timestamp = excluded.timestamp, value_numeric = excluded.value_numeric,
    value_json = excluded.value_json, sample_count = excluded.sample_count
"""
_CLEAR: Final = """
DELETE FROM analytics.metrics
WHERE name = $1 AND granularity = $2::text::analytics.granularity AND time_window_start = $3 AND source = 'kpis'
    AND dimensions <> ALL ($4::text[]::jsonb[])
"""


async def _compute(connection: asyncpg.Connection, kpi: Kpi, granularity: str, window: Window, now: datetime) -> int:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL statement_timeout = '{QUERY_TIMEOUT_SECONDS}s'")
        query, arguments = _bound(kpi.query, window.start, min(window.end, now), granularity)
        found = await connection.fetch(query, *arguments)
        values = _values(found)
        await connection.execute(_CLEAR, kpi.name, granularity, window.start, [value[0] for value in values])
        if values:
            await connection.execute(
                _STORE,
                kpi.name,
                kpi.description,
                kpi.type,
                kpi.aggregation,
                granularity,
                window.start,
                window.end,
                now,
                *map(list, zip(*values, strict=True)),
            )
        return len(values)


def _bound(query: str, start: datetime, end: datetime, granularity: str) -> tuple[str, list[object]]:
    """The query with a type for each of its arguments, and without those that it does not mention, which Postgres
    would refuse."""
    arguments = {"$1": (start, "timestamptz"), "$2": (end, "timestamptz"), "$3": (granularity, "text")}
    used = [mark for mark in arguments if mark in query]
    for place, mark in enumerate(used, 1):
        query = query.replace(mark, f"${place}::{arguments[mark][1]}")
    return query, [arguments[mark][0] for mark in used]


def _values(rows: Sequence[Any]) -> list[tuple[str, Any, str | None, int | None]]:
    """(dimensions, value_numeric, value_json, sample_count) of what a query gave; sketches counted together."""
    if rows and "sketch" in rows[0]:
        parts: dict[str, list[Sketch]] = {}
        for row in rows:
            parts.setdefault(row["dimensions"], []).append(sketches.load(row["sketch"]))
        return [(of, sketches.count(sketches.merged(some)), None, None) for of, some in parts.items()]
    return [
        (row["dimensions"], _rounded(row["value_numeric"]), row.get("value_json"), row.get("sample_count"))
        for row in rows
    ]


def _rounded(value: Any) -> Any:
    """As many places as the column has."""
    return value if value is None else round(value, 8)
