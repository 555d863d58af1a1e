"""`ingest seed`: data to develop with, from `sql/migrations/005_seed_data.sql`, into a database that is for that."""

from __future__ import annotations

import asyncio
from datetime import datetime

import asyncpg

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import database_url
from ingest.postgres import connections, migrations

_DEVELOPMENT = ("development", "test", "local")
_SEED_MAX = 2**31 - 1


def run(config: Config, seed: int, anchor: datetime | None) -> int:
    """Load what `seed` gives for the thirty days before `anchor` (now, if None), and print how much of what."""
    if seed > _SEED_MAX:
        raise IngestError(f"--seed must be from 0 to {_SEED_MAX}")
    with database_url(config) as url:
        loaded = asyncio.run(_load(config, url, seed, anchor))
    for row in loaded:
        print(f"{row['inserted']:>6}  {row['table_name']}")
    if not loaded:
        print("nothing to do: the seed data is there already")
    return 0


async def _load(config: Config, url: str, seed: int, anchor: datetime | None) -> list[asyncpg.Record]:
    connection = await connections.connect(url, purpose="seed")
    try:
        await migrations.check(connection)
        told = await connection.fetchval("SELECT nullif(current_setting('app.environment', true), '')")
        environment = _environment(config, told)
        async with connection.transaction():
            # Until the end of the transaction only: behind a pooler the session is somebody else's next.
            await connection.execute("SELECT set_config('app.environment', $1, true)", environment)
            loaded: list[asyncpg.Record] = await connection.fetch(
                "SELECT table_name, inserted FROM ingest.load_seed_data($1, coalesce($2, now()))", seed, anchor
            )
            return loaded
    finally:
        await connections.close(connection)


def _environment(config: Config, told: str | None) -> str:
    """What the database is for: by its own word, which `ALTER DATABASE … SET app.environment` gave it, before ours.

    Raises IngestError unless that is development.
    """
    if told is not None:
        environment, source = told, "the database's app.environment"
    elif config.environment is not None:
        environment, source = config.environment, "the setting `environment`"
    elif config.database_url is None:
        return "development"
    else:
        raise IngestError(
            "seed data is for development, and nothing says that this database is:"
            " add `--environment development` if it is"
        )
    if environment not in _DEVELOPMENT:
        raise IngestError(
            f'seed data is for development: {source} is "{environment}", not development, test or local'
        )
    return environment
