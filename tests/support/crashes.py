"""Services that are killed, and what is left in the table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.databases import SMALL, run_apart


@pytest.fixture
def mortal(new_folder) -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres of the test's own, to be killed."""
    postgres = EmbeddedPostgres(new_folder() / "pg", SMALL)
    postgres.start()

    async def migrate() -> None:
        connection = await connections.connect(postgres.dsn, purpose="tests")
        await migrations.migrate(connection)
        await connection.close()

    run_apart(migrate)
    yield postgres
    postgres.stop()


def stored_ids(dsn: str) -> list[str]:
    async def read() -> list[str]:
        connection = await asyncpg.connect(dsn)
        rows = await connection.fetch("SELECT id::text FROM analytics.events")
        await connection.close()
        return [row["id"] for row in rows]

    return asyncio.run(read())
