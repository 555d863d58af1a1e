"""The composition root of a collector: its parts, from start to stop. stores.py has its journals, routes.py its HTTP.

`start_collector` starts one collector with its journal and writer; `ingest dev`, `ingest serve` and the tests all
call it. What it returns is stopped by `stop`, which may be called again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from ingest.api.api_keys import REFRESH_SECONDS, KeyRing
from ingest.base import descriptors
from ingest.base.config import Config
from ingest.base.logs import fields
from ingest.dashboard.doorkeeper import link_for
from ingest.dashboard.live import Live
from ingest.dashboard.vault import Vault
from ingest.events.values import user_agents
from ingest.features.experiments import definitions
from ingest.features.experiments.definitions import Definitions
from ingest.http.admission import CLOSING, SPARE
from ingest.http.binding import bind_unix
from ingest.http.budget import Budget
from ingest.http.census import Census, Seat
from ingest.http.server import Server
from ingest.intake.dedupe import DedupeWindow
from ingest.intake.recent import Recent
from ingest.intake.tail import Tail
from ingest.intake.visitors import Visitors
from ingest.journal import leftovers
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal
from ingest.journal.replays import Replays
from ingest.postgres.connections import FAILURES
from ingest.postgres.pool import Pool
from ingest.service import control, dashboards, disk_room, routes, salts
from ingest.service.disk_room import DiskRoom
from ingest.service.loops import run_every
from ingest.service.metrics import Gauges, Metrics, merge
from ingest.service.routes import Parts
from ingest.service.salts import Salts
from ingest.service.stores import Stores
from ingest.service.storing import Launch, Process
from ingest.store import watermark

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 10.0
ADOPT_SECONDS: Final = 15.0
PROBE_SECONDS: Final = 1.0
READING_CONNECTIONS: Final = 4
CALLING_CONNECTIONS: Final = 10
FEATURES: Final = ("leads", "people", "onboarding", "experiments", "flags", "service")
"""Who share these: the tags of operations, and what the service asks for itself."""
RESERVED: Final = (
    descriptors.LAST_RESERVE
    + READING_CONNECTIONS
    + CALLING_CONNECTIONS
    + dashboards.CONNECTIONS
    + SPARE
    + CLOSING
    + 6
)
"""Descriptors for all that is opened later: the journal's files, connections to Postgres (also one to adopt), clients
beyond the limit, two of the control socket, three of a new writer."""
OF_WORKER: Final = 3
"""More for each worker: to read its metrics, to read its newest events, and from it as it reads ours."""


class Collector:
    """A running collector: `port` it listens on, `stop` it. Everything else is for tests to look at."""

    def __init__(self, config: Config, index: int, census: Census | None = None, *, launch: Launch = Process) -> None:
        self.config = config
        self.index = index
        self._seat = Seat(census or Census(), index if census else 0)
        self.port = 0
        self.accounts = Accounts()
        self.tail = Tail(config.anonymise_ip)
        self.recent = Recent(self.accounts, config.anonymise_ip)
        self.live = Live(lambda: control.running(config.data_dir), control.recent_snapshots, config.dashboard_streams)
        self.window = DedupeWindow(config.dedupe_window_events)
        self.replays = Replays()
        self.budget = Budget(config.bodies_max_bytes, time.monotonic)
        self.disk = DiskRoom(config.data_dir)
        gauges = Gauges(
            journals=lambda: self.stores.all(),
            can_accept=self.is_ready,
            budget=self.budget,
            writer_pid=self._writer_pid,
            disk=lambda: self.disk.measured,
        )
        self.metrics = Metrics(self.accounts, gauges, index)
        # Set to end the background loops; before that, `closing` says that no more events are wanted.
        self.stopping = asyncio.Event()
        self.closing = False
        # Still serving, but not for long: balancers are to send no more.
        self.draining = False
        self._stopped = False
        self.stores = Stores(
            config,
            index,
            accounts=self.accounts,
            metrics=self.metrics,
            window=self.window,
            replays=self.replays,
            recent=self.recent,
            stopping=self.stopping,
            launch=launch,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._server: Server | None = None
        self._control: Server | None = None
        assert config.database_url is not None
        self._reading = Pool(config.database_url, "statistics", READING_CONNECTIONS, config.stats_timeout_seconds)
        self._watching = Pool(
            config.database_url, "dashboard", dashboards.CONNECTIONS, config.dashboard_timeout_seconds
        )
        self._calling = Pool(
            config.database_url, "handlers", CALLING_CONNECTIONS, config.statement_timeout_seconds, FEATURES
        )
        self.keys = KeyRing(self._calling)
        self.visitors = Visitors(self.accounts)
        self.salts = Salts(self.visitors, self._calling)
        self.experiments = Definitions(self._calling)

    @property
    def journal(self) -> Journal:
        """Its own, once the stores have opened it."""
        return self.stores.journal

    def _writer_pid(self) -> int | None:
        running = self.stores.storing.running
        return running.pid if running is not None else None

    def can_accept(self) -> bool:
        """Whether an event that came now could be made durable. A database outage does not matter here."""
        if self.closing or self.stores.write_failing:
            return False
        journal = self.stores.journal
        return journal.has_room and not journal.is_stalled and not journal.is_taken

    def is_ready(self) -> bool:
        """Whether clients should be sent here."""
        return self.can_accept() and not self.draining

    # Running.

    def start_loops(self) -> None:
        """The background of the worker, as one table of {what, function, period}."""
        for what, run_once, seconds in (
            ("adopting journals", self.stores.adopt, ADOPT_SECONDS),
            ("hanging up on silent connections", self._sweep, SWEEP_SECONDS),
            ("probing a journal that failed", self.stores.probe, PROBE_SECONDS),
            ("reading API keys", self.keys.refresh, REFRESH_SECONDS),
            ("reading the salts of visitors", self.salts.refresh, salts.LOOK_SECONDS),
            ("reading experiments", self.experiments.refresh, definitions.REFRESH_SECONDS),
            ("measuring the disk", self.disk.measure, disk_room.MEASURE_SECONDS),
        ):
            self._start(self._loop(what, run_once, seconds))

    def _start(self, coroutine: Awaitable[None]) -> None:
        self._tasks.append(asyncio.ensure_future(coroutine))

    async def _loop(self, what: str, run_once: Callable[[], Awaitable[object]], seconds: float) -> None:
        failed = self.metrics.loop_failures.labels(what)
        await run_every(seconds, run_once, self.stopping, what=what, on_failure=failed.inc)

    async def abandon(self) -> None:
        """Undo a start that failed half-way."""
        for server in (self._server, self._control):
            if server is not None:
                await server.stop()
        await self.stores.storing.stop()
        if self.stores.is_open:
            await self.journal.close()

    async def _sweep(self) -> None:
        if self._server is not None:
            await self._server.connections.sweep()

    # HTTP.

    async def listen(self, sock: socket.socket) -> None:
        """Serve HTTP on a bound socket, and the control socket for siblings and commands."""
        self.port = sock.getsockname()[1]
        parts = Parts(
            config=self.config,
            index=self.index,
            journal=self.journal,
            window=self.window,
            replays=self.replays,
            accounts=self.accounts,
            tail=self.tail,
            recent=self.recent,
            live=self.live,
            metrics=self.metrics,
            budget=self.budget,
            visitors=self.visitors,
            keys=self.keys,
            experiments=self.experiments,
            reading=self._reading,
            calling=self._calling,
            watching=self._watching,
            can_accept=self.can_accept,
            wait_stored=self.wait_stored,
            clear_journals=self.clear_journals,
            clear_own=self.stores.clear,
            state=self.state,
            metrics_page=self.metrics_page,
            seat=self._seat,
            connections_allowed=descriptors.connections_allowed(RESERVED + OF_WORKER * self.config.workers),
        )
        self._server = routes.public_server(parts)
        self._control = routes.control_server(parts)
        self.metrics.watch(self._server.connections)
        # First: siblings look for it as soon as we answer.
        await self._control.start(bind_unix(control.socket_path(self.config.data_dir, self.index)))
        await self._server.start(sock)

    async def wait_stored(self, seconds: float) -> bool:
        """Whether all that the journals of this data folder hold now is in the database within that time."""
        mark = await watermark.read(self.config.data_dir, [journal for journal, _ in self.stores.all()])
        return await watermark.wait_passed(mark, self._calling, seconds)

    async def clear_journals(self, seconds: float) -> list[Path]:
        """Store what the journals of this data folder hold now, and delete the files it is in, whichever worker holds
        them; returns those that are left after that time."""
        own = control.socket_path(self.config.data_dir, self.index)
        siblings = [path for path in control.running(self.config.data_dir) if path != own]
        clearing = [self.stores.clear(seconds), *[control.clear_journals(path, seconds) for path in siblings]]
        return await leftovers.wait_gone(self.config.data_dir, clearing, seconds)

    def state(self) -> tuple[bool, dict[str, object]]:
        """Whether it is ready, and what /readyz says besides."""
        facts: dict[str, object] = {
            "postgres": "up" if self.stores.feeder.postgres_up else "down",
            "pending": self.accounts.pending,
        }
        if any(feeder.table_refuses for _, feeder in self.stores.all()):
            # What Postgres says of it may hold an event's values: that is for the log.
            facts["not_storing"] = "the table of events refuses every row; the log says why"
        if taken := [journal.number for journal, _ in self.stores.all() if journal.is_taken]:
            facts["taken_over"] = taken
        if self.draining:
            facts["draining"] = True
        return self.is_ready(), facts

    async def metrics_page(self) -> str:
        """The metrics of all workers of this service, and of its rollup workers."""
        own = control.socket_path(self.config.data_dir, self.index)
        siblings = [path for path in control.running(self.config.data_dir) if path != own]
        siblings += control.rollups(self.config.data_dir)
        pages = await asyncio.gather(*[control.metrics_page(path) for path in siblings])
        return merge([self.metrics.page(), *[page for page in pages if page is not None]])

    async def sign_in_path(self) -> str:
        """The path of a link that signs in to the dashboard once, as an admin. Raises Unavailable and TooSlow."""
        return await link_for(self.config.admin_keys[0], Vault(self._watching))

    # Stopping.

    async def drain(self, hurry: asyncio.Event) -> None:
        """Say not ready, but serve on for drain_seconds or until `hurry`; each answer ends its connection."""
        self.draining = True
        if self._server is not None:
            await self._server.drain(self.config.drain_seconds, hurry)

    async def stop(self) -> None:
        """Stop accepting, answer what is in flight, store what can be stored, close. Repeatable."""
        if self._stopped:
            return
        self._stopped = True
        self.draining = True
        # A follower would keep its connection forever.
        self.tail.close()
        self.recent.close()
        await self.live.close()
        self.replays.give_up()
        for server in (self._server, self._control):
            if server is not None:
                await server.stop()
        self.closing = True
        await self._reading.close()
        await self._calling.close()
        await self._watching.close()
        self.stopping.set()
        timeout_seconds = self.config.shutdown_timeout_seconds
        tasks = [*self._tasks, *self.stores.tasks]
        _, late = await asyncio.wait(tasks, timeout=timeout_seconds) if tasks else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # If Postgres does not answer, the ledger will say at the next start what it has of the last flush.
        await self.stores.feeder.drain(timeout_seconds)
        await self.stores.storing.stop()
        await self.journal.close()
        if self.journal.backlog.events and not self.journal.is_taken:
            logger.warning(
                "stopped with events that are not stored yet; they are stored at the next start",
                extra=fields(events=self.journal.backlog.events, journal=self.journal.number),
            )


async def start_collector(
    config: Config,
    sock: socket.socket,
    index: int = 0,
    census: Census | None = None,
    *,
    launch: Launch = Process,
    is_replacement: bool = False,
) -> Collector:
    """Start one collector on a bound socket: journal, writer, HTTP. It accepts events when this returns.

    `census`: the connections of all workers that share the socket; without it, this is the only one. `launch`: starts
    the writer. `is_replacement`: another one of this service had its place before.
    """
    collector = Collector(config, index, census, launch=launch)
    try:
        await collector.stores.open_own(is_replacement=is_replacement)
        user_agents.warm_up()
        with contextlib.suppress(*FAILURES):
            # If it fails, the loop reports it.
            await collector.salts.refresh()
        await collector.listen(sock)
        await collector.stores.storing.feed(collector.stores.feeder)
    except BaseException:
        sock.close()
        await collector.abandon()
        raise
    collector.start_loops()
    return collector
