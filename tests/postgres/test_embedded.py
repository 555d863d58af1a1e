"""The embedded Postgres: started, adopted, stopped, killed, and its errors when it cannot start."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import pytest

from ingest.base.errors import EmbeddedPostgresError
from ingest.base.sockets import MAX_FOLDER_BYTES
from ingest.postgres import connections
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.databases import SMALL


@pytest.fixture
def folder(new_folder: Callable[[], Path]) -> Iterator[Path]:
    """A folder for a server, which is stopped afterwards if it is still running."""
    folder = new_folder() / "postgres"
    yield folder
    EmbeddedPostgres(folder).stop()


@pytest.fixture
def server(folder: Path) -> EmbeddedPostgres:
    made = EmbeddedPostgres(folder, SMALL)
    made.start()
    return made


def is_root() -> bool:
    return os.geteuid() == 0


async def ask(server: EmbeddedPostgres, query: str) -> object:
    connection = await connections.connect(server.dsn, purpose="tests")
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def kill(server: EmbeddedPostgres) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


def refused(server: EmbeddedPostgres) -> str:
    with pytest.raises(EmbeddedPostgresError) as caught:
        server.start()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_first_start_creates_an_empty_durable_utf8_database(server: EmbeddedPostgres):
    assert server.is_running()
    found = {
        name: await ask(server, f"SHOW {name}")
        for name in ("server_encoding", "fsync", "synchronous_commit", "full_page_writes", "TimeZone", "jit")
    }
    assert found == {
        "server_encoding": "UTF8",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "TimeZone": "UTC",
        "jit": "off",
    }
    assert await ask(server, "SELECT current_database()") == "ingest"
    assert await ask(server, "SELECT lower('ÄÖÜ') || ('Z' < 'a')") == "äöütrue"
    assert await ask(server, "SHOW shared_buffers") == SMALL["shared_buffers"]


async def test_other_users_cannot_reach_it(server: EmbeddedPostgres):
    assert server.pid is not None
    assert psutil.Process(server.pid).net_connections("inet") == []
    sockets = Path(str(await ask(server, "SHOW unix_socket_directories")))
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert (server.folder / "cluster").stat().st_mode & 0o777 == 0o700
    assert server.log_path.stat().st_mode & 0o077 == 0


async def test_start_and_stop_can_be_repeated_and_keep_the_rows(server: EmbeddedPostgres):
    await ask(server, "CREATE TABLE kept AS SELECT 42 AS a")
    server.start()
    server.stop()
    assert not server.is_running()
    assert server.pid is None
    server.stop()
    server.start()
    assert await ask(server, "SELECT a FROM kept") == 42


async def test_running_server_is_adopted(server: EmbeddedPostgres, folder: Path):
    other = EmbeddedPostgres(folder)
    assert (other.pid, other.dsn) == (server.pid, server.dsn)
    other.start()
    assert other.pid == server.pid
    other.stop()
    assert not server.is_running()


def test_of_many_that_start_it_at_once_one_succeeds(folder: Path):
    servers = [EmbeddedPostgres(folder, SMALL) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(EmbeddedPostgres.start, servers))
    assert len({server.pid for server in servers}) == 1


async def test_killed_server_starts_again_with_all_that_was_committed(server: EmbeddedPostgres):
    await ask(server, "CREATE TABLE kept AS SELECT 42 AS a")
    connection = await connections.connect(server.dsn, purpose="tests")
    # A busy backend does not notice that its postmaster was killed; this one would run for hours.
    busy = asyncio.ensure_future(connection.execute("SELECT count(*) FROM generate_series(1, 1000000000000)"))
    await asyncio.sleep(0.1)
    kill(server)
    await asyncio.to_thread(server.start)
    assert await ask(server, "SELECT a FROM kept") == 42
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        await busy
    connection.terminate()


async def test_pid_of_a_killed_server_that_another_process_has_now(server: EmbeddedPostgres, folder: Path):
    """As in a restarted container: the file names a process, but it is not our postmaster."""
    old = server.pid
    kill(server)
    stranger = await asyncio.create_subprocess_exec("sleep", "60", user=folder.stat().st_uid if is_root() else None)
    try:
        pid_file = folder / "cluster" / "postmaster.pid"
        pid_file.write_text(pid_file.read_text().replace(f"{old}\n", f"{stranger.pid}\n", 1))
        assert not server.is_running()
        server.stop()
        assert stranger.returncode is None
        server.start()
        assert server.pid not in (None, stranger.pid)
        assert await ask(server, "SELECT 1") == 1
    finally:
        stranger.kill()
        await stranger.wait()


async def test_incomplete_folder_is_rebuilt(folder: Path):
    (folder / "cluster.new").mkdir(parents=True)
    (folder / "cluster.new" / "PG_VERSION").write_text("18\n")
    (folder / "lock").touch()
    server = EmbeddedPostgres(folder, SMALL)
    server.start()
    assert await ask(server, "SELECT 1") == 1
    assert not (folder / "cluster.new").exists()


async def test_ctrl_c_in_the_terminal_does_not_reach_it(server: EmbeddedPostgres):
    assert server.pid is not None
    assert os.getsid(server.pid) not in (os.getsid(0), 0)
    assert os.getpgid(server.pid) != os.getpgid(0)


async def test_long_path_has_its_socket_elsewhere(new_folder: Callable[[], Path]):
    server = EmbeddedPostgres(new_folder() / ("x" * MAX_FOLDER_BYTES) / "a folder & a 'quote' ü" / "postgres", SMALL)
    server.start()
    try:
        sockets = Path(str(await ask(server, "SHOW unix_socket_directories")))
        assert not sockets.is_relative_to(server.folder)
        assert sockets.stat().st_mode & 0o777 == 0o700
    finally:
        server.stop()
    sockets.rmdir()


async def test_environment_of_another_postgres_is_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"PGPORT": "6000", "PGDATA": "/nowhere", "PGOPTIONS": "-c no=1", "PGHOST": "db"}.items():
        monkeypatch.setenv(name, value)
    server = EmbeddedPostgres(folder, SMALL)
    server.start()
    assert await ask(server, "SELECT 1") == 1


async def test_dropped_database_is_recreated(server: EmbeddedPostgres):
    connection = await asyncpg.connect(server.dsn.replace("/ingest?", "/postgres?"))
    await connection.execute("DROP DATABASE ingest")
    await connection.close()
    server.start()
    assert await ask(server, "SELECT 1") == 1


# What keeps it from starting.


def test_folder_of_another_version(server: EmbeddedPostgres, folder: Path):
    server.stop()
    (folder / "cluster" / "PG_VERSION").write_text("16\n")
    assert "was created by PostgreSQL 16, but this release includes 18" in refused(server)


def test_folder_with_something_else_in_it(folder: Path):
    folder.mkdir()
    (folder / "thesis.txt").touch()
    owner = folder.stat().st_uid
    assert "it contains something else" in refused(EmbeddedPostgres(folder))
    assert folder.stat().st_uid == owner


def test_folder_that_is_not_writable(folder: Path):
    if is_root():
        pytest.skip("root may write everywhere")
    folder.mkdir(mode=0o500)
    assert "it is not writable" in refused(EmbeddedPostgres(folder))


def test_folder_below_a_file(folder: Path):
    folder.touch()
    assert refused(EmbeddedPostgres(folder / "below")).endswith("Not a directory")
    folder.unlink()


def test_failed_start_shows_the_end_of_the_log(server: EmbeddedPostgres, folder: Path):
    server.stop()
    text = refused(EmbeddedPostgres(folder, {"shared_buffers": "much"}))
    assert 'invalid value for parameter "shared_buffers": "much"' in text
    assert str(server.log_path) in text
    server.start()


def test_folders_that_root_opens_to_it_can_be_traversed_but_not_read(server: EmbeddedPostgres, folder: Path):
    if not is_root():
        pytest.skip("only root runs it as another user")
    assert server.pid is not None
    assert psutil.Process(server.pid).uids().real == folder.stat().st_uid != 0
    assert folder.parent.stat().st_mode & 0o777 == 0o701
