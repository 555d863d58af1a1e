"""A real Postgres for every test: one server a session, and a fresh clone of a migrated database a test.

With INGEST_TEST_DATABASE_URL set, that server is used instead of the embedded one; its role must be allowed to make
databases.

With INGEST_TEST_POOLER set, tests reach their databases through PgBouncer in transaction mode with three server
connections, but for those that are marked `direct`, each with its reason. What is no user's work goes to the server
itself: making and dropping databases, and migrating the template. A test that needs the server at one place only asks
for `direct_url` there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.collector import client, start
from tests.support.commands import ingest, ingest_here
from tests.support.crashes import mortal, mortal_on_disk, mortal_template
from tests.support.databases import SMALL, Server, execute, memory_folder, run_apart, with_database
from tests.support.experiment_results import running
from tests.support.pooler import Pooler
from tests.support.rollups import module_database
from tests.support.statistics import ask

# Fixtures that tests of several folders use.
__all__ = [
    "ask",
    "client",
    "ingest",
    "ingest_here",
    "module_database",
    "mortal",
    "mortal_on_disk",
    "mortal_template",
    "running",
    "start",
]

# A shell starts what runs in the background with Ctrl-C ignored, and so would be the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No timing assertions: by default, an example that takes longer than 0.2 seconds fails, as on a busy machine.
# CI says whether a commit is sound, with the same examples each time; to look for new ones is for other runs.
settings.register_profile(
    "tests",
    settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("tests")


class OutsideServer:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn


_OF_THE_SERVICE = {"start", "mortal", "mortal_on_disk", "module_database"}
_RUN_THE_SERVICE = {
    f"tests.support.{name}"
    for name in ("service", "collector", "faults", "statistics", "experiments", "dashboard", "dashboards")
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `database` what uses the server but not the service: what another version of Postgres may change.

    And as `quick` what starts neither a server nor a process, unless it is marked as `thorough`.
    """
    for test in items:
        module = getattr(test, "module", None)
        imported = {getattr(value, "__module__", "") for value in vars(module).values()}
        on_server = "postgres" in getattr(test, "fixturenames", ())
        serves = imported & _RUN_THE_SERVICE or not _OF_THE_SERVICE.isdisjoint(getattr(test, "fixturenames", ()))
        if on_server and not serves and not test.get_closest_marker("plpgsql_check"):
            test.add_marker("database")
        starts = {"postgres", "new_folder"} & {*getattr(test, "fixturenames", ())} or "subprocess" in vars(module)
        if not starts and not imported & _RUN_THE_SERVICE and not test.get_closest_marker("thorough"):
            test.add_marker("quick")


@pytest.fixture(scope="session")
def new_folder() -> Iterator[Callable[..., Path]]:
    """Makes folders for servers. Not below pytest's own temporary folder: run by root, the server is another user,
    and a second pytest would shut that user out."""
    made: list[Path] = []

    def make(within: Path | None = None) -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="ingest-test-", dir=within)))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres(new_folder: Callable[..., Path]) -> Iterator[Server]:
    """The server; do not stop it, other tests use it."""
    if outside := os.environ.get("INGEST_TEST_DATABASE_URL"):
        yield OutsideServer(outside)
        return
    embedded = EmbeddedPostgres(new_folder(memory_folder()) / "postgres", SMALL)
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture(scope="session")
def template(postgres: Server) -> Iterator[str]:
    """The name of a migrated database without partitions, which nobody is connected to."""
    name = f"ingest_template_{secrets.token_hex(4)}"

    async def make() -> None:
        await execute(postgres.dsn, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        connection = await connections.connect(with_database(postgres.dsn, name), purpose="tests")
        try:
            await migrations.migrate(connection)
        finally:
            await connection.close()

    run_apart(make)
    yield name
    run_apart(lambda: execute(postgres.dsn, f"DROP DATABASE {name} WITH (FORCE)"))


async def _lend(server: Server, template: str) -> AsyncIterator[str]:
    name = f"ingest_test_{secrets.token_hex(4)}"
    # 25 ms; FILE_COPY takes 70 ms, because it syncs every file.
    await execute(server.dsn, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
    yield with_database(server.dsn, name)
    await execute(server.dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def shared_pooler(postgres: Server, new_folder: Callable[..., Path]) -> Iterator[Pooler | None]:
    """What stands between tests and the server, if anything is to."""
    if "INGEST_TEST_POOLER" not in os.environ:
        yield None
        return
    folder = new_folder()
    folder.chmod(0o755)
    made = Pooler(postgres.dsn, folder / "pooler")
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.fixture
async def direct_url(postgres: Server, template: str) -> AsyncIterator[str]:
    """A migrated database of the test's own, without a pooler in between."""
    async for url in _lend(postgres, template):
        yield url


@pytest.fixture
def database_url(request: pytest.FixtureRequest, shared_pooler: Pooler | None, direct_url: str) -> str:
    """The same, through a pooler if there is one to test with."""
    return _pooled(request, shared_pooler, direct_url)


@pytest.fixture
async def direct_empty_url(postgres: Server) -> AsyncIterator[str]:
    """A database of the test's own without anything in it, without a pooler in between."""
    async for url in _lend(postgres, "template0"):
        yield url


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, shared_pooler: Pooler | None, direct_empty_url: str) -> str:
    """The same, through a pooler if there is one to test with."""
    return _pooled(request, shared_pooler, direct_empty_url)


def _pooled(request: pytest.FixtureRequest, pooler: Pooler | None, url: str) -> str:
    is_direct = request.node.get_closest_marker("direct") is not None
    return url if pooler is None or is_direct else pooler.url_of(url)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's own migrated database."""
    opened = await connections.connect(database_url, purpose="tests")
    yield opened
    if not opened.is_closed():
        await opened.close()
