"""The rollup worker: a separate process, and how its parts are wired together.

Several may run. The leader, which holds the lease, does the work; the others try to take the lease every second. The
lease of a worker that died expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Final

import asyncpg
from aiohttp import web

from ingest.base.config import Config
from ingest.base.errors import IngestError, one_line
from ingest.base.logs import Quiet
from ingest.base.waits import wait_for
from ingest.events.values.locations import parse_networks
from ingest.http import health
from ingest.postgres import connections, migrations
from ingest.postgres.connections import FAILURES
from ingest.postgres.leases import Lease
from ingest.postgres.queries import load_queries
from ingest.rollup.buckets import Room
from ingest.rollup.progress import Progress, Waiting
from ingest.rollup.rollup import Rollup
from ingest.service import control
from ingest.service.maintenance import TASKS, Schedule, Settings
from ingest.service.rollup_metrics import RollupMetrics

logger = logging.getLogger(__name__)

LEAD: Final = "rollup"
"""The name of the lease."""
REST: Final = 4.0
"""For about so many times as long as a transaction took, none is begun; but at most for MOST_INTERVALS."""
MOST_INTERVALS: Final = 5
STAND_BY_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 1.0
STATEMENT_SECONDS: Final = 120.0
"""A statement that takes longer is taken for one whose server is gone."""
_ANSWER_SECONDS: Final = 5.0
"""The same for statements that only look up a row. A pooler may keep them waiting for one of its few connections."""
_STOP_SECONDS: Final = 10.0
_COMPLAINT_SECONDS: Final = 30.0
_QUERIES: Final = load_queries("rollup")
_EXPECTED: Final = (IngestError, *FAILURES)


class RollupWorker:
    """`run` rolls up, or stands by, until it is stopped."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name, self._socket = control.claim_rollup_socket(config.data_dir)
        self.metrics = RollupMetrics(self.name)
        self.metrics.set_periods([(task.name, task.period_seconds) for task in TASKS])
        self.leader = False
        self.progress = Progress(config.rollup_stalled_seconds)
        self._lease = Lease(LEAD, config.rollup_lease_seconds)
        self._rollup = Rollup(
            config.rollup_dimensions,
            Room(names=config.rollup_event_names, values=config.rollup_dimension_values),
            config.identity_links_per_user,
        )
        self._quiet = Quiet(_COMPLAINT_SECONDS)
        self._readers = health.MetricsReaders(parse_networks(config.metrics_networks), config.metrics_keys)
        self._stalled_quiet = Quiet(_COMPLAINT_SECONDS)
        # Set once a pooler has been logged.
        self._pooler_logged = False

    async def run(self, stop: asyncio.Event) -> None:
        """Take the lead when it is free, roll up, run the schedule. Errors are logged, and it starts over."""
        async with self._serving():
            watching = asyncio.ensure_future(self._watch(stop))
            try:
                while not stop.is_set():
                    try:
                        await self._run_on_a_connection(stop)
                    except _EXPECTED as error:
                        self.metrics.failed()
                        if times := self._quiet.due():
                            logger.warning("rollup failed (%d times), retrying: %s", times, one_line(error))
                    except Exception:
                        self.metrics.failed()
                        logger.exception("rollup failed, retrying")
                    await wait_for(stop, RETRY_SECONDS)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    # The lead.

    async def _run_on_a_connection(self, stop: asyncio.Event) -> None:
        connection = await self._connect("rollup", STATEMENT_SECONDS)
        try:
            await migrations.check(connection)
            await self._log_pooler(connection)
            while not await self._lease.take(connection):
                if await wait_for(stop, STAND_BY_SECONDS):
                    return
            async with self._lease.kept(self._connect_to_renew) as lost:
                await self._lead(connection, stop, lost)
            await self._lease.release(connection)
        finally:
            await connections.close(connection)

    async def _lead(self, connection: asyncpg.Connection, stop: asyncio.Event, lost: asyncio.Event) -> None:
        """Roll up and run the schedule until `stop` is set or the lead is lost."""
        self._set_leader(True)
        try:
            async with self._schedule():
                rolling = asyncio.ensure_future(self._roll_up(connection, stop))
                ending = [asyncio.ensure_future(event.wait()) for event in (lost, stop)]
                try:
                    await asyncio.wait((rolling, *ending), return_when=asyncio.FIRST_COMPLETED)
                    if not lost.is_set():
                        # Once `stop` is set it ends by itself, unless it is waiting for a lock or for a server.
                        await asyncio.wait((rolling,), timeout=_STOP_SECONDS)
                    if rolling.done():
                        rolling.result()
                finally:
                    for each in (rolling, *ending):
                        each.cancel()
                    await asyncio.gather(rolling, *ending, return_exceptions=True)
        finally:
            self._set_leader(False)

    @contextlib.asynccontextmanager
    async def _schedule(self) -> AsyncIterator[None]:
        """Runs the schedule while this worker leads."""
        stop = asyncio.Event()
        settings = Settings(
            self.config.partitions_ahead_days, self.config.retention_days, self._rollup.dimensions, self._rollup.room
        )
        running = asyncio.ensure_future(Schedule(self._connect, settings, self.metrics.ran).run(stop))
        try:
            yield
        finally:
            stop.set()
            await running

    def _set_leader(self, leader: bool) -> None:
        if leader != self.leader:
            logger.info("this worker is %s the rollup leader", "now" if leader else "no longer")
        self.leader = leader
        self.metrics.leader.set(int(leader))

    async def _roll_up(self, connection: asyncpg.Connection, stop: asyncio.Event) -> None:
        while not stop.is_set():
            cycle = await self._rollup.run_once(connection, self._lease)
            self._quiet.over()
            if cycle is not None:
                self.metrics.observe(cycle)
            if cycle is None or not cycle.more:
                await self._rest(connection, stop, cycle.seconds if cycle is not None else 0.0)

    async def _rest(self, connection: asyncpg.Connection, stop: asyncio.Event, worked_seconds: float) -> None:
        """Wait for the interval or, under load, longer: each bucket is then stored less often for as many events."""
        intervals = worked_seconds * REST / self.config.rollup_interval_seconds
        for place in range(max(1, min(MOST_INTERVALS, round(intervals)))):
            if place:
                await self._rollup.sample(connection)
            if await wait_for(stop, self.config.rollup_interval_seconds):
                return

    # Progress, watched on a separate connection: whatever blocks the rest does not block this.

    async def _watch(self, stop: asyncio.Event) -> None:
        connection: asyncpg.Connection | None = None
        try:
            while not stop.is_set():
                try:
                    connection = connection or await self._connect("rollup watch", _ANSWER_SECONDS)
                    self._see(await connection.fetchrow(_QUERIES["waiting"]))
                except Exception as error:
                    if not isinstance(error, _EXPECTED):
                        logger.exception("checking rollup progress failed, retrying")
                    self.progress.cannot_see(one_line(error))
                    if connection is not None:
                        connection.terminate()
                        connection = None
                self._report_progress()
                await wait_for(stop, WATCH_SECONDS)
        finally:
            if connection is not None:
                await connections.close(connection)

    def _see(self, row: Mapping[str, object]) -> None:
        waiting = Waiting(*[row[name] for name in Waiting._fields])  # type: ignore[arg-type]
        self.progress.see(waiting)
        self.metrics.set_waiting(waiting.events, waiting.seconds)
        self.metrics.buckets.set(row["buckets"])  # type: ignore[arg-type]

    def _report_progress(self) -> None:
        stalled = self.progress.stalled
        self.metrics.stalled.set(int(stalled))
        if not stalled:
            if self._stalled_quiet.over():
                logger.info("rollup has resumed")
        elif self._stalled_quiet.due():
            logger.error("%s", self.progress.reason)

    async def _log_pooler(self, connection: asyncpg.Connection) -> None:
        if self._pooler_logged or await connections.is_direct(connection):
            return
        self._pooler_logged = True
        limit = await connection.fetchval("SHOW statement_timeout")
        logger.log(
            logging.INFO if limit == "0" else logging.WARNING,
            "the database is behind a pooler, which is fine except for indexes of closed days: these are created"
            " CONCURRENTLY, outside any transaction, and must finish within the server's statement_timeout (%s)",
            "none" if limit == "0" else limit,
        )

    async def _connect_to_renew(self) -> asyncpg.Connection:
        return await self._connect("rollup lease", _ANSWER_SECONDS)

    async def _connect(self, purpose: str, statement_seconds: float | None = None) -> asyncpg.Connection:
        assert self.config.database_url is not None
        return await connections.connect(
            self.config.database_url, purpose=purpose, statement_timeout_seconds=statement_seconds
        )

    # HTTP: health and metrics, on a socket for the collectors of this data folder, and on a port if one is set.

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", health.healthz),
                web.get("/readyz", health.readyz(self._readiness)),
                web.get("/metrics", health.metrics(self._page, self._readers)),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket).start()
            if self.config.rollup_port:
                await web.TCPSite(runner, self.config.host, self.config.rollup_port).start()
            yield
        finally:
            await runner.cleanup()

    async def _page(self) -> str:
        return self.metrics.page()

    def _readiness(self) -> tuple[bool, Mapping[str, object]]:
        return not self.progress.stalled, {"leader": self.leader, **self.progress.details()}
