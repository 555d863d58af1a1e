"""KPIs: the queries of sql/queries/kpis.sql, for windows of time, into analytics.metrics.

A window is computed again while it is recent; and whenever what a KPI is from has changed since, which is noted
(`stale_metrics`). Windows are in UTC; weeks begin on Monday.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import asyncpg

from ingest.base.errors import IngestError, one_line
from ingest.postgres import queries
from ingest.postgres.queries import Query
from ingest.rollup import sketches, stale_metrics
from ingest.rollup.sketches import Sketch
from ingest.rollup.stale_metrics import Note
from ingest.rollup.tallies import BEGINNINGS, following

logger = logging.getLogger(__name__)

QUERY_TIMEOUT_SECONDS: Final = 30
_QUERIES: Final = queries.load_queries("metrics")
_METADATA: Final = re.compile(
    r"(counter|gauge|histogram|rate), (sum|average|min|max|count|unique_count); ([a-z ]+?)"
    r"(?:; from (aggregates|events|events and flushes))?"
)
GRANULARITIES: Final = ("minute", "hour", "day", "week", "month")
SOURCES: Final = ("aggregates", "events")
"""What changes with events that come late."""
NOTED_SECONDS: Final = 120.0
"""Anybody can make up events of any number of windows: what is not done in this time is done by the next run."""
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
    source: str
    """What it is from, one of SOURCES or "events and flushes"; "": neither."""
    query: str

    @property
    def from_events(self) -> bool:
        """Whether it reads analytics.events itself, which takes longer the more there are."""
        return self.source.startswith("events")


class Window(NamedTuple):
    start: datetime
    end: datetime


# The file.


def parse(text: str) -> list[Kpi]:
    """The KPIs of a file of queries. Raises IngestError with the name of one that is not as the file's head says."""
    return [_kpi(query) for query in queries.parse(text, "kpis.sql")]


def _kpi(query: Query) -> Kpi:
    *sentences, metadata = query.comments or [""]
    match = _METADATA.fullmatch(metadata) if sentences else None
    granularities = tuple(match[3].split()) if match else ()
    if match is None or not granularities or not query.text or set(granularities) - set(GRANULARITIES):
        raise IngestError(
            f"KPI {query.name}: below its name come a sentence and a line such as"
            ' "-- counter, sum; hour day" or "-- rate, average; hour day; from events", then its query'
        )
    return Kpi(query.name, " ".join(sentences), match[1], match[2], granularities, match[4] or "", query.text)


def load() -> list[Kpi]:
    """Ours, in the order in which they are computed: later ones may read what earlier ones have stored."""
    return [_kpi(query) for query in queries.read_queries("kpis")]


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


# Computing.


async def run_once(
    connection: asyncpg.Connection,
    now: datetime,
    kpis: Sequence[Kpi],
    *,
    only_open: bool = False,
    seconds: float = NOTED_SECONDS,
) -> int:
    """Compute the windows that are recent or missing at `now`, and those that have changed since they were over; or
    only those that hold `now`. How many rows. `seconds`: for how long at most it goes on with what has changed.

    A KPI that fails does not keep the others from being computed; IngestError names those that did, at the end.
    """
    run = _Run(connection, now.astimezone(UTC), kpis)
    if only_open:
        await run.compute_open()
    else:
        # Before anything is computed: what is noted from here on stays.
        noted = {source: await stale_metrics.noted(connection, source, run.now) for source in SOURCES}
        # Late hours before recent days, which may be made of them.
        whole = [
            source
            for source, notes in noted.items()
            if await run.compute_noted(source, notes, time.monotonic() + seconds)
        ]
        await run.compute_recent()
        for source in whole:
            await run.forget_recent(source, noted[source])
    if run.failed:
        raise IngestError(f"KPIs that could not be computed: {', '.join(sorted(run.failed))}")
    return run.rows


class _Run:
    """One run over some KPIs. `rows` and `failed` (names) are what has become of it so far. A KPI that fails is not
    tried again, but that one window fails does not keep it from being computed for recent ones."""

    def __init__(self, connection: asyncpg.Connection, now: datetime, kpis: Sequence[Kpi]) -> None:
        self.now = now
        self.rows = 0
        self.failed: set[str] = set()
        self._given_up: set[str] = set()
        self._connection = connection
        self._kpis = kpis

    async def compute_open(self) -> None:
        for kpi in self._kpis:
            for granularity in kpi.granularities:
                await self._compute(kpi, granularity, [open_window(granularity, self.now)])

    async def compute_recent(self) -> None:
        """The windows that are recent, or missing."""
        self._given_up = set()
        for kpi in self._kpis:
            for granularity in kpi.granularities:
                latest = await self._connection.fetchval(_QUERIES["latest"], kpi.name, granularity)
                await self._compute(kpi, granularity, windows(granularity, self.now, latest))

    async def compute_noted(self, source: str, notes: Sequence[Note], until: float) -> bool:
        """The windows that are over and were noted, but for those that are recent; whether all were computed."""
        minutes_from, events_from = await stale_metrics.kept_from(self._connection)
        kept_from = {"minute": minutes_from, "hour": events_from if source == "events" else None}
        for note in notes:
            if self._is_recent(note):
                continue
            if time.monotonic() >= until:
                return False
            oldest = kept_from.get(note.granularity)
            # Where that is gone which it would be computed from, it stays as it is.
            if oldest is None or note.start >= oldest:
                window = Window(note.start, following(note.granularity, note.start))
                for kpi in self._kpis:
                    if kpi.source == source and note.granularity in kpi.granularities:
                        await self._compute(kpi, note.granularity, [window])
            await self._forget(source, note)
        return not self._given_up

    async def forget_recent(self, source: str, notes: Sequence[Note]) -> None:
        """Forget the notes of windows that are over, and were computed as recent."""
        for note in notes:
            if self._is_recent(note) and following(note.granularity, note.start) <= self.now:
                await self._forget(source, note)

    def _is_recent(self, note: Note) -> bool:
        """Whether the window is computed in any case."""
        return note.start >= BEGINNINGS[note.granularity](self.now - _RECENT[note.granularity])

    async def _forget(self, source: str, note: Note) -> None:
        """Forget a note if every KPI that is from that source was computed."""
        computed = {kpi.name for kpi in self._kpis} - self._given_up
        if _OF_SOURCE[source, note.granularity] <= computed:
            await stale_metrics.forget(self._connection, source, note)

    async def _compute(self, kpi: Kpi, granularity: str, some: Iterable[Window]) -> None:
        if kpi.name in self._given_up:
            return
        try:
            for window in some:
                self.rows += await _compute(self._connection, kpi, granularity, window, self.now)
        except (asyncpg.PostgresError, ValueError) as error:
            if self._connection.is_closed():
                raise
            logger.warning("KPI %s failed: %s", kpi.name, one_line(error))
            self.failed.add(kpi.name)
            self._given_up.add(kpi.name)


_OF_SOURCE: Final = {
    (source, granularity): {kpi.name for kpi in load() if kpi.source == source and granularity in kpi.granularities}
    for source in SOURCES
    for granularity in GRANULARITIES
}
"""The names of all KPIs that are from a source, by granularity."""


async def _compute(connection: asyncpg.Connection, kpi: Kpi, granularity: str, window: Window, now: datetime) -> int:
    async with connection.transaction():
        await connection.execute(_QUERIES["begin"], f"{QUERY_TIMEOUT_SECONDS}s", f"KPI {kpi.name} by {granularity}")
        query, arguments = _bound(kpi.query, window.start, min(window.end, now), granularity)
        found = await connection.fetch(query, *arguments)
        values = _values(found)
        await connection.execute(
            _QUERIES["clear"], kpi.name, granularity, window.start, [value[0] for value in values]
        )
        if values:
            await connection.execute(
                _QUERIES["store"],
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
