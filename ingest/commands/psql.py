"""`ingest psql`: psql on whichever database is configured."""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess

from ingest.base.config import Config
from ingest.commands.target import database_url, embedded_folder

_NO_DATABASE = frozenset(("--help", "-?", "--version", "-V"))
"""Arguments of psql that need no database."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none of its own: unknown arguments are passed to psql."""


def run(config: Config, given: argparse.Namespace) -> int:
    """Run psql with its arguments; returns its exit code."""
    from ingest.postgres import connections
    from ingest.postgres.embedded import EmbeddedPostgres

    arguments = given.rest
    # The embedded server's psql has the right version for it; for other servers, the one on the PATH may be newer.
    found = shutil.which("psql") if config.database_url is not None else None
    program = found or str(EmbeddedPostgres(embedded_folder(config.data_dir)).psql_path)
    if not _NO_DATABASE.isdisjoint(arguments):
        print("`ingest psql` itself takes --data-dir, --database-url and --config; the rest is for psql:", flush=True)
        return subprocess.run([program, *arguments], check=False).returncode
    with database_url(config) as url:
        command = connections.psql_command(url, program, arguments)
        # Ctrl-C belongs to psql, which uses it to cancel a query.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return subprocess.run(command, env=connections.psql_environment(url), check=False).returncode
        finally:
            signal.signal(signal.SIGINT, before)
