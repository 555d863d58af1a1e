"""`ingest migrate`: bring the database to this release's schema, or show what that would do."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from ingest.base.config import Config
from ingest.commands.arguments import number_between
from ingest.commands.target import database_url

if TYPE_CHECKING:
    import asyncpg

    from ingest.postgres.lock_waits import Patience

T = TypeVar("T", covariant=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--status", action="store_true", help="only list the migrations and whether they are applied")
    only.add_argument("--dry-run", action="store_true", help="apply pending migrations, then roll them back")
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=number_between(0, 86_400, " of seconds"),
        default=60.0,
        help="how long each step waits for locks that others hold; it prints who they are [60]",
    )


def run(config: Config, given: argparse.Namespace) -> int:
    if given.status:
        return status(config, given.wait)
    return (rehearse if given.dry_run else migrate)(config, given.wait)


def migrate(config: Config, wait_seconds: float) -> int:
    """Apply pending migrations, each waiting up to `wait_seconds` for locks that others hold."""
    from ingest.postgres import migrations

    applied = _on_database(config, migrations.migrate, wait_seconds, make=True)
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print("nothing to do: the database is up to date")
    return 0


def rehearse(config: Config, wait_seconds: float) -> int:
    """Do what `migrate` would, roll it back, and print what it was."""
    from ingest.postgres import migrations

    applied = _on_database(config, migrations.rehearse, wait_seconds)
    for name in applied:
        print(f"would apply {name}")
    print("nothing was changed" if applied else "nothing to do: the database is up to date")
    return 0


def status(config: Config, wait_seconds: float) -> int:
    """Print a line for each migration. Raises MigrationError if the database is not what this release needs."""
    from ingest.postgres import migrations

    found = _on_database(config, migrations.status, wait_seconds)
    width = max((len(migration.name) for migration in found), default=0)
    for migration in found:
        when = f"{migration.applied_at:%Y-%m-%d %H:%M:%S} UTC" if migration.applied_at else ""
        print(f"{migration.name:<{width}}  {migration.state:<8} {when}".rstrip(), flush=True)
    migrations.refuse_unless_applied(found)
    return 0


class _Work(Protocol[T]):
    """Work on a connection that waits for locks with patience."""

    async def __call__(self, connection: asyncpg.Connection, *, patience: Patience) -> T: ...


def _on_database(config: Config, work: _Work[T], wait_seconds: float, *, make: bool = False) -> T:
    """Run `work` on a connection and return its result, without checking the schema."""
    import asyncio

    with database_url(config, make=make) as url:
        return asyncio.run(_connected(url, work, wait_seconds))


async def _connected(url: str, work: _Work[T], wait_seconds: float) -> T:
    from ingest.postgres import connections
    from ingest.postgres.lock_waits import Patience

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
