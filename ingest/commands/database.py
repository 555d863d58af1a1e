"""`ingest migrate` and `ingest psql`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess

from ingest import database, migrations
from ingest.commands.target import database_url, embedded_folder
from ingest.config import Config
from ingest.embedded import EmbeddedPostgres


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
        await connection.close()


def psql(config: Config, arguments: list[str]) -> int:
    """A psql on the database, with psql's own arguments."""
    shipped = EmbeddedPostgres(embedded_folder(config.data_dir)).psql_path
    # The embedded server's own psql knows its version; for others the one on the PATH may be newer than ours.
    program = shipped if config.database_url is None else shutil.which("psql") or shipped
    with database_url(config) as url:
        command = database.psql_command(url, str(program), arguments)
        # Ctrl-C belongs to psql, which uses it to cancel a query.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return subprocess.run(command, env=os.environ, check=False).returncode
        finally:
            signal.signal(signal.SIGINT, before)
