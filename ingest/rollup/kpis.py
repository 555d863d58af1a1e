"""KPIs: runs the queries of sql/queries/kpis.sql per time window, and stores the results in analytics.metrics.

A window is recomputed while it is recent, and whenever its source has changed since (`stale_metrics`). Windows are in
UTC; weeks begin on Monday.
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
"""Those that change when events arrive late."""
NOTED_SECONDS: Final = 120.0
"""Anybody can send events for any number of windows: what is not done in this time is left to the next run."""
_RECENT: Final = {
    "minute": timedelta(minutes=10),
    "hour": timedelta(hours=2),
    "day": timedelta(hours=48),
    "week": timedelta(hours=48),
    "month": timedelta(hours=48),
}
"""A window is recomputed until this long after its end."""
_BACK: Final = {
    "minute": timedelta(hours=1),
    "hour": timedelta(days=2),
    "day": timedelta(days=31),
    "week": timedelta(weeks=5),
    "month": timedelta(days=90),
}
"""How far back missed windows are computed: on the first run, and after an outage."""


class Kpi(NamedTuple):
    name: str
    description: str
    type: str
    aggregation: str
    granularities: tuple[str, ...]
    source: str
    """What it is computed from: one of SOURCES, "events and flushes", or "" for neither."""
    query: str

    @property
    def from_events(self) -> bool:
        """Whether it reads analytics.events itself, which takes longer the more events there are."""
        return self.source.startswith("events")


class Window(NamedTuple):
    start: datetime
    end: datetime


# The file.


def parse(text: str) -> list[Kpi]:
    """The KPIs of a query file. Raises IngestError naming one that does not follow the format in the file's head."""
    return [_kpi(query) for query in queries.parse(text, "kpis.sql")]


def _kpi(query: Query) -> Kpi:
    *sentences, metadata = query.comments or [""]
    match = _METADATA.fullmatch(metadata) if sentences else None
    granularities = tuple(match[3].split()) if match else ()
    if match is None or not granularities or not query.text or set(granularities) - set(GRANULARITIES):
        raise IngestError(
            f"KPI {query.name}: its name must be followed by a sentence, a line such as"
            ' "-- counter, sum; hour day" or "-- rate, average; hour day; from events", and its query'
        )
    return Kpi(query.name, " ".join(sentences), match[1], match[2], granularities, match[4] or "", query.text)


def load() -> list[Kpi]:
    """Our KPIs in the order in which they are computed: later ones may read what earlier ones have stored."""
    return [_kpi(query) for query in queries.read_queries("kpis")]


# Windows.


def open_window(granularity: str, now: datetime) -> Window:
    """The window that contains `now`."""
    start = BEGINNINGS[granularity](now)
    return Window(start, following(granularity, start))


def windows(granularity: str, now: datetime, latest: datetime | None) -> Iterator[Window]:
    """The windows to compute at `now`, oldest first. `latest`: where the latest complete one begins."""
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
    """Compute the windows that are recent or missing at `now`, and past ones that have changed; with `only_open`,
    just those that contain `now`. Returns the number of rows. `seconds`: time limit for the changed ones.

    A KPI that fails does not stop the others; at the end IngestError names those that failed.
    """
    run = _Run(connection, now.astimezone(UTC), kpis)
    if only_open:
        await run.compute_open()
    else:
        # Read before anything is computed: notes from here on stay.
        noted = {source: await stale_metrics.noted(connection, source, run.now) for source in SOURCES}
        # Late hours before recent days, which may be computed from them.
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
    """One run over some KPIs. `rows` and `failed` (names) are its results so far. A KPI that fails for a noted window
    is not tried for other noted windows, but still for recent ones."""

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
        """Compute the windows that are recent or missing."""
        self._given_up = set()
        for kpi in self._kpis:
            for granularity in kpi.granularities:
                latest = await self._connection.fetchval(_QUERIES["latest"], kpi.name, granularity)
                await self._compute(kpi, granularity, windows(granularity, self.now, latest))

    async def compute_noted(self, source: str, notes: Sequence[Note], until: float) -> bool:
        """Compute past windows that were noted, except recent ones. Returns whether all were computed."""
        minutes_from, events_from = await stale_metrics.kept_from(self._connection)
        kept_from = {"minute": minutes_from, "hour": events_from if source == "events" else None}
        for note in notes:
            if self._is_recent(note):
                continue
            if time.monotonic() >= until:
                return False
            oldest = kept_from.get(note.granularity)
            # If its source has been deleted, it stays as it is.
            if oldest is None or note.start >= oldest:
                window = Window(note.start, following(note.granularity, note.start))
                for kpi in self._kpis:
                    if kpi.source == source and note.granularity in kpi.granularities:
                        await self._compute(kpi, note.granularity, [window])
            await self._forget(source, note)
        return not self._given_up

    async def forget_recent(self, source: str, notes: Sequence[Note]) -> None:
        """Forget the notes of past windows that were computed as recent."""
        for note in notes:
            if self._is_recent(note) and following(note.granularity, note.start) <= self.now:
                await self._forget(source, note)

    def _is_recent(self, note: Note) -> bool:
        """Whether the window is computed anyway."""
        return note.start >= BEGINNINGS[note.granularity](self.now - _RECENT[note.granularity])

    async def _forget(self, source: str, note: Note) -> None:
        """Forget a note if every KPI from its source was computed."""
        computed = {kpi.name for kpi in self._kpis} - self._given_up
        if _OF_SOURCE[source, note.granularity] <= computed:
            await stale_metrics.forget(self._connection, source, note)

    async def _compute(self, kpi: Kpi, granularity: str, some: Iterable[Window]) -> None:
        if kpi.name in self._given_up:
            return
        try:
            for window in some:
                self.rows += await _compute_window(self._connection, kpi, granularity, window, self.now)
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
"""The names of all KPIs by source and granularity."""


async def _compute_window(
    connection: asyncpg.Connection, kpi: Kpi, granularity: str, window: Window, now: datetime
) -> int:
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
    """The query with its arguments typed, and without those it does not use, which Postgres would refuse."""
    arguments = {"$1": (start, "timestamptz"), "$2": (end, "timestamptz"), "$3": (granularity, "text")}
    used = [mark for mark in arguments if mark in query]
    for place, mark in enumerate(used, 1):
        query = query.replace(mark, f"${place}::{arguments[mark][1]}")
    return query, [arguments[mark][0] for mark in used]


def _values(rows: Sequence[Any]) -> list[tuple[str, Any, str | None, int | None]]:
    """(dimensions, value_numeric, value_json, sample_count) per result; sketches are merged and counted."""
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
    """Rounded to the column's number of places."""
    return value if value is None else round(value, 8)
