"""`ingest seed`: load sample data from `sql/migrations/005_seed_data.sql` into a development database."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import TYPE_CHECKING

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.arguments import moment, natural
from ingest.commands.target import on_database

if TYPE_CHECKING:
    import asyncpg

_DEVELOPMENT = ("development", "test", "local")
_SEED_MAX = 2**31 - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", metavar="N", type=natural, default=1, help="the same number gives the same rows [1]"
    )
    parser.add_argument(
        "--anchor",
        metavar="TIME",
        type=moment,
        help="the end of the thirty days of data, such as 2026-01-31 or 2026-01-31T18:00Z [now]",
    )


def run(config: Config, given: argparse.Namespace) -> int:
    """Load the sample data for this seed and the thirty days before `anchor` (or now), and print rows by table."""
    seed, anchor = given.seed, given.anchor
    if seed > _SEED_MAX:
        raise IngestError(f"--seed must be from 0 to {_SEED_MAX}")
    loaded = on_database(config, "seed", lambda connection: _load(config, connection, seed, anchor))
    for row in loaded:
        print(f"{row['inserted']:>6}  {row['table_name']}")
    if not loaded:
        print("nothing to do: the seed data is already loaded")
    return 0


async def _load(
    config: Config, connection: asyncpg.Connection, seed: int, anchor: datetime | None
) -> list[asyncpg.Record]:
    declared = await connection.fetchval("SELECT nullif(current_setting('app.environment', true), '')")
    environment = _environment(config, declared)
    async with connection.transaction():
        # Only until the end of the transaction: behind a pooler, another client gets the session next.
        await connection.execute("SELECT set_config('app.environment', $1, true)", environment)
        loaded: list[asyncpg.Record] = await connection.fetch(
            "SELECT table_name, inserted FROM ingest.load_seed_data($1, coalesce($2, now()))", seed, anchor
        )
        return loaded


def _environment(config: Config, declared: str | None) -> str:
    """The database's environment. Its own declaration (`ALTER DATABASE … SET app.environment`) takes precedence over
    our setting.

    Raises IngestError unless it is a development environment.
    """
    if declared is not None:
        environment, source = declared, "the database's app.environment"
    elif config.environment is not None:
        environment, source = config.environment, "the setting `environment`"
    elif config.database_url is None:
        return "development"
    else:
        raise IngestError(
            "seed data is for development, and nothing says that this is a development database:"
            " if it is, add `--environment development`"
        )
    if environment not in _DEVELOPMENT:
        raise IngestError(
            f'seed data is for development: {source} is "{environment}", not development, test or local'
        )
    return environment
