"""Collectors and a rollup worker behind Debian's PgBouncer, with the configuration of deploy/."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from ingest.base.errors import DatabaseError
from ingest.postgres import connections
from tests.support.pooler import PASSWORD, Pooler, needs_pooler
from tests.support.retrying import RetryingLoad, check_stored
from tests.support.rollup_process import RollupProcess, rolling_up, total, verify, wait_rolled_up
from tests.support.service import Service, running

pytestmark = [
    needs_pooler,
    pytest.mark.direct(reason="poolers of its own"),
]
SECONDS = 60.0


@pytest.fixture
def pooler(direct_url: str, new_folder) -> Iterator[Pooler]:
    folder = new_folder()
    folder.chmod(0o755)
    made = Pooler(direct_url, folder / "pooler", example=True)
    try:
        yield made.start()
    finally:
        made.kill()


async def test_it_finds_no_fault_with_its_file_and_asks_for_the_password(pooler: Pooler, direct_url: str):
    url = pooler.url_of(direct_url)
    opened = await connections.connect(url, purpose="tests")
    try:
        assert await opened.fetchval("SELECT count(*) FROM analytics.events") == 0
        assert not await connections.is_direct(opened)
    finally:
        await connections.close(opened)
    # Also of settings that it does not know.
    assert not re.search("ERROR|WARNING|unknown", pooler.log_text())
    with pytest.raises(DatabaseError, match=r"password authentication failed|SASL authentication failed"):
        await connections.connect(url.replace("pooler", "visitor", 1), purpose="tests")


@pytest.mark.long
async def test_all_is_stored_and_counted_once_through_three_server_connections(
    pooler: Pooler, direct_url: str, connection: asyncpg.Connection, tmp_path: Path
):
    """With the pooler reloaded and restarted in the middle, as an administrator does it."""
    url = pooler.url_of(direct_url)
    rollup = RollupProcess(tmp_path / "rollup", url)
    with running(Service(tmp_path / "data", url, "--workers", "2")) as service, rolling_up(rollup):
        async with RetryingLoad(service.url, retrying=6) as load:
            await load.acknowledges(500)
            pooler.reload()
            await load.acknowledges(500)
            for _ in range(3):
                await asyncio.to_thread(pooler.restart)
                await load.acknowledges(500)
        # Events are taken while the pooler is away: nobody was told to come again.
        assert set(load.statuses) <= {0, 200}, load.statuses
        await asyncio.to_thread(service.wait_stored, SECONDS)
        stored = await check_stored(direct_url, [load])
        await wait_rolled_up(connection, SECONDS)
        servers = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        assert 1 <= servers <= 3
    assert await total(connection, "minute") == await total(connection, "day") == stored
    assert " 0 differences" in await asyncio.to_thread(verify, direct_url)
    assert PASSWORD not in service.log_text() + rollup.all_logs()
