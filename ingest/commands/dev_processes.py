"""The process tree of `ingest dev`, from start to stop: Postgres, collector, rollup worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import shutil
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import embedded_folder
from ingest.http.binding import host_in_url
from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from ingest.postgres.lock_waits import Patience
from ingest.postgres.pool import TooSlow, Unavailable
from ingest.service.collector import start_collector
from ingest.service.loops import run_every
from ingest.service.supervisor import (
    Stop,
    keep_rollup_running,
    serve_until_stopped,
    start_unless_stopped,
    stop_on_signals,
)

logger = logging.getLogger(__name__)
CHECK_POSTGRES_SECONDS: Final = 1.0


def run(config: Config, sock: socket.socket) -> int:
    """Start everything, serve on the socket until SIGTERM or SIGINT, and stop it again."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(config, sock))


async def _run(config: Config, sock: socket.socket) -> int:
    stop = Stop()
    stop_on_signals(stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, _stay)
    postgres = None
    if config.database_url is None:
        postgres = EmbeddedPostgres(embedded_folder(config.data_dir))
        _say(f"starting PostgreSQL in {postgres.folder} ...")
        await asyncio.to_thread(postgres.start)
        config = msgspec.structs.replace(config, database_url=postgres.dsn)
    guards: list[asyncio.Task[None]] = []
    try:
        await _migrate(config)
        collector = await start_unless_stopped(start_collector(config, sock), stop.asked)
        if collector is not None:
            if postgres is not None:
                guards.append(asyncio.create_task(_keep_running(postgres, stop.asked)))
            if config.rollup:
                guards.append(asyncio.create_task(keep_rollup_running(config, stop.asked)))
            link = None
            with contextlib.suppress(Unavailable, TooSlow):
                link = await collector.sign_in_path() if config.dashboard else None
            _say(_welcome(config, collector.port, link, own_database=postgres is not None))
            await serve_until_stopped(collector, stop)
    finally:
        stop.asked.set()
        for guard in guards:
            await guard
        if postgres is not None:
            await asyncio.to_thread(postgres.stop)
    left = collector.accounts.pending if collector is not None else 0
    _say(
        f"stopped; {left} event{'s' * (left != 1)} to be stored at the next start"
        if left
        else "stopped; every accepted event is stored"
    )
    return 0


def _stay() -> None:
    logger.warning("SIGUSR2 is ignored: only `ingest serve` restarts in place")


async def _migrate(config: Config) -> None:
    assert config.database_url is not None
    connection = await connections.connect(config.database_url, purpose="migrate")
    try:
        looking = partial(connections.connect, config.database_url, purpose="migrate, looking")
        await migrations.migrate(connection, patience=Patience(connect=looking))
    finally:
        await connections.close(connection)


async def _keep_running(postgres: EmbeddedPostgres, stop: asyncio.Event) -> None:
    """Restart the embedded Postgres when it has died; until then events wait in the journal."""

    async def check() -> None:
        if not await asyncio.to_thread(postgres.is_running) and not stop.is_set():
            if not postgres.is_initialised():
                # An empty one would hide that the data is gone.
                raise IngestError(
                    f"the folder {postgres.folder} is gone; stop, and start again with an empty database"
                )
            logger.warning("PostgreSQL has died, restarting it")
            await asyncio.to_thread(postgres.start)

    await run_every(CHECK_POSTGRES_SECONDS, check, stop, what="keeping PostgreSQL running")


def _welcome(config: Config, port: int, link: str | None, own_database: bool) -> str:
    where = f"http://{host_in_url(config.host)}:{port}"
    dashboard = f"\n  dashboard   {where}{link}  (signs you in, once)" if link is not None else ""
    return f"""{dashboard}
  events      POST {where}/v1/events
  Segment     {where}  (your SDK's host)
  statistics  {where}/v1/stats/totals
  metrics     {where}/metrics
  database    {connections.describe(config.database_url or "")}
  journal     {config.data_dir / "journals"}

Try it, in another terminal:
  curl -d '{{"name": "hello", "properties": {{"plan": "pro"}}}}' {where}/v1/events
  {_psql(config, own_database)} -c 'select name, properties from analytics.events'
  curl -H "Authorization: Bearer {_shown_key(config)}" {where}/v1/stats/totals

Ctrl-C stops everything; accepted events are kept.
"""


def _shown_key(config: Config) -> str:
    """A shell expression for the admin key; a configured key is not printed."""
    path = config.data_dir / "admin_key"
    ours = path.exists() and config.admin_keys == (path.read_text(encoding="ascii").strip(),)
    return f"$(cat {shlex.quote(str(path))})" if ours else "$INGEST_ADMIN_KEYS"


def _psql(config: Config, own_database: bool) -> str:
    """The `ingest psql` command to type here to reach the same database."""
    program = Path(sys.argv[0])
    found = shutil.which("ingest")
    if program.name == "__main__.py":
        words = [sys.executable, "-m", "ingest"]
    else:
        words = ["ingest" if found and program.exists() and program.samefile(found) else str(program)]
    words.append("psql")
    if own_database and config.data_dir != Config().data_dir:
        words += ["--data-dir", str(config.data_dir)]
    return shlex.join(words)


def _say(text: str) -> None:
    print(text, flush=True)
