"""Databases on the tests' server."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from ingest.postgres import connections

SMALL = {"shared_buffers": "32MB", "min_wal_size": "32MB", "max_connections": "100"}
"""Settings of the tests' servers."""


MEMORY: Final = Path("/dev/shm")
ENOUGH_MEMORY: Final = 8 << 30


def memory_folder() -> Path | None:
    """Where the server that all tests share should be: each makes and drops a database of 500 files, which takes a
    quarter of the time in memory. None, for the disk, where memory is short, as in a container. Servers
    that are killed at random moments are on disk, and so are all journals."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ENOUGH_MEMORY else None


class Server(Protocol):
    """A Postgres to make databases on: `dsn` is one database that exists there."""

    @property
    def dsn(self) -> str: ...


def with_database(dsn: str, name: str) -> str:
    """The URL of another database on the same server."""
    parts = urlsplit(dsn)
    return f"{parts.scheme}://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")


async def execute(dsn: str, *statements: str) -> None:
    connection = await connections.connect(dsn, purpose="tests")
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def run_apart(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine to its end in a separate thread's event loop, out of the way of pytest-asyncio's."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(work())).result()
