"""One database for all tests of the overview, and a connection as statistics have it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from ingest.postgres import connections
from ingest.rollup import totals
from tests.dashboard import world
from tests.support.databases import Server, run_apart
from tests.support.service import lent_database


@pytest.fixture(scope="package")
def overview_url(postgres: Server, template: str) -> Iterator[str]:
    with lent_database(postgres, template) as url:

        async def build() -> None:
            connection = await connections.connect(url, purpose="tests")
            try:
                await world.build(connection)
            finally:
                await connection.close()

        run_apart(build)
        yield url


@pytest.fixture(scope="package")
def totalled_url(postgres: Server, overview_url: str) -> Iterator[str]:
    """A copy of the database in which all totals over names have been made."""
    with lent_database(postgres, urlsplit(overview_url).path.removeprefix("/")) as url:

        async def make() -> None:
            connection = await connections.connect(url, purpose="tests")
            try:
                await world.keep(connection)
                assert await totals.run_once(connection, world.NOW, seconds=300) > 1000
            finally:
                await connection.close()

        run_apart(make)
        yield url


@pytest.fixture
async def plain(overview_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the owner's, for SQL."""
    connection = await connections.connect(overview_url, purpose="tests")
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def reading(overview_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection in a transaction that reads only."""
    connection = await connections.connect(overview_url, purpose="tests")
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection
    finally:
        await connection.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages wait for their panels here, however busy the machine is."""
    monkeypatch.setattr("ingest.dashboard.dashboard.FIRST_SECONDS", 20.0)
