"""Migrations that other sessions block: they report who does, repeatedly, and give up in the end."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from ingest.base.errors import MigrationError
from ingest.postgres import connections, migrations
from ingest.postgres.lock_waits import Patience
from ingest.postgres.migrations import LOCK_KEY
from tests.support.databases import execute
from tests.support.pooler import Pooler, needs_pooler
from tests.support.service import environment, wait_until

END_SECONDS = 60


class Migrating:
    """`ingest migrate` in its own process."""

    def __init__(self, url: str, folder: Path, *flags: str) -> None:
        self._err = folder / f"err-{secrets.token_hex(4)}"
        with self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ingest", "migrate", *flags],
                env=environment(url),
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=err,
            )

    @property
    def said(self) -> list[str]:
        return self._err.read_text().splitlines()

    def end(self) -> tuple[int, str]:
        """Exit code and stdout."""
        out = self.process.communicate(timeout=END_SECONDS)[0]
        return self.process.returncode, out.decode()


def has_reported(waiting: Migrating) -> bool:
    return bool(waiting.said)


@asynccontextmanager
async def session(url: str, name: str, *statements: str) -> AsyncIterator[asyncpg.Connection]:
    """A session that has run these statements in a transaction, which is still open."""
    connection = await asyncpg.connect(url, server_settings={"application_name": name}, statement_cache_size=0)
    try:
        async with connection.transaction():
            for statement in statements:
                await connection.execute(statement)
            yield connection
    finally:
        await connection.close()


@pytest.fixture
def pooler(database_url: str, new_folder) -> Iterator[Pooler]:
    folder = new_folder()
    folder.chmod(0o755)
    made = Pooler(database_url, folder / "pooler")
    try:
        yield made.start()
    finally:
        made.kill()


HELD = {
    "another migration": (f"SELECT pg_advisory_xact_lock({LOCK_KEY})", "another migration"),
    "its table": ("LOCK TABLE ingest.migrations IN ACCESS EXCLUSIVE MODE", "a lock on ingest.migrations"),
}


@pytest.mark.parametrize(
    ("held", "flags"),
    [
        *[(held, flags) for held in HELD for flags in ((), ("--dry-run",))],
        # Which does not wait for other migrations.
        ("its table", ("--status",)),
    ],
)
async def test_it_reports_who_blocks_it_until_it_gives_up(database_url: str, tmp_path: Path, held: str, flags):
    statement, what = HELD[held]
    async with session(database_url, "somebody else", statement) as other:
        pid = other.get_server_pid()
        waiting = Migrating(database_url, tmp_path, "--wait", "3", *flags)
        code, _ = await asyncio.to_thread(waiting.end)
    assert code == 1
    *said, last = waiting.said
    assert said and all(line.startswith(f"waiting for {what}") for line in said), waiting.said
    for line in (*said, last):
        for words in (
            f"process {pid} (",
            "application somebody else",
            "user postgres",
            "idle in transaction",
            " UTC",
        ):
            assert words in line, line
    assert last.startswith("ingest: gave up after ") and what in last and "--wait SECONDS" in last
    assert len(said) <= 3, "not more than one line in five seconds"


async def test_it_continues_when_the_other_is_done(database_url: str, tmp_path: Path):
    await check_that_it_continues(database_url, tmp_path)


@needs_pooler
async def test_it_continues_through_a_pooler_when_the_other_is_done(
    database_url: str, tmp_path: Path, pooler: Pooler
):
    await check_that_it_continues(pooler.url_of(database_url), tmp_path)


async def check_that_it_continues(url: str, tmp_path: Path) -> None:
    for statement, _ in HELD.values():
        async with session(url, "in no hurry", statement):
            waiting = Migrating(url, tmp_path)
            try:
                await asyncio.to_thread(wait_until, partial(has_reported, waiting), 30, "it reports that it waits")
            finally:
                if not waiting.said:
                    waiting.process.kill()
        code, out = await asyncio.to_thread(waiting.end)
        assert (code, out) == (0, "nothing to do: the database is up to date\n"), waiting.said
        assert all(line.startswith("waiting for ") and "application in no hurry" in line for line in waiting.said)


@needs_pooler
async def test_it_also_reports_a_pooler_that_has_no_connection_left(
    database_url: str, tmp_path: Path, pooler: Pooler
):
    url = pooler.url_of(database_url)
    async with session(url, "a", "SELECT 1"), session(url, "b", "SELECT 1"), session(url, "c", "SELECT 1"):
        waiting = Migrating(url, tmp_path, "--wait", "2")
        code, _ = await asyncio.to_thread(waiting.end)
    assert code == 1 and "an answer from the database, or from a pooler" in waiting.said[0], waiting.said
    assert waiting.said[-1].startswith("ingest: gave up after "), waiting.said


async def test_two_migrations_name_each_other(empty_database_url: str, tmp_path: Path):
    """Whichever applies the file does so until the other has reported whom it waits for; that one then finds
    everything done."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "001_slow.sql").write_text(_SLOW)
    await execute(empty_database_url, "CREATE TABLE gate ()")
    looking = partial(connections.connect, empty_database_url, purpose="looking")
    both = [await connections.connect(empty_database_url, purpose="migrate") for _ in range(2)]
    said: list[str] = []
    try:
        migrating = [
            asyncio.ensure_future(
                migrations.migrate(connection, folder=folder, patience=Patience(60, looking, said.append))
            )
            for connection in both
        ]
        while not any("application ingest migrate, user postgres, active" in line for line in said):
            assert not any(task.done() for task in migrating), said
            await asyncio.sleep(0.01)
        await execute(empty_database_url, "INSERT INTO gate DEFAULT VALUES")
        assert sorted(name for applied in await asyncio.gather(*migrating) for name in applied) == ["001_slow.sql"]
    finally:
        for connection in both:
            await connection.close()


_SLOW = """
DO $$ BEGIN
    FOR turn IN 1..6000 LOOP
        EXIT WHEN EXISTS (SELECT FROM gate);
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
CREATE TABLE slow (a int);
"""

DDL = {
    "ALTER TABLE t ADD COLUMN more int": "SELECT * FROM t",
    "CREATE INDEX ON t (a)": "INSERT INTO t VALUES (1)",
    "DROP TABLE t": "SELECT * FROM t",
    "TRUNCATE t": "LOCK TABLE t IN SHARE MODE",
    "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()":
        "UPDATE t SET a = 2",
    "UPDATE t SET a = 3": "SELECT * FROM t FOR UPDATE",
    "CREATE TABLE done (a int); ALTER TABLE t ADD CHECK (a > 0) NOT VALID": "LOCK TABLE t IN ROW EXCLUSIVE MODE",
}  # fmt: skip
"""A migration file, and the statement of another session that blocks it."""


@pytest.mark.parametrize("file", DDL)
@pytest.mark.parametrize("how", ["released", "kept"])
async def test_it_waits_for_table_locks_in_the_same_way(empty_database_url: str, tmp_path: Path, file: str, how: str):
    (tmp_path / "001_t.sql").write_text("CREATE TABLE t (a int); INSERT INTO t VALUES (1);")
    connection = await connections.connect(empty_database_url, purpose="migrate")
    said: list[str] = []
    try:
        await migrations.migrate(connection, folder=tmp_path)
        (tmp_path / "002_file.sql").write_text(file)
        looking = partial(connections.connect, empty_database_url, purpose="looking")
        patience = Patience(1 if how == "kept" else 60, looking, said.append)
        async with session(empty_database_url, "a reader", DDL[file]) as other:
            migrating = asyncio.ensure_future(migrations.migrate(connection, folder=tmp_path, patience=patience))
            if how == "kept":
                with pytest.raises(MigrationError, match=r"^gave up after waiting \d+ s for a lock.*a reader"):
                    await migrating
            else:
                while not said:
                    assert not migrating.done()
                    await asyncio.sleep(0.01)
            assert f"process {other.get_server_pid()} (application a reader, user postgres, idle in tr" in said[0]
        if how == "released":
            assert await migrating == ["002_file.sql"]
        else:
            # It leaves nothing behind, and the next one succeeds.
            assert await migrations.migrate(connection, folder=tmp_path) == ["002_file.sql"]
    finally:
        await connection.close()


async def test_others_can_use_the_table_while_a_migration_waits_for_it(empty_database_url: str, tmp_path: Path):
    """Sessions that come after a waiting ALTER TABLE queue behind it: it must let them pass from time to time."""
    (tmp_path / "001_t.sql").write_text("CREATE TABLE t (a int);")
    connection = await connections.connect(empty_database_url, purpose="migrate")
    reader = await asyncpg.connect(empty_database_url)
    try:
        await migrations.migrate(connection, folder=tmp_path)
        (tmp_path / "002_file.sql").write_text("ALTER TABLE t ADD COLUMN more int")
        said: list[str] = []
        looking = partial(connections.connect, empty_database_url, purpose="looking")
        async with session(empty_database_url, "for hours", "SELECT * FROM t"):
            patience = Patience(60, looking, said.append)
            migrating = asyncio.ensure_future(migrations.migrate(connection, folder=tmp_path, patience=patience))
            while not said:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert await reader.fetch("SELECT * FROM t", timeout=30) == []
            assert not migrating.done()
        assert await migrating == ["002_file.sql"]
    finally:
        await reader.close()
        await connection.close()


async def test_a_role_without_rights_sees_the_process_and_the_user(empty_database_url: str, tmp_path: Path):
    administrator = await asyncpg.connect(empty_database_url)
    role = f"plain_{secrets.token_hex(4)}"
    await administrator.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
    await administrator.execute(f"CREATE SCHEMA ingest AUTHORIZATION {role}; GRANT CREATE ON SCHEMA public TO {role}")
    parts = urlsplit(empty_database_url)
    url = parts._replace(netloc=f"{role}:{role}@{parts.netloc.rpartition('@')[2]}").geturl()
    (tmp_path / "001_t.sql").write_text("CREATE TABLE public.plain (a int);")
    said: list[str] = []
    connection = await connections.connect(url, purpose="migrate")
    try:
        async with session(empty_database_url, "the owner's", f"SELECT pg_advisory_xact_lock({LOCK_KEY})") as other:
            patience = Patience(1, partial(connections.connect, url, purpose="looking"), said.append)
            with pytest.raises(MigrationError, match="gave up after"):
                await migrations.migrate(connection, folder=tmp_path, patience=patience)
            pid = other.get_server_pid()
        assert f"process {pid} (application the owner's, user postgres, its activity is visible to pg_re" in said[0]
        assert await migrations.migrate(connection, folder=tmp_path) == ["001_t.sql"]
    finally:
        await connection.close()
        await administrator.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await administrator.close()


async def test_it_gives_up_even_without_a_connection_to_look_with(database_url: str):
    connection = await connections.connect(database_url, purpose="migrate")
    try:
        async with session(database_url, "somebody", f"SELECT pg_advisory_xact_lock({LOCK_KEY})"):
            with pytest.raises(MigrationError, match=r"gave up after waiting .* s for another transaction"):
                await migrations.migrate(connection, patience=Patience(1))
        # The limits are not left in the session.
        assert await connection.fetchval("SELECT current_setting('lock_timeout')") == "0"
        assert await migrations.migrate(connection) == []
    finally:
        await connection.close()


@pytest.mark.parametrize("bad", ["-1", "soon", "nan", "1e9", ""])
def test_an_invalid_wait_is_a_one_line_error(tmp_path: Path, bad: str):
    waiting = Migrating("postgresql://nobody@127.0.0.1:1/none", tmp_path, f"--wait={bad}")
    assert waiting.end()[0] == 1
    (line,) = waiting.said
    assert line.startswith("ingest: ") and "must be a number of seconds from 0 to 86400" in line
