"""The settings for Postgres in deploy/postgres: real servers take each of them, with effect."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest

from ingest.postgres import connections, migrations
from ingest.postgres.connections import psql_command
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.databases import SMALL, execute, with_database
from tests.support.programs import needs
from tests.support.proxies import DEPLOY

EXAMPLE = DEPLOY / "postgres" / "ingest.conf"
POSTGRES_15 = Path("/usr/lib/postgresql/15/bin/postgres")
SETTING = re.compile(r"^(\w+) = (\S+)$", re.MULTILINE)
COMMENTED_OUT = re.compile(r"^#(\w+ = \S+)$", re.MULTILINE)
# More memory than tests should take.
SMALLER = {"shared_buffers": "32MB"}


def settings() -> dict[str, str]:
    return dict(SETTING.findall(EXAMPLE.read_text()))


async def test_the_newest_postgres_takes_each_setting(mortal: EmbeddedPostgres):
    example = {**settings(), **SMALLER}
    mortal.stop()
    changed = EmbeddedPostgres(mortal.folder, {**SMALL, **example})
    changed.start()
    connection = await connections.connect(changed.dsn, purpose="tests")
    try:
        assert not await connection.fetch("SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL")
        # As the server writes it.
        found = {name: await connection.fetchval("SELECT current_setting($1)", name) for name in example}
    finally:
        await connections.close(connection)
    assert found == example and len(example) > 20


@pytest.mark.long
async def test_an_administrator_makes_what_the_role_needs_to_migrate(mortal: EmbeddedPostgres):
    server = with_database(mortal.dsn, "postgres")
    roles = "anon, authenticated, service_role"
    await execute(server, "DROP DATABASE ingest WITH (FORCE)", f"DROP ROLE {roles}")
    for _ in range(2):
        # As the installer does, and again: nothing is made twice.
        with (DEPLOY / "postgres" / "database.sql").open() as typed:
            command = psql_command(server, str(mortal.psql_path), ["--no-psqlrc", "--quiet"])
            made = await asyncio.create_subprocess_exec(*command, stdin=typed, stderr=asyncio.subprocess.PIPE)
            _, said = await made.communicate()
        assert (made.returncode, said) == (0, b"")
    url = mortal.dsn.replace("postgres@", "ingest@", 1)
    connection = await connections.connect(url, purpose="tests")
    try:
        await migrations.migrate(connection)
        assert not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        assert await connections.missing_roles(connection) == []
    finally:
        await connections.close(connection)


@needs(str(POSTGRES_15), ".ci/on-postgres-15")
def test_the_oldest_postgres_takes_each_setting(new_folder):
    """Also those that are commented out. Without a cluster: it reads its file, and says what a setting would be."""
    folder: Path = new_folder()
    folder.chmod(0o755)
    text = EXAMPLE.read_text()
    more = "\n".join(COMMENTED_OUT.findall(text))
    (folder / "postgresql.conf").write_text(f"{text}\n{more}\n")
    (folder / "postgresql.auto.conf").touch()
    # It reads all of the file each time, and refuses to run as root.
    user = 65534 if os.geteuid() == 0 else None
    for name in ("wal_compression", "client_connection_check_interval"):
        command = [str(POSTGRES_15), "-D", str(folder), "-C", name]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, user=user, check=False)
        assert (asked.returncode, asked.stderr) == (0, ""), name
        assert asked.stdout.strip() in ("lz4", "10000"), name
