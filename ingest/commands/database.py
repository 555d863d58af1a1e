"""`ingest migrate` and `ingest psql`."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess

from ingest import database, migrations
from ingest.commands.target import database_url, embedded_folder
from ingest.config import Config
from ingest.embedded import EmbeddedPostgres

_ASKS_NOTHING = frozenset(("--help", "-?", "--version", "-V"))


def migrate(config: Config) -> int:
    """Bring the database to this release's schema."""
    with database_url(config, make=True) as url:
        applied = asyncio.run(_migrate(url))
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print("nothing to do: the database is up to date")
    return 0


async def _migrate(url: str) -> list[str]:
    connection = await database.connect(url, purpose="migrate")
    try:
        return await migrations.migrate(connection)
    finally:
        await database.close(connection)


def psql(config: Config, arguments: list[str]) -> int:
    """A psql on the database, with psql's own arguments."""
    # The embedded server's own psql knows its version; for others the one on the PATH may be newer than ours.
    found = shutil.which("psql") if config.database_url is not None else None
    program = found or str(EmbeddedPostgres(embedded_folder(config.data_dir)).psql_path)
    if not _ASKS_NOTHING.isdisjoint(arguments):
        print("Of `ingest psql` itself are --data-dir, --database-url and --config; the rest is psql's:", flush=True)
        return subprocess.run([program, *arguments], check=False).returncode
    with database_url(config) as url:
        command = database.psql_command(url, program, arguments)
        # Ctrl-C belongs to psql, which uses it to cancel a query.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return subprocess.run(command, env=database.psql_environment(url), check=False).returncode
        finally:
            signal.signal(signal.SIGINT, before)
