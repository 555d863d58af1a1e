"""Connections, their one-line errors without passwords, and psql."""

import asyncio
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from ingest.base.errors import DatabaseError, IngestError
from ingest.base.sockets import MAX_FOLDER_BYTES, find_socket_folder, short_socket_folder
from ingest.postgres import connections
from ingest.postgres.embedded import EmbeddedPostgres

PASSWORD = "s3cret-w0rd"


def url(port: int, name: str = "shop") -> str:
    return f"postgresql://ann:{PASSWORD}@127.0.0.1:{port}/{name}"


# Connections.


async def test_connection_names_its_purpose_and_keeps_no_statements(database_url: str):
    connection = await connections.connect(database_url, purpose="writer")
    try:
        assert await connection.fetchval("SHOW application_name") == "ingest writer"
        await connection.fetchval("SELECT $1::int", 1)
        assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0
    finally:
        await connection.close()


async def test_statement_without_a_response_is_cancelled(database_url: str):
    connection = await connections.connect(database_url, purpose="test", statement_timeout_seconds=0.5)
    try:
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(10)")
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()


async def refused(dsn: str, timeout_seconds: float = 10) -> str:
    with pytest.raises(DatabaseError) as caught:
        await connections.connect(dsn, purpose="test", timeout_seconds=timeout_seconds)
    text = str(caught.value)
    assert "\n" not in text
    assert PASSWORD not in text
    assert caught.value.__suppress_context__ or PASSWORD not in repr(caught.value.__context__)
    return text


async def test_port_without_a_listener(unused_tcp_port: int):
    text = await refused(url(unused_tcp_port))
    assert text == (
        f'cannot connect to database "shop" at 127.0.0.1:{unused_tcp_port}: connection refused;'
        " is the server running there?"
    )


async def test_listener_that_does_not_respond():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = await refused(url(silent.getsockname()[1]), timeout_seconds=0.2)
    assert text.endswith("no answer within 0.2 seconds")


async def test_listener_that_is_not_postgres():
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        await refused(url(server.sockets[0].getsockname()[1]))


async def test_host_that_does_not_exist():
    text = await refused(f"postgresql://ann:{PASSWORD}@no-such-host.invalid/shop")
    assert text.startswith('cannot connect to database "shop" at no-such-host.invalid:5432: ')


async def test_socket_that_does_not_exist(tmp_path: Path):
    text = await refused(f"postgresql://ann:{PASSWORD}@/shop?host={quote(str(tmp_path))}")
    assert text == f'cannot connect to database "shop" in {tmp_path}: there is no server\'s socket'


async def test_database_that_does_not_exist(database_url: str):
    missing = database_url.replace("/ingest_test_", "/missing_")
    assert "does not exist" in await refused(missing)


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://ann:{PASSWORD}/x@db.example.com/shop",  # An unescaped / ends the host: the port is a word.
        f"postgresql://ann:x/{PASSWORD}@db.example.com/shop",
        f"postgresql://ann:{PASSWORD}@db.example.com:port/shop",
        f"mysql://ann:{PASSWORD}@db.example.com/shop",
        f"postgresql://ann:{PASSWORD}@[::1/shop",
    ],
)
async def test_malformed_url(dsn: str):
    assert "malformed" in await refused(dsn)


@pytest.mark.parametrize(
    ("dsn", "described"),
    [
        (url(6543), 'database "shop" at 127.0.0.1:6543'),
        (f"postgres://ann:{PASSWORD}@db.example.com/shop?sslmode=require", 'database "shop" at db.example.com:5432'),
        ("postgresql://a@h1:1,h2:2/shop", 'database "shop" at h1:1,h2:2'),
        ("postgresql://a@[::1]/shop", 'database "shop" at [::1]:5432'),
        ("postgresql://a@/shop?host=/run/pg&port=5433", 'database "shop" in /run/pg'),
        ("postgresql://a@%2Frun%2Fpg/shop", 'database "shop" in /run/pg'),
        (f"postgresql://db.example.com/shop?user=a&password={PASSWORD}", 'database "shop" at db.example.com:5432'),
        (f"postgresql://ann:1234?{PASSWORD}@db.example.com/shop", "the database of the given URL"),
    ],
)
def test_description_names_the_place_and_nothing_else(dsn: str, described: str):
    assert connections.describe(dsn) == described


# psql.


def test_psql_gets_the_password_out_of_sight():
    dsn = f"postgresql://ann:{quote('p@ss/wörd', safe='')}@db.example.com/shop?sslmode=require"
    assert connections.psql_command(dsn, "psql", ["-c", "SELECT 1"]) == [
        "psql",
        "--dbname",
        "postgresql://ann@db.example.com/shop?sslmode=require",
        "-c",
        "SELECT 1",
    ]
    assert connections.psql_environment(dsn)["PGPASSWORD"] == "p@ss/wörd"


def test_psql_is_not_given_a_url_in_which_the_password_cannot_be_found():
    with pytest.raises(DatabaseError, match="malformed") as caught:
        connections.psql_command(f"postgresql://ann:1234/{PASSWORD}@db.example.com/shop", "psql", [])
    assert PASSWORD not in str(caught.value)


def test_psql_gets_the_password_of_the_options_too():
    dsn = f"postgresql:///shop?host=%2Frun%2Fpg&user=ann&password={PASSWORD}"
    assert connections.psql_command(dsn, "psql", [])[2] == "postgresql:///shop?host=%2Frun%2Fpg&user=ann"
    assert connections.psql_environment(dsn)["PGPASSWORD"] == PASSWORD


@pytest.mark.parametrize(
    ("args", "rest"),
    [
        (["-d", "other one", "-c", "SELECT 1"], ["-c", "SELECT 1"]),
        (["-dother one"], []),
        (["-XAtd", "other one", "-c", "-d x"], ["-X", "-A", "-t", "-c", "-d x"]),
        (["--dbname=other one", "-l"], ["-l"]),
        (["-c", "SELECT 1", "--dbname", "other one"], ["-c", "SELECT 1"]),
        (["other one", "-c", "SELECT 1"], ["-c", "SELECT 1"]),
        (["-v", "a=b", "other one", "ann"], ["-v", "a=b", "ann"]),
        (["-d", "first", "-d", "other one", "--set=x=1", "-F", ""], ["--set=x=1", "-F", ""]),
    ],
)
def test_psql_opens_another_database_of_the_same_server(args: list[str], rest: list[str]):
    url = "postgresql://ann@db.example.com:6000/shop?sslmode=require&dbname=shop"
    assert connections.psql_command(url, "psql", args) == [
        "psql",
        "--dbname",
        "postgresql://ann@db.example.com:6000/other%20one?sslmode=require",
        *rest,
    ]


@pytest.mark.parametrize("args", [["-d", "postgresql://elsewhere/x"], ["-d", "host=elsewhere"], ["--nonsense"], []])
def test_psql_keeps_arguments_that_name_another_server(args: list[str]):
    url = "postgresql://ann@db.example.com/shop"
    assert connections.psql_command(url, "psql", args) == ["psql", "--dbname", url, *args]


async def test_psql_reaches_the_database(connection: asyncpg.Connection, database_url: str):
    psql = EmbeddedPostgres(Path("unused")).psql_path
    command = connections.psql_command(database_url, str(psql), ["-XtAc", "SELECT current_database()"])
    done = await asyncio.to_thread(
        subprocess.run, command, env=connections.psql_environment(database_url), capture_output=True, text=True
    )
    assert done.stdout.strip() == await connection.fetchval("SELECT current_database()"), done.stderr


# Sockets.


def test_short_path_is_used_unchanged(new_folder: Callable[[], Path]):
    folder = new_folder() / "run"
    assert short_socket_folder(folder) == folder == find_socket_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_long_path_gets_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    long = tmp_path / ("x" * 100) / "run"
    folder = short_socket_folder(long)
    try:
        assert len(str(folder)) <= MAX_FOLDER_BYTES
        assert folder.stat().st_mode & 0o777 == 0o700
        assert short_socket_folder(long) == folder != short_socket_folder(tmp_path / "run")
        assert not long.exists()
    finally:
        folder.rmdir()


def test_private_folder_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    long = tmp_path / ("x" * 100)
    find_socket_folder(long).symlink_to(tmp_path)
    with pytest.raises(IngestError, match="not a folder of the user"):
        short_socket_folder(long)


def test_private_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    long = tmp_path / ("x" * 100)
    find_socket_folder(long).mkdir()
    with pytest.raises(IngestError, match="not a folder of the user"):
        short_socket_folder(long, owner=find_socket_folder(long).stat().st_uid + 1)
