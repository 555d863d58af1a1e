"""The database a command works on: the configured one, or the embedded one, started for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from ingest.base.config import Config
from ingest.base.data_folder import is_in_use
from ingest.base.errors import DatabaseError, IngestError
from ingest.postgres.embedded import EmbeddedPostgres


def embedded_folder(data_dir: Path) -> Path:
    """Where `ingest dev` keeps its Postgres."""
    return data_dir / "postgres"


@contextmanager
def database_url(config: Config, *, make: bool = False) -> Iterator[str]:
    """The URL of the database to work on. An embedded one that does not run is started, and stopped again.

    `make`: make the embedded one if there is none; otherwise that is an error.
    """
    if config.database_url is not None:
        with _told_in_one_line():
            yield config.database_url
        return
    folder = embedded_folder(config.data_dir)
    if not make and not folder.exists():
        raise IngestError(
            f"there is no database yet: no DATABASE_URL is set, and {folder} does not exist (`ingest dev` makes it)"
        )
    postgres = EmbeddedPostgres(folder)
    # That of a service which is only just starting is the service's to stop, too.
    keep = is_in_use(config.data_dir) or postgres.is_running()
    # One that runs, or is starting, is waited for and used.
    postgres.start()
    try:
        with _told_in_one_line():
            yield postgres.dsn
    finally:
        if not keep:
            postgres.stop()


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise DatabaseError(f"the database refused: {' '.join(str(error).split())}") from error
