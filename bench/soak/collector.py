"""The real collector on a real Postgres, and its restarts."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import asyncpg

from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support import service
from tests.support.databases import run_apart
from tests.support.service import Service

RESTART_EVERY: Final = (20.0, 60.0)
DOWN: Final = (0.0, 1.0)


@contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector on a fresh folder and a fresh Postgres; both are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ingest-soak-"))
    postgres = EmbeddedPostgres(folder / "pg")
    try:
        postgres.start()
        run_apart(lambda: _migrate(postgres.dsn))
        with service.running(Service(folder / "journal", postgres.dsn)) as started:
            yield Collector(started, postgres.dsn)
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _migrate(dsn: str) -> None:
    connection = await connections.connect(dsn, purpose="soak")
    try:
        await migrations.migrate(connection)
    finally:
        await connection.close()


class Rows(NamedTuple):
    """What the table holds of the events with numbers."""

    numbers: list[int]
    """As often as they are in it."""
    ids_twice: int
    """Of all events."""


class Collector:
    def __init__(self, service: Service, dsn: str) -> None:
        self.service = service
        self.kills = 0
        self.restarts = 0
        self.url = service.url
        self._dsn = dsn

    async def restart_now_and_then(self, random: Random, enough: asyncio.Event) -> None:
        """Until there is enough of it; then it runs."""
        while not enough.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), random.uniform(*RESTART_EVERY))
                return
            await self._restart(kill=random.random() < 0.5, down=random.uniform(*DOWN))

    async def _restart(self, *, kill: bool, down: float) -> None:
        if kill:
            self.kills += 1
            await asyncio.to_thread(self.service.kill)
        else:
            self.restarts += 1
            self.service.signal(signal.SIGTERM)
            await asyncio.to_thread(self.service.stop)
        await asyncio.sleep(down)
        await asyncio.to_thread(self.service.start)

    async def version(self) -> str:
        """Of Postgres."""
        connection = await asyncpg.connect(self._dsn)
        try:
            return str(await connection.fetchval("SHOW server_version")).split()[0]
        finally:
            await connection.close()

    async def rows(self, numbers: range) -> Rows:
        """Once all that was acknowledged is stored."""
        await asyncio.to_thread(self.service.wait_stored)
        connection = await asyncpg.connect(self._dsn)
        try:
            found = await connection.fetch(
                "SELECT (properties->>'n')::int AS n FROM analytics.events WHERE name = 'soak' ORDER BY 1"
            )
            twice = await connection.fetchval(
                "SELECT count(*) FROM (SELECT FROM analytics.events GROUP BY id HAVING count(*) > 1) AS twice"
            )
        finally:
            await connection.close()
        return Rows([row["n"] for row in found if row["n"] in numbers], twice)
