"""The page Health: whether every event is accounted for, how far storing lags, and who does the work.

It is opened when something is wrong, so each panel shows what it can without the database. health_refusals.py has the
panels of refused events.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg

from ingest.dashboard import health_refusals, vitals
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Page, Panel, Table
from ingest.dashboard.exposition import Exposition
from ingest.dashboard.health_sources import Disk
from ingest.dashboard.panels import failure_of
from ingest.postgres.pool import TooSlow, Unavailable
from ingest.postgres.queries import load_queries

Answer = TypeVar("Answer")

_QUERIES: Final = load_queries("health")
_DAYS_SHOWN: Final = 7
_MOST_DAYS: Final = 120
"""Ten years of them would take long to write."""
_SET_ASIDE_SHOWN: Final = 20
KEPT_WORDS: Final = {
    "events": "Events, and visits",
    "minutes": "Aggregates by minute",
    "metrics": "KPIs",
    "rejected": "Refused events",
    "flushes": "Flushes",
    "identities": "Links between the ids of one person",
    "audit": "Audit log",
}
"""What the settings app.retention_… are about."""


async def _asked(ask: Ask, read: Callable[[asyncpg.Connection], Awaitable[Answer]]) -> tuple[Answer | None, str]:
    """What the database says to this viewer, or None and why it says nothing."""
    try:
        async with ask.reading() as connection:
            return await read(connection), ""
    except TooSlow:
        return None, "The database took too long to answer."
    except (Unavailable, asyncpg.PostgresError) as error:
        return None, failure_of(error).message


# The books.


async def _books(ask: Ask) -> Mapping[str, Any]:
    sources = ask.desk.health
    return balance(await sources.metrics(), sources.workers)


def balance(found: Exposition, workers: int) -> Mapping[str, Any]:
    """The line, and what is wrong in words. `workers`: how many collectors there should be. Pure."""
    since = vitals.moment(found.least("process_start_time_seconds"))
    return {"books": vitals.books_of(found), "complaints": vitals.complaints(found, workers), "since": since}


def _books_table(found: Mapping[str, Any]) -> Table:
    return ("Events", "Count"), list(found["books"]._asdict().items())


# How long things take.


async def _delays(ask: Ask) -> Mapping[str, Any]:
    found = await ask.desk.health.metrics()
    flushes, trouble = await _asked(ask, lambda connection: connection.fetchrow(_QUERIES["flushes"]))
    return {"found": delays(found), "flushes": flushes, "trouble": trouble}


def delays(found: Exposition) -> Mapping[str, Any]:
    """What the workers' metrics say of delays: seconds, counts since the workers' start, and moments. Pure."""
    flushes = found.total("ingest_flush_rows_count")
    return {
        "acknowledged_p50": found.quantile(0.5, "ingest_acknowledgement_seconds"),
        "acknowledged_p99": found.quantile(0.99, "ingest_acknowledgement_seconds"),
        "acknowledged": found.total("ingest_acknowledgement_seconds_count"),
        "written_p99": found.quantile(0.99, "ingest_journal_write_seconds"),
        "flush_p99": found.quantile(0.99, "ingest_flush_seconds"),
        "flushes": flushes,
        "flush_rows": found.total("ingest_flush_rows_sum") / flushes if flushes else None,
        "pending": found.total("ingest_events_pending"),
        "pending_seconds": found.most("ingest_oldest_pending_seconds"),
        # Of a rollup worker on this data folder, if there is one.
        "uncounted_seconds": found.most("ingest_rollup_waiting_seconds"),
        "stored_at": vitals.moment(found.most("ingest_stored_timestamp_seconds")),
        "postgres_up": found.least("ingest_postgres_up") == 1,
        "postgres_changed_at": vitals.moment(found.most("ingest_postgres_changed_timestamp_seconds")),
        "failures": {
            "Writes to the journal": found.total("ingest_journal_write_failures_total"),
            "Writer processes that died": found.total("ingest_writer_deaths_total"),
            "Rollups, each tried again": found.total("ingest_rollup_failures_total"),
            **{
                f"In the background: {loop}": count
                for loop, count in found.by("loop", "ingest_loop_failures_total").items()
            },
        },
    }


def _delays_table(found: Mapping[str, Any]) -> Table:
    values = {name: value for name, value in found["found"].items() if name != "failures"}
    if found["flushes"] is not None:
        values |= {f"last five minutes: {name}": value for name, value in found["flushes"].items()}
    return ("Figure", "Value"), [*values.items(), *found["found"]["failures"].items()]


# The journals.


class Journal(NamedTuple):
    """A journal on this disk. worker: who holds it; None if nobody does who answers.  used: share of its limit."""

    number: int
    worker: str | None
    pending: int | None
    bytes: int
    used: float
    is_taken: bool
    written_at: datetime | None


async def _journals(ask: Ask) -> Mapping[str, Any]:
    sources = ask.desk.health
    found = await sources.metrics()
    try:
        disk = await sources.disk()
    except OSError as error:
        return {"journals": journals(found, None, sources.journal_max_bytes), "disk": None, "trouble": error.strerror}
    shown = sorted(disk.set_aside, key=lambda each: -each[1])[:_SET_ASIDE_SHOWN]
    return {
        "journals": journals(found, disk, sources.journal_max_bytes),
        "limit": sources.journal_max_bytes,
        "disk": disk,
        "set_aside": shown,
        "trouble": "",
    }


def journals(found: Exposition, disk: Disk | None, limit: int) -> Sequence[Journal]:
    """Those on the disk, and those that workers hold; `limit` is each one's, in bytes. Pure."""
    held = {
        int(each.labels["journal"]): each
        for each in found.samples("ingest_journal_pending_events")
        if each.labels["journal"].isdecimal()
    }
    sizes = found.by("journal", "ingest_journal_bytes")
    taken = found.by("journal", "ingest_journal_taken")
    folders = {each.number: each for each in disk.journals} if disk is not None else {}
    made = []
    for number in sorted({*held, *folders}):
        name, folder = str(number), folders.get(number)
        size = round(sizes.get(name, folder.bytes if folder is not None else 0))
        made.append(
            Journal(
                number=number,
                worker=held[number].labels["worker"] if number in held else None,
                pending=round(held[number].value) if number in held else None,
                bytes=size,
                used=size / limit,
                is_taken=taken.get(name) == 1,
                written_at=vitals.moment(folder.written_at) if folder is not None else None,
            )
        )
    return made


def _journals_table(found: Mapping[str, Any]) -> Table:
    return Journal._fields, found["journals"]


# Partitions, and how long rows are kept.


class Day(NamedTuple):
    """A partition of analytics.events. dropped_from: when retention may drop it, if it stays as it is."""

    day: date
    bytes: int
    events: int | None
    dropped_from: datetime


async def _partitions(ask: Ask) -> Mapping[str, Any]:
    async def read(connection: asyncpg.Connection) -> tuple[list[asyncpg.Record], list[asyncpg.Record]]:
        kept = timedelta(days=ask.desk.site.retention_days)
        return await connection.fetch(_QUERIES["partitions"]), await connection.fetch(_QUERIES["retention"], kept)

    found, trouble = await _asked(ask, read)
    if found is None:
        return {"days": [], "trouble": trouble}
    rows, kept = found
    since = next(each["since"] for each in kept if each["kind"] == "events")
    return {"trouble": "", **partitions(rows, ask.now.astimezone(UTC), since)}


def partitions(rows: Sequence[Mapping[str, Any]], now: datetime, since: datetime) -> Mapping[str, Any]:
    """`rows`: day, bytes and events, the latest first.  since: events from before that are not kept. Pure."""
    kept = now - since
    days = [Day(each["day"], each["bytes"] or 0, each["events"], _end_of(each["day"]) + kept) for each in rows]
    today = now.date()
    past = [each for each in days if each.day <= today]
    return {
        "days": days,
        "most": _MOST_DAYS,
        "recent": past[:_DAYS_SHOWN],
        "others": len(days) - len(past[:_DAYS_SHOWN]),
        "bytes": sum(each.bytes for each in days),
        "has_tomorrow": any(each.day == today + timedelta(days=1) for each in days),
        "has_today": any(each.day == today for each in days),
        "overdue": [each for each in days if each.dropped_from <= now],
        "next": days[-1] if days else None,
    }


def _end_of(day: date) -> datetime:
    return datetime.combine(day, time(), UTC) + timedelta(days=1)


def _partitions_table(found: Mapping[str, Any]) -> Table:
    return ("Day", "Bytes", "Events, estimated", "Dropped from"), found["days"]


async def _retention(ask: Ask) -> Mapping[str, Any]:
    kept = timedelta(days=ask.desk.site.retention_days)
    rows, trouble = await _asked(ask, lambda connection: connection.fetch(_QUERIES["retention"], kept))
    return {"rows": rows or [], "words": KEPT_WORDS, "trouble": trouble, "configured": ask.desk.site.retention_days}


def _retention_table(found: Mapping[str, Any]) -> Table:
    return ("Rows", "Setting", "Kept", "Set in the database"), [
        (KEPT_WORDS[row["kind"]], f"app.retention_{row['kind']}", row["kept"], "yes" if row["is_set"] else "no")
        for row in found["rows"]
    ]


# Who works.


async def _workers(ask: Ask) -> Mapping[str, Any]:
    found = await ask.desk.health.metrics()
    leases, trouble = await _asked(ask, lambda connection: connection.fetch(_QUERIES["leases"]))
    return {"workers": vitals.workers_of(found), "leases": leases or [], "trouble": trouble}


def _workers_table(found: Mapping[str, Any]) -> Table:
    return ("Worker", "Does", "Started", "Version", "Memory, bytes"), found["workers"]


async def _schedule(ask: Ask) -> Mapping[str, Any]:
    return {"runs": vitals.schedule_of(await ask.desk.health.metrics())}


def _schedule_table(found: Mapping[str, Any]) -> Table:
    return vitals.Run._fields, found["runs"]


PANELS: Final = (
    Panel("health-books", "Events since the start", _books, _books_table),
    Panel("health-delays", "Delays", _delays, _delays_table),
    Panel("health-journals", "Journals", _journals, _journals_table),
    *health_refusals.PANELS,
    Panel("health-workers", "Workers", _workers, _workers_table),
    Panel("health-schedule", "Schedule", _schedule, _schedule_table),
    Panel("health-partitions", "Partitions", _partitions, _partitions_table),
    Panel("health-retention", "Retention", _retention, _retention_table),
)
PAGES: Final = (
    Page(
        "/health",
        "Health",
        "health.html",
        panels=[panel.name for panel in PANELS],
        load=health_refusals.outcome,
        parameters=health_refusals.PARAMETERS,
        has_filters=False,
    ),
)
ACTIONS: Final = health_refusals.ACTIONS
