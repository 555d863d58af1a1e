"""A rollup, and its expected result."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.postgres import connections
from ingest.rollup import rebuild
from tests.support.databases import Server
from tests.support.service import lent_database

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


@pytest.fixture(scope="module")
def module_database(postgres: Server, template: str) -> Any:
    with lent_database(postgres, template) as url:
        yield url


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connections.connect(url, purpose="tests")
    try:
        yield connection
    finally:
        await connection.close()


async def differences(connection: asyncpg.Connection) -> list[Any]:
    found: list[Any] = []
    start, end = NOW - timedelta(days=10), NOW + timedelta(days=2)
    async for _, some in rebuild.verify(connection, start, end, DIMENSION_NAMES):
        found += some
    return found
