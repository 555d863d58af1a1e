"""Six weeks of events for the overview, counted by the real rollup and the real KPIs; and the same numbers by SQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from urllib.parse import parse_qsl

import asyncpg

from ingest.base.config import DIMENSION_NAMES
from ingest.dashboard.view import View
from ingest.features.stats.query import Other
from ingest.rollup import kpis, slices
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from tests.support.aggregates import make_partitions, recognise

NOW = datetime(2025, 4, 10, 9, 41, 20, tzinfo=UTC)
"""Eleven days after the clocks of Berlin were put forward."""
DAYS = 43
FIRST_DAY = NOW.replace(hour=0, minute=0, second=0) - timedelta(days=DAYS - 1)
MINUTES_FROM = datetime(2025, 4, 3, 9, 41, 20, tzinfo=UTC)
CROWDED = datetime(2025, 3, 12, 8, tzinfo=UTC)
"""In the hour after there are more pages and names than there is room for."""
ROOM = Room(names=14, values=100)
_KPIS = ("bounce_rate", "session_length", "session_entries", "experiment_conversions", "sessions")
_NAMES = {
    "page_view": ("view",),
    "user_action": ("click", "search", "scroll", "share"),
    "conversion": ("signup", "order"),
    "system": ("identify",),
}
_VALUES: dict[str, Sequence[str | None]] = {
    "country": ("DE", "DE", "BR", "IN", None),
    "device_type": ("desktop", "mobile", "tablet", None),
    "browser": ("Firefox", "Chrome", "Safari", None),
    "os": ("Linux", "Windows", "iOS", None),
    "page_path": ("/", "/", "/pricing", "/docs", "/docs/ü&ö", "/" + "x" * 260, None),
    "referrer_host": ("example.org", "search.example", None, None),
    "utm_source": ("news", "(none)", "", None, None),
    "utm_medium": ("mail", "social", None, None),
    "utm_campaign": ("spring", "{}", None),
}
_COLUMNS = ("created_at", "type", "name", "user_id", "anonymous_id", "session_id", *DIMENSION_NAMES)


def _moments(random: Random) -> Iterable[datetime]:
    """Often near the beginnings of days in several time zones, and up to now."""
    for ago in range(DAYS):
        day = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=ago)
        for hour in (0, 8, 9, 18, 19, 22, 23) if ago < 2 or day.weekday() == 6 else (9, 18, 22):
            for _ in range(random.choice([5, 20, 30])):
                moment = day + timedelta(hours=hour, seconds=random.randrange(3600), microseconds=random.randrange(9))
                if moment <= NOW:
                    yield moment
        if day.weekday() == 6:
            yield from (day + timedelta(hours=22), day + timedelta(hours=22, microseconds=-1))
            yield from (day + timedelta(hours=18.5), day + timedelta(hours=18.5, microseconds=-1))


def _event(random: Random, moment: datetime) -> tuple[Any, ...]:
    kind = random.choices(list(_NAMES), (6, 4, 2, 1))[0]
    who = random.randrange(2500)
    sends_sessions = who % 3 == 0
    session = f"s{who}-{moment:%m%d%H}" if sends_sessions else None
    values = {name: random.choice(some) for name, some in _VALUES.items()}
    if random.random() < 0.05:
        values["device_type"] = "bot"
    if random.random() < 0.03:
        return (moment, kind, random.choice(_NAMES[kind]), None, None, None, *values.values())
    user = f"u{who}" if random.random() < 0.2 else None
    browser = f"b{who}" if user is None or random.random() < 0.7 else None
    return (moment, kind, random.choice(_NAMES[kind]), user, browser, session, *values.values())


def _visit(random: Random, moment: datetime) -> Iterable[tuple[Any, ...]]:
    """Some events in a row."""
    first = _event(random, moment)
    yield first
    for _ in range(random.choice([0, 0, 1, 4])):
        moment += timedelta(seconds=random.randrange(1, 1500))
        if moment <= NOW:
            other = _event(random, moment)
            yield (moment, *other[1:3], *first[3:6], *other[6:])


def _crowd() -> Iterable[tuple[Any, ...]]:
    for number in range(130):
        at = CROWDED + timedelta(seconds=number * 20)
        rest: list[str | None] = [None] * (len(_COLUMNS) - 6)
        rest[DIMENSION_NAMES.index("page_path")] = f"/page/{number}"
        rest[DIMENSION_NAMES.index("country")] = "JP"
        for _ in range(1 + number % 3):
            yield (at, "page_view", "view", None, f"crowd{number}", None, *rest)
        if number < 20:
            yield (at, "user_action", f"rare {number}", None, f"crowd{number}", None, *rest)


async def build(connection: asyncpg.Connection) -> None:
    """The events, what is counted of them, and the table `plain` with each event, its person and its visit."""
    await keep(connection)
    random = Random(14)
    events = [event for moment in _moments(random) for event in _visit(random, moment)] + [*_crowd()]
    random.shuffle(events)
    await make_partitions(connection, sorted({event[0].date() for event in events}))
    # The last come late: hours in which the KPIs do not have them yet.
    for part in (events[60:], events[:60]):
        await _store(connection, part)
        assert await Rollup(DIMENSION_NAMES, ROOM).run_once(connection) is not None
        await recognise(connection, DIMENSION_NAMES, ROOM)
        if len(part) > 60:
            await compute(connection)
    await connection.execute("CREATE TABLE public.plain AS SELECT * FROM analytics.activity")
    await connection.execute("CREATE INDEX ON public.plain (created_at)")
    # Every fifth hour has none: its events are read.
    assert await slices.run_once(connection, NOW, seconds=300) > 1000
    for table in ("sliced_hours", "visit_slices"):
        await connection.execute(f"DELETE FROM analytics.{table} WHERE extract(epoch FROM hour) / 3600 % 5 = 0")
    await connection.execute("ANALYZE")


async def keep(connection: asyncpg.Connection) -> None:
    """Keep events and KPIs for ever and minutes from MINUTES_FROM on, in this database and for this connection."""
    name = await connection.fetchval("SELECT current_database()")
    kept = datetime.now(UTC) - MINUTES_FROM
    await connection.execute(f"ALTER DATABASE {name} SET app.retention_minutes = '{kept.total_seconds()} seconds'")
    for what in ("events", "metrics"):
        await connection.execute(f"ALTER DATABASE {name} SET app.retention_{what} = '100 years'")
    await connection.execute(f"SET app.retention_minutes = '{kept.total_seconds()} seconds'")
    await connection.execute("SET app.retention_events = '100 years'")


async def compute(connection: asyncpg.Connection) -> None:
    """The KPIs, with all that has been noted for them."""
    await kpis.run_once(connection, NOW, [kpi for kpi in kpis.load() if kpi.name in _KPIS])


async def _store(connection: asyncpg.Connection, events: Sequence[tuple[Any, ...]]) -> None:
    journal = await connection.fetchval(
        "INSERT INTO analytics.journals (identity) VALUES (gen_random_uuid()) RETURNING number"
    )
    days = sorted({event[0].date() for event in events})
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO analytics.flushes (journal, first_record, last_record, events_stored, days)"
            " VALUES ($1, 1, 1, $2, $3)",
            journal,
            len(events),
            days,
        )
        await connection.copy_records_to_table(
            "events",
            schema_name="analytics",
            columns=[*_COLUMNS, "batch_id", "batch_position"],
            records=[(*event, (journal << 40) | 1, place) for place, event in enumerate(events)],
        )


# The same by SQL.


def view_of(query: str) -> View:
    return View.parse(parse_qsl(query, keep_blank_values=True), NOW, dimensions=DIMENSION_NAMES)


def matching(view: View) -> str:
    """The condition of a view's filters, except its range."""
    conditions = ["true"]
    if view.filters.get("device_type") != "bot":
        conditions.append("device_type IS DISTINCT FROM 'bot'")
    if view.event is not None:
        conditions.append(f"name = {quoted(view.event)}")
    for name, value in view.filters.items():
        assert not isinstance(value, Other)
        conditions.append(f"left({name}::text, 255) IS NOT DISTINCT FROM {quoted(value)}")
    return " AND ".join(conditions)


async def parts_of_hours(plain: asyncpg.Connection, view: View) -> tuple[list[datetime], list[datetime]]:
    """The hours of UTC, or their parts at the ends, that a view's range has and in which sessions may have begun:
    their starts and their ends."""
    hour = timedelta(hours=1)
    rows = await plain.fetch(
        "SELECT DISTINCT date_trunc('hour', created_at, 'UTC') FROM plain"
        f" WHERE {within(view.start - hour, view.end + hour)}"
    )
    hours = sorted({row[0] + hour * near for row in rows for near in (-1, 0, 1)})
    parts = [(max(one, view.start), min(one + hour, view.end)) for one in hours if view.start - hour < one < view.end]
    return [low for low, _ in parts], [high for _, high in parts]


def quoted(text: str | None) -> str:
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


def within(start: datetime, end: datetime) -> str:
    return f"created_at >= '{start.isoformat()}' AND created_at < '{end.isoformat()}'"


def close(number: int | None, true: int) -> bool:
    """Whether it is the true number: exactly where that is small, else within three standard errors."""
    return number is not None and abs(number - true) <= (3 * 0.0163 * true if true > 290 else 0)
