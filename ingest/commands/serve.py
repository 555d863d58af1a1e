"""`ingest dev` and `ingest serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
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

from ingest.base import logs
from ingest.base.config import Config
from ingest.base.data_folder import DataFolder
from ingest.base.descriptors import raise_limit
from ingest.base.errors import IngestError
from ingest.commands.encryption import made_dev_keys
from ingest.commands.target import embedded_folder
from ingest.http.binding import bind
from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from ingest.postgres.lock_waits import Patience
from ingest.service.collector import start_collector
from ingest.service.loops import run_every
from ingest.service.supervisor import (
    Stop,
    keep_rollup_running,
    restart,
    run_workers,
    serve_until_stopped,
    start_unless_stopped,
    stop_on_signals,
)

logger = logging.getLogger(__name__)
CHECK_POSTGRES_SECONDS: Final = 1.0


def serve(config: Config) -> int:
    """Collectors against DATABASE_URL, each in a process of its own, until SIGTERM or SIGINT."""
    if config.database_url is None:
        raise IngestError("serve needs DATABASE_URL; for a Postgres in a folder use `ingest dev`")
    logs.configure(config.log_level, config.log_format)
    folder = DataFolder(config.data_dir)
    try:
        sock = run_workers(config, f"collecting on http://{_shown(config.host)}:{{port}}/v1/events")
    finally:
        folder.release()
    if sock is not None:
        restart(sock)
    return 0


def dev(config: Config) -> int:
    """Everything in one process tree: a Postgres in the data folder (unless DATABASE_URL names one), its
    migrations, one collector, the rollup worker."""
    if config.log_level == "info":
        config = msgspec.structs.replace(config, log_level="warning")
    logs.configure(config.log_level, config.log_format)
    # Its default ends this process, and leaves Postgres running.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    raise_limit()
    sock = bind(config.host, config.port)
    folder = DataFolder(config.data_dir)
    if not config.admin_keys:
        config = msgspec.structs.replace(config, admin_keys=(_admin_key(config.data_dir),))
    if not config.encryption_keys:
        config = msgspec.structs.replace(config, encryption_keys=made_dev_keys(config.data_dir))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_dev(config, sock))
    finally:
        sock.close()
        folder.release()


def _admin_key(data_dir: Path) -> str:
    """The key of this data folder: made once, for its owner only."""
    path = data_dir / "admin_key"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    return path.read_text(encoding="ascii").strip()


async def _dev(config: Config, sock: socket.socket) -> int:
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
        worker = await start_unless_stopped(start_collector(config, sock), stop.asked)
        if worker is not None:
            if postgres is not None:
                guards.append(asyncio.create_task(_keep_running(postgres, stop.asked)))
            if config.rollup:
                guards.append(asyncio.create_task(keep_rollup_running(config, stop.asked)))
            _say(_welcome(config, worker.port, own_database=postgres is not None))
            await serve_until_stopped(worker, stop)
    finally:
        stop.asked.set()
        for guard in guards:
            await guard
        if postgres is not None:
            await asyncio.to_thread(postgres.stop)
    left = worker.accounts.pending if worker is not None else 0
    _say(f"stopped; {left} events wait in the journal" if left else "stopped; every accepted event is stored")
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
    """Start the embedded Postgres again when it died; until then events wait in the journal."""

    async def check() -> None:
        if not await asyncio.to_thread(postgres.is_running) and not stop.is_set():
            logger.warning("PostgreSQL is gone, starting it again")
            await asyncio.to_thread(postgres.start)

    await run_every(CHECK_POSTGRES_SECONDS, check, stop, what="keeping PostgreSQL running")


def _welcome(config: Config, port: int, own_database: bool) -> str:
    where = f"http://{_shown(config.host)}:{port}"
    return f"""
  events      POST {where}/v1/events
  Segment     {where}  (set it as your SDK's host)
  statistics  {where}/v1/stats/totals
  metrics     {where}/metrics
  database    {connections.describe(config.database_url or "")}
  journal     {config.data_dir / "journals"}

Try it, in another terminal:
  curl -d '{{"name": "hello", "properties": {{"plan": "pro"}}}}' {where}/v1/events
  {_psql(config, own_database)} -c 'select name, properties from analytics.events'
  curl -H "Authorization: Bearer {_shown_key(config)}" {where}/v1/stats/totals

Ctrl-C stops everything; what was accepted is kept.
"""


def _shown_key(config: Config) -> str:
    """What the shell makes the admin key of: a configured one is not shown."""
    path = config.data_dir / "admin_key"
    ours = path.exists() and config.admin_keys == (path.read_text(encoding="ascii").strip(),)
    return f"$(cat {shlex.quote(str(path))})" if ours else "$INGEST_ADMIN_KEYS"


def _psql(config: Config, own_database: bool) -> str:
    """`ingest psql` as it must be typed here to reach the same database."""
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


def _shown(host: str) -> str:
    return "localhost" if host in ("", "0.0.0.0", "127.0.0.1", "::", "::1") else f"[{host}]" if ":" in host else host


def _say(text: str) -> None:
    print(text, flush=True)
