"""The rollup worker: a process of its own, which wires together what it needs, as app.py does for a collector.

Several may run. The one that holds an advisory lock works, the others try for it every second; a worker that dies
lets go of it with its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
from aiohttp import web

from ingest import control, database, migrations
from ingest.buckets import Room
from ingest.config import Config
from ingest.database import FAILURES
from ingest.errors import IngestError
from ingest.handlers import health
from ingest.logs import Quiet
from ingest.maintenance import Schedule, Settings
from ingest.periodic import wait_for
from ingest.rollup import Rollup
from ingest.rollup_metrics import RollupMetrics

logger = logging.getLogger(__name__)

LEADER_KEY: Final = 0x726F6C6C7570732E
"""Ours among advisory locks: "rollups." in ASCII."""
STAND_BY_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
STATEMENT_SECONDS: Final = 120.0
"""A statement that has no answer by then has no server any more. Waiting for a rebuild of a full hour may take as
long, and is then begun anew."""
_COMPLAINT_SECONDS: Final = 30.0
_QUERIES: Final = database.load_queries("rollup")
_EXPECTED: Final = (IngestError, *FAILURES)
_DEAD_PEER: Final = "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3"
"""So that the server misses a machine that vanished within seconds, and lets its lock go."""


class RollupWorker:
    """`run` works, or stands by, until it is told to stop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name, self._socket = control.claim_rollup_socket(config.data_dir)
        self.metrics = RollupMetrics(self.name)
        self.leader = False
        self._rollup = Rollup(
            config.rollup_dimensions, Room(names=config.rollup_event_names, values=config.rollup_dimension_values)
        )
        self._quiet = Quiet(_COMPLAINT_SECONDS)

    async def run(self, stop: asyncio.Event) -> None:
        """Take the lead when nobody has it, roll up, keep the schedule; errors are logged and it begins anew."""
        async with self._serving():
            while not stop.is_set():
                try:
                    await self._run_on_a_connection(stop)
                except _EXPECTED as error:
                    self.metrics.failed()
                    if times := self._quiet.due():
                        words = " ".join(str(error).split()) or type(error).__name__
                        logger.warning("rolling up failed (%d times), trying again: %s", times, words)
                except Exception:
                    self.metrics.failed()
                    logger.exception("rolling up failed, trying again")
                await wait_for(stop, RETRY_SECONDS)

    async def _run_on_a_connection(self, stop: asyncio.Event) -> None:
        connection = await self._connect("rollup", STATEMENT_SECONDS)
        try:
            await migrations.check(connection)
            await connection.execute(_DEAD_PEER)
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LEADER_KEY):
                await self._tell_waiting(connection)
                if await wait_for(stop, STAND_BY_SECONDS):
                    return
            self._lead(True)
            async with self._schedule():
                await self._roll_up(connection, stop)
        finally:
            self._lead(False)
            await database.close(connection)

    @contextlib.asynccontextmanager
    async def _schedule(self) -> AsyncIterator[None]:
        """The schedule is kept as long as this worker leads."""
        no_longer = asyncio.Event()
        settings = Settings(
            self.config.partitions_ahead_days, self.config.retention_days, self._rollup.dimensions, self._rollup.room
        )
        keeping = asyncio.ensure_future(Schedule(self._connect, settings, self.metrics.ran).run(no_longer))
        try:
            yield
        finally:
            no_longer.set()
            await keeping

    def _lead(self, leader: bool) -> None:
        if leader != self.leader:
            logger.info("this worker rolls up now" if leader else "this worker no longer rolls up")
        self.leader = leader
        self.metrics.leader.set(int(leader))

    async def _roll_up(self, connection: asyncpg.Connection, stop: asyncio.Event) -> None:
        while not stop.is_set():
            cycle = await self._rollup.run_once(connection)
            self._quiet.over()
            if cycle is not None:
                self.metrics.observe(cycle)
            await self._tell_waiting(connection)
            if cycle is None or not cycle.more:
                await wait_for(stop, self.config.rollup_interval_seconds)

    async def _tell_waiting(self, connection: asyncpg.Connection) -> None:
        events, seconds, rows = await connection.fetchrow(_QUERIES["waiting"])
        self.metrics.set_waiting(events, seconds)
        self.metrics.buckets.set(rows)

    async def _connect(self, purpose: str, statement_seconds: float | None = None) -> asyncpg.Connection:
        assert self.config.database_url is not None
        return await database.connect(
            self.config.database_url, purpose=purpose, statement_timeout_seconds=statement_seconds
        )

    # HTTP: its metrics, for the collectors of this data folder, and for whoever asks the port if there is one.

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", health.healthz),
                web.get("/metrics", health.metrics(self._page)),
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
