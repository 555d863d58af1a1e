"""Services that are killed, and the rows left in the table."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.databases import SMALL, memory_folder, run_apart
from tests.support.faults import kill_postgres


@pytest.fixture(scope="session")
def mortal_template(new_folder) -> Path:
    """The folder of a stopped, migrated Postgres: copying it takes a fifth of the time of initdb."""
    folder: Path = new_folder() / "pg"
    postgres = EmbeddedPostgres(folder, SMALL)
    postgres.start()

    async def migrate() -> None:
        connection = await connections.connect(postgres.dsn, purpose="tests")
        await migrations.migrate(connection)
        await connection.close()

    run_apart(migrate)
    postgres.stop()
    return folder


@pytest.fixture
def mortal(new_folder, mortal_template) -> Iterator[EmbeddedPostgres]:
    """The test's own migrated Postgres, to be killed: in memory, where a start after a kill takes a tenth of the
    time; on disk where memory is short."""
    yield from _lend(new_folder(memory_folder()) / "pg", mortal_template)


@pytest.fixture
def mortal_on_disk(new_folder, mortal_template) -> Iterator[EmbeddedPostgres]:
    """The same where a commit takes time, in which it can be killed: for kills at random moments."""
    yield from _lend(new_folder() / "pg", mortal_template)


def _lend(folder: Path, template: Path) -> Iterator[EmbeddedPostgres]:
    # cp keeps the owner, which shutil does not.
    subprocess.run(["cp", "-a", template, folder], check=True)
    postgres = EmbeddedPostgres(folder, SMALL)
    postgres.start()
    yield postgres
    # Its last checkpoint is not needed.
    kill_postgres(postgres)
    shutil.rmtree(folder)


def stored_ids(dsn: str) -> list[str]:
    async def read() -> list[str]:
        connection = await asyncpg.connect(dsn)
        rows = await connection.fetch("SELECT id::text FROM analytics.events")
        await connection.close()
        return [row["id"] for row in rows]

    return asyncio.run(read())
