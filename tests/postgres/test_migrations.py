"""Migrations: once each, in order, all or nothing, even if two run at once or the role is an ordinary one."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from ingest.base.errors import MigrationError
from ingest.postgres import connections, migrations
from ingest.postgres.migrations import State
from ingest.postgres.queries import sql_folder


@pytest.fixture
async def empty(empty_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await connections.connect(empty_database_url, purpose="tests")
    yield opened
    await opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "001_first.sql", "CREATE TABLE first (a int);")
    write(tmp_path, "002_second.sql", "CREATE TABLE second (a int);")
    return tmp_path


def write(folder: Path, name: str, sql: str) -> None:
    (folder / name).write_text(sql)


async def states(connection: asyncpg.Connection, folder: Path | None = None) -> dict[str, State]:
    return {found.name: found.state for found in await migrations.status(connection, folder=folder)}


async def test_this_release(empty: asyncpg.Connection):
    names = [path.name for path in sorted((sql_folder() / "migrations").glob("*.sql"))]
    with pytest.raises(MigrationError, match=r"older than this release .*001_initial_schema.*run `ingest migrate`"):
        await migrations.check(empty)
    assert await states(empty) == dict.fromkeys(names, State.PENDING)
    assert await migrations.migrate(empty) == names
    await migrations.check(empty)
    assert await states(empty) == dict.fromkeys(names, State.APPLIED)
    assert await migrations.migrate(empty) == []


async def test_new_file_is_applied_alone(empty: asyncpg.Connection, folder: Path):
    assert await migrations.migrate(empty, folder=folder) == ["001_first.sql", "002_second.sql"]
    write(folder, "003_third.sql", "CREATE TABLE third (a int)")
    with pytest.raises(MigrationError, match=r"003_third\.sql is not applied"):
        await migrations.check(empty, folder=folder)
    assert await migrations.migrate(empty, folder=folder) == ["003_third.sql"]


async def test_two_at_once_apply_each_file_once(empty_database_url: str, folder: Path):
    write(folder, "003_slow.sql", "SELECT pg_sleep(0.05); CREATE TABLE slow (a int);")
    opened = [await connections.connect(empty_database_url, purpose="tests") for _ in range(4)]
    try:
        applied = await asyncio.gather(*[migrations.migrate(one, folder=folder) for one in opened])
        assert sorted(name for names in applied for name in names) == [
            "001_first.sql",
            "002_second.sql",
            "003_slow.sql",
        ]
    finally:
        for one in opened:
            await one.close()


async def test_failing_file_leaves_nothing_and_is_named_with_its_line(empty: asyncpg.Connection, folder: Path):
    write(folder, "002_second.sql", "CREATE TABLE second (a int);\n-- ü\nSELECT 1,\n  missing_column;\n")
    with pytest.raises(MigrationError) as caught:
        await migrations.migrate(empty, folder=folder)
    assert str(caught.value) == '002_second.sql, line 4: column "missing_column" does not exist'
    assert await states(empty, folder) == {"001_first.sql": State.APPLIED, "002_second.sql": State.PENDING}
    assert await empty.fetchval("SELECT to_regclass('second')") is None


async def test_error_without_a_position_has_postgres_words(empty: asyncpg.Connection, folder: Path):
    write(folder, "003_third.sql", "INSERT INTO first VALUES (1); ALTER TABLE first ADD CONSTRAINT c CHECK (a > 1);")
    with pytest.raises(MigrationError, match=r'^003_third\.sql: check constraint "c" .* is violated by some row$'):
        await migrations.migrate(empty, folder=folder)


async def test_edited_file(empty: asyncpg.Connection, folder: Path):
    await migrations.migrate(empty, folder=folder)
    write(folder, "001_first.sql", "CREATE TABLE first (a bigint);")
    assert (await states(empty, folder))["001_first.sql"] is State.EDITED
    for refuse in (migrations.check, migrations.migrate):
        with pytest.raises(MigrationError, match=r"001_first\.sql was changed after"):
            await refuse(empty, folder=folder)


async def test_newer_database(empty: asyncpg.Connection, folder: Path):
    await migrations.migrate(empty, folder=folder)
    (folder / "002_second.sql").unlink()
    for refuse in (migrations.check, migrations.migrate):
        with pytest.raises(MigrationError, match=r"newer than this release \(002_second.sql is applied\)"):
            await refuse(empty, folder=folder)


async def test_missing_file(empty: asyncpg.Connection, folder: Path):
    await migrations.migrate(empty, folder=folder)
    (folder / "001_first.sql").unlink()
    assert (await states(empty, folder))["001_first.sql"] is State.MISSING
    with pytest.raises(MigrationError, match="no such file"):
        await migrations.check(empty, folder=folder)


@pytest.mark.parametrize(
    ("name", "words"), [("first.sql", "does not begin with a number"), ("1_again.sql", "have the same number")]
)
async def test_misnamed_file(empty: asyncpg.Connection, folder: Path, name: str, words: str):
    shutil.copy(folder / "001_first.sql", folder / name)
    with pytest.raises(MigrationError, match=words):
        await migrations.migrate(empty, folder=folder)


async def test_rehearsal_does_everything_and_leaves_nothing(empty: asyncpg.Connection, folder: Path):
    assert await migrations.rehearse(empty, folder=folder) == ["001_first.sql", "002_second.sql"]
    assert await states(empty, folder) == dict.fromkeys(["001_first.sql", "002_second.sql"], State.PENDING)
    left = "SELECT count(*) FROM pg_class WHERE relname IN ('first', 'second', 'migrations')"
    assert await empty.fetchval(left) == 0
    assert await empty.fetchval("SELECT to_regnamespace('ingest')") is None
    await migrations.migrate(empty, folder=folder)
    assert await migrations.rehearse(empty, folder=folder) == []
    write(folder, "003_third.sql", "ALTER TABLE first ADD b int; SELECT missing_column;")
    with pytest.raises(MigrationError, match=r'^003_third\.sql, line 1: column "missing_column" does not exist$'):
        await migrations.rehearse(empty, folder=folder)
    write(folder, "001_first.sql", "")
    with pytest.raises(MigrationError, match=r"001_first\.sql was changed after"):
        await migrations.rehearse(empty, folder=folder)
    assert not empty.is_in_transaction()
    await empty.execute("INSERT INTO first (a) VALUES (1)")


# Ordinary roles.


class Ordinary:
    """A role that can log in but has no other rights, and its connection to the test's database."""

    def __init__(self, name: str, connection: asyncpg.Connection, administrator: asyncpg.Connection) -> None:
        self.name = name
        self.connection = connection
        self.administrator = administrator
        """Connected to the same database as a superuser."""

    async def migrate_with_administrator(self) -> list[str]:
        """Migrate; as long as that is refused, run the statements in the error. Returns them."""
        reported: list[str] = []
        for _ in range(3):
            try:
                await migrations.migrate(self.connection)
                return reported
            except MigrationError as error:
                statements = str(error).partition("an administrator needs to run: ")[2]
                assert statements, error
                reported += [f"{one.strip()};" for one in statements.split(";") if one.strip()]
                await self.administrator.execute(statements)
        raise AssertionError(f"still refused after {reported}")


@pytest.fixture
async def ordinary(template: str, direct_empty_url: str, empty: asyncpg.Connection) -> AsyncIterator[Ordinary]:
    # Directly: the tests' pooler logs everyone in as the same user.
    # The template was migrated, so the roles shared by all databases of the server exist.
    # A name that must be quoted, also in the statements of the error.
    role = f"Ordinary-{secrets.token_hex(4)}"
    await empty.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{role}'")
    parts = urlsplit(direct_empty_url)
    hosts = parts.netloc.rpartition("@")[2]
    url = f"{parts.scheme}://{role}:{role}@{hosts}{parts.path}?{parts.query}"
    opened = await connections.connect(url, purpose="tests")
    yield Ordinary(role, opened, empty)
    await opened.close()
    # What it created goes with its database, but its rights on the server do not.
    await empty.execute(f'DROP OWNED BY "{role}" CASCADE')
    await empty.execute(f'DROP ROLE "{role}"')


async def test_ordinary_role_that_does_not_own_the_database(ordinary: Ordinary):
    name = await ordinary.connection.fetchval("SELECT current_database()")
    await ordinary.administrator.execute(
        f'GRANT CREATE ON DATABASE {name} TO "{ordinary.name}"; GRANT CREATE ON SCHEMA public TO "{ordinary.name}"'
    )
    connection = ordinary.connection
    await migrations.migrate(connection)
    await migrations.check(connection)
    assert await connection.fetchval("SELECT analytics.ensure_events_partition('2026-01-02')")
    await connection.execute(
        "INSERT INTO analytics.events (type, name, created_at) VALUES ('system', 'ping', '2026-01-02 12:00+00')"
    )


async def test_missing_privileges_are_reported_as_the_statements_that_grant_them(ordinary: Ordinary):
    name = await ordinary.connection.fetchval("SELECT current_database()")
    reported = await ordinary.migrate_with_administrator()
    assert reported[:2] == [
        f'GRANT CREATE ON DATABASE {name} TO "{ordinary.name}";',
        f'GRANT USAGE, CREATE ON SCHEMA public TO "{ordinary.name}";',
    ]
    assert len(reported) == len(set(reported)), "reported everything at once"


async def test_missing_roles_are_reported_with_the_rest(ordinary: Ordinary):
    administrator = ordinary.administrator
    # Other databases of the server use the roles, so they are only gone within this transaction.
    transaction = administrator.transaction()
    await transaction.start()
    try:
        there = "SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated', 'service_role')"
        for (role,) in await administrator.fetch(there):
            await administrator.execute(f"ALTER ROLE {role} RENAME TO away_{role}")
        await administrator.execute(f'SET ROLE "{ordinary.name}"')
        with pytest.raises(MigrationError) as caught:
            await migrations.migrate(administrator)
        reported = str(caught.value).partition("an administrator needs to run: ")[2]
        for role in ("anon;", "authenticated;", "service_role BYPASSRLS;"):
            assert f'CREATE ROLE {role} GRANT {role.split()[0].strip(";")} TO "{ordinary.name}";' in reported
        await administrator.execute(f'RESET ROLE; {reported} SET ROLE "{ordinary.name}"')
        assert await migrations.migrate(administrator)
    finally:
        await transaction.rollback()


async def test_role_that_owns_its_schemas_needs_no_right_on_the_database(ordinary: Ordinary):
    for schema in ("ingest", "marketing", "onboarding", "analytics", "experiments", "whatsapp", "auth"):
        await ordinary.administrator.execute(f'CREATE SCHEMA {schema} AUTHORIZATION "{ordinary.name}"')
    await ordinary.administrator.execute(f'GRANT CREATE ON SCHEMA public TO "{ordinary.name}"')
    await ordinary.administrator.execute(
        "CREATE FUNCTION auth.jwt() RETURNS jsonb LANGUAGE sql RETURN NULL::jsonb;"
        "CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql RETURN NULL::uuid"
    )
    await ordinary.administrator.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA auth TO PUBLIC")
    await migrations.migrate(ordinary.connection)
    await migrations.check(ordinary.connection)


async def test_role_that_may_not_use_a_schema_that_is_there(ordinary: Ordinary):
    await ordinary.administrator.execute("CREATE SCHEMA ingest; CREATE SCHEMA marketing")
    name = await ordinary.connection.fetchval("SELECT current_database()")
    with pytest.raises(MigrationError) as caught:
        await migrations.migrate(ordinary.connection)
    reported = str(caught.value)
    for schema in ("ingest", "marketing"):
        assert f'GRANT USAGE, CREATE ON SCHEMA {schema} TO "{ordinary.name}";' in reported
    assert f"GRANT CREATE ON DATABASE {name}" in reported


async def test_role_that_may_not_see_the_applied_migrations(ordinary: Ordinary):
    await migrations.migrate(ordinary.administrator)
    for refused in (migrations.check, migrations.migrate, migrations.rehearse):
        with pytest.raises(MigrationError) as caught:
            await refused(ordinary.connection)
        assert str(caught.value).startswith("cannot read which migrations are applied: permission denied")
        assert f'GRANT USAGE, CREATE ON SCHEMA ingest TO "{ordinary.name}";' in str(caught.value)


async def test_existing_schema_is_kept(empty: asyncpg.Connection):
    await empty.execute("CREATE SCHEMA marketing; CREATE TABLE marketing.campaigns AS SELECT 1 AS a")
    await migrations.migrate(empty)
    assert await empty.fetchval("SELECT a FROM marketing.campaigns") == 1


# Guarantees of the initial schema.


async def test_plain_insert_and_its_checks(connection: asyncpg.Connection):
    await connection.execute("SELECT analytics.ensure_events_partition((now() AT TIME ZONE 'UTC')::date)")
    insert = "INSERT INTO analytics.events (type, name, properties) VALUES ($1, $2, $3)"
    await connection.execute(insert, "page_view", "x" * 100, '{"a": 1}')
    for type_, name, properties in (
        ("page_view", "", "{}"),
        ("page_view", "x" * 101, "{}"),
        ("page_view", "x", "[]"),
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(insert, type_, name, properties)
    stored = await connection.fetchrow("SELECT * FROM analytics.events")
    assert stored is not None
    assert (stored["context"], stored["batch_id"]) == ("{}", None)


async def test_journal_number_fits_into_a_batch_id(connection: asyncpg.Connection):
    register = "INSERT INTO analytics.journals (identity) VALUES (gen_random_uuid()) RETURNING number"
    assert await connection.fetchval(register) == 1
    await connection.execute("ALTER SEQUENCE analytics.journals_number_seq RESTART WITH 8388607")
    number = await connection.fetchval(register)
    assert (number << 40 | (1 << 40) - 1) == 2**63 - 1
    with pytest.raises(asyncpg.SequenceGeneratorLimitExceededError):
        await connection.fetchval(register)


async def test_metric_without_a_window_is_one_row(connection: asyncpg.Connection):
    insert = "INSERT INTO analytics.metrics (name, type, value_numeric) VALUES ('mrr', 'gauge', 1)"
    await connection.execute(insert)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(insert)
