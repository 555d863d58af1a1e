"""The real processes of one run: Postgres, collectors with their writers, two rollup workers, and what is in between.

`Keeper` does what an init system does: it starts again what has ended, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psutil

from bench.chaos import wire
from bench.chaos.interposed import Interposed
from ingest.base.errors import EmbeddedPostgresError
from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.rollup_process import RollupProcess
from tests.support.service import Service, child_processes, parse_metrics

WORKERS: Final = 2
ROLLUPS: Final = 2
RESTART_SECONDS: Final = 0.1
"""systemd's RestartSec."""
START_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.05
POSTGRES_SETTINGS: Final = {"shared_buffers": "128MB", "max_connections": "100"}
SERVE_FLAGS: Final = (
    "--segment-bytes", "1MiB", "--journal-max-bytes", "256MiB",
    "--statement-timeout-seconds", "3", "--trusted-proxies", "127.0.0.1",
)  # fmt: skip


class World:
    """Made by `running_world`."""

    def __init__(
        self, folder: Path, postgres: EmbeddedPostgres, interposed: Interposed, *, workers: int, rollups: int
    ) -> None:
        self.folder = folder
        self.workers = workers
        self.postgres = postgres
        self.dsn = postgres.dsn
        self.interposed = interposed
        self.postgres_wire = wire.before_postgres(self.dsn)
        self.http_wire = wire.before_http(self._connect_to_service)
        self._sockets = folder / "wire"
        through = wire.dsn_through(self._sockets, self.dsn)
        self._through = through
        self.service = self.new_service("first")
        rollup_environment = interposed.environment(rollup=True)
        self.rollups = [
            RollupProcess(folder / f"rollup-{number}", through, environ=rollup_environment)
            for number in range(rollups)
        ]
        # Set once it listens.
        self.url = ""
        self.exits: Counter[str] = Counter()
        """How processes ended that we look after, by what they are and their exit code."""

    def new_service(self, name: str) -> Service:
        """Collectors with a data folder of their own, not started yet."""
        flags = ("--workers", str(self.workers), *SERVE_FLAGS)
        return Service(self.folder / "data" / name, self._through, *flags, environ=self.interposed.environment())

    async def _connect_to_service(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.service.port)

    @asynccontextmanager
    async def wired(self) -> AsyncIterator[None]:
        """What is between the processes listens."""
        async with self.postgres_wire.listening_for_postgres(self._sockets):
            server = await asyncio.start_server(self.http_wire.serve, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            try:
                yield
            finally:
                server.close()
                await self.http_wire.close()

    # Which processes there are now; any may be gone a moment later.

    def pids(self, role: str) -> list[int]:
        """Of "supervisor", "collector", "writer", "rollup", or "postgres", whose first is the postmaster."""
        if role == "postgres":
            postmaster = self.postgres.pid
            return [] if postmaster is None else [postmaster, *_descendants(postmaster)]
        if role == "rollup":
            return [each.process.pid for each in self.rollups if each.process is not None and _is_up(each.process)]
        supervisor = self.service.process
        if supervisor is None or not _is_up(supervisor):
            return []
        if role == "supervisor":
            return [supervisor.pid]
        collectors = child_processes(supervisor.pid)
        return collectors if role == "collector" else [pid for one in collectors for pid in child_processes(one)]

    def metrics(self) -> Mapping[str, float]:
        """Of all workers that answer. Raises OSError if none does."""
        return parse_metrics(self.service.get("/metrics", timeout=10)[1])


def _is_up(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


def _descendants(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def start(one: Service | RollupProcess) -> None:
    """Start it, and do not wait until it is ready."""
    if isinstance(one, Service):
        one.start(wait=False)
    else:
        one.start()


class Keeper:
    """Starts again what has ended. `run` until cancelled."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.postgres_failures = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_postgres())
            group.create_task(self._keep("serve", lambda: self._world.service))
            for rollup in self._world.rollups:
                group.create_task(self._keep("rollup", lambda rollup=rollup: rollup))  # type: ignore[misc]

    async def _keep(self, name: str, which: Callable[[], Service | RollupProcess]) -> None:
        while True:
            one = which()
            process = one.process
            assert process is not None
            if process.poll() is not None:
                self._world.exits[f"{name} {process.returncode}"] += 1
                await asyncio.sleep(RESTART_SECONDS)
                start(one)
            await asyncio.sleep(LOOK_SECONDS)

    async def _keep_postgres(self) -> None:
        postgres = self._world.postgres
        while True:
            if not postgres.is_running():
                await asyncio.sleep(RESTART_SECONDS)
                try:
                    await asyncio.to_thread(postgres.start)
                except EmbeddedPostgresError:
                    # It may have been killed while it started.
                    self.postgres_failures += 1
            await asyncio.sleep(LOOK_SECONDS)


@asynccontextmanager
async def running_world(
    migrated: EmbeddedPostgres | None = None, *, workers: int = WORKERS, rollups: int = ROLLUPS
) -> AsyncIterator[World]:
    """All of it, in a fresh folder, kept running; gone afterwards, whatever happens.

    `migrated`: a running server for it, which will be killed, and is its caller's; a fresh one if there is none.
    """
    folder = Path(tempfile.mkdtemp(prefix="ingest-chaos-"))
    # Postgres may be another user.
    folder.chmod(0o755)
    (folder / "data").mkdir()
    postgres = migrated or EmbeddedPostgres(folder / "pg", POSTGRES_SETTINGS)
    interposed = Interposed(folder, folder / "data")
    world: World | None = None
    try:
        if migrated is None:
            await asyncio.to_thread(postgres.start)
            connection = await connections.connect(postgres.dsn, purpose="chaos")
            await migrations.migrate(connection)
            await connection.close()
        world = World(folder, postgres, interposed, workers=workers, rollups=rollups)
        async with world.wired():
            for rollup in world.rollups:
                start(rollup)
            start(world.service)
            await asyncio.to_thread(world.service.wait_ready, START_SECONDS)
            keeping = asyncio.create_task(Keeper(world).run())
            try:
                yield world
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
    finally:
        if world is not None:
            _end(world)
        if migrated is None:
            await asyncio.to_thread(postgres.stop)
        interposed.close()
        shutil.rmtree(folder, ignore_errors=True)


def _end(world: World) -> None:
    """Kill whatever we have started, however little of it is left."""
    left = [pid for role in ("writer", "collector", "supervisor", "rollup") for pid in world.pids(role)]
    if world.service.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(world.service.process.pid, signal.SIGKILL)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in (world.service.process, *(rollup.process for rollup in world.rollups)):
        if process is not None:
            process.wait(10)
