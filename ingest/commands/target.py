"""The database a command works on: the configured one, or the embedded one, started while the command runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ingest.base.config import Config
from ingest.base.data_folder import is_in_use
from ingest.base.errors import DatabaseError, IngestError, one_line

if TYPE_CHECKING:
    import asyncpg

T = TypeVar("T")


def embedded_folder(data_dir: Path) -> Path:
    """Where `ingest dev` keeps its Postgres."""
    return data_dir / "postgres"


def on_database(config: Config, purpose: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Run `work` on a connection, after checking that the schema is this release's, and return its result."""
    import asyncio

    with database_url(config) as url:
        return asyncio.run(_connected(url, purpose, work))


async def _connected(url: str, purpose: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    from ingest.postgres import connections, migrations

    connection = await connections.connect(url, purpose=purpose)
    try:
        await migrations.check(connection)
        return await work(connection)
    finally:
        await connections.close(connection)


@contextmanager
def database_url(config: Config, *, make: bool = False) -> Iterator[str]:
    """The URL of the database to work on. An embedded one that is not running is started, and stopped afterwards.

    `make`: create the embedded one if it does not exist; otherwise that is an error.
    """
    if config.database_url is not None:
        with _one_line_errors():
            yield config.database_url
        return
    from ingest.postgres.embedded import EmbeddedPostgres

    folder = embedded_folder(config.data_dir)
    if not make and not folder.exists():
        raise IngestError(
            f"there is no database yet: DATABASE_URL is not set and {folder} does not exist (`ingest dev` makes it)"
        )
    postgres = EmbeddedPostgres(folder)
    # If a service is just starting, it owns Postgres and will stop it.
    keep = is_in_use(config.data_dir) or postgres.is_running()
    # Waits for and uses one that is running or starting.
    postgres.start()
    try:
        with _one_line_errors():
            yield postgres.dsn
    finally:
        if not keep:
            postgres.stop()


@contextmanager
def _one_line_errors() -> Iterator[None]:
    import asyncpg

    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise DatabaseError(f"the database refused: {one_line(error)}") from error
