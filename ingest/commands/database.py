"""`ingest migrate` and `ingest psql`."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from functools import partial
from typing import Protocol, TypeVar

import asyncpg

from ingest.base.config import Config
from ingest.commands.target import database_url, embedded_folder
from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from ingest.postgres.lock_waits import Patience

T = TypeVar("T", covariant=True)

_ASKS_NOTHING = frozenset(("--help", "-?", "--version", "-V"))


def migrate(config: Config, wait_seconds: float) -> int:
    """Bring the database to this release's schema, waiting so long for others who hold locks."""
    with database_url(config, make=True) as url:
        applied = asyncio.run(_on(url, migrations.migrate, wait_seconds))
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print("nothing to do: the database is up to date")
    return 0


def rehearse(config: Config, wait_seconds: float) -> int:
    """Do what `migrate` would and take it back; tell what it was."""
    with database_url(config) as url:
        applied = asyncio.run(_on(url, migrations.rehearse, wait_seconds))
    for name in applied:
        print(f"would apply {name}")
    print("nothing was changed" if applied else "nothing to do: the database is up to date")
    return 0


def migration_status(config: Config, wait_seconds: float) -> int:
    """A line for each migration; then, if the database is not what this release needs, why, and exit code 1."""
    with database_url(config) as url:
        found = asyncio.run(_on(url, migrations.status, wait_seconds))
    width = max((len(migration.name) for migration in found), default=0)
    for migration in found:
        when = f"{migration.applied_at:%Y-%m-%d %H:%M:%S} UTC" if migration.applied_at else ""
        print(f"{migration.name:<{width}}  {migration.state:<8} {when}".rstrip(), flush=True)
    migrations.refuse_unless_applied(found)
    return 0


class _Work(Protocol[T]):
    """What is done on a connection, with patience."""

    async def __call__(self, connection: asyncpg.Connection, *, patience: Patience) -> T: ...


async def _on(url: str, work: _Work[T], wait_seconds: float) -> T:
    connection = await connections.connect(url, purpose="migrate")
    connection.add_log_listener(_print_warning)
    patience = Patience(wait_seconds, partial(connections.connect, url, purpose="migrate, looking"), _print_waiting)
    try:
        return await work(connection, patience=patience)
    finally:
        connection.remove_log_listener(_print_warning)
        await connections.close(connection)


def _print_waiting(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_warning(_: asyncpg.Connection, message: asyncpg.PostgresLogMessage) -> None:
    if message.severity_en == "WARNING":
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def psql(config: Config, arguments: list[str]) -> int:
    """A psql on the database, with psql's own arguments."""
    # The embedded server's own psql knows its version; for others the one on the PATH may be newer than ours.
    found = shutil.which("psql") if config.database_url is not None else None
    program = found or str(EmbeddedPostgres(embedded_folder(config.data_dir)).psql_path)
    if not _ASKS_NOTHING.isdisjoint(arguments):
        print("Of `ingest psql` itself are --data-dir, --database-url and --config; the rest is psql's:", flush=True)
        return subprocess.run([program, *arguments], check=False).returncode
    with database_url(config) as url:
        command = connections.psql_command(url, program, arguments)
        # Ctrl-C belongs to psql, which uses it to cancel a query.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return subprocess.run(command, env=connections.psql_environment(url), check=False).returncode
        finally:
            signal.signal(signal.SIGINT, before)
