"""The table of periodic maintenance tasks, and the schedule that runs them.

The rollup worker that holds the lease runs the schedule; `ingest maintenance --run NAME` runs one task by hand.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import asyncpg

from ingest.base.errors import IngestError, one_line
from ingest.base.logs import Quiet
from ingest.base.waits import wait_for
from ingest.postgres.connections import FAILURES, close
from ingest.postgres.queries import load_queries
from ingest.rollup import certificate, identity_repairs, kpis, rebuild, slices, totals
from ingest.rollup.buckets import Room
from ingest.store import partitions, visitor_salts

logger = logging.getLogger(__name__)

KPIS: Final = kpis.load()
RETRY_SECONDS: Final = 60.0
"""A failed task is retried after this long, or after its period if that is shorter."""
_QUERIES: Final = load_queries("maintenance")
_ADOPTED_AT_ONCE: Final = 50_000
_MOST_ADOPTIONS: Final = 100
_LATELY: Final = timedelta(seconds=10)
_DELAYED_SECONDS: Final = 15.0
"""How much of a minute is spent on hours that can wait: no events are added to buckets while one is rebuilt."""
_CANCEL_SECONDS: Final = 2.0
_KEPT_SECONDS: Final = 60.0
"""Tasks with a shorter period keep their connection, and with it the cached plans of the functions they call."""


class Settings(NamedTuple):
    """The configuration that the tasks need."""

    partitions_ahead_days: int
    retention_days: int
    dimensions: Sequence[str]
    room: Room


class Task(NamedTuple):
    """`run` does the task once, on its own connection, and returns in a few words what was done; "" is nothing."""

    name: str
    what: str
    period_seconds: float
    run: Callable[[asyncpg.Connection, datetime, Settings], Awaitable[str]]


async def _partitions_ahead(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    made = await partitions.ensure_ahead(connection, today=now.date(), days_ahead=settings.partitions_ahead_days)
    return f"{made} partitions made" if made else ""


async def _closed_day_indexes(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    made = await partitions.index_closed_days(connection)
    return f"{made} indexes made" if made else ""


async def _retention(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    # One transaction: behind a pooler the next one may run in another session.
    async with connection.transaction():
        await connection.execute(_QUERIES["pin_retention"], timedelta(days=settings.retention_days))
        rows = await connection.fetch("SELECT table_name, deleted_count FROM public.cleanup_old_data()")
    return ", ".join(f"{count} of {table} deleted" for table, count in rows if count)


async def _abandoned_sessions(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    count = await connection.fetchval("SELECT public.abandon_inactive_sessions()")
    return f"{count} sessions abandoned" if count else ""


async def _visitor_salts(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    erased = await visitor_salts.erase(connection, now.date())
    return f"{erased} salts erased" if erased else ""


async def _pending_events(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    total = 0
    for _ in range(_MOST_ADOPTIONS):
        count = await connection.fetchval("SELECT public.process_pending_events()")
        total += count
        if count < _ADOPTED_AT_ONCE:
            break
    return f"{total} events adopted" if total else ""


async def _stale_buckets(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    granularities = ("hour", "day")
    made = await rebuild.run_once(connection, settings.dimensions, settings.room, granularities, delayed=False)
    # Bounded: anybody can send events that change who did what in any number of hours.
    until = time.monotonic() + _DELAYED_SECONDS
    while time.monotonic() < until and await rebuild.make_next(
        connection, settings.dimensions, settings.room, granularities
    ):
        made += 1
    return f"{made} hours and days rebuilt" if made else ""


async def _stale_identities(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    count = await identity_repairs.run_once(connection)
    return f"affected hours of {count} browsers noted" if count else ""


async def _weeks_and_months(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    made = await rebuild.run_once(connection, settings.dimensions, settings.room, ("week", "month"))
    return f"{made} weeks and months rebuilt" if made else ""


async def _bucket_totals(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    made = await totals.run_once(connection, now)
    return f"{made} totals made" if made else ""


async def _visit_slices(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    made = await slices.run_once(connection, now)
    return f"{made} hours sliced" if made else ""


async def _accounting(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    # It fails if they differ: the time of its last success is the certificate.
    await certificate.certify(connection, now)
    return ""


async def _kpis_of_now(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    if not await connection.fetchval(
        "SELECT EXISTS (SELECT FROM analytics.flushes WHERE flushed_at > $1)", now - _LATELY
    ):
        return ""
    return _figures(
        await kpis.run_once(connection, now, [kpi for kpi in KPIS if "minute" in kpi.granularities], only_open=True)
    )


async def _kpis(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    return _figures(await kpis.run_once(connection, now, [kpi for kpi in KPIS if not kpi.from_events]))


async def _kpis_from_events(connection: asyncpg.Connection, now: datetime, settings: Settings) -> str:
    return _figures(await kpis.run_once(connection, now, [kpi for kpi in KPIS if kpi.from_events]))


def _figures(rows: int) -> str:
    return f"{rows} figures computed" if rows else ""


TASKS: Final = (
    Task("pending-events", "assign events of plain INSERTs to a batch, so they are rolled up", 1, _pending_events),
    Task("stale-buckets", "rebuild aggregates after events were erased or people identified", 60, _stale_buckets),
    Task("stale-identities", "find the hours in which one person was counted as two", 300, _stale_identities),
    Task("weeks-and-months", "build the aggregates of weeks and months from their days", 300, _weeks_and_months),
    Task(
        "bucket-totals", "sum the hours and days that are over, or have changed, over all events", 60, _bucket_totals
    ),
    Task("visit-slices", "sum the visits of hours that are over, or have changed, for filters", 60, _visit_slices),
    Task("accounting", "check that the last hours' aggregates have every event, once", 600, _accounting),
    Task("kpis-of-now", "update the KPIs that have per-minute figures", 1, _kpis_of_now),
    Task("kpis", "compute the KPIs that need no raw events, where recent or changed", 60, _kpis),
    Task("kpis-from-events", "compute the KPIs that need raw events", 300, _kpis_from_events),
    Task("abandoned-sessions", "mark inactive onboarding sessions as abandoned", 300, _abandoned_sessions),
    Task("visitor-salts", "erase the salts of cookieless visitors of days before yesterday", 300, _visitor_salts),
    Task("closed-day-indexes", "index past days of analytics.events", 600, _closed_day_indexes),
    Task("partitions-ahead", "create partitions of analytics.events for the coming days", 3600, _partitions_ahead),
    Task("retention", "delete what is past its retention; events by dropping partitions", 3600, _retention),
)


class Schedule:
    """Runs every task at its period until stopped. Failures are logged, counted and retried."""

    def __init__(
        self,
        connect: Callable[[str], Awaitable[asyncpg.Connection]],
        settings: Settings,
        on_run: Callable[[str, str, float], None] = lambda task, result, seconds: None,
        tasks: Sequence[Task] = TASKS,
    ) -> None:
        self._connect = connect
        self._settings = settings
        # (name of the task, ok or failed, seconds)
        self._on_run = on_run
        self._tasks = tasks

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.gather(*[self._keep(task, stop) for task in self._tasks])

    async def _keep(self, task: Task, stop: asyncio.Event) -> None:
        quiet = Quiet()
        connection: asyncpg.Connection | None = None
        try:
            while not stop.is_set():
                if connection is None or connection.is_closed():
                    connection = await self._try_to_connect(task, quiet)
                ok = connection is not None and await self._try(task, connection, stop, quiet)
                if connection is not None and not (ok and task.period_seconds < _KEPT_SECONDS):
                    await close(connection)
                    connection = None
                await wait_for(stop, task.period_seconds if ok else min(task.period_seconds, RETRY_SECONDS))
        finally:
            if connection is not None:
                await close(connection)

    async def _try_to_connect(self, task: Task, quiet: Quiet) -> asyncpg.Connection | None:
        started = time.monotonic()
        try:
            return await self._connect(task.name)
        except IngestError as error:
            self._fail(task, started, quiet, error)
            return None

    async def _try(self, task: Task, connection: asyncpg.Connection, stop: asyncio.Event, quiet: Quiet) -> bool:
        """Run the task; returns whether it succeeded. A stop cancels it: the next start does what is left."""
        started = time.monotonic()
        working = asyncio.ensure_future(task.run(connection, datetime.now(UTC), self._settings))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return False
            did = working.result()
        except Exception as error:
            self._fail(task, started, quiet, error)
            return False
        finally:
            working.cancel()
            stopping.cancel()
            # Time for the cancel request to reach the server; else closing the connection ends it on our side.
            await asyncio.wait((working, stopping), timeout=_CANCEL_SECONDS)
        quiet.over()
        self._on_run(task.name, "ok", time.monotonic() - started)
        if did:
            logger.log(
                logging.DEBUG if task.period_seconds < _KEPT_SECONDS else logging.INFO, "%s: %s", task.name, did
            )
        return True

    def _fail(self, task: Task, started: float, quiet: Quiet, error: Exception) -> None:
        self._on_run(task.name, "failed", time.monotonic() - started)
        if times := quiet.due():
            words = one_line(error)
            known = isinstance(error, (IngestError, *FAILURES))
            trace = None if known else error
            logger.warning("%s failed (%d times), retrying: %s", task.name, times, words, exc_info=trace)
